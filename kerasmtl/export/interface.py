"""An exported version as what is converted: its network and its temperatures, without decoding."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.export.description import MODEL_FILE
from kerasmtl.models.build import check_outputs
from kerasmtl.serving.predictor import describe_export
from kerasmtl.tasks import Task, by_task

SIGNATURE = "serving_default"

Model = Any  # keras.Model or ExportedModel


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


_RESIZED = "TensorListStack"  # gathers the pictures that a loop has resized one by one


class ExportedModel:
    """A folder that `export_saved_model` wrote, from pictures of the model's size or rows on.

    Attributes: `described`, what its model.json says; `tasks`, `columns` (None: pictures) and
    `shape` of one input; `thresholds` by binary task; `calibrated`, whether it has temperatures.

    Raises:
        FileNotFoundError, ValueError: the folder is absent, or no version of an exported model.
    """

    layers = ()  # of Keras there are none

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        described = describe_export(folder)
        if not described:
            raise ValueError(
                f"`model` {folder} does not say what it is. Expected {MODEL_FILE} in it, as "
                "export_saved_model writes it."
            )
        self.described: dict[str, Any] = described
        known = ("name", "kind", "classes")
        self.tasks = tuple(Task(**{key: task[key] for key in known}) for task in described["tasks"])
        self.thresholds = {
            task["name"]: task["threshold"]
            for task in described["tasks"]
            if task["kind"] == "binary"
        }
        warm = [task.get("temperature") for task in described["tasks"]]
        self.calibrated = any(value not in (None, 1.0) for value in warm)
        table = described["kind"] == "table"
        self.columns = tuple(described["columns"]) if table else None
        self.shape = (len(self.columns),) if table else (*described["image_size"], 3)
        self._loaded = tf.saved_model.load(str(Path(folder)))  # its signatures live as long
        self._signature = self._loaded.signatures["matrix" if table else "pixels_float"]
        self._argument = "features" if table else "pixels"
        self._network = _network(self._signature, self.shape)

    def answers(self, rows: np.ndarray, batch_size: int) -> dict[str, np.ndarray]:
        """By task what the export itself answers, float32; see `kerasmtl.tasks.by_task`."""
        parts = [
            self._signature(**{self._argument: tf.constant(rows[at : at + batch_size])})
            for at in range(0, len(rows), batch_size)
        ]
        return {
            task.name: np.concatenate([np.asarray(part[task.name]) for part in parts])
            for task in self.tasks
        }

    def serve(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """The same as a graph that converters read, task name → output."""
        names = sorted(self._signature.structured_outputs)
        found = dict(zip(names, self._network(inputs), strict=True))
        return {task.name: tf.identity(found[task.name]) for task in self.tasks}


def _network(signature: Any, shape: tuple[int, ...]) -> Any:
    """A signature from resized pictures, or rows, on: its outputs in order of their names."""
    # What tf.lite calls itself; there is no public name for it.
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2 as frozen,
    )

    function = frozen(signature, lower_control_flow=False)
    graph = function.graph
    cut = _entrance(graph, shape) if len(shape) == 3 else function.inputs[0]
    definition = _with_plain_logarithms(_without_order(graph.as_graph_def()))
    outputs = [tensor.name for tensor in graph.outputs]

    def network(inputs: tf.Tensor) -> list[tf.Tensor]:
        return tf.graph_util.import_graph_def(
            definition, input_map={cut.name: inputs}, return_elements=outputs, name=""
        )

    made = tf.compat.v1.wrap_function(network, [tf.TensorSpec((None, *shape), tf.float32)])
    return made.prune(made.inputs[0], made.outputs)


def _entrance(graph: Any, shape: tuple[int, ...]) -> Any:
    """The pictures, (batch, *shape), that the loop which resizes them has put together."""
    stacks = [op.outputs[0] for op in graph.get_operations() if op.type == _RESIZED]
    found = next((tensor for tensor in stacks if tensor.shape[1:] == shape), None)
    if found is None:
        raise ValueError(
            "`model` resizes pictures in a way that is unknown here. Expected a version that "
            "export_saved_model wrote. Convert the model that it was made of."
        )
    return found


def _without_order(definition: Any) -> Any:
    """The same graph without control inputs: of constants alone, it has nothing to wait for.

    Through them a module of TensorFlow would hang on the decoding before it.
    """
    for node in definition.node:
        data = [name for name in node.input if not name.startswith("^")]
        del node.input[:]
        node.input.extend(data)
    return definition


def _with_plain_logarithms(definition: Any) -> Any:
    """The same graph without Log1p, which ONNX lacks: of a probability, log(1 + x) is as good."""
    for node in [node for node in definition.node if node.op == "Log1p"]:
        kind = node.attr["T"].type
        one = definition.node.add(name=f"{node.name}/one", op="Const")
        one.attr["dtype"].type = kind
        one.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1.0, tf.as_dtype(kind)))
        total = definition.node.add(name=f"{node.name}/more", op="AddV2")
        total.attr["T"].type = kind
        total.input.extend([node.input[0], one.name])
        node.op = "Log"
        node.input[0] = total.name
    return definition
