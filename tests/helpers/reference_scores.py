"""The truth for every metric: scikit-learn and plain NumPy on the cells of one task, from which
the missing ones have been deleted. NaN where the labels do not define the score."""

import numpy as np
from sklearn import metrics

NAN = float("nan")


def auc(y, p):
    return metrics.roc_auc_score(y, p) if len(set(y)) == 2 else NAN


def average_precision(y, p):
    return metrics.average_precision_score(y, p) if y.any() else NAN


def accuracy(y, p):
    return metrics.accuracy_score(y == 1, p >= 0.5) if len(y) else NAN


def f1(y, p):
    return metrics.f1_score(y == 1, p >= 0.5) if y.any() else NAN


def precision_at_recall(y, p, wanted=0.7):
    if not y.any():
        return NAN
    precision, recall, _ = metrics.precision_recall_curve(y, p)
    return precision[recall >= wanted].max()


def brier(y, p):
    return metrics.brier_score_loss(y, p, pos_label=1) if len(y) else NAN


def ece(y, p, bins=15):
    """Mean gap of share and confidence over bins, written as the paper does: by bin, with means."""
    if not len(y):
        return NAN
    chosen = np.minimum((p.astype("float32") * np.float32(bins)).astype(int), bins - 1)
    gaps = [
        (chosen == b).mean() * abs(y[chosen == b].mean() - p[chosen == b].mean())
        for b in np.unique(chosen)
    ]
    return sum(gaps)


def categorical_accuracy(y, p):
    return metrics.accuracy_score(y, p.argmax(axis=1)) if len(y) else NAN


def mae(y, p):
    return metrics.mean_absolute_error(y, p) if len(y) else NAN


def rmse(y, p):
    return metrics.root_mean_squared_error(y, p) if len(y) else NAN


def r2(y, p):
    return metrics.r2_score(y, p) if len(set(y)) > 1 else NAN


def per_task(score, y, p):
    """Shape (tasks,): the score of each column of y on its known cells."""
    y = np.asarray(y, "float64")
    found = []
    for column in range(y.shape[1]):
        keep = np.flatnonzero(~np.isnan(y[:, column]))
        predicted = p if score is categorical_accuracy else p[:, column]
        found.append(score(y[keep, column], np.asarray(predicted, "float64")[keep]))
    return np.array(found)


def pooled(score, y, p):
    """The score of all known cells as those of one task."""
    if score is categorical_accuracy:
        return per_task(score, y, p)[0]
    return per_task(score, y.reshape(-1, 1), p.reshape(-1, 1))[0]
