"""Constants of a loss, counted on the known labels of the training data."""

from __future__ import annotations

from typing import Any

import numpy as np

from kerasmtl.masking import check_missing, is_known


def pos_weight(labels: Any, missing: float | None = None, limit: float = 100.0) -> np.ndarray:
    """Weights of label 1 by task, for `MaskedBinaryCrossentropy(pos_weight=…)`.

    `n0_j / n1_j`, of the known labels of task j, clipped to [1/limit, limit]; soft labels count in
    parts.

    Shapes: labels (rows, tasks), NaN or `missing` = missing; returns (tasks,). A task of which only
    one class is known, or none, gets 1.

    Raises:
        ValueError: labels that are not (rows, tasks) or lie outside [0, 1], or a limit below 1.
    """
    if not limit >= 1.0:
        raise ValueError(f"`limit` is too small. Expected at least 1. Received: {limit!r}")
    labels, known = _known(labels, missing, binary=True)
    if ((labels < 0) | (labels > 1)).any():
        row, task = np.argwhere((labels < 0) | (labels > 1))[0]
        raise ValueError(
            "`labels` are not binary. Expected numbers in [0, 1]. "
            f"Received: {labels[row, task]} in row {row}, task {task}"
        )
    ones = labels.sum(0)
    zeros = known.sum(0) - ones
    both = (ones > 0) & (zeros > 0)
    ratio = np.divide(zeros, ones, out=np.ones_like(ones), where=both)
    return np.clip(ratio, 1.0 / limit, limit)


def mean_known(labels: Any, missing: float | None = None) -> float:
    """How many labels of a row are known, on average: for `normalization=…` of a loss.

    `(1/m) Σ_i Σ_j known_ij`. A sum over known labels divided by it is as large as a mean, and does
    not depend on the batch.

    Shapes: labels (rows, tasks), NaN or `missing` = missing.

    Raises:
        ValueError: labels that are not (rows, tasks), or no known label at all.
    """
    _, known = _known(labels, missing)
    if not known.any():
        raise ValueError("`labels` has no known label. Expected at least one.")
    return float(known.sum(1).mean())


def inverse_known_count(labels: Any, missing: float | None = None) -> np.ndarray:
    """Weights by which every task counts alike, for `task_weights=…`: `w_j ∝ 1 / n_j`.

    n_j is the number of known labels of task j; the weights of the tasks that have one average 1.

    Shapes: labels (rows, tasks), NaN or `missing` = missing; returns (tasks,). A task with no known
    label gets 0.

    Raises:
        ValueError: labels that are not (rows, tasks), or no known label at all.
    """
    _, known = _known(labels, missing)
    return _averaging_one(known.sum(0).astype("float64"))


def effective_number(labels: Any, beta: float = 0.999, missing: float | None = None) -> np.ndarray:
    """Weights by the effective number of labels, for `task_weights=…`: `w_j ∝ (1-β) / (1-β^n_j)`.

    Between equal weights (β = 0) and `inverse_known_count` (β → 1); the weights of the tasks that
    have a known label average 1 (https://arxiv.org/abs/1901.05555).

    Shapes: labels (rows, tasks), NaN or `missing` = missing; returns (tasks,). A task with no known
    label gets 0.

    Raises:
        ValueError: labels that are not (rows, tasks), no known label at all, or β outside [0, 1).
    """
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"`beta` is out of range. Expected 0 <= beta < 1. Received: {beta!r}")
    _, known = _known(labels, missing)
    return _averaging_one((1.0 - beta ** known.sum(0).astype("float64")) / (1.0 - beta))


def _known(
    labels: Any, missing: float | None, binary: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Labels, 0 where missing, and where they are known."""
    labels = np.asarray(labels, dtype="float64")
    if labels.ndim != 2:
        raise ValueError(
            f"`labels` are no table. Expected shape (rows, tasks). Received: {labels.shape}"
        )
    known = is_known(labels, check_missing(missing, binary))
    return np.where(known, labels, 0.0), known


def _averaging_one(amounts: np.ndarray) -> np.ndarray:
    has = amounts > 0
    if not has.any():
        raise ValueError("`labels` has no known label. Expected at least one.")
    weights = np.divide(1.0, amounts, out=np.zeros_like(amounts), where=has)
    return weights * has.sum() / weights.sum()
