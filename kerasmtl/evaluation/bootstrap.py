"""Percentile intervals of scores: rows are drawn with replacement and scored again.

Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from kerasmtl.evaluation.report import Bootstrap, Interval, Report
from kerasmtl.utils.progress import progress_bar

NAN = float("nan")
PERCENTILES = (2.5, 97.5)


def intervals(
    report_of: Callable[[np.ndarray], Report],
    rows: int,
    draws: int,
    seed: int = 0,
    groups: np.ndarray | None = None,
    progress: bool = False,
) -> Bootstrap:
    """Return 95 % intervals of every score of every task, of their means, and of pooled labels.

    Args:
        report_of: makes the report of a draw from how often each row is in it, (rows,) int.
        rows: of the data.
        draws: how often `rows` rows are drawn.
        seed: of the draws.
        groups: (rows,), which rows belong together; whole groups are drawn.
        progress: show a bar.
    """
    unit = np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1]
    units, rng = int(unit.max()) + 1, np.random.default_rng(seed)
    reports = []
    with progress_bar("resampling", draws, progress) as advance:
        for _ in range(draws):
            counts = np.bincount(rng.integers(0, units, units), minlength=units)
            reports.append(report_of(counts[unit]))
            advance()

    def over(values: Callable[[Report, str], float], names: Iterable[str]) -> dict[str, Interval]:
        return {name: _interval(np.array([values(r, name) for r in reports])) for name in names}

    first = reports[0]
    tasks = {
        name: over(lambda r, score, name=name: getattr(r.tasks[name], score), first.scores(kind))
        for kind, of in first.by_kind().items()
        for name in of
    }
    macro = {
        kind: over(lambda r, score, kind=kind: r.macro(score, kind), first.scores(kind))
        for kind in first.by_kind()
    }
    micro = {
        kind: over(
            lambda r, score, kind=kind: getattr(r.micro[kind], score),
            # Class 0 of one task is not class 0 of another.
            [score for score in first.scores(kind) if (kind, score) != ("multiclass", "auc")],
        )
        for kind in first.micro
    }
    return Bootstrap(draws, {name: tasks[name] for name in first.tasks}, macro, micro)


def _interval(values: np.ndarray) -> Interval:
    defined = values[~np.isnan(values)]
    low, high = np.percentile(defined, PERCENTILES) if len(defined) else (NAN, NAN)
    return Interval(float(low), float(high), len(values) - len(defined))
