"""Binary cross-entropy over known labels, and the logarithms that all binary losses share."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real
from typing import Any

import keras
from keras import ops

from kerasmtl.losses.base import (
    MaskedLoss,
    checked_number,
    checked_weights,
    outside_of_0_and_1,
    per_task,
    values_and_kind,
)


class BinaryLoss(MaskedLoss):
    """Base of the losses of binary tasks, from probabilities or logits.

    Where Keras knows the logits of a probability (a layer's sigmoid), they are used, as in Keras'
    own losses: a prediction that is wrong with a probability of 0 or 1 is still learnt from.
    """

    binary = True

    def __init__(self, from_logits: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.from_logits = bool(from_logits)

    def _predictions(self, y_pred: Any) -> tuple[Any, bool]:
        return values_and_kind(y_pred, self.from_logits)

    def _neutral(self, logits: bool) -> float:
        return 0.0 if logits else 0.5

    def _wrong_predictions(self, p: Any, logits: bool) -> Any:
        return ops.isnan(p) if logits else outside_of_0_and_1(p)

    def _costs(self, p: Any, logits: bool) -> tuple[Any, Any]:
        """`-log p` and `-log(1 - p)` by cell, without overflow: what a 1 and what a 0 cost."""
        if logits:
            return ops.softplus(-p), ops.softplus(p)
        low = keras.config.epsilon()
        p = ops.clip(p, low, 1.0 - low)
        return -ops.log(p), -ops.log(1.0 - p)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "from_logits": self.from_logits}


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedBinaryCrossentropy(BinaryLoss):
    """Binary cross-entropy summed over the known labels of an example, averaged over examples.

    `(1/m) Σ_i Σ_{j known} v_j [-c_j y_ij log p_ij - (1 - y_ij) log(1 - p_ij)]`, natural logarithm;
    v are the `task_weights`, c the `pos_weight`, both 1 unless given. With `gamma` the first term
    is multiplied by `α (1 - p)^γ`, the second by `(1 - α) p^γ` (no α: by 1 in its place), the focal
    loss of https://arxiv.org/abs/1708.02002. Label smoothing turns y into `y (1 - ε) + ε / 2`.

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks), probabilities, or
    logits with `from_logits=True`. `call` returns (batch,), so that Keras' reduction,
    `sample_weight` of shape (batch,) and the scaling by replicas stay right.

    A missing cell adds exactly 0 and has a gradient of exactly 0, whatever is predicted there;
    an example or a batch with no known label gives 0. In a known cell a NaN or infinite prediction
    makes the loss NaN, as in a training that diverged; a label outside [0, 1], and a finite
    prediction that is (by more than 1e-6, which is rounding) no probability, are an error. XLA
    drops assertions: compiled with it, as `fit` is by default where there is a GPU
    (`jit_compile="auto"`), these make the loss NaN as well. Where the probabilities are those of a
    layer's sigmoid, the loss is computed from its logits; others are clipped to [1e-7, 1 - 1e-7]
    (`keras.config.epsilon()`); both as in Keras.

    Args:
        from_logits: predictions are logits, not probabilities.
        missing: one more code for missing besides NaN, for labels that come as integers.
        pos_weight: of label 1, one number or one a task, such as `counts.pos_weight(labels)`.
        label_smoothing: ε, from 0 to 1.
        gamma: of the focal loss, 0 or more; 0 is none.
        alpha: of the focal loss, from 0 to 1.
        task_weights: v, one a task, such as `counts.inverse_known_count(labels)`.
        normalization: "sum"; "mean" divides by the `Σ v_j` of the example's known cells; a number
            divides by it, such as `counts.mean_known(labels)`.
        balancer: weighs the tasks while they are trained, see `kerasmtl.losses.balancing`.
        reduction, name: as in `keras.losses.Loss`.
        dtype: in which the loss is computed: "float32", the default, or "float64".

    Raises:
        ValueError: a wrong argument, y_true and y_pred are not both (batch, tasks), weights for
            another number of tasks, or sample_weight is not (batch,).
        tf.errors.InvalidArgumentError: a label or a probability out of range.
    """

    def __init__(
        self,
        from_logits: bool = False,
        missing: float | None = None,
        reduction: str = "sum_over_batch_size",
        name: str = "masked_binary_crossentropy",
        dtype: Any = None,
        *,
        pos_weight: float | Iterable[float] | None = None,
        label_smoothing: float = 0.0,
        gamma: float = 0.0,
        alpha: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            from_logits, missing=missing, reduction=reduction, name=name, dtype=dtype, **kwargs
        )
        if pos_weight is None or isinstance(pos_weight, Real):
            self.pos_weight = pos_weight and checked_number("pos_weight", pos_weight)
        else:
            self.pos_weight = checked_weights("pos_weight", pos_weight)
        if self.pos_weight == 0.0:
            raise ValueError("`pos_weight` is 0. Expected a positive number. Received: 0")
        self.label_smoothing = checked_number("label_smoothing", label_smoothing, high=1.0)
        self.gamma = checked_number("gamma", gamma)
        self.alpha = None if alpha is None else checked_number("alpha", alpha, high=1.0)

    def _cells(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        if self.label_smoothing:
            y = y * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        if self.pos_weight is None and not self.gamma and self.alpha is None:
            return ops.binary_crossentropy(y, p, from_logits=logits)
        one, zero = self._costs(p, logits)
        if self.gamma:  # exp(-cost) is the probability that the cost is of
            one, zero = one * ops.exp(-self.gamma * zero), zero * ops.exp(-self.gamma * one)
        if self.alpha is not None:
            one, zero = one * self.alpha, zero * (1.0 - self.alpha)
        one = one * per_task("pos_weight", self.pos_weight, p.shape[-1], p.dtype)
        return y * one + (1.0 - y) * zero

    def get_config(self) -> dict[str, Any]:
        several = isinstance(self.pos_weight, tuple)
        return {
            **super().get_config(),
            "pos_weight": list(self.pos_weight) if several else self.pos_weight,
            "label_smoothing": self.label_smoothing,
            "gamma": self.gamma,
            "alpha": self.alpha,
        }
