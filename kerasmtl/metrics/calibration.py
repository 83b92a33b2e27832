"""Scores of the probabilities themselves: how far they are from what happens."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kerasmtl.metrics.base import SUM, BinaryMetric, ratio
from kerasmtl.utils.validation import check_count


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedBrier(BinaryMetric):
    """Compute the mean squared difference of probability and known label, averaged over tasks.

    `brier_j = Σ_i known_ij (p_ij - y_ij)² / Σ_i known_ij`

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks), probabilities, or
    logits with `from_logits=True`. The result is a scalar; `per_task()` returns (tasks,).

    A task without known labels is undefined, see `MaskedMetric`.

    Args:
        from_logits: whether predictions are logits rather than probabilities.
        missing, average, name, dtype: as in `MaskedMetric`.

    Raises:
        ValueError: as in `MaskedMetric`.

    Source: Brier 1950, https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> metric = kt.metrics.MaskedBrier()
        >>> metric.update_state(np.array([[1], [0], [np.nan]]), np.array([[0.5], [0], [1]]))
        >>> float(metric.result())
        0.125
    """

    def __init__(self, from_logits: bool = False, name: str = "brier", **kwargs: Any) -> None:
        super().__init__(from_logits, name=name, **kwargs)

    def _value(self, y_true: Any, y_pred: Any) -> Any:
        return ops.square(ops.cast(self._probability(y_pred), SUM) - ops.cast(y_true, SUM))


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedECE(BinaryMetric):
    """Compute the expected calibration error over known labels, averaged over tasks.

    `ECE_j = Σ_b |Σ_(i in b) known_ij (y_ij - p_ij)| / Σ_i known_ij`, which is the mean over bins b
    of |share of positives - mean probability|, weighted by their known labels. The bins
    `[k / num_bins, (k + 1) / num_bins)` have equal width, and 1 is in the last one.

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks), probabilities, or
    logits with `from_logits=True`. The result is a scalar; `per_task()` returns (tasks,).

    A task without known labels is undefined, see `MaskedMetric`.

    Args:
        num_bins: 1 or more.
        from_logits: whether predictions are logits rather than probabilities.
        missing, average, name, dtype: as in `MaskedMetric`.

    Raises:
        ValueError: as in `MaskedMetric`, or no bin.

    Source: Naeini, Cooper and Hauskrecht 2015, https://doi.org/10.1609/aaai.v29i1.9602.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> metric = kt.metrics.MaskedECE(num_bins=2)
        >>> y = np.array([[1], [1], [0], [np.nan]])
        >>> metric.update_state(y, np.array([[0.75], [0.75], [0.25], [0.9]]))
        >>> float(metric.result())  # |2 - 1.5| / 3 + |0 - 0.25| / 3
        0.25
    """

    SETTINGS = ("num_bins",)

    def __init__(self, num_bins: int = 15, name: str = "ece", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.num_bins = check_count("num_bins", num_bins)

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"differences": (self.num_bins,), "known": ()}

    def _batch_sums(self, y_true: Any, y_pred: Any, weight: Any) -> dict[str, Any]:
        p = self._probability(y_pred)
        bins = ops.minimum(ops.cast(p * self.num_bins, "int32"), self.num_bins - 1)
        difference = (ops.cast(y_true, SUM) - ops.cast(p, SUM)) * weight
        return {
            "differences": self._binned(difference, bins, self.num_bins),
            "known": ops.sum(weight, axis=0),
        }

    def _score(self, sums: dict[str, Any]) -> Any:
        return ratio(ops.sum(ops.abs(sums["differences"]), axis=-1), sums["known"])
