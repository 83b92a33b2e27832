"""The functions of an exported model, each with named inputs and outputs."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from kerasmtl.exporting.decisions import TINY, Decision
from kerasmtl.heads import by_task
from kerasmtl.inputs import prepare_images, resize_image
from kerasmtl.tasks import Task

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
