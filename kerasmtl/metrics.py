"""Metrics that mask themselves: give them to `compile(metrics=...)`, nothing else is needed."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from kerasmtl.masking import check_row_weights, check_same_shape, fill_missing, is_known


class _MaskedMetric(keras.metrics.Metric):
    """State by task, made at the first update, when the number of tasks is known."""

    def __init__(
        self,
        name: str,
        from_logits: bool = False,
        missing: float | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.from_logits = from_logits
        self.missing = missing
        self.num_tasks: int | None = None

    def _state_shapes(self, num_tasks: int) -> dict[str, tuple[int, ...]]:
        raise NotImplementedError

    def _update(self, y_true: Any, y_pred: Any, weight: Any) -> None:
        raise NotImplementedError

    def _per_task(self) -> Any:
        raise NotImplementedError

    def _build(self, num_tasks: int) -> None:
        self.num_tasks = num_tasks
        for name, shape in self._state_shapes(num_tasks).items():
            setattr(self, name, self.add_variable(shape, initializer="zeros", name=name))

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch: y_true (batch, tasks), NaN = missing; y_pred alike; weights (batch,)."""
        y_true = ops.convert_to_tensor(y_true, dtype=self.dtype)
        y_pred = ops.convert_to_tensor(y_pred, dtype=self.dtype)
        check_same_shape(y_true, y_pred)
        if self.num_tasks is None:
            self._build(y_pred.shape[-1])
        known = is_known(y_true, self.missing)
        weight = ops.cast(known, self.dtype)
        if sample_weight is not None:
            rows = ops.convert_to_tensor(sample_weight, dtype=self.dtype)
            check_row_weights(rows)
            weight = weight * ops.reshape(rows, (-1, 1))
        neutral = 0.0 if self.from_logits else 0.5
        self._update(fill_missing(y_true, known, 0.0), fill_missing(y_pred, known, neutral), weight)

    def result(self) -> Any:
        """Mean over the tasks for which the metric is defined; NaN where it is for none."""
        if self.num_tasks is None:
            return ops.convert_to_tensor(float("nan"), dtype=self.dtype)
        values = self._per_task()
        defined = ops.logical_not(ops.isnan(values))
        total = ops.sum(fill_missing(values, defined, 0.0))
        return total / ops.sum(ops.cast(defined, self.dtype))

    def result_per_task(self) -> np.ndarray:
        """The metric of each task, shape (tasks,), NaN where it is undefined."""
        if self.num_tasks is None:
            raise ValueError("`result_per_task` has nothing to show. Call update_state first.")
        return ops.convert_to_numpy(self._per_task())

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": self.dtype,
            "from_logits": self.from_logits,
            "missing": self.missing,
        }


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedAUC(_MaskedMetric):
    """Area under the ROC curve by task over its known labels, averaged over the defined tasks.

    `AUC_j = P(p_+ > p_-) + P(p_+ = p_-) / 2` for a known positive and a known negative of task j.

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks), probabilities, or
    logits with `from_logits=True`. The result is a scalar; `result_per_task()` gives (tasks,).

    Streaming: predictions are counted in `num_bins` bins of equal width in the logit, from -16 to
    16, and ties within a bin count half. `kerasmtl.evaluate` computes the exact value.

    Missing cells have no influence. A task without a known positive and a known negative is
    undefined: NaN by task, left out of the mean; NaN if no task is defined.

    Raises:
        ValueError: y_true and y_pred are not both (batch, tasks), or fewer than two bins.
    """

    LIMIT = 16.0

    def __init__(
        self,
        num_bins: int = 1024,
        from_logits: bool = False,
        missing: float | None = None,
        name: str = "auc",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, from_logits=from_logits, missing=missing, dtype=dtype)
        if num_bins < 2:
            raise ValueError(f"`num_bins` is too small. Expected at least 2. Received: {num_bins}")
        self.num_bins = num_bins

    def _state_shapes(self, num_tasks: int) -> dict[str, tuple[int, ...]]:
        shape = (num_tasks, self.num_bins)
        return {"positives": shape, "negatives": shape}

    def _update(self, y_true: Any, y_pred: Any, weight: Any) -> None:
        if not self.from_logits:
            p = ops.clip(y_pred, 1e-7, 1.0 - 1e-7)
            y_pred = ops.log(p) - ops.log1p(-p)
        share = ops.clip(y_pred, -self.LIMIT, self.LIMIT) / (2.0 * self.LIMIT) + 0.5
        bins = ops.minimum(ops.cast(share * self.num_bins, "int32"), self.num_bins - 1)
        cells = ops.reshape(bins + ops.arange(self.num_tasks) * self.num_bins, (-1,))
        for state, counted in ((self.positives, y_true), (self.negatives, 1.0 - y_true)):
            counts = ops.segment_sum(
                ops.reshape(counted * weight, (-1,)), cells, self.num_tasks * self.num_bins
            )
            state.assign_add(ops.reshape(counts, (self.num_tasks, self.num_bins)))

    def _per_task(self) -> Any:
        positives, negatives = (
            ops.convert_to_tensor(self.positives),
            ops.convert_to_tensor(self.negatives),
        )
        n_pos, n_neg = ops.sum(positives, axis=-1), ops.sum(negatives, axis=-1)
        # 0/0 makes the NaN of an undefined task.
        negatives = negatives / ops.expand_dims(n_neg, -1)
        below = ops.cumsum(negatives, axis=-1) - 0.5 * negatives
        return ops.sum(positives * below, axis=-1) / n_pos

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_bins": self.num_bins}


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedBinaryAccuracy(_MaskedMetric):
    """Share of the known labels that the thresholded prediction meets, averaged over tasks.

    `accuracy_j = Σ_i known_ij [y_ij = (p_ij > threshold)] / Σ_i known_ij`

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks), probabilities, or
    logits with `from_logits=True` (then compared after a sigmoid). The result is a scalar;
    `result_per_task()` gives (tasks,).

    Missing cells have no influence. A task with no known label is undefined: NaN by task, left
    out of the mean; NaN if no task is defined.

    Raises:
        ValueError: y_true and y_pred are not both (batch, tasks), or a threshold outside (0, 1).
    """

    def __init__(
        self,
        threshold: float = 0.5,
        from_logits: bool = False,
        missing: float | None = None,
        name: str = "binary_accuracy",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, from_logits=from_logits, missing=missing, dtype=dtype)
        if not 0.0 < threshold < 1.0:
            raise ValueError(
                f"`threshold` is no probability. Expected 0 < threshold < 1. Received: {threshold}"
            )
        self.threshold = threshold

    def _state_shapes(self, num_tasks: int) -> dict[str, tuple[int, ...]]:
        return {"correct": (num_tasks,), "known": (num_tasks,)}

    def _update(self, y_true: Any, y_pred: Any, weight: Any) -> None:
        if self.from_logits:
            y_pred = ops.sigmoid(y_pred)
        hit = ops.cast(ops.equal(y_true > 0.5, y_pred > self.threshold), self.dtype)
        self.correct.assign_add(ops.sum(hit * weight, axis=0))
        self.known.assign_add(ops.sum(weight, axis=0))

    def _per_task(self) -> Any:
        return ops.convert_to_tensor(self.correct) / ops.convert_to_tensor(self.known)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "threshold": self.threshold}
