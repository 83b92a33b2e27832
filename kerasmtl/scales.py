"""The scale of what a regression task predicts, so that its loss can stand beside the others'."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kerasmtl.tasks import Task


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
