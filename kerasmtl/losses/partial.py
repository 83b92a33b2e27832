"""Losses for labels that are not missing at random: what a missing label counts as.

Where labels are missing at random, ignoring them (`MaskedBinaryCrossentropy`) is hard to beat.
Where mostly or only positives are recorded, it learns that everything is positive; these losses
are for that case. The prediction for a missing label matters here, on purpose; the code stored in
its place never does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import keras
from keras import ops

from kerasmtl.losses.base import (
    check_weights,
    nan_where,
    not_probability,
    per_task,
    probability_fault,
    refuse,
)
from kerasmtl.losses.binary import BinaryLoss, smooth
from kerasmtl.utils.validation import check_choice, check_number


@keras.saving.register_keras_serializable(package="kerasmtl")
class AssumeNegative(BinaryLoss):
    """Compute binary cross-entropy in which a missing label counts as 0, with its own weight.

    `Σ_{j known} BCE(y_ij, p_ij) + u Σ_{j missing} -log(1 - p_ij)` per row: AN with u = 1, WAN
    (weak) with `u = 1 / (T - 1)`, `unknown_weight="weak"`. With label smoothing ε (AN-LS) y is
    `y (1 - ε) + ε / 2`, that of missing labels `ε / 2`. All three from
    https://arxiv.org/abs/2106.09708, where the sum is divided by T.

    Shapes: y_true (batch, tasks) float in [0, 1], NaN = missing; y_pred (batch, tasks),
    probabilities, or logits with `from_logits=True`. `call` returns (batch,).

    A row without known labels has a loss, too, and a balancer sees each label as known. With
    nothing missing it equals `MaskedBinaryCrossentropy`.

    Args:
        unknown_weight: u, 0 or more (0 ignores missing labels), or "weak"; or one number per task,
            where some tasks record positives only and others miss labels at random.
        label_smoothing: ε, from 0 to 1.
        from_logits, normalization, task_weights, balancer, missing, reduction, name, dtype: as in
            `MaskedBinaryCrossentropy`; "mean" divides by the `Σ v_j` of all labels that count.

    Raises:
        ValueError: as `MaskedBinaryCrossentropy`.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> y = np.array([[1, np.nan]], "float32")
        >>> p = np.array([[0.5, 0.5]], "float32")
        >>> round(float(kt.losses.AssumeNegative(unknown_weight=0.5)(y, p)), 4)  # 1.5 ln 2
        1.0397
    """

    SETTINGS = ("unknown_weight", "label_smoothing")

    def __init__(
        self,
        unknown_weight: float | Sequence[float] | Literal["weak"] = 1.0,
        label_smoothing: float = 0.0,
        name: str = "assume_negative",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        if isinstance(unknown_weight, str):
            self.unknown_weight = check_choice("unknown_weight", unknown_weight, ("weak",))
        elif isinstance(unknown_weight, Iterable):
            self.unknown_weight = check_weights("unknown_weight", unknown_weight)
        else:
            self.unknown_weight = check_number("unknown_weight", unknown_weight, 0.0)
        self.label_smoothing = check_number("label_smoothing", label_smoothing, 0.0, 1.0)

    @property
    def includes_missing(self) -> bool:
        return self.unknown_weight != 0.0

    def _included(self, known: Any) -> Any:
        if not isinstance(self.unknown_weight, tuple):
            return super()._included(known)
        weights = per_task("unknown_weight", self.unknown_weight, known.shape[-1], "float32")
        return ops.logical_or(known, weights > 0.0)

    def _elementwise(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        weight = self.unknown_weight
        if weight == "weak":
            weight = 1.0 / max(p.shape[-1] - 1, 1)
        weight = per_task("unknown_weight", weight, p.shape[-1], p.dtype)
        y = smooth(y, self.label_smoothing)
        losses = ops.binary_crossentropy(y, p, from_logits=logits)
        return ops.where(known, losses, losses * weight)


@keras.saving.register_keras_serializable(package="kerasmtl")
class PartialBinaryCrossentropy(BinaryLoss):
    """Compute binary cross-entropy over known labels, normalized by a function of their share.

    `g(q_i) / T Σ_{j known} v_j BCE(y_ij, p_ij)`, `q_i` the known share of the row,
    `g(q) = α q^γ + β`; with the defaults `g(0.1) ≈ 5` and `g(1) = 1`, the mean of Keras.
    α = 1, β = 0, γ = -1 is the mean over known labels (https://arxiv.org/abs/1902.09720).

    Shapes: y_true (batch, tasks) float in [0, 1], NaN = missing; y_pred (batch, tasks),
    probabilities, or logits with `from_logits=True`. `call` returns (batch,).

    Missing labels add exactly 0 and have a gradient of exactly 0; with none known the loss is 0.

    Args:
        alpha, beta, gamma: α, β, γ of g.
        from_logits, task_weights, balancer, missing, reduction, name, dtype: as in
            `MaskedBinaryCrossentropy`. There is no other normalization.

    Raises:
        ValueError: as `MaskedBinaryCrossentropy`, or a `g` that is negative for some share.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> y = np.array([[1, np.nan, np.nan, 0]], "float32")
        >>> p = np.full((1, 4), 0.5, "float32")
        >>> loss = kt.losses.PartialBinaryCrossentropy(alpha=1, beta=0, gamma=-1)
        >>> round(float(loss(y, p)), 4)  # the mean over the two known labels, ln 2
        0.6931
    """

    def __init__(
        self,
        alpha: float = -4.45,
        beta: float = 5.45,
        gamma: float = 1.0,
        name: str = "partial_binary_crossentropy",
        **kwargs: Any,
    ) -> None:
        if kwargs.pop("normalization", "sum") != "sum":
            raise ValueError(
                "`normalization` must be left out: `alpha`, `beta` and `gamma` normalize this loss"
            )
        super().__init__(name=name, **kwargs)
        self.alpha = check_number("alpha", alpha)
        self.beta = check_number("beta", beta)
        self.gamma = check_number("gamma", gamma)
        try:
            least = min(self._factor(1.0), self._factor(1e-3))  # g is monotonic in q
        except OverflowError:
            least = -math.inf
        if least < -1e-9:
            raise ValueError(
                "`alpha`, `beta` and `gamma` must give α q^γ + β >= 0 for 0 < q <= 1, "
                f"got {alpha}, {beta}, {gamma}"
            )

    def _factor(self, share: Any) -> Any:
        """Return g(share)."""
        return self.alpha * share**self.gamma + self.beta

    def _elementwise(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        return ops.binary_crossentropy(y, p, from_logits=logits)

    def _per_row(self, losses: Any, included: Any) -> Any:
        tasks = losses.shape[-1]
        amount = ops.sum(ops.cast(included, losses.dtype), axis=-1)
        # A row without known labels has a sum of 0, and must not meet 0 to a negative power.
        share = ops.maximum(amount, 1.0) / tasks
        return super()._per_row(losses, included) * self._factor(share) / tasks

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("normalization")
        return {**config, "alpha": self.alpha, "beta": self.beta, "gamma": self.gamma}


@keras.saving.register_keras_serializable(package="kerasmtl")
class ExpectedPositives(BinaryLoss):
    """Compute cross-entropy over known labels, plus a term for the number of positives per row.

    `Σ_{j known} BCE(y_ij, p_ij) + λ T ((Σ_j p_ij - k) / T)²` per row: expected-positive
    regularization, EPR (https://arxiv.org/abs/2106.09708; times T, as all losses here are sums).

    The published term is `((mean_i Σ_j p_ij - k) / T)²`, of the mean over the batch, which depends
    on the batch, and under tf.distribute on a replica's share of it: that is `level="batch"`. The
    default, `level="example"`, expects k positives in every row. It is an upper bound of the
    former (the square of a mean is at most the mean of the squares), stricter, and independent of
    the batches.

    Shapes: y_true (batch, tasks) float in [0, 1], NaN = missing; y_pred (batch, tasks),
    probabilities, or logits with `from_logits=True`. `call` returns (batch,).

    Predictions for missing labels count in the second term, which remains in a row without known
    labels. `task_weights`, a balancer and `normalization` apply to the first term.

    Args:
        positives: k, expected per row, such as `labels.sum(axis=1).mean()` of a complete sample.
        weight: λ, 0 or more; 0 is `MaskedBinaryCrossentropy`.
        level: "example" or "batch".
        from_logits, normalization, task_weights, balancer, missing, reduction, name, dtype: as in
            `MaskedBinaryCrossentropy`.

    Raises:
        ValueError: as `MaskedBinaryCrossentropy`, or an unknown level.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> y = np.full((1, 4), np.nan, "float32")
        >>> p = np.full((1, 4), 0.75, "float32")  # 3 positives, and 1 is expected
        >>> float(kt.losses.ExpectedPositives(positives=1)(y, p))  # 4 (2 / 4)²
        1.0
    """

    SETTINGS = ("positives", "weight", "level")

    def __init__(
        self,
        positives: float,
        weight: float = 1.0,
        level: Literal["example", "batch"] = "example",
        name: str = "expected_positives",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.positives = check_number("positives", positives, 0.0)
        self.weight = check_number("weight", weight, 0.0)
        self.level = check_choice("level", level, ("example", "batch"))

    def call(self, y_true: Any, y_pred: Any) -> Any:
        first = super().call(y_true, y_pred)
        if not self.weight:
            return first
        values, logits = self._predictions(y_pred)
        p = ops.sigmoid(values) if logits else values
        invalid = not_probability(p)
        refuse(invalid, lambda: [probability_fault(invalid, p)])
        expected = ops.sum(p * nan_where(invalid, p.dtype), axis=-1)
        if self.level == "batch":
            expected = ops.mean(expected) * ops.ones_like(expected)
        tasks = y_pred.shape[-1]
        return first + self.weight / tasks * ops.square(expected - self.positives)

    def _elementwise(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        return ops.binary_crossentropy(y, p, from_logits=logits)
