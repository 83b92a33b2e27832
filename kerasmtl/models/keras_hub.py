"""Backbones from KerasHub presets, with the preprocessing of the preset built in."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import keras

from kerasmtl.models.hub.handles import PRESET as PREFIX


def is_preset(handle: str) -> bool:
    """Whether a handle names a KerasHub preset: "keras_hub:" and what KerasHub takes."""
    return handle.startswith(PREFIX)


def preset(handle: str, trainable: bool = False) -> keras.Model:
    """Loads a KerasHub backbone: float32 RGB in [0, 1] in; a vector or map of features out.

    The scale and offset of the preset's own `ImageConverter` are part of the model; its resizing is
    not, see `preset_size`. A transformer's tokens (batch, tokens, features) are averaged.

    Args:
        handle: "keras_hub:" and a preset's name, a kaggle:// or hf:// URL, or a local folder; for
            example "keras_hub:resnet_50_imagenet".
        trainable: whether fitting changes it.

    Raises:
        ImportError: keras-hub is not installed.
        ValueError: there is no such preset, or it does not take images.
    """
    hub = _keras_hub(handle)
    converter = _converter(hub, handle)
    backbone = _from_preset(hub.models.Backbone, handle)
    shape = getattr(backbone.input, "shape", ())
    if len(shape) != 4 or shape[-1] != 3:
        raise ValueError(_no_images(handle, f"inputs {backbone.input}"))
    image = keras.Input(tuple(shape[1:]), name="image")
    scaled = keras.layers.Rescaling(*_scale_and_offset(converter), name="as_published")(image)
    features = backbone(scaled)
    if len(getattr(features, "shape", ())) == 3:
        features = keras.layers.GlobalAveragePooling1D(name="mean_of_tokens")(features)
    model = keras.Model(image, features, name="keras_hub")
    model.trainable = trainable
    return model


def preset_size(handle: str) -> tuple[int, int] | None:
    """Returns the (height, width) that a preset resizes images to, or None if it does not say.

    Raises: as `preset`.
    """
    return _converter(_keras_hub(handle), handle).image_size


def _keras_hub(handle: str) -> ModuleType:
    try:
        import keras_hub
    except ImportError as error:
        raise ImportError(
            f"`handle` {handle!r} needs keras-hub. Received: {error}. Install it: "
            "pip install 'kerasmtl[keras-hub]'"
        ) from None
    return keras_hub


def _converter(hub: ModuleType, handle: str) -> Any:
    """Returns the preset's ImageConverter: a small file, read before any weights are."""
    converter = _from_preset(hub.layers.ImageConverter, handle)
    if converter.data_format != "channels_last":
        raise ValueError(_no_images(handle, f"images with {converter.data_format}"))
    return converter


def _from_preset(kind: Any, handle: str) -> Any:
    source = handle.removeprefix(PREFIX)
    try:
        return kind.from_preset(source)
    except Exception as error:
        # Whatever the clients of Kaggle and Hugging Face raise, besides KerasHub's own.
        if "Unable to find a subclass" in str(error):
            raise ValueError(_no_images(handle, "a preset without ImageConverter")) from error
        raise ValueError(
            f"`handle` must be the name of a KerasHub preset, a kaggle:// or hf:// URL, or a "
            f"folder that save_to_preset wrote, got {handle!r}, which cannot be loaded "
            f"({type(error).__name__}: {error}). Offline: copy the preset's folder from a "
            f"connected machine, and pass '{PREFIX}path/to/folder'."
        ) from error


def _scale_and_offset(converter: Any) -> tuple[Any, Any]:
    """Converts for pixels in [0, 1], where KerasHub has [0, 255]; numbers, or lists by channel."""
    scale = 1.0 if converter.scale is None else converter.scale
    offset = 0.0 if converter.offset is None else converter.offset
    if isinstance(scale, list | tuple):
        scale = [255.0 * float(channel) for channel in scale]
    else:
        scale = 255.0 * float(scale)
    return scale, list(offset) if isinstance(offset, tuple) else offset


def _no_images(handle: str, received: str) -> str:
    return (
        f"`handle` must be a preset that takes images (batch, height, width, 3), for example "
        f"'keras_hub:resnet_50_imagenet', got {handle!r}: {received}"
    )
