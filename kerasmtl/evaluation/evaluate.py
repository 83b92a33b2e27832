"""`evaluate` scores a model on known labels, task by task, with intervals from a bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import keras
import numpy as np
from sklearn import config_context

from kerasmtl.evaluation.report import Bootstrap, Interval, Report, is_scored, scores_of
from kerasmtl.tasks import Task, as_tasks, output_columns
from kerasmtl.utils.progress import progress_bar
from kerasmtl.utils.validation import check_count, check_number

DEFAULT = 0.5  # threshold
PERCENTILES = (2.5, 97.5)  # of the scores of resampled rows, the ends of an interval

Arrays = dict[str, np.ndarray]


class Known(NamedTuple):
    """The known labels of a task and their predictions.

    Attributes:
        rows: (n,) int, the rows that they are in.
        y: (n,) labels.
        p: (n,) predictions, or (n, classes) of a multiclass task.
    """

    rows: np.ndarray
    y: np.ndarray
    p: np.ndarray

    def drawn(self, counts: np.ndarray) -> Known:
        """Return the same with each row as often as `counts` says, (rows,) int."""
        chosen = np.repeat(np.arange(len(self.rows)), counts[self.rows])
        return Known(self.rows[chosen], self.y[chosen], self.p[chosen])


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
    """Score a model task by task, on known labels alone, with scikit-learn.

    Binary: AUC, average precision, accuracy, F1, Brier, ECE. Multiclass: accuracy, AUC of each
    class against the rest, log loss. Regression: MAE, RMSE, R2. `Report.micro` pools the known
    labels of all tasks of a kind (without AUC for multiclass tasks).

    A score that a task's known labels do not define (AUC with one class, accuracy without labels)
    is NaN, and left out of the mean over tasks. A label between 0 and 1 that comes from
    `uncertain_as` is not scored, since it is nobody's observation.

    Args:
        model: as `build_model` makes it.
        dataset: as `make_dataset` makes it, or any batches of (inputs, labels), labels
            (batch, tasks) float, NaN = missing; read once. With tasks of several kinds labels and
            predictions are dicts with the keys of `output_columns(tasks)`: labels
            (batch, tasks of that output), a class as its position; predictions (batch, tasks) for
            binary tasks, (batch, classes) or (batch, 1) for the others.
        tasks: what the outputs predict, in order.
        threshold: from which probability on (p >= threshold) a prediction counts as 1, for accuracy
            and F1: one for all binary tasks, or per task name a number or what
            `kt.calibration.fit_decisions` found; 0.5 for tasks that are not named.
        progress: show a bar, on the terminal's error output.
        bootstrap: how often rows are resampled for 95 % intervals, such as 1000; 0: none. A draw
            takes some milliseconds per task.
        seed: of these draws.
        recall: such as 0.9, for the best precision of binary tasks at that recall or more.
        groups: (rows,), which rows belong together (frames of a video): whole groups are then
            resampled, since similar rows would make the intervals too narrow.

    Returns:
        A report with `tasks`, `macro_auc`, `macro(score, kind)`, `micro`, `to_dict()`, `table()`.

    Raises:
        ValueError: the tasks differ in number or name from the model's outputs or from the labels,
            the data set is empty, `groups` has another length, a label is invalid (of a binary
            task: not 0, 1 or NaN), or the model predicts NaN, or something that is not a
            probability, for a known label.

    Example:
        >>> import keras
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> inputs = keras.Input((2,))
        >>> model = keras.Model(inputs, keras.layers.Activation("sigmoid")(inputs))
        >>> x = np.array([[2, -1], [-1, 3], [1, -2]])
        >>> y = np.array([[1, np.nan], [0, 1], [1, 0]])
        >>> report = kt.evaluate(model, [(x, y)], ["cat", "dog"])
        >>> report.macro_auc
        1.0
        >>> report.tasks["dog"].known
        2
    """
    chosen, bootstrap = as_tasks(tasks), check_count("bootstrap", bootstrap, 0)
    if recall is not None:
        recall = check_number("recall", recall, 0.0, 1.0, open_low=True)
    report, cells = evaluated(model, dataset, chosen, threshold, progress, recall)
    if groups is not None and len(groups) != report.rows:
        raise ValueError(f"`groups` must have one entry per row, {report.rows}, got {len(groups)}")
    if not bootstrap:
        return report
    return with_intervals(report, cells, chosen, groups, bootstrap, seed, progress)


def evaluated(
    model: keras.Model,
    dataset: Any,
    tasks: Sequence[Task],
    threshold: float | Mapping[str, Any] = DEFAULT,
    progress: bool = False,
    recall: float | None = None,
) -> tuple[Report, dict[str, Known]]:
    """Return the report of `evaluate`, and known labels and their predictions by task name."""
    thresholds = _thresholds(threshold, tasks)
    rows, cells = _known_cells(model, dataset, tasks, progress)
    return _report(tasks, rows, cells, thresholds, recall), cells


def with_intervals(
    report: Report,
    cells: Mapping[str, Known],
    tasks: Sequence[Task],
    groups: Sequence[object] | np.ndarray | None,
    draws: int,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Return a report with intervals; the arguments are those of `evaluate`."""
    unit = np.arange(report.rows)
    if groups is not None:
        unit = np.unique([str(group) for group in groups], return_inverse=True)[1]

    def drawn(counts: np.ndarray) -> Report:
        resampled = {name: known.drawn(counts) for name, known in cells.items()}
        return _report(tasks, report.rows, resampled, report.thresholds, report.recall)

    return replace(report, bootstrap=intervals(drawn, unit, draws, seed, progress))


