"""Balancers that compare what the tasks lose in windows of many steps."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kerasmtl.balancing.base import Balancer, positive, read
from kerasmtl.masking import fill_missing


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
