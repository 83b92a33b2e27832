"""The server as an ASGI application: which path gets which answer."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any

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
from kerasmtl.serving.middleware import RequestLog
from kerasmtl.serving.page import page, page_headers
from kerasmtl.serving.prometheus import CONTENT_TYPE, ServerMetrics
from kerasmtl.serving.served_model import ServedModel
from kerasmtl.serving.versions import Versions

SMALL = 2**16  # bytes; to parse or write more on the event loop would delay other requests
BINARY = "Inference-Header-Content-Length"

log = logging.getLogger("kerasmtl.serving")


class _ModelName(StringConvertor):
    """A name in a path: up to the colon that TensorFlow Serving puts before the verb."""

    regex = "[^/:]+"


register_url_convertor("model", _ModelName())


class ModelServer:
    """The answers to each path, for one model.

    Args:
        name: the name of the model, as in the paths.
        versions: its versions, which have been loaded.
        config: limits and batching.
    """

    def __init__(self, name: str, versions: Versions, config: ServerConfig) -> None:
        self.name, self.versions, self.config = name, versions, config
        self.executor = ThreadPoolExecutor(config.workers, thread_name_prefix="model")
        self.busy = 0  # requests that are read, waiting or running
        busy = ("Requests that are read, waiting or running.", lambda: self.busy)
        waiting = ("Examples that wait for a call of the model.", lambda: self.batcher.waiting)
        gauges = {"kerasmtl_requests_in_progress": busy, "kerasmtl_examples_waiting": waiting}
        self.metrics = ServerMetrics(name, gauges, lambda: versions.numbers)
        self.batcher = Batcher(config, self.executor, self.metrics.count_batch)

    async def predict(self, request: Request) -> Response:
        """Answer TensorFlow Serving's `:predict`."""
        model = self._model(request)
        with self._admitted():
            body, outputs = await self._outputs(request, model, protocols.read_predict)
            return await self._written(outputs, protocols.write_predict, body, outputs)

    async def infer(self, request: Request) -> Response:
        """Answer the Open Inference Protocol's `infer`."""
        model = self._model(request)
        if BINARY in request.headers:
            raise RequestError(
                f"The binary tensor extension is not supported. Expected JSON, and no {BINARY}."
            )
        with self._admitted():
            body, outputs = await self._outputs(request, model, protocols.read_infer)
            given = (self.name, model, body, outputs)
            return await self._written(outputs, protocols.write_infer, *given)

    async def status(self, request: Request) -> Response:
        """Answer GET /v1/models/NAME."""
        model = self._model(request)
        asked = "version" in request.path_params
        versions = [model.version] if asked else self.versions.numbers
        return json_response(protocols.write_status(versions))

    async def metadata(self, request: Request) -> Response:
        """Answer GET /v1/models/NAME/metadata."""
        return json_response(protocols.write_metadata(self.name, self._model(request)))

    async def live(self, request: Request) -> Response:
        """Answer GET /v2/health/live."""
        return json_response({"live": True})

    async def ready(self, request: Request) -> Response:
        """Answer GET /v2/health/ready."""
        return json_response({"ready": True})

    async def server(self, request: Request) -> Response:
        """Answer GET /v2."""
        return json_response({"name": "kerasmtl", "version": __version__, "extensions": []})

    async def model(self, request: Request) -> Response:
        """Answer GET /v2/models/NAME."""
        model = self._model(request)
        return json_response(protocols.write_model(self.name, model, self.versions.numbers))

    async def model_ready(self, request: Request) -> Response:
        """Answer GET /v2/models/NAME/ready."""
        self._model(request)
        return json_response({"name": self.name, "ready": True})

    async def counts(self, request: Request) -> Response:
        """Answer GET /metrics, for Prometheus."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def page(self, request: Request) -> Response:
        """Answer GET /, for people."""
        text = page(self.name, self.versions.get(), self.config)
        return Response(text, media_type="text/html", headers=page_headers())

    async def watch(self) -> None:
        """Look for new versions again and again, on a thread of its own."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="versions") as thread:
            while True:
                await asyncio.sleep(self.config.poll)
                try:
                    await loop.run_in_executor(thread, self.versions.refresh)
                except Exception:  # a disk that fails must not end the watch
                    log.exception("cannot look for versions in %s", self.versions.base)

    def _model(self, request: Request) -> ServedModel:
        name = request.path_params["name"]
        if name != self.name:
            raise RequestError(f"The model must be {self.name!r}, got {name[:100]!r}", 404)
        return self.versions.get(request.path_params.get("version"))

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self.busy >= self.config.max_queue:
            message = f"The server is busy with {self.busy} requests. Try again."
            raise RequestError(message, 503, retry_after=1)
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1

    async def _outputs(
        self,
        request: Request,
        model: ServedModel,
        read: Callable[[dict[str, Any], ServedModel], Examples],
    ) -> tuple[dict[str, Any], Arrays]:
        """Return the parsed body and the outputs for its examples."""
        data = await read_body(request, self.config.max_bytes)
        body = await _off_loop(len(data), protocols.parse_body, data)
        try:
            examples = await _off_loop(len(data), read, body, model)
            return body, await self.batcher.predict(model, examples)
        except InvalidExamples as error:
            raise error.named("instances" if "instances" in body else "inputs") from None

    async def _written(self, outputs: Arrays, write: Callable[..., Any], *given: Any) -> Response:
        size = 20 * sum(array.size for array in outputs.values())
        return await _off_loop(size, lambda: json_response(write(*given)))


