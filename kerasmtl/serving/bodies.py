"""Bodies of requests: read within bounds of size and time, unpacked if they are gzip."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from kerasmtl.serving.problems import Refused

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
