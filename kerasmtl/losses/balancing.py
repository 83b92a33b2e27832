"""Balancers that compare what the tasks lose in windows of many steps."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasmtl.masking import fill_missing


class Balancer:
    """Base of the balancers: sums over all replicas, and state that its config carries.

    Shapes: state and weights (tasks,) float32, of which `tasks` are those of the labels.

    A task with no known label in a step moves nothing, bit for bit: neither its weight, nor the
    weight of another task, nor what the balancer remembers of it. `sample_weight` counts in the
    gradient, not in what is remembered. Under tf.distribute make it within `strategy.scope()`, as
    all that has variables.

    It balances the tasks of one (batch, tasks) output, and serves one loss. Between outputs of
    several kinds weigh with `Task(weight=…)` or with `loss_weights` of `compile`.

    The state is part of the compiled loss: `model.save`, `kerasmtl.callbacks.Checkpoint` and
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


LIMIT = 10.0  # of a log variance


@keras.saving.register_keras_serializable(package="kerasmtl")
class UncertaintyWeighting(Balancer):
    """Weights by learnt uncertainty: the noisier a task, the less it counts.

    `L = Σ_t a_t (e^{-s_t} c L_t + s_t / 2)`, `s_t = log σ_t²`, L_t the mean loss over the known
    labels of the step, a_t the share of rows that have one, c = 1, and 1/2 for squared errors. The
    gradient is weighed by `c e^{-s_t}`, and `s_t` descends by `rate · a_t (1/2 - c e^{-s_t} L_t)`.
    Without a_t, s_t of an absent task would fall for ever and its weight grow without data. s_t
    stays in [-10, 10]: the weight of a task whose loss is 0 would grow for ever, too.

    From https://arxiv.org/abs/1705.07115, where s is trained by the optimizer.

    Args:
        tasks, state: as in `Balancer`.
        rate: of the descent of s.

    Raises:
        ValueError: as in `Balancer`, or a rate that is not positive.
    """

    start = {"log_variance": 0.0}

    def __init__(self, tasks: int, rate: float = 0.02, state: Any = None) -> None:
        super().__init__(tasks, state)
        self.rate = positive("rate", rate)

    def _step(self, sums: Any, counts: Any, rows: Any, scale: float) -> Any:
        s = read(self.state["log_variance"])
        weights = scale * ops.exp(-s)
        slope = (0.5 * counts - weights * sums) / rows
        # A step no longer than 1: e^{-s} L may be huge at first.
        moved = ops.clip(s - ops.clip(self.rate * slope, -1.0, 1.0), -LIMIT, LIMIT)
        self._move("log_variance", moved, counts > 0.0)
        return weights

    def weights(self) -> np.ndarray:
        """`e^{-s}`, shape (tasks,); squared errors are weighed by half of it."""
        return np.exp(-ops.convert_to_numpy(self.state["log_variance"]))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}


@keras.saving.register_keras_serializable(package="kerasmtl")
class RandomWeighting(Balancer):
    """Weights drawn anew in each step, a baseline that is hard to beat.

    `λ = T softmax(z)`, `z_t ~ N(0, 1)`, from the seed and the number of the step
    (https://arxiv.org/abs/2111.10603).

    Args:
        tasks, state: as in `Balancer`.
        seed: of the draws.
    """

    start = {"steps": 0.0}

    def __init__(self, tasks: int, seed: int = 0, state: Any = None) -> None:
        super().__init__(tasks, state)
        self.seed = int(seed)

    def _step(self, sums: Any, counts: Any, rows: Any, scale: float) -> Any:
        steps = read(self.state["steps"])
        self._move("steps", steps + 1.0, steps >= 0.0)
        return self._drawn(steps[0])

    def _drawn(self, step: Any) -> Any:
        seed = tf.stack([tf.constant(self.seed, "int32"), tf.cast(step, "int32")])
        # Of TensorFlow's draws only the bits are the same with and without XLA.
        bits = tf.random.stateless_uniform((self.tasks,), seed, None, None, "int32", alg="philox")
        share = ops.clip(ops.cast(bits, "float32") / 2.0**31, -1.0 + 1e-6, 1.0 - 1e-6)
        return self.tasks * ops.softmax(2.0**0.5 * ops.erfinv(share))

    def weights(self) -> np.ndarray:
        """What the next step draws, shape (tasks,)."""
        return ops.convert_to_numpy(self._drawn(read(self.state["steps"])[0]))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "seed": self.seed}


