"""Scores of the order of predictions, from a histogram of logits by task."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from kerasmtl.masking import fill_missing
from kerasmtl.metrics.base import NAN, SUM, BinaryMetric, ratio

LIMIT = 16.0  # predictions beyond this logit (a probability of 1e-7) share the last bin
BLOCK = 32
TINY = 1e-300  # below any weight: keeps 0/0 out


class _Histogram(BinaryMetric):
    """Known positives and negatives by task and bin, the highest first: (tasks, num_bins) each."""

    def __init__(
        self,
        num_bins: int = 512,
        average: str = "macro",
        from_logits: bool = False,
        missing: float | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(average, from_logits, missing, name, dtype)
        if num_bins < 2:
            raise ValueError(f"`num_bins` is too small. Expected at least 2. Received: {num_bins}")
        self.num_bins = int(num_bins)

    def _layout(self) -> dict[str, tuple[int, ...]]:
        return {"positives": (self.num_bins,), "negatives": (self.num_bins,)}

    def _batch_sums(self, y_true: Any, y_pred: Any, weight: Any) -> dict[str, Any]:
        if not self.from_logits:
            p = ops.clip(y_pred, 1e-7, 1.0 - 1e-7)
            y_pred = ops.log(p / (1.0 - p))
        share = 0.5 - ops.clip(y_pred, -LIMIT, LIMIT) / (2.0 * LIMIT)
        bins = ops.minimum(ops.cast(share * self.num_bins, "int32"), self.num_bins - 1)
        cells = ops.reshape(bins + ops.arange(self.num_tasks) * self.num_bins, (-1,))
        positive = ops.cast(y_true, SUM) * weight

        def counted(values: Any) -> Any:
            flat = ops.reshape(values, (-1,))
            counts = ops.segment_sum(flat, cells, self.num_tasks * self.num_bins)
            return ops.reshape(counts, (self.num_tasks, self.num_bins))

        return {"positives": counted(positive), "negatives": counted(weight - positive)}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_bins": self.num_bins}


def _in_blocks(counts: Any) -> Any:
    """Counts (tasks, num_bins) as (tasks, blocks, bins of a block): see `_cumulated`."""
    tasks, bins = counts.shape
    size = BLOCK if bins % BLOCK == 0 else 1
    return ops.reshape(counts, (tasks, bins // size, size))


def _cumulated(counts: Any) -> Any:
    """Running sums over the bins, (tasks, num_bins) like the counts.

    By blocks, and within a block by a matrix of ones: three times as fast as a cumsum over all.
    """
    blocks = _in_blocks(counts)
    size = blocks.shape[-1]
    within = ops.matmul(blocks, np.triu(np.ones((size, size), dtype=SUM)))
    totals = within[:, :, -1]
    before = ops.cumsum(totals, axis=-1) - totals
    return ops.reshape(within + ops.expand_dims(before, -1), counts.shape)


def _from_the_top(sums: dict[str, Any]) -> tuple[Any, Any]:
    """How many known positives, and how many known labels, lie in a bin or in a higher one."""
    hits = _cumulated(sums["positives"])
    return hits, hits + _cumulated(sums["negatives"])


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedAUC(_Histogram):
    """Area under the ROC curve by task over its known labels, averaged over the defined tasks.

    `AUC_j = P(p_+ > p_-) + P(p_+ = p_-) / 2` for a known positive and a known negative of task j.

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks), probabilities, or
    logits with `from_logits=True`. The result is a scalar; `per_task()` gives (tasks,).

    Streaming: predictions are counted in `num_bins` bins of equal width in the logit, from -16 to
    16, and ties within a bin count half; with n+_b and n-_b known labels in bin b the result is at
    most `Σ_b n+_b n-_b / (2 n+ n-)` away from the exact one, which `kerasmtl.evaluate` computes.

    Missing cells have no influence. A task without a known positive and a known negative is
    undefined: NaN by task, left out of the mean; NaN if no task is defined. A known cell that
    cannot be scored makes the result NaN (see `MaskedMetric`).

    Raises:
        ValueError: y_true and y_pred are not both (batch, tasks), or fewer than two bins.

    Source: Hanley and McNeil 1982, https://doi.org/10.1148/radiology.143.1.7063747.
    """

    def __init__(
        self,
        num_bins: int = 512,
        from_logits: bool = False,
        missing: float | None = None,
        average: str = "macro",
        name: str = "auc",
        dtype: Any = None,
    ) -> None:
        super().__init__(num_bins, average, from_logits, missing, name, dtype)

    def _score(self, sums: dict[str, Any]) -> Any:
        positives, negatives = _in_blocks(sums["positives"]), _in_blocks(sums["negatives"])
        # A negative is beaten by the positives of higher bins, and half by those of its own.
        size = positives.shape[-1]
        beaten = np.triu(np.ones((size, size), dtype=SUM), 1) + 0.5 * np.eye(size, dtype=SUM)
        within = ops.sum(ops.matmul(positives, beaten) * negatives, axis=-1)
        hits, misses = ops.sum(positives, axis=-1), ops.sum(negatives, axis=-1)
        higher = ops.cumsum(hits, axis=-1) - hits
        pairs = ops.sum(hits, axis=-1) * ops.sum(misses, axis=-1)
        return ratio(ops.sum(within + higher * misses, axis=-1), pairs)


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedAveragePrecision(_Histogram):
    """Average precision by task over its known labels, averaged over the defined tasks.

    `AP_j = Σ_b (R_b - R_(b-1)) P_b`, precision P and recall R of the predictions in bin b or
    higher, from the highest bin down; without interpolation.

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks), probabilities, or
    logits with `from_logits=True`. The result is a scalar; `per_task()` gives (tasks,).

    Streaming: the exact value for predictions rounded to `num_bins` bins of equal width in the
    logit, from -16 to 16. `kerasmtl.evaluate` rounds nothing.

    Missing cells have no influence. A task without a known positive is undefined: NaN by task,
    left out of the mean; NaN if no task is defined. A known cell that cannot be scored makes the
    result NaN (see `MaskedMetric`).

    Raises:
        ValueError: y_true and y_pred are not both (batch, tasks), or fewer than two bins.

    Source: Manning, Raghavan and Schütze 2008, Introduction to Information Retrieval, section 8.4.
    """

    def __init__(
        self,
        num_bins: int = 512,
        from_logits: bool = False,
        missing: float | None = None,
        average: str = "macro",
        name: str = "average_precision",
        dtype: Any = None,
    ) -> None:
        super().__init__(num_bins, average, from_logits, missing, name, dtype)

    def _score(self, sums: dict[str, Any]) -> Any:
        positives = sums["positives"]
        hits, seen = _from_the_top(sums)
        # Bins above the first prediction hold no positive: any number will do for 0/0 there.
        precision = hits / ops.maximum(seen, TINY)
        return ratio(ops.sum(positives * precision, axis=-1), ops.sum(positives, axis=-1))


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedPrecisionAtRecall(_Histogram):
    """The best precision by task at a recall of `recall` or more, averaged over the defined tasks.

    `max { P_b : R_b >= recall }`, precision P and recall R of the predictions in bin b or higher.

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks), probabilities, or
    logits with `from_logits=True`. The result is a scalar; `per_task()` gives (tasks,).

    Streaming: the exact value for predictions rounded to `num_bins` bins of equal width in the
    logit, from -16 to 16.

    Missing cells have no influence. A task without a known positive is undefined: NaN by task,
    left out of the mean; NaN if no task is defined. A known cell that cannot be scored makes the
    result NaN (see `MaskedMetric`).

    Raises:
        ValueError: y_true and y_pred are not both (batch, tasks), fewer than two bins, or a recall
            outside (0, 1].
    """

    def __init__(
        self,
        recall: float,
        num_bins: int = 512,
        from_logits: bool = False,
        missing: float | None = None,
        average: str = "macro",
        name: str = "precision_at_recall",
        dtype: Any = None,
    ) -> None:
        super().__init__(num_bins, average, from_logits, missing, name, dtype)
        if not 0.0 < recall <= 1.0:
            raise ValueError(
                f"`recall` is no share. Expected 0 < recall <= 1. Received: {recall!r}"
            )
        self.recall = float(recall)

    def _score(self, sums: dict[str, Any]) -> Any:
        hits, seen = _from_the_top(sums)
        positives = ops.sum(sums["positives"], axis=-1)
        # Sums of fractional weights by two ways differ in their last digits.
        wanted = ops.expand_dims(self.recall * positives, -1) * (1.0 - 1e-9)
        precision = hits / ops.maximum(seen, TINY)
        enough = ops.where(hits >= wanted, precision, ops.zeros_like(precision))
        return fill_missing(ops.max(enough, axis=-1), positives > 0, NAN)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "recall": self.recall}
