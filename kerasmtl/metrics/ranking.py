"""Scores of the order of predictions, from a histogram of logits per task."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kerasmtl.masking import fill_missing
from kerasmtl.metrics.base import NAN, SUM, BinaryMetric, ratio
from kerasmtl.utils.validation import check_count, check_number

LIMIT = 16.0  # predictions beyond this logit (a probability of 1e-7) share the last bin
TINY = 1e-300  # smaller than any weight: avoids 0/0


class _Histogram(BinaryMetric):
    """Count known positives and negatives by task and bin, the highest bin first."""

    SETTINGS = ("num_bins",)

    def __init__(self, num_bins: int = 512, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_bins = check_count("num_bins", num_bins, 2)

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"positives": (self.num_bins,), "negatives": (self.num_bins,)}

    def _batch_sums(self, y_true: Any, y_pred: Any, weight: Any) -> dict[str, Any]:
        if not self.from_logits:
            p = ops.clip(y_pred, 1e-7, 1.0 - 1e-7)
            y_pred = ops.log(p / (1.0 - p))
        share = 0.5 - ops.clip(y_pred, -LIMIT, LIMIT) / (2.0 * LIMIT)
        bins = ops.minimum(ops.cast(share * self.num_bins, "int32"), self.num_bins - 1)
        positive = ops.cast(y_true, SUM) * weight
        return {
            "positives": self._binned(positive, bins, self.num_bins),
            "negatives": self._binned(weight - positive, bins, self.num_bins),
        }


def _cumulated(sums: dict[str, Any]) -> tuple[Any, Any]:
    """Return how many known positives and known labels are in a bin or above, (tasks, bins)."""
    hits = ops.cumsum(sums["positives"], axis=-1)
    return hits, hits + ops.cumsum(sums["negatives"], axis=-1)


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedAUC(_Histogram):
    """Compute the area under the ROC curve over known labels, averaged over the defined tasks.

    `AUC_j = P(p_+ > p_-) + P(p_+ = p_-) / 2` for a known positive and a known negative of task j.

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks), probabilities, or
    logits with `from_logits=True`. The result is a scalar; `per_task()` returns (tasks,).

    Streaming: predictions are counted in `num_bins` bins of equal width in the logit, from -16 to
    16, and ties within a bin count half; with n+_b and n-_b known labels in bin b the result
    differs by at most `Σ_b n+_b n-_b / (2 n+ n-)` from the exact one, which `kt.evaluate` computes.

    A task without a known positive and a known negative is undefined, see `MaskedMetric`.

    Args:
        num_bins: 2 or more.
        from_logits: whether predictions are logits rather than probabilities.
        missing, average, name, dtype: as in `MaskedMetric`.

    Raises:
        ValueError: as in `MaskedMetric`, or fewer than two bins.

    Source: Hanley and McNeil 1982, https://doi.org/10.1148/radiology.143.1.7063747.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> auc = kt.metrics.MaskedAUC()
        >>> y = np.array([[1, 1], [0, np.nan], [1, 0]])
        >>> auc.update_state(y, np.array([[0.9, 0.8], [0.4, 0.9], [0.2, 0.1]]))
        >>> auc.per_task()
        array([0.5, 1. ])
        >>> float(auc.result())
        0.75
    """

    def __init__(self, num_bins: int = 512, name: str = "auc", **kwargs: Any) -> None:
        super().__init__(num_bins, name=name, **kwargs)

    def _score(self, sums: dict[str, Any]) -> Any:
        positives, negatives = sums["positives"], sums["negatives"]
        # A negative is ranked below the positives of higher bins, and half below those of its own.
        above = ops.cumsum(positives, axis=-1) - 0.5 * positives
        pairs = ops.sum(positives, axis=-1) * ops.sum(negatives, axis=-1)
        return ratio(ops.sum(above * negatives, axis=-1), pairs)


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedAveragePrecision(_Histogram):
    """Compute average precision over known labels, averaged over the defined tasks.

    `AP_j = Σ_b (R_b - R_(b-1)) P_b`, precision P and recall R of the predictions in bin b or
    above, from the highest bin down; without interpolation.

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks), probabilities, or
    logits with `from_logits=True`. The result is a scalar; `per_task()` returns (tasks,).

    Streaming: the exact value for predictions rounded to `num_bins` bins of equal width in the
    logit, from -16 to 16. `kt.evaluate` does not round.

    A task without a known positive is undefined, see `MaskedMetric`.

    Args:
        num_bins, from_logits: as in `MaskedAUC`.
        missing, average, name, dtype: as in `MaskedMetric`.

    Raises:
        ValueError: as in `MaskedMetric`, or fewer than two bins.

    Source: Manning, Raghavan and Schütze 2008, Introduction to Information Retrieval, section 8.4.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> metric = kt.metrics.MaskedAveragePrecision()
        >>> y = np.array([[1], [0], [np.nan], [1]])
        >>> metric.update_state(y, np.array([[0.9], [0.8], [0.7], [0.1]]))
        >>> round(float(metric.result()), 4)  # (1 + 2/3) / 2
        0.8333
    """

    def __init__(self, num_bins: int = 512, name: str = "average_precision", **kwargs: Any) -> None:
        super().__init__(num_bins, name=name, **kwargs)

    def _score(self, sums: dict[str, Any]) -> Any:
        positives = sums["positives"]
        hits, seen = _cumulated(sums)
        # Bins above the first prediction have no positives: 0/0 may be any number there.
        precision = hits / ops.maximum(seen, TINY)
        return ratio(ops.sum(positives * precision, axis=-1), ops.sum(positives, axis=-1))


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedPrecisionAtRecall(_Histogram):
    """Compute the best precision at a recall of `recall` or more, averaged over defined tasks.

    `max { P_b : R_b >= recall }`, precision P and recall R of the predictions in bin b or above.

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks), probabilities, or
    logits with `from_logits=True`. The result is a scalar; `per_task()` returns (tasks,).

    Streaming: the exact value for predictions rounded to `num_bins` bins of equal width in the
    logit, from -16 to 16.

    A task without a known positive is undefined, see `MaskedMetric`.

    Args:
        recall: above 0, at most 1.
        num_bins, from_logits: as in `MaskedAUC`.
        missing, average, name, dtype: as in `MaskedMetric`.

    Raises:
        ValueError: as in `MaskedMetric`, fewer than two bins, or a recall out of range.

    Source: https://scikit-learn.org/stable/modules/model_evaluation.html#precision-recall-and-f-measures.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> metric = kt.metrics.MaskedPrecisionAtRecall(recall=0.9)
        >>> y = np.array([[1], [0], [np.nan], [1]])
        >>> metric.update_state(y, np.array([[0.9], [0.8], [0.7], [0.1]]))
        >>> round(float(metric.result()), 4)  # all three known labels are needed
        0.6667
    """

    SETTINGS = ("num_bins", "recall")

    def __init__(self, recall: float, name: str = "precision_at_recall", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.recall = check_number("recall", recall, 0.0, 1.0, open_low=True)

    def _score(self, sums: dict[str, Any]) -> Any:
        hits, seen = _cumulated(sums)
        positives = ops.sum(sums["positives"], axis=-1)
        # Sums of fractional weights in two orders differ in their last digits.
        needed = ops.expand_dims(self.recall * positives, -1) * (1.0 - 1e-9)
        precision = hits / ops.maximum(seen, TINY)
        reached = ops.where(hits >= needed, precision, ops.zeros_like(precision))
        return fill_missing(ops.max(reached, axis=-1), positives > 0, NAN)
