"""Percentile intervals of the scores: rows drawn with replacement, all draws of a part at once.

A drawn row counts as often as it was drawn, so a score of a draw is the score with that weight.
Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from kerasmtl.evaluation.report import AT_RECALL, Bootstrap, Interval
from kerasmtl.evaluation.scores import Threshold, calibration_bins, decided_at, normalised

NAN = float("nan")
CELLS = 100_000  # how many weights are held at a time: what a processor's cache holds
PERCENTILES = (2.5, 97.5)

# From how often each row was drawn, (draws, rows), to each score, (draws,), NaN = undefined.
Weighted = Callable[[np.ndarray], dict[str, np.ndarray]]


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """`numerator / denominator`, NaN where the denominator is not above 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / denominator, NAN)


def ranking(
    rows: np.ndarray, y: np.ndarray, p: np.ndarray, recall: float | None = None
) -> Weighted:
    """AUC and average precision of known labels that stand in these rows; each (cells,).

    With a recall also the best precision at that recall or more.
    """
    order = np.argsort(-p, kind="stable")
    rows, p, truth = rows[order], p[order], y[order] == 1
    # One group for each set of equal predictions, from the highest down.
    starts = np.flatnonzero(np.append(True, p[1:] != p[:-1])) if len(p) else None

    def scores(weights: np.ndarray) -> dict[str, np.ndarray]:
        if starts is None:
            names = ("auc", "average_precision", *([AT_RECALL] if recall else []))
            return dict.fromkeys(names, np.full(len(weights), NAN))
        drawn = weights[:, rows]
        found = drawn * truth
        if len(starts) < len(rows):
            drawn = np.add.reduceat(drawn, starts, axis=1)
            found = np.add.reduceat(found, starts, axis=1)
        hits, seen = np.cumsum(found, axis=1), np.cumsum(drawn, axis=1)
        positives, total = hits[:, -1].copy(), seen[:, -1]
        precision = hits / np.maximum(seen, 1.0)
        precise = np.einsum("dg,dg->d", found, precision)
        at_recall = {}
        if recall:
            enough = hits >= recall * positives[:, None] * (1 - 1e-12)
            best = np.where(enough, precision, 0.0).max(axis=1)
            at_recall[AT_RECALL] = np.where(positives > 0, best, NAN)
        drawn -= found
        hits -= 0.5 * found
        return {
            "auc": ratio(np.einsum("dg,dg->d", drawn, hits), positives * (total - positives)),
            "average_precision": ratio(precise, positives),
            **at_recall,
        }

    return scores


def binary(
    rows: np.ndarray,
    y: np.ndarray,
    p: np.ndarray,
    threshold: Threshold,
    recall: float | None = None,
) -> Weighted:
    """All scores of a binary task, from its known labels and the rows that they stand in."""
    ranked = ranking(rows, y, p, recall)
    # By bins of the calibration error, so that each is one stretch.
    bins = calibration_bins(p)
    order = np.argsort(bins, kind="stable")
    decided = decided_at(threshold, p)[order]
    rows, y, p, bins = rows[order], y[order], p[order], bins[order]
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    truth, error = y == 1, p.astype("float64") - y
    columns = np.stack([decided == truth, decided & truth, decided, truth, error**2], axis=1)
    columns = columns.astype("float64")

    def scores(weights: np.ndarray) -> dict[str, np.ndarray]:
        chosen = weights[:, rows]
        known = chosen.sum(axis=1)
        right, hits, predicted, positives, squares = (chosen @ columns).T
        f1 = ratio(2 * hits, predicted + positives)
        gaps = np.add.reduceat(chosen * error, starts, axis=1) if len(starts) else known[:, None]
        return {
            **ranked(weights),
            "accuracy": ratio(right, known),
            "f1": np.where(positives > 0, f1, NAN),
            "brier": ratio(squares, known),
            "ece": ratio(np.abs(gaps).sum(axis=1), known),
        }

    return scores


