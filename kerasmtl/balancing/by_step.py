"""Balancers that step by themselves, on each batch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasmtl.balancing.base import Balancer, positive, read

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
