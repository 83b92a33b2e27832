"""Task-loss balancing: task weights that are learned or drawn during training.

A balancer belongs to one loss: `MaskedBinaryCrossentropy(balancer=kt.losses.FAMO(tasks=4,
every=100))`. It multiplies the *gradient* of each task by a weight; the value of the loss stays
that of the unweighted loss, so that epochs and validation remain comparable. Its state changes in
the backward pass alone: `evaluate` does not move it.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasmtl.masking import fill_missing
from kerasmtl.utils.validation import check_count, check_number

MOST_LOG_VARIANCE = 10.0


class Balancer:
    """Base of the balancers: sums over all replicas, and state that is part of the config.

    Shapes: state and weights (tasks,) float32.

    A task without known labels in a step moves nothing, bit for bit: neither its weight, nor the
    weight of another task, nor what the balancer remembers of it. `sample_weight` counts in the
    gradient, not in what is remembered. Under tf.distribute create it within `strategy.scope()`,
    like everything that has variables.

    It balances the tasks of one (batch, tasks) output. For outputs of several kinds use
    `Task(weight=…)` or `loss_weights` of `compile`.

    The state is saved with the compiled loss by `model.save`, `kt.callbacks.Checkpoint` and
    `ModelCheckpoint`. Files of weights alone do not have it (`save_weights`,
    `ModelCheckpoint(save_weights_only=True)`, `BackupAndRestore`): after them it starts over,
    unless you keep `get_config()["state"]`.

    Subclasses define `initial` and `_step`.

    Args:
        tasks: how many.
        state: `get_config()["state"]` of another balancer of this class, to continue from.

    Raises:
        ValueError: `tasks` below 1, a state of another balancer, labels of another number of tasks,
            a second loss, or a balancer created outside of the strategy's scope.

    Example:
        >>> import kerasmtl as kt
        >>> balancer = kt.losses.RandomWeighting(tasks=3)  # Balancer itself is abstract
        >>> isinstance(balancer, kt.losses.Balancer)
        True
        >>> balancer.get_config()["state"]
        {'steps': [0.0, 0.0, 0.0]}
    """

    SETTINGS: tuple[str, ...] = ()  # further arguments of a subclass, which are attributes, too
    initial: Mapping[str, float] = {}  # names of the state, and what each task starts with

    def __init__(self, tasks: int, state: Mapping[str, Any] | None = None) -> None:
        self.tasks = tasks = check_count("tasks", tasks)
        self._loss: weakref.ref[Any] | None = None
        self._replicas = _replicas()
        values = {name: np.full(tasks, value) for name, value in self.initial.items()}
        values.update(state or {})
        fits = all(np.shape(value) == (tasks,) for value in values.values())
        if set(values) != set(self.initial) or not fits:
            raise ValueError(
                f"`state` must be {tasks} numbers for each of {sorted(self.initial)}, got {state!r}"
            )
        # Every replica computes the same from the same totals, so one of the values will do.
        self.state = {
            name: _variable(value, name, "only_first_replica") for name, value in values.items()
        }
        self._totals = _variable(np.zeros((3, tasks)), "totals", "sum")

    def claim(self, loss: keras.losses.Loss) -> None:
        """Remember the loss that this balancer serves; ValueError if it serves another one."""
        first = self._loss and self._loss()
        if first is None:
            self._loss = weakref.ref(loss)
        elif first is not loss:
            kind = type(self).__name__
            raise ValueError(
                f"`balancer` must serve one loss, got one {kind} in {first.name!r} and "
                f"{loss.name!r}. To continue in a new loss, give that one "
                f"{kind}.from_config(balancer.get_config())."
            )

    def weigh(self, losses: Any, known: Any, scale: float = 1.0) -> Any:
        """Return the same losses, whose gradients are multiplied by the weights of the tasks.

        Taking the gradient is a step of the balancer.

        Args:
            losses: (batch, tasks), 0 where a label is missing.
            known: (batch, tasks) bool.
            scale: turns a loss into a negative log likelihood.
        """
        tasks = losses.shape[-1]
        if tasks != self.tasks:
            raise ValueError(f"`balancer` must be one for {tasks} tasks, got {self.tasks} tasks")
        if _replicas() != self._replicas:
            raise ValueError(
                f"`balancer` must be created within strategy.scope() of {_replicas()} replicas, "
                f"got one created for {self._replicas}"
            )

        @ops.custom_gradient
        def weighed(losses: Any) -> Any:
            def backward(*args: Any, upstream: Any = None) -> Any:
                upstream = args[0] if upstream is None else upstream
                weights = self._step(*self._sums(losses, known), scale)
                return upstream * ops.cast(weights, upstream.dtype)

            return losses, backward

        return weighed(losses)

    def _sums(self, losses: Any, known: Any) -> tuple[Any, Any, Any]:
        """Return sums of losses, known labels and rows over all replicas, (tasks,) each."""
        losses, present = ops.cast(losses, "float32"), ops.cast(known, "float32")
        sums = [ops.sum(losses, 0), ops.sum(present, 0), ops.sum(ops.ones_like(present), 0)]
        self._totals.assign(ops.stack(sums))  # summed over replicas by the variable's aggregation
        totals = _read(self._totals)
        return totals[0], totals[1], totals[2]

    def _step(self, sums: Any, counts: Any, rows: Any, scale: float) -> Any:
        """Return the weights of this step, (tasks,), and update the state for the next."""
        raise NotImplementedError

    def _update(self, name: str, value: Any, where: Any) -> None:
        """Assign state where `where` is True and the value is finite: a NaN must not stay."""
        where = ops.logical_and(where, ops.isfinite(value))
        self.state[name].assign(ops.where(where, value, _read(self.state[name])))

    def weights(self) -> np.ndarray:
        """Return the weights that the next gradient is multiplied by, (tasks,) float32."""
        return ops.convert_to_numpy(self.state["weights"])

    def get_config(self) -> dict[str, Any]:
        state = {name: ops.convert_to_numpy(v).tolist() for name, v in self.state.items()}
        settings = {name: getattr(self, name) for name in self.SETTINGS}
        return {"tasks": self.tasks, **settings, "state": state}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Balancer:
        return cls(**config)


def _variable(value: Any, name: str, aggregation: str) -> keras.Variable:
    value = np.asarray(value, dtype="float32")
    return keras.Variable(
        value, dtype="float32", trainable=False, autocast=False, aggregation=aggregation, name=name
    )


def _read(variable: keras.Variable) -> Any:
    """Return a copy: Keras hands out the variable itself, which a later assignment changes."""
    return tf.identity(ops.convert_to_tensor(variable))


def _replicas() -> int:
    return tf.distribute.get_strategy().num_replicas_in_sync


@keras.saving.register_keras_serializable(package="kerasmtl")
class UncertaintyWeighting(Balancer):
    """Weigh tasks by learned uncertainty: the noisier a task, the less it counts.

    `L = Σ_t a_t (e^{-s_t} c L_t + s_t / 2)`, `s_t = log σ_t²`, L_t the mean loss over the known
    labels of the step, a_t the share of rows that have one, c = 1, and 1/2 for squared errors. The
    gradient is multiplied by `c e^{-s_t}`, and `s_t` descends by
    `rate · a_t (1/2 - c e^{-s_t} L_t)`. Without a_t, s_t of an absent task would fall forever and
    its weight grow without data. s_t stays in [-10, 10], since the weight of a task whose loss is 0
    would grow forever, too.

    From https://arxiv.org/abs/1705.07115, where s is trained by the optimizer.

    Args:
        tasks, state: as in `Balancer`.
        rate: of the descent of s, above 0.

    Raises:
        ValueError: as in `Balancer`, or a rate of 0 or less.

    Example:
        >>> import keras
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> balancer = kt.losses.UncertaintyWeighting(tasks=2, rate=0.1)
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
        >>> model.compile("sgd", kt.losses.MaskedMeanSquaredError(balancer=balancer))
        >>> x = np.zeros((4, 1))
        >>> y = np.array([[0, 10]] * 4)  # the second task has a large loss
        >>> history = model.fit(x, y, verbose=0)
        >>> bool(balancer.weights()[0] > 1 > balancer.weights()[1])
        True
    """

    SETTINGS = ("rate",)
    initial = {"log_variance": 0.0}

    def __init__(self, tasks: int, rate: float = 0.02, state: Any = None) -> None:
        super().__init__(tasks, state)
        self.rate = check_number("rate", rate, 0.0, open_low=True)

    def _step(self, sums: Any, counts: Any, rows: Any, scale: float) -> Any:
        s = _read(self.state["log_variance"])
        weights = scale * ops.exp(-s)
        slope = (0.5 * counts - weights * sums) / rows
        # At most 1 per step: e^{-s} L may be huge at first.
        moved = s - ops.clip(self.rate * slope, -1.0, 1.0)
        moved = ops.clip(moved, -MOST_LOG_VARIANCE, MOST_LOG_VARIANCE)
        self._update("log_variance", moved, counts > 0.0)
        return weights

    def weights(self) -> np.ndarray:
        """Return `e^{-s}`, (tasks,); squared errors are weighed by half of it."""
        return np.exp(-ops.convert_to_numpy(self.state["log_variance"]))


@keras.saving.register_keras_serializable(package="kerasmtl")
class RandomWeighting(Balancer):
    """Draw new weights in each step, a baseline that is hard to beat.

    `λ = T softmax(z)`, `z_t ~ N(0, 1)`, from the seed and the number of the step
    (https://arxiv.org/abs/2111.10603).

    Args:
        tasks, state: as in `Balancer`.
        seed: of the draws.

    Raises:
        ValueError: as in `Balancer`.

    Example:
        >>> import kerasmtl as kt
        >>> balancer = kt.losses.RandomWeighting(tasks=4, seed=1)
        >>> round(float(balancer.weights().sum()), 3)
        4.0
        >>> loss = kt.losses.MaskedBinaryCrossentropy(balancer=balancer)
    """

    SETTINGS = ("seed",)
    initial = {"steps": 0.0}

    def __init__(self, tasks: int, seed: int = 0, state: Any = None) -> None:
        super().__init__(tasks, state)
        self.seed = int(seed)

    def _step(self, sums: Any, counts: Any, rows: Any, scale: float) -> Any:
        steps = _read(self.state["steps"])
        self._update("steps", steps + 1.0, steps >= 0.0)
        return self._drawn(steps[0])

    def _drawn(self, step: Any) -> Any:
        seed = tf.stack([tf.constant(self.seed, "int32"), tf.cast(step, "int32")])
        # Only the bits of TensorFlow's draws are the same with and without XLA, so the normal
        # numbers are made from them here.
        bits = tf.random.stateless_uniform((self.tasks,), seed, None, None, "int32", alg="philox")
        share = ops.clip(ops.cast(bits, "float32") / 2.0**31, -1.0 + 1e-6, 1.0 - 1e-6)
        return self.tasks * ops.softmax(2.0**0.5 * ops.erfinv(share))

    def weights(self) -> np.ndarray:
        """Return what the next step draws, (tasks,)."""
        return ops.convert_to_numpy(self._drawn(_read(self.state["steps"])[0]))


class _WindowedBalancer(Balancer):
    """Base of balancers that compare the mean losses of windows of `every` steps.

    They are published for whole epochs or for a second pass over each batch; a window with as many
    steps as an epoch is the former. A task without known labels in a window, or in all windows
    before, keeps its weight, and the others share what they had among them.
    """

    SETTINGS = ("every",)
    initial = {"weights": 1.0, "previous": 0.0, "sums": 0.0, "counts": 0.0, "steps": 0.0}

    def __init__(self, tasks: int, every: int, state: Any = None) -> None:
        super().__init__(tasks, state)
        self.every = check_count("every", every)

    def _step(self, sums: Any, counts: Any, rows: Any, scale: float) -> Any:
        state = {name: _read(variable) for name, variable in self.state.items()}
        finite = ops.isfinite(sums)  # a NaN counts neither as a loss nor as labels that have one
        sums = state["sums"] + ops.where(finite, sums, 0.0)
        counts = state["counts"] + ops.where(finite, counts, 0.0)
        steps = state["steps"] + 1.0
        # Not tf.cond: replicas cannot synchronize inside a branch.
        full = steps >= self.every
        mean = sums / ops.maximum(counts, 1.0)
        measured = ops.logical_and(full, ops.logical_and(counts > 0.0, mean > 0.0))
        present = ops.logical_and(measured, state["previous"] > 0.0)
        self._rebalance(state, ops.where(present, mean, 1.0), present)
        self._update("previous", mean, measured)
        everywhere = ops.ones_like(full)
        for name, value in (("sums", sums), ("counts", counts), ("steps", steps)):
            self._update(name, ops.where(full, 0.0, value), everywhere)
        return state["weights"]

    def _rebalance(self, state: dict[str, Any], mean: Any, present: Any) -> None:
        """Update the weights of the tasks that are present in this window and the last one."""
        raise NotImplementedError

    def _share(self, weights: Any, parts: Any, present: Any) -> None:
        """Make the weights of present tasks proportional to `parts`, keeping their sum."""
        parts, before = fill_missing(parts, present, 0.0), fill_missing(weights, present, 0.0)
        self._update("weights", parts * ops.sum(before) / ops.sum(parts), present)


@keras.saving.register_keras_serializable(package="kerasmtl")
class DynamicWeightAverage(_WindowedBalancer):
    """Weigh tasks by how fast they learn: the slower, the more a task counts.

    `λ_t = T exp(r_t / τ) / Σ_u exp(r_u / τ)`, `r_t = L_t(n - 1) / L_t(n - 2)`, L_t the mean loss
    over the known labels of a window; 1 until two windows are complete
    (https://arxiv.org/abs/1803.10704, with epochs as windows).

    Args:
        tasks, state: as in `Balancer`.
        every: steps per window; those of an epoch, for the published form.
        temperature: τ, above 0.

    Raises:
        ValueError: as in `Balancer`, or numbers that are not positive.

    Example:
        >>> import keras
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> balancer = kt.losses.DynamicWeightAverage(tasks=2, every=1)
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
        >>> model.compile(keras.optimizers.SGD(0.1), kt.losses.MaskedHuber(balancer=balancer))
        >>> x, y = np.ones((1, 1)), np.array([[0.5, 50]])  # the second task learns slowly
        >>> history = model.fit(x, y, epochs=3, verbose=0)
        >>> bool(balancer.weights()[0] < 1 < balancer.weights()[1])
        True
    """

    SETTINGS = ("every", "temperature")

    def __init__(self, tasks: int, every: int, temperature: float = 2.0, state: Any = None) -> None:
        super().__init__(tasks, every, state)
        self.temperature = check_number("temperature", temperature, 0.0, open_low=True)

    def _rebalance(self, state: dict[str, Any], mean: Any, present: Any) -> None:
        ratio = mean / ops.where(present, state["previous"], 1.0) / self.temperature
        top = ops.max(fill_missing(ratio, present, 0.0))
        self._share(state["weights"], ops.exp(ratio - top), present)


@keras.saving.register_keras_serializable(package="kerasmtl")
class FAMO(_WindowedBalancer):
    """Weigh tasks so that the logarithms of all losses fall at the same pace.

    `λ_t ∝ z_t / L_t`, `z = softmax(ξ)`; after each window `ξ ← ξ - rate (Jᵀ δ + decay ξ)`, where
    `δ_t = log L_t(n - 1) - log L_t(n)` and J is the Jacobian of the softmax; 1 until two windows
    are complete, then with sum T (https://arxiv.org/abs/2306.03792, algorithm 1).

    As published, δ compares one batch before and after a step, for which `fit` would have to run
    the model twice; here it compares the mean losses of windows, in which λ is constant.

    Args:
        tasks, state: as in `Balancer`.
        every: steps per window.
        rate: learning rate of ξ, above 0.
        decay: weight decay of ξ, above 0.

    Raises:
        ValueError: as in `Balancer`, or numbers that are not positive.

    Example:
        >>> import keras
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> balancer = kt.losses.FAMO(tasks=2, every=1)
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
        >>> model.compile("sgd", kt.losses.MaskedHuber(balancer=balancer))
        >>> x, y = np.ones((1, 1)), np.array([[5, 50]])  # the second task has a larger loss
        >>> history = model.fit(x, y, epochs=3, verbose=0)
        >>> bool(balancer.weights()[0] > balancer.weights()[1])
        True
    """

    SETTINGS = ("every", "rate", "decay")
    initial = {**_WindowedBalancer.initial, "logits": 0.0}

    def __init__(
        self,
        tasks: int,
        every: int,
        rate: float = 0.025,
        decay: float = 0.001,
        state: Any = None,
    ) -> None:
        super().__init__(tasks, every, state)
        self.rate = check_number("rate", rate, 0.0, open_low=True)
        self.decay = check_number("decay", decay, 0.0, open_low=True)

    def _rebalance(self, state: dict[str, Any], mean: Any, present: Any) -> None:
        logits = state["logits"]
        fall = fill_missing(
            ops.log(ops.where(present, state["previous"], 1.0)) - ops.log(mean), present, 0.0
        )
        z = _softmax_over(logits, present)
        slope = z * (fall - ops.sum(z * fall))
        logits = logits - self.rate * (slope + self.decay * logits)
        self._update("logits", logits, present)
        self._share(state["weights"], _softmax_over(logits, present) / mean, present)


def _softmax_over(logits: Any, present: Any) -> Any:
    """Return the softmax over the tasks that are present."""
    return ops.softmax(ops.where(present, logits, ops.full_like(logits, -1e30)))
