"""The server: which path gets which answer, and how the process starts and ends.

    run -> create_app -> ModelServer -> protocols (JSON <-> arrays), batching (calls of the model)

`kerasmtl serve` calls `run`; tests call `create_app` with `Versions` of their own. The event loop
must stay free: the model runs on threads of the executor, large bodies are parsed on others, and
versions are loaded on one more. Requests are untrusted: their size and number are bounded before
anything is computed for them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from kerasmtl._version import __version__
from kerasmtl.serving import protocols
from kerasmtl.serving.batching import Arrays, Batcher, Examples
from kerasmtl.serving.config import ServerConfig
from kerasmtl.serving.errors import InvalidExamples, RequestError
from kerasmtl.serving.monitoring import RequestLog, ServerMetrics
from kerasmtl.serving.page import page, page_headers
from kerasmtl.serving.served_model import ServedModel
from kerasmtl.serving.versions import Versions

SMALL = 2**16  # bytes; to parse or write more on the event loop would delay other requests
ARRIVAL = 300  # seconds in which the body of a request must have come
KEEP_ALIVE = 75  # seconds; longer than load balancers keep theirs, or they meet a closed one

log = logging.getLogger("kerasmtl.serving")


class _ModelName(StringConvertor):
    """A name in a path: up to the colon that TensorFlow Serving puts before the verb."""

    regex = "[^/:]+"


register_url_convertor("model", _ModelName())


class ModelServer:
    """The answers to each path, for one model.

    Requests are parsed and answered on the event loop, or on another thread if they are large; the
    model is called on the threads of `executor`, and new versions are loaded on one more.

    Args:
        name: the name of the model, as in the paths.
        versions: its versions, which have been loaded.
        config: limits and batching.

    Attributes:
        busy: the number of requests that are read, waiting or running; bounded by
            `config.max_queue`.
    """

    def __init__(self, name: str, versions: Versions, config: ServerConfig) -> None:
        self.name, self.versions, self.config = name, versions, config
        self.executor = ThreadPoolExecutor(config.workers, thread_name_prefix="model")
        self.busy = 0
        busy = ("Requests that are read, waiting or running.", lambda: self.busy)
        waiting = ("Examples that wait for a call of the model.", lambda: self.batcher.waiting)
        gauges = {"requests_in_progress": busy, "examples_waiting": waiting}
        self.metrics = ServerMetrics(name, gauges, lambda: versions.numbers)
        self.batcher = Batcher(config, self.executor, self.metrics.count_batch)

    def routes(self) -> list[Route]:
        """Return the paths and what answers them; the names of the methods label the metrics.

        Each path of a model exists with and without /versions/N; without it the newest version
        answers.
        """
        found = {
            "/": self.page,
            "/v2": self.server,
            "/v2/health/live": self.health,
            "/v2/health/ready": self.health,
            "/metrics": self.counts,
            "/monitoring/prometheus/metrics": self.counts,  # TensorFlow Serving's path
        }
        posted = {}
        for version in ("", "/versions/{version:int}"):
            v1, v2 = (f"/{kind}/models/{{name:model}}{version}" for kind in ("v1", "v2"))
            posted |= {f"{v1}:predict": self.predict, f"{v2}/infer": self.infer}
            found |= {f"{v1}/metadata": self.metadata, v1: self.status}
            found |= {f"{v2}/ready": self.model_ready, v2: self.model}
        return [
            *(Route(path, answer, methods=["POST"]) for path, answer in posted.items()),
            *(Route(path, answer, methods=["GET"]) for path, answer in found.items()),
        ]

    async def predict(self, request: Request) -> Response:
        """Answer TensorFlow Serving's POST /v1/models/NAME:predict."""

        def write(model: ServedModel, body: dict[str, Any], outputs: Arrays) -> Any:
            return protocols.write_predict(body, outputs)

        return await self._answer(request, protocols.read_predict, write)

    async def infer(self, request: Request) -> Response:
        """Answer the Open Inference Protocol's POST /v2/models/NAME/infer."""
        write = partial(protocols.write_infer, self.name)
        return await self._answer(request, protocols.read_infer, write)

    async def status(self, request: Request) -> Response:
        """Answer GET /v1/models/NAME: the state of the versions, which clients poll."""
        model = self._model(request)
        asked = "version" in request.path_params
        versions = [model.version] if asked else self.versions.numbers
        return json_response(protocols.write_status(versions))

    async def metadata(self, request: Request) -> Response:
        """Answer GET /v1/models/NAME/metadata."""
        return json_response(protocols.write_metadata(self.name, self._model(request)))

    async def health(self, request: Request) -> Response:
        """Answer GET /v2/health/live and /v2/health/ready: there is always a version to serve."""
        return json_response({request.url.path.rpartition("/")[2]: True})

    async def server(self, request: Request) -> Response:
        """Answer GET /v2."""
        return json_response({"name": "kerasmtl", "version": __version__, "extensions": []})

    async def model(self, request: Request) -> Response:
        """Answer GET /v2/models/NAME."""
        model = self._model(request)
        return json_response(protocols.write_model(self.name, model, self.versions.numbers))

    async def model_ready(self, request: Request) -> Response:
        """Answer GET /v2/models/NAME/ready; status 404 for another model or version."""
        self._model(request)
        return json_response({"name": self.name, "ready": True})

    async def counts(self, request: Request) -> Response:
        """Answer GET /metrics, for Prometheus."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def page(self, request: Request) -> Response:
        """Answer GET /, for people."""
        text = page(self.name, self.versions.get(), self.config)
        return Response(text, media_type="text/html", headers=page_headers())

    async def watch(self) -> None:
        """Look for new versions again and again, on a thread of its own.

        To load a version takes seconds, in which the former ones answer. Runs until it is
        cancelled.
        """
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="versions") as thread:
            while True:
                await asyncio.sleep(self.config.poll)
                try:
                    await loop.run_in_executor(thread, self.versions.refresh)
                except Exception:  # a disk that fails must not end the watch
                    log.exception("cannot look for versions in %s", self.versions.base)

    def _model(self, request: Request) -> ServedModel:
        """Return the version that a path names, or raise the error of status 404."""
        name = request.path_params["name"]
        if name != self.name:
            raise RequestError(f"The model must be {self.name!r}, got {name[:100]!r}", 404)
        return self.versions.get(request.path_params.get("version"))

    async def _answer(
        self,
        request: Request,
        read: Callable[[dict[str, Any], ServedModel], Examples],
        write: Callable[[ServedModel, dict[str, Any], Arrays], Any],
    ) -> Response:
        """Predict for the examples of a request, which `read` finds and `write` answers.

        Args:
            request: a POST to `:predict` or `/infer`.
            read: finds the examples in the parsed body; raises RequestError or InvalidExamples.
            write: makes the content of the answer from the version, the parsed body and the
                outputs.

        Raises:
            RequestError: any other answer than 200; `_error_response` writes it.
        """
        model = self._model(request)
        if self.busy >= self.config.max_queue:
            message = f"The server is busy with {self.busy} requests. Try again."
            raise RequestError(message, 503, retry_after=1)
        # Counted before the body is read, so that the bodies in memory are bounded by `max_queue`
        # times `max_body`. No await lies between the check and this line.
        self.busy += 1
        try:
            data = await read_body(request, self.config.max_bytes)
            body = await _off_loop(len(data), protocols.parse_body, data)
            try:
                examples = await _off_loop(len(data), read, body, model)
                outputs = await self.batcher.predict(model, examples)
            # `read` finds rows with wrong keys, and the model values that it cannot use: both get
            # one answer.
            except InvalidExamples as error:
                raise error.named("instances" if "instances" in body else "inputs") from None
            # About 20 characters per number.
            size = 20 * sum(array.size for array in outputs.values())
            return await _off_loop(size, lambda: json_response(write(model, body, outputs)))
        finally:
            self.busy -= 1


async def read_body(request: Request, most: int) -> bytes:
    """Read the body of a request.

    The length is counted while it arrives: Content-Length may be absent or wrong.

    Args:
        request: whose body has not been read.
        most: bytes.

    Raises:
        RequestError: with status 413, if it is larger than `most`; the rest is not read. With 408,
            if it takes longer than `ARRIVAL`, since it has one of the `max_queue` places.
        starlette.requests.ClientDisconnect: the client left before all was sent.
    """
    data = bytearray()
    try:
        async with asyncio.timeout(ARRIVAL):
            async for chunk in request.stream():
                data += chunk
                if len(data) > most:
                    raise RequestError(f"The body must have at most {most} bytes.", 413)
    except TimeoutError:
        raise RequestError(f"The body must arrive within {ARRIVAL} seconds.", 408) from None
    return bytes(data)


def json_response(
    content: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return JSON in which, as in TensorFlow Serving's, NaN and Infinity are allowed.

    Args:
        content: what `json.dumps` takes.
        status: the HTTP status.
        headers: further ones.

    Example:
        >>> json_response({"a": [float("nan"), 1]}).body
        b'{"a":[NaN,1]}'
    """
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return Response(text, status, headers, media_type="application/json")


