"""Pictures varied at random for training, by Keras layers, as a function of seed, epoch and batch.

The layers keep no state: every draw follows from a key, so that an interrupted run resumes with the
pictures that it would have had.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from kerasmtl.utils.tf import as_written

if TYPE_CHECKING:
    import tensorflow as tf

ROTATION, SHIFT, ZOOM = 0.02, 0.05, 0.1  # of a full turn, of the size, of the size
BRIGHTNESS, CONTRAST = 0.1, 0.1
_DRAWS = 7


@keras.saving.register_keras_serializable("kerasmtl")
class SmallChanges(keras.layers.Layer):
    """A picture is moved by one affine transform, and its values by one straight line.

    (x, y) of the new picture is taken from c + z R f ((x, y) - c) + s of the old one: centre c,
    zoom z, rotation R, f = -1 for x if left and right are exchanged, shift s; bilinear, the nearest
    pixel outside. A value v becomes a (v - m) + m + b: contrast a, mean of the channel m,
    brightness b; clipped to [0, 1].

    Shapes: (batch, height, width, 3) float32 in [0, 1], in and out; without `training` as it is.
    Every picture has draws of its own.
    """

    def __init__(self, flip: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.flip = flip
        self.generator = keras.random.SeedGenerator()

    def call(self, images: Any, training: bool = False) -> Any:
        """The pictures, changed in training."""
        ops = keras.ops
        if not training:
            return images
        batch, height, width = ops.shape(images)[:3]
        draws = keras.random.uniform((batch, _DRAWS), -1.0, 1.0, seed=self.generator)
        turn, right, down, zoom, light, contrast, flip = ops.unstack(draws, _DRAWS, axis=1)
        mirror = ops.sign(flip + 1e-9) if self.flip else ops.ones_like(flip)
        moves = [turn * (2 * math.pi * ROTATION), right * SHIFT, down * SHIFT, 1 + zoom * ZOOM]
        images = ops.image.affine_transform(
            images,
            _transform(*moves, mirror, ops.cast(height, "float32"), ops.cast(width, "float32")),
            interpolation="bilinear",
            fill_mode="nearest",
            data_format="channels_last",
        )
        slope = (1 + contrast * CONTRAST)[:, None, None, None]
        mean = ops.mean(images, axis=(1, 2), keepdims=True)
        level = mean * (1 - slope) + (light * BRIGHTNESS)[:, None, None, None]
        return ops.clip(images * slope + level, 0.0, 1.0)

    def get_config(self) -> dict[str, Any]:
        """What the layer is made from."""
        return {**super().get_config(), "flip": self.flip}


def _transform(
    angle: Any, right: Any, down: Any, zoom: Any, mirror: Any, height: Any, width: Any
) -> Any:
    """The eight numbers of keras.ops.image.affine_transform, (batch, 8)."""
    ops = keras.ops
    cos, sin = zoom * ops.cos(angle), zoom * ops.sin(angle)
    x, y = (width - 1) / 2, (height - 1) / 2
    rows = [
        (cos * mirror, -sin, x + right * width - cos * mirror * x + sin * y),
        (sin * mirror, cos, y + down * height - sin * mirror * x - cos * y),
    ]
    none = ops.zeros_like(angle)
    return ops.stack([*rows[0], *rows[1], none, none], axis=1)


DEFAULT = "default"


def default_augmentation(flip: bool = True) -> keras.layers.Layer:
    """Small changes that leave the classes of most pictures as they are.

    Rotation by up to 7 degrees, a shift by up to 5 % and a zoom by up to 10 % of the size, with
    the edge repeated outside; brightness by up to 10 % of the range, contrast by up to 10 %; and,
    for one of two pictures, left and right exchanged.

    Shapes: (batch, height, width, 3) float32 in [0, 1], in and out.

    Args:
        flip: False where left and right matter, such as for arrows, text, or sides of a body.
    """
    import keras

    return keras.Sequential([SmallChanges(flip, dtype="float32")], name="augmentation")


def as_layer(augment: Any, size: tuple[int, int]) -> keras.Sequential | None:
    """What `make_dataset(augment=)` takes, as one built layer; None for None.

    Raises:
        TypeError: neither a Keras layer, nor a list of such, nor "default".
        ValueError: a layer changes the shape of the pictures.
    """
    import keras

    if augment is None:
        return None
    if isinstance(augment, str) and augment == DEFAULT:
        layers = [default_augmentation()]
    elif isinstance(augment, keras.layers.Layer):
        layers = [augment]
    else:
        listed = isinstance(augment, Iterable) and not isinstance(augment, str)
        layers = list(augment) if listed else []
        if not layers or not all(isinstance(each, keras.layers.Layer) for each in layers):
            raise TypeError(
                "`augment` is no augmentation. Expected a Keras layer, a list of layers, or "
                f"{DEFAULT!r}. Received: {augment!r}"
            )
    # A model of its own takes `training` whether the layers do or not.
    layer = keras.Sequential(layers, name="augmentation")
    shape = (1, *size, 3)
    given = tuple(layer(keras.ops.zeros(shape), training=True).shape)  # builds it, too
    if given != shape:
        raise ValueError(
            f"`augment` changes the shape of the pictures. Expected {shape}. Received: {given}"
        )
    return layer


def augmenter(layer: keras.layers.Layer, seed: int) -> Callable[[tf.Tensor, Any, Any], tf.Tensor]:
    """From images (batch, height, width, 3) in [0, 1], epoch and number of the batch to new images.

    The layer's random generators are set from (seed, epoch, batch) for every call and what the
    call does to its variables is dropped: the same arguments give the same images, in any order
    and in parallel. The images stay in [0, 1].
    """
    import tensorflow as tf

    weights = {id(variable) for variable in layer.weights}

    @as_written
    def augment(images: tf.Tensor, epoch: Any, batch: Any) -> tf.Tensor:
        keys = iter(_keys(seed, epoch, batch, len(layer.non_trainable_variables)))
        # Variables that are no weights are the states of random generators.
        state = [
            variable.value
            if id(variable) in weights
            else tf.cast(tf.reshape(next(keys), variable.shape), variable.dtype)
            for variable in layer.non_trainable_variables
        ]
        trained = [variable.value for variable in layer.trainable_variables]
        changed, _ = layer.stateless_call(trained, state, images, training=True)
        changed = tf.clip_by_value(tf.cast(changed, tf.float32), 0.0, 1.0)
        return tf.ensure_shape(changed, images.shape)

    return augment


def described(layer: keras.layers.Layer) -> Any:
    """What fixes the layer's changes, as JSON takes it: its settings without names and seeds.

    Names are counted up in a process, and seeds are not used (`augmenter`).
    """
    import keras

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            kept = sorted(value.items())
            return {key: plain(item) for key, item in kept if key not in ("name", "seed")}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)

    weights = hashlib.sha256()
    for variable in layer.weights:
        weights.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes())
    return [plain(keras.saving.serialize_keras_object(layer)), weights.hexdigest()]


def _keys(seed: int, epoch: Any, batch: Any, count: int) -> list[tf.Tensor]:
    """`count` keys of random generators, each (2,) int32, not negative."""
    import tensorflow as tf

    key = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
    key = tf.random.fold_in(key, tf.cast(batch, tf.int64))
    keys = tf.random.stateless_uniform(
        [max(count, 1), 2], key, 0, 2**31 - 1, dtype=tf.int32, alg="philox"
    )
    return tf.unstack(keys)