class _Windowed(Balancer):
    """Base of balancers that compare the mean losses of windows of `every` steps.

    Published for whole epochs or for a second pass over each batch; a window of as many steps as an
    epoch has is the former. A task that has no known label in a window, or has none before it,
    keeps its weight, and the others share what they had among them.
    """

    start = {"weights": 1.0, "previous": 0.0, "sums": 0.0, "counts": 0.0, "steps": 0.0}

    def __init__(self, tasks: int, every: int, state: Any = None) -> None:
        super().__init__(tasks, state)
        self.every = int(positive("every", every))
        if self.every != every:
            raise ValueError(f"`every` is no number of steps. Received: {every!r}")

    def _step(self, sums: Any, counts: Any, rows: Any, scale: float) -> Any:
        state = {name: read(v) for name, v in self.state.items()}
        finite = ops.isfinite(sums)  # a NaN counts neither as a loss nor as labels that have one
        sums, counts, steps = (
            state["sums"] + ops.where(finite, sums, 0.0),
            state["counts"] + ops.where(finite, counts, 0.0),
            state["steps"] + 1.0,
        )
        # Not a condition: replicas may not meet inside one.
        full = steps >= self.every
        mean = sums / ops.maximum(counts, 1.0)
        measured = ops.logical_and(full, ops.logical_and(counts > 0.0, mean > 0.0))
        present = ops.logical_and(measured, state["previous"] > 0.0)
        self._rebalance(state, ops.where(present, mean, 1.0), present)
        self._move("previous", mean, measured)
        anywhere = ops.ones_like(full)
        for name, value in (("sums", sums), ("counts", counts), ("steps", steps)):
            self._move(name, ops.where(full, 0.0, value), anywhere)
        return state["weights"]

    def _rebalance(self, state: dict[str, Any], mean: Any, present: Any) -> None:
        raise NotImplementedError

    def _share(self, weights: Any, parts: Any, present: Any) -> None:
        """Weights of the present tasks in proportion to `parts`; their sum stays what it was."""
        parts, before = fill_missing(parts, present, 0.0), fill_missing(weights, present, 0.0)
        self._move("weights", parts * ops.sum(before) / ops.sum(parts), present)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "every": self.every}


@keras.saving.register_keras_serializable(package="kerasmtl")
class DynamicWeightAverage(_Windowed):
    """Weights by how fast each task learns: the slower, the more it counts.

    `λ_t = T exp(r_t / τ) / Σ_u exp(r_u / τ)`, `r_t = L_t(n - 1) / L_t(n - 2)`, L_t the mean loss
    over the known labels of a window, 1 until two windows are over
    (https://arxiv.org/abs/1803.10704, with epochs as windows).

    Args:
        tasks, state: as in `Balancer`.
        every: steps a window; those of an epoch, for the published form.
        temperature: τ.

    Raises:
        ValueError: as in `Balancer`, or numbers that are not positive.
    """

    def __init__(self, tasks: int, every: int, temperature: float = 2.0, state: Any = None) -> None:
        super().__init__(tasks, every, state)
        self.temperature = positive("temperature", temperature)

    def _rebalance(self, state: dict[str, Any], mean: Any, present: Any) -> None:
        ratio = mean / ops.where(present, state["previous"], 1.0) / self.temperature
        top = ops.max(fill_missing(ratio, present, 0.0))
        self._share(state["weights"], ops.exp(ratio - top), present)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.temperature}


@keras.saving.register_keras_serializable(package="kerasmtl")
class FAMO(_Windowed):
    """Weights that make the logarithms of all losses fall at one pace.

    `λ_t ∝ z_t / L_t`, `z = softmax(ξ)`; after each window `ξ ← ξ - rate (Jᵀ δ + decay ξ)`, where
    `δ_t = log L_t(n - 1) - log L_t(n)` and J is the Jacobian of the softmax; 1 until two windows
    are over, then with sum T (https://arxiv.org/abs/2306.03792, algorithm 1).

    As published, δ compares one batch before and after a step, for which `fit` would have to run
    the model twice; here it compares the mean losses of windows, in which λ is constant.

    Args:
        tasks, state: as in `Balancer`.
        every: steps a window.
        rate: of ξ.
        decay: of ξ.

    Raises:
        ValueError: as in `Balancer`, or numbers that are not positive.
    """

    start = {**_Windowed.start, "logits": 0.0}

    def __init__(
        self,
        tasks: int,
        every: int,
        rate: float = 0.025,
        decay: float = 0.001,
        state: Any = None,
    ) -> None:
        super().__init__(tasks, every, state)
        self.rate, self.decay = positive("rate", rate), positive("decay", decay)

    def _rebalance(self, state: dict[str, Any], mean: Any, present: Any) -> None:
        logits = state["logits"]
        fall = fill_missing(
            ops.log(ops.where(present, state["previous"], 1.0)) - ops.log(mean), present, 0.0
        )
        z = _softmax_over(logits, present)
        slope = z * (fall - ops.sum(z * fall))
        logits = logits - self.rate * (slope + self.decay * logits)
        self._move("logits", logits, present)
        self._share(state["weights"], _softmax_over(logits, present) / mean, present)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "decay": self.decay}


def _softmax_over(logits: Any, present: Any) -> Any:
    return ops.softmax(ops.where(present, logits, ops.full_like(logits, -1e30)))
