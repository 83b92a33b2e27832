"""Coverage of labels by task, and an audit of whether labels are missing at random.

A missing label itself cannot show why it is missing. The rest of the file can: something in it may
predict which labels are missing, and a task without any negatives was not labelled at random.

`Manifest` calls `coverage`, `audit`, `class_faults` and `check_classes`; `kerasmtl check` prints
what they find. Nothing is changed by it: a policy is advice, and the user chooses the loss.
"""

from __future__ import annotations

import html
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kerasmtl.tasks import Task, all_binary
from kerasmtl.utils.text import warn


def coverage(labels: np.ndarray, tasks: Sequence[Task]) -> pd.DataFrame:
    """Count by task the labels known, positive and negative, and the share known.

    Args:
        labels: (rows, tasks), NaN = missing.
        tasks: of the columns of `labels`.

    Returns:
        A row per task, with kind, known, positive, negative and share (0 to 1). With tasks of other
        kinds than binary, also `classes`, the rows of each by name, `mean` and `std`; what a kind
        does not have is NA. A soft label is neither positive nor negative.
    """
    known = (~np.isnan(labels)).sum(axis=0)
    table = pd.DataFrame(
        {
            "kind": [task.kind for task in tasks],
            "known": known,
            "positive": (labels == 1).sum(axis=0),
            "negative": (labels == 0).sum(axis=0),
            "share": known / max(len(labels), 1),
        },
        index=pd.Index([task.name for task in tasks], name="task"),
    )
    if all_binary(tasks):
        return table
    for column in ("positive", "negative"):
        # pandas' nullable integers: a NaN among NumPy's would turn all counts into decimals.
        table[column] = table[column].astype("Int64").where(table["kind"] == "binary")
    table["classes"], table["mean"], table["std"] = pd.NA, math.nan, math.nan
    for column, task in zip(labels.T, tasks, strict=True):
        column = column[~np.isnan(column)].astype("float64")
        if task.kind == "multiclass":
            counts = np.bincount(column.astype(int), minlength=task.outputs).tolist()
            table.at[task.name, "classes"] = dict(zip(task.classes, counts, strict=True))
        elif task.kind == "regression" and len(column):
            table.loc[task.name, ["mean", "std"]] = column.mean(), column.std()
    return table


def class_faults(labels: np.ndarray, tasks: Sequence[Task]) -> dict[str, str]:
    """Say why tasks cannot be learned from these rows: no label, or no two different ones.

    Args:
        labels: (rows, tasks), NaN = missing.
        tasks: of the columns of `labels`.

    Returns:
        By the name of a task, the reason; tasks that can be learned are left out.
    """
    faults = {}
    for column, task in zip(labels.T, tasks, strict=True):
        known = column[~np.isnan(column)]
        if not len(known):
            faults[task.name] = f"no known label among {len(labels)} rows"
        elif (known == known[0]).all():
            what = "one value" if task.kind == "regression" else "one class"
            one = task.classes[int(known[0])] if task.kind == "multiclass" else f"{known[0]:g}"
            faults[task.name] = (
                f"{what} only among {len(labels)} rows: all {len(known)} known labels are {one}"
            )
    return faults


def check_classes(labels: np.ndarray, tasks: Sequence[Task], source: Path) -> None:
    """Warn of tasks with one class only, which train and learn nothing.

    Args:
        labels: (rows, tasks), NaN = missing.
        tasks: of the columns of `labels`.
        source: the file, for messages.

    Raises:
        ValueError: a task has no known label, so that its loss would always be 0.
    """
    faults = class_faults(labels, tasks)
    known = zip(tasks, np.isnan(labels).all(axis=0), strict=True)
    unknown = {task.name: faults[task.name] for task, none in known if none}
    if unknown:
        raise ValueError(
            f"`tasks` must have two different labels each in {source}, got {unknown}. Label some, "
            "or leave them out of tasks=…"
        )
    for name, fault in faults.items():
        warn(f"task {name!r} has {fault} (of {source}); nothing can be learned from it.")


def co_known(labels: np.ndarray, tasks: Sequence[Task]) -> pd.DataFrame:
    """Count the rows with the labels of both tasks.

    Args:
        labels: (rows, tasks), NaN = missing.
        tasks: of the columns of `labels`.

    Returns:
        (tasks, tasks) int, by name; the diagonal counts the labels of the one task.
    """
    known = pd.DataFrame(~np.isnan(labels), columns=[task.name for task in tasks], dtype="float32")
    return (known.T @ known).astype(int)


