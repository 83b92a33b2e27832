"""Scores of predicted numbers, for regression tasks."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kerasmtl.metrics.base import MaskedMetric, ratio


class _RegressionMetric(MaskedMetric):
    COMPARED_IN = "float64"

    def _is_valid(self, y_true: Any, y_pred: Any) -> Any:
        return ops.logical_and(ops.isfinite(y_true), super()._is_valid(y_true, y_pred))


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedMAE(_RegressionMetric):
    """Compute the mean absolute error over known labels, averaged over tasks.

    `MAE_j = Σ_i known_ij |p_ij - y_ij| / Σ_i known_ij`

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks). The result is a
    scalar; `per_task()` returns (tasks,).

    A task without known labels is undefined, see `MaskedMetric`.

    Args:
        missing, average, name, dtype: as in `MaskedMetric`.

    Raises:
        ValueError: as in `MaskedMetric`.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> metric = kt.metrics.MaskedMAE()
        >>> metric.update_state(np.array([[1], [3], [np.nan]]), np.array([[2], [1], [9]]))
        >>> float(metric.result())
        1.5
    """

    def __init__(self, name: str = "mae", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def _value(self, y_true: Any, y_pred: Any) -> Any:
        return ops.abs(y_pred - y_true)


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedRMSE(_RegressionMetric):
    """Compute the root of the mean squared error over known labels, averaged over tasks.

    `RMSE_j = sqrt(Σ_i known_ij (p_ij - y_ij)² / Σ_i known_ij)`

    Shapes, undefined tasks, arguments and errors: as in `MaskedMAE`.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> metric = kt.metrics.MaskedRMSE()
        >>> metric.update_state(np.array([[1], [3], [np.nan]]), np.array([[2], [10], [9]]))
        >>> float(metric.result())  # sqrt((1 + 49) / 2)
        5.0
    """

    def __init__(self, name: str = "rmse", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def _value(self, y_true: Any, y_pred: Any) -> Any:
        return ops.square(y_pred - y_true)

    def _score(self, sums: dict[str, Any]) -> Any:
        return ops.sqrt(super()._score(sums))


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedR2(_RegressionMetric):
    """Compute the share of the variance of known labels that is explained, averaged over tasks.

    `R2_j = 1 - Σ_i known_ij (y_ij - p_ij)² / Σ_i known_ij (y_ij - mean_j)²`

    Shapes, arguments and errors: as in `MaskedMAE`. A task whose known labels do not differ (by
    more than a millionth of their size, the precision of sums of squares) is undefined.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> metric = kt.metrics.MaskedR2()
        >>> metric.update_state(np.array([[1], [3], [np.nan]]), np.array([[1], [2], [9]]))
        >>> float(metric.result())  # 1 - 1 / 2
        0.5
    """

    def __init__(self, name: str = "r2", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"residuals": (), "labels": (), "squares": (), "known": ()}

    def _batch_sums(self, y_true: Any, y_pred: Any, weight: Any) -> dict[str, Any]:
        return {
            "residuals": ops.sum(ops.square(y_true - y_pred) * weight, axis=0),
            "labels": ops.sum(y_true * weight, axis=0),
            "squares": ops.sum(ops.square(y_true) * weight, axis=0),
            "known": ops.sum(weight, axis=0),
        }

    def _score(self, sums: dict[str, Any]) -> Any:
        total = sums["squares"] - ratio(ops.square(sums["labels"]), sums["known"])
        total = ops.where(total > 1e-12 * sums["squares"], total, ops.zeros_like(total))
        return 1.0 - ratio(sums["residuals"], total)
