"""Losses that are asymmetric in label 1 and 0, for few positives and for unknown labels."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kerasmtl.losses.base import checked_number
from kerasmtl.losses.binary import BinaryLoss


@keras.saving.register_keras_serializable(package="kerasmtl")
class AsymmetricLoss(BinaryLoss):
    """Focal cross-entropy with exponents for 1, for 0 and, if you like, for unknown labels.

    `y (1 - p)^γ₊ (-log p) + (1 - y) p_m^γ₋ (-log(1 - p_m))`, `p_m = max(p - m, 0)`, by known cell:
    ASL (https://arxiv.org/abs/2009.14119). Unknown cells are ignored, unless
    `gamma_unknown` is given: then each adds `u p_m^γᵤ (-log(1 - p_m))`, the partial form P-ASL
    (https://arxiv.org/abs/2110.10955); γᵤ = γ₋ and u = 1 assume them negative. The
    selection of unknown labels by batch and by prior (CSL) in that paper is not covered.

    Shapes: y_true (batch, tasks) float in [0, 1], NaN = missing; y_pred (batch, tasks),
    probabilities, or logits with `from_logits=True`. `call` returns (batch,).

    Ignored, a missing cell adds exactly 0 and has a gradient of exactly 0, and with none known the
    loss is 0. A NaN prediction of a cell that counts makes it NaN, and a known label outside [0, 1]
    is an error, as in `MaskedBinaryCrossentropy`.

    Args:
        gamma_positive, gamma_negative, gamma_unknown: γ₊, γ₋, γᵤ, 0 or more.
        margin: m, from 0 to less than 1: predictions of a 0 below it cost nothing.
        unknown_weight: u, 0 or more; 0 ignores unknown cells.
        from_logits, normalization, task_weights, balancer, missing, reduction, name, dtype: as in
            `MaskedBinaryCrossentropy`.

    Raises:
        ValueError: as `MaskedBinaryCrossentropy`.
    """

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
        self.gamma_positive = checked_number("gamma_positive", gamma_positive)
        self.gamma_negative = checked_number("gamma_negative", gamma_negative)
        self.margin = checked_number("margin", margin, high=1.0 - 1e-6)
        if gamma_unknown is not None:
            gamma_unknown = checked_number("gamma_unknown", gamma_unknown)
        self.gamma_unknown = gamma_unknown
        self.unknown_weight = checked_number("unknown_weight", unknown_weight)

    @property
    def counts_unknown(self) -> bool:
        return self.gamma_unknown is not None and self.unknown_weight > 0.0

    def _cells(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        one, zero = self._costs(p, logits)
        positive = one * ops.exp(-self.gamma_positive * zero)
        shifted, cost = self._shifted(one, zero)
        negative = _focal(shifted, cost, self.gamma_negative)
        cells = y * positive + (1.0 - y) * negative
        if not self.counts_unknown:
            return cells
        unknown = self.unknown_weight * _focal(shifted, cost, self.gamma_unknown)
        return ops.where(known, cells, unknown)

    def _shifted(self, one: Any, zero: Any) -> tuple[Any, Any]:
        """`p_m` and `-log(1 - p_m)`."""
        if not self.margin:
            return ops.exp(-one), zero
        rest = ops.exp(-zero) + self.margin
        return ops.exp(-one) - self.margin, -ops.log(ops.minimum(rest, 1.0))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "gamma_positive": self.gamma_positive,
            "gamma_negative": self.gamma_negative,
            "margin": self.margin,
            "gamma_unknown": self.gamma_unknown,
            "unknown_weight": self.unknown_weight,
        }


def _focal(p: Any, cost: Any, gamma: float) -> Any:
    """`p^γ cost`, and 0 with a gradient of 0 where p is 0 or less."""
    above = p > 0.0
    base = ops.where(above, p, ops.ones_like(p))
    return ops.where(above, base**gamma * cost, ops.zeros_like(cost))


@keras.saving.register_keras_serializable(package="kerasmtl")
class HillLoss(BinaryLoss):
    """A loss that a confident 1 at an unknown label hardly moves: unknown counts as 0, softly.

    `y (1 - p')^γ (-log p') + (1 - y) (λ - p) p²`, `p' = σ(z - m)`, z the logit; an unknown label
    counts as 0. The slope of the second term in p, `(2 λ - 3 p) p`, is 0 again at `p = 2 λ / 3`
    (https://arxiv.org/abs/2112.07368).

    Shapes: y_true (batch, tasks) float in [0, 1], NaN = missing; y_pred (batch, tasks),
    probabilities, or logits with `from_logits=True`. `call` returns (batch,).

    Missing cells count as said; with none known there still is a loss. NaN predictions make it NaN,
    and known labels outside [0, 1] are an error, as in `MaskedBinaryCrossentropy`.

    Args:
        lam: λ, from 1: below it the loss of a 0 would be negative.
        margin: m, 0 or more.
        gamma: γ, 0 or more.
        from_logits, normalization, task_weights, balancer, missing, reduction, name, dtype: as in
            `MaskedBinaryCrossentropy`.

    Raises:
        ValueError: as `MaskedBinaryCrossentropy`.
    """

    counts_unknown = True

    def __init__(
        self,
        lam: float = 1.5,
        margin: float = 1.0,
        gamma: float = 2.0,
        name: str = "hill_loss",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.lam = checked_number("lam", lam, low=1.0)
        self.margin = checked_number("margin", margin)
        self.gamma = checked_number("gamma", gamma)

    def _cells(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        one, zero = self._costs(p, logits)
        logit = p if logits else zero - one
        shifted = logit - self.margin
        positive = ops.softplus(-shifted) * ops.exp(-self.gamma * ops.softplus(shifted))
        chance = ops.exp(-one)
        return y * positive + (1.0 - y) * (self.lam - chance) * ops.square(chance)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "lam": self.lam,
            "margin": self.margin,
            "gamma": self.gamma,
        }
