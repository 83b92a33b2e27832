"""The gate before publication: a model that scores worse than demanded is not exported."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

ERRORS = {"brier", "ece", "log_loss", "mae", "rmse"}  # the lower, the better


class NotGoodEnough(ValueError):
    """The model scores worse than `require` demands; nothing was published."""


def check_gate(metrics: Mapping[str, Any] | None, require: Mapping[str, float] | None) -> None:
    """Let a model pass whose scores are as demanded, or better.

    Args:
        metrics: as `Report.to_dict` makes it.
        require: such as {"macro_auc": 0.8, "car.auc": 0.7, "price.mae": 3}: the mean over the
            tasks that define a score (of binary tasks, if they have it), or that of one task. Of
            errors (Brier, ECE, log loss, MAE, RMSE) the number is the most that is allowed.

    Raises:
        NotGoodEnough: a score is worse or not defined; names all of them.
        ValueError: there are no metrics, or none of that name.
    """
    if not require:
        return
    if metrics is None:
        raise ValueError(
            "`require` needs scores. Expected metrics=kerasmtl.evaluate(…) or validation=…"
        )
    failed = []
    for name, wanted in require.items():
        if not isinstance(wanted, Real) or isinstance(wanted, bool):
            raise ValueError(
                f"`require` {name!r} is no number. Expected one, such as 0.8. Received: {wanted!r}"
            )
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
            return score, scores[score]
    elif name == "macro_auc" and name in metrics:
        return "auc", metrics[name]
    elif name.startswith("macro_"):
        score = name.removeprefix("macro_")
        for scores in metrics.get("macro", {}).values():
            if score in scores:
                return score, scores[score]["mean"]
    raise ValueError(
        "`require` names no score. Expected macro_auc, macro_SCORE or TASK.SCORE, with tasks of "
        f"{sorted(metrics.get('tasks', {}))[:20]}. Received: {name!r}"
    )
