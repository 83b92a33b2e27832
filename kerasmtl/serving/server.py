"""The server as a process: a socket, signals, and an end that loses no request."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from kerasmtl.serving.app import create_app
from kerasmtl.serving.config import ServerConfig
from kerasmtl.serving.versions import Versions

KEEP_ALIVE = 75  # seconds; longer than load balancers keep theirs, or they meet a closed one


def run(
    base: Path, name: str, config: ServerConfig, ready: Callable[[str, Versions], None]
) -> None:
    """Serve the versions in `base` until SIGTERM or SIGINT; running requests are still answered.

    Args:
        base: the folder of all versions of a model.
        name: the name of the model, as in the paths.
        config: address, limits and batching.
        ready: called with the URL and the versions as soon as the server listens.

    Raises:
        ValueError: no version can be served.
        OSError: the address cannot be listened on.
    """
    with _bound(config.host, config.port) as listener:
        versions = Versions(base, config.keep)
        versions.load()
        # Uvicorn raises the signal again when it is done, which must not look like a kill.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
        shown = f"[{config.host}]" if ":" in config.host else config.host
        url = f"http://{shown}:{listener.getsockname()[1]}"
        settings = uvicorn_config(create_app(name, versions, config), config)
        Server(settings, lambda: ready(url, versions)).run(sockets=[listener])


def uvicorn_config(app: Starlette, config: ServerConfig) -> uvicorn.Config:
    """Return Uvicorn's settings for an application."""
    return uvicorn.Config(
        app,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE,
        log_level="warning",
        access_log=False,  # the application has its own, with request ids and times
        timeout_graceful_shutdown=max(1, round(config.drain)),
        server_header=False,
    )


class Server(uvicorn.Server):
    """Uvicorn's server; calls `ready` as soon as it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self._ready()


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket that is bound, but does not listen until Uvicorn does."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # IPPROTO_TCP must be given, or asyncio leaves Nagle's algorithm on: 40 ms for each answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"Cannot listen on --host {host} --port {port}: {error.strerror}") from error
    return listener
