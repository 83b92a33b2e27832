"""What balancers share: a step where a gradient is taken, totals over replicas, and state."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops


class Balancer:
    """Base of the balancers: sums over all replicas, and state that its config carries.

    Shapes: state and weights (tasks,) float32, of which `tasks` are those of the labels.

    A task with no known label in a step moves nothing, bit for bit: neither its weight, nor the
    weight of another task, nor what the balancer remembers of it. `sample_weight` counts in the
    gradient, not in what is remembered. Under tf.distribute make it within `strategy.scope()`, as
    all that has variables.

    It balances the tasks of one (batch, tasks) output, and serves one loss. Between outputs of
    several kinds weigh with `Task(weight=…)` or with `loss_weights` of `compile`.

    The state is part of the compiled loss: `model.save`, `kerasmtl.Checkpoint` and
    `ModelCheckpoint` keep it. Files of weights alone do not (`save_weights`,
    `ModelCheckpoint(save_weights_only=True)`, `BackupAndRestore`): after them it starts anew,
    unless `get_config()["state"]` was kept as well.

    Args:
        tasks: how many.
        state: as in `get_config()["state"]`; by default the beginning.

    Raises:
        ValueError: `tasks` below 1, a state of another balancer, labels of another number of tasks,
            a second loss, or a balancer made outside of the strategy's scope.
    """

    start: Mapping[str, float] = {}  # the state's names, and what each task starts with

    def __init__(self, tasks: int, state: Mapping[str, Any] | None = None) -> None:
        if not isinstance(tasks, Integral) or isinstance(tasks, bool) or tasks < 1:
            raise ValueError(
                f"`tasks` is no number of tasks. Expected 1 or more. Received: {tasks!r}"
            )
        self.tasks = tasks = int(tasks)
        self._claimed: weakref.ref[Any] | None = None
        self._replicas = _replicas()
        values = {name: np.full(tasks, value) for name, value in self.start.items()}
        values.update(state or {})
        if set(values) != set(self.start) or any(np.shape(v) != (tasks,) for v in values.values()):
            raise ValueError(
                f"`state` is not of this balancer. Expected {sorted(self.start)}, {tasks} numbers "
                f"each. Received: {state!r}"
            )
        # Every replica computes the same from the same totals, so one of the values will do.
        self.state = {
            name: _variable(value, name, "only_first_replica") for name, value in values.items()
        }
        self._totals = _variable(np.zeros((3, tasks)), "totals", "sum")

    def claim(self, loss: keras.losses.Loss) -> None:
        """Remember the loss that this balancer serves; ValueError if it serves another one."""
        first = self._claimed and self._claimed()
        if first is None:
            self._claimed = weakref.ref(loss)
        elif first is not loss:
            kind = type(self).__name__
            raise ValueError(
                "`balancer` serves another loss already, and would mix what the two lose. Expected "
                f"a balancer of its own for each loss. Received: one {kind} in {first.name!r} and "
                f"{loss.name!r}. To go on in a new loss, give that one "
                f"{kind}.from_config(balancer.get_config())."
            )

    def weigh(self, cells: Any, known: Any, scale: float = 1.0) -> Any:
        """The same losses, with gradients that are weighed by task; a step where they are taken.

        Shapes: cells (batch, tasks) float32, 0 where a label is missing; known alike, bool. `scale`
        turns a loss into the negative logarithm of a density.
        """
        self._check(cells.shape[-1])

        @ops.custom_gradient
        def weighed(losses: Any) -> Any:
            def backward(*args: Any, upstream: Any = None) -> Any:
                upstream = args[0] if upstream is None else upstream
                weights = self._step(*self._sums(losses, known), scale)
                return upstream * ops.cast(weights, upstream.dtype)

            return losses, backward

        return weighed(cells)

    def _check(self, tasks: int) -> None:
        if tasks != self.tasks:
            raise ValueError(
                f"`balancer` does not fit the labels. Expected one for {tasks} tasks. "
                f"Received: {type(self).__name__}(tasks={self.tasks})"
            )
        if _replicas() != self._replicas:
            raise ValueError(
                f"`balancer` belongs to another strategy. Expected one made within strategy.scope()"
                f" of {_replicas()} replicas. Received: one made for {self._replicas}"
            )

    def _sums(self, losses: Any, known: Any) -> tuple[Any, Any, Any]:
        """By task, over all replicas: sum of losses, known labels, and rows; (tasks,) each."""
        losses, present = ops.cast(losses, "float32"), ops.cast(known, "float32")
        sums = [ops.sum(losses, 0), ops.sum(present, 0), ops.sum(ops.ones_like(present), 0)]
        self._totals.assign(ops.stack(sums))
        totals = read(self._totals)
        return totals[0], totals[1], totals[2]

    def _step(self, sums: Any, counts: Any, rows: Any, scale: float) -> Any:
        """The weights of this step, (tasks,), and the state of the next."""
        raise NotImplementedError

    def _move(self, name: str, value: Any, where: Any) -> None:
        """Assign state where a task is present and the value is finite: a NaN is not for keeps."""
        old = read(self.state[name])
        where = ops.logical_and(where, ops.isfinite(value))
        self.state[name].assign(ops.where(where, value, old))

    def weights(self) -> np.ndarray:
        """The weights by which the next gradient is multiplied, shape (tasks,)."""
        return ops.convert_to_numpy(self.state["weights"])

    def get_config(self) -> dict[str, Any]:
        state = {name: ops.convert_to_numpy(v).tolist() for name, v in self.state.items()}
        return {"tasks": self.tasks, "state": state}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Balancer:
        return cls(**config)


def _variable(value: Any, name: str, aggregation: str) -> keras.Variable:
    value = np.asarray(value, dtype="float32")
    return keras.Variable(
        value, dtype="float32", trainable=False, autocast=False, aggregation=aggregation, name=name
    )


def read(variable: keras.Variable) -> Any:
    """What the variable is now: Keras hands out the variable itself, which a step then changes."""
    return tf.identity(ops.convert_to_tensor(variable))


def _replicas() -> int:
    return tf.distribute.get_strategy().num_replicas_in_sync


def positive(argument: str, value: Any) -> float:
    if not isinstance(value, Real) or not 0.0 < value < float("inf"):
        raise ValueError(
            f"`{argument}` is not positive. Expected a number above 0. Received: {value!r}"
        )
    return float(value)
