"""Scores of one task on known labels, with scikit-learn."""

from __future__ import annotations

import numpy as np
from sklearn import metrics

from kerasmtl.evaluation.report import BinaryScores, MulticlassScores, RegressionScores, Scores

NAN = float("nan")
ECE_BINS = 15

Threshold = float | np.ndarray


def scores_of(
    kind: str, y: np.ndarray, p: np.ndarray, threshold: Threshold = 0.5, recall: float | None = None
) -> Scores:
    """Return the scores of a task of some kind.

    Args:
        kind: "binary", "multiclass" or "regression".
        y: (n,) known labels.
        p: (n,) predictions, (n, classes) for "multiclass".
        threshold: from which probability on a binary prediction is 1; one number, or (n,).
        recall: for the precision at that recall.
    """
    if kind == "binary":
        return binary_scores(y, p, threshold, recall)
    return multiclass_scores(y, p) if kind == "multiclass" else regression_scores(y, p)


def binary_scores(
    y: np.ndarray, p: np.ndarray, threshold: Threshold, recall: float | None = None
) -> BinaryScores:
    """Return the scores of labels 0 and 1, (n,), and their probabilities, (n,).

    AUC needs both classes, average precision, F1 and precision at recall a positive, the others a
    label; they are NaN otherwise.
    """
    y = y == 1
    decided = decided_at(threshold, p)
    both, some = 0 < y.sum() < len(y), len(y) > 0
    error = p.astype("float64") - y
    f1 = 2 * (decided & y).sum() / (decided.sum() + y.sum()) if y.any() else NAN
    return BinaryScores(
        known=len(y),
        positive=int(y.sum()),
        auc=float(metrics.roc_auc_score(y, p)) if both else NAN,
        average_precision=float(metrics.average_precision_score(y, p)) if y.any() else NAN,
        accuracy=float((decided == y).mean()) if some else NAN,
        f1=float(f1),
        brier=float((error**2).mean()) if some else NAN,
        ece=_calibration_error(error, p) if some else NAN,
        precision_at_recall=_precision_at(recall, y, p) if recall and y.any() else NAN,
    )


def decided_at(threshold: Threshold, p: np.ndarray) -> np.ndarray:
    """Return which probabilities count as 1, p >= threshold, compared in the precision of p."""
    return p >= np.asarray(threshold, p.dtype)


def _precision_at(wanted: float, y: np.ndarray, p: np.ndarray) -> float:
    precision, recall, _ = metrics.precision_recall_curve(y, p)
    return float(precision[recall >= wanted].max())


def _calibration_error(error: np.ndarray, p: np.ndarray) -> float:
    """Return `Σ_b |Σ_(i in b) (p_i - y_i)| / n`, bins of equal width, with 1 in the last one."""
    bins = np.minimum((p * p.dtype.type(ECE_BINS)).astype(int), ECE_BINS - 1)
    return float(np.abs(np.bincount(bins, error, ECE_BINS)).sum() / len(error))


def multiclass_scores(y: np.ndarray, p: np.ndarray) -> MulticlassScores:
    """Return the scores of classes, (n,), and their probabilities, (n, classes).

    AUC is the mean over the classes, each against the rest, that some but not all labels have; NaN
    if there is none.
    """
    y = y.astype(int)
    mixed = [label for label in range(p.shape[1]) if 0 < (y == label).sum() < len(y)]
    aucs = [metrics.roc_auc_score(y == label, p[:, label]) for label in mixed]
    p = p.astype("float64")
    p = p / p.sum(axis=1, keepdims=True)  # to 1 more closely than float32 can
    return MulticlassScores(
        known=len(y),
        classes=len(np.unique(y)),
        accuracy=float((p.argmax(axis=1) == y).mean()) if len(y) else NAN,
        auc=float(np.mean(aucs)) if aucs else NAN,
        log_loss=float(metrics.log_loss(y, p, labels=range(p.shape[1]))) if len(y) else NAN,
    )


def regression_scores(y: np.ndarray, p: np.ndarray) -> RegressionScores:
    """Return the scores of numbers, (n,), and the predicted ones, (n,).

    R2 needs two labels that differ, and is NaN otherwise.
    """
    y, p = y.astype("float64"), p.astype("float64")
    some, differ = len(y) > 0, len(np.unique(y)) > 1
    return RegressionScores(
        known=len(y),
        mae=float(metrics.mean_absolute_error(y, p)) if some else NAN,
        rmse=float(metrics.root_mean_squared_error(y, p)) if some else NAN,
        r2=float(metrics.r2_score(y, p)) if differ else NAN,
    )