SOURCES = {
    "known": "which other labels are known",
    "labels": "the values of other labels",
    "split": "the split",
}
SIMILAR = 3  # times the fewest known labels of a task that another task may have
_ROWS = 4_000  # looked at, drawn with a fixed seed: enough for a stable AUC, and quick
_TASKS = 40  # tasks looked at, and tasks that serve to predict them
_FOLDS = 3
_FEWEST = 20  # rows with, and rows without a label, for a verdict
_LEVEL = 0.01  # of the test, for all tasks together
_SLIPS = 0.02  # share of negatives below which a task counts as one of positives only,
_FEW = 0.5  # if less than this share of its labels is known
_COUNTED = "AssumeNegative (WAN), ExpectedPositives (EPR) or LargeLoss (LL-R)"
_EFFECT = 0.6  # AUC below which predictability does not matter


@dataclass(frozen=True)
class Audit:
    """The result of `audit`.

    Attributes:
        rows: how many.
        tasks: by task `from_known`, `from_labels` and `from_split`, the cross-validated AUC of
            predicting that a label is known: from which others are known, from their values, and
            from the part the row is in (NaN: not tested); `predictable`, those of the three with
            evidence; `policy` and `reason`.
        co_known: (tasks, tasks) int, the rows with both labels.
        nothing_known: rows without any label.
        advice: sentences.
    """

    rows: int
    tasks: pd.DataFrame
    co_known: pd.DataFrame
    nothing_known: int
    advice: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON takes them."""
        return {
            "rows": self.rows,
            "nothing_known": self.nothing_known,
            "tasks": plain_rows(self.tasks),
            "co_known": self.co_known.to_dict(orient="index"),
            "advice": self.advice,
        }

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.advice)
        return said + self.tasks[["policy", "reason"]].to_html()


def plain_rows(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return the rows of a table by task, with None for what is missing, as JSON takes it.

    Example:
        >>> plain_rows(pd.DataFrame({"known": [3], "auc": [np.nan]}, index=["car"]))
        {'car': {'known': 3, 'auc': None}}
    """
    return table.astype(object).where(table.notna(), None).to_dict(orient="index")


def audit(labels: np.ndarray, tasks: Sequence[Task], splits: np.ndarray | None = None) -> Audit:
    """Find which labels are missing at random, and what to do about it.

    That a label is known counts as predictable if a logistic regression, three-fold on at most
    4,000 rows, reaches an AUC of 0.6 with p < 0.01 (Mann-Whitney on the held-out scores, its
    variance doubled for what folds share; Bonferroni over all tests). Tasks with less than 20 known
    or 20 missing labels, and those beyond the first 40, are not tested.

    Args:
        labels: (rows, tasks) float32, NaN = missing.
        tasks: of the columns of `labels`.
        splits: (rows,) of any label, the part that a row is in; None if the file does not say it.
    """
    table = coverage(labels, tasks)
    found = _predictability(labels, tasks, splits)
    rows = []
    for at, task in enumerate(tasks):
        auc = {source: found.get((at, source), (math.nan, 1.0)) for source in SOURCES}
        level = _LEVEL / max(len(found), 1)
        sure = [s for s, (value, p) in auc.items() if value >= _EFFECT and p < level]
        policy, reason = _policy(table.loc[task.name], sure, auc)
        rows.append(
            {f"from_{source}": value for source, (value, _) in auc.items()}
            | {"predictable": ", ".join(sure), "policy": policy, "reason": reason}
        )
    empty = int(np.isnan(labels).all(axis=1).sum())
    return Audit(
        rows=len(labels),
        tasks=pd.DataFrame(rows, index=table.index),
        co_known=co_known(labels, tasks),
        nothing_known=empty,
        advice=_advice(table, len(labels), empty),
    )


