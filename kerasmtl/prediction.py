"""Probabilities for pictures, from a trained model file or from an exported SavedModel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.inputs import picture_fault, read_image
from kerasmtl.tasks import Task, as_tasks

BATCH = 32


def predict_with_model(
    model: keras.Model, pictures: Sequence[str], tasks: Sequence[Task | str]
) -> list[dict[str, float]]:
    """By picture, task name → probability.

    Raises:
        ValueError: pictures that cannot be read, each with the reason, or a number of tasks that
            differs from the model's outputs.
    """
    chosen = as_tasks(tasks)
    _check_pictures(pictures)
    if model.output_shape != (None, len(chosen)):
        raise ValueError(
            f"`tasks` does not fit the model. Expected output (batch, {len(chosen)}) for "
            f"{[task.name for task in chosen]}. Received: {model.output_shape}"
        )
    size = model.input_shape[1:3]
    images = tf.data.Dataset.from_tensor_slices(list(pictures)).map(
        lambda path: read_image(path, size), tf.data.AUTOTUNE
    )
    probabilities = model.predict(images.batch(BATCH), verbose=0)
    return [
        {task.name: float(p) for task, p in zip(chosen, row, strict=True)} for row in probabilities
    ]


def predict_with_export(
    folder: str | os.PathLike[str], pictures: Sequence[str]
) -> list[dict[str, float]]:
    """By picture, task name → probability, from a folder that `export_saved_model` wrote.

    Raises:
        ValueError: no such export, or pictures that cannot be read, each with the reason.
    """
    _check_pictures(pictures)
    if not (Path(folder) / "saved_model.pb").is_file():
        raise ValueError(f"`folder` {folder} is no SavedModel. Expected a saved_model.pb in it.")
    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    rows: list[dict[str, Any]] = []
    for start in range(0, len(pictures), BATCH):
        data = [Path(picture).read_bytes() for picture in pictures[start : start + BATCH]]
        outputs = {k: np.asarray(v) for k, v in served(image_bytes=tf.constant(data)).items()}
        rows += [{name: float(p[i]) for name, p in outputs.items()} for i in range(len(data))]
    return rows


def _check_pictures(pictures: Sequence[str]) -> None:
    faults = [(picture, picture_fault(picture)) for picture in pictures]
    wrong = [f"{picture}: {reason}" for picture, reason in faults if reason]
    if wrong:
        raise ValueError(f"`pictures` cannot be read. Received: {'; '.join(wrong)}")
