"""The default metrics of tasks, for `model.compile`."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from kerasmtl.metrics.ranking import MaskedAUC
from kerasmtl.metrics.regression import MaskedMAE
from kerasmtl.metrics.thresholded import MaskedBinaryAccuracy, MaskedCategoricalAccuracy
from kerasmtl.tasks import Task, all_binary, output_columns

Metrics = list[keras.metrics.Metric]


def for_tasks(tasks: Sequence[Task]) -> Metrics | dict[str, Metrics]:
    """Return the default metrics of binary tasks, or a dict with a list per output otherwise.

    Binary: `MaskedAUC` and `MaskedBinaryAccuracy`; multiclass: `MaskedCategoricalAccuracy`;
    regression: `MaskedMAE`.

    Args:
        tasks: as given to `build_model`.

    Example:
        >>> import kerasmtl as kt
        >>> [metric.name for metric in kt.metrics.for_tasks([kt.Task("cat"), kt.Task("dog")])]
        ['auc', 'binary_accuracy']
        >>> mixed = kt.metrics.for_tasks([kt.Task("cat"), kt.Task("price", "regression")])
        >>> {output: [metric.name for metric in metrics] for output, metrics in mixed.items()}
        {'binary': ['auc', 'binary_accuracy'], 'price': ['mae']}
    """
    if all_binary(tasks):
        return _metrics("binary")
    return {key: _metrics(tasks[columns[0]].kind) for key, columns in output_columns(tasks).items()}


def _metrics(kind: str) -> Metrics:
    if kind == "binary":
        return [MaskedAUC(), MaskedBinaryAccuracy()]
    return [MaskedCategoricalAccuracy() if kind == "multiclass" else MaskedMAE()]