async def read_body(request: Request, most: int) -> bytes:
    """Read the body of a request.

    Raises:
        RequestError: it is larger than `most` bytes.
    """
    announced = request.headers.get("content-length", "")
    size = int(announced) if announced.isascii() and announced.isdigit() else 0
    data = bytearray()
    if size <= most:
        async for chunk in request.stream():
            data += chunk
            size = len(data)
            if size > most:
                break
    if size > most:
        raise RequestError(f"The body must have at most {most} bytes.", 413)
    return bytes(data)


def json_response(
    content: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return JSON in which, as in TensorFlow Serving's, NaN and Infinity are allowed."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return Response(text, status, headers, media_type="application/json")


def create_app(name: str, versions: Versions, config: ServerConfig) -> Starlette:
    """Return an application that serves versions which have been loaded, and watches for new ones.

    Args:
        name: the name of the model, as in the paths.
        versions: its versions.
        config: limits and batching.
    """
    server = ModelServer(name, versions, config)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        watch = asyncio.get_running_loop().create_task(server.watch())
        yield
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        server.executor.shutdown()

    request_log = Middleware(RequestLog, count=server.metrics.count_request, failed=_failed)
    app = Starlette(routes=_routes(server), middleware=[request_log], lifespan=lifespan)
    app.state.server = server
    for kind in (RequestError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, _error_response)
    return app


def _routes(server: ModelServer) -> list[Route]:
    def get(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
        return Route(path, endpoint, methods=["GET"])

    routes = [
        get("/", server.page),
        get("/v2", server.server),
        get("/v2/health/live", server.live),
        get("/v2/health/ready", server.ready),
        get("/metrics", server.counts),
        get("/monitoring/prometheus/metrics", server.counts),  # TensorFlow Serving's path
    ]
    for version in ("", "/versions/{version:int}"):
        v1 = f"/v1/models/{{name:model}}{version}"
        v2 = f"/v2/models/{{name:model}}{version}"
        routes += [
            Route(f"{v1}:predict", server.predict, methods=["POST"]),
            get(f"{v1}/metadata", server.metadata),
            get(v1, server.status),
            Route(f"{v2}/infer", server.infer, methods=["POST"]),
            get(f"{v2}/ready", server.model_ready),
            get(v2, server.model),
        ]
    return routes


async def _error_response(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # nobody reads it
    if isinstance(error, RequestError):
        again = {"Retry-After": str(error.retry_after)} if error.retry_after else None
        reasons = {"reasons": error.reasons} if error.reasons else {}
        return json_response({"error": str(error), **reasons}, error.status, again)
    message = f"{error.detail}: {request.method} {request.url.path[:200]}"
    return json_response({"error": message}, error.status_code, dict(error.headers or {}))


def _failed(name: str) -> Response:
    return json_response({"error": f"The server failed; see its log for request {name}."}, 500)


async def _off_loop(size: int, call: Callable[..., Any], *given: Any) -> Any:
    """Call a function on another thread, unless it has less than SMALL bytes to do."""
    return call(*given) if size <= SMALL else await asyncio.to_thread(call, *given)
