"""Losses that treat label 1 and 0 differently, for few positives and for missing labels."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kerasmtl.losses.binary import BinaryLoss
from kerasmtl.utils.validation import check_number


@keras.saving.register_keras_serializable(package="kerasmtl")
class AsymmetricLoss(BinaryLoss):
    """Compute focal cross-entropy with separate exponents for 1, 0 and, optionally, missing.

    `y (1 - p)^γ₊ (-log p) + (1 - y) p_m^γ₋ (-log(1 - p_m))`, `p_m = max(p - m, 0)`, for each known
    label: ASL (https://arxiv.org/abs/2009.14119). Missing labels are ignored, unless
    `gamma_unknown` is given: then each adds `u p_m^γᵤ (-log(1 - p_m))`, the partial form P-ASL
    (https://arxiv.org/abs/2110.10955); γᵤ = γ₋ and u = 1 assume them to be negative. That paper's
    selection of missing labels by batch and by prior (CSL) is not implemented.

    Shapes: y_true (batch, tasks) float in [0, 1], NaN = missing; y_pred (batch, tasks),
    probabilities, or logits with `from_logits=True`. `call` returns (batch,).

    Where missing labels are ignored, each adds exactly 0 with a gradient of exactly 0, and with
    none known the loss is 0.

    Args:
        gamma_positive, gamma_negative, gamma_unknown: γ₊, γ₋, γᵤ, 0 or more.
        margin: m, at least 0 and below 1: predictions below it have loss 0 for a label of 0.
        unknown_weight: u, 0 or more; 0 ignores missing labels.
        from_logits, normalization, task_weights, balancer, missing, reduction, name, dtype: as in
            `MaskedBinaryCrossentropy`.

    Raises:
        ValueError: as `MaskedBinaryCrossentropy`.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> y = np.array([[0, 1, np.nan]], "float32")
        >>> p = np.array([[0.04, 0.5, 0.9]], "float32")  # the 0 is below the margin
        >>> loss = kt.losses.AsymmetricLoss(gamma_positive=1, gamma_negative=4, margin=0.05)
        >>> round(float(loss(y, p)), 4)  # (1 - 0.5) ln 2
        0.3466
    """

    SETTINGS = ("gamma_positive", "gamma_negative", "margin", "gamma_unknown", "unknown_weight")

    def __init__(
        self,
        gamma_positive: float = 1.0,
        gamma_negative: float = 4.0,
        margin: float = 0.05,
        gamma_unknown: float | None = None,
        unknown_weight: float = 1.0,
        name: str = "asymmetric_loss",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.gamma_positive = check_number("gamma_positive", gamma_positive, 0.0)
        self.gamma_negative = check_number("gamma_negative", gamma_negative, 0.0)
        self.margin = check_number("margin", margin, 0.0, 1.0, open_high=True)
        if gamma_unknown is not None:
            gamma_unknown = check_number("gamma_unknown", gamma_unknown, 0.0)
        self.gamma_unknown = gamma_unknown
        self.unknown_weight = check_number("unknown_weight", unknown_weight, 0.0)

    @property
    def includes_missing(self) -> bool:
        return self.gamma_unknown is not None and self.unknown_weight > 0.0

    def _elementwise(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        one, zero = self._log_losses(p, logits)
        positive = one * ops.exp(-self.gamma_positive * zero)
        shifted, log_loss = self._shifted(one, zero)
        negative = _focal(shifted, log_loss, self.gamma_negative)
        losses = y * positive + (1.0 - y) * negative
        if not self.includes_missing:
            return losses
        unknown = self.unknown_weight * _focal(shifted, log_loss, self.gamma_unknown)
        return ops.where(known, losses, unknown)

    def _shifted(self, one: Any, zero: Any) -> tuple[Any, Any]:
        """Return `p_m` (before its maximum with 0) and `-log(1 - p_m)`."""
        if not self.margin:
            return ops.exp(-one), zero
        rest = ops.exp(-zero) + self.margin
        return ops.exp(-one) - self.margin, -ops.log(ops.minimum(rest, 1.0))


def _focal(p: Any, log_loss: Any, gamma: float) -> Any:
    """Return `p^γ log_loss`, and 0 with a gradient of 0 where p is 0 or less."""
    above = p > 0.0
    base = ops.where(above, p, ops.ones_like(p))  # the gradient of 0^γ is NaN for γ < 1
    return ops.where(above, base**gamma * log_loss, ops.zeros_like(log_loss))


@keras.saving.register_keras_serializable(package="kerasmtl")
class HillLoss(BinaryLoss):
    """Compute a loss in which missing counts as 0, but hardly where the model is sure of a 1.

    `y (1 - p')^γ (-log p') + (1 - y) (λ - p) p²`, `p' = σ(z - m)`, z the logit; a missing label
    counts as 0. The slope of the second term in p, `(2 λ - 3 p) p`, is 0 again at `p = 2 λ / 3`
    (https://arxiv.org/abs/2112.07368).

    Shapes: y_true (batch, tasks) float in [0, 1], NaN = missing; y_pred (batch, tasks),
    probabilities, or logits with `from_logits=True`. `call` returns (batch,).

    Predictions for missing labels count, so that a row without known labels has a loss, too.

    Args:
        lam: λ, 1 or more: below 1 the loss of a 0 would be negative.
        margin: m, 0 or more.
        gamma: γ, 0 or more.
        from_logits, normalization, task_weights, balancer, missing, reduction, name, dtype: as in
            `MaskedBinaryCrossentropy`.

    Raises:
        ValueError: as `MaskedBinaryCrossentropy`.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> y = np.full((1, 1), np.nan, "float32")
        >>> p = np.array([[0.5]], "float32")
        >>> float(kt.losses.HillLoss(lam=1.5)(y, p))  # (1.5 - 0.5) 0.5²
        0.25
    """

    SETTINGS = ("lam", "margin", "gamma")
    includes_missing = True

    def __init__(
        self,
        lam: float = 1.5,
        margin: float = 1.0,
        gamma: float = 2.0,
        name: str = "hill_loss",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.lam = check_number("lam", lam, 1.0)
        self.margin = check_number("margin", margin, 0.0)
        self.gamma = check_number("gamma", gamma, 0.0)

    def _elementwise(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        one, zero = self._log_losses(p, logits)
        logit = p if logits else zero - one
        shifted = logit - self.margin
        positive = ops.softplus(-shifted) * ops.exp(-self.gamma * ops.softplus(shifted))
        probability = ops.exp(-one)
        return y * positive + (1.0 - y) * (self.lam - probability) * ops.square(probability)
