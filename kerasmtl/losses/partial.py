"""Policies for labels that are not missing at random: what an unknown label counts for.

Where labels are missing at random, ignoring them (`MaskedBinaryCrossentropy`) is hard to beat.
Where mostly or only positives are kept, it learns that all is positive; these are for then. The
prediction of an unknown cell matters here, on purpose; the code under it never does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import keras
from keras import ops

from kerasmtl.losses.base import (
    checked_number,
    checked_weights,
    nan_where,
    outside_of_0_and_1,
    per_task,
    predictions_fault,
    refuse,
)
from kerasmtl.losses.binary import BinaryLoss


@keras.saving.register_keras_serializable(package="kerasmtl")
class AssumeNegative(BinaryLoss):
    """Binary cross-entropy in which an unknown label counts as 0, with a weight of its own.

    `Σ_{j known} BCE(y_ij, p_ij) + u Σ_{j unknown} -log(1 - p_ij)` by example: AN with u = 1, WAN
    (weak) with `u = 1 / (T - 1)`, `unknown_weight="weak"`. With label smoothing ε (AN-LS) y is
    `y (1 - ε) + ε / 2`, that of unknown cells `ε / 2`. All three from
    https://arxiv.org/abs/2106.09708, where the sum is divided by T.

    Shapes: y_true (batch, tasks) float in [0, 1], NaN = missing; y_pred (batch, tasks),
    probabilities, or logits with `from_logits=True`. `call` returns (batch,).

    Missing cells count as said; with none known there still is a loss, and a balancer sees each
    cell as known. With nothing missing it is `MaskedBinaryCrossentropy`. NaN predictions make the
    loss NaN, and labels outside [0, 1] are an error, as there.

    Args:
        unknown_weight: u, 0 or more (0 ignores unknown cells), or "weak"; or one number a task,
            where some tasks keep positives only and others miss labels at random.
        label_smoothing: ε, from 0 to 1.
        from_logits, normalization, task_weights, balancer, missing, reduction, name, dtype: as in
            `MaskedBinaryCrossentropy`; "mean" divides by the `Σ v_j` of all cells that count.

    Raises:
        ValueError: as `MaskedBinaryCrossentropy`.
    """

    def __init__(
        self,
        unknown_weight: float | Sequence[float] | Literal["weak"] = 1.0,
        label_smoothing: float = 0.0,
        name: str = "assume_negative",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.unknown_weight = _checked_unknown_weight(unknown_weight)
        self.label_smoothing = checked_number("label_smoothing", label_smoothing, high=1.0)

    @property
    def counts_unknown(self) -> bool:
        return self.unknown_weight != 0.0

    def _counted(self, known: Any) -> Any:
        if not isinstance(self.unknown_weight, tuple):
            return super()._counted(known)
        weights = per_task("unknown_weight", self.unknown_weight, known.shape[-1], "float32")
        return ops.logical_or(known, weights > 0.0)

    def _cells(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        weight = self.unknown_weight
        if weight == "weak":
            weight = 1.0 / max(p.shape[-1] - 1, 1)
        weight = per_task("unknown_weight", weight, p.shape[-1], p.dtype)
        if self.label_smoothing:
            y = y * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        cells = ops.binary_crossentropy(y, p, from_logits=logits)
        return ops.where(known, cells, cells * weight)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "unknown_weight": self.unknown_weight,
            "label_smoothing": self.label_smoothing,
        }


def _checked_unknown_weight(value: Any) -> float | tuple[float, ...] | str:
    if isinstance(value, str) and value == "weak":
        return value
    if isinstance(value, str) or not isinstance(value, Iterable):
        return checked_number("unknown_weight", value)
    return checked_weights("unknown_weight", value) or ()


@keras.saving.register_keras_serializable(package="kerasmtl")
class PartialBinaryCrossentropy(BinaryLoss):
    """Binary cross-entropy over known labels, normalized by a function of their share.

    `g(q_i) / T Σ_{j known} v_j BCE(y_ij, p_ij)`, `q_i` the known share of the row,
    `g(q) = α q^γ + β`; with the defaults `g(0.1) ≈ 5` and `g(1) = 1`, the mean of Keras.
    α = 1, β = 0, γ = -1 is the mean over known (https://arxiv.org/abs/1902.09720).

    Shapes: y_true (batch, tasks) float in [0, 1], NaN = missing; y_pred (batch, tasks),
    probabilities, or logits with `from_logits=True`. `call` returns (batch,).

    Missing cells add exactly 0 and have a gradient of exactly 0; with none known the loss is 0. A
    NaN prediction of a known cell makes the loss NaN, and a known label outside [0, 1] is an error,
    as in `MaskedBinaryCrossentropy`.

    Args:
        alpha, beta, gamma: of g.
        from_logits, task_weights, balancer, missing, reduction, name, dtype: as in
            `MaskedBinaryCrossentropy`. There is no other normalization.

    Raises:
        ValueError: as `MaskedBinaryCrossentropy`, or a `g` that is negative for some share.
    """

    def __init__(
        self,
        alpha: float = -4.45,
        beta: float = 5.45,
        gamma: float = 1.0,
        name: str = "partial_binary_crossentropy",
        **kwargs: Any,
    ) -> None:
        given = kwargs.pop("normalization", "sum")
        if given != "sum":
            raise ValueError(
                "`normalization` is fixed by `alpha`, `beta` and `gamma` here. Expected 'sum'. "
                f"Received: {given!r}"
            )
        super().__init__(name=name, **kwargs)
        self.alpha, self.beta, self.gamma = (
            checked_number(argument, value, low=-math.inf)
            for argument, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma))
        )
        try:
            # g is monotonic in q.
            least = min(self._g(1.0), self._g(1e-3))
        except OverflowError:
            least = -math.inf
        if least < -1e-9:
            raise ValueError(
                "`alpha`, `beta` and `gamma` make a weight that is negative or beyond all numbers. "
                f"Expected α q^γ + β >= 0 for 0 < q <= 1. Received: {alpha}, {beta}, {gamma}"
            )

    def _g(self, share: Any) -> Any:
        return self.alpha * share**self.gamma + self.beta

    def _cells(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        return ops.binary_crossentropy(y, p, from_logits=logits)

    def _by_row(self, cells: Any, counted: Any) -> Any:
        tasks = cells.shape[-1]
        amount = ops.sum(ops.cast(counted, cells.dtype), axis=-1)
        # A row with nothing known has a sum of 0, and must not meet 0 to a negative power.
        share = ops.maximum(amount, 1.0) / tasks
        return super()._by_row(cells, counted) * self._g(share) / tasks

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("normalization")
        return {**config, "alpha": self.alpha, "beta": self.beta, "gamma": self.gamma}


@keras.saving.register_keras_serializable(package="kerasmtl")
class ExpectedPositives(BinaryLoss):
    """Cross-entropy over known labels, and as many expected positives a row as one knows there are.

    `Σ_{j known} BCE(y_ij, p_ij) + λ T ((Σ_j p_ij - k) / T)²` by example: EPR
    (https://arxiv.org/abs/2106.09708, times T, as all losses here are sums).

    The published term is `((mean_i Σ_j p_ij - k) / T)²`, of the mean over the batch: it changes
    with the batch, and under tf.distribute with the part of it that a replica has; it is
    `level="batch"`. `level="example"`, the default, asks every row for k positives: it is an
    upper bound of the former (the square of a mean is at most the mean of the squares), stricter,
    and the same whatever the batches are.

    Shapes: y_true (batch, tasks) float in [0, 1], NaN = missing; y_pred (batch, tasks),
    probabilities, or logits with `from_logits=True`. `call` returns (batch,).

    The code under a missing cell is never looked at, its prediction counts in the sum. With none
    known the second term is left. NaN predictions make the loss NaN, and known labels outside
    [0, 1] are an error, as in `MaskedBinaryCrossentropy`. `task_weights` and a balancer weigh the
    first term, which `normalization` divides.

    Args:
        positives: k, expected a row, such as `labels.sum(axis=1).mean()` of a complete sample.
        weight: λ, 0 or more; 0 is `MaskedBinaryCrossentropy`.
        level: see above.
        from_logits, normalization, task_weights, balancer, missing, reduction, name, dtype: as in
            `MaskedBinaryCrossentropy`.

    Raises:
        ValueError: as `MaskedBinaryCrossentropy`, or an unknown level.
    """

    def __init__(
        self,
        positives: float,
        weight: float = 1.0,
        level: Literal["example", "batch"] = "example",
        name: str = "expected_positives",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.positives = checked_number("positives", positives)
        self.weight = checked_number("weight", weight)
        if level not in ("example", "batch"):
            raise ValueError(
                f"`level` is unknown. Expected 'example' or 'batch'. Received: {level!r}"
            )
        self.level = level

    def call(self, y_true: Any, y_pred: Any) -> Any:
        first = super().call(y_true, y_pred)
        if not self.weight:
            return first
        values, logits = self._predictions(y_pred)
        p = ops.sigmoid(values) if logits else values
        outside = outside_of_0_and_1(p)
        refuse(outside, lambda: [predictions_fault(outside, p)])
        expected = ops.sum(p * nan_where(outside, p.dtype), axis=-1)
        if self.level == "batch":
            expected = ops.mean(expected) * ops.ones_like(expected)
        tasks = y_pred.shape[-1]
        return first + self.weight / tasks * ops.square(expected - self.positives)

    def _cells(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        return ops.binary_crossentropy(y, p, from_logits=logits)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "positives": self.positives,
            "weight": self.weight,
            "level": self.level,
        }
