"""Scores of predicted numbers, for regression tasks."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kerasmtl.metrics.base import MaskedMetric, ratio


class _ValueMetric(MaskedMetric):
    CELL = "float64"

    def _sound(self, y_true: Any, y_pred: Any) -> Any:
        return ops.logical_and(ops.isfinite(y_true), super()._sound(y_true, y_pred))


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedMAE(_ValueMetric):
    """Mean absolute difference of prediction and known label, averaged over tasks.

    `MAE_j = Σ_i known_ij |p_ij - y_ij| / Σ_i known_ij`

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks). The result is a
    scalar; `per_task()` gives (tasks,).

    Missing cells have no influence. A task with no known label is undefined: NaN by task, left
    out of the mean; NaN if no task is defined. A NaN prediction or an infinite label in a known
    cell makes the result NaN (see `MaskedMetric`).

    Raises:
        ValueError: y_true and y_pred are not both (batch, tasks).
    """

    def __init__(
        self,
        missing: float | None = None,
        average: str = "macro",
        name: str = "mae",
        dtype: Any = None,
    ) -> None:
        super().__init__(average, missing, name, dtype)

    def _layout(self) -> dict[str, tuple[int, ...]]:
        return {"errors": (), "known": ()}

    def _batch_sums(self, y_true: Any, y_pred: Any, weight: Any) -> dict[str, Any]:
        errors = ops.abs(y_pred - y_true) * weight
        return {"errors": ops.sum(errors, axis=0), "known": ops.sum(weight, axis=0)}

    def _score(self, sums: dict[str, Any]) -> Any:
        return ratio(sums["errors"], sums["known"])


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedRMSE(_ValueMetric):
    """Root of the mean squared difference of prediction and known label, averaged over tasks.

    `RMSE_j = sqrt(Σ_i known_ij (p_ij - y_ij)² / Σ_i known_ij)`

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks). The result is a
    scalar; `per_task()` gives (tasks,).

    Missing cells have no influence. A task with no known label is undefined: NaN by task, left
    out of the mean; NaN if no task is defined. A NaN prediction or an infinite label in a known
    cell makes the result NaN (see `MaskedMetric`).

    Raises:
        ValueError: y_true and y_pred are not both (batch, tasks).
    """

    def __init__(
        self,
        missing: float | None = None,
        average: str = "macro",
        name: str = "rmse",
        dtype: Any = None,
    ) -> None:
        super().__init__(average, missing, name, dtype)

    def _layout(self) -> dict[str, tuple[int, ...]]:
        return {"squares": (), "known": ()}

    def _batch_sums(self, y_true: Any, y_pred: Any, weight: Any) -> dict[str, Any]:
        squares = ops.square(y_pred - y_true) * weight
        return {"squares": ops.sum(squares, axis=0), "known": ops.sum(weight, axis=0)}

    def _score(self, sums: dict[str, Any]) -> Any:
        return ops.sqrt(ratio(sums["squares"], sums["known"]))


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedR2(_ValueMetric):
    """Share of the variance of the known labels that is explained, averaged over tasks.

    `R2_j = 1 - Σ_i known_ij (y_ij - p_ij)² / Σ_i known_ij (y_ij - mean_j)²`

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks). The result is a
    scalar; `per_task()` gives (tasks,).

    Missing cells have no influence. A task whose known labels do not differ (by more than a
    millionth of their size: sums of squares tell no more) is undefined: NaN by task, left out of
    the mean; NaN if no task is defined. A NaN prediction or an infinite label in a known cell
    makes the result NaN (see `MaskedMetric`).

    Raises:
        ValueError: y_true and y_pred are not both (batch, tasks).
    """

    def __init__(
        self,
        missing: float | None = None,
        average: str = "macro",
        name: str = "r2",
        dtype: Any = None,
    ) -> None:
        super().__init__(average, missing, name, dtype)

    def _layout(self) -> dict[str, tuple[int, ...]]:
        return {"residuals": (), "labels": (), "squares": (), "known": ()}

    def _batch_sums(self, y_true: Any, y_pred: Any, weight: Any) -> dict[str, Any]:
        return {
            "residuals": ops.sum(ops.square(y_true - y_pred) * weight, axis=0),
            "labels": ops.sum(y_true * weight, axis=0),
            "squares": ops.sum(ops.square(y_true) * weight, axis=0),
            "known": ops.sum(weight, axis=0),
        }

    def _score(self, sums: dict[str, Any]) -> Any:
        mean_part = ratio(ops.square(sums["labels"]), sums["known"])
        total = sums["squares"] - mean_part
        total = ops.where(total > 1e-12 * sums["squares"], total, ops.zeros_like(total))
        return 1.0 - ratio(sums["residuals"], total)
