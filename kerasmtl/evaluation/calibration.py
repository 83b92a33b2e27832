"""Decision thresholds and temperatures, fitted on known labels alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import keras
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax
from sklearn.metrics import precision_recall_curve

from kerasmtl.evaluation.evaluate import DEFAULT, scores_and_cells
from kerasmtl.masking import is_known
from kerasmtl.tasks import Task, as_tasks
from kerasmtl.utils.text import shortened, warn

BELOW = 1e-3  # how far a threshold is below the lowest probability, if all count as 1
FEWEST = 5  # known labels of each class that a fit needs
TEMPERATURES = (0.05, 20.0)  # the range that is searched
TINY = 2.0**-23  # probabilities nearer to 0 and 1 have no logit; 1 - TINY is a float32

Rule = str | float | tuple[str, float]
# Known labels of one task, and their predictions.
Cells = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Fitted:
    """A threshold or temperature, its rule, the number of known labels, and a note on problems."""

    value: float | None
    rule: str
    known: int
    note: str | None = None


@dataclass(frozen=True)
class Decision:
    """How the probabilities of one task are calibrated and decided; None where not applicable.

    `scores`: precision, recall and F1 at the threshold, on the labels that it was fitted on.
    """

    threshold: float | None = None
    temperature: float | None = None
    rule: str | None = None
    known: int = 0
    notes: tuple[str, ...] = ()
    scores: Mapping[str, float | None] = field(default_factory=dict)


def fit_thresholds(y_true: Any, p: Any, rule: Rule = "f1") -> tuple[Fitted, ...]:
    """Fit from which probability on (p >= threshold) the prediction of each task counts as 1.

    Thresholds are midway between the probabilities that they separate, or, if all are on one side,
    a little below the lowest. A task with fewer than 5 known labels of a class gets 0.5 and a note.

    Args:
        y_true: (rows, tasks) or (rows,), 1, 0 or NaN = missing.
        p: same shape, probabilities.
        rule: "f1": the best F1. ("precision", 0.9): the best recall at a precision of 0.9 or more,
            or, if none reaches it, the best precision. ("recall", 0.9): the best precision at a
            recall of 0.9 or more. "precision>=0.9" is the same as text. A number, or "fixed" for
            0.5: that threshold.

    Returns:
        One per task, with `value`, `rule`, `known` and `note`.

    Raises:
        ValueError: an unknown rule, shapes that differ, other labels, or values that are not
            probabilities.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> y = np.array([0] * 6 + [1] * 6 + [np.nan])
        >>> p = np.array([0.1] * 6 + [0.3] * 6 + [0.9])
        >>> (found,) = kt.calibration.fit_thresholds(y, p)
        >>> round(found.value, 3), found.known
        (0.2, 12)
    """
    name, wanted = parse_rule(rule)
    return tuple(_threshold(y, q, name, wanted) for y, q in _cells(y_true, p))


def fit_temperatures(y_true: Any, p: Any) -> tuple[Fitted, ...]:
    """Fit the temperature T of each binary task that maximizes the likelihood of known labels.

    Calibrated probabilities are `sigmoid(logit(p) / T)`. A task with fewer than 5 known labels of a
    class gets 1 and a note.

    Args:
        y_true: (rows, tasks) or (rows,), 1, 0 or NaN = missing.
        p: same shape, probabilities.

    Returns:
        One per task, with `value`, `rule`, `known` and `note`.

    Raises:
        ValueError: shapes that differ, other labels, or values that are not probabilities.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> y = np.array([1, 1, 1, 0] * 5 + [0, 0, 0, 1] * 5)  # 3/4 and 1/4 are positive
        >>> p = np.array([0.9] * 20 + [0.1] * 20)  # too sure: logit(0.9) / logit(0.75) = 2
        >>> (found,) = kt.calibration.fit_temperatures(y, p)
        >>> round(found.value, 2)
        2.0
    """
    found = []
    for y, q in _cells(y_true, p):
        scores = _logit(q)[:, None] * (0.0, 1.0)  # of the classes 0 and 1
        found.append(_temperature(y.astype(int), scores, min((y == 1).sum(), (y == 0).sum())))
    return tuple(found)


def fit_class_temperature(y_true: Any, p: Any) -> Fitted:
    """Fit the T of `softmax(log(p) / T)` that maximizes the likelihood of known classes.

    Args:
        y_true: (rows,), positions of classes, NaN = missing. Fewer than 10 known labels give 1.
        p: (rows, classes), probabilities.
    """
    y, q = np.asarray(y_true, "float64"), np.asarray(p, "float64")
    y, q = y[is_known(y)], q[is_known(y)]
    return _temperature(y.astype(int), np.log(np.maximum(q, TINY)), len(y) // 2)


def calibrated(p: np.ndarray, temperature: float, classes: bool = False) -> np.ndarray:
    """Return probabilities at a temperature, float64, (n,) or (n, classes); 1 changes nothing."""
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
    """Fit the decision thresholds of a model's tasks on known validation labels.

    The probabilities are those of the model, not calibrated. Warns where a threshold is not what
    was asked for.

    Args:
        model: as `build_model` makes it.
        validation: batches of (inputs, labels), as `kt.evaluate` takes them, NaN = missing; or
            None: then every threshold is 0.5.
        tasks: what the outputs predict, in order.
        thresholds: a rule of `fit_thresholds` for all tasks, or a dict of task name and rule; "f1"
            by default.

    Returns:
        A decision per task, for `threshold=` of `kt.evaluate` and `decisions=` of
        `kt.export_saved_model`.

    Raises:
        ValueError: an unknown rule or task, or a rule that needs `validation` without it.

    Example:
        >>> import keras
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> inputs = keras.Input((1,))
        >>> model = keras.Model(inputs, keras.layers.Activation("sigmoid")(inputs))
        >>> x = np.linspace(-3, 3, 13)[:, None]
        >>> y = np.where(x > 1, 1, np.where(x < 0, 0, np.nan))
        >>> decisions = kt.calibration.fit_decisions(model, [(x, y)], ["cat"], "fixed")
        >>> decisions["cat"].threshold, decisions["cat"].known
        (0.5, 10)
    """
    chosen = as_tasks(tasks)
    check_rules(chosen, thresholds, False, validation is not None)
    cells = None if validation is None else scores_and_cells(model, validation, chosen)[1]
    return decide(chosen, cells, thresholds, calibrate=False)


def decide(
    tasks: Sequence[Task],
    cells: Mapping[str, Cells] | None,
    thresholds: Rule | Mapping[str, Rule | Decision] | None,
    calibrate: bool,
) -> dict[str, Decision]:
    """Return how each task decides, fitted on its known labels if there are any.

    Thresholds are those of the calibrated probabilities. A `Decision` that is given stays as it is.
    Warns where another is not what was asked for.

    Args:
        tasks: of the model.
        cells: known labels and their predictions by task, as `scores_and_cells` returns them.
        thresholds: one rule for all binary tasks, or rules and decisions by task name.
        calibrate: whether temperatures are fitted.

    Raises:
        ValueError: an unknown rule or task, or one that needs known labels without them.
    """
    rules = check_rules(tasks, thresholds, calibrate, cells is not None)
    empty = (np.zeros(0), np.zeros(0))
    found, notes = {}, []
    for task in tasks:
        decision = rules.get(task.name)
        if not isinstance(decision, Decision):
            decision = _decision(task, (cells or {}).get(task.name, empty), decision, calibrate)
            notes += [f"{task.name!r}: {note}" for note in decision.notes]
        found[task.name] = decision
    if notes:
        warn(f"Decisions of {shortened(notes)}; the model card has all of them.")
    return found


def check_rules(
    tasks: Sequence[Task],
    thresholds: Rule | Mapping[str, Rule | Decision] | None,
    calibrate: bool,
    fitted: bool,
) -> dict[str, Rule | Decision]:
    """Return the rule of each binary task, and the decisions that are given.

    Args:
        tasks, thresholds, calibrate: as of `decide`.
        fitted: whether there are known labels to fit on.

    Raises:
        ValueError: as `decide`.
    """
    names = [task.name for task in tasks if task.kind == "binary"]
    if not isinstance(thresholds, Mapping):
        rule = ("f1" if fitted else "fixed") if thresholds is None else thresholds
        parse_rule(rule)  # also without a binary task
        thresholds = dict.fromkeys(names, rule)
    rules = dict.fromkeys(names, "f1" if fitted else "fixed") | dict(thresholds)
    asked = {name: rule for name, rule in rules.items() if not isinstance(rule, Decision)}
    unknown = sorted(set(asked) - set(names))
    if unknown:
        raise ValueError(f"`thresholds` must name binary tasks of {names}, got {unknown}")
    needed = [parse_rule(rule)[0] != "fixed" for rule in asked.values()]
    if not fitted and (calibrate or any(needed)):
        raise ValueError(
            '`validation` must be a data set to fit on, got None; thresholds="fixed" needs none'
        )
    return rules


def parse_rule(rule: Rule) -> tuple[str, float]:
    """Return a rule as its name and number: ("f1", nan), ("precision", 0.9), ("fixed", 0.5).

    Raises:
        ValueError: it is not a rule.
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
        '`thresholds` must be "f1", "fixed", a number from 0 to 1, ("precision", 0.9) or '
        f'("recall", 0.9), got {rule!r}'
    )


