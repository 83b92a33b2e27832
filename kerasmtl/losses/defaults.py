"""The default losses of tasks, for `model.compile`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kerasmtl.losses.binary import MaskedBinaryCrossentropy
from kerasmtl.losses.multiclass_regression import MaskedCategoricalCrossentropy, MaskedHuber
from kerasmtl.tasks import Task, all_binary, output_columns


def for_tasks(
    tasks: Sequence[Task], labels: np.ndarray | None = None
) -> keras.losses.Loss | dict[str, keras.losses.Loss | None]:
    """Return the default loss of binary tasks, or a dict with one loss per output otherwise.

    Binary: `MaskedBinaryCrossentropy`; multiclass: `MaskedCategoricalCrossentropy`; regression:
    `MaskedHuber`. All are sums over known labels, weighted by `Task.weight`; an output that serves
    only tasks of weight 0 has the loss None.

    Args:
        tasks: as given to `build_model`.
        labels: (rows, tasks) of the training rows, NaN = missing. With them the loss of a
            regression task is that of its standardized labels: δ is their standard deviation s,
            and the weight 1/s². Without them a regression task should have a standard deviation of
            about 1 itself. Pass the same labels to `build_model`.

    Raises:
        ValueError: the labels do not fit the tasks.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> tasks = [kt.Task("cat"), kt.Task("price", "regression")]
        >>> losses = kt.losses.for_tasks(tasks, np.array([[1, 200], [np.nan, 600]]))
        >>> {output: loss.name for output, loss in losses.items()}
        {'binary': 'masked_binary_crossentropy', 'price': 'masked_huber'}
        >>> losses["price"].delta
        200.0
        >>> kt.losses.for_tasks([kt.Task("cat"), kt.Task("dog")]).name
        'masked_binary_crossentropy'
    """
    if all_binary(tasks):
        return _loss(tasks, 1.0)
    scales = target_scales(tasks, labels)
    return {
        output: _loss([tasks[column] for column in columns], scales.get(output, (0.0, 1.0))[1])
        for output, columns in output_columns(tasks).items()
    }


def target_scales(
    tasks: Sequence[Task], labels: np.ndarray | None
) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation of the known labels of each regression task.

    Args:
        tasks: of the columns.
        labels: (rows, tasks), NaN = missing; None: no task has a scale.

    Returns:
        By task name. Labels that are all equal have the deviation 1; a task without known labels
        has no entry.

    Raises:
        ValueError: the labels do not fit the tasks.
    """
    if labels is None:
        return {}
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.shape[1] != len(tasks):
        raise ValueError(f"`labels` must have shape (rows, {len(tasks)}), got {labels.shape}")
    scales = {}
    for task, column in zip(tasks, labels.T, strict=True):
        known = column[~np.isnan(column)].astype("float64")
        if task.kind == "regression" and len(known):
            scales[task.name] = float(known.mean()), float(known.std()) or 1.0
    return scales


def _loss(tasks: Sequence[Task], std: float) -> keras.losses.Loss | None:
    weights = [task.weight for task in tasks]
    if not any(weights):
        return None
    options: dict[str, Any] = {} if set(weights) == {1.0} else {"task_weights": weights}
    if tasks[0].kind == "binary":
        return MaskedBinaryCrossentropy(**options)
    if tasks[0].kind == "multiclass":
        return MaskedCategoricalCrossentropy(**options)
    if std != 1.0:
        options = {"delta": std, "task_weights": [weights[0] / std**2]}
    return MaskedHuber(**options)
