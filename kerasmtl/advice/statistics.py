"""Paired bootstrap intervals of scores, and power laws of learning curves.

Both sides of a comparison have the same seeds and the same test rows, so that what makes a row hard
cancels out: each draw takes seeds and rows (or groups of them) with replacement, and scores both
sides on them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

from kerasmtl.evaluation.evaluate import PERCENTILES
from kerasmtl.evaluation.report import UNITS, is_scored
from kerasmtl.tasks import Task

DRAWS = 500
FEWEST_SIZES = 4  # of a learning curve that a power law of three parameters is fitted to
FARTHEST = 10.0  # times today's data: beyond, a power law says nothing


class Estimate(NamedTuple):
    """A number with its 95 % interval; NaN where nothing defines it."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Whether it is above 0: "yes", "no", or "undecided" where the interval holds 0."""
        return "yes" if self.low > 0 else "no" if self.high < 0 else "undecided"

    def __str__(self) -> str:
        """Show the difference with its interval."""
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def estimate(draws: np.ndarray) -> Estimate:
    """Return the first number, with the interval of the others that are defined.

    Args:
        draws: (1 + draws,), the first of all seeds and rows.
    """
    defined = draws[1:][np.isfinite(draws[1:])]
    if not np.isfinite(draws[0]) or not len(defined):
        return Estimate(float("nan"), float("nan"), float("nan"))
    low, high = np.percentile(defined, PERCENTILES)
    return Estimate(float(draws[0]), float(low), float(high))


class Bootstrap:
    """Draws of seeds and rows, the same for all that is compared.

    Args:
        tasks: of the labels.
        labels: (rows, tasks) of the rows that are scored, NaN = missing.
        groups: (rows,) of what is drawn together, or None.
        seeds: how many seeds each side has.
        draws: how often seeds and rows are drawn.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        labels: np.ndarray,
        groups: np.ndarray | None,
        seeds: int,
        draws: int = DRAWS,
    ) -> None:
        rng = np.random.default_rng(0)
        unit = np.arange(len(labels))
        if groups is not None:
            unit = np.unique([str(group) for group in groups], return_inverse=True)[1]
        count = int(unit.max(initial=-1)) + 1
        self.tasks, self.labels = tasks, labels
        drawn = rng.multinomial(count, np.full(count, 1 / count), draws) if count else []
        self.rows = np.vstack([np.ones((1, count)), np.reshape(drawn, (-1, count))])[:, unit]
        drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws)
        self.seeds = np.vstack([np.ones((1, seeds)), drawn]) / seeds

    def scores(self, predictions: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Return the mean score over seeds, (tasks, 1 + draws); the first is of all seeds and rows.

        Args:
            predictions: by seed, by task (rows,) or (rows, classes), as `kerasmtl.tasks.by_task`.
        """
        found = np.stack(  # (seeds, tasks, 1 + draws)
            [task_scores(self.tasks, self.labels, each, self.rows) for each in predictions]
        )
        return np.einsum("std,ds->td", found, self.seeds)

    @staticmethod
    def macro(scores: np.ndarray) -> np.ndarray:
        """Return the mean over the tasks that the labels define a score of, (1 + draws,)."""
        scored = np.isfinite(scores[:, 0])
        if not scored.any():
            return np.full(scores.shape[1], np.nan)
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            return np.nanmean(scores[scored], axis=0)


def task_scores(
    tasks: Sequence[Task], labels: np.ndarray, predictions: Mapping[str, Any], weights: np.ndarray
) -> np.ndarray:
    """Return the main score of each task for each way to weight rows, (tasks, draws).

    Args:
        tasks: of the labels.
        labels: (rows, tasks), NaN = missing.
        predictions: as `kerasmtl.tasks.by_task` returns them; a task without any has NaN.
        weights: (draws, rows), how often each row counts.
    """
    scores = []
    for task, column in zip(tasks, labels.T, strict=True):
        scored = is_scored(task.kind, column)
        if task.name not in predictions:  # it has no label to learn from
            scored[:] = False
        p = np.asarray(predictions.get(task.name, column), "float64")[scored]
        scores.append(weighted_score(task.kind, column[scored], p, weights[:, scored]))
    return np.stack(scores)


