"""What a converted model takes and gives: pixels or columns in, one named output per task out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.formats.exported import ExportedModel
from kerasmtl.heads import by_task, check_outputs
from kerasmtl.tasks import Task

SIGNATURE = "serving_default"

Model = keras.Model | ExportedModel


@dataclass(frozen=True)
class Face:
    """The one input and the outputs of a converted model.

    Args:
        name: of the input: "pixels" or "features", with "_" behind it if a task is called that.
        shape: of the input without the batch: (height, width, 3) or (columns,).
        tasks: the outputs, in order.
        columns: the names of the columns, or None: pictures.
    """

    name: str
    shape: tuple[int, ...]
    tasks: tuple[Task, ...]
    columns: tuple[str, ...] | None

    @classmethod
    def of_export(cls, model: ExportedModel) -> Face:
        """The face of an exported version."""
        return cls(
            _free("pixels" if model.columns is None else "features", model.tasks),
            model.shape,
            model.tasks,
            model.columns,
        )

    @classmethod
    def of(cls, model: keras.Model, tasks: tuple[Task, ...], columns: Sequence[str] | None) -> Face:
        """The face of a model.

        Raises:
            ValueError: the model takes neither pictures of a fixed size nor these columns, or its
                outputs are not those of the tasks.
        """
        shape = _input_shape(model)
        named = _checked_columns(shape, columns)
        check_outputs(model, tasks)
        name = _free("pixels" if named is None else "features", tasks)
        return cls(name, shape, tasks, named)

    @property
    def spec(self) -> tf.TensorSpec:
        """The input, (batch, *shape) float32."""
        return tf.TensorSpec((None, *self.shape), tf.float32, name=self.name)


def answers(model: Model, rows: np.ndarray, face: Face, batch_size: int) -> dict[str, np.ndarray]:
    """What the original answers, by task; see `by_task` for the shapes."""
    if isinstance(model, ExportedModel):
        return model.answers(rows, batch_size)
    return by_task(model.predict(rows, batch_size=batch_size, verbose=0), face.tasks)


def serving_function(model: Model, face: Face, uint8: bool = False) -> Any:
    """The model as a function of one tensor, task name → output; see `by_task` for the shapes.

    `uint8`: the tensor is pixels from 0 to 255, which the function turns into [0, 1].
    """

    def serve(inputs: tf.Tensor) -> dict[str, Any]:
        if uint8:
            inputs = tf.cast(inputs, tf.float32) * (1 / 255)
        if isinstance(model, ExportedModel):
            return model.serve(inputs)
        outputs = by_task(model(inputs, training=False), face.tasks)
        return {name: tf.cast(value, tf.float32) for name, value in outputs.items()}

    return serve


def write_saved_model(model: Model, face: Face, folder: str | Path, uint8: bool = False) -> None:
    """A SavedModel with the one signature `serving_default`, for converters."""
    spec = tf.TensorSpec(face.spec.shape, tf.uint8, name=face.name) if uint8 else face.spec
    if isinstance(model, ExportedModel):
        module = tf.Module()
        module.kept = model
        serve = serving_function(model, face, uint8)
        module.serve = tf.function(serve, input_signature=[spec], autograph=False)
        tf.saved_model.save(module, str(folder), signatures={SIGNATURE: module.serve})
        return
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(SIGNATURE, serving_function(model, face, uint8), [spec])
    archive.write_out(str(folder), verbose=False)


def _free(name: str, tasks: Sequence[Task]) -> str:
    while name in {task.name for task in tasks}:  # ONNX has one name space for both
        name += "_"
    return name


def _input_shape(model: keras.Model) -> tuple[int, ...]:
    given = model.input
    if isinstance(given, dict | list | tuple):
        count = len(given)
        raise ValueError(
            "`model` takes several inputs. Expected one, pictures or rows of numbers: only such "
            f"models can be converted. Received: {count} inputs. Export it as a SavedModel."
        )
    shape, dtype = tuple(given.shape[1:]), keras.backend.standardize_dtype(given.dtype)
    fits = len(shape) == 1 or (len(shape) == 3 and shape[2] == 3)
    if not fits or None in shape or not dtype.startswith(("float", "bfloat")):
        raise ValueError(
            "`model` takes neither pictures of a fixed size nor rows of numbers. Expected input "
            "(batch, height, width, 3) or (batch, columns), of floats: only such models can be "
            f"converted. Received: {tuple(given.shape)}, {dtype}"
        )
    return shape


def _checked_columns(
    shape: tuple[int, ...], columns: Sequence[str] | None
) -> tuple[str, ...] | None:
    table = len(shape) == 1
    if columns is None and table:
        raise ValueError(
            "`columns` is missing: the model takes rows of numbers. Expected their names. Call "
            "with columns=table.columns."
        )
    if columns is None:
        return None
    distinct = not isinstance(columns, str) and len(set(columns)) == len(columns)
    if not table or not distinct or len(columns) != shape[0]:
        expected = f"{shape[0]} distinct names" if table else "none: the model takes pictures"
        raise ValueError(
            f"`columns` does not fit the model. Expected {expected}. Received: "
            f"{str(columns)[:200]!r}"
        )
    return tuple(columns)
