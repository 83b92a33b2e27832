"""The losses and metrics that fit the kinds of the tasks, for `model.compile`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from kerasmtl import losses, metrics
from kerasmtl.tasks import Task, all_binary, output_columns


def default_losses(tasks: Sequence[Task]) -> Any:
    """One loss for tasks that are all binary; otherwise a dict, one loss for each output.

    Binary: `MaskedBinaryCrossentropy`; multiclass: `MaskedCategoricalCrossentropy`; regression:
    `MaskedHuber`, whose targets should have a spread of about 1. All are sums over what is known,
    and so is the total. The weights of the tasks are those of `Task.weight`.
    """
    if all_binary(tasks):
        return _loss(tasks)
    return {
        key: _loss([tasks[column] for column in columns])
        for key, columns in output_columns(tasks).items()
    }


def default_metrics(tasks: Sequence[Task]) -> Any:
    """A list of metrics for tasks that are all binary; otherwise a dict of lists, by output.

    Binary: AUC and accuracy; multiclass: accuracy; regression: mean absolute error.
    """
    if all_binary(tasks):
        return _metrics("binary")
    return {key: _metrics(tasks[columns[0]].kind) for key, columns in output_columns(tasks).items()}


def _loss(tasks: Sequence[Task]) -> keras.losses.Loss | None:
    made = {
        "binary": losses.MaskedBinaryCrossentropy,
        "multiclass": losses.MaskedCategoricalCrossentropy,
        "regression": losses.MaskedHuber,
    }[tasks[0].kind]
    weights = [task.weight for task in tasks]
    if not any(weights):
        return None  # an output that only tasks of weight 0 share is not trained
    return made() if set(weights) == {1.0} else made(task_weights=weights)


def _metrics(kind: str) -> list[keras.metrics.Metric]:
    if kind == "binary":
        return [metrics.MaskedAUC(), metrics.MaskedBinaryAccuracy()]
    if kind == "multiclass":
        return [metrics.MaskedCategoricalAccuracy()]
    return [metrics.MaskedMAE()]
