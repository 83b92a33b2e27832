"""Inputs and outputs of exported and converted models: named, and by task.

`answers` and `endpoints` are the graph of every export: they name a model's outputs after the
tasks, calibrate and decide, so that a client needs no code of this package. `ModelInterface` is the
narrower view of converted models, which have one input, and outputs without decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kerasmtl.data.inputs import Image, Input, Signature
from kerasmtl.evaluation.calibration import TINY, Decision
from kerasmtl.export.description import DECISION, DEFAULT_SIGNATURE
from kerasmtl.models.build import check_outputs
from kerasmtl.tasks import Task, by_task

Tensors = dict[str, tf.Tensor]
# As ExportArchive.add_endpoint takes it: name, function, input signature.
Endpoint = tuple[str, Callable[..., Tensors], list[Any]]


def traced_signatures(input: Input) -> list[Signature]:
    """Return the signatures of an input, the default one first.

    Their functions are traced once, and shared by verification and all functions of the export.

    Args:
        input: bound to the model, see `input_of`.
    """
    return [
        each._replace(
            to_input=tf.function(each.to_input, autograph=False).get_concrete_function(each.specs)
        )
        for each in input.signatures()
    ]


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

    Args:
        model: functional or sequential.
        signatures: as `traced_signatures` returns them.
        tasks: of the outputs, in order.
        decisions: threshold and temperature by task.

    Returns:
        Name, function and input signature of each, as `ExportArchive.add_endpoint` takes them.
    """

    def serve(signature: Signature) -> Callable[[Tensors], Tensors]:
        return lambda raw: answers(model(signature.to_input(raw), training=False), tasks, decisions)

    found: list[Endpoint] = [(each.name, serve(each), [each.specs]) for each in signatures]
    embedding, default = embedding_model(model), signatures[0]
    if embedding is not None:

        def features(raw: Tensors) -> Tensors:
            return {"features": embedding(default.to_input(raw), training=False)}

        found.append(("features", features, [default.specs]))
    return found


def answers(outputs: Any, tasks: Sequence[Task], decisions: Mapping[str, Decision]) -> Tensors:
    """Name a model's outputs after the tasks, calibrate them, and add decisions.

    The cast to float32 comes first: the outputs of a head in half precision would otherwise be
    compared with the threshold in half precision.

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

    Args:
        values: (batch,) float32 probabilities of a binary task, (batch, classes) of a multiclass
            task.
        task: whose kind decides.
        temperature: T > 0; 1 or None leaves `values` as they are, bit for bit.

    Returns:
        Values of the same shape. Probabilities nearer to 0 or 1 than `TINY` have no finite logit in
        float32, and are moved to it.
    """
    if temperature in (None, 1.0):
        return values
    if task.kind == "multiclass":
        return tf.nn.softmax(tf.math.log(tf.maximum(values, TINY)) / temperature)
    p = tf.clip_by_value(values, TINY, 1 - TINY)
    # Not log1p(-p), which ONNX lacks; a p that small is as near without.
    return tf.sigmoid((tf.math.log(p) - tf.math.log(1 - p)) / temperature)


def check_names(tasks: Sequence[Task]) -> None:
    """Raise ValueError if a task has the name of another task's decision.

    Signatures have one name space for outputs: task "car" with a decision, and a task
    "car_decision".
    """
    decided = {task.name + DECISION for task in tasks if task.kind != "regression"}
    clash = sorted(decided & {task.name for task in tasks})
    if clash:
        raise ValueError(f"`tasks` must not be named like another task's decision, got {clash}")


def embedding_model(model: keras.Model) -> keras.Model | None:
    """Return the model up to its head, whose output is (batch, features); None if that is unclear.

    The head is what `task_head` made, or else the last layer.

    Returns:
        A model that shares its layers with `model`. It is unclear for a model that is not
        functional, whose layer is called several times, or whose features are its input or not a
        matrix.
    """
    heads = [
        layer
        for layer in model.layers
        if (layer.name + "_").startswith("head_") and layer.name != "head_pool"
    ]
    try:
        features = (heads or model.layers[-1:])[0].input
    except (AttributeError, IndexError, ValueError):  # not functional, or called several times
        return None
    is_input = any(features is tensor for tensor in model.inputs)
    if is_input or not isinstance(features, keras.KerasTensor) or len(features.shape) != 2:
        return None
    return keras.Model(model.inputs[0], features)


def input_of(model: keras.Model, input: Input | None) -> Input:
    """Return the input of a model, bound to its shape; by default images.

    Raises:
        ValueError: not a Keras model, one without a shape yet or with several inputs, or one that
            does not take such an input.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a keras.Model, got {type(model).__name__}")
    try:
        _, shape = model.output_shape, model.input_shape
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"`model` must be functional, sequential with an Input, or called once: {error}"
        ) from None
    if not isinstance(shape, tuple):
        raise ValueError(f"`model` must have one input, got {len(shape)}")
    return (Image() if input is None else input).for_model(model)


def write_saved_model(
    model: keras.Model, folder: str | Path, functions: Sequence[Endpoint]
) -> None:
    """Write functions of a model as the signatures of a SavedModel.

    Args:
        model: whose variables the functions use.
        folder: to be written.
        functions: as `endpoints` or `ModelInterface.endpoint` return them.
    """
    archive: Any = keras.export.ExportArchive()
    archive.track(model)
    for name, serve, signature in functions:
        archive.add_endpoint(name, serve, signature)
    archive.write_out(str(folder), verbose=False)


# ---------------------------------------------------------------- converted models


@dataclass(frozen=True)
class ModelInterface:
    """The one input and the outputs of a converted model.

    Attributes:
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

        Args:
            model: functional or sequential.
            tasks: of the outputs, in order.
            input: what the model takes; by default images.
            decisions: threshold and temperature by task.

        Raises:
            ValueError: the model does not take this input, or not as floats, or its outputs are
                not those of the tasks.
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

    def endpoint(self, model: keras.Model) -> Endpoint:
        """Return the model as a function of one tensor, to task → calibrated output.

        The tensor is (batch, *shape) float32; see `by_task` for the shapes of the outputs.
        """

        def serve(inputs: tf.Tensor) -> Tensors:
            found = answers(model(inputs, training=False), self.tasks, self.decisions)
            return {task.name: found[task.name] for task in self.tasks}

        return DEFAULT_SIGNATURE, serve, [tf.TensorSpec((None, *self.shape), name=self.name)]
