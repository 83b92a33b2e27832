"""Backbone + head = a plain functional keras.Model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from kerasmtl import losses, metrics  # noqa: F401  registered with Keras by being imported
from kerasmtl.backbones import HubLayer, load_backbone
from kerasmtl.backbones import image_size as made_for
from kerasmtl.heads import binary_head, pool
from kerasmtl.inputs import as_size
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
) -> keras.Model:
    """A backbone with a new last layer: one network, one sigmoid output per task.

    Shapes: float32 RGB pictures (batch, height, width, 3) in [0, 1] in; probabilities
    (batch, tasks) out, in the order of `tasks`.

    Args:
        backbone: what `load_backbone` takes: "tiny", a keras.applications name, a hub handle, a
            `HubLayer`, or a keras.Model from pictures in [0, 1] to features.
        tasks: what to predict.
        image_size: (height, width) or one number; by default what the backbone was made for,
            224 x 224 if it takes any.
        hidden: widths of dense layers between features and outputs.
        dropout: share of features dropped in training, after each hidden layer.
        trainable: freeze (False) or unfreeze (True) the backbone; by default a handle is frozen
            and a layer or model is left as it is.
        name: of the model.

    Raises:
        ValueError: unknown backbone, tasks that are not distinct, a size that the backbone does
            not take, or a backbone whose output is no feature vector.
    """
    chosen = as_tasks(tasks)
    layer = load_backbone(backbone, trainable=bool(trainable))
    if trainable is not None:
        layer.trainable = trainable
    size = as_size(image_size or made_for(layer) or DEFAULT_SIZE)
    image = keras.Input((*size, 3), name="image")
    try:
        features = layer(image)
    except (ValueError, TypeError) as error:
        needed = layer.image_size if isinstance(layer, HubLayer) else made_for(layer)
        if needed in (None, size):
            raise
        raise ValueError(
            f"`image_size` does not fit the backbone. Expected {needed}. Received: {size}"
        ) from error
    outputs = binary_head(pool(features), chosen, hidden, dropout)
    return keras.Model(image, outputs, name=name)


def load_model(path: str | os.PathLike[str], **kwargs: Any) -> keras.Model:
    """`keras.models.load_model` for a model with kerasmtl's layers, losses and metrics.

    Keras finds a custom class only once its module is imported, which this makes sure of.

    Args:
        path: a .keras file.
        kwargs: as in `keras.models.load_model`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no model, or the backbone it names cannot be found.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"`path` {os.fspath(path)!r} is no file. Expected a .keras file.")
    return keras.models.load_model(path, **kwargs)
