"""Heads of requests within bounds of size and time, which Uvicorn leaves open."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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