def create_app(
    name: str, versions: Versions, config: ServerConfig, started: Callable[[], Any] = lambda: None
) -> Starlette:
    """Return an application that serves versions which have been loaded, and watches for new ones.

    Args:
        name: the name of the model, as in the paths.
        versions: its versions.
        config: limits and batching.
        started: called when the event loop runs, before the first request.

    Returns:
        An ASGI application; `app.state.server` is its `ModelServer`.
    """
    server = ModelServer(name, versions, config)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        watch = asyncio.get_running_loop().create_task(server.watch())
        started()
        yield
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        server.executor.shutdown()

    request_log = Middleware(RequestLog, count=server.metrics.count_request, failed=_failed)
    app = Starlette(routes=server.routes(), middleware=[request_log], lifespan=lifespan)
    app.state.server = server
    for kind in (RequestError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, _error_response)
    return app


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
    # The port is taken first: that it is in use should be said before minutes of loading.
    with _bound(config.host, config.port) as listener:
        versions = Versions(base, config.keep)
        versions.load()
        # Uvicorn raises the signal again when it is done, which must not look like a kill.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
        shown = f"[{config.host}]" if ":" in config.host else config.host
        url = f"http://{shown}:{listener.getsockname()[1]}"

        def started() -> None:
            listener.listen()  # from here on, clients wait until Uvicorn accepts them
            ready(url, versions)

        app = create_app(name, versions, config, started)
        uvicorn.Server(uvicorn_config(app, config)).run(sockets=[listener])


