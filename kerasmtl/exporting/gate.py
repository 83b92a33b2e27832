"""The gate before publication: a model that scores worse than demanded is not exported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from kerasmtl.report import KINDS, asked_for
from kerasmtl.tasks import Task

ERRORS = {"brier", "ece", "log_loss", "mae", "rmse"}  # the lower, the better


class NotGoodEnough(ValueError):
    """The model scores worse than `require` demands; nothing was published."""


def check_required(
    require: Mapping[str, float] | None, tasks: Sequence[Task] | None = None
) -> None:
    """Raise ValueError for what no gate can be, before anything takes time.

    With `tasks`, the names are those of the scores that `evaluate` gives for them.
    """
    if require is None:
        return
    if not isinstance(require, Mapping):
        raise ValueError(
            '`require` is no dict. Expected scores and numbers, such as {"macro_auc": 0.8}. '
            f"Received: {str(require)[:80]}"
        )
    for name, wanted in require.items():
        if not isinstance(wanted, Real) or isinstance(wanted, bool) or not math.isfinite(wanted):
            raise ValueError(
                f"`require` {name!r} is no number. Expected one, such as 0.8. Received: {wanted!r}"
            )
    if tasks is None:
        return
    scores = {kind: dict.fromkeys(asked_for(kind), 0.0) for kind in KINDS}
    empty = {
        "macro_auc": 0.0,
        "tasks": {task.name: scores[task.kind] for task in tasks},
        "macro": {task.kind: {s: {"mean": 0.0} for s in scores[task.kind]} for task in tasks},
    }
    for name in require:
        _score(empty, name)


def check_gate(metrics: Mapping[str, Any] | None, require: Mapping[str, float] | None) -> None:
    """Let a model pass whose scores are as demanded, or better.

    Args:
        metrics: as `Report.to_dict` makes it.
        require: such as {"macro_auc": 0.8, "car.auc": 0.7, "price.mae": 3}: "macro_" and a score,
            its mean over the tasks of one kind that define it (of binary tasks, if they have it;
            macro_auc also goes over multiclass tasks), or "task.score", that of one task. Of errors
            (Brier, ECE, log loss, MAE, RMSE) the number is the most that is allowed.

    Raises:
        NotGoodEnough: a score is worse or not defined; names all of them.
        ValueError: there are no metrics, or none of that name.
    """
    check_required(require)
    if not require:
        return
    if metrics is None:
        raise ValueError(
            "`require` needs scores. Expected metrics=kerasmtl.evaluate(…) or validation=…"
        )
    failed = []
    for name, wanted in require.items():
        score, found = _score(metrics, name)
        error = score in ERRORS
        if found is None or (found > wanted if error else found < wanted):
            shown = "not defined" if found is None else f"{found:.4f}"
            failed.append(f"{name} is {shown}, {'at most' if error else 'at least'} {wanted:g}")
    if failed:
        raise NotGoodEnough(
            "`model` does not pass `require`, and is not published; the former version stays. "
            f"Expected and received: {'; '.join(failed)}"
        )


def _score(metrics: Mapping[str, Any], name: str) -> tuple[str, float | None]:
    """The score's own name, and its value; None = not defined."""
    task, dot, score = name.rpartition(".")
    if dot:
        scores = metrics.get("tasks", {}).get(task, {})
        if score in scores and score != "kind":
            return score, _defined(scores[score])
    elif name == "macro_auc" and name in metrics:
        return "auc", _defined(metrics[name])
    elif name.startswith("macro_"):
        score = name.removeprefix("macro_")
        for scores in metrics.get("macro", {}).values():
            if score in scores:
                return score, _defined(scores[score]["mean"])
    tasks = metrics.get("tasks", {})
    known = [key for key in tasks.get(task, {}) if key != "kind"] if dot else []
    with_ = f"a score of {task!r}: {known}" if known else f"tasks of {sorted(tasks)[:20]}"
    raise ValueError(
        "`require` names no score. Expected macro_auc, macro_SCORE or TASK.SCORE, with "
        f"{with_}. Received: {name!r}"
    )


def _defined(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else value
