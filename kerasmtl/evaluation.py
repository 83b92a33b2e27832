"""Exact scores on known labels, task by task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from kerasmtl.report import Report, TaskScores
from kerasmtl.tasks import Task, as_tasks


def evaluate(
    model: keras.Model,
    dataset: Any,
    tasks: Iterable[Task | str],
    threshold: float = 0.5,
    progress: bool = False,
) -> Report:
    """Score a model by task, on the known labels alone, with scikit-learn.

    Shapes: dataset yields (inputs, labels), labels (batch, tasks) float, NaN = missing; the model
    predicts probabilities (batch, tasks).

    A score that a task's known labels do not define (AUC with one class, accuracy with no label)
    is NaN, and is left out of the mean over tasks.

    Args:
        model: as `build_model` makes it.
        dataset: as `make_dataset` makes it; read once.
        tasks: the names of the outputs, in order.
        threshold: from which probability on a prediction counts as 1, for accuracy.
        progress: show a bar, on the terminal's error output.

    Raises:
        ValueError: the number of tasks differs from the model's outputs or from the labels, the
            data set is empty, a label is none of 0, 1 and NaN, or the model predicts NaN for a
            known label.
    """
    chosen = as_tasks(tasks)
    batches = [
        (np.asarray(labels), np.asarray(model.predict_on_batch(inputs)))
        for inputs, labels in _followed(dataset, progress)
    ]
    if not batches:
        raise ValueError("`dataset` is empty. Expected at least one batch.")
    labels = np.concatenate([batch[0] for batch in batches])
    predictions = np.concatenate([batch[1] for batch in batches])
    if not labels.shape == predictions.shape == (len(labels), len(chosen)):
        raise ValueError(
            f"`tasks` does not fit. Expected labels and predictions of shape (rows, {len(chosen)})."
            f" Received: labels {labels.shape}, predictions {predictions.shape}"
        )
    scores = {
        task.name: _score(labels[:, column], predictions[:, column], task.name, threshold)
        for column, task in enumerate(chosen)
    }
    return Report(rows=len(labels), tasks=scores)


def _followed(dataset: Any, progress: bool) -> Iterable[Any]:
    if not progress:
        return dataset
    from rich.console import Console
    from rich.progress import track

    return track(dataset, "evaluating", console=Console(stderr=True), transient=True)


def _score(labels: np.ndarray, predictions: np.ndarray, name: str, threshold: float) -> TaskScores:
    known = ~np.isnan(labels)
    y, p = labels[known], predictions[known]
    if not np.isin(y, (0, 1)).all():
        raise ValueError(
            f"`dataset` has labels of task {name!r} other than 0, 1 and NaN = missing. "
            f"Received: {sorted({float(label) for label in y} - {0.0, 1.0})[:5]}"
        )
    y = y == 1
    if np.isnan(p).any():
        raise ValueError(
            f"`model` predicts NaN for {int(np.isnan(p).sum())} known labels of task {name!r}. "
            "Expected probabilities; its training has diverged."
        )
    both = 0 < y.sum() < len(y)
    return TaskScores(
        known=len(y),
        positive=int(y.sum()),
        auc=float(roc_auc_score(y, p)) if both else float("nan"),
        average_precision=float(average_precision_score(y, p)) if y.any() else float("nan"),
        accuracy=float(((p > threshold) == y).mean()) if len(y) else float("nan"),
    )