def _decision(task: Task, cells: Cells, rule: Rule | None, calibrate: bool) -> Decision:
    """Fit the threshold and temperature of one task on its known labels."""
    if task.kind == "regression":
        return Decision()
    (y, p), several = cells, task.kind == "multiclass"
    heat = Fitted(1.0, "fixed", len(y))
    if calibrate:
        heat = fit_class_temperature(y, p) if several else fit_temperatures(y, p)[0]
    if several:
        cut, scores = Fitted(None, "argmax", len(y)), {}
    else:
        q = calibrated(p, heat.value)
        cut = fit_thresholds(y, q, rule)[0]
        scores = scores_at(y, q, cut.value)
    notes = tuple(found.note for found in (heat, cut) if found.note)
    return Decision(cut.value, heat.value, cut.rule, cut.known, notes, scores)


def scores_at(y: np.ndarray, p: np.ndarray, threshold: float) -> dict[str, float | None]:
    """Return precision, recall and F1 of p >= threshold; None where the labels define none."""
    if not len(y):
        return {}
    decided, positive = p >= threshold, y == 1
    hits, predicted, actual = (int(s.sum()) for s in (decided & positive, decided, positive))
    return {
        "precision": hits / predicted if predicted else None,
        "recall": hits / actual if actual else None,
        "f1": 2 * hits / (predicted + actual) if actual else None,
    }


