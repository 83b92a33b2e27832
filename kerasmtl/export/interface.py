"""Input and outputs of a converted model, and the function that converters are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.evaluation.calibration import Decision, calibrated
from kerasmtl.export.description import DEFAULT_SIGNATURE
from kerasmtl.export.signatures import at_temperature, check_columns, input_shape
from kerasmtl.models.build import check_outputs
from kerasmtl.tasks import Task, by_task


@dataclass(frozen=True)
class ModelInterface:
    """The one input and the outputs of a converted model.

    Args:
        name: of the input: "pixels" or "features", followed by "_" if a task has that name.
        shape: of the input without the batch: (height, width, 3) or (columns,).
        tasks: the outputs, in order.
        columns: the names of the columns, or None for images.
        decisions: threshold and temperature by task.
    """

    name: str
    shape: tuple[int, ...]
    tasks: tuple[Task, ...]
    columns: tuple[str, ...] | None
    decisions: Mapping[str, Decision]

    @classmethod
    def of(
        cls,
        model: keras.Model,
        tasks: tuple[Task, ...],
        columns: Sequence[str] | None,
        decisions: Mapping[str, Decision],
    ) -> ModelInterface:
        """Return the interface of a Keras model.

        Raises:
            ValueError: the model takes neither images of a fixed size nor these columns, or its
                outputs are not those of the tasks.
        """
        shape = input_shape(model)
        dtype = keras.backend.standardize_dtype(model.input.dtype)
        is_table = len(shape) == 2
        is_image = len(shape) == 4 and shape[3] == 3
        if None in shape[1:] or not (is_table or is_image) or "float" not in dtype:
            raise ValueError(
                "`model` must take images of a fixed size, (batch, height, width, 3), or rows, "
                f"(batch, columns), of floats, got {shape}, {dtype}. Export it as a SavedModel."
            )
        if columns is None and is_table:
            raise ValueError(
                "`columns` must name the columns of the model's input, got None. Call with "
                "columns=table.columns."
            )
        named = None if columns is None else tuple(check_columns(shape, columns))
        check_outputs(model, tasks)
        name = "pixels" if named is None else "features"
        while name in {task.name for task in tasks}:  # ONNX has one name space for both
            name += "_"
        return cls(name, tuple(shape[1:]), tasks, named, decisions)

    def spec(self, uint8: bool = False) -> tf.TensorSpec:
        """Return the spec of the input, (batch, *shape) float32 or uint8."""
        return tf.TensorSpec((None, *self.shape), tf.uint8 if uint8 else tf.float32, name=self.name)


def reference_answers(
    model: keras.Model, rows: np.ndarray, interface: ModelInterface, batch_size: int
) -> dict[str, np.ndarray]:
    """Return what the Keras model answers, by task; see `by_task` for the shapes."""
    found = by_task(model.predict(rows, batch_size=batch_size, verbose=0), interface.tasks)
    for task in interface.tasks:
        temperature = interface.decisions[task.name].temperature
        if temperature is not None:
            several = task.kind == "multiclass"
            found[task.name] = calibrated(found[task.name], temperature, several)
    return found


def serving_function(
    model: keras.Model, interface: ModelInterface
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Return the model as a function of one tensor, to task → calibrated output.

    See `by_task` for the shapes.
    """

    def serve(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = by_task(model(inputs, training=False), interface.tasks)
        return {
            task.name: at_temperature(
                tf.cast(outputs[task.name], tf.float32),
                task,
                interface.decisions[task.name].temperature,
            )
            for task in interface.tasks
        }

    return serve


def write_saved_model(model: keras.Model, interface: ModelInterface, folder: str | Path) -> None:
    """Write a SavedModel with the one signature `serving_default`, for converters."""
    archive: Any = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(DEFAULT_SIGNATURE, serving_function(model, interface), [interface.spec()])
    archive.write_out(str(folder), verbose=False)
