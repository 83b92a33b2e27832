"""Signatures of an exported model: named inputs, and outputs named after the tasks."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.data.images import prepare_images, resize_image
from kerasmtl.evaluation.calibration import TINY, Decision
from kerasmtl.export.description import DECISION, DEFAULT_SIGNATURE
from kerasmtl.tasks import Task, by_task

MOST_NAMED = 100  # columns; a wider table is served as a matrix only

Tensors = dict[str, tf.Tensor]
Arrays = dict[str, np.ndarray]
# As ExportArchive.add_endpoint takes it: name, function, input signature.
Endpoint = tuple[str, Callable[[Tensors], Tensors], list[dict[str, tf.TensorSpec]]]


class Signature(NamedTuple):
    """One way to ask an exported model.

    `specs`: of the arguments by name, first axis = batch. `to_input`: from the arguments to the
    model's input, in the graph. `sample`: from a seed to arguments, for golden requests.
    """

    name: str
    specs: dict[str, tf.TensorSpec]
    to_input: Callable[[Tensors], tf.Tensor]
    sample: Callable[[int], Arrays]


def endpoints(
    model: keras.Model,
    signatures: Sequence[Signature],
    tasks: Sequence[Task],
    decisions: Mapping[str, Decision],
) -> list[Endpoint]:
    """Make the functions of the SavedModel.

    Each signature answers with a probability, number or class probabilities by task, and a
    decision. `features` takes what `serving_default` takes, and gives what the head is given, if
    the model has a head.
    """

    def serve(signature: Signature) -> Callable[[Tensors], Tensors]:
        return lambda raw: answers(model(signature.to_input(raw), training=False), tasks, decisions)

    found: list[Endpoint] = [(each.name, serve(each), [each.specs]) for each in signatures]
    embedding = embedding_model(model)
    if embedding is not None:
        default = signatures[0]

        def features(raw: Tensors) -> Tensors:
            return {"features": embedding(default.to_input(raw), training=False)}

        found.append(("features", features, [default.specs]))
    return found


def answers(outputs: Any, tasks: Sequence[Task], decisions: Mapping[str, Decision]) -> Tensors:
    """Name a model's outputs after the tasks, calibrate them, and add decisions.

    Args:
        outputs: of the model.
        tasks: of the outputs, in order.
        decisions: threshold and temperature by task.

    Returns:
        "<task>": (batch,) float32, or (batch, classes) of a multiclass task. "<task>_decision":
        (batch,) int32, 1 where the probability is at least the threshold; of a multiclass task
        (batch,) string, the most probable class.
    """
    found: Tensors = {}
    for task, values in zip(tasks, by_task(outputs, tasks).values(), strict=True):
        decision = decisions[task.name]
        values = at_temperature(tf.cast(values, tf.float32), task, decision.temperature)
        found[task.name] = values
        if task.kind == "binary":
            decided = values >= tf.constant(decision.threshold, tf.float32)
            found[task.name + DECISION] = tf.cast(decided, tf.int32)
        elif task.kind == "multiclass":
            names = tf.constant(task.classes)
            found[task.name + DECISION] = tf.gather(names, tf.argmax(values, axis=1))
    return found


def at_temperature(values: tf.Tensor, task: Task, temperature: float | None) -> tf.Tensor:
    """Calibrate probabilities: sigmoid(logit(p) / T), or softmax(log(p) / T) over classes.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2.
    """
    if temperature in (None, 1.0):
        return values
    if task.kind == "multiclass":
        return tf.nn.softmax(tf.math.log(tf.maximum(values, TINY)) / temperature)
    p = tf.clip_by_value(values, TINY, 1 - TINY)
    # Not log1p(-p), which ONNX lacks; a p that small is as near without.
    return tf.sigmoid((tf.math.log(p) - tf.math.log(1 - p)) / temperature)


def check_names(tasks: Sequence[Task]) -> None:
    """Raise ValueError if a task has the name of another task's decision."""
    decided = {task.name + DECISION for task in tasks if task.kind != "regression"}
    clash = sorted(decided & {task.name for task in tasks})
    if clash:
        raise ValueError(
            f"`tasks` must not be named like the decision of another task, TASK{DECISION}, got "
            f"{clash}"
        )


