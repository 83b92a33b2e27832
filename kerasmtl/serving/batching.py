"""Dynamic batching: requests that arrive at about the same time share one call of the model.

A call that fails is repeated in smaller pieces until the invalid examples are alone, so that they
cost the other requests time but no answer.

`ModelServer` awaits `Batcher.predict` once per request. All state of the batcher (queues, futures)
belongs to the event loop and needs no locks; only `predict_together`, which is given everything as
arguments, runs on the threads of the executor. `versions.prepare` calls it without a batcher.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kerasmtl.serving.config import ServerConfig
from kerasmtl.serving.errors import InvalidExamples
from kerasmtl.serving.served_model import ServedModel

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Examples:
    """Examples of one request, or a slice of them.

    Attributes:
        signature: the name of the function that they are for.
        inputs: by name, arrays (examples, ...).
    """

    signature: str
    inputs: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        """Return the number of examples; all inputs have the same."""
        return len(next(iter(self.inputs.values())))

    def __getitem__(self, part: slice) -> Examples:
        """Return a slice of the examples, of all inputs alike."""
        return Examples(self.signature, {name: array[part] for name, array in self.inputs.items()})


@dataclass
class _Queue:
    """Examples that wait for the same version and signature, with inputs of the same shapes."""

    waiting: deque[tuple[Examples, asyncio.Future[Arrays]]] = field(default_factory=deque)
    full: asyncio.Event = field(default_factory=asyncio.Event)

    def __len__(self) -> int:
        """Return the number of examples, not of requests."""
        return sum(len(part) for part, _ in self.waiting)

    def take(self, most: int) -> list[tuple[Examples, asyncio.Future[Arrays]]]:
        """Remove the next batch, without the requests whose clients have left.

        Requests stay in order: one that does not fit any more ends the batch, and is the first of
        the next.

        Args:
            most: examples in a batch; no part that waits has more.
        """
        batch: list[tuple[Examples, asyncio.Future[Arrays]]] = []
        while self.waiting and len(self.waiting[0][0]) <= most:
            part, future = self.waiting.popleft()
            if not future.cancelled():
                batch.append((part, future))
                most -= len(part)
        return batch


class Batcher:
    """Collects examples, and calls the model on the threads of an executor.

    A batch is due when it is full, or when its oldest example has waited for `config.batch_wait`
    milliseconds; while all `config.workers` are busy, more examples join it.

    Args:
        config: batch size, waiting time and number of concurrent calls.
        executor: runs the calls, so that the event loop never waits for the model.
        observe: called after each call of the model with the number of examples and the seconds.
    """

    def __init__(
        self,
        config: ServerConfig,
        executor: Executor,
        observe: Callable[[int, float], None] = lambda examples, seconds: None,
    ) -> None:
        self.config = config
        self._executor = executor
        self._observe = observe
        self._queues: dict[Any, _Queue] = {}
        self._free = asyncio.Semaphore(config.workers)  # whoever waits longest is next
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Number of examples that wait for a call of the model."""
        return sum(map(len, self._queues.values()))

    async def predict(self, model: ServedModel, examples: Examples) -> Arrays:
        """Return the outputs for the examples of one request.

        Args:
            model: the version to call.
            examples: any number of them; more than a batch takes are cut into several.

        Returns:
            By name, arrays (examples, ...).

        Raises:
            InvalidExamples: the model refuses some of them.
        """
        size = self.config.batch_size
        starts = range(0, len(examples), size)
        futures = [self._submit(model, examples[start : start + size]) for start in starts]
        # All parts are awaited even if one fails, so that the answer names the invalid examples of
        # all.
        results = await asyncio.gather(*futures, return_exceptions=True)
        reasons: dict[int, str] = {}
        for start, result in zip(starts, results, strict=True):
            if isinstance(result, InvalidExamples):
                reasons |= {start + number: why for number, why in result.reasons.items()}
            elif isinstance(result, BaseException):
                raise result
        if reasons:
            raise InvalidExamples(reasons)
        return _concatenated(results)

    def _submit(self, model: ServedModel, part: Examples) -> asyncio.Future[Arrays]:
        """Put examples into the queue of their kind; the first ones start the task that empties it.

        Shapes are part of the key, since arrays of different widths cannot be concatenated, and the
        version is, since a request is answered by the one that it began with.
        """
        loop = asyncio.get_running_loop()
        shapes = sorted((name, array.shape[1:]) for name, array in part.inputs.items())
        key = (model, part.signature, *shapes)  # clients may name the inputs in any order
        if key not in self._queues:
            self._queues[key] = _Queue()
            # One task per queue, which ends with it: versions that are no longer served leave
            # nothing behind.
            task = loop.create_task(self._drain(key, model))
            self._tasks.add(task)  # the event loop itself keeps weak references only
            task.add_done_callback(self._tasks.discard)
        queue, future = self._queues[key], loop.create_future()
        queue.waiting.append((part, future))
        if len(queue) >= self.config.batch_size:
            queue.full.set()
        return future

    async def _drain(self, key: Any, model: ServedModel) -> None:
        """Call the model, batch by batch, until a queue is empty."""
        queue = self._queues[key]
        with suppress(TimeoutError):
            await asyncio.wait_for(queue.full.wait(), self.config.batch_wait / 1000)
        async with asyncio.TaskGroup() as calls:
            # A free worker is awaited before the batch is chosen, so that it can still grow
            # meanwhile.
            while queue.waiting:
                await self._free.acquire()
                if batch := queue.take(self.config.batch_size):
                    calls.create_task(self._run(model, batch))
                else:  # all clients have left
                    self._free.release()
            # No await lies between the last look at the queue and this line: what arrives from here
            # on opens a new queue, and does not wait for the calls of this one to end.
            del self._queues[key]

    async def _run(
        self, model: ServedModel, batch: list[tuple[Examples, asyncio.Future[Arrays]]]
    ) -> None:
        """Call the model for a batch, and give each request its own outputs or its error."""
        parts = [part for part, _ in batch]
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            results = await loop.run_in_executor(self._executor, predict_together, model, parts)
        except Exception as error:
            results = [error] * len(batch)
        finally:
            self._free.release()
        self._observe(sum(map(len, parts)), loop.time() - began)
        for (_, future), result in zip(batch, results, strict=True):
            # The client has left meanwhile; to set a result on a cancelled future would raise.
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


