"""Backbones by handle: embedded, keras.applications, KerasHub presets, or a SavedModel.

`load_backbone` is the one place that tells handles apart: `build_model`, `Project.load_backbone`
and `kerasmtl inspect` all call it. What it returns is a `HubLayer` or a `keras.Model`, and the
functions that follow find such backbones again inside a built model, for freezing, layer groups and
the feature cache.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kerasmtl.models.applications import application, application_size, parse_application
from kerasmtl.models.hub.handles import PRESET
from kerasmtl.models.hub_layer import HubLayer

IMAGES_ONLY = (
    "`handle` must be a preset that takes images (batch, height, width, 3), for example "
    "'keras_hub:resnet_50_imagenet', got {!r} with {}"
)


def load_backbone(
    handle: str | os.PathLike[str] | keras.Model | HubLayer,
    trainable: bool = False,
    sha256: str | None = None,
    input_range: Sequence[float] | None = None,
) -> keras.Model | HubLayer:
    """Load the backbone that a handle names: images in, features out.

    A keras.Model takes float32 RGB in [0, 1]; a `HubLayer` takes the pixels of its `input_range`,
    to which `build_model` scales images.

    Args:
        handle: "tiny" (embedded); a keras.applications name such as "MobileNetV2" (ImageNet
            weights, downloaded by Keras) or "MobileNetV2:path/to/file.weights.h5"; "keras_hub:" and
            the name or folder of a KerasHub preset; or what `HubLayer` takes: a folder, an archive,
            a TF-Hub or Kaggle URL. A layer or model is returned as it is.
        trainable: whether fitting changes it; only for a handle.
        sha256: of the content of a SavedModel, as `kerasmtl vendor` pins it; any other is refused.
        input_range: (low, high) of the pixels of a SavedModel, as for `HubLayer`.

    Returns:
        A `HubLayer` for a SavedModel, else a `keras.Model`, which gets the attributes `handle` and,
        where it is known, `image_size`. Neither attribute is saved with a model.

    Raises:
        ValueError: the handle is unknown, unreachable, or cannot be trained.

    Example:
        >>> import kerasmtl as kt
        >>> backbone = kt.load_backbone("tiny")
        >>> backbone.input_range
        (0.0, 1.0)
    """
    if isinstance(handle, HubLayer | keras.Model):
        return handle
    if not isinstance(handle, str | os.PathLike):
        raise ValueError(f"`backbone` must be a handle, HubLayer or keras.Model, got {handle!r}")
    handle = os.fspath(handle)
    named = parse_application(handle)
    if not named and not handle.startswith(PRESET):
        return HubLayer(handle, trainable=trainable, sha256=sha256, input_range=input_range)
    for argument, value in (("sha256", sha256), ("input_range", input_range)):
        if value is not None:
            raise ValueError(
                f"`{argument}` must be None but for a SavedModel, got {value!r} for {handle!r}"
            )
    model = application(*named, trainable) if named else preset(handle, trainable)
    if named:
        model.image_size = application_size(named[0])
    model.handle = handle
    return model


def default_image_size(backbone: keras.Model | HubLayer) -> tuple[int, int] | None:
    """Return the (height, width) that a backbone was made for, or None if it takes any.

    Example:
        >>> import kerasmtl as kt
        >>> kt.backbones.default_image_size(kt.load_backbone("tiny"))
        (128, 128)
    """
    known = getattr(backbone, "image_size", None)
    if known or isinstance(backbone, HubLayer):
        return known and tuple(known)
    shape = getattr(backbone, "input_shape", None)
    fixed = isinstance(shape, tuple) and len(shape) == 4 and None not in shape[1:3]
    return shape[1:3] if fixed else None


def backbone_layers(model: keras.Model) -> list[keras.Model | HubLayer]:
    """Return the backbones inside a model: its hub layers, or the nested model with weights.

    Args:
        model: as `build_model` makes it.

    Raises:
        ValueError: there is none, or several nested models could be it.

    Example:
        >>> import kerasmtl as kt
        >>> model = kt.build_model("tiny", ["car", "person"])
        >>> [layer.handle for layer in kt.backbones.backbone_layers(model)]
        ['tiny']
    """
    found = backbones_in(model)
    if not found:
        raise ValueError(
            "`model` must have a HubLayer or a nested keras.Model among its layers, as build_model "
            f"makes it, got {[layer.name for layer in model.layers]}"
        )
    return found


def backbones_in(model: keras.Model) -> list[keras.Model | HubLayer]:
    """Return the backbones as `backbone_layers` does; an empty list if there is none.

    Hub layers come first: a model that has some may also contain other nested models with weights,
    such as a head. Layers inside nested models are not searched.

    Args:
        model: as `build_model` makes it, or any other.

    Raises:
        ValueError: several nested models with weights, and no `HubLayer`.
    """
    hubs = [layer for layer in model.layers if isinstance(layer, HubLayer)]
    if hubs:
        return hubs
    nested = [layer for layer in model.layers if isinstance(layer, keras.Model) and layer.weights]
    if len(nested) > 1:
        raise ValueError(
            f"`model` must have one nested model with weights, its backbone, got "
            f"{[layer.name for layer in nested]}. Pass one: model.get_layer({nested[0].name!r})."
        )
    return nested


def backbone_names(model: keras.Model) -> list[str]:
    """Name the backbones inside a model: by handle, or else by layer name.

    Unlike `backbones_in` it does not raise where there are several: the names are for people only.
    """
    return [
        getattr(layer, "handle", layer.name)
        for layer in model.layers
        if isinstance(layer, HubLayer) or isinstance(layer, keras.Model) and layer.weights
    ]


# ---------------------------------------------------------------- KerasHub presets


def preset(handle: str, trainable: bool = False) -> keras.Model:
    """Load a KerasHub backbone: float32 RGB in [0, 1] in; a vector or map of features out.

    The scale and offset of the preset's own `ImageConverter` are part of the model; its resizing is
    not: `image_size` of the model is the (height, width) it resizes to, or None. A transformer's
    tokens (batch, tokens, features) are averaged.

    Args:
        handle: "keras_hub:" and a preset's name, a kaggle:// or hf:// URL, or a local folder; for
            example "keras_hub:resnet_50_imagenet".
        trainable: whether fitting changes it.

    Returns:
        The model, called "keras_hub", with the attribute `image_size`.

    Raises:
        ImportError: keras-hub is not installed.
        ValueError: there is no such preset, or it does not take images.
    """
    try:
        import keras_hub
    except ImportError:
        raise ImportError(
            f"{handle!r} needs keras-hub: pip install 'kerasmtl[keras-hub]'"
        ) from None
    # The converter is a small file, read before any weights are.
    converter = _from_preset(keras_hub.layers.ImageConverter, handle)
    backbone = _from_preset(keras_hub.models.Backbone, handle)
    shape = getattr(backbone.input, "shape", ())
    if len(shape) != 4 or shape[-1] != 3:
        raise ValueError(IMAGES_ONLY.format(handle, backbone.input))
    image = keras.Input(tuple(shape[1:]), name="image")
    # KerasHub scales pixels in [0, 255]. Numbers, or a list with one for each channel.
    scale = (255.0 * np.asarray(1.0 if converter.scale is None else converter.scale)).tolist()
    offset = np.asarray(converter.offset or 0.0).tolist()
    features = backbone(keras.layers.Rescaling(scale, offset, name="as_published")(image))
    if len(getattr(features, "shape", ())) == 3:
        features = keras.layers.GlobalAveragePooling1D(name="mean_of_tokens")(features)
    model = keras.Model(image, features, name="keras_hub")
    model.trainable = trainable
    model.image_size = converter.image_size
    return model


def _from_preset(kind: Any, handle: str) -> Any:
    """Load a part of a preset; raise ValueError whatever the clients raise.

    Args:
        kind: a class of KerasHub with `from_preset`.
        handle: with "keras_hub:" before the name.
    """
    try:
        return kind.from_preset(handle.removeprefix(PRESET))
    except Exception as error:
        # Of Kaggle and Hugging Face, besides KerasHub's own.
        if "Unable to find a subclass" in str(error):
            raise ValueError(IMAGES_ONLY.format(handle, "no ImageConverter")) from error
        raise ValueError(
            f"`handle` must be a KerasHub preset, a kaggle:// or hf:// URL, or a folder that "
            f"save_to_preset wrote, got {handle!r} ({type(error).__name__}: {error}). Offline: "
            "copy that folder from a connected machine."
        ) from error
