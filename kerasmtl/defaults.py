"""The losses and metrics that fit the kinds of the tasks, for `model.compile`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kerasmtl import losses, metrics
from kerasmtl.scales import target_scales
from kerasmtl.tasks import Task, all_binary, output_columns


def default_losses(tasks: Sequence[Task], labels: np.ndarray | None = None) -> Any:
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


def default_metrics(tasks: Sequence[Task]) -> Any:
    """A list of metrics for tasks that are all binary; otherwise a dict of lists, by output.

    Binary: AUC and accuracy; multiclass: accuracy; regression: mean absolute error.
    """
    if all_binary(tasks):
        return _metrics("binary")
    return {key: _metrics(tasks[columns[0]].kind) for key, columns in output_columns(tasks).items()}


def _loss(tasks: Sequence[Task], spread: float) -> keras.losses.Loss | None:
    made = {
        "binary": losses.MaskedBinaryCrossentropy,
        "multiclass": losses.MaskedCategoricalCrossentropy,
        "regression": losses.MaskedHuber,
    }[tasks[0].kind]
    weights = [task.weight for task in tasks]
    if not any(weights):
        return None  # an output that only tasks of weight 0 share is not trained
    if spread != 1.0:
        return losses.MaskedHuber(delta=spread, task_weights=[weights[0] / spread**2])
    return made() if set(weights) == {1.0} else made(task_weights=weights)


def _metrics(kind: str) -> list[keras.metrics.Metric]:
    if kind == "binary":
        return [metrics.MaskedAUC(), metrics.MaskedBinaryAccuracy()]
    if kind == "multiclass":
        return [metrics.MaskedCategoricalAccuracy()]
    return [metrics.MaskedMAE()]