def predict_together(model: ServedModel, parts: Sequence[Examples]) -> list[Arrays | Exception]:
    """Return the outputs of each part, or its error, with one call of the model if all are valid.

    Args:
        model: the version to call.
        parts: examples of the same signature and shapes, from different requests.

    Returns:
        In the order of `parts`, by name arrays (examples of the part, ...); or the error that the
        request is to get, whose numbers count from the part's first example.
    """
    inputs = _concatenated([part.inputs for part in parts])
    rows = iter(_by_example(model, Examples(parts[0].signature, inputs)))
    return [_result([next(rows) for _ in range(len(part))]) for part in parts]


def _by_example(model: ServedModel, examples: Examples) -> list[Arrays | Exception]:
    """Return the outputs (1, ...) of each example, or its error.

    A failed batch is cut and called again, at worst about twice as many calls as it has examples.
    The message of an export names its invalid examples, so that a few calls are enough as a rule.
    """
    count = len(examples)
    try:
        outputs = model.call(examples.signature, examples.inputs)
    except Exception as error:  # too little memory for all, too, may be enough for half
        if count == 1:
            return [error]
        named = error.reasons if isinstance(error, InvalidExamples) else ()
        # Around the examples that the model names, or in the middle.
        cuts = {cut for n in named if 0 <= n < count for cut in (n, n + 1)} or {count // 2}
        edges = sorted({0, count, *cuts})
        pieces = zip(edges[:-1], edges[1:], strict=True)
        return [one for a, b in pieces for one in _by_example(model, examples[a:b])]
    return [{name: array[n : n + 1] for name, array in outputs.items()} for n in range(count)]


def _result(rows: Sequence[Arrays | Exception]) -> Arrays | Exception:
    """Combine the outcomes of one request; a fault of the server comes before invalid examples."""
    errors = {number: row for number, row in enumerate(rows) if isinstance(row, Exception)}
    if not errors:
        return _concatenated(rows)
    for error in errors.values():
        if not isinstance(error, InvalidExamples):
            return error
    return InvalidExamples({n: next(iter(error.reasons.values())) for n, error in errors.items()})


def _concatenated(parts: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    """Concatenate arrays by name along the examples; one part alone is not copied."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
