"""Backbones: a hub handle, a keras.applications name, the embedded one, or any Keras model."""

from __future__ import annotations

from typing import Any

import keras

from kerasmtl.backbones.applications import application, is_application
from kerasmtl.backbones.hub import HubLayer
from kerasmtl.embedded import EXTRACTORS

__all__ = ["HubLayer", "backbone_layers", "image_size", "load_backbone"]


def load_backbone(
    handle: str | keras.Model | HubLayer, trainable: bool = False
) -> keras.Model | HubLayer:
    """The backbone that a handle stands for: float32 RGB in [0, 1] in, features out.

    Args:
        handle: "tiny" (embedded), a keras.applications name such as "MobileNetV2" (ImageNet
            weights, downloaded by Keras), or what `HubLayer` takes: a folder, an archive, a
            TF-Hub or Kaggle URL. A layer or model is returned as it is.
        trainable: whether fitting changes it; only for a handle.

    Raises:
        ValueError: the handle is unknown, unreachable, or cannot be trained.
    """
    if isinstance(handle, HubLayer | keras.Model):
        return handle
    if isinstance(handle, keras.layers.Layer):
        raise ValueError(
            "`backbone` is a layer that keeps no features. Expected a handle, a HubLayer or a "
            f"keras.Model. Received: {handle!r}. Wrap it: keras.Sequential([…])."
        )
    if is_application(handle):
        return application(handle, trainable=trainable)
    return HubLayer(handle, trainable=trainable)


def image_size(backbone: keras.Model | HubLayer) -> tuple[int, int] | None:
    """The (height, width) that a backbone was made for, or None if it takes any."""
    if isinstance(backbone, HubLayer):
        embedded = EXTRACTORS.get(backbone.handle)
        return embedded.image_size if embedded else backbone.image_size
    shape = backbone.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:3]:
        return None
    return tuple(shape[1:3])


def backbone_layers(model: keras.Model) -> list[Any]:
    """The backbones inside a model: its hub layers and nested models.

    Raises:
        ValueError: there is none.
    """
    found = [layer for layer in model.layers if isinstance(layer, HubLayer | keras.Model)]
    if not found:
        raise ValueError(
            "`model` holds no backbone. Expected a HubLayer or a nested keras.Model among its "
            f"layers, as build_model makes it. Received: {[layer.name for layer in model.layers]}"
        )
    return found
