"""Backbones: a hub handle, a keras.applications name, the embedded one, or any Keras model."""

from __future__ import annotations

import os
from typing import Any

import keras

from kerasmtl.models.applications import application, application_size, parse_application
from kerasmtl.models.hub_layer import HubLayer
from kerasmtl.models.keras_hub import is_preset, preset, preset_size

__all__ = [
    "HubLayer",
    "backbone_layers",
    "backbone_names",
    "backbones_in",
    "default_image_size",
    "load_backbone",
]


def load_backbone(
    handle: str | keras.Model | HubLayer, trainable: bool = False, sha256: str | None = None
) -> keras.Model | HubLayer:
    """The backbone that a handle stands for: pictures in, features out.

    A keras.Model takes float32 RGB in [0, 1]; a `HubLayer` what its module takes, and `build_model`
    brings pictures into that range.

    Args:
        handle: "tiny" (embedded); a keras.applications name such as "MobileNetV2" (ImageNet
            weights, downloaded by Keras) or "MobileNetV2:path/to/file.weights.h5"; "keras_hub:" and
            the name or folder of a KerasHub preset; or what `HubLayer` takes: a folder, an archive,
            a TF-Hub or Kaggle URL. A layer or model is returned as it is.
        trainable: whether fitting changes it; only for a handle.
        sha256: of the content of a SavedModel, as `kerasmtl vendor` pins it; any other is refused.

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
    if not isinstance(handle, str | os.PathLike):
        raise ValueError(
            f"`handle` is no handle. Expected a name, a path or a URL. Received: {handle!r}"
        )
    handle = os.fspath(handle)
    named = parse_application(handle)
    if named or is_preset(handle):
        if sha256 is not None:
            raise ValueError(
                f"`sha256` is for SavedModels, and {handle!r} is none. Expected sha256=None."
            )
        model = application(*named, trainable) if named else preset(handle, trainable)
        model.picture_size = application_size(named[0]) if named else preset_size(handle)
        model.handle = handle
        return model
    return HubLayer(handle, trainable=trainable, sha256=sha256)


def default_image_size(backbone: keras.Model | HubLayer) -> tuple[int, int] | None:
    """The (height, width) that a backbone was made for, or None if it takes any."""
    if isinstance(backbone, HubLayer):
        return backbone.image_size
    if getattr(backbone, "picture_size", None):
        return tuple(backbone.picture_size)
    shape = getattr(backbone, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:3]:
        return None
    return tuple(shape[1:3])


def backbone_names(model: keras.Model) -> list[str]:
    """Name the backbones inside a model: by their handles, or, of a model of one's own, its name.

    A keras.applications or KerasHub network that was saved and loaded has its name, too.
    """
    return [
        getattr(layer, "handle", layer.name)
        for layer in model.layers
        if isinstance(layer, HubLayer) or isinstance(layer, keras.Model) and layer.weights
    ]


def backbone_layers(model: keras.Model) -> list[Any]:
    """The backbones inside a model: its hub layers, or the nested model that has weights.

    Raises:
        ValueError: there is none, or several nested models could be it.
    """
    found = backbones_in(model)
    if not found:
        raise ValueError(
            "`model` holds no backbone. Expected a HubLayer or a nested keras.Model among its "
            f"layers, as build_model makes it. Received: {[layer.name for layer in model.layers]}"
        )
    return found


def backbones_in(model: keras.Model) -> list[Any]:
    """As `backbone_layers`; empty if there is none."""
    hubs = [layer for layer in model.layers if isinstance(layer, HubLayer)]
    if hubs:
        return hubs
    nested = [layer for layer in model.layers if isinstance(layer, keras.Model) and layer.weights]
    if len(nested) > 1:
        raise ValueError(
            f"`model` {model.name!r} holds several models with weights. Expected one, the "
            f"backbone. Received: {[layer.name for layer in nested]}. Pass the one that is meant: "
            f"model.get_layer({nested[0].name!r})."
        )
    return nested
