"""The server as an ASGI application."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
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
from kerasmtl.serving import middleware as bodies
from kerasmtl.serving import protocols as kserve
from kerasmtl.serving import protocols as tfserving
from kerasmtl.serving.batching import Arrays, Batcher, Examples
from kerasmtl.serving.config import Limits
from kerasmtl.serving.errors import BadRows, Refused
from kerasmtl.serving.middleware import Observed
from kerasmtl.serving.page import page, policy
from kerasmtl.serving.prometheus import KIND, Metrics
from kerasmtl.serving.protocols import parsed
from kerasmtl.serving.served_model import Served
from kerasmtl.serving.versions import Versions

log = logging.getLogger("kerasmtl.serving")
SMALL = 2**16  # bytes; parsing more would keep the event loop from other requests
BINARY = "Inference-Header-Content-Length"
Read = Callable[[dict[str, Any], Served, int], Examples]


class _Name(StringConvertor):
    """Of a model or a label: TensorFlow Serving writes what is to be done after a colon."""

    regex = "[^/:]+"


register_url_convertor("model", _Name())


class Server:
    """The answers to each path, for one model."""

    def __init__(self, name: str, versions: Versions, limits: Limits) -> None:
        self.name, self.versions, self.limits = name, versions, limits
        self.executor = ThreadPoolExecutor(limits.workers, thread_name_prefix="model")
        self.metrics = Metrics(name, self._gauges(), lambda: versions.numbers)
        self.batcher = Batcher(limits, self.executor, self.metrics.batch)
        self.busy = 0  # requests being read, waiting or running

    async def predict(self, request: Request) -> Response:
        """TensorFlow Serving's `:predict`."""
        served = self._served(request)
        with self._admitted():
            body, outputs = await self._answer(request, served, tfserving.read_predict)
            where = "instances" if "instances" in body else "inputs"
            if isinstance(outputs, BadRows):
                raise outputs.named(where)
            return await self._written(tfserving.write_predict, outputs, body, outputs)

    async def infer(self, request: Request) -> Response:
        """The Open Inference Protocol's `infer`."""
        served = self._served(request)
        if BINARY in request.headers:
            raise Refused(
                "The binary tensor extension is not spoken. Expected JSON, and no header "
                "Inference-Header-Content-Length."
            )
        with self._admitted():
            body, outputs = await self._answer(request, served, kserve.read_infer)
            if isinstance(outputs, BadRows):
                raise outputs.named("inputs")
            return await self._written(
                kserve.write_infer, outputs, self.name, served, body, outputs
            )

    async def status(self, request: Request) -> Response:
        served = self._served(request)
        asked = {"version", "label"} & set(request.path_params)
        return answer(tfserving.status([served.version] if asked else self.versions.numbers))

    async def metadata(self, request: Request) -> Response:
        return answer(tfserving.metadata(self.name, self._served(request)))

    async def live(self, request: Request) -> Response:
        return answer({"live": True})

    async def ready(self, request: Request) -> Response:
        return answer({"ready": True})

    async def server(self, request: Request) -> Response:
        return answer({"name": "kerasmtl", "version": __version__, "extensions": []})

    async def model(self, request: Request) -> Response:
        served = self._served(request)
        return answer(kserve.metadata_kserve(self.name, served, self.versions.numbers))

    async def model_ready(self, request: Request) -> Response:
        self._served(request)
        return answer({"name": self.name, "ready": True})

    async def counts(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type=KIND)

    async def unspoken(self, request: Request) -> Response:
        """TensorFlow Serving's `:classify` and `:regress`."""
        path = f"/v1/models/{self.name}:predict"
        raise Refused(f"classify and regress, for tf.Example, are not served. Expected {path}", 404)

    async def page(self, request: Request) -> Response:
        text = page(self.name, self.versions.get(), self.limits)
        return Response(text, media_type="text/html", headers=policy())

    async def watch(self) -> None:
        """Look at the folder again and again, on a thread of its own."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="versions") as thread:
            while True:
                await asyncio.sleep(self.limits.poll)
                try:
                    await loop.run_in_executor(thread, self.versions.refresh)
                except Exception:  # a disk that fails must not end the watch
                    log.exception("the folder %s cannot be looked at", self.versions.base)

    def _served(self, request: Request) -> Served:
        name = request.path_params["name"]
        if name != self.name:
            raise Refused(
                f"The model is unknown. Expected {self.name!r}. Received: {name[:100]!r}", 404
            )
        chosen = request.path_params
        return self.versions.get(chosen.get("version"), chosen.get("label"))

    def _gauges(self) -> dict[str, tuple[str, Callable[[], float]]]:
        return {
            "kerasmtl_requests_in_progress": (
                "Requests that are being read, waiting or running.",
                lambda: self.busy,
            ),
            "kerasmtl_examples_waiting": (
                "Examples that wait for a call of the model.",
                lambda: self.batcher.waiting,
            ),
        }

    @contextmanager
    def _admitted(self) -> Any:
        if self.busy >= self.limits.max_queue:
            raise Refused(
                f"The server is busy with {self.busy} requests. Try again.", 503, retry_after=1
            )
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1

    async def _answer(
        self, request: Request, served: Served, read: Read
    ) -> tuple[dict[str, Any], Arrays | BadRows]:
        packed, most = bodies.is_gzip(request), self.limits.max_body
        data = await bodies.read(request, most, self.limits.read)
        if packed:
            data = await asyncio.to_thread(bodies.unpacked, data, most)
        body = await self._unless_small(len(data), parsed, data)
        pixels = served.most_pixels(self.limits.max_pixels)
        try:
            found = await self._unless_small(len(data), read, body, served, pixels)
            return body, await self.batcher.predict(served, found)
        except BadRows as error:
            return body, error

    async def _written(self, write: Callable[..., Any], outputs: Arrays, *given: Any) -> Response:
        size = sum(values.size for values in outputs.values())
        return answer(await self._unless_small(20 * size, write, *given))

    async def _unless_small(self, size: int, call: Callable[..., Any], *given: Any) -> Any:
        return call(*given) if size <= SMALL else await asyncio.to_thread(call, *given)


def answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON as TensorFlow Serving writes it, in which NaN may stand for a number."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return Response(text, status, headers, media_type="application/json")


def create_app(name: str, versions: Versions, limits: Limits) -> Starlette:
    """An application that serves versions which have been loaded, and watches for new ones."""
    server = Server(name, versions, limits)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        watch = asyncio.get_running_loop().create_task(server.watch())
        yield
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        server.executor.shutdown()

    observed = Middleware(Observed, count=server.metrics.request, failed=_failed)
    app = Starlette(routes=_routes(server), middleware=[observed], lifespan=lifespan)
    app.state.server = server
    for kind in (Refused, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, _problem)
    return app


def _routes(server: Server) -> list[Route]:
    def get(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
        return Route(path, endpoint, methods=["GET"])

    found = [
        get("/", server.page),
        get("/v2", server.server),
        get("/v2/health/live", server.live),
        get("/v2/health/ready", server.ready),
        get("/metrics", server.counts),
        get("/monitoring/prometheus/metrics", server.counts),  # TensorFlow Serving's path
    ]
    versions = ("", "/versions/{version:int}")
    for version in (*versions, "/labels/{label:model}"):
        v1 = f"/v1/models/{{name:model}}{version}"
        found += [
            Route(f"{v1}:predict", server.predict, methods=["POST"]),
            Route(f"{v1}:classify", server.unspoken, methods=["POST"]),
            Route(f"{v1}:regress", server.unspoken, methods=["POST"]),
            get(f"{v1}/metadata", server.metadata),
            get(v1, server.status),
        ]
    for version in versions:
        v2 = f"/v2/models/{{name:model}}{version}"
        found += [
            Route(f"{v2}/infer", server.infer, methods=["POST"]),
            get(f"{v2}/ready", server.model_ready),
            get(v2, server.model),
        ]
    return found


async def _problem(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # nobody reads it
    await bodies.discard(request)
    if isinstance(error, Refused):
        again = {"Retry-After": str(error.retry_after)} if error.retry_after else None
        said = {"reasons": error.reasons} if error.reasons else {}
        return answer({"error": str(error), **said}, error.status, again)
    message = f"{error.detail}: {request.method} {request.url.path[:200]}"
    return answer({"error": message}, error.status_code, dict(error.headers or {}))


def _failed(name: str) -> Response:
    return answer({"error": f"The server failed; its log says more, of request {name}."}, 500)