def _cells(y_true: Any, p: Any) -> list[Cells]:
    """Return the known labels of each task and their probabilities, checked."""
    y, q = np.asarray(y_true, "float64"), np.asarray(p, "float64")
    if y.shape != q.shape or y.ndim not in (1, 2):
        raise ValueError(f"`p` must have the shape of `y_true`, {y.shape}, got {q.shape}")
    columns = zip(np.atleast_2d(y.T), np.atleast_2d(q.T), strict=True)
    found = [(labels[is_known(labels)], values[is_known(labels)]) for labels, values in columns]
    for labels, values in found:
        for name, given, good, must in (
            ("y_true", labels, np.isin(labels, (0, 1)), "0, 1 or NaN (= missing)"),
            ("p", values, (values >= 0) & (values <= 1), "probabilities"),
        ):
            if not good.all():
                shown = sorted(map(float, set(given[~good])))[:5]
                raise ValueError(f"`{name}` must be {must}, got {shown}")
    return found


def _threshold(y: np.ndarray, p: np.ndarray, name: str, wanted: float) -> Fitted:
    """Fit the threshold of one task by a rule, as `parse_rule` returns it."""
    known = len(y)
    shown = name if name in ("f1", "fixed") else f"{name}>={wanted:g}"
    if name == "fixed":
        return Fitted(wanted, shown, known)
    fewest = int(min((y == 1).sum(), (y == 0).sum()))
    if fewest < FEWEST:
        note = f"{fewest} known labels of one class are too few for {shown}: the threshold is 0.5"
        return Fitted(DEFAULT, "fixed", known, note)
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
    """Return the middle to the next lower probability, so that rounding decides nothing."""
    below = p[p < threshold]
    if not len(below):
        return threshold - min(BELOW, threshold / 2)
    middle = float(np.float32((below.max() + threshold) / 2))
    return middle if below.max() < middle <= threshold else threshold


def _temperature(y: np.ndarray, scores: np.ndarray, fewest: int) -> Fitted:
    """Fit T of `softmax(scores / T)` to the classes y."""
    if fewest < FEWEST:
        note = f"{len(y)} known labels are too few for a temperature: it is 1"
        return Fitted(1.0, "fixed", len(y), note)

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(scores / np.exp(log_temperature), axis=1)
        return -float(scaled[np.arange(len(y)), y].mean())

    found = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded")
    return Fitted(float(np.exp(found.x)), "likelihood", len(y))


def _logit(p: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)), finite for 0 and 1."""
    p = np.clip(np.asarray(p, "float64"), TINY, 1 - TINY)
    return np.log(p) - np.log1p(-p)
