"""Scores of tasks on known labels, with scikit-learn, and `Report`: all scores of a model."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn import metrics

from kerasmtl.utils.tables import Name, print_whole

if TYPE_CHECKING:
    from rich.console import RenderableType

NAN = float("nan")
COUNTS = ("known", "positive", "classes")  # fields that are not scores
AT_RECALL = "precision_at_recall"
ECE_BINS = 15

Threshold = float | np.ndarray

# The score that sums up a task, as the field of its scores and as people call it.
MAIN = {"binary": "auc", "multiclass": "accuracy", "regression": "r2"}
UNITS = {"binary": "AUC", "multiclass": "accuracy", "regression": "R2"}


@dataclass(frozen=True)
class BinaryScores:
    """Scores of one binary task over its known labels; NaN = not defined by them.

    Attributes:
        known: number of known labels.
        positive: how many of them are 1.
        auc: area under the ROC curve.
        average_precision: area under precision against recall, by steps.
        accuracy: share predicted right at the threshold.
        f1: harmonic mean of precision and recall at the threshold.
        brier: mean squared error of the probability.
        ece: expected calibration error, 15 bins of equal width.
        precision_at_recall: best precision at the recall asked for or more.
    """

    known: int
    positive: int
    auc: float
    average_precision: float
    accuracy: float
    f1: float = NAN
    brier: float = NAN
    ece: float = NAN
    precision_at_recall: float = NAN


@dataclass(frozen=True)
class MulticlassScores:
    """Scores of one multiclass task over its known labels; NaN = not defined by them.

    Attributes:
        known: number of known labels.
        classes: how many classes are among them.
        accuracy: share predicted right.
        auc: mean area under the ROC curve of each class against the rest.
        log_loss: mean -log of the probability of the right class.
    """

    known: int
    classes: int
    accuracy: float
    auc: float
    log_loss: float


@dataclass(frozen=True)
class RegressionScores:
    """Scores of one regression task over its known labels; NaN = not defined by them.

    Attributes:
        known: number of known labels.
        mae: mean absolute error.
        rmse: root of the mean squared error.
        r2: share of the variance that is explained.
    """

    known: int
    mae: float
    rmse: float
    r2: float


KINDS = {"binary": BinaryScores, "multiclass": MulticlassScores, "regression": RegressionScores}
Scores = BinaryScores | MulticlassScores | RegressionScores


def main_score(kind: str, y: np.ndarray, p: np.ndarray) -> float:
    """Return the score that sums up a task: AUC, accuracy or R2; NaN if the labels define none.

    AUC needs both classes, R2 two labels that differ, and accuracy a label.

    Args:
        kind: "binary", "multiclass" or "regression".
        y: (n,) labels, of which those that `is_scored` leaves out do not count.
        p: (n,) predictions, (n, classes) for "multiclass".
    """
    scored = is_scored(kind, y)
    y, p = y[scored], p[scored].astype("float64")
    if kind == "multiclass":
        return float((p.argmax(axis=1) == y).mean()) if len(y) else NAN
    if len(np.unique(y)) < 2:
        return NAN
    return float((metrics.roc_auc_score if kind == "binary" else metrics.r2_score)(y, p))


def is_scored(kind: str, y: np.ndarray) -> np.ndarray:
    """Return which labels are scored, (n,) bool: the known ones, and of a binary task 0 and 1.

    What `Task.uncertain_as` puts between 0 and 1 is nobody's observation.
    """
    return (y == 0) | (y == 1) if kind == "binary" else ~np.isnan(y)


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
    some = len(y) > 0
    error = p.astype("float64") - y
    f1 = 2 * (decided & y).sum() / (decided.sum() + y.sum()) if y.any() else NAN
    return BinaryScores(
        known=len(y),
        positive=int(y.sum()),
        auc=main_score("binary", y, p),
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
    """Return the best precision at a recall or more."""
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
        accuracy=main_score("multiclass", y, p),
        auc=float(np.mean(aucs)) if aucs else NAN,
        log_loss=float(metrics.log_loss(y, p, labels=range(p.shape[1]))) if len(y) else NAN,
    )


def regression_scores(y: np.ndarray, p: np.ndarray) -> RegressionScores:
    """Return the scores of numbers, (n,), and the predicted ones, (n,).

    R2 needs two labels that differ, and is NaN otherwise.
    """
    y, p = y.astype("float64"), p.astype("float64")
    some = len(y) > 0
    return RegressionScores(
        known=len(y),
        mae=float(metrics.mean_absolute_error(y, p)) if some else NAN,
        rmse=float(metrics.root_mean_squared_error(y, p)) if some else NAN,
        r2=main_score("regression", y, p),
    )


@dataclass(frozen=True)
class Interval:
    """From the 2.5th to the 97.5th percentile of a score over the draws that define it.

    `undefined` is the number of draws that do not; the ends are NaN if none does.
    """

    low: float
    high: float
    undefined: int


@dataclass(frozen=True)
class Bootstrap:
    """Intervals of every score: of each task, of the mean of a kind, and of its pooled labels."""

    draws: int
    tasks: dict[str, dict[str, Interval]]
    macro: dict[str, dict[str, Interval]]
    micro: dict[str, dict[str, Interval]]


@dataclass(frozen=True)
class Report:
    """The scores of `kt.evaluate`: of each task, their means, and those of pooled labels.

    Attributes:
        rows: of the data.
        tasks: scores by task name.
        micro: by kind, scores of all known labels of a kind as those of one task.
        bootstrap: intervals, or None.
        recall: of `precision_at_recall`; None leaves that score out.
        thresholds: by binary task, from which probability on a prediction counts as 1.
    """

    rows: int
    tasks: dict[str, Scores]
    micro: dict[str, Scores] = field(default_factory=dict)
    bootstrap: Bootstrap | None = None
    recall: float | None = None
    thresholds: dict[str, float] = field(default_factory=dict)

    @property
    def macro_auc(self) -> float:
        """The mean AUC over the tasks with known labels of both classes; NaN if there are none."""
        return _mean([getattr(scores, "auc", NAN) for scores in self.tasks.values()])

    def by_kind(self) -> dict[str, dict[str, Scores]]:
        """Return the scores of the tasks of each kind that there is."""
        found = {
            kind: {name: scores for name, scores in self.tasks.items() if isinstance(scores, cls)}
            for kind, cls in KINDS.items()
        }
        return {kind: tasks for kind, tasks in found.items() if tasks}

    def scores(self, kind: str) -> list[str]:
        """Return the names of the scores of a kind, without the counts."""
        return [name for name in self._columns(kind) if name not in COUNTS]

    def macro(self, score: str, kind: str = "binary") -> float:
        """Return the mean of a score over the tasks of a kind that define it; NaN if none does."""
        return _mean(self._values(score, kind))

    def defined(self, score: str, kind: str = "binary") -> int:
        """Return how many tasks of a kind define a score."""
        return sum(not math.isnan(value) for value in self._values(score, kind))

    def _values(self, score: str, kind: str) -> list[float]:
        """Return a score of all tasks of a kind, NaN where it is undefined."""
        return [getattr(scores, score) for scores in self.by_kind().get(kind, {}).values()]

    def _columns(self, kind: str) -> list[str]:
        """Return the names of the counts and scores of a kind that are shown."""
        return asked_for(kind) + [AT_RECALL] * (kind == "binary" and self.recall is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON; undefined scores are None."""

        def shown(scores: Scores, kind: str) -> dict[str, Any]:
            return {name: getattr(scores, name) for name in self._columns(kind)}

        kinds = {name: kind for kind, tasks in self.by_kind().items() for name in tasks}
        tasks = {
            name: {"kind": kinds[name], **shown(of, kinds[name])} for name, of in self.tasks.items()
        }
        macro = {
            kind: {
                score: {"mean": self.macro(score, kind), "defined": self.defined(score, kind)}
                for score in self.scores(kind)
            }
            for kind in self.by_kind()
        }
        micro = {kind: shown(scores, kind) for kind, scores in self.micro.items()}
        found = {"macro_auc": self.macro_auc, "rows": self.rows, "tasks": tasks, "macro": macro}
        asked = {
            "thresholds": self.thresholds or None,
            "recall": self.recall,
            "bootstrap": self.bootstrap and asdict(self.bootstrap),
        }
        asked = {name: value for name, value in asked.items() if value is not None}
        # NaN and infinity are written as such, and read as None.
        text = json.dumps({**found, "micro": micro, **asked})
        return json.loads(text, parse_constant=lambda name: None)

    def table(self) -> RenderableType:
        """Return a rich table for each kind of task; undefined scores are a dash.

        For several tasks the mean scores follow, and the pooled ones if there are any. The ends of
        an interval are in two lines below their score.
        """
        from rich.console import Group

        tables = [self._table(kind) for kind in self.by_kind()]
        return tables[0] if len(tables) == 1 else Group(*tables)

    def _table(self, kind: str) -> RenderableType:
        """Return the table of a kind of task."""
        from rich.table import Table
        from rich.text import Text

        tasks, columns, scores = self.by_kind()[kind], self._columns(kind), self.scores(kind)
        blanks = [""] * (len(columns) - len(scores))  # below the counts
        table = Table(title=f"{self.rows} rows" + (f", {kind}" if len(self.by_kind()) > 1 else ""))
        table.add_column("task", min_width=8)
        for column in columns:
            title = f"precision_at {self.recall:g}" if column == AT_RECALL else column
            table.add_column(title.replace("_", "\n"), justify="right", no_wrap=True)
        # Accuracy and F1 depend on the thresholds, which are shown where they are not the default.
        chosen = kind == "binary" and bool(set(self.thresholds.values()) - {0.5})
        if chosen:
            table.add_column("yes\nfrom", justify="right", no_wrap=True)

        def add(name: str, values: Mapping[str, Any], part: str, of: str) -> None:
            cells = [_text(values[column]) if column in values else "" for column in columns]
            if chosen and part == "tasks":
                cells.append(_text(self.thresholds[of]))
            table.add_row(Name(name), *cells)
            found = getattr(self.bootstrap, part)[of] if self.bootstrap else {}
            found = {score: at for score, at in found.items() if not math.isnan(at.low)}
            for label, end in (("2.5 %", "low"), ("97.5 %", "high")) if found else ():
                ends = [_text(getattr(found[c], end)) if c in found else "" for c in columns]
                table.add_row(Text(f"  {label}", style="dim"), *ends)

        for name, of in tasks.items():
            add(name, asdict(of), "tasks", name)
        if len(tasks) == 1:  # mean and pooled scores are those of the task
            return table
        table.add_section()
        add("mean", {score: self.macro(score, kind) for score in scores}, "macro", kind)
        counts = [f"{self.defined(score, kind)}/{len(tasks)}" for score in scores]
        table.add_row("defined", *blanks, *counts)
        if kind in self.micro:
            add("pooled", asdict(self.micro[kind]), "micro", kind)
        return table

    def frames(self) -> dict[str, pd.DataFrame]:
        """Return by kind the scores of each task and their mean, as text with any intervals."""
        found, drawn = {}, self.bootstrap
        for kind, tasks in self.by_kind().items():
            rows = {name: (asdict(of), drawn and drawn.tasks[name]) for name, of in tasks.items()}
            if len(rows) > 1:
                means = {score: self.macro(score, kind) for score in self.scores(kind)}
                rows["mean"] = means, drawn and drawn.macro[kind]
            cells = {
                name: {c: _spread(of.get(c, NAN), (ends or {}).get(c)) for c in self._columns(kind)}
                for name, (of, ends) in rows.items()
            }
            found[kind] = pd.DataFrame.from_dict(cells, orient="index")
        return found

    def _repr_html_(self) -> str:
        tables = "".join(table.to_html() for table in self.frames().values())
        return f"<p>{self.rows} rows</p>{tables}"

    def __str__(self) -> str:
        from rich.console import Console

        file = io.StringIO()
        print_whole(self.table(), Console(file=file, width=120, color_system=None))
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def asked_for(kind: str) -> list[str]:
    """Return the names of the counts and scores of a kind of task, without those of a recall."""
    return [column.name for column in fields(KINDS[kind]) if column.name != AT_RECALL]


def _mean(values: list[float]) -> float:
    """Return the mean of what is defined, or NaN."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else NAN


def _text(value: float) -> str:
    """Return a count or a score as a cell; undefined scores are a dash."""
    if isinstance(value, int):
        return str(value)
    return "–" if math.isnan(value) else f"{value:.3f}"


def _spread(value: float, ends: Interval | None) -> str:
    """Return a count or a score with the ends of its interval."""
    if ends is None or math.isnan(ends.low) or math.isnan(value):
        return _text(value)
    return f"{_text(value)} [{ends.low:.2f}, {ends.high:.2f}]"
