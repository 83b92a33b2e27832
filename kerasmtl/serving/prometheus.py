"""The counters of a server, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_EXAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class ServerMetrics:
    """Counters, histograms and gauges, in a registry of the server's own.

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
        self._registry = registry = CollectorRegistry()
        self._name, self._gauges, self._versions = name, gauges, versions
        self._requests = Counter(
            "kerasmtl_requests",
            "Requests by endpoint and HTTP status.",
            ("endpoint", "code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "kerasmtl_request_seconds",
            "Seconds from the headers of a request to the end of its answer.",
            ("endpoint",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_examples = Histogram(
            "kerasmtl_batch_examples",
            "Examples per call of the model.",
            buckets=_EXAMPLES,
            registry=registry,
        )
        self._batch_seconds = Histogram(
            "kerasmtl_batch_seconds",
            "Seconds per call of the model.",
            buckets=_SECONDS,
            registry=registry,
        )
        registry.register(self)
        ProcessCollector(registry=registry)

    def count_request(self, endpoint: str, code: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(endpoint, str(code)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def count_batch(self, examples: int, seconds: float) -> None:
        """Count a call of the model."""
        self._batch_examples.observe(examples)
        self._batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """Return all values in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges, as they are at this moment; called by the registry."""
        for name, (about, value) in self._gauges.items():
            yield GaugeMetricFamily(name, about, value())
        served = GaugeMetricFamily(
            "kerasmtl_version_served", "1 for each version.", labels=("model", "version")
        )
        for version in self._versions():
            served.add_metric((self._name, str(version)), 1)
        yield served
