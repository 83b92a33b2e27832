"""Requests that arrive within moments of one another, put together into one call of the model.

A batch that fails is halved until the bad examples are alone, or cut where the model says the bad
one is, so that they cost their neighbours time but no answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kerasmtl.serving.config import Limits
from kerasmtl.serving.errors import BadRows
from kerasmtl.serving.served_model import Served

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Examples:
    """Some examples for one signature of one version.

    Shapes: inputs (rows, …); pixels (rows,), how many each example's picture has.
    """

    signature: str
    inputs: Mapping[str, np.ndarray]
    pixels: tuple[int, ...]

    @property
    def rows(self) -> int:
        return len(self.pixels)

    def part(self, start: int, stop: int) -> Examples:
        """The examples from `start` to before `stop`."""
        inputs = {name: values[start:stop] for name, values in self.inputs.items()}
        return Examples(self.signature, inputs, self.pixels[start:stop])


@dataclass
class _Waiting:
    """What waits for one signature of one version, with one shape."""

    queue: deque[tuple[Examples, asyncio.Future[Arrays]]] = field(default_factory=deque)
    rows: int = 0
    timer: asyncio.TimerHandle | None = None


class Batcher:
    """Collects examples and calls the model on an executor's threads, never on the event loop."""

    def __init__(
        self,
        limits: Limits,
        executor: Executor,
        observe: Callable[[int, float], None] = lambda rows, seconds: None,
    ) -> None:
        """`observe` hears of each call of the model: how many examples, and how long it took."""
        self.limits = limits
        self._executor = executor
        self._observe = observe
        self._waiting: dict[Any, _Waiting] = {}
        self._ripe: dict[Any, None] = {}  # in the order in which they became so
        self._running: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Examples that wait for a call of the model."""
        return sum(waiting.rows for waiting in self._waiting.values())

    async def predict(self, served: Served, examples: Examples) -> Arrays:
        """The outputs for the examples of one request.

        Raises:
            BadRows: examples that the model refuses; the others have been predicted in vain.
        """
        parts = list(self._parts(examples))
        futures = [self._submit(served, part) for _, part in parts]
        done = await asyncio.gather(*futures, return_exceptions=True)
        reasons: dict[int, str] = {}
        for (start, _), result in zip(parts, done, strict=True):
            if isinstance(result, BadRows):
                reasons |= {start + row: why for row, why in result.reasons.items()}
            elif isinstance(result, BaseException):
                raise result
        if reasons:
            raise BadRows(reasons)
        if len(done) == 1:
            return done[0]
        return {name: np.concatenate([outputs[name] for outputs in done]) for name in done[0]}

    def _parts(self, examples: Examples) -> Any:
        """(start, examples) pieces, none larger than a batch may be."""
        start = pixels = 0
        for row, more in enumerate(examples.pixels):
            full = row - start == self.limits.batch_size or pixels + more > self.limits.batch_pixels
            if full and row > start:
                yield start, examples.part(start, row)
                start, pixels = row, 0
            pixels += more
        yield start, examples.part(start, examples.rows)

    def _submit(self, served: Served, part: Examples) -> asyncio.Future[Arrays]:
        loop = asyncio.get_running_loop()
        shapes = tuple(values.shape[1:] for values in part.inputs.values())
        key = (served, part.signature, shapes)
        waiting = self._waiting.setdefault(key, _Waiting())
        future = loop.create_future()
        waiting.queue.append((part, future))
        waiting.rows += part.rows
        if waiting.rows >= self.limits.batch_size:
            self._ripen(key)
        elif waiting.timer is None and key not in self._ripe:
            waiting.timer = loop.call_later(self.limits.batch_wait, self._ripen, key)
        return future

    def _ripen(self, key: Any) -> None:
        timer, self._waiting[key].timer = self._waiting[key].timer, None
        if timer is not None:
            timer.cancel()
        self._ripe[key] = None
        self._dispatch()

    def _dispatch(self) -> None:
        while self._ripe and len(self._running) < self.limits.workers:
            key = next(iter(self._ripe))
            del self._ripe[key]
            batch = self._take(key)
            if batch:
                task = asyncio.get_running_loop().create_task(self._run(key, batch))
                self._running.add(task)

    def _take(self, key: Any) -> list[tuple[Examples, asyncio.Future[Arrays]]]:
        waiting = self._waiting[key]
        batch: list[tuple[Examples, asyncio.Future[Arrays]]] = []
        rows = pixels = 0
        while waiting.queue:
            part, future = waiting.queue[0]
            rows, pixels = rows + part.rows, pixels + sum(part.pixels)
            if batch and (rows > self.limits.batch_size or pixels > self.limits.batch_pixels):
                break
            waiting.queue.popleft()
            waiting.rows -= part.rows
            if future.cancelled():  # whoever asked has left
                rows, pixels = rows - part.rows, pixels - sum(part.pixels)
            else:
                batch.append((part, future))
        if waiting.queue:
            self._ripe[key] = None  # has waited long enough, and comes after the others
        else:
            del self._waiting[key]
        return batch

    async def _run(self, key: Any, batch: list[tuple[Examples, asyncio.Future[Arrays]]]) -> None:
        parts = [part for part, _ in batch]
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            results = await loop.run_in_executor(self._executor, predict_together, key[0], parts)
        except Exception as error:
            results = [error] * len(batch)
        finally:
            self._running.discard(asyncio.current_task())
            self._observe(sum(part.rows for part in parts), loop.time() - began)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
        self._dispatch()


def predict_together(served: Served, parts: list[Examples]) -> list[Arrays | Exception]:
    """By part, its outputs, or why it has none; one call of the model if all examples are good."""
    signature = parts[0].signature
    names = parts[0].inputs
    inputs = {name: np.concatenate([part.inputs[name] for part in parts]) for name in names}
    outputs, places, faults = _halving(served, signature, inputs, sum(p.rows for p in parts))
    results: list[Arrays | Exception] = []
    start = 0
    for part in parts:
        own = range(start, start + part.rows)
        wrong = {row - start: faults[row] for row in own if row in faults}
        if wrong:
            results.append(_fault(wrong))
        else:
            place = places[own[0]]
            stop = place + part.rows  # the good ones stand in the order of the batch
            results.append({name: values[place:stop] for name, values in outputs.items()})
        start += part.rows
    return results


def _fault(wrong: dict[int, Exception]) -> Exception:
    """One exception for all: a fault that is the server's goes before those of the request."""
    for error in wrong.values():
        if not isinstance(error, BadRows):
            return error
    return BadRows({row: next(iter(error.reasons.values())) for row, error in wrong.items()})


