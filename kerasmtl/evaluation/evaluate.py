"""Exact scores on known labels, task by task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, NamedTuple

import keras
import numpy as np

from kerasmtl.evaluation import bootstrap as resampled
from kerasmtl.evaluation import scores
from kerasmtl.evaluation.report import Report, Scores
from kerasmtl.evaluation.scores import Threshold
from kerasmtl.tasks import Task, as_tasks, output_columns
from kerasmtl.utils.progress import progress_bar

DEFAULT = 0.5

Arrays = dict[str, np.ndarray]
# Of one task, on its known cells: the rows that they stand in, labels, predictions.
Known = tuple[np.ndarray, np.ndarray, np.ndarray]


class _Settings(NamedTuple):
    """Of the scores of binary tasks: thresholds by task, and the recall that was asked for."""

    thresholds: Mapping[str, float]
    recall: float | None

    def of(self, task: str) -> float:
        """The threshold of a task."""
        return self.thresholds.get(task, DEFAULT)


def evaluate(
    model: keras.Model,
    dataset: Any,
    tasks: Iterable[Task | str],
    threshold: float | Mapping[str, Any] = DEFAULT,
    progress: bool = False,
    bootstrap: int = 0,
    seed: int = 0,
    recall: float | None = None,
    groups: Sequence[object] | np.ndarray | None = None,
) -> Report:
    """Score a model by task, on the known labels alone, with scikit-learn.

    Shapes: dataset yields (inputs, labels), labels (batch, tasks) float, NaN = missing; the model
    predicts probabilities (batch, tasks). With tasks of several kinds both are dicts with the keys
    of `output_columns(tasks)`: labels (batch, tasks of that output), a class as its position;
    predictions (batch, tasks) for binary tasks, (batch, classes) or (batch, 1) for the others.

    Binary: AUC, average precision, accuracy, F1, Brier, ECE. Multiclass: accuracy, AUC of each
    class against the rest, log loss. Regression: MAE, RMSE, R2. `Report.micro` pools the known
    cells of all tasks of a kind (of multiclass tasks no AUC).

    A score that a task's known labels do not define (AUC with one class, accuracy with no label)
    is NaN, and is left out of the mean over tasks. A label that `uncertain_as` made a number
    between 0 and 1 is nobody's truth, and is not scored.

    Args:
        model: as `build_model` makes it.
        dataset: as `make_dataset` makes it; read once.
        tasks: what the outputs predict, in order.
        threshold: from which probability on (p >= threshold) a prediction counts as 1, for accuracy
            and F1; one for all binary tasks, or by task name a number or what `fit_decisions`
            found, 0.5 for tasks that are not named.
        progress: show a bar, on the terminal's error output.
        bootstrap: how often to draw the rows anew for 95 % intervals, such as 1000; 0: none.
        seed: of these draws.
        recall: such as 0.9, for the best precision of binary tasks at that recall or more.
        groups: (rows,), which rows belong together (frames of a video): the bootstrap then draws
            whole groups, since rows that are alike would make its intervals too narrow.

    Raises:
        ValueError: the tasks differ in number or name from the model's outputs or from the labels,
            an output of the model has no task, the data set is empty, `groups` has another length,
            a label is none (of a binary task: 0, 1 and NaN), or the model predicts NaN, or what is
            no probability, for a known label.

    Source of the intervals: Efron and Tibshirani 1993, An Introduction to the Bootstrap, ch. 13.
    """
    chosen = as_tasks(tasks)
    if bootstrap < 0:
        raise ValueError(
            f"`bootstrap` is no number of draws. Expected 0 or more. Received: {bootstrap}"
        )
    if recall is not None and not (isinstance(recall, Real) and 0.0 < recall <= 1.0):
        raise ValueError(
            f"`recall` is no share. Expected 0 < recall <= 1, or None. Received: {recall!r}"
        )
    settings = _Settings(_thresholds(threshold, chosen), None if recall is None else float(recall))
    rows, cells = _scored_cells(model, dataset, chosen, progress)
    of_rows = None if groups is None else np.array([str(group) for group in groups])
    if of_rows is not None and len(of_rows) != rows:
        raise ValueError(
            f"`groups` does not fit. Expected one for each of {rows} rows. Received: {len(of_rows)}"
        )
    return _report(chosen, rows, cells, settings, (bootstrap, seed, of_rows))


def _thresholds(given: Any, tasks: Sequence[Task]) -> dict[str, float]:
    """The threshold of each binary task that has one."""
    names = [task.name for task in tasks if task.kind == "binary"]
    if not isinstance(given, Mapping):
        given = dict.fromkeys(names, given)
    unknown = sorted(set(given) - {task.name for task in tasks})
    if unknown:
        raise ValueError(f"`threshold` must name tasks of {names}, got {unknown}")
    found = {}
    for name in (name for name in names if name in given):
        value = getattr(given[name], "threshold", given[name])
        if isinstance(value, bool) or not (isinstance(value, Real) and 0 <= value <= 1):
            raise ValueError(f"`threshold` must be from 0 to 1, got {value!r} for {name!r}")
        found[name] = float(value)
    return found


def scores_and_cells(
    model: keras.Model, dataset: Any, tasks: Iterable[Task | str]
) -> tuple[Report, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The report of `evaluate`, and by task labels and predictions where the label is known.

    Shapes: dataset as in `evaluate`, read once; labels (cells,), predictions (cells,), or
    (cells, classes) of a multiclass task.

    Raises:
        ValueError: as `evaluate`.
    """
    chosen = as_tasks(tasks)
    rows, cells = _scored_cells(model, dataset, chosen, progress=False)
    report = _report(chosen, rows, cells, _Settings({}, None), (0, 0, None))
    return report, {name: (y, p) for name, (_, y, p) in cells.items()}


