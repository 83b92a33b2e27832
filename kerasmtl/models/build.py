"""Backbone + head = a plain functional keras.Model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kerasmtl.data.images import as_size
from kerasmtl.losses.defaults import target_scales
from kerasmtl.models.backbones import HubLayer, load_backbone
from kerasmtl.models.backbones import default_image_size as made_for
from kerasmtl.models.hub.cache import content_sha256, valid_sha256
from kerasmtl.models.hub.handles import resolve_handle
from kerasmtl.models.hub_layer import trusting
from kerasmtl.tasks import BINARY, Task, all_binary, as_tasks, output_columns


def pool(features: Any) -> Any:
    """Features as (batch, features): a map (batch, height, width, features) is averaged.

    Raises:
        ValueError: several outputs, or an output that is neither a vector nor a map.
    """
    rank = len(features.shape) if hasattr(features, "shape") else None
    if rank == 4:
        return keras.layers.GlobalAveragePooling2D(name="head_pool")(features)
    if rank != 2:
        received = features.shape if rank else type(features).__name__
        raise ValueError(
            "`backbone` gives no feature vector. Expected one output, (batch, features) or (batch, "
            f"height, width, features). Received: {received}. For a module with named outputs call "
            "HubLayer(…, output_key=…)."
        )
    return features


def task_head(
    features: Any,
    tasks: Sequence[Task],
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    scales: Mapping[str, tuple[float, float]] | None = None,
) -> Any:
    """Dense layers with ReLU and dropout, then the outputs of all tasks.

    Shapes: features (batch, features) in. Binary tasks only: probabilities (batch, tasks) out, in
    the order of `tasks`. Other kinds among them: a dict as `output_columns` names it, "binary"
    (batch, binary tasks) probabilities, each multiclass task (batch, classes) probabilities that
    sum to 1, each regression task (batch, 1). float32 under any global policy.

    `scales`: by regression task, mean and standard deviation of its labels (`target_scales`): the
    network then learns the standardised label, and a last layer brings it to the label's unit.

    Raises:
        ValueError: a hidden width below 1, dropout outside [0, 1), or a multiclass task whose
            classes are not known yet.
    """
    check_widths(hidden)
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"`dropout` is no share. Expected 0 <= dropout < 1. Received: {dropout}")
    for number, width in enumerate(hidden, start=1):
        features = keras.layers.Dense(width, activation="relu", name=f"head_dense_{number}")(
            features
        )
        features = keras.layers.Dropout(dropout, name=f"head_dropout_{number}")(features)
    if not hidden and dropout:
        features = keras.layers.Dropout(dropout, name="head_dropout")(features)
    if all_binary(tasks):
        return _output(features, len(tasks), "sigmoid", "head")
    return {
        key: _output_of(
            features, [tasks[column] for column in columns], columns[0], (scales or {}).get(key)
        )
        for key, columns in output_columns(tasks).items()
    }


def check_widths(hidden: Sequence[int]) -> None:
    """Raise ValueError unless all widths of dense layers are positive whole numbers."""
    if not all(isinstance(width, int) and width > 0 for width in hidden):
        raise ValueError(
            f"`hidden` is no list of widths. Expected positive integers. Received: {list(hidden)}"
        )


def _output_of(
    features: Any, tasks: list[Task], position: int, scale: tuple[float, float] | None
) -> Any:
    # Layers are numbered: a task's name may have characters that a layer's must not have.
    if tasks[0].kind == "binary":
        return _output(features, len(tasks), "sigmoid", f"head_{BINARY}")
    if tasks[0].kind == "multiclass":
        return _output(features, tasks[0].outputs, "softmax", f"head_{position}")
    plain = _output(features, 1, "linear", f"head_{position}")
    if scale is None:
        return plain
    mean, std = scale
    name = f"head_{position}_scale"
    return keras.layers.Rescaling(std, mean, dtype="float32", name=name)(plain)


def _output(features: Any, units: int, activation: str, name: str) -> Any:
    return keras.layers.Dense(units, activation=activation, dtype="float32", name=name)(features)


def check_outputs(model: keras.Model, tasks: Sequence[Task]) -> None:
    """Raise ValueError unless the model has the outputs that `task_head` makes for these tasks."""
    if all_binary(tasks):
        expected, shown = (None, len(tasks)), f"output (batch, {len(tasks)})"
    else:
        expected = {
            key: (None, sum(tasks[column].outputs for column in columns))
            for key, columns in output_columns(tasks).items()
        }
        shown = f"outputs {expected}"
    received = output_shapes(model)
    if received != expected:
        raise ValueError(
            f"`tasks` does not fit the model. Expected {shown} for {[t.name for t in tasks]}. "
            f"Received: {received}{_without_task(received, expected)}"
        )


def _without_task(received: Any, expected: Any) -> str:
    if isinstance(received, dict):
        known = expected if isinstance(expected, dict) else {BINARY: expected}
        beyond: list[Any] = [key for key in received if key not in known]
        return f". Outputs without a task: {beyond}" if beyond else ""
    if isinstance(expected, dict) or not isinstance(received, tuple) or len(received) != 2:
        return ""
    beyond = list(range(expected[1], received[1] or 0))
    return f". Columns without a task: {beyond}" if beyond else ""


def output_shapes(model: keras.Model) -> Any:
    """The shape of the output, or a dict of them, which `model.output_shape` would flatten."""
    if isinstance(model.output, dict):
        return {key: tuple(output.shape) for key, output in model.output.items()}
    return model.output_shape


DEFAULT_SIZE = (224, 224)


def build_model(
    backbone: str | keras.Model | HubLayer,
    tasks: Iterable[Task | str],
    image_size: Any = None,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    trainable: bool | None = None,
    name: str = "kerasmtl",
    labels: np.ndarray | None = None,
) -> keras.Model:
    """A backbone with a new last layer: one network for all tasks.

    Shapes: float32 RGB pictures (batch, height, width, 3) in [0, 1] in, which the model brings into
    the range that the backbone takes; probabilities (batch, tasks) out, in the order of `tasks`, or
    a dict if other kinds than binary are among them: see `kerasmtl.models.build.task_head`.
    A hub module that takes no pictures gets the inputs that it declares: text as strings (batch,),
    several inputs as a dict. A keras.Model from rows of numbers, such as `mlp_backbone`, gets
    rows: (batch, columns).

    Args:
        backbone: what `load_backbone` takes: "tiny", a keras.applications name, a hub handle, a
            `HubLayer`, or a keras.Model from pictures in [0, 1] or from rows to features.
        tasks: what to predict.
        image_size: (height, width) or one number; by default what the backbone was made for,
            224 x 224 if it takes any.
        hidden: widths of dense layers between features and outputs.
        dropout: share of features dropped in training, after each hidden layer.
        trainable: freeze (False) or unfreeze (True) the backbone; by default a handle is frozen
            and a layer or model is left as it is.
        name: of the model.
        labels: those of the training rows, (rows, tasks), NaN = missing, for regression tasks: the
            network then learns numbers of mean 0 and spread 1, and predicts in the labels' unit.
            Its loss is `default_losses(tasks, labels)`.

    Raises:
        ValueError: unknown backbone, tasks that are not distinct, labels that do not fit them, a
            size that the backbone does not take, a backbone whose output is no feature vector, or
            a multiclass task whose classes are not known.
    """
    chosen = as_tasks(tasks)
    layer = load_backbone(backbone, trainable=bool(trainable))
    if trainable is not None:
        layer.trainable = trainable
    if isinstance(layer, HubLayer) and not layer.takes_pictures:
        inputs = _declared_inputs(layer, image_size)
        features = layer(inputs)
    elif _takes_rows(layer):
        if image_size is not None:
            raise ValueError(
                f"`image_size` is for pictures, and {layer.name!r} takes rows of numbers. Expected "
                f"no image_size. Received: {image_size!r}"
            )
        inputs = keras.Input(layer.input_shape[1:], name="features")
        features = layer(inputs)
    else:
        size = as_size(image_size or made_for(layer) or DEFAULT_SIZE)
        inputs = keras.Input((*size, 3), name="image")
        features = _features(layer, inputs, size)
    outputs = task_head(pool(features), chosen, hidden, dropout, target_scales(chosen, labels))
    return keras.Model(inputs, outputs, name=name)


def _takes_rows(layer: keras.Model | HubLayer) -> bool:
    if isinstance(layer, HubLayer):
        return False
    shape = layer.input_shape
    return isinstance(shape, tuple) and len(shape) == 2


def _features(layer: keras.Model | HubLayer, image: Any, size: tuple[int, int]) -> Any:
    if isinstance(layer, HubLayer):
        image = _in_range(image, *layer.input_range, layer.module_inputs.dtype)
    try:
        return layer(image)
    except (ValueError, TypeError) as error:
        needed = made_for(layer)
        if needed in (None, size):
            raise
        raise ValueError(
            f"`image_size` does not fit the backbone. Expected {needed}. Received: {size}"
        ) from error


def _in_range(image: Any, low: float, high: float, dtype: str) -> Any:
    """Pictures in [0, 1] brought into [low, high]."""
    if (low, high) != (0.0, 1.0):
        # float32 under any policy: half precision cannot tell 255 levels apart near 255.
        scale = keras.layers.Rescaling(high - low, low, dtype="float32", name="to_backbone_range")
        image = scale(image)
    if "int" in dtype:
        image = keras.ops.cast(keras.ops.round(image), dtype)
    return image


def _declared_inputs(layer: HubLayer, image_size: Any) -> Any:
    """Inputs of the shapes and types that the module declares, without the batch."""
    if image_size is not None:
        raise ValueError(
            f"`image_size` is for pictures, and {layer.handle!r} takes none. Expected no "
            f"image_size. Received: {image_size!r}"
        )

    def symbol(spec: keras.KerasTensor, name: str) -> Any:
        return keras.Input(spec.shape[1:], dtype=spec.dtype, name=name)

    declared = layer.module_inputs
    if isinstance(declared, Mapping):
        return {name: symbol(spec, name) for name, spec in declared.items()}
    if isinstance(declared, list | tuple):
        return [symbol(spec, f"input_{number}") for number, spec in enumerate(declared)]
    return symbol(declared, "text" if declared.dtype == "string" else "inputs")


def load_model(
    path: str | os.PathLike[str],
    trust: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
    **kwargs: Any,
) -> keras.Model:
    """`keras.models.load_model`, with a way to trust the SavedModel in a file.

    The SavedModel of a `HubLayer` travels in the file; in Keras' safe mode it runs only if it is
    the embedded one or you vouch for it.

    Args:
        path: a .keras file.
        trust: handles of modules that may run, or "sha256:" and the hash of one's content.
        kwargs: as in `keras.models.load_model`; `safe_mode=False` trusts the whole file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no model, it brings a graph that nobody vouches for, its backbone
            is neither in it nor in its place, or a later kerasmtl wrote it.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"`path` {os.fspath(path)!r} is no file. Expected a .keras file.")
    handles = [trust] if isinstance(trust, str | os.PathLike) else list(trust)
    with trusting(_sha256_of(os.fspath(handle)) for handle in handles):
        return keras.models.load_model(path, **kwargs)


def _sha256_of(trusted: str) -> str:
    if trusted.startswith("sha256:"):
        return valid_sha256(trusted.removeprefix("sha256:"))
    return content_sha256(resolve_handle(trusted))
