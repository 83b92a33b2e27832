"""Backbones from keras.applications, with the preprocessing of the family built in.

Their `preprocess_input` differs from family to family (scaling to [-1, 1], ImageNet means, none at
all) and all of them expect pixels in [0, 255]. `application` puts it into the graph, so that every
model of this package takes [0, 1] and no caller has to know the family. `backbones.load_backbone`
and `inspection.summary` call it.
"""

from __future__ import annotations

import inspect
import os
import warnings
from types import ModuleType

import keras

IMAGE_SIZE = 224
# Image sizes of the training where that is not 224: the input shapes with `include_top=True`.
SIZES = {
    "EfficientNetB1": 240, "EfficientNetB2": 260, "EfficientNetB3": 300, "EfficientNetB4": 380,
    "EfficientNetB5": 456, "EfficientNetB6": 528, "EfficientNetB7": 600,
    "EfficientNetV2B1": 240, "EfficientNetV2B2": 260, "EfficientNetV2B3": 300,
    "EfficientNetV2S": 384, "EfficientNetV2M": 480, "EfficientNetV2L": 480,
    "InceptionResNetV2": 299, "InceptionV3": 299, "NASNetLarge": 331, "Xception": 299,
}  # fmt: skip
IMAGENET_SPREAD = (0.229, 0.224, 0.225)


def is_application(name: str) -> bool:
    """Return whether keras.applications has a model of that name.

    Functions only: `keras.applications` also has modules, such as `mobilenet_v2`.
    """
    return name.isidentifier() and callable(getattr(keras.applications, name, None))


def parse_application(handle: str) -> tuple[str, str] | None:
    """Split a handle into model name and weights; None if keras.applications has no such model.

    "MobileNetV2" means the ImageNet weights, "MobileNetV2:path/to/file.weights.h5" a file.

    Raises:
        ValueError: there is a colon without a file after it.
    """
    name, colon, weights = handle.partition(":")
    if not is_application(name):
        return None
    if colon and not weights:
        raise ValueError(
            f"`handle` must be {name!r} for ImageNet weights, or '{name}:path/to/file.weights.h5', "
            f"got {handle!r}"
        )
    return name, weights or "imagenet"


def application_size(name: str) -> tuple[int, int]:
    """Return the (height, width) that a keras.applications model was trained for.

    224 where the table of exceptions says nothing. The network takes other sizes as well (NASNet's
    excepted), but its features are best near the size of its training.
    """
    return (SIZES.get(name, IMAGE_SIZE),) * 2


def application(
    name: str, weights: str | os.PathLike[str] | None = "imagenet", trainable: bool = False
) -> keras.Model:
    """Build a keras.applications model without its top: RGB in [0, 1] in, a vector out.

    Shapes: float32 (batch, height, width, 3) in, (batch, features) out. The `preprocess_input` of
    the family, which expects [0, 255], is part of the model.

    Args:
        name: for example "MobileNetV2".
        weights: "imagenet" (downloaded and kept by Keras), None for random, or a weight file: of
            the network without its top (Keras' own downloads, `…notop.h5`), or of what this
            function returned.
        trainable: whether fitting changes it.

    Returns:
        A model of two parts, `preprocess_input` and the network with its average pooling. Both have
        the same `trainable`.

    Raises:
        ValueError: no such model, or weights that cannot be downloaded or do not fit.
    """
    if not is_application(name):
        raise ValueError(f"`name` must be a model of keras.applications, got {name!r}")
    file = None if weights in (None, "imagenet") else os.path.expanduser(os.fspath(weights))
    network = _network(name, None if file else weights)
    image = keras.Input(network.input_shape[1:], name="image")  # NASNet's size is fixed
    features = network(_family(name).preprocess_input(image * 255.0))
    model = keras.Model(image, features, name=name.lower())
    if file:
        _load(file, network, model, name)
    network.trainable = model.trainable = trainable
    return model


def _network(name: str, weights: str | None) -> keras.Model:
    """Build the bare network, with its ImageNet weights if asked for.

    Raises:
        ValueError: the weights cannot be downloaded. Other errors are those of Keras.
    """
    build = getattr(keras.applications, name)
    try:
        with warnings.catch_warnings():
            # The warning is about the size that was not given: the network takes any.
            warnings.filterwarnings("ignore", "`input_shape` is undefined or non-square")
            return build(include_top=False, weights=weights, pooling="avg")
    except Exception as error:
        # Keras reports failed downloads as a bare Exception.
        if not isinstance(error, OSError) and "URL fetch failure" not in str(error):
            raise
        raise ValueError(
            f"`weights` {weights!r} of keras.applications.{name} cannot be downloaded: {error}. "
            f"Offline: copy a file from ~/.keras/models, and pass '{name}:path/to/file.h5'."
        ) from None


def _load(file: str, network: keras.Model, model: keras.Model, name: str) -> None:
    """Load a file of the network's weights or of the whole model's.

    The network is tried first, since that is the form of Keras' own files; a file of the whole
    model, as `save_weights` writes it, has one more level of names.
    """
    if not os.path.isfile(file):
        raise ValueError(
            f"`weights` of keras.applications.{name} must be 'imagenet' or a file, got {file!r}"
        )
    try:
        with warnings.catch_warnings():
            # The warning is about a second way to the same layers, which Keras does not need.
            warnings.filterwarnings("ignore", "Skipping nested container")
            try:
                network.load_weights(file)
            except Exception:  # KeyError, OSError, ValueError, by format and fault
                model.load_weights(file)
    except Exception as error:
        raise ValueError(
            f"`weights` must be a weight file of keras.applications.{name} without its top, "
            f"got {file!r}: {str(error).splitlines()[0]}"
        ) from error
    # Keras' files for EfficientNet contain standard deviations where `Normalization` takes
    # variances; with weights="imagenet" Keras adds a layer that divides by their roots once more.
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization):
            values = layer.get_weights()
            spread = [v.shape == (3,) and abs(v - IMAGENET_SPREAD).max() < 1e-3 for v in values]
            store = {str(k): v**2 if spread[k] else v for k, v in enumerate(values)}
            layer.load_own_variables(store)  # not set_weights, which leaves the old ones in use


def _family(name: str) -> ModuleType:
    """Return the module of the model's `preprocess_input`.

    The function is looked up by its module, since `keras.applications` itself does not list it.
    """
    if name.startswith("MobileNetV3"):  # whose module lacks the models
        return keras.applications.mobilenet_v3
    for _, module in inspect.getmembers(keras.applications, inspect.ismodule):
        if hasattr(module, name) and hasattr(module, "preprocess_input"):
            return module
    raise ValueError(f"`name` must have a preprocess_input in keras.applications, got {name!r}")
