"""Constants of a loss, counted on the known labels of the training data."""

from __future__ import annotations

from typing import Any

import numpy as np

from kerasmtl.masking import check_missing, is_known
from kerasmtl.utils.validation import check_number


def pos_weight(labels: Any, missing: float | None = None, limit: float = 100.0) -> np.ndarray:
    """Compute weights of label 1 per task, for `MaskedBinaryCrossentropy(pos_weight=…)`.

    `c_j = n0_j / n1_j`, the known labels 0 and 1 of task j, clipped to [1/limit, limit]; labels
    between 0 and 1 count in parts.

    Args:
        labels: (rows, tasks) in [0, 1], NaN or `missing` = missing.
        missing: one more code for missing.
        limit: bound of the weights, 1 or more.

    Returns:
        (tasks,) float64; 1 for a task of which fewer than two classes are known.

    Raises:
        ValueError: labels that are not (rows, tasks) or outside [0, 1], or a limit below 1.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> labels = np.array([[1, 0], [0, np.nan], [0, 1], [0, np.nan]])
        >>> kt.losses.pos_weight(labels)
        array([3., 1.])
    """
    limit = check_number("limit", limit, 1.0)
    labels, known = _filled(labels, missing, binary=True)
    invalid = np.argwhere((labels < 0) | (labels > 1))
    if len(invalid):
        row, task = invalid[0]
        raise ValueError(
            f"`labels` must be from 0 to 1, got {labels[row, task]} in row {row}, task {task}"
        )
    ones = labels.sum(0)
    zeros = known.sum(0) - ones
    both = (ones > 0) & (zeros > 0)
    ratio = np.divide(zeros, ones, out=np.ones_like(ones), where=both)
    return np.clip(ratio, 1.0 / limit, limit)


def mean_known(labels: Any, missing: float | None = None) -> float:
    """Compute the mean number of known labels per row, for `normalization=…` of a loss.

    `(1/m) Σ_i Σ_j known_ij`. A sum over known labels divided by it is as large as a mean, and does
    not depend on the batch.

    Args:
        labels: (rows, tasks), NaN or `missing` = missing.
        missing: one more code for missing.

    Raises:
        ValueError: labels that are not (rows, tasks), or none is known.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> kt.losses.mean_known(np.array([[1, 0], [0, np.nan]]))
        1.5
    """
    _, known = _filled(labels, missing)
    if not known.any():
        raise ValueError("`labels` must have a known label, got none")
    return float(known.sum(1).mean())


def inverse_known_count(labels: Any, missing: float | None = None) -> np.ndarray:
    """Compute weights by which all tasks count alike, for `task_weights=…`: `v_j ∝ 1 / n_j`.

    n_j is the number of known labels of task j; the weights of the tasks that have one average 1.

    Args:
        labels: (rows, tasks), NaN or `missing` = missing.
        missing: one more code for missing.

    Returns:
        (tasks,) float64; 0 for a task without known labels.

    Raises:
        ValueError: labels that are not (rows, tasks), or none is known.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> labels = np.array([[1, 0], [0, np.nan], [0, np.nan]])  # 3 and 1 known
        >>> kt.losses.inverse_known_count(labels)
        array([0.5, 1.5])
    """
    _, known = _filled(labels, missing)
    return _inverse(known.sum(0).astype("float64"))


def effective_number(labels: Any, beta: float = 0.999, missing: float | None = None) -> np.ndarray:
    """Compute weights from effective numbers of labels: `v_j ∝ (1 - β) / (1 - β^n_j)`.

    For `task_weights=…`; between equal weights (β = 0) and `inverse_known_count` (β → 1). The
    weights of the tasks that have a known label average 1 (https://arxiv.org/abs/1901.05555).

    Args:
        labels: (rows, tasks), NaN or `missing` = missing.
        beta: β, at least 0 and below 1.
        missing: one more code for missing.

    Returns:
        (tasks,) float64; 0 for a task without known labels.

    Raises:
        ValueError: labels that are not (rows, tasks), none is known, or β out of range.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> labels = np.array([[1, 0], [0, np.nan], [0, np.nan]])  # 3 and 1 known
        >>> kt.losses.effective_number(labels, beta=0.5).round(4)
        array([0.7273, 1.2727])
    """
    beta = check_number("beta", beta, 0.0, 1.0, open_high=True)
    _, known = _filled(labels, missing)
    return _inverse((1.0 - beta ** known.sum(0).astype("float64")) / (1.0 - beta))


def _filled(
    labels: Any, missing: float | None, binary: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels, 0 where missing, and which are known."""
    labels = np.asarray(labels, dtype="float64")
    if labels.ndim != 2:
        raise ValueError(f"`labels` must have shape (rows, tasks), got {labels.shape}")
    known = is_known(labels, check_missing(missing, binary))
    return np.where(known, labels, 0.0), known


def _inverse(amounts: np.ndarray) -> np.ndarray:
    """Return weights in proportion to 1 / amounts, 0 for 0, averaging 1 over the others."""
    some = amounts > 0
    if not some.any():
        raise ValueError("`labels` must have a known label, got none")
    weights = np.divide(1.0, amounts, out=np.zeros_like(amounts), where=some)
    return weights * some.sum() / weights.sum()
