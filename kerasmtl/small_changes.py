"""The layer behind `default_augmentation`: every change of a picture in two passes over it."""

from __future__ import annotations

import math
from typing import Any

import keras

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
