"""The functions of an exported model, each with named inputs and outputs."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from kerasmtl.data.images import prepare_images, resize_image
from kerasmtl.evaluation.calibration import TINY, Decision
from kerasmtl.tasks import Task, by_task


def kind_of_input(
    model: keras.Model, columns: Iterable[str] | None, packed_bits: bool, max_pixels: int
) -> dict[str, Any]:
    """What the model takes, as model.json has it.

    Raises:
        ValueError: no model, one without an input shape, or one that takes something else.
    """
    shape = _input_shape(model)
    if columns is not None:
        return {
            "kind": "table",
            "image_size": None,
            "columns": _checked_columns(shape, columns),
            "packed_bits": packed_bits,
            "max_pixels": None,
        }
    if isinstance(max_pixels, bool) or not isinstance(max_pixels, int) or max_pixels < 1:
        raise ValueError(
            f"`max_pixels` is no number of pixels. Expected 1 or more. Received: {max_pixels!r}"
        )
    return {
        "kind": "pictures",
        "image_size": list(_checked_size(shape)),
        "columns": None,
        "packed_bits": False,
        "max_pixels": max_pixels,
    }


def _input_shape(model: Any) -> Any:
    if not isinstance(model, keras.Model):
        raise ValueError(
            "`model` is no keras.Model. Expected one, such as build_model makes. Received: "
            f"{type(model).__name__}"
        )
    try:
        model.output_shape  # noqa: B018
        return model.input_shape
    except (AttributeError, ValueError) as error:
        raise ValueError(
            "`model` has no input and output shape yet: it was neither built with an Input nor "
            f"called. Expected a functional or sequential model with one. Received: {error}"
        ) from None


def _checked_size(shape: Any) -> tuple[int, int]:
    if isinstance(shape, tuple) and len(shape) == 2:
        raise ValueError(
            "`model` takes no pictures but rows of numbers. Expected their names. Call with "
            "columns=table.columns."
        )
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:] or shape[3] != 3:
        raise ValueError(
            "`model` takes no pictures of a fixed size. Expected input (batch, height, width, 3), "
            "or (batch, columns) of a table. Models of text, of several inputs and of other shapes "
            "have no signatures here: use keras.Model.export for them. "
            f"Received: {shape}"
        )
    return shape[1:3]


def _checked_columns(shape: Any, columns: Iterable[str]) -> tuple[str, ...]:
    names = () if isinstance(columns, str) else tuple(columns)
    if not all(isinstance(n, str) for n in names) or not names or len(set(names)) != len(names):
        raise ValueError(
            f"`columns` is no list of distinct names. Received: {str(columns)[:200]!r}"
        )
    if shape != (None, len(names)):
        raise ValueError(
            f"`columns` does not fit the model. Expected input (batch, {len(names)}). "
            f"Received: {shape}"
        )
    return names


MOST_NAMED = 100  # columns; a table of more is served as a matrix
DECISION = "_decision"

Named = dict[str, Any]
Endpoint = tuple[str, Callable[..., Named], list[Any]]


def picture_endpoints(
    model: keras.Model, tasks: Sequence[Task], decisions: Mapping[str, Decision], most_pixels: int
) -> list[Endpoint]:
    """The signatures of a model of pictures: their bytes, pixels, and features of the bytes."""
    size = model.input_shape[1:3]
    answer = partial(answers, tasks=tasks, decisions=decisions)

    def serve(image_bytes: tf.Tensor) -> Named:
        return answer(model(prepare_images(image_bytes, size, most_pixels), training=False))

    def serve_pixels(pixels: tf.Tensor) -> Named:
        return answer(model(resized(pixels, size), training=False))

    text = [tf.TensorSpec((None,), tf.string, name="image_bytes")]
    shape = (None, None, None, 3)
    found: list[Endpoint] = [
        ("serving_default", serve, text),
        ("pixels", serve_pixels, [tf.TensorSpec(shape, tf.uint8, name="pixels")]),
        ("pixels_float", serve_pixels, [tf.TensorSpec(shape, tf.float32, name="pixels")]),
    ]
    embedding = embedding_model(model)
    if embedding is not None:

        def features(image_bytes: tf.Tensor) -> Named:
            images = prepare_images(image_bytes, size, most_pixels)
            return {"features": embedding(images, training=False)}

        found.append(("features", features, text))
    return found


def table_endpoints(
    model: keras.Model,
    tasks: Sequence[Task],
    decisions: Mapping[str, Decision],
    columns: Sequence[str],
) -> list[Endpoint]:
    """The signatures of a model of rows: named columns, if they are few, a matrix, and features."""

    def serve(features: tf.Tensor) -> Named:
        return answers(model(features, training=False), tasks, decisions)

    def stacked(values: Named) -> tf.Tensor:
        return tf.stack([values[inputs[column]] for column in columns], axis=1)

    matrix = [tf.TensorSpec((None, len(columns)), tf.float32, name="features")]
    inputs = column_inputs(columns)
    named = inputs and [{n: tf.TensorSpec((None,), tf.float32, name=n) for n in inputs.values()}]
    embedding = embedding_model(model)
    found: list[Endpoint] = []
    for name in ("serving_default", "columns") if inputs else ("serving_default",):
        found.append(
            (name, lambda values: serve(stacked(values)), named)
            if inputs
            else (name, serve, matrix)
        )
    found.append(("matrix", serve, matrix))
    if embedding is not None:

        def features(values: Any) -> Named:
            rows = stacked(values) if inputs else values
            return {"features": embedding(rows, training=False)}

        found.append(("features", features, named or matrix))
    return found


def answers(outputs: Any, tasks: Sequence[Task], decisions: Mapping[str, Decision]) -> Named:
    """A model's outputs by name: each task's, calibrated, and its decision.

    Shapes: "<task>" (batch,) float32, or (batch, classes) of a multiclass task; "<task>_decision"
    (batch,), int32 1 or 0 of a binary task, string of a multiclass task.
    """
    found: Named = {}
    for task, values in zip(tasks, by_task(outputs, tasks).values(), strict=True):
        decision = decisions[task.name]
        values = _at_temperature(tf.cast(values, tf.float32), task, decision.temperature)
        found[task.name] = values
        if task.kind == "binary":
            decided = values >= tf.constant(decision.threshold, tf.float32)
            found[task.name + DECISION] = tf.cast(decided, tf.int32)
        elif task.kind == "multiclass":
            names = tf.constant(task.classes)
            found[task.name + DECISION] = tf.gather(names, tf.argmax(values, axis=1))
    return found


def check_names(tasks: Sequence[Task]) -> None:
    """Raise ValueError if a task is named as the decision of another one is."""
    decided = {task.name + DECISION for task in tasks if task.kind != "regression"}
    clash = sorted(decided & {task.name for task in tasks})
    if clash:
        raise ValueError(
            f"`tasks` has names that the decisions of other tasks have. Expected names that do not "
            f"end with {DECISION!r}. Received: {clash}"
        )


def resized(pixels: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Pictures (batch, height, width, 3), uint8 or float32 in [0, 1], as float32 of this size."""
    return tf.map_fn(
        lambda image: resize_image(image, size),
        pixels,
        fn_output_signature=tf.TensorSpec((*size, 3), tf.float32),
    )