def uvicorn_config(app: Starlette, config: ServerConfig) -> uvicorn.Config:
    """Return Uvicorn's settings for an application.

    Args:
        app: what `create_app` returns.
        config: the server's; `drain` (seconds) becomes Uvicorn's time for running requests.
    """
    return uvicorn.Config(
        app,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE,
        log_level="warning",
        access_log=False,  # the application has its own, with request IDs and times
        timeout_graceful_shutdown=max(1, round(config.drain)),
        server_header=False,
    )


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket that does not listen yet, so that clients do not wait for the model."""
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


async def _error_response(request: Request, error: Exception) -> Response:
    """Return the answer to an expected error: its sentence as "error", its status and headers."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # nobody reads it
    if isinstance(error, RequestError):
        again = {"Retry-After": str(error.retry_after)} if error.retry_after else None
        reasons = {"reasons": error.reasons} if error.reasons else {}
        return json_response({"error": str(error), **reasons}, error.status, again)
    message = f"{error.detail}: {request.method} {request.url.path[:200]}"
    return json_response({"error": message}, error.status_code, dict(error.headers or {}))


def _failed(name: str) -> Response:
    """Return the answer to an unexpected error: the request's ID, and nothing of the error."""
    return json_response({"error": f"The server failed; see its log for request {name}."}, 500)


async def _off_loop(size: int, call: Callable[..., Any], *given: Any) -> Any:
    """Call a function on another thread, unless it has less than SMALL bytes to do."""
    return call(*given) if size <= SMALL else await asyncio.to_thread(call, *given)
