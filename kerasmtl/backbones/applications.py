"""Backbones from keras.applications, with their own preprocessing built in."""

from __future__ import annotations

import inspect
from types import ModuleType

import keras

IMAGE_SIZE = 224


def is_application(name: str) -> bool:
    """Whether keras.applications has a model of that name."""
    return callable(getattr(keras.applications, name, None)) and name.isidentifier()


def application(
    name: str, weights: str | None = "imagenet", trainable: bool = False
) -> keras.Model:
    """A keras.applications model without its top: float32 RGB in [0, 1] in, (batch, features) out.

    The family's own `preprocess_input` is part of the model.

    Args:
        name: for example "MobileNetV2".
        weights: "imagenet" (downloaded and kept by Keras), a weight file, or None for random.
        trainable: whether fitting changes it.

    Raises:
        ValueError: no such model, or its weights cannot be had.
    """
    if not is_application(name):
        raise ValueError(f"`name` is no model of keras.applications. Received: {name!r}")
    build = getattr(keras.applications, name)
    try:
        network = build(include_top=False, weights=weights, pooling="avg")
    except OSError as error:
        raise ValueError(
            f"`weights` {weights!r} of keras.applications.{name} cannot be had. Expected "
            f"'imagenet' with a network connection, or a file. Received: {error}. Offline: copy "
            "the weight file from a connected machine and call "
            f"application({name!r}, weights='path/to/file.h5')."
        ) from error
    except Exception as error:
        # Keras reports failed downloads as a bare Exception.
        if "URL fetch failure" not in str(error):
            raise
        raise ValueError(
            f"`weights` {weights!r} of keras.applications.{name} cannot be downloaded. Received: "
            f"{error}. Offline: copy the weight file from a connected machine and call "
            f"application({name!r}, weights='path/to/file.h5')."
        ) from None
    network.trainable = trainable
    image = keras.Input((None, None, 3), name="image")
    features = network(_family(name).preprocess_input(image * 255.0))
    model = keras.Model(image, features, name=name.lower())
    model.trainable = trainable
    return model


def _family(name: str) -> ModuleType:
    """The module that holds both the model and its `preprocess_input`."""
    for _, module in inspect.getmembers(keras.applications, inspect.ismodule):
        if hasattr(module, name) and hasattr(module, "preprocess_input"):
            return module
    raise ValueError(f"`name` has no preprocess_input in keras.applications. Received: {name!r}")
