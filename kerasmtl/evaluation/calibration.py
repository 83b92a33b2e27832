"""From probabilities to decisions: thresholds and temperatures, fitted on known labels alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import keras
import numpy as np

from kerasmtl.evaluation.evaluate import scores_and_cells
from kerasmtl.masking import is_known
from kerasmtl.tasks import Task, as_tasks

DEFAULT = 0.5
NOTES = 5  # that are shown
BELOW = 1e-3  # a threshold under all probabilities is that much under them
FEWEST = 5  # known labels of each class; fewer say too little
TEMPERATURES = (0.05, 20.0)  # the range that is searched
TINY = 2.0**-23  # closer to 0 and 1 no logit is computed; 1 - TINY is a float32

Rule = str | float | tuple[str, float]
# Of one task: labels, predictions, on its known cells.
Cells = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Fitted:
    """A threshold or temperature, the rule it follows, how many labels it rests on, and why not."""

    value: float
    rule: str
    known: int
    note: str | None = None


@dataclass(frozen=True)
class Decision:
    """How the answer of one task is calibrated and decided; None where that has no meaning.

    `scores`: precision, recall and F1 at the threshold, on the labels that it was fitted on.
    """

    threshold: float | None = None
    temperature: float | None = None
    rule: str | None = None
    known: int = 0
    notes: tuple[str, ...] = ()
    scores: Mapping[str, float | None] = field(default_factory=dict)


def fit_thresholds(y_true: Any, p: Any, rule: Rule = "f1") -> tuple[Fitted, ...]:
    """By task, the threshold from which on (p >= threshold) a probability counts as 1.

    Shapes: y_true (rows, tasks) or (rows,), 1, 0 or NaN = missing; p alike, probabilities.

    "f1": the best F1. ("precision", 0.9): the best recall at a precision of 0.9 or more, or, if
    none is, the best precision. ("recall", 0.9): the best precision at a recall of 0.9 or more.
    "precision>=0.9" is the same as text. A number, or "fixed" for 0.5: that one. A task with fewer
    than 5 known labels of a class gets 0.5 and a note. Thresholds lie midway between the
    probabilities that they divide, or, if all are on one side, a little below the lowest.

    Raises:
        ValueError: an unknown rule, shapes that differ, other labels, or no probabilities.
    """
    name, wanted = parse_rule(rule)
    return tuple(_threshold(y, q, name, wanted) for y, q in _cells(y_true, p))


def fit_temperatures(y_true: Any, p: Any) -> tuple[Fitted, ...]:
    """By task, the T of sigmoid(logit(p) / T) that makes the known labels the likeliest.

    Shapes: as `fit_thresholds`. A task with fewer than 5 known labels of a class gets 1.

    Raises:
        ValueError: shapes that differ, other labels, or no probabilities.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2.
    """
    found = []
    for y, q in _cells(y_true, p):
        positive = _logit(q)[:, None] * (0.0, 1.0)  # the two classes' scores
        found.append(_temperature(y.astype(int), positive, min((y == 1).sum(), (y == 0).sum())))
    return tuple(found)


def fit_class_temperature(y_true: Any, p: Any) -> Fitted:
    """The T of softmax(log(p) / T) that makes the known classes of one task the likeliest.

    Shapes: y_true (rows,), positions of classes, NaN = missing; p (rows, classes). Fewer than 10
    known labels give 1.

    Raises:
        ValueError: shapes that differ, other labels, or no probabilities.
    """
    y, q = np.asarray(y_true, "float64"), np.asarray(p, "float64")
    if y.ndim != 1 or q.ndim != 2 or len(y) != len(q):
        raise ValueError(
            "`p` does not fit `y_true`. Expected (rows,) labels and (rows, classes) probabilities. "
            f"Received: {y.shape} and {q.shape}"
        )
    known = is_known(y)
    y, q = y[known], q[known]
    _check(np.isin(y, range(q.shape[1])), y, "`y_true`", f"positions from 0 to {q.shape[1] - 1}")
    _check((q >= 0) & (q <= 1), q, "`p`", "probabilities")
    return _temperature(y.astype(int), np.log(np.maximum(q, TINY)), len(y) // 2)


def calibrated(p: np.ndarray, temperature: float, classes: bool = False) -> np.ndarray:
    """Probabilities at a temperature, float64: (cells,), or (cells, classes); 1 changes nothing."""
    from scipy.special import expit, softmax

    p = np.asarray(p, "float64")
    if temperature == 1.0:
        return p
    if classes:
        return softmax(np.log(np.maximum(p, TINY)) / temperature, axis=1)
    return expit(_logit(p) / temperature)


def fit_decisions(
    model: keras.Model,
    validation: Any,
    tasks: Iterable[Task | str],
    thresholds: Rule | Mapping[str, Rule] | None = None,
) -> dict[str, Decision]:
    """Fit from which probability on the answer of each task is yes, on known validation labels.

    The probabilities are those of the model, not calibrated.

    Shapes: validation yields (inputs, labels), as `evaluate` takes them, NaN = missing.

    Args:
        model: as `build_model` makes it.
        validation: batches, or None: then every threshold is 0.5.
        tasks: what the outputs predict, in order.
        thresholds: as of `export_saved_model`.

    Returns:
        By task a `Decision`, for `evaluate(threshold=…)` and `export_saved_model(thresholds=…)`.

    Raises:
        ValueError: as `export_saved_model`. Warns where a threshold is not what was asked for.
    """
    chosen = as_tasks(tasks)
    check_rules(chosen, thresholds, False, validation is not None)
    cells = None
    if validation is not None:
        _, cells = scores_and_cells(model, validation, chosen)
    decisions = decide(chosen, cells, thresholds, calibrate=False)
    warn_of(decisions)
    return decisions


def warn_of(decisions: Mapping[str, Decision]) -> None:
    """Warn where a decision is not what was asked for; the card has all of it."""
    notes = [f"{task!r}: {note}" for task, of in decisions.items() for note in of.notes]
    if notes:
        more = f"; {len(notes) - NOTES} more are in the model card" if len(notes) > NOTES else ""
        warnings.warn(f"Decisions of {'; '.join(notes[:NOTES])}{more}.", stacklevel=3)


def decide(
    tasks: Sequence[Task],
    cells: Mapping[str, Cells] | None,
    thresholds: Rule | Mapping[str, Rule | Decision] | None,
    calibrate: bool,
) -> dict[str, Decision]:
    """How each task decides, fitted on its known cells where there are any.

    Thresholds are those of the calibrated probabilities. A decision that is given stays as it is.

    Raises:
        ValueError: an unknown rule or task, or one that needs known cells where there are none.
    """
    chosen = check_rules(tasks, thresholds, calibrate, cells is not None)
    given = given_decisions(thresholds)
    empty = (np.zeros(0), np.zeros(0))
    return {
        task.name: given.get(task.name)
        or _decision(task, (cells or {}).get(task.name, empty), chosen.get(task.name), calibrate)
        for task in tasks
    }


def given_decisions(thresholds: Any) -> dict[str, Decision]:
    """What is decided already, among rules."""
    found = thresholds.items() if isinstance(thresholds, Mapping) else ()
    return {name: rule for name, rule in found if isinstance(rule, Decision)}


def check_rules(
    tasks: Sequence[Task],
    thresholds: Rule | Mapping[str, Rule | Decision] | None,
    calibrate: bool,
    fitted: bool,
) -> dict[str, Rule]:
    """The rule of each binary task; `fitted`: whether there are known cells to fit on.

    Raises:
        ValueError: as `decide`.
    """
    chosen = _rules(tasks, thresholds, fitted)
    if not fitted and (calibrate or any(_needs_labels(rule) for rule in chosen.values())):
        raise ValueError(
            "`validation` is absent, and thresholds or temperatures are fitted on it. Expected a "
            'data set. Call with validation=…, or with thresholds="fixed" and calibrate=False.'
        )
    return chosen


def parse_rule(rule: Rule) -> tuple[str, float]:
    """A rule as its name and number: ("f1", nan), ("precision", 0.9), ("fixed", 0.5).

    Raises:
        ValueError: it is none.
    """
    if isinstance(rule, str) and rule in ("f1", "fixed"):
        return rule, DEFAULT if rule == "fixed" else float("nan")
    if isinstance(rule, Real) and not isinstance(rule, bool) and 0 <= rule <= 1:
        return "fixed", float(rule)
    pair = tuple(rule.split(">=")) if isinstance(rule, str) else rule
    try:
        name, wanted = pair
        number = float(wanted)
    except (TypeError, ValueError):
        name, number = None, float("nan")
    if name in ("precision", "recall") and 0 < number <= 1:
        return name, number
    raise ValueError(
        '`thresholds` has no such rule. Expected "f1", "fixed", a number from 0 to 1, '
        f'("precision", 0.9) or ("recall", 0.9). Received: {rule!r}'
    )


def _rules(
    tasks: Sequence[Task], thresholds: Rule | Mapping[str, Rule] | None, fitted: bool
) -> dict[str, Rule]:
    default: Rule = "f1" if fitted else "fixed"
    names = [task.name for task in tasks if task.kind == "binary"]
    if not isinstance(thresholds, Mapping):
        parse_rule(default if thresholds is None else thresholds)
        return dict.fromkeys(names, default if thresholds is None else thresholds)
    given = given_decisions(thresholds)
    thresholds = {name: rule for name, rule in thresholds.items() if name not in given}
    names = [name for name in names if name not in given]
    unknown = sorted(set(thresholds) - set(names))
    if unknown:
        raise ValueError(
            f"`thresholds` names what is no binary task. Expected some of {names}. "
            f"Received: {unknown}"
        )
    for rule in thresholds.values():
        parse_rule(rule)
    return {name: thresholds.get(name, default) for name in names}


def _needs_labels(rule: Rule) -> bool:
    return parse_rule(rule)[0] != "fixed"


def _decision(task: Task, cells: Cells, rule: Rule | None, calibrate: bool) -> Decision:
    if task.kind == "regression":
        return Decision()
    y, p = cells
    warm = None
    if calibrate:
        several = task.kind == "multiclass"
        warm = fit_class_temperature(y, p) if several else fit_temperatures(y, p)[0]
    temperature = warm.value if warm else 1.0
    notes = [warm.note] if warm and warm.note else []
    if task.kind == "multiclass":
        return Decision(None, temperature, "argmax", len(y), tuple(notes))
    q = calibrated(p, temperature)
    found = fit_thresholds(y, q, rule)[0]
    notes += [found.note] if found.note else []
    scores = scores_at(y, q, found.value)
    return Decision(found.value, temperature, found.rule, found.known, tuple(notes), scores)


def scores_at(y: np.ndarray, p: np.ndarray, threshold: float) -> dict[str, float | None]:
    """Precision, recall and F1 of p >= threshold; None where the labels (cells,) define none."""
    decided, positive = p >= threshold, y == 1
    hits = int((decided & positive).sum())

    def share(of: int) -> float | None:
        return hits / of if of else None

    f1 = 2 * hits / int(decided.sum() + positive.sum()) if positive.any() else None
    found = {"precision": share(int(decided.sum())), "recall": share(int(positive.sum())), "f1": f1}
    return found if len(y) else {}


def _cells(y_true: Any, p: Any) -> list[Cells]:
    y, q = np.asarray(y_true, "float64"), np.asarray(p, "float64")
    if y.shape != q.shape or y.ndim not in (1, 2):
        raise ValueError(
            "`p` does not fit `y_true`. Expected the same shape, (rows, tasks). "
            f"Received: {y.shape} and {q.shape}"
        )
    if y.ndim == 1:
        y, q = y[:, None], q[:, None]
    found = []
    for labels, probabilities in zip(y.T, q.T, strict=True):
        known = is_known(labels)
        found.append((labels[known], probabilities[known]))
        _check(np.isin(found[-1][0], (0, 1)), found[-1][0], "`y_true`", "0, 1 and NaN = missing")
        _check((found[-1][1] >= 0) & (found[-1][1] <= 1), found[-1][1], "`p`", "probabilities")
    return found


def _check(good: np.ndarray, values: np.ndarray, name: str, expected: str) -> None:
    if not good.all():
        shown = sorted({float(value) for value in values[~good]})[:5]
        raise ValueError(f"{name} has other values. Expected {expected}. Received: {shown}")


def _threshold(y: np.ndarray, p: np.ndarray, name: str, wanted: float) -> Fitted:
    known = len(y)
    shown = name if name in ("f1", "fixed") else f"{name}>={wanted:g}"
    if name == "fixed":
        return Fitted(wanted, shown, known)
    fewest = int(min((y == 1).sum(), (y == 0).sum()))
    if fewest < FEWEST:
        note = f"{fewest} known labels of one class are too few for {shown}: the threshold is 0.5"
        return Fitted(DEFAULT, "fixed", known, note)
    from sklearn.metrics import precision_recall_curve

    precision, recall, at = precision_recall_curve(y, p)
    precision, recall = precision[:-1], recall[:-1]  # the last has no threshold
    note = None
    if name == "f1":
        score = 2 * precision * recall / np.maximum(precision + recall, TINY)
    elif name == "recall":
        score = np.where(recall >= wanted, precision, -1.0)
    elif (precision >= wanted).any():
        score = np.where(precision >= wanted, recall, -1.0)
    else:
        score = precision
        note = f"no threshold has a {shown}: this one has the best, {precision.max():.3g}"
    best = len(score) - 1 - int(np.argmax(score[::-1]))  # of equals the strictest
    return Fitted(_between(p, float(at[best])), shown, known, note)


def _between(p: np.ndarray, threshold: float) -> float:
    """Midway to the next lower probability: noise in the last digit then decides nothing."""
    below = p[p < threshold]
    if not len(below):
        return threshold - min(BELOW, threshold / 2)
    middle = float(np.float32((below.max() + threshold) / 2))
    return middle if below.max() < middle <= threshold else threshold


def _temperature(y: np.ndarray, scores: np.ndarray, fewest: int) -> Fitted:
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    if fewest < FEWEST:
        note = f"{len(y)} known labels are too few for a temperature: it is 1"
        return Fitted(1.0, "fixed", len(y), note)

    def loss(log_temperature: float) -> float:
        return -float(
            log_softmax(scores / np.exp(log_temperature), axis=1)[np.arange(len(y)), y].mean()
        )

    found = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded")
    return Fitted(float(np.exp(found.x)), "likelihood", len(y))


def _logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(np.asarray(p, "float64"), TINY, 1 - TINY)
    return np.log(p) - np.log1p(-p)
