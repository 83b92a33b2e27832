"""Scores of decisions: right or wrong, per known label."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kerasmtl.masking import fill_missing, match_classes
from kerasmtl.metrics.base import NAN, SUM, BinaryMetric, MaskedMetric, ratio
from kerasmtl.utils.validation import check_number


class _ThresholdedMetric(BinaryMetric):
    """Base of the metrics in which a probability counts as 1 from `threshold` on."""

    SETTINGS = ("threshold",)

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = check_number("threshold", threshold, 0.0, 1.0, True, True)

    def _decided(self, y_pred: Any) -> Any:
        return self._probability(y_pred) >= self.threshold


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedBinaryAccuracy(_ThresholdedMetric):
    """Compute the share of known labels that are predicted right, averaged over tasks.

    `accuracy_j = Σ_i known_ij [y_ij = (p_ij >= threshold)] / Σ_i known_ij`

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks), probabilities, or
    logits with `from_logits=True` (compared after a sigmoid). The result is a scalar;
    `per_task()` returns (tasks,). A label between 0 and 1 counts as 1 above 0.5.

    A task without known labels is undefined, see `MaskedMetric`.

    Args:
        threshold: above 0 and below 1.
        from_logits: whether predictions are logits rather than probabilities.
        missing, average, name, dtype: as in `MaskedMetric`.

    Raises:
        ValueError: as in `MaskedMetric`, or a threshold outside (0, 1).

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> metric = kt.metrics.MaskedBinaryAccuracy()
        >>> metric.update_state(np.array([[1], [0], [np.nan]]), np.array([[0.5], [0.9], [0.1]]))
        >>> float(metric.result())
        0.5
    """

    def __init__(
        self, threshold: float = 0.5, name: str = "binary_accuracy", **kwargs: Any
    ) -> None:
        super().__init__(threshold, name=name, **kwargs)

    def _value(self, y_true: Any, y_pred: Any) -> Any:
        return ops.equal(y_true > 0.5, self._decided(y_pred))


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedF1(_ThresholdedMetric):
    """Compute the harmonic mean of precision and recall over known labels, averaged over tasks.

    `F1_j = 2 TP_j / (2 TP_j + FP_j + FN_j)`, where `p_ij >= threshold` counts as 1.

    Shapes and arguments: as in `MaskedBinaryAccuracy`.

    A task without a known positive is undefined whatever is predicted, so that all models are
    averaged over the same tasks, see `MaskedMetric`.

    Raises:
        ValueError: as in `MaskedMetric`, or a threshold outside (0, 1).

    Source: van Rijsbergen 1979, Information Retrieval, chapter 7.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> metric = kt.metrics.MaskedF1()
        >>> y = np.array([[1], [0], [1], [np.nan]])
        >>> metric.update_state(y, np.array([[0.5], [0.9], [0.1], [0.9]]))
        >>> float(metric.result())  # one hit, one false positive, one false negative
        0.5
    """

    def __init__(self, threshold: float = 0.5, name: str = "f1", **kwargs: Any) -> None:
        super().__init__(threshold, name=name, **kwargs)

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"hits": (), "positives": (), "predicted": ()}

    def _batch_sums(self, y_true: Any, y_pred: Any, weight: Any) -> dict[str, Any]:
        positive = ops.cast(y_true > 0.5, SUM) * weight
        predicted = ops.cast(self._decided(y_pred), SUM)
        return {
            "hits": ops.sum(positive * predicted, axis=0),
            "positives": ops.sum(positive, axis=0),
            "predicted": ops.sum(predicted * weight, axis=0),
        }

    def _score(self, sums: dict[str, Any]) -> Any:
        f1 = ratio(2.0 * sums["hits"], sums["positives"] + sums["predicted"])
        return fill_missing(f1, sums["positives"] > 0, NAN)


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedCategoricalAccuracy(MaskedMetric):
    """Compute the share of known labels whose class has the highest prediction.

    `accuracy = Σ_i known_i [y_i = argmax_c p_ic] / Σ_i known_i`, the first class if several are
    highest.

    Shapes: y_true (batch,) or (batch, 1), the class from 0, NaN = missing; y_pred (batch, classes),
    probabilities or logits. The result is a scalar; `per_task()` returns (1,).

    Rows without a label have no influence; with none known the result is NaN. A known row with a
    NaN prediction or with a label that is not a class makes the result NaN, see `MaskedMetric`.

    Args:
        missing, name, dtype: as in `MaskedMetric`.

    Raises:
        ValueError: other shapes, or another number of classes than in the first batch.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> metric = kt.metrics.MaskedCategoricalAccuracy()
        >>> y = np.array([2, 0, np.nan])
        >>> metric.update_state(y, np.array([[0.1, 0.2, 0.7], [0, 1, 0], [1, 0, 0]]))
        >>> float(metric.result())
        0.5
    """

    def __init__(self, name: str = "categorical_accuracy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.num_classes: int | None = None

    def _aligned(self, y_true: Any, y_pred: Any) -> tuple[Any, Any]:
        y_true, y_pred = match_classes(y_true, y_pred)
        classes = y_pred.shape[1]
        if self.num_classes not in (None, classes):
            raise ValueError(
                f"`y_pred` must have the {self.num_classes} classes of the first batch of "
                f"{self.name!r}, got {classes}"
            )
        self.num_classes = classes
        chosen = ops.cast(ops.argmax(y_pred, axis=-1), self.COMPARED_IN)
        invalid = ops.any(ops.isnan(y_pred), axis=-1)
        chosen = fill_missing(chosen, ops.logical_not(invalid), NAN)
        return ops.reshape(y_true, (-1, 1)), ops.reshape(chosen, (-1, 1))

    def _is_valid(self, y_true: Any, y_pred: Any) -> Any:
        within = ops.logical_and(y_true >= 0, y_true < self.num_classes)
        label = ops.logical_and(within, ops.equal(y_true, ops.floor(y_true)))
        return ops.logical_and(label, super()._is_valid(y_true, y_pred))

    def _value(self, y_true: Any, y_pred: Any) -> Any:
        return ops.equal(y_true, y_pred)