def intervals(
    report_of: Callable[[np.ndarray], Report],
    unit: np.ndarray,
    draws: int,
    seed: int = 0,
    progress: bool = False,
) -> Bootstrap:
    """Return 95 % percentile intervals of the scores of tasks, their means, and pooled labels.

    Units of rows are drawn with replacement, as many as there are, and scored again.

    Args:
        report_of: makes the report of a draw from how often each row is in it, (rows,) int.
        unit: (rows,) int, the number of the unit that a row belongs to, from 0.
        draws: how often units are drawn.
        seed: of the draws.
        progress: show a bar.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    units, rng = int(unit.max()) + 1, np.random.default_rng(seed)
    reports = []
    # The labels are those of the report, which scikit-learn has checked.
    checked = config_context(skip_parameter_validation=True, assume_finite=True)
    with checked, progress_bar("resampling", draws, progress) as advance:
        for _ in range(draws):
            counts = np.bincount(rng.integers(0, units, units), minlength=units)
            reports.append(report_of(counts[unit]))
            advance()
    drawn = [_flat(report) for report in reports]
    found = Bootstrap(draws, {name: {} for name in reports[0].tasks}, {}, {})
    for part, name, score in drawn[0]:
        values = np.array([scores[part, name, score] for scores in drawn])
        defined = values[~np.isnan(values)]
        low, high = np.percentile(defined, PERCENTILES) if len(defined) else (np.nan, np.nan)
        interval = Interval(float(low), float(high), draws - len(defined))
        getattr(found, part).setdefault(name, {})[score] = interval
    return found


def _flat(report: Report) -> dict[tuple[str, str, str], float]:
    """Return the scores by "tasks" and task, "macro" and kind, or "micro" and kind, and score."""
    found = {}
    for kind, tasks in report.by_kind().items():
        for score in report.scores(kind):
            found |= {("tasks", name, score): getattr(of, score) for name, of in tasks.items()}
            found["macro", kind, score] = report.macro(score, kind)
            # Class 0 of one task is not class 0 of another.
            if kind in report.micro and (kind, score) != ("multiclass", "auc"):
                found["micro", kind, score] = getattr(report.micro[kind], score)
    return found


def scores_and_cells(
    model: keras.Model, dataset: Any, tasks: Iterable[Task | str]
) -> tuple[Report, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Return the report of `evaluate`, and known labels and their predictions by task name.

    Shapes: labels (n,); predictions (n,), or (n, classes) of a multiclass task. `dataset` may be
    such labels and predictions, of models that have not seen their rows, as `known_cells` returns.

    Raises:
        ValueError: as `evaluate`.
    """
    if isinstance(dataset, Mapping):
        cells = {name: Known(np.arange(len(y)), y, p) for name, (y, p) in dataset.items()}
        chosen, rows = as_tasks(tasks), max(len(y) for y, _ in dataset.values())
        return _report(chosen, rows, cells, _thresholds(DEFAULT, chosen), None), dict(dataset)
    report, cells = evaluated(model, dataset, as_tasks(tasks))
    return report, {name: (known.y, known.p) for name, known in cells.items()}


