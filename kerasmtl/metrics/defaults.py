"""The metrics that fit the kinds of the tasks, for `model.compile`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from kerasmtl.metrics.ranking import MaskedAUC
from kerasmtl.metrics.regression import MaskedMAE
from kerasmtl.metrics.thresholded import MaskedBinaryAccuracy, MaskedCategoricalAccuracy
from kerasmtl.tasks import Task, all_binary, output_columns


def for_tasks(tasks: Sequence[Task]) -> Any:
    """A list of metrics for tasks that are all binary; otherwise a dict of lists, by output.

    Binary: AUC and accuracy; multiclass: accuracy; regression: mean absolute error.
    """
    if all_binary(tasks):
        return _metrics("binary")
    return {key: _metrics(tasks[columns[0]].kind) for key, columns in output_columns(tasks).items()}


def _metrics(kind: str) -> list[keras.metrics.Metric]:
    if kind == "binary":
        return [MaskedAUC(), MaskedBinaryAccuracy()]
    if kind == "multiclass":
        return [MaskedCategoricalAccuracy()]
    return [MaskedMAE()]