def embedding_model(model: keras.Model) -> keras.Model | None:
    """Return the model up to its head, whose output is (batch, features); None if that is unclear.

    The head is what `task_head` made, or else the last layer.
    """
    layers = list(getattr(model, "layers", []))
    heads = [layer for layer in layers if layer.name.startswith("head_") or layer.name == "head"]
    heads = [layer for layer in heads if layer.name != "head_pool"] or layers[-1:]
    try:
        features = heads[0].input
    except (AttributeError, IndexError, ValueError):  # not functional, or called several times
        return None
    inputs = {id(tensor) for tensor in model.inputs}
    if not isinstance(features, keras.KerasTensor) or id(features) in inputs:
        return None
    return keras.Model(model.input, features) if len(features.shape) == 2 else None


def input_shape(model: Any) -> tuple[int | None, ...]:
    """Return the shape of the model's one input.

    Raises:
        ValueError: not a Keras model, one without a shape yet, or with several inputs.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a keras.Model, got {type(model).__name__}")
    try:
        model.output_shape  # noqa: B018
        shape = model.input_shape
    except (AttributeError, ValueError) as error:
        raise ValueError(
            "`model` must be functional or sequential, with an Input, or called once, got one "
            f"without a shape: {error}"
        ) from None
    if not isinstance(shape, tuple):
        raise ValueError(
            f"`model` must have one input, got {len(shape)}. Use keras.Model.export for others."
        )
    return shape


def kind_of_input(
    shape: tuple[int | None, ...],
    columns: Iterable[str] | None,
    packed_bits: bool,
    max_pixels: int,
) -> dict[str, Any]:
    """Return what the model takes, as model.json has it.

    Raises:
        ValueError: the model takes neither images of a fixed size nor these columns.
    """
    if columns is not None:
        return {
            "kind": "table",
            "image_size": None,
            "columns": check_columns(shape, columns),
            "packed_bits": packed_bits,
            "max_pixels": None,
        }
    if type(max_pixels) is not int or max_pixels < 1:
        raise ValueError(f"`max_pixels` must be a positive integer, got {max_pixels!r}")
    if len(shape) == 2:
        raise ValueError(
            "`columns` must name the columns of the model's input, got None. Call with "
            "columns=table.columns."
        )
    if len(shape) != 4 or None in shape[1:] or shape[3] != 3:
        raise ValueError(
            "`model` must take images of a fixed size, (batch, height, width, 3), or rows, "
            f"(batch, columns), got {shape}. Use keras.Model.export for other models."
        )
    return {
        "kind": "pictures",
        "image_size": list(shape[1:3]),
        "columns": None,
        "packed_bits": False,
        "max_pixels": max_pixels,
    }


def check_columns(shape: tuple[int | None, ...], columns: Iterable[str]) -> list[str]:
    """Return the names of the columns, if they are distinct and as many as the model takes."""
    names = [] if isinstance(columns, str) else list(columns)
    if shape != (None, len(set(names))) or len(set(names)) != len(names):
        wanted = f"{shape[1]} distinct names" if len(shape) == 2 else f"None for input {shape}"
        raise ValueError(f"`columns` must be {wanted}, got {str(columns)[:200]}")
    return names


def signatures_of(about: Mapping[str, Any]) -> list[Signature]:
    """Return the signatures of a kind of input, the default one first."""
    if about["columns"] is not None:
        return table_signatures(about["columns"])
    return image_signatures(tuple(about["image_size"]), about["max_pixels"])


def image_signatures(size: tuple[int, int], most_pixels: int) -> list[Signature]:
    """Return the signatures of a model of images: encoded files, or pixels of any size."""
    shape = (None, None, None, 3)

    def decoded(raw: Tensors) -> tf.Tensor:
        return prepare_images(raw["image_bytes"], size, most_pixels)

    def resized(raw: Tensors) -> tf.Tensor:
        return tf.map_fn(
            lambda image: resize_image(image, size),
            raw["pixels"],
            fn_output_signature=tf.TensorSpec((*size, 3), tf.float32),
        )

    def pixels(seed: int) -> Arrays:
        rng = np.random.default_rng(seed)
        return {"pixels": rng.integers(0, 256, (2, 33, 47, 3), "uint8")}

    def floats(seed: int) -> Arrays:
        return {"pixels": (pixels(seed)["pixels"] / 255).astype("float32")}

    def spec(name: str, shape: tuple[int | None, ...], dtype: tf.DType) -> dict[str, tf.TensorSpec]:
        return {name: tf.TensorSpec(shape, dtype, name=name)}

    files = spec("image_bytes", (None,), tf.string)
    return [
        Signature(DEFAULT_SIGNATURE, files, decoded, example_images),
        Signature("pixels", spec("pixels", shape, tf.uint8), resized, pixels),
        Signature("pixels_float", spec("pixels", shape, tf.float32), resized, floats),
    ]


def example_images(seed: int) -> Arrays:
    """Draw a JPEG, a PNG with an alpha channel and a grey JPEG: noise on smooth colours."""
    rng = np.random.default_rng(seed)

    def pixels(height: int, width: int, channels: int) -> np.ndarray:
        coarse = rng.integers(0, 256, (3, 4, channels)).astype("float32")
        smooth = np.asarray(tf.image.resize(coarse, (height, width)))
        return (smooth + rng.normal(0, 4, smooth.shape)).clip(0, 255).astype("uint8")

    files = [
        tf.io.encode_jpeg(pixels(48, 64, 3), quality=90).numpy(),
        tf.io.encode_png(pixels(40, 30, 4)).numpy(),
        tf.io.encode_jpeg(pixels(31, 57, 1), quality=90).numpy(),
    ]
    return {"image_bytes": np.array(files, object)}


def table_signatures(columns: Sequence[str]) -> list[Signature]:
    """Return the signatures of a model of rows: named columns, if they are few, and a matrix."""
    inputs = column_inputs(columns)

    def rows(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return rng.normal(size=(3, len(columns))).round(3).astype("float32")

    def matrix(seed: int) -> Arrays:
        return {"features": rows(seed)}

    def gaps(seed: int) -> Arrays:
        # Only here: JSON has no word for a missing value that all servers take.
        absent = np.random.default_rng(seed).random((3, len(columns))) < 0.3
        return {"features": np.where(absent, np.float32("nan"), rows(seed))}

    spec = {"features": tf.TensorSpec((None, len(columns)), tf.float32, name="features")}
    found = [Signature("matrix", spec, lambda raw: raw["features"], gaps)]
    if inputs is None:
        return [Signature(DEFAULT_SIGNATURE, spec, lambda raw: raw["features"], matrix), *found]

    def stacked(raw: Tensors) -> tf.Tensor:
        return tf.stack([raw[inputs[column]] for column in columns], axis=1)

    def named(seed: int) -> Arrays:
        return dict(zip(inputs.values(), rows(seed).T, strict=True))

    specs = {name: tf.TensorSpec((None,), tf.float32, name=name) for name in inputs.values()}
    both = [Signature(name, specs, stacked, named) for name in (DEFAULT_SIGNATURE, "columns")]
    return [*both, *found]


def column_inputs(columns: Sequence[str]) -> dict[str, str] | None:
    """Return the name of each column's input in the signature `columns`; None if there are many.

    Columns that TensorFlow would name alike (`a b`, `a_b`) are served as a matrix only, too.
    Keywords of Python cannot name an argument of TensorFlow's functions.
    """
    names = {}
    for column in columns:
        plain = re.sub(r"\W", "_", column, flags=re.ASCII)
        free = plain[:1].isalpha() and not keyword.iskeyword(plain) and plain != "self"
        names[column] = plain if free else f"column_{plain}"
    distinct = len({name.lower() for name in names.values()}) == len(columns)
    return names if distinct and len(columns) <= MOST_NAMED else None