def _scored_cells(
    model: keras.Model, dataset: Any, tasks: Sequence[Task], progress: bool
) -> tuple[int, dict[str, Known]]:
    """The number of rows, and the known cells of each task."""
    labels, predictions = _collected(model, dataset, output_columns(tasks), progress)
    return len(next(iter(labels.values()))), _known_cells(tasks, labels, predictions)


def _report(
    tasks: Sequence[Task],
    rows: int,
    cells: Mapping[str, Known],
    settings: _Settings,
    draws: tuple[int, int, np.ndarray | None],
) -> Report:
    """Exact scores, and with draws (how many, seed, groups of rows) their intervals."""
    bootstrap, seed, groups = draws
    kinds = {
        kind: [task.name for task in tasks if task.kind == kind]
        for kind in dict.fromkeys(task.kind for task in tasks)
    }
    pooled = {kind: _pool(kind, [cells[name] for name in names]) for kind, names in kinds.items()}
    # Of pooled cells, each has the threshold of its task.
    at = [np.full(len(cells[name][1]), settings.of(name)) for name in kinds.get("binary", ())]
    every = np.concatenate(at) if at else np.zeros(0)
    report = Report(
        rows=rows,
        tasks={
            task.name: _exact(task.kind, cells[task.name], settings.of(task.name), settings.recall)
            for task in tasks
        },
        micro={
            kind: _exact_pooled(kind, known, every, settings.recall)
            for kind, known in pooled.items()
        },
        recall=settings.recall,
        thresholds={name: settings.of(name) for name in kinds.get("binary", ())},
    )
    if not bootstrap:
        return report
    found = resampled.intervals(
        rows,
        {
            task.name: _weighted(
                task.kind, cells[task.name], settings.of(task.name), settings.recall
            )
            for task in tasks
        },
        kinds,
        {kind: _weighted(kind, known, every, settings.recall) for kind, known in pooled.items()},
        bootstrap,
        seed,
        groups,
    )
    found.micro.get("multiclass", {}).pop("auc", None)
    return replace(report, bootstrap=found)


def _collected(
    model: keras.Model, dataset: Any, columns: Mapping[str, Sequence[int]], progress: bool
) -> tuple[Arrays, Arrays]:
    """All labels and all predictions by output."""
    labels: dict[str, list[np.ndarray]] = {key: [] for key in columns}
    predictions: dict[str, list[np.ndarray]] = {key: [] for key in columns}
    for batch in _followed(dataset, progress):
        if len(batch) != 2:
            raise ValueError(
                "`dataset` does not yield pairs. Expected (inputs, labels), without weights. "
                f"Received: {len(batch)} parts"
            )
        inputs, truth = batch
        predicted = model.predict_on_batch(inputs)
        for found, into, who in ((truth, labels, "dataset"), (predicted, predictions, "model")):
            for key, values in _by_output(found, columns, who).items():
                into[key].append(values)
    if not all(labels.values()):
        raise ValueError("`dataset` is empty. Expected at least one batch.")
    return (
        {key: np.concatenate(parts) for key, parts in labels.items()},
        {key: np.concatenate(parts) for key, parts in predictions.items()},
    )


def _by_output(found: Any, columns: Mapping[str, Sequence[int]], who: str) -> Arrays:
    if not isinstance(found, Mapping):
        if len(columns) > 1:
            raise ValueError(
                f"`{who}` has no output for each kind of `tasks`. Expected a dict with the keys "
                f"{list(columns)}. Received: {type(found).__name__}"
            )
        found = {next(iter(columns)): found}
    lacking = [key for key in columns if key not in found]
    if lacking:
        raise ValueError(
            f"`{who}` lacks the output {lacking[0]!r} of `tasks`. Expected the keys "
            f"{list(columns)}. Received: {list(found)}"
        )
    beyond = [key for key in found if key not in columns]
    if who == "model" and beyond:
        raise ValueError(
            f"`tasks` has none for the model's outputs {beyond}. Expected a task for every output. "
            f"Received: tasks of {list(columns)}"
        )
    arrays = {key: np.asarray(found[key]) for key in columns}
    return {key: a.reshape(-1, 1) if a.ndim == 1 else a for key, a in arrays.items()}


