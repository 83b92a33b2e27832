"""Around the application: each request gets a name, is counted, and perhaps printed."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kerasmtl.serving.errors import Refused

_GZIP = 31  # zlib's word for it


async def read(request: Request, most: int, seconds: float) -> bytes:
    """A request's body as it was sent.

    Raises:
        Refused: it is larger than `most` bytes, or does not arrive in time.
    """
    if _announced(request) > most:
        raise _too_large(most)
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in _chunks(request):
                data += chunk
                if len(data) > most:
                    raise _too_large(most)
    except TimeoutError:
        request.state.read = True  # there is nobody to wait for any more
        raise Refused(f"The body did not arrive in {seconds:g} seconds.", 408) from None
    return bytes(data)


def is_gzip(request: Request) -> bool:
    """Whether the body is packed.

    Raises:
        Refused: in another way than gzip.
    """
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding in ("gzip", "x-gzip"):
        return True
    if coding in ("identity", ""):
        return False
    raise Refused(f"The Content-Encoding is unknown. Expected gzip. Received: {coding[:50]!r}", 415)


def unpacked(data: bytes, most: int) -> bytes:
    """What gzip has packed, no more than `most` bytes of it.

    Raises:
        Refused: it is larger, cut off or no gzip.
    """
    found = bytearray()
    try:
        while True:  # a file may be several, one after the other
            member = zlib.decompressobj(_GZIP)
            found += member.decompress(data, most + 1 - len(found))
            if len(found) > most:
                raise _too_large(most)
            if not member.eof:
                raise Refused("The body is no whole gzip: it is cut off.")
            data = member.unused_data
            if not data:
                return bytes(found)
    except zlib.error as error:
        raise Refused(f"The body is no gzip: {error}") from None


async def discard(request: Request, most: int = 2**28, seconds: float = 5) -> None:
    """Read what is left of a body, and keep none of it: who still sends reads no answer."""
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in _chunks(request):
                size += len(chunk)
                if size > most:
                    return
    except (TimeoutError, ClientDisconnect):
        return


def _too_large(most: int) -> Refused:
    return Refused(f"The body is too large. Expected at most {most} bytes.", 413)


def _announced(request: Request) -> int:
    length = request.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else 0


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """A request's body piece by piece; another call goes on where the last one stopped."""
    while not getattr(request.state, "read", False):
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        request.state.read = not message.get("more_body", False)
        yield message.get("body", b"")


MOST = 2**16  # bytes


class BoundedHeads(HttpToolsProtocol):
    """A connection that is closed if a head does not end in time, and refused if it is too large.

    `seconds` from the start of the connection, or of the head, to the head's end.
    """

    seconds = 30.0
    _late: asyncio.TimerHandle | None = None
    _size: int | None = 0  # of the head so far; None once it is whole

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._calm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._size is not None and not self.transport.is_closing():
            self._size += len(data)
            if self._size > MOST:
                self.send_400_response("The head is too large.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._size = 0
        self._expect()

    def on_headers_complete(self) -> None:
        self._size = None
        self._calm()
        super().on_headers_complete()

    def _expect(self) -> None:
        self._calm()
        self._late = self.loop.call_later(self.seconds, self.transport.close)

    def _calm(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def bounded(seconds: float) -> type[BoundedHeads]:
    """The protocol with a time of its own."""
    return type("BoundedHeads", (BoundedHeads,), {"seconds": seconds})


log = logging.getLogger("kerasmtl.serving")
access = logging.getLogger("kerasmtl.serving.access")
HEADER = "X-Request-ID"
_NAME = re.compile(r"[\w.:=+/-]{1,128}", re.ASCII)  # else a log could be made to lie
_GONE = 499  # who asked has left

Scope = MutableMapping[str, Any]


class Observed:
    """ASGI middleware: `X-Request-ID`, taken over or made; counts; failures with a traceback.

    Args:
        app: what answers.
        count: called with endpoint, status and seconds.
        failed: the answer to a request that met an error of ours, given the request's name.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        count: Callable[[str, int, float], None],
        failed: Callable[[str], Response],
    ) -> None:
        self.app, self.count, self.failed = app, count, failed

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        name = given if _NAME.fullmatch(given) else uuid.uuid4().hex
        began, status = time.perf_counter(), 0

        async def marked(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        try:
            await self.app(scope, receive, marked)
        except Exception:
            log.exception("request %s failed", name)
            if status:
                raise  # half an answer is out: only to hang up is left
            await self.failed(name)(scope, receive, marked)
        finally:
            self._note(scope, name, status or _GONE, time.perf_counter() - began)

    def _note(self, scope: Scope, name: str, status: int, seconds: float) -> None:
        endpoint = scope.get("endpoint")
        self.count(getattr(endpoint, "__name__", "unknown"), status, seconds)
        client = (scope.get("client") or ("-",))[0]
        path = quote(scope["path"], safe="/:@,")[:500]
        access.info(
            "%s %s %s %d %.1f ms %s", client, scope["method"], path, status, 1000 * seconds, name
        )
