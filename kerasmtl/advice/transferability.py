"""How well features suit labels, measured without training: LogME and a ridge probe.

Both take features that are computed once, and known labels alone. The probe answers in the unit
that people read; LogME has none, and ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kerasmtl.evaluation.report import UNITS, is_scored, main_score
from kerasmtl.tasks import Task, as_tasks
from kerasmtl.utils.validation import check_count

STRENGTHS = np.logspace(-1, 5, 13)
COLUMNS = 512  # of which the probe keeps that many principal components
ROWS = 4000  # that the probe draws of more
STEPS = 100  # of the fixed point of LogME, which needs about ten


def logme(
    features: np.ndarray, labels: np.ndarray, tasks: Iterable[Task | str] | None = None
) -> float:
    """Return the log evidence per label of a Bayesian ridge regression on features: LogME.

    Higher is better, and only of the same labels: it has no unit. With F of n known rows,
    `L = n/2 log b + d/2 log a - n/2 log 2pi - b/2 |Fm - y|^2 - a/2 m'm - 1/2 log|aI + bF'F|`,
    maximized over the precisions a of the weights and b of the noise; the mean over tasks of L/n.

    Args:
        features: (rows, columns) float.
        labels: (rows, tasks) as in `Manifest.labels`, NaN = missing; a class as its position.
        tasks: of the columns, for multiclass tasks, which count as the mean over their classes; by
            default labels are taken as numbers.

    Returns:
        The score; NaN where no task has two different labels.

    Raises:
        ValueError: shapes that do not fit, or features that are not finite.

    Source: You et al. 2021, https://arxiv.org/abs/2102.11005, algorithm 3.

    Example:
        >>> import numpy as np
        >>> import kerasmtl as kt
        >>> features = np.random.default_rng(0).normal(size=(60, 3))
        >>> labels = (features[:, :1] > 0).astype("float32")
        >>> kt.advice.logme(features, labels) > kt.advice.logme(features[::-1], labels)
        True
    """
    features, labels = _checked(features, labels)
    kinds = [None] * labels.shape[1] if tasks is None else [t.kind for t in as_tasks(tasks)]
    decomposed: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
    scores = []
    for column, kind in zip(labels.T, kinds, strict=True):
        known = ~np.isnan(column)
        y = column[known]
        if len(np.unique(y)) < 2:
            continue
        key = known.tobytes()  # tasks that are known together share the decomposition
        if key not in decomposed:
            u, values, _ = np.linalg.svd(features[known], full_matrices=False)
            decomposed[key] = u, values**2
        targets = [y == each for each in np.unique(y)] if kind == "multiclass" else [y]
        evidence = [_evidence(*decomposed[key], target.astype("float64")) for target in targets]
        scores.append(np.mean(evidence) / len(y))
    return float(np.mean(scores)) if scores else float("nan")


def _evidence(u: np.ndarray, values: np.ndarray, y: np.ndarray) -> float:
    """Return the log evidence at the fixed point of both precisions.

    Args:
        u: (n, k) left singular vectors of the features.
        values: (k,) squares of the singular values.
        y: (n,) targets.
    """
    n, projected = len(y), u.T @ y
    outside = max(float(y @ y - projected @ projected), 0.0)  # of the span of the features
    alpha = beta = 1.0
    for _ in range(STEPS):
        shrunk = alpha + beta * values
        m2 = float((beta**2 * values * projected**2 / shrunk**2).sum())
        residual = outside + float((projected**2 * (alpha / shrunk) ** 2).sum())
        likelihood = n * np.log(beta / (2 * np.pi)) - beta * residual - alpha * m2
        # The other singular values, of columns - k, are 0: their determinants cancel out.
        found = likelihood + len(values) * np.log(alpha) - np.log(shrunk).sum()
        gamma, old = float((beta * values / shrunk).sum()), (alpha, beta)
        if m2 > 0:
            alpha = float(np.clip(gamma / m2, 1e-10, 1e10))
        beta = float(np.clip((n - gamma) / max(residual, 1e-12), 1e-10, 1e10))
        if np.allclose(old, (alpha, beta), rtol=1e-6, atol=0):
            break
    return float(found) / 2


class Probe(NamedTuple):
    """A task's score in a ridge probe.

    Attributes:
        score: AUC, accuracy or R2, the mean over folds; NaN where `note` says why.
        spread: the standard deviation over folds.
        folds: how many were possible.
        unit: "AUC", "accuracy" or "R2".
        note: why it has no score; "" otherwise.
    """

    score: float
    spread: float
    folds: int
    unit: str
    note: str = ""

    def __str__(self) -> str:
        """Show the score with its spread, or why there is none."""
        return self.note or f"{self.score:.3f} ± {self.spread:.3f} {self.unit}"


def mean_score(probes: Mapping[str, Probe]) -> float:
    """Return the mean score of the tasks that have one; NaN if none has."""
    scores = [each.score for each in probes.values() if each.folds]
    return round(float(np.mean(scores)), 4) if scores else float("nan")


def ridge_probe(
    features: np.ndarray,
    labels: np.ndarray,
    tasks: Iterable[Task | str],
    groups: Sequence[object] | np.ndarray | None = None,
    folds: int = 5,
) -> dict[str, Probe]:
    """Score features by a ridge regression per task, on rows that it has not seen.

    A regression on standardized features, its strength by generalized cross-validation, in closed
    form; binary labels are regressed as 0 and 1, classes one by one. Of more than 512 columns the
    first principal components are kept, and of more than 4,000 rows as many are drawn.

    Args:
        features: (rows, columns) float.
        labels: (rows, tasks) as in `Manifest.labels`, NaN = missing; of binary tasks, those between
            0 and 1 are left out.
        tasks: of the columns of `labels`.
        groups: (rows,) of what belongs together, which no fold separates.
        folds: stratified by the label; fewer where a class or the groups are too few.

    Returns:
        By task AUC, accuracy or R2, with the spread over folds.

    Raises:
        ValueError: shapes that do not fit, features that are not finite, or fewer than 2 folds.

    Example:
        >>> import numpy as np
        >>> import kerasmtl as kt
        >>> features = np.random.default_rng(0).normal(size=(80, 4))
        >>> labels = (features[:, :1] > 0).astype("float32")
        >>> kt.advice.ridge_probe(features, labels, ["car"])["car"].score > 0.95
        True
    """
    features, labels = _checked(features, labels)
    chosen, folds = as_tasks(tasks), check_count("folds", folds, 2)
    if labels.shape[1] != len(chosen):
        raise ValueError(f"`tasks` must be {labels.shape[1]}, as `labels` has, got {len(chosen)}")
    units = None
    if groups is not None:
        if len(groups) != len(labels):
            raise ValueError(f"`groups` must be of length {len(labels)}, got {len(groups)}")
        units = np.unique([str(group) for group in groups], return_inverse=True)[1]
    rows = np.arange(len(labels))
    if len(rows) > ROWS:
        rows = np.sort(np.random.default_rng(0).permutation(len(rows))[:ROWS])
    features, labels = features[rows], labels[rows]
    units = None if units is None else units[rows]
    if features.shape[1] > COLUMNS < len(rows):
        reduced = PCA(COLUMNS, svd_solver="randomized", random_state=0)
        features = reduced.fit_transform(features)
    return {
        task.name: _probe(task.kind, features, column, units, folds)
        for task, column in zip(chosen, labels.T, strict=True)
    }


def _probe(
    kind: str, features: np.ndarray, column: np.ndarray, units: np.ndarray | None, folds: int
) -> Probe:
    """Return the score of one task; see `ridge_probe`."""
    scored = is_scored(kind, column)
    x, y = features[scored], column[scored]
    units = None if units is None else units[scored]
    classes, counts = np.unique(y, return_counts=True)
    most = len(y) // 2 if kind == "regression" else int(counts.min(initial=len(y)))
    most = most if units is None else min(most, len(np.unique(units)))
    folds, scores = min(folds, most), []
    if len(classes) > 1 and folds > 1:
        drawn = {"n_splits": folds, "shuffle": True, "random_state": 0}
        if kind == "regression":
            split = KFold(**drawn) if units is None else GroupKFold(folds)
        else:
            split = StratifiedKFold(**drawn) if units is None else StratifiedGroupKFold(**drawn)
        for train, test in split.split(x, np.searchsorted(classes, y), units):
            if min(len(np.unique(y[train])), len(np.unique(y[test]))) > 1:
                model = make_pipeline(StandardScaler(), RidgeCV(STRENGTHS))
                many = kind == "multiclass"
                model.fit(x[train], y[train, None] == classes if many else y[train])
                truth = np.searchsorted(classes, y[test]) if many else y[test]
                scores.append(main_score(kind, truth, model.predict(x[test])))
    if not scores:  # no labels, one answer only, or all labels of a class in one group
        note = f"no folds with different answers among {len(y)} known labels"
        return Probe(np.nan, np.nan, 0, UNITS[kind], note)
    return Probe(float(np.mean(scores)), float(np.std(scores)), len(scores), UNITS[kind])


def _checked(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64 matrices of the same rows."""
    features, labels = np.asarray(features, "float64"), np.asarray(labels, "float64")
    if features.ndim != 2 or labels.ndim != 2 or len(features) != len(labels):
        raise ValueError(
            "`features` must be (rows, columns) and `labels` (rows, tasks) of the same rows, got "
            f"{features.shape} and {labels.shape}"
        )
    if not np.isfinite(features).all():
        raise ValueError("`features` must be finite, got NaN or infinite numbers among them")
    return features, labels
