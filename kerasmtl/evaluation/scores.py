"""Exact scores of one task with scikit-learn, on cells from which the missing ones are gone."""

from __future__ import annotations

import numpy as np
from sklearn import metrics

from kerasmtl.evaluation.report import BinaryScores, MulticlassScores, RegressionScores

NAN = float("nan")
ECE_BINS = 15

Threshold = float | np.ndarray


def binary_scores(
    y: np.ndarray, p: np.ndarray, threshold: Threshold, recall: float | None = None
) -> BinaryScores:
    """Scores of known labels 0 and 1, shape (cells,), and their probabilities, shape (cells,).

    `threshold`: from which probability on the answer is 1; one, or one per cell.

    AUC needs both classes, average precision, F1 and precision at recall a positive, the others a
    label: NaN without.
    """
    y = y == 1
    decided = decided_at(threshold, p)
    both, some = 0 < y.sum() < len(y), len(y) > 0
    error = p.astype("float64") - y
    return BinaryScores(
        known=len(y),
        positive=int(y.sum()),
        auc=float(metrics.roc_auc_score(y, p)) if both else NAN,
        average_precision=float(metrics.average_precision_score(y, p)) if y.any() else NAN,
        accuracy=float((decided == y).mean()) if some else NAN,
        f1=float(metrics.f1_score(y, decided)) if y.any() else NAN,
        brier=float((error**2).mean()) if some else NAN,
        ece=_calibration_error(error, calibration_bins(p)) if some else NAN,
        precision_at_recall=_precision_at(recall, y, p) if recall and y.any() else NAN,
    )


def decided_at(threshold: Threshold, p: np.ndarray) -> np.ndarray:
    """Which probabilities count as 1, p >= threshold, as everywhere; in the precision of p."""
    return p >= np.asarray(threshold, p.dtype)


def _precision_at(wanted: float, y: np.ndarray, p: np.ndarray) -> float:
    precision, recall, _ = metrics.precision_recall_curve(y, p)
    return float(precision[recall >= wanted].max())


def calibration_bins(p: np.ndarray) -> np.ndarray:
    """The bin of a probability, shape (cells,) int: of equal width, and 1 is in the last one."""
    return np.minimum((p * p.dtype.type(ECE_BINS)).astype(int), ECE_BINS - 1)


def _calibration_error(error: np.ndarray, bins: np.ndarray) -> float:
    """Σ_b |Σ_(i in b) (p_i - y_i)| / n."""
    return float(np.abs(np.bincount(bins, error, ECE_BINS)).sum() / len(error))


def multiclass_scores(y: np.ndarray, p: np.ndarray) -> MulticlassScores:
    """Scores of known classes, shape (cells,), and their probabilities, shape (cells, classes).

    AUC is the mean over the classes, each against the rest, of which some but not all known labels
    are; NaN if there is none.
    """
    y = y.astype(int)
    seen = [label for label in range(p.shape[1]) if 0 < (y == label).sum() < len(y)]
    aucs = [metrics.roc_auc_score(y == label, p[:, label]) for label in seen]
    p = normalised(p)
    return MulticlassScores(
        known=len(y),
        classes=len(np.unique(y)),
        accuracy=float((p.argmax(axis=1) == y).mean()) if len(y) else NAN,
        auc=float(np.mean(aucs)) if aucs else NAN,
        log_loss=float(metrics.log_loss(y, p, labels=range(p.shape[1]))) if len(y) else NAN,
    )


def normalised(p: np.ndarray) -> np.ndarray:
    """Probabilities as float64 that sum to 1 more closely than float32 can."""
    p = p.astype("float64")
    return p / p.sum(axis=1, keepdims=True)


def regression_scores(y: np.ndarray, p: np.ndarray) -> RegressionScores:
    """Scores of known numbers, shape (cells,), and the predicted ones, shape (cells,).

    R2 needs two labels that differ: NaN without.
    """
    y, p = y.astype("float64"), p.astype("float64")
    some, differ = len(y) > 0, len(np.unique(y)) > 1
    return RegressionScores(
        known=len(y),
        mae=float(metrics.mean_absolute_error(y, p)) if some else NAN,
        rmse=float(metrics.root_mean_squared_error(y, p)) if some else NAN,
        r2=float(metrics.r2_score(y, p)) if differ else NAN,
    )
