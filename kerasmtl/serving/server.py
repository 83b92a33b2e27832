"""The server as a process: a socket, signals, an end that loses no request."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from kerasmtl.serving.app import create_app
from kerasmtl.serving.config import Limits
from kerasmtl.serving.middleware import bounded
from kerasmtl.serving.versions import Versions, Wanted, prepare

KEEP_ALIVE = 75  # seconds; longer than balancers before us keep theirs, or they meet a closed one


def run(
    base: Path,
    name: str,
    host: str,
    port: int,
    limits: Limits,
    ready: Callable[[str, Versions], None],
    wanted: Callable[[], Wanted] | None = None,
) -> None:
    """Serve the versions in `base` until SIGTERM or SIGINT; running requests are still answered.

    Args:
        base: the folder of all versions of a model.
        name: the model's, in the paths.
        host: the address to listen on.
        port: 0 for a free one.
        limits: what the server takes on.
        ready: called with the URL and the versions as soon as the server listens.
        wanted: which versions are served, and their labels, asked again at each look; by default
            the newest, as many as `limits` says.

    Raises:
        ValueError: no version that can be served.
        OSError: the address is taken.
    """
    with _bound(host, port) as listener:
        versions = Versions(base, wanted or limits.keep, prepare)
        versions.load()
        # Uvicorn raises the signal once more when it is done, which must not end us as killed.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}"
        settings = config(create_app(name, versions, limits), limits)
        _Server(settings, lambda: ready(url, versions)).run(sockets=[listener])


def config(app: Starlette, limits: Limits) -> uvicorn.Config:
    """How Uvicorn serves an application."""
    return uvicorn.Config(
        app,
        http=bounded(limits.read),
        ws="none",
        timeout_keep_alive=KEEP_ALIVE,
        log_level="warning",
        access_log=False,  # the application has its own, with names and times
        timeout_graceful_shutdown=max(1, round(limits.drain)),
        server_header=False,
    )


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def _bound(host: str, port: int) -> socket.socket:
    """A socket that is bound, but listens to nobody until Uvicorn does."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, or asyncio does not turn Nagle's algorithm off: 40 ms for each answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(
            f"`--host` {host} `--port` {port} cannot be listened on: {error.strerror}"
        ) from error
    return listener