def known_cells(
    tasks: Sequence[Task], labels: np.ndarray, predictions: Mapping[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return by task name the labels that are known and predicted, and their predictions.

    Args:
        tasks: of the columns of `labels`.
        labels: (rows, tasks), NaN = missing. Soft ones, between 0 and 1, are left out.
        predictions: by task name, (rows,) or (rows, classes), NaN where there is none.
    """
    found = {}
    for task, y in zip(tasks, labels.T, strict=True):
        p = predictions[task.name]
        known = is_scored(task.kind, y) & ~np.isnan(p.reshape(len(p), -1)).any(axis=1)
        found[task.name] = y[known], p[known]
    return found


def _thresholds(given: Any, tasks: Sequence[Task]) -> dict[str, float]:
    """Return the threshold of each binary task."""
    names = [task.name for task in tasks if task.kind == "binary"]
    given = given if isinstance(given, Mapping) else dict.fromkeys(names, given)
    unknown = sorted(set(given) - {task.name for task in tasks})
    if unknown:
        raise ValueError(f"`threshold` must name tasks of {names}, got {unknown}")
    chosen = {name: given.get(name, DEFAULT) for name in names}
    return {
        name: check_number("threshold", getattr(value, "threshold", value), 0.0, 1.0)
        for name, value in chosen.items()
    }


def _report(
    tasks: Sequence[Task],
    rows: int,
    cells: Mapping[str, Known],
    thresholds: Mapping[str, float],
    recall: float | None,
) -> Report:
    """Return the scores of each task, and of the pooled labels of each kind."""
    scores, micro = {}, {}
    for task in tasks:
        known, at = cells[task.name], thresholds.get(task.name, DEFAULT)
        scores[task.name] = scores_of(task.kind, known.y, known.p, at, recall)
    for kind in dict.fromkeys(task.kind for task in tasks):
        names = [task.name for task in tasks if task.kind == kind]
        parts = [cells[name].p for name in names]
        if kind == "multiclass":
            width = max(part.shape[1] for part in parts)
            parts = [np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts]
        # Each pooled label keeps the threshold of its task.
        at = [np.full(len(cells[name].y), thresholds.get(name, DEFAULT)) for name in names]
        y, p = np.concatenate([cells[name].y for name in names]), np.concatenate(parts)
        found = scores_of(kind, y, p, np.concatenate(at), recall)
        # Class 0 of one task is not class 0 of another.
        micro[kind] = replace(found, auc=float("nan"), classes=0) if kind == "multiclass" else found
    return Report(rows, scores, micro, recall=recall, thresholds=dict(thresholds))


def _known_cells(
    model: keras.Model, dataset: Any, tasks: Sequence[Task], progress: bool
) -> tuple[int, dict[str, Known]]:
    """Return the number of rows, and the known labels of each task with their predictions."""
    columns = output_columns(tasks)
    labels, predictions = collected(model, dataset, columns, progress)
    cells = {}
    for key, positions in columns.items():
        served = [tasks[position] for position in positions]
        p = predictions[key]
        _check_shapes(served, labels[key], p)
        for column, task in enumerate(served):
            shown = p if task.kind == "multiclass" else p[:, column]
            cells[task.name] = _known_of(task, labels[key][:, column], shown)
    rows = len(next(iter(labels.values())))
    return rows, {task.name: cells[task.name] for task in tasks}


def collected(
    model: keras.Model, dataset: Any, columns: Mapping[str, Sequence[int]], progress: bool
) -> tuple[Arrays, Arrays]:
    """Return all labels and all predictions by output."""
    labels: list[Arrays] = []
    predictions: list[Arrays] = []
    batches = int(dataset.cardinality()) if hasattr(dataset, "cardinality") else -1
    with progress_bar("evaluating", max(batches, 0) or None, progress) as advance:
        for batch in dataset:
            if len(batch) != 2:
                raise ValueError(f"`dataset` must yield (inputs, labels), got {len(batch)} parts")
            labels.append(_by_output(batch[1], columns, "dataset"))
            predictions.append(_by_output(model.predict_on_batch(batch[0]), columns, "model"))
            advance()
    if not labels:
        raise ValueError("`dataset` must have at least one batch, got none")
    return _joined(labels), _joined(predictions)


def _joined(batches: Sequence[Arrays]) -> Arrays:
    """Concatenate batches by output."""
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def _by_output(found: Any, columns: Mapping[str, Sequence[int]], source: str) -> Arrays:
    """Return labels or predictions of a batch by output, (batch, columns) each.

    Labels may have further outputs, such as those of tasks that are left out; predictions may not.
    """
    named = found if isinstance(found, Mapping) else {}
    if len(columns) == 1 and found is not named:
        named = dict.fromkeys(columns, found)
    beyond = set(named) - set(columns) if source == "model" else ()
    if beyond or not set(columns) <= set(named):
        shown = list(found) if found is named else type(found).__name__
        raise ValueError(
            f"`{source}` must give the outputs {list(columns)} of `tasks`, got {shown}"
        )
    arrays = {key: np.asarray(named[key]) for key in columns}
    return {key: a.reshape(-1, 1) if a.ndim == 1 else a for key, a in arrays.items()}


def _check_shapes(tasks: Sequence[Task], labels: np.ndarray, predictions: np.ndarray) -> None:
    """Raise ValueError unless there is a column of labels and predictions for each task."""
    names, width = [task.name for task in tasks], sum(task.outputs for task in tasks)
    if labels.shape == (len(predictions), len(tasks)) and predictions.shape[1:] == (width,):
        return
    without = ""
    if width == len(names):
        fewest, _, most = sorted((labels.shape[-1], predictions.shape[-1], width))
        without += f". Tasks without a column: {names[fewest:]}" if fewest < width else ""
        without += f". Columns without a task: {list(range(width, most))}" if most > width else ""
    raise ValueError(
        f"`tasks` must fit labels and predictions: {names} need (rows, {len(names)}) and (rows, "
        f"{width}), got {labels.shape} and {predictions.shape}{without}"
    )


def _known_of(task: Task, labels: np.ndarray, predictions: np.ndarray) -> Known:
    """Return the known labels of a task.

    Args:
        task: whose column it is; says which labels are valid, and which were uncertain.
        labels: (rows,), NaN = missing.
        predictions: (rows,), or (rows, classes) of a multiclass task.

    Raises:
        ValueError: a known label is invalid, or its prediction is NaN or out of range. What is
            predicted for missing labels does not matter.
    """
    known = ~np.isnan(labels)
    softened = task.uncertain_as
    if not isinstance(softened, str) and 0 < softened < 1:
        known &= labels.astype("float32") != np.float32(softened)
    y, p = labels[known], predictions[known]
    classes = max(2, task.outputs)
    valid, must = np.isin(y, range(classes)), f"0 to {classes - 1}"
    good, given = (p >= 0) & (p <= 1), "numbers from 0 to 1"
    if task.kind == "regression":
        valid, good, must, given = np.isfinite(y), np.isfinite(p), *["finite numbers"] * 2
    elif task.kind == "multiclass":
        good = good & (np.abs(p.sum(axis=1, keepdims=True) - 1) < 1e-2)
        given = "probabilities that sum to 1"
    if not valid.all():
        raise ValueError(
            f"`dataset` must have labels {must} or NaN (= missing) of task {task.name!r}, "
            f"got {sorted({float(label) for label in y[~valid]})[:5]}"
        )
    nan = np.isnan(p).any(axis=tuple(range(1, p.ndim)))
    if nan.any():
        raise ValueError(
            f"`model` must predict numbers, got NaN for {int(nan.sum())} known labels of task "
            f"{task.name!r}; its training has diverged"
        )
    if not good.all():
        raise ValueError(
            f"`model` must predict {given} for task {task.name!r}, got "
            f"{[float(value) for value in p[~good][:3]]}"
        )
    return Known(np.flatnonzero(known), y, p)
