"""The losses that fit the kinds of the tasks, for `model.compile`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kerasmtl.losses.binary import MaskedBinaryCrossentropy
from kerasmtl.losses.multiclass_regression import MaskedCategoricalCrossentropy, MaskedHuber
from kerasmtl.tasks import Task, all_binary, output_columns


def target_scales(
    tasks: Sequence[Task], labels: np.ndarray | None
) -> dict[str, tuple[float, float]]:
    """By regression task, mean and standard deviation of its known labels.

    Shapes: labels (rows, tasks), NaN = missing; None: no task has a scale. Labels that are all
    equal have the deviation 1; a task with no known label has no scale.

    Raises:
        ValueError: the labels do not fit the tasks.
    """
    if labels is None:
        return {}
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.shape[1] != len(tasks):
        raise ValueError(
            f"`labels` do not fit the tasks. Expected shape (rows, {len(tasks)}). Received: "
            f"{labels.shape}"
        )
    scales = {}
    for task, column in zip(tasks, labels.T, strict=True):
        known = column[~np.isnan(column)].astype("float64")
        if task.kind == "regression" and len(known):
            scales[task.name] = float(known.mean()), float(known.std()) or 1.0
    return scales


def for_tasks(tasks: Sequence[Task], labels: np.ndarray | None = None) -> Any:
    """One loss for tasks that are all binary; otherwise a dict, one loss for each output.

    Binary: `MaskedBinaryCrossentropy`; multiclass: `MaskedCategoricalCrossentropy`; regression:
    `MaskedHuber`. All are sums over what is known, and so is the total. The weights of the tasks
    are those of `Task.weight`.

    Shapes: labels (rows, tasks), those of the training rows, NaN = missing. With them the loss of a
    regression task is that of its labels brought to a spread of 1: δ is their standard deviation s,
    and the weight 1/s². Without them a task should have a spread of about 1 itself. Pass the same
    labels to `build_model`.
    """
    if all_binary(tasks):
        return _loss(tasks, 1.0)
    scales = target_scales(tasks, labels)
    return {
        key: _loss([tasks[column] for column in columns], scales.get(key, (0.0, 1.0))[1])
        for key, columns in output_columns(tasks).items()
    }


def _loss(tasks: Sequence[Task], spread: float) -> keras.losses.Loss | None:
    made = {
        "binary": MaskedBinaryCrossentropy,
        "multiclass": MaskedCategoricalCrossentropy,
        "regression": MaskedHuber,
    }[tasks[0].kind]
    weights = [task.weight for task in tasks]
    if not any(weights):
        return None  # an output that only tasks of weight 0 share is not trained
    if spread != 1.0:
        return MaskedHuber(delta=spread, task_weights=[weights[0] / spread**2])
    return made() if set(weights) == {1.0} else made(task_weights=weights)
