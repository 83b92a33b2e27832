"""Backbone + head = a plain functional keras.Model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kerasmtl.backbones import HubLayer, load_backbone
from kerasmtl.backbones import image_size as made_for
from kerasmtl.backbones.trust import trusting
from kerasmtl.heads import pool, task_head
from kerasmtl.inputs import as_size
from kerasmtl.modules.content import content_sha256, valid_sha256
from kerasmtl.modules.handles import resolve_handle
from kerasmtl.scales import target_scales
from kerasmtl.tasks import Task, as_tasks

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
    a dict if other kinds than binary are among them: see `kerasmtl.heads.task_head`.
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
