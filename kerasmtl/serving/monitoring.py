"""What a server tells of itself: request IDs, the access log, and metrics for Prometheus.

`create_app` wraps the application in `RequestLog`, which counts each request with
`ServerMetrics.count_request`; the batcher counts calls of the model with `count_batch`; GET
/metrics answers `ServerMetrics.text`. Everything that a request brings along is hostile here: IDs
and paths could forge lines of the log, and free label values could create series without end.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any
from urllib.parse import quote

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

HEADER = "X-Request-ID"
_ID = re.compile(r"[\w.:=+/-]{1,128}", re.ASCII)  # others could forge lines of the log
_GONE = 499  # the client left before its answer
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_EXAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

log = logging.getLogger("kerasmtl.serving")
access_log = logging.getLogger("kerasmtl.serving.access")


class RequestLog:
    """ASGI middleware that gives each request an ID, counts it, and logs it if the log is on.

    The ID is the client's `X-Request-ID`, or a new one; it is in the answer, the access log, and
    beside the traceback of an unexpected error.

    Args:
        app: the application that answers.
        count: called with the name of the endpoint, the status and the seconds.
        failed: returns the answer to a request that met an unexpected error, given its ID.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        count: Callable[[str, int, float], None],
        failed: Callable[[str], Response],
    ) -> None:
        self.app, self.count, self.failed = app, count, failed

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Pass a request on to the application, and count and log it whatever becomes of it.

        Args:
            scope: ASGI's description of the request; the router adds the "endpoint" while it
                answers.
            receive: ASGI's function for messages of the client.
            send: ASGI's function for messages to the client.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        name = given if _ID.fullmatch(given) else uuid.uuid4().hex
        began, status = time.perf_counter(), 0

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            """Send a message, with the ID in the headers of the answer."""
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            log.exception("request %s failed", name)
            if status:
                raise  # the response has started: the connection can only be closed
            await self.failed(name)(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - began
            endpoint = getattr(scope.get("endpoint"), "__name__", "unknown")
            self.count(endpoint, status or _GONE, seconds)
            client = (scope.get("client") or ("-",))[0]
            # ASGI has decoded the path: a line break in it would begin a new line of the log.
            path = quote(scope["path"], safe="/:@,")[:500]
            what = (client, scope["method"], path, status or _GONE, 1000 * seconds, name)
            access_log.info("%s %s %s %d %.1f ms %s", *what)


class ServerMetrics:
    """Counters, histograms and gauges, in a registry of the server's own.

    The registry is not Prometheus' global one, so that one process can hold several servers, as
    tests do.

    Args:
        name: the name of the model.
        gauges: by name, the help text and a function that returns the value.
        versions: returns the versions that are served.
    """

    def __init__(
        self,
        name: str,
        gauges: Mapping[str, tuple[str, Callable[[], float]]],
        versions: Callable[[], Sequence[int]],
    ) -> None:
        self._registry = CollectorRegistry()
        self._name, self._versions = name, versions

        def add(
            kind: type, metric: str, about: str, labels: Sequence[str] = (), **more: Any
        ) -> Any:
            return kind(f"kerasmtl_{metric}", about, labels, registry=self._registry, **more)

        self._requests = add(
            Counter, "requests", "Requests by endpoint and HTTP status.", ("endpoint", "code")
        )
        self._seconds = add(
            Histogram,
            "request_seconds",
            "Seconds from the headers of a request to the end of its answer.",
            ("endpoint",),
            buckets=_SECONDS,
        )
        self._batch_examples = add(
            Histogram, "batch_examples", "Examples per call of the model.", buckets=_EXAMPLES
        )
        self._batch_seconds = add(
            Histogram, "batch_seconds", "Seconds per call of the model.", buckets=_SECONDS
        )
        self._served = add(Gauge, "version_served", "1 for each version.", ("model", "version"))
        for metric, (about, value) in gauges.items():
            add(Gauge, metric, about).set_function(value)
        ProcessCollector(registry=self._registry)

    def count_request(self, endpoint: str, code: int, seconds: float) -> None:
        """Count a request that was answered.

        Args:
            endpoint: the name of what answered; "unknown" for paths that nothing answers, so that
                strangers cannot create new series.
            code: the HTTP status; 499 if the client had left.
            seconds: from the headers of the request to the end of the answer.
        """
        self._requests.labels(endpoint, str(code)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def count_batch(self, examples: int, seconds: float) -> None:
        """Count a call of the model.

        Args:
            examples: how many it was given, of all requests together.
            seconds: from the submission to the executor to the outputs, failed calls included.
        """
        self._batch_examples.observe(examples)
        self._batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """Return all values in Prometheus' text format; gauges are computed now."""
        # Versions that are no longer served must disappear, instead of staying at 1.
        self._served.clear()
        for version in self._versions():
            self._served.labels(self._name, str(version)).set(1)
        return generate_latest(self._registry)
