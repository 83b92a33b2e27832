"""The truth in NumPy and scikit-learn, float64, computed on cells from which the missing ones
have been deleted: nothing here knows of masks."""

import numpy as np
from sklearn.metrics import roc_auc_score

EPSILON = 1e-7  # Keras clips probabilities to [EPSILON, 1 - EPSILON]


def case(seed=0, rows=64, tasks=5, known=0.6, logits=False):
    """Labels (rows, tasks) with NaN, and predictions, float32."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, (rows, tasks)).astype("float32")
    p = (rng.normal(size=y.shape) + y).astype("float32")
    y[rng.random(y.shape) > known] = np.nan
    return y, p if logits else sigmoid(p).astype("float32")


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-np.asarray(x, "float64")))


def cells(y, p):
    """Known labels and their predictions; the rest is deleted."""
    y, p = np.asarray(y, "float64"), np.asarray(p, "float64")
    keep = np.flatnonzero(~np.isnan(y))
    return y[keep], p[keep]


def row_losses(y, p, logits=False):
    """Σ_{j known} logloss by row, shape (rows,)."""
    losses = []
    for row, predicted in zip(y, p, strict=True):
        label, q = cells(row, predicted)
        q = sigmoid(q) if logits else np.clip(q, EPSILON, 1 - EPSILON)
        losses.append(-(label * np.log(q) + (1 - label) * np.log(1 - q)).sum())
    return np.array(losses)


def loss(y, p, logits=False):
    """(1/m) Σ_i Σ_{j known} logloss."""
    return row_losses(y, p, logits).mean()


def gradient(y, p, logits=False):
    """d loss / d p, shape of p: written into zeros, at the known cells alone."""
    result = np.zeros(np.shape(p))
    for i, j in np.argwhere(~np.isnan(y)):
        q, label = float(p[i, j]), float(y[i, j])
        slope = sigmoid(q) - label if logits else (q - label) / (q * (1 - q))
        result[i, j] = slope / len(y)
    return result


def auc_per_task(y, p):
    """Shape (tasks,), NaN where only one class is known."""
    return np.array([_auc(*cells(y[:, j], p[:, j])) for j in range(y.shape[1])])


def _auc(y, p):
    return roc_auc_score(y, p) if len(set(y)) == 2 else np.nan


def accuracy_per_task(y, p, threshold=0.5):
    """Shape (tasks,), NaN where nothing is known."""
    kept = [cells(y[:, j], p[:, j]) for j in range(y.shape[1])]
    return np.array(
        [((q >= q.dtype.type(threshold)) == (t == 1)).mean() if len(t) else np.nan for t, q in kept]
    )
