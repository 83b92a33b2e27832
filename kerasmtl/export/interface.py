"""Input and outputs of a converted model, and the function that converters are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.data.inputs import Input
from kerasmtl.evaluation.calibration import Decision, calibrated
from kerasmtl.export.description import DEFAULT_SIGNATURE
from kerasmtl.export.signatures import at_temperature, input_of
from kerasmtl.models.build import check_outputs
from kerasmtl.tasks import Task, by_task


@dataclass(frozen=True)
class ModelInterface:
    """The one input and the outputs of a converted model.

    Args:
        name: of the input: "pixels" or "features", followed by "_" if a task has that name.
        shape: of the input without the batch: (height, width, 3) or (columns,).
        tasks: the outputs, in order.
        input: what kind of input it is.
        decisions: threshold and temperature by task.
    """

    name: str
    shape: tuple[int, ...]
    tasks: tuple[Task, ...]
    input: Input
    decisions: Mapping[str, Decision]

    @classmethod
    def of(
        cls,
        model: keras.Model,
        tasks: tuple[Task, ...],
        input: Input | None,
        decisions: Mapping[str, Decision],
    ) -> ModelInterface:
        """Return the interface of a Keras model.

        Raises:
            ValueError: the model does not take this input, or not as floats, or its
                outputs are not those of the tasks.
        """
        bound = input_of(model, input)
        dtype = keras.backend.standardize_dtype(model.inputs[0].dtype)
        if bound.model_signature is None or "float" not in dtype:
            raise ValueError(
                f"`model` must take images or rows of numbers, floats, got {bound!r}, {dtype}. "
                "Export it as a SavedModel."
            )
        check_outputs(model, tasks)
        (name,) = bound.signature(bound.model_signature).specs
        while name in {task.name for task in tasks}:  # ONNX has one name space for both
            name += "_"
        return cls(name, tuple(bound.spec.shape[1:]), tasks, bound, decisions)

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
