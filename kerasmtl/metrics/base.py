"""What all masked metrics share: which labels count, sums per task, and the mean over tasks.

A metric is a set of sums over known labels, one row per task, and a formula from sums to a score.
Sums add up, so neither order, nor batches, nor replicas matter, and their size is that of the
tasks, not that of the data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasmtl.masking import (
    check_missing,
    check_row_weights,
    fill_missing,
    is_known,
    match_shapes,
)
from kerasmtl.utils.validation import check_choice

AVERAGES = ("macro", "micro", "none")
# float32 counts stop growing at 2^24 = 16,777,216 labels; float64 counts are exact up to 2^53.
SUM = "float64"
NAN = float("nan")


def ratio(numerator: Any, denominator: Any) -> Any:
    """Return `numerator / denominator`, NaN where the denominator is 0 or less."""
    positive = denominator > 0
    quotient = numerator / fill_missing(denominator, positive, 1.0)
    return fill_missing(quotient, positive, NAN)


class MaskedMetric(keras.metrics.Metric):
    """Base of the metrics: sums per task over known labels, created at the first update.

    A subclass defines the value that is averaged over known labels (`_value`), or else which sums
    it keeps (`_state_shapes`), what a batch adds to them (`_batch_sums`) and the score that they
    make (`_score`); and it may change which labels and predictions are valid (`_is_valid`).

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks); sample_weight
    (batch,), 0 = as if the row did not exist. `result()` is a scalar, `per_task()` (tasks,).

    Missing labels have no influence, bit for bit. A task whose known labels do not define the score
    is NaN in `per_task()` and left out of the mean; the mean is NaN if no task is defined. A known
    label that cannot be scored (a NaN prediction, a label or probability outside [0, 1], an
    infinite label, a negative or non-finite weight) makes the whole result NaN: it is never
    skipped.

    State is float64 under any policy, so that counts are exact up to 2^53 labels.

    Args:
        average: "macro", the mean over the defined tasks; "micro", all known labels as those of one
            task; "none", one score per task, which the logs of `fit` cannot show.
        missing: one more code for missing besides NaN.
        name, dtype: as in `keras.metrics.Metric`; the result is float64 if that is asked for,
            else float32.

    Raises:
        ValueError: y_true and y_pred are not both (batch, tasks), their number of tasks is not
            that of the first batch, sample_weight is not (batch,), or an invalid argument.
        tf.errors.InvalidArgumentError: shapes that differ, where only a running graph knows them.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> class Prevalence(kt.metrics.MaskedMetric):
        ...     def _value(self, y_true, y_pred):
        ...         return y_true
        >>> metric = Prevalence()
        >>> metric.update_state(np.array([[1, 0], [np.nan, 1]]), np.zeros((2, 2)))
        >>> metric.per_task()
        array([1. , 0.5])
    """

    SETTINGS: tuple[str, ...] = ()  # further arguments of a subclass, which are attributes, too
    COMPARED_IN = "float32"  # dtype of labels and predictions
    BINARY = False  # whether labels lie in [0, 1]
    NEUTRAL = 0.0  # replaces the prediction where nothing counts

    def __init__(
        self,
        average: str = "macro",
        missing: float | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.average = check_choice("average", average, AVERAGES)
        self.missing = check_missing(missing, binary=self.BINARY)
        self.num_tasks: int | None = None

    def _value(self, y_true: Any, y_pred: Any) -> Any:
        """Return what is averaged over the known labels, (batch, tasks)."""
        raise NotImplementedError

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the names of the sums, and the shape of each for one task."""
        return {"total": (), "known": ()}

    def _batch_sums(self, y_true: Any, y_pred: Any, weight: Any) -> dict[str, Any]:
        """Return what a batch adds to each sum, (tasks, *shape).

        Args:
            y_true, y_pred: (batch, tasks), neutral where nothing counts.
            weight: (batch, tasks) float64, 0 where nothing counts.
        """
        values = ops.cast(self._value(y_true, y_pred), SUM)
        return {"total": ops.sum(values * weight, axis=0), "known": ops.sum(weight, axis=0)}

    def _score(self, sums: dict[str, Any]) -> Any:
        """Return the scores (tasks,) that sums (tasks, …) make, NaN where undefined."""
        return ratio(sums["total"], sums["known"])

    def _is_valid(self, y_true: Any, y_pred: Any) -> Any:
        """Return True where a known label can be scored."""
        return ops.logical_not(ops.isnan(y_pred))

    def _aligned(self, y_true: Any, y_pred: Any) -> tuple[Any, Any]:
        """Return labels and predictions as (batch, tasks)."""
        return match_shapes(y_true, y_pred)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch.

        Args:
            y_true: (batch, tasks), NaN = missing.
            y_pred: (batch, tasks).
            sample_weight: (batch,), 0 or more.
        """
        y_true, y_pred = self._aligned(
            ops.convert_to_tensor(y_true, dtype=self.COMPARED_IN),
            ops.convert_to_tensor(y_pred, dtype=self.COMPARED_IN),
        )
        self._build_for(y_pred.shape[-1])
        known = is_known(y_true, self.missing)
        valid = self._is_valid(y_true, y_pred)
        weight = ops.ones((1, 1), dtype=SUM)
        if sample_weight is not None:
            rows = ops.convert_to_tensor(sample_weight, dtype=SUM)
            check_row_weights(rows)
            weight = ops.reshape(rows, (-1, 1))
            known = ops.logical_and(known, weight != 0)
            valid = ops.logical_and(valid, ops.logical_and(weight >= 0, ops.isfinite(weight)))
        counts = ops.logical_and(known, valid)
        sums = self._batch_sums(
            fill_missing(y_true, counts, 0.0),
            fill_missing(y_pred, counts, self.NEUTRAL),
            ops.where(counts, weight, ops.zeros_like(weight)),
        )
        invalid = ops.logical_and(known, ops.logical_not(valid))
        sums["invalid"] = ops.sum(ops.cast(invalid, SUM), axis=0)
        for name, value in sums.items():
            getattr(self, name).assign_add(value)

    def _build_for(self, num_tasks: int | None) -> None:
        if num_tasks is None:
            raise ValueError("`y_pred` must have a known last dimension, the tasks, got None")
        if self.num_tasks is None:
            self.num_tasks = num_tasks
            for name, shape in {**self._state_shapes(), "invalid": ()}.items():
                variable = self.add_variable((num_tasks, *shape), "zeros", dtype=SUM, name=name)
                setattr(self, name, variable)
        elif self.num_tasks != num_tasks:
            raise ValueError(
                f"`y_pred` must have the {self.num_tasks} tasks of the first batch of "
                f"{self.name!r}, got {num_tasks}. Use one metric per output."
            )

    def _sums(self) -> dict[str, Any]:
        names = (*self._state_shapes(), "invalid")
        return {name: ops.convert_to_tensor(getattr(self, name)) for name in names}

    def _scores(self, sums: dict[str, Any]) -> Any:
        return fill_missing(self._score(sums), sums["invalid"] == 0, NAN)

    def result(self) -> Any:
        """Return the score averaged as `average` says; NaN where it is defined for no task."""
        dtype = "float64" if self.dtype == "float64" else "float32"
        if self.num_tasks is None:
            return ops.convert_to_tensor(NAN, dtype=dtype)
        sums = self._sums()
        if self.average == "none":
            return ops.cast(self._scores(sums), dtype)
        if self.average == "micro":
            sums = {name: ops.sum(value, axis=0, keepdims=True) for name, value in sums.items()}
        scores = self._score(sums)
        defined = ops.logical_not(ops.isnan(scores))
        mean = ratio(ops.sum(fill_missing(scores, defined, 0.0)), ops.sum(ops.cast(defined, SUM)))
        return ops.cast(fill_missing(mean, ops.all(sums["invalid"] == 0), NAN), dtype)

    def per_task(self) -> np.ndarray:
        """Return the score of each task, float64 (tasks,), NaN where it is undefined.

        Raises:
            ValueError: there was no batch yet, so that the number of tasks is unknown.
        """
        if self.num_tasks is None:
            raise ValueError(f"{self.name!r} has no scores per task yet. Call update_state first.")
        return ops.convert_to_numpy(self._scores(self._sums()))

    def defined(self) -> int:
        """Return for how many tasks the score is defined: those that "macro" averages."""
        return 0 if self.num_tasks is None else int(np.sum(~np.isnan(self.per_task())))

    def merge_state(self, metrics: Iterable[MaskedMetric]) -> None:
        """Add the sums of other metrics of the same class and settings, as of other data.

        Raises:
            ValueError: a metric of another class, of other settings or of other tasks.
        """
        for other in metrics:
            if type(other) is not type(self) or other._settings() != self._settings():
                raise ValueError(
                    f"`metrics` must be of class {type(self).__name__} with {self._settings()}, "
                    f"got {other!r}"
                )
            if other.num_tasks is not None:
                self._build_for(other.num_tasks)
                for name, value in other._sums().items():
                    getattr(self, name).assign_add(value)

    def _settings(self) -> dict[str, Any]:
        free = ("name", "dtype", "average")
        return {key: value for key, value in self.get_config().items() if key not in free}

    def get_config(self) -> dict[str, Any]:
        names = ("average", "missing", *self.SETTINGS)
        return super().get_config() | {name: getattr(self, name) for name in names}


class BinaryMetric(MaskedMetric):
    """Base of the metrics of labels in [0, 1] and probabilities or logits."""

    BINARY = True

    def __init__(self, from_logits: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.from_logits = from_logits

    def _is_valid(self, y_true: Any, y_pred: Any) -> Any:
        label = ops.logical_and(y_true >= 0, y_true <= 1)
        if self.from_logits:
            return ops.logical_and(label, super()._is_valid(y_true, y_pred))
        # Comparisons with NaN are False.
        return ops.logical_and(label, ops.logical_and(y_pred >= 0, y_pred <= 1))

    def _probability(self, y_pred: Any) -> Any:
        return ops.sigmoid(y_pred) if self.from_logits else y_pred

    def _binned(self, values: Any, bins: Any, num_bins: int) -> Any:
        """Return the sums of values (batch, tasks) by task and bin, (tasks, num_bins)."""
        cells = ops.reshape(bins + ops.arange(self.num_tasks) * num_bins, (-1,))
        sums = ops.segment_sum(ops.reshape(values, (-1,)), cells, self.num_tasks * num_bins)
        return ops.reshape(sums, (self.num_tasks, num_bins))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "from_logits": self.from_logits}