def _policy(
    row: pd.Series, sure: list[str], auc: dict[str, tuple[float, float]]
) -> tuple[str, str]:
    """Return what to do about a task's missing labels, and the figures that say so."""
    binary = row["kind"] == "binary"
    if not row.known:
        return "leave out", "no label is known"
    if binary and row.known == row.negative:
        return "leave out", f"negatives only: all {row.known} known labels are 0"
    if binary and row.known == row.positive and row.share == 1:
        return "leave out", f"positives only: all {row.known} labels are 1"
    # So few negatives that they look like slips, in a task of few known labels.
    slips = row.share < _FEW and 0 < row.positive and row.negative < _SLIPS * row.known
    if binary and (row.known == row.positive or slips):
        nearly = "" if row.known == row.positive else "nearly "
        return _COUNTED, f"{nearly}positives only: {row.negative} of {row.known} known labels are 0"
    if row.share == 1:
        return "ignore", "every label is known"
    if sure:
        shown = ", ".join(f"{SOURCES[source]} (AUC {auc[source][0]:.2f})" for source in sure)
        return "ignore", f"not missing at random: predicted by {shown}"
    if any(not math.isnan(value) for value, _ in auc.values()):
        return "ignore", "nothing in the file predicts which labels are missing"
    return "ignore", "too few known or missing labels to test whether they are so at random"


def _advice(table: pd.DataFrame, rows: int, empty: int) -> list[str]:
    """Return figures that matter for training; `empty`: rows without any label."""
    found = []
    if empty:
        found.append(f"{empty} of {rows} rows have no label; they do not contribute to training.")
    # Of tasks without any label `class_faults` says more.
    known = table.known[table.known > 0]
    if len(known) > 1 and known.max() > SIMILAR * known.min():
        found.append(
            f"Known labels per task: {known.min()} ({known.idxmin()!r}) to {known.max()} "
            f"({known.idxmax()!r}). Compare the smallest tasks with networks of their own."
        )
    return found


def _predictability(
    labels: np.ndarray, tasks: Sequence[Task], splits: np.ndarray | None
) -> dict[tuple[int, str], tuple[float, float]]:
    """Return the AUC of "is known" and its p-value, one-sided, by task and source."""
    # Drawn, since files are often sorted by what decides whether a label is known.
    rows = np.random.default_rng(0).permutation(len(labels))[:_ROWS]
    sample = labels[rows]
    known = ~np.isnan(sample)
    amount = known.sum(axis=0)
    testable = np.flatnonzero((amount >= _FEWEST) & (len(rows) - amount >= _FEWEST))[:_TASKS]
    helpers = np.argsort(-amount, kind="stable")[: _TASKS + 1]
    sides = None
    if splits is not None and len(set(splits)) > 1:
        sides = pd.get_dummies(pd.Series(splits[rows])).to_numpy(dtype=float)
    values = _centred(sample, tasks) if len(testable) else []
    found = {}
    for at in testable:
        others = [other for other in helpers if other != at and amount[other]][:_TASKS]
        features = {
            "known": known[:, others].astype(float),
            "labels": np.column_stack([values[other] for other in others]) if others else None,
            "split": sides,
        }
        for source, matrix in features.items():
            if matrix is not None and (matrix.std(axis=0) > 0).any():
                found[int(at), source] = _auc(matrix, known[:, at])
    return found


def _centred(sample: np.ndarray, tasks: Sequence[Task]) -> list[np.ndarray]:
    """Return each task's labels, (rows, 1 or classes): known ones standardized, missing ones 0.

    Zero is the mean, so that a label says nothing by being there.
    """
    from sklearn.preprocessing import StandardScaler  # slow: `kerasmtl new` does not need it

    columns = []
    for column, task in zip(sample.T, tasks, strict=True):
        raw = column[:, None].astype("float64")
        if task.kind == "multiclass":
            raw = np.where(np.isnan(raw), raw, raw == np.arange(task.outputs))
        with warnings.catch_warnings(action="ignore"):  # of tasks without a known label
            columns.append(np.nan_to_num(StandardScaler().fit_transform(raw)))
    return columns


def _auc(features: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Return the held-out AUC, and how likely one as high is by chance (Mann-Whitney, normal)."""
    from sklearn.linear_model import LogisticRegression  # slow: `kerasmtl new` does not need it
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    # Ranks are compared within a fold, whose model is the same for all. Folds share training rows,
    # which spreads their mean wider than that of independent ones: hence twice the variance.
    model = LogisticRegression(C=0.1, max_iter=50, solver="liblinear")
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings(action="ignore"):  # no convergence only makes the claim weaker
        auc = cross_val_score(model, features, target, cv=folds, scoring="roc_auc").mean()
    known, missing = target.sum() / _FOLDS, (~target).sum() / _FOLDS
    variance = 2 * (known + missing + 1) / (12 * known * missing) / _FOLDS
    return float(auc), 0.5 * math.erfc((auc - 0.5) / math.sqrt(2 * variance))