def _followed(dataset: Any, progress: bool) -> Iterator[Any]:
    batches = int(dataset.cardinality()) if hasattr(dataset, "cardinality") else -1
    with progress_bar("evaluating", max(batches, 0) or None, progress) as advance:
        for batch in dataset:
            yield batch
            advance()


def _known_cells(tasks: Sequence[Task], labels: Arrays, predictions: Arrays) -> dict[str, Known]:
    cells = {}
    for key, positions in output_columns(tasks).items():
        served = [tasks[position] for position in positions]
        _check_shapes(served, labels[key], predictions[key])
        for column, task in enumerate(served):
            p = predictions[key]
            p = p if task.kind == "multiclass" else p[:, column]
            cells[task.name] = _known_of(task, labels[key][:, column], p)
    return {task.name: cells[task.name] for task in tasks}


def _check_shapes(tasks: Sequence[Task], labels: np.ndarray, predictions: np.ndarray) -> None:
    names = [task.name for task in tasks]
    width = sum(task.outputs for task in tasks)
    if labels.shape == (len(predictions), len(tasks)) and predictions.shape[1:] == (width,):
        return
    received = f"Received: labels {labels.shape}, predictions {predictions.shape}"
    if tasks[0].kind == "binary":
        fewest = min(labels.shape[-1], predictions.shape[-1])
        most = max(labels.shape[-1], predictions.shape[-1])
        without = f" Without a column: {names[fewest:]}." if fewest < len(names) else ""
        if most > len(names):
            without += f" Without a task: columns {list(range(len(names), most))}."
        raise ValueError(
            f"`tasks` does not fit. Expected labels and predictions of shape (rows, {len(names)})."
            f" {received}.{without}"
        )
    raise ValueError(
        f"`tasks` does not fit: task {names[0]!r}. Expected labels of shape (rows, 1) and "
        f"predictions of shape (rows, {width}). {received}"
    )


def _known_of(task: Task, labels: np.ndarray, predictions: np.ndarray) -> Known:
    known = ~np.isnan(labels)
    doubt = task.uncertain_as
    if not isinstance(doubt, str) and 0 < doubt < 1:
        known &= labels.astype("float32") != np.float32(doubt)
    y, p = labels[known], predictions[known]
    _check_labels(task, y)
    if np.isnan(p).any():
        number = int(np.isnan(p).reshape(len(p), -1).any(axis=1).sum())
        raise ValueError(
            f"`model` predicts NaN for {number} known labels of task {task.name!r}. "
            f"Expected {'numbers' if task.kind == 'regression' else 'probabilities'}; its training "
            "has diverged."
        )
    good = np.isfinite(p) if task.kind == "regression" else (p >= 0) & (p <= 1)
    if task.kind == "multiclass" and len(p):
        good = good & (np.abs(p.sum(axis=1, keepdims=True) - 1) < 1e-2)
    if not good.all():
        wanted = {"binary": "numbers from 0 to 1", "regression": "finite numbers"}
        raise ValueError(
            f"`model` predicts what cannot be scored for task {task.name!r}. Expected "
            f"{wanted.get(task.kind, 'probabilities that sum to 1')}. Received: "
            f"{[float(value) for value in p[~good][:3]] if good.shape == p.shape else p[:1]}"
        )
    return np.flatnonzero(known), y, p


def _check_labels(task: Task, y: np.ndarray) -> None:
    if task.kind == "regression":
        good, expected = np.isfinite(y), "finite numbers"
    elif task.kind == "multiclass":
        good, expected = np.isin(y, range(task.outputs)), f"0 to {task.outputs - 1}"
    else:
        good, expected = np.isin(y, (0, 1)), "0, 1"
    if not good.all():
        raise ValueError(
            f"`dataset` has labels of task {task.name!r} other than {expected} and NaN = missing. "
            f"Received: {sorted({float(label) for label in y[~good]})[:5]}"
        )


def _exact(kind: str, cells: Known, threshold: Threshold, recall: float | None) -> Scores:
    _, y, p = cells
    if kind == "binary":
        return scores.binary_scores(y, p, threshold, recall)
    score = scores.multiclass_scores if kind == "multiclass" else scores.regression_scores
    return score(y, p)


def _weighted(
    kind: str, cells: Known, threshold: Threshold, recall: float | None
) -> resampled.Weighted:
    if kind == "binary":
        return resampled.binary(*cells, threshold, recall)
    weigh = resampled.multiclass if kind == "multiclass" else resampled.regression
    return weigh(*cells)


def _exact_pooled(kind: str, cells: Known, threshold: Threshold, recall: float | None) -> Scores:
    found = _exact(kind, cells, threshold, recall)
    # Class 0 of one task is not class 0 of another.
    return replace(found, auc=float("nan"), classes=0) if kind == "multiclass" else found


def _pool(kind: str, parts: Sequence[Known]) -> Known:
    rows, y, p = zip(*parts, strict=True)
    if kind == "multiclass":
        width = max(part.shape[1] for part in p)
        p = tuple(np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in p)
    return np.concatenate(rows), np.concatenate(y), np.concatenate(p)
