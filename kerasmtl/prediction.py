"""Predictions for pictures or rows, from a trained model file or from an exported SavedModel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.exporting.description import MODEL_FILE, read_description
from kerasmtl.exporting.signatures import DECISION
from kerasmtl.graphs import as_written
from kerasmtl.heads import by_task, check_outputs
from kerasmtl.inputs import read_image
from kerasmtl.mending import picture_fault
from kerasmtl.table_files import read_features
from kerasmtl.tasks import Task, as_tasks

BATCH = 32
ROWS = 1024  # of numbers, in a batch

# By task: a probability or number, or for a multiclass task a probability by class.
Prediction = dict[str, float | dict[str, float]]


def predict_with_model(
    model: keras.Model, pictures: Sequence[str], tasks: Sequence[Task | str]
) -> list[Prediction]:
    """By picture, task name → prediction: a probability, a number, or class → probability.

    Raises:
        ValueError: pictures that cannot be read, each with the reason, or tasks that differ from
            the model's outputs.
    """
    chosen = as_tasks(tasks)
    _check_pictures(pictures)
    check_outputs(model, chosen)
    size = model.input_shape[1:3]
    images = tf.data.Dataset.from_tensor_slices(list(pictures)).map(
        as_written(lambda path: read_image(path, size)), tf.data.AUTOTUNE
    )
    return _rows(by_task(model.predict(images.batch(BATCH), verbose=0), chosen), chosen)


def predict_rows_with_model(
    model: keras.Model, features: np.ndarray, tasks: Sequence[Task | str]
) -> list[Prediction]:
    """By row of numbers, task name → prediction, as `predict_with_model`.

    Shapes: features (rows, columns) float32, NaN = missing.

    Raises:
        ValueError: another number of columns than the model takes, or tasks that differ from its
            outputs.
    """
    chosen = as_tasks(tasks)
    check_outputs(model, chosen)
    if model.input_shape != (None, features.shape[1]):
        raise ValueError(
            f"`features` do not fit the model. Expected (rows, {model.input_shape[1:]}). "
            f"Received: {features.shape}"
        )
    return _rows(by_task(model.predict(features, batch_size=ROWS, verbose=0), chosen), chosen)


def predict_with_export(
    folder: str | os.PathLike[str], pictures: Sequence[str]
) -> list[Prediction]:
    """By picture, task name → probability, from a folder that `export_saved_model` wrote.

    Raises:
        ValueError: no such export, or pictures that cannot be read, each with the reason.
    """
    _check_pictures(pictures)
    served = _loaded(folder).signatures["serving_default"]
    tasks = _exported_tasks(read_description(folder), served)
    rows: list[Prediction] = []
    for start in range(0, len(pictures), BATCH):
        data = [Path(picture).read_bytes() for picture in pictures[start : start + BATCH]]
        outputs = served(image_bytes=tf.constant(data))
        rows += _rows({name: np.asarray(values) for name, values in outputs.items()}, tasks)
    return rows


def exported_table(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What an export says of its columns and tasks; None if it is one of pictures.

    Raises:
        FileNotFoundError, ValueError: the folder is absent, or no SavedModel.
    """
    _check_export(folder)
    described = read_description(folder)
    return described if described and described["kind"] == "table" else None


def predict_rows_with_export(
    folder: str | os.PathLike[str], features: np.ndarray
) -> list[Prediction]:
    """By row of numbers, task name → prediction, from an export of a model of a table.

    Shapes: features (rows, columns) float32 in the order of `exported_table(folder)["columns"]`.

    Raises:
        ValueError: no such export.
    """
    described = exported_table(folder)
    if described is None:
        raise ValueError(f"`folder` {folder} is no export of a table. Expected {MODEL_FILE} in it.")
    served = _loaded(folder).signatures["matrix"]
    tasks = _exported_tasks(described, served)
    rows: list[Prediction] = []
    for start in range(0, len(features), ROWS):
        outputs = served(features=tf.constant(features[start : start + ROWS], tf.float32))
        rows += _rows({name: np.asarray(values) for name, values in outputs.items()}, tasks)
    return rows


def read_rows(
    files: Sequence[str], columns: Sequence[str], packed_bits: bool = False
) -> tuple[list[str], np.ndarray]:
    """The names of the rows of all files, "file:line", and their features.

    Raises:
        FileNotFoundError, ValueError: a file is absent or malformed, or lacks a column.
    """
    read = [(file, *read_features(file, columns, packed_bits)) for file in files]
    names = [f"{file}:{line}" for file, _, lines in read for line in lines]
    return names, np.concatenate([features for _, features, _ in read])


def _exported_tasks(described: dict[str, Any] | None, served: Any) -> list[Task]:
    """The tasks of an export; without a description, an output for each, and no decisions."""
    if described:
        known = ("name", "kind", "classes")
        return [Task(**{key: task[key] for key in known}) for task in described["tasks"]]
    names = set(served.structured_outputs)
    return [
        Task(name) for name in sorted(names) if name.removesuffix(DECISION) not in names - {name}
    ]


def _rows(outputs: dict[str, np.ndarray], tasks: Sequence[Task]) -> list[Prediction]:
    return [
        {task.name: _plain(outputs[task.name][row], task.classes) for task in tasks}
        for row in range(len(outputs[tasks[0].name]))
    ]


def _plain(value: Any, classes: Sequence[str]) -> float | dict[str, float]:
    if np.ndim(value) == 0:
        return float(value)
    names = classes or [str(number) for number in range(len(value))]
    return {name: float(p) for name, p in zip(names, value, strict=True)}


def _loaded(folder: str | os.PathLike[str]) -> Any:
    _check_export(folder)
    return tf.saved_model.load(str(folder))


def _check_export(folder: str | os.PathLike[str]) -> None:
    path = Path(folder)
    if (path / "saved_model.pb").is_file():
        return
    if not path.exists():
        raise FileNotFoundError(
            f"`folder` {folder} does not exist. Expected a version of an exported model, such as "
            "saved_models/NAME/1."
        )
    versions = sorted(
        int(part.parent.name)
        for part in path.glob("*/saved_model.pb")
        if part.parent.name.isdigit()
    )
    if versions:
        raise ValueError(
            f"`folder` {folder} holds the versions {versions} of an exported model. Expected one "
            f"of them: {path / str(versions[-1])}"
        )
    raise ValueError(f"`folder` {folder} is no SavedModel. Expected a saved_model.pb in it.")


def _check_pictures(pictures: Sequence[str]) -> None:
    faults = [(picture, picture_fault(picture)) for picture in pictures]
    wrong = [f"{picture}: {reason}" for picture, reason in faults if reason]
    if wrong:
        raise ValueError(f"`pictures` cannot be read. Received: {'; '.join(wrong)}")