def _halving(
    served: Served, signature: str, inputs: Arrays, count: int
) -> tuple[Arrays, dict[int, int], dict[int, Exception]]:
    """The outputs of the good examples, the place of each among them, and what the bad meet."""
    good: list[Arrays] = []
    places: dict[int, int] = {}
    faults: dict[int, Exception] = {}
    left = [(0, count)]
    while left:
        start, stop = left.pop()
        try:
            outputs = served.call(signature, {k: v[start:stop] for k, v in inputs.items()})
        except Exception as error:  # too little memory for all, too, may be enough for half
            if stop - start == 1:
                faults[start] = error
            else:  # the first piece is the next
                left += [(a, b) for a, b in _pieces(start, stop, error)[::-1] if a < b]
            continue
        places |= {row: len(places) + row - start for row in range(start, stop)}
        good.append(outputs)
    if not good:
        return {}, places, faults
    if len(good) == 1:
        return good[0], places, faults
    return {name: np.concatenate([g[name] for g in good]) for name in good[0]}, places, faults


def _pieces(start: int, stop: int, error: Exception) -> list[tuple[int, int]]:
    """Halves; or the example that is said to be bad, alone, and what is before and after it."""
    said = next(iter(error.reasons)) if isinstance(error, BadRows) else -1
    if 0 <= said < stop - start:
        bad = start + said
        return [(start, bad), (bad, bad + 1), (bad + 1, stop)]
    middle = (start + stop) // 2
    return [(start, middle), (middle, stop)]
