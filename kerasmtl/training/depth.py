"""How much of a network the labels are enough for: the rule behind `plan="auto"`.

It knows neither Keras nor TensorFlow, so that `kerasmtl check` starts at once.

`plans.choose_plan` asks `choose_depth`; `kerasmtl check` prints `advice` before anything is
trained.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from kerasmtl.tasks import Task

# Known labels of the median task, and weights of the backbone for each known label of all tasks.
# From benchmarks/plans.py, and from street photographs with 70 labels per task, on which training
# the head alone was 0.005 better.
LITTLE = 80
HEAD_ALONE = 20_000
LAST_ALONE = 5_000


UNJUDGED = "the validation part has too few labels to judge fine-tuning"
JUDGES = 20  # labels of the rarer answer in the validation part, from which on it can rank epochs


def can_judge(labels: np.ndarray, tasks: Sequence[Task]) -> bool:
    """Return whether a validation part can tell a better network from a worse one.

    Args:
        labels: of the validation part, (rows, tasks), NaN = missing.
        tasks: of the columns.

    Returns:
        Whether the median task has 20 labels of its rarer answer (of each answer on average, where
        there are more than two; 40 values of a regression task).
    """
    counts = []
    for task, column in zip(tasks, labels.T, strict=True):
        if not task.weight:  # it has no loss, and judges nothing
            continue
        known = column[~np.isnan(column)]
        if task.kind == "binary":
            counts.append(min((known >= 0.5).sum(), (known < 0.5).sum()))
        else:
            counts.append(len(known) / (task.outputs if task.kind == "multiclass" else 2))
    return bool(counts) and float(np.median(counts)) >= JUDGES


def typical(known: Sequence[int]) -> int:
    """Return the number of known labels of the median task.

    The median, since one task with many labels does not help the others.

    Args:
        known: for each task, how many rows have a label; at least one task.
    """
    return int(statistics.median(known))


def choose_depth(known: Sequence[int], parameters: int) -> tuple[str, str]:
    """Return the name of the plan that fits the labels, and the reason.

    Args:
        known: for each task, how many rows of the training split have a label.
        parameters: number of weights of the backbone, 1 or more.

    Returns:
        "head", "last-layers" or "gradual", and the reason as the end of a sentence.

    Example:
        >>> choose_depth([40, 60], 1_000_000)[0]
        'head'
        >>> choose_depth([4000, 6000], 1_000_000)[0]
        'gradual'
    """
    share = parameters / max(sum(known), 1)
    if typical(known) < LITTLE:
        return "head", f"below {LITTLE} labels nothing shows whether more would help"
    if share > HEAD_ALONE:
        return "head", f"above {HEAD_ALONE:,} the backbone would overfit them"
    if share > LAST_ALONE:
        return "last-layers", f"above {LAST_ALONE:,} the last layers are enough"
    return "gradual", "enough to train everything, from the last layers on"


def after_the_head(
    train: np.ndarray, validation: np.ndarray, tasks: Sequence[Task], parameters: int
) -> tuple[str, str]:
    """Return what follows a head that was chosen by folds: the name of a plan, and the reason.

    Args:
        train, validation: labels of the parts, (rows, tasks), NaN = missing.
        tasks: of the columns.
        parameters: number of weights of the backbone.

    Returns:
        As `choose_depth`; "head" where the validation part cannot judge what more would bring.
    """
    if not can_judge(validation, tasks):
        return "head", UNJUDGED
    return choose_depth((~np.isnan(train)).sum(axis=0).tolist(), parameters)


def advice(train: np.ndarray, validation: np.ndarray, tasks: Sequence[Task]) -> str:
    """Say what `plan="auto"` does with these labels, whatever the backbone.

    Args:
        train, validation: labels of the parts, (rows, tasks), NaN = missing.
        tasks: of the columns.
    """
    if not can_judge(validation, tasks):
        return (
            'plan="auto" fits the head alone: the median task has fewer than '
            f"{JUDGES} labels of its rarer answer (values of a regression: {2 * JUDGES}) in the "
            "validation part, too few to judge fine-tuning."
        )
    known = (~np.isnan(train)).sum(axis=0).tolist()
    if typical(known) < LITTLE:
        return (
            f'plan="auto" fits the head alone: the median task has {typical(known)} known labels '
            f"in the train part, below {LITTLE}."
        )
    total = sum(known)
    return (
        f'plan="auto" fits the head, and then trains everything if the backbone has at most '
        f"{LAST_ALONE * total:,} weights, or its last layers if at most {HEAD_ALONE * total:,}; "
        f"the train part has {total:,} known labels."
    )
