"""Binary cross-entropy over known labels, and what all losses of binary tasks share."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real
from typing import Any

import keras
from keras import ops

from kerasmtl.losses.base import (
    MaskedLoss,
    check_weights,
    not_probability,
    per_task,
    values_and_kind,
)
from kerasmtl.utils.validation import check_number


class ProbabilityLoss(MaskedLoss):
    """Base of the losses of probabilities or logits.

    Where Keras knows the logits of a probability (those of a layer's sigmoid or softmax), they are
    used, as in Keras' own losses: the gradient of a wrong prediction of exactly 0 or 1 is then not
    0.
    """

    def __init__(self, from_logits: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.from_logits = bool(from_logits)

    def _predictions(self, y_pred: Any) -> tuple[Any, bool]:
        return values_and_kind(y_pred, self.from_logits)

    def _neutral(self, logits: bool) -> float:
        return 0.0 if logits else 0.5

    def _invalid_predictions(self, p: Any, logits: bool) -> Any:
        return ops.isnan(p) if logits else not_probability(p)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "from_logits": self.from_logits}


class BinaryLoss(ProbabilityLoss):
    """Base of the losses of binary tasks, whose labels lie in [0, 1]."""

    binary = True

    def _log_losses(self, p: Any, logits: bool) -> tuple[Any, Any]:
        """Return `-log p` and `-log(1 - p)`, the loss of a 1 and of a 0, without overflow."""
        if logits:
            return ops.softplus(-p), ops.softplus(p)
        low = keras.config.epsilon()
        p = ops.clip(p, low, 1.0 - low)
        return -ops.log(p), -ops.log(1.0 - p)


def smooth(y: Any, epsilon: float) -> Any:
    """Return labels after label smoothing, `y (1 - ε) + ε / 2`."""
    return y * (1.0 - epsilon) + 0.5 * epsilon if epsilon else y


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedBinaryCrossentropy(BinaryLoss):
    """Compute binary cross-entropy over the known labels of a row, averaged over rows.

    `(1/m) Σ_i Σ_{j known} v_j [-c_j y_ij log p_ij - (1 - y_ij) log(1 - p_ij)]`, natural logarithm;
    v are the `task_weights`, c the `pos_weight`, both 1 by default. With `gamma` the first term
    is multiplied by `(1 - p)^γ` and the second by `p^γ`, with `alpha` by `α` and `1 - α`: the focal
    loss of https://arxiv.org/abs/1708.02002. Label smoothing turns y into `y (1 - ε) + ε / 2`.

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks), probabilities, or
    logits with `from_logits=True`. `call` returns (batch,).

    A missing label adds exactly 0 and has a gradient of exactly 0, whatever is predicted there; a
    row or a batch without known labels has loss 0. Invalid labels and predictions are errors or
    make the loss NaN, see `kerasmtl.losses.base.MaskedLoss`. With nothing missing and
    `normalization="mean"` it equals `keras.losses.BinaryCrossentropy`, logits of a layer's sigmoid
    and the clipping of other probabilities to [1e-7, 1 - 1e-7] included.

    Args:
        from_logits: whether predictions are logits rather than probabilities.
        missing: one more code for missing besides NaN, for labels that come as integers.
        reduction, name: as in `keras.losses.Loss`.
        dtype: in which the loss is computed: "float32", the default, or "float64".
        pos_weight: c, one number or one per task, such as `kt.losses.pos_weight(labels)`.
        label_smoothing: ε, from 0 to 1.
        gamma: γ of the focal loss, 0 or more; 0 switches it off.
        alpha: α of the focal loss, from 0 to 1.
        task_weights: v, one per task, such as `kt.losses.inverse_known_count(labels)`.
        normalization: "sum"; "mean" divides by the `Σ v_j` of the row's known labels; a number
            divides by it, such as `kt.losses.mean_known(labels)`.
        balancer: a `kt.losses.Balancer`, which learns the weights of the tasks during training.

    Raises:
        ValueError: an invalid argument, y_true and y_pred are not both (batch, tasks), weights for
            another number of tasks, or sample_weight is not (batch,).
        tf.errors.InvalidArgumentError: a label or a probability out of range.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> y = np.array([[1, np.nan], [0, 1]], "float32")
        >>> p = np.array([[0.5, 0.9], [0.5, 0.5]], "float32")
        >>> loss = kt.losses.MaskedBinaryCrossentropy()
        >>> round(float(loss(y, p)), 4)  # three known labels of ln 2 each, two rows
        1.0397
        >>> p[0, 1] = np.nan  # the label is missing, so the prediction has no influence
        >>> round(float(loss(y, p)), 4)
        1.0397
    """

    SETTINGS = ("pos_weight", "label_smoothing", "gamma", "alpha")

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
        if isinstance(pos_weight, Real):
            self.pos_weight = check_number("pos_weight", pos_weight, 0.0, open_low=True)
        else:
            self.pos_weight = check_weights("pos_weight", pos_weight)
        self.label_smoothing = check_number("label_smoothing", label_smoothing, 0.0, 1.0)
        self.gamma = check_number("gamma", gamma, 0.0)
        self.alpha = None if alpha is None else check_number("alpha", alpha, 0.0, 1.0)

    def _elementwise(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        y = smooth(y, self.label_smoothing)
        if self.pos_weight is None and not self.gamma and self.alpha is None:
            return ops.binary_crossentropy(y, p, from_logits=logits)
        one, zero = self._log_losses(p, logits)
        if self.gamma:  # exp(-loss) is the probability that it is the loss of
            one, zero = one * ops.exp(-self.gamma * zero), zero * ops.exp(-self.gamma * one)
        if self.alpha is not None:
            one, zero = one * self.alpha, zero * (1.0 - self.alpha)
        one = one * per_task("pos_weight", self.pos_weight, p.shape[-1], p.dtype)
        return y * one + (1.0 - y) * zero