def weighted_score(kind: str, y: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return `main_score` for each way to weight rows, (draws,); NaN where undefined.

    One pass for all draws: scikit-learn would take a millisecond for each.

    Args:
        kind: "binary", "multiclass" or "regression".
        y: (n,) known labels.
        p: (n,) predictions, (n, classes) for "multiclass".
        weights: (draws, n), how often each row counts.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        if len(y) == 0:
            return np.full(len(weights), np.nan)
        if kind == "multiclass":
            return weights @ (p.argmax(axis=1) == y) / weights.sum(axis=1)
        if kind == "regression":
            mean = (weights @ y / weights.sum(axis=1))[:, None]
            spread = (weights * (y - mean) ** 2).sum(axis=1)
            return np.where(spread > 0, 1 - weights @ (y - p) ** 2 / spread, np.nan)
        # The share of pairs of a positive and a negative in order; ties count half.
        order = np.argsort(p, kind="stable")
        starts = np.flatnonzero(np.diff(p[order], prepend=-np.inf))
        yes = np.add.reduceat(weights[:, order] * (y[order] == 1), starts, axis=1)
        no = np.add.reduceat(weights[:, order] * (y[order] != 1), starts, axis=1)
        below = np.cumsum(no, axis=1) - no / 2
        return (yes * below).sum(axis=1) / (yes.sum(axis=1) * no.sum(axis=1))


def curves(of: Mapping[str, Mapping[float, np.ndarray]]) -> tuple[dict[str, Any], ...]:
    """Return curves with their 95 % bands, of draws by label and x; those with a point."""
    found = []
    for label, draws in of.items():
        points = [(x, *estimate(draws[x])) for x in sorted(draws) if np.isfinite(draws[x][0])]
        names = ("x", "y", "low", "high")
        if points:
            columns = zip(names, map(list, zip(*points, strict=True)), strict=True)
            found.append({"label": label, **dict(columns)})
    return tuple(found)


def unit_of(tasks: Sequence[Task]) -> str:
    """Return what the mean over tasks is a mean of: "macro AUC", "mean R2", "mean score"."""
    kinds = {task.kind for task in tasks}
    if kinds == {"binary"}:
        return "macro AUC"
    return f"mean {UNITS[kinds.pop()]}" if len(kinds) == 1 else "mean score (AUC, accuracy, R2)"


def power_law(sizes: np.ndarray, errors: np.ndarray) -> tuple[float, float, float] | None:
    """Fit `error = c + a n^-b` by least squares; None where it does not fall like that.

    Args:
        sizes: (sizes,) n, four or more different ones.
        errors: (sizes,), 1 - score.

    Returns:
        c, a and b, all but c above 0; None for fewer sizes, or an error that does not fall.

    Source: Viering and Loog 2021, https://arxiv.org/abs/2103.10948.
    """
    if len(np.unique(sizes)) < FEWEST_SIZES or not np.isfinite(errors).all():
        return None
    sizes, scale = np.asarray(sizes, "float64"), float(np.max(sizes))

    def law(n: np.ndarray, c: float, a: float, b: float) -> np.ndarray:
        return c + a * n ** (-b)

    bounds = ([0.0, -np.inf, -1.0], [np.inf, np.inf, 3.0])
    start = (max(float(errors.min()) * 0.8, 0.0), max(float(np.ptp(errors)), 1e-3), 0.5)
    try:
        with warnings.catch_warnings(action="ignore", category=OptimizeWarning):
            # In units of the largest size, which keeps a near the errors.
            (c, a, b), _ = curve_fit(law, sizes / scale, errors, start, bounds=bounds)
    except RuntimeError:  # no convergence
        return None
    return (float(c), float(a * scale**b), float(b)) if a > 1e-6 and b > 1e-3 else None


def catch_up(sizes: np.ndarray, errors: np.ndarray, target: np.ndarray) -> Estimate | None:
    """Return how many rows a learning curve needs to reach an error, with its 95 % interval.

    Args:
        sizes: (sizes,) rows of the curve.
        errors: (1 + draws, sizes), the first of all seeds and rows.
        target: (1 + draws,), the error to reach, of the same draws.

    Returns:
        Rows; infinite where more than ten times the largest size are needed, or no draw's power law
        gets there. None where no power law fits the curve itself.
    """
    found, most = [], FARTHEST * float(np.max(sizes))
    for each, goal in zip(errors, target, strict=True):
        fitted = power_law(sizes, each)
        if fitted is None and not found:
            return None
        needed = np.inf
        if fitted is not None and goal > fitted[0]:
            c, a, b = fitted
            needed = float(np.exp(min(np.log(a / (goal - c)) / b, 700.0)))
        found.append(needed if needed <= most else np.inf)
    draws = np.array(found)
    # Order statistics: between a number and infinity there is none.
    low, high = np.percentile(draws[1:], PERCENTILES, method="nearest")
    return Estimate(float(draws[0]), float(low), float(high))
