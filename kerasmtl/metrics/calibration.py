"""Scores of the probabilities themselves: how far they are from what happens."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kerasmtl.metrics.base import SUM, BinaryMetric, ratio


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedBrier(BinaryMetric):
    """Mean squared difference of probability and known label, averaged over tasks.

    `brier_j = Σ_i known_ij (p_ij - y_ij)² / Σ_i known_ij`

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks), probabilities, or
    logits with `from_logits=True`. The result is a scalar; `per_task()` gives (tasks,).

    Missing cells have no influence. A task with no known label is undefined: NaN by task, left
    out of the mean; NaN if no task is defined. A known cell that cannot be scored makes the result
    NaN (see `MaskedMetric`).

    Raises:
        ValueError: y_true and y_pred are not both (batch, tasks).

    Source: Brier 1950, https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.
    """

    def __init__(
        self,
        from_logits: bool = False,
        missing: float | None = None,
        average: str = "macro",
        name: str = "brier",
        dtype: Any = None,
    ) -> None:
        super().__init__(average, from_logits, missing, name, dtype)

    def _layout(self) -> dict[str, tuple[int, ...]]:
        return {"squares": (), "known": ()}

    def _batch_sums(self, y_true: Any, y_pred: Any, weight: Any) -> dict[str, Any]:
        error = ops.cast(self._probability(y_pred), SUM) - ops.cast(y_true, SUM)
        return {"squares": ops.sum(error * error * weight, axis=0), "known": ops.sum(weight, 0)}

    def _score(self, sums: dict[str, Any]) -> Any:
        return ratio(sums["squares"], sums["known"])


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedECE(BinaryMetric):
    """Expected calibration error over the known labels, averaged over tasks.

    `ECE_j = Σ_b |Σ_(i in b) known_ij (y_ij - p_ij)| / Σ_i known_ij`, which is the mean over bins b
    of |share of positives - mean probability|, weighted by their known labels.

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks), probabilities, or
    logits with `from_logits=True`. The result is a scalar; `per_task()` gives (tasks,).

    The bins `[k / num_bins, (k + 1) / num_bins)` are of equal width, and 1 is in the last one.

    Missing cells have no influence. A task with no known label is undefined: NaN by task, left
    out of the mean; NaN if no task is defined. A known cell that cannot be scored makes the result
    NaN (see `MaskedMetric`).

    Raises:
        ValueError: y_true and y_pred are not both (batch, tasks), or no bin.

    Source: Naeini, Cooper and Hauskrecht 2015, https://doi.org/10.1609/aaai.v29i1.9602.
    """

    def __init__(
        self,
        num_bins: int = 15,
        from_logits: bool = False,
        missing: float | None = None,
        average: str = "macro",
        name: str = "ece",
        dtype: Any = None,
    ) -> None:
        super().__init__(average, from_logits, missing, name, dtype)
        if num_bins < 1:
            raise ValueError(f"`num_bins` is too small. Expected at least 1. Received: {num_bins}")
        self.num_bins = int(num_bins)

    def _layout(self) -> dict[str, tuple[int, ...]]:
        return {"differences": (self.num_bins,), "known": ()}

    def _batch_sums(self, y_true: Any, y_pred: Any, weight: Any) -> dict[str, Any]:
        p = self._probability(y_pred)
        bins = ops.minimum(ops.cast(p * self.num_bins, "int32"), self.num_bins - 1)
        cells = ops.reshape(bins + ops.arange(self.num_tasks) * self.num_bins, (-1,))
        difference = (ops.cast(y_true, SUM) - ops.cast(p, SUM)) * weight
        sums = ops.segment_sum(
            ops.reshape(difference, (-1,)), cells, self.num_tasks * self.num_bins
        )
        return {
            "differences": ops.reshape(sums, (self.num_tasks, self.num_bins)),
            "known": ops.sum(weight, axis=0),
        }

    def _score(self, sums: dict[str, Any]) -> Any:
        return ratio(ops.sum(ops.abs(sums["differences"]), axis=-1), sums["known"])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_bins": self.num_bins}
