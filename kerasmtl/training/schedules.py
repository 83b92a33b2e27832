"""How the learning rate of a stage runs: it warms up, then stays or falls like a cosine."""

from __future__ import annotations

import math
import numbers
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="kerasmtl")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises in a line and then falls along half a cosine.

    With `s = max(step - begin, 0)`, W = `warmup_steps`, D = `decay_steps`, f = `final`:
    `rate · (s + 1) / W` while s < W, then with `t = min((s - W) / D, 1)`
    `rate · (f + (1 - f) (1 + cos πt) / 2)`; without `decay_steps` constantly `rate`.

    Shapes: a step is a whole number of batches, the rate a float32 scalar. Batches whose labels are
    all missing are steps like others.

    The warm-up is that of Goyal et al. 2017, section 2.2 (https://arxiv.org/abs/1706.02677), from
    rate / W, since a first step of 0 would be lost; the cosine that of Loshchilov & Hutter 2017,
    equation 5, without restarts (https://arxiv.org/abs/1608.03983).

    Args:
        learning_rate: the highest rate.
        warmup_steps: steps until it is reached; 0, for none.
        decay_steps: steps from there to the end of the cosine; None for a constant rate.
        final: the share of the rate that is left at the end, from 0 to 1.
        begin: the step at which this schedule starts, for an optimizer that has been used before;
            before it the rate is that of its first step.

    Raises:
        ValueError: a rate that is not positive, steps that are not whole or below 0 (`decay_steps`:
            below 1), or a share outside [0, 1].
    """

    def __init__(
        self,
        learning_rate: float,
        warmup_steps: int = 0,
        decay_steps: int | None = None,
        final: float = 0.0,
        begin: int = 0,
    ) -> None:
        super().__init__()
        self.rate = positive_number("learning_rate", learning_rate)
        self.warmup_steps = _steps("warmup_steps", warmup_steps, 0)
        self.decay_steps = None if decay_steps is None else _steps("decay_steps", decay_steps, 1)
        if isinstance(final, bool) or not 0.0 <= final <= 1.0:
            raise ValueError(f"`final` is no share. Expected 0 to 1. Received: {final!r}")
        self.final = float(final)
        self.begin = _steps("begin", begin, 0)

    def __call__(self, step: Any) -> Any:
        # Subtracted as whole numbers: float32 cannot tell steps beyond 2^24 apart.
        passed = ops.cast(step, "int64") - self.begin
        passed = ops.cast(ops.maximum(passed, 0), "float32")
        share = self._cosine(passed)
        if self.warmup_steps:
            rising = (passed + 1.0) / float(self.warmup_steps)
            share = ops.where(passed < self.warmup_steps, rising, share)
        return self.rate * share

    def _cosine(self, passed: Any) -> Any:
        if self.decay_steps is None:
            return ops.ones_like(passed)
        done = ops.clip((passed - self.warmup_steps) / float(self.decay_steps), 0.0, 1.0)
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + ops.cos(math.pi * done))

    def get_config(self) -> dict[str, Any]:
        return {
            "learning_rate": self.rate,
            "warmup_steps": self.warmup_steps,
            "decay_steps": self.decay_steps,
            "final": self.final,
            "begin": self.begin,
        }


def positive_number(name: str, value: Any) -> float:
    """A finite number above 0, of Python, NumPy or Keras; ValueError otherwise."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not (number > 0 and math.isfinite(number)):
        raise ValueError(f"`{name}` is not positive. Expected a finite number. Received: {value!r}")
    return number


def _steps(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(
            f"`{name}` is no number of steps. Expected a whole number from {least}. "
            f"Received: {value!r}"
        )
    return int(value)