def multiclass(rows: np.ndarray, y: np.ndarray, p: np.ndarray) -> Weighted:
    """All scores of a multiclass task; p (cells, classes), the rest (cells,)."""
    classes = [ranking(rows, y == label, p[:, label]) for label in range(p.shape[1])]
    q = normalised(p)
    tiny = np.finfo(q.dtype).eps
    right = (q.argmax(axis=1) == y).astype("float64")
    surprise = -np.log(np.clip(q[np.arange(len(y)), y.astype(int)], tiny, 1 - tiny))

    def scores(weights: np.ndarray) -> dict[str, np.ndarray]:
        chosen = weights[:, rows]
        known = chosen.sum(axis=1)
        aucs = np.stack([ranked(weights)["auc"] for ranked in classes])
        return {
            "accuracy": ratio(chosen @ right, known),
            "auc": mean_of_defined(aucs),
            "log_loss": ratio(chosen @ surprise, known),
        }

    return scores


def regression(rows: np.ndarray, y: np.ndarray, p: np.ndarray) -> Weighted:
    """All scores of a regression task; each (cells,)."""
    y, error = y.astype("float64"), p.astype("float64") - y
    centred = y - y.mean() if len(y) else y
    columns = np.stack([np.abs(error), error**2, centred, centred**2], axis=1)

    def scores(weights: np.ndarray) -> dict[str, np.ndarray]:
        chosen = weights[:, rows]
        known = chosen.sum(axis=1)
        absolute, squares, labels, label_squares = (chosen @ columns).T
        spread = label_squares - ratio(labels**2, known)
        spread = np.where(spread > 1e-12 * label_squares, spread, 0.0)
        return {
            "mae": ratio(absolute, known),
            "rmse": np.sqrt(ratio(squares, known)),
            "r2": 1.0 - ratio(squares, spread),
        }

    return scores


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0))


def _draws(rows: int, number: int, seed: int, width: int) -> Iterator[np.ndarray]:
    """How often each row is drawn, (draws, rows) float64, some draws of `width` at a time."""
    rng = np.random.default_rng(seed)
    step = max(1, CELLS // width)
    for start in range(0, number, step):
        draws = min(step, number - start)
        drawn = rng.integers(0, rows, (draws, rows)) + rows * np.arange(draws)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=draws * rows)
        yield counts.reshape(draws, rows).astype("float64")


def intervals(
    rows: int,
    tasks: Mapping[str, Weighted],
    kinds: Mapping[str, list[str]],
    micro: Mapping[str, Weighted],
    draws: int,
    seed: int,
    groups: np.ndarray | None = None,
) -> Bootstrap:
    """95 % intervals of every score of every task, of their means by kind, and of the pooled ones.

    Args:
        rows: of the data.
        tasks: the scores of each task.
        kinds: the names of the tasks by kind: over these go the means.
        micro: the scores of all tasks of a kind pooled.
        draws: how often `rows` rows are drawn.
        seed: of the draws.
        groups: (rows,), of which rows belong together; whole groups are drawn.
    """
    unit = slice(None) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = rows if groups is None else int(unit.max()) + 1
    parts = [
        (
            {name: scores(weights) for name, scores in tasks.items()},
            {kind: scores(weights) for kind, scores in micro.items()},
        )
        for weights in (drawn[:, unit] for drawn in _draws(units, draws, seed, rows))
    ]
    by_task, pooled = (
        {
            name: {score: np.concatenate([part[at][name][score] for part in parts]) for score in of}
            for name, of in parts[0][at].items()
        }
        for at in (0, 1)
    )
    macro = {
        kind: {
            score: mean_of_defined(np.stack([by_task[name][score] for name in names]))
            for score in by_task[names[0]]
        }
        for kind, names in kinds.items()
    }
    return Bootstrap(draws, *(_percentiles(found) for found in (by_task, macro, pooled)))


def _percentiles(
    found: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, dict[str, Interval]]:
    return {
        name: {score: _interval(values) for score, values in scores.items()}
        for name, scores in found.items()
    }


def _interval(values: np.ndarray) -> Interval:
    defined = values[~np.isnan(values)]
    low, high = np.percentile(defined, PERCENTILES) if len(defined) else (NAN, NAN)
    return Interval(float(low), float(high), len(values) - len(defined))
