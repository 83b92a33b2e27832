"""What a server counts, in Prometheus' words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily

KIND = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_EXAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The counters of one server, in a registry of their own.

    Args:
        name: the model's.
        now: by name of a gauge, its help and how to ask for its value.
        versions: how to ask for the versions that are served.
    """

    def __init__(
        self,
        name: str,
        now: dict[str, tuple[str, Callable[[], float]]],
        versions: Callable[[], Sequence[int]],
    ) -> None:
        self._registry = CollectorRegistry()
        self._name, self._now, self._versions = name, now, versions
        self._requests = Counter(
            "kerasmtl_requests",
            "Requests that were answered, by what they asked for and by HTTP status.",
            ("endpoint", "code"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "kerasmtl_request_seconds",
            "Seconds from a request's head to the end of its answer.",
            ("endpoint",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._examples = Histogram(
            "kerasmtl_batch_examples",
            "Examples in one call of the model.",
            buckets=_EXAMPLES,
            registry=self._registry,
        )
        self._calls = Histogram(
            "kerasmtl_batch_seconds",
            "Seconds of one call of the model.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def request(self, endpoint: str, code: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(endpoint, str(code)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def batch(self, examples: int, seconds: float) -> None:
        """Count a call of the model."""
        self._examples.observe(examples)
        self._calls.observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges, asked for at this moment."""
        for name, (about, value) in self._now.items():
            yield GaugeMetricFamily(name, about, value())
        served = GaugeMetricFamily(
            "kerasmtl_version_served", "1 for each version.", labels=("model", "version")
        )
        for version in self._versions():
            served.add_metric((self._name, str(version)), 1)
        yield served