def embedding_model(model: keras.Model) -> keras.Model | None:
    """From a model's inputs to what its head takes, (batch, features); None if that is unclear.

    The head is what `task_head` made, or else the last layer.
    """
    layers = list(getattr(model, "layers", []))
    heads = [layer for layer in layers if layer.name.startswith("head_") or layer.name == "head"]
    heads = [layer for layer in heads if layer.name != "head_pool"] or layers[-1:]
    try:
        features = heads[0].input
    except (AttributeError, IndexError, ValueError):  # no graph, or several calls
        return None
    inputs = {id(tensor) for tensor in model.inputs}
    if not isinstance(features, keras.KerasTensor) or id(features) in inputs:
        return None
    return keras.Model(model.input, features) if len(features.shape) == 2 else None


def column_inputs(columns: Sequence[str]) -> dict[str, str] | None:
    """Column → name of its input in the signature `columns`; None if there are too many.

    Names that TensorFlow would take for the same (`a b`, `a_b`) leave the matrix only, too. Words
    of Python cannot name an argument of TensorFlow's functions.
    """
    names = {}
    for column in columns:
        plain = re.sub(r"\W", "_", column, flags=re.ASCII)
        free = plain[:1].isalpha() and not keyword.iskeyword(plain) and plain != "self"
        names[column] = plain if free else f"column_{plain}"
    distinct = len({name.lower() for name in names.values()}) == len(columns)
    return names if distinct and len(columns) <= MOST_NAMED else None


def _at_temperature(values: tf.Tensor, task: Task, temperature: float | None) -> tf.Tensor:
    if temperature in (None, 1.0):
        return values
    if task.kind == "multiclass":
        return tf.nn.softmax(tf.math.log(tf.maximum(values, TINY)) / temperature)
    p = tf.clip_by_value(values, TINY, 1 - TINY)
    return tf.sigmoid((tf.math.log(p) - tf.math.log1p(-p)) / temperature)
