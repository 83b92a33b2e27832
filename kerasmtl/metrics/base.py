"""What all masked metrics share: which cells count, the sums by task, and the mean over tasks.

A metric is a set of sums over known cells, one row a task, and a formula from sums to a score.
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

AVERAGES = ("macro", "micro", "none")
# float32 counts stop growing at 2^24 = 16,777,216 cells; float64 counts are exact up to 2^53.
SUM = "float64"
NAN = float("nan")


def ratio(numerator: Any, denominator: Any) -> Any:
    """`numerator / denominator`, NaN where the denominator is 0 or less."""
    some = denominator > 0
    quotient = numerator / fill_missing(denominator, some, 1.0)
    return fill_missing(quotient, some, NAN)


class MaskedMetric(keras.metrics.Metric):
    """Sums by task over known cells, made at the first update, when the tasks are counted.

    A subclass says which sums it keeps (`_layout`), what a batch adds to them (`_batch_sums`), the
    score they make (`_score`) and which cells cannot be scored (`_sound`).

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks); sample_weight
    (batch,), 0 = the row is not there.

    Missing cells have no influence, bit for bit. A task whose known cells do not define the score
    is NaN in `per_task()` and left out of the mean; NaN if none is defined. A cell that is known
    and cannot be scored (a NaN prediction, a label or probability outside [0, 1], an infinite
    label, a negative or non-finite weight) makes the whole result NaN: it is never passed over.

    State: float64 under any policy, so that counts are exact up to 2^53 cells.

    Args:
        average: "macro", the mean over the defined tasks; "micro", all known cells as one task;
            "none", the result has shape (tasks,), which the logs of `fit` cannot show.
        missing: one more code for missing besides NaN.
        name, dtype: as in `keras.metrics.Metric`; the result is float64 if that is asked for,
            else float32.

    Raises:
        ValueError: y_true and y_pred are not both (batch, tasks), their number of tasks is not
            that of the first batch, sample_weight is not (batch,), `missing` is no code, or an
            unknown average.
        tf.errors.InvalidArgumentError: shapes that differ, where only a running graph knows them.
    """

    CELL = "float32"  # in which labels and predictions are compared
    BINARY = False  # whether labels lie in [0, 1]
    NEUTRAL = 0.0  # stands for the prediction where nothing is counted

    def __init__(
        self,
        average: str = "macro",
        missing: float | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        if average not in AVERAGES:
            raise ValueError(
                f"`average` is unknown. Expected one of {AVERAGES}. Received: {average!r}"
            )
        self.average = average
        self.missing = check_missing(missing, binary=self.BINARY)
        self.num_tasks: int | None = None

    def _layout(self) -> dict[str, tuple[int, ...]]:
        """The sums by name, and the shape of each for one task."""
        raise NotImplementedError

    def _batch_sums(self, y_true: Any, y_pred: Any, weight: Any) -> dict[str, Any]:
        """What a batch adds: cells (batch, tasks), `weight` float64 and 0 where none counts."""
        raise NotImplementedError

    def _score(self, sums: dict[str, Any]) -> Any:
        """Sums with the tasks in front to scores (tasks,), NaN where undefined."""
        raise NotImplementedError

    def _sound(self, y_true: Any, y_pred: Any) -> Any:
        """True where a known cell can be scored."""
        return ops.logical_not(ops.isnan(y_pred))

    def _cells(self, y_true: Any, y_pred: Any) -> tuple[Any, Any]:
        """Labels and predictions as (batch, tasks)."""
        return match_shapes(y_true, y_pred)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch: y_true (batch, tasks), NaN = missing; y_pred alike; weights (batch,)."""
        y_true, y_pred = self._cells(
            ops.convert_to_tensor(y_true, dtype=self.CELL),
            ops.convert_to_tensor(y_pred, dtype=self.CELL),
        )
        self._build_for(y_pred.shape[-1])
        known = is_known(y_true, self.missing)
        sound = self._sound(y_true, y_pred)
        weight = ops.ones((1, 1), dtype=SUM)
        if sample_weight is not None:
            rows = ops.convert_to_tensor(sample_weight, dtype=SUM)
            check_row_weights(rows)
            weight = ops.reshape(rows, (-1, 1))
            known = ops.logical_and(known, weight != 0)
            sound = ops.logical_and(sound, ops.logical_and(weight >= 0, ops.isfinite(weight)))
        counts = ops.logical_and(known, sound)
        sums = self._batch_sums(
            fill_missing(y_true, counts, 0.0),
            fill_missing(y_pred, counts, self.NEUTRAL),
            ops.where(counts, weight, ops.zeros_like(weight)),
        )
        faulty = ops.logical_and(known, ops.logical_not(sound))
        sums["faulty"] = ops.sum(ops.cast(faulty, SUM), axis=0)
        for name, value in sums.items():
            getattr(self, name).assign_add(value)

    def _build_for(self, num_tasks: int | None) -> None:
        if num_tasks is None:
            raise ValueError(
                "`y_pred` does not say how many tasks there are. Expected a known last dimension. "
                "Received: None"
            )
        if self.num_tasks is None:
            self.num_tasks = num_tasks
            for name, shape in {**self._layout(), "faulty": ()}.items():
                variable = self.add_variable((num_tasks, *shape), "zeros", dtype=SUM, name=name)
                setattr(self, name, variable)
        elif self.num_tasks != num_tasks:
            raise ValueError(
                f"`y_pred` has another number of tasks than the first batch of {self.name!r}. "
                f"Expected {self.num_tasks}. Received: {num_tasks}. Use a metric for each output."
            )

    def _read(self) -> dict[str, Any]:
        return {
            name: ops.convert_to_tensor(getattr(self, name)) for name in (*self._layout(), "faulty")
        }

    def _values(self, sums: dict[str, Any]) -> Any:
        return fill_missing(self._score(sums), sums["faulty"] == 0, NAN)

    def result(self) -> Any:
        """The score averaged as `average` says; NaN where it is defined for no task."""
        dtype = "float64" if self.dtype == "float64" else "float32"
        if self.num_tasks is None:
            return ops.convert_to_tensor(NAN, dtype=dtype)
        sums = self._read()
        if self.average == "none":
            return ops.cast(self._values(sums), dtype)
        if self.average == "micro":
            sums = {name: ops.sum(value, axis=0, keepdims=True) for name, value in sums.items()}
        values = self._score(sums)
        defined = ops.logical_not(ops.isnan(values))
        mean = ratio(ops.sum(fill_missing(values, defined, 0.0)), ops.sum(ops.cast(defined, SUM)))
        return ops.cast(fill_missing(mean, ops.all(sums["faulty"] == 0), NAN), dtype)

    def per_task(self) -> np.ndarray:
        """The score of each task, float64 (tasks,), NaN where it is undefined.

        Raises:
            ValueError: there was no batch yet, and so no task.
        """
        if self.num_tasks is None:
            raise ValueError(f"{self.name!r} has no scores by task yet. Call update_state first.")
        return ops.convert_to_numpy(self._values(self._read()))

    def defined(self) -> int:
        """For how many tasks the score is defined: over these the macro average goes."""
        return 0 if self.num_tasks is None else int(np.sum(~np.isnan(self.per_task())))

    def merge_state(self, metrics: Iterable[MaskedMetric]) -> None:
        """Add the sums of other metrics of the same kind and settings, as of other data.

        Raises:
            ValueError: a metric of another kind, of other settings or of other tasks.
        """
        for other in metrics:
            if type(other) is not type(self) or other._settings() != self._settings():
                raise ValueError(
                    f"`metrics` has one that does not fit {self.name!r}. Expected a "
                    f"{type(self).__name__} with {self._settings()}. Received: {other!r}"
                )
            if other.num_tasks is not None:
                self._build_for(other.num_tasks)
                for name, value in other._read().items():
                    getattr(self, name).assign_add(value)

    def _settings(self) -> dict[str, Any]:
        unlike = ("name", "dtype", "average")
        return {key: value for key, value in self.get_config().items() if key not in unlike}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "average": self.average, "missing": self.missing}


class BinaryMetric(MaskedMetric):
    """A masked metric of labels in [0, 1] and probabilities or logits."""

    BINARY = True

    def __init__(
        self,
        average: str = "macro",
        from_logits: bool = False,
        missing: float | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(average=average, missing=missing, name=name, dtype=dtype)
        self.from_logits = from_logits

    def _sound(self, y_true: Any, y_pred: Any) -> Any:
        label = ops.logical_and(y_true >= 0, y_true <= 1)
        if self.from_logits:
            return ops.logical_and(label, super()._sound(y_true, y_pred))
        # Comparisons with NaN are false.
        return ops.logical_and(label, ops.logical_and(y_pred >= 0, y_pred <= 1))

    def _probability(self, y_pred: Any) -> Any:
        return ops.sigmoid(y_pred) if self.from_logits else y_pred

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "from_logits": self.from_logits}
