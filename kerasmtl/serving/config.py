"""How much a server takes on, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass, fields

WHOLE = {
    *("max_body", "max_pixels", "batch_pixels", "max_queue", "batch_size", "workers", "keep"),
}
MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What is refused rather than taken on; `kerasmtl serve` has an option for each.

    Args:
        max_body: bytes of a request.
        max_pixels: of one picture; by default, and at most, as many as the model says.
        batch_pixels: of all pictures in one call of the model; a larger one is alone in its call.
        max_queue: requests that are read, waiting or running; more are answered with 503.
        batch_size: examples in one call of the model.
        batch_wait: seconds that an example waits for others.
        workers: calls of the model at the same time.
        keep: versions that are served, the newest.
        poll: seconds between two looks at the folder.
        drain: seconds that running requests have left once the server is told to stop.
        read: seconds within which a request's head must arrive, and once more its body.

    Raises:
        ValueError: a number that is none, or too small.
    """

    max_body: int = 32 * MIB
    max_pixels: int | None = None
    batch_pixels: int = 50_000_000
    max_queue: int = 128
    batch_size: int = 32
    batch_wait: float = 0.002
    workers: int = 1
    keep: int = 2
    poll: float = 1.0
    drain: float = 30.0
    read: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, whole = getattr(self, field.name), field.name in WHOLE
            if value is None and field.default is None:
                continue
            least = 1 if whole else 0
            right = isinstance(value, int if whole else (int, float))
            if not right or isinstance(value, bool) or not value >= least:
                kind = "a whole number" if whole else "a number"
                raise ValueError(
                    f"`{field.name}` is out of bounds. Expected {kind} of at least {least}. "
                    f"Received: {value!r}"
                )
