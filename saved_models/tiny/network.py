"""The network of the embedded extractor, as plain Keras."""

from __future__ import annotations

import keras

FILTERS_AND_STRIDES = (
    (16, 2), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (192, 2),
)  # fmt: skip
FEATURES = FILTERS_AND_STRIDES[-1][0]
L2 = 2e-5
BN_MOMENTUM = 0.97
BN_EPSILON = 1e-3


def tiny_network(name: str = "tiny") -> keras.Model:
    """Eight 3x3 convolutions, the weights random: images in [0, 1] to 192 pooled features.

    Input `(batch, height, width, 3)`, height and width 64 or more. Each block is convolution,
    batch normalisation and ReLU; a block that keeps the shape adds its input before the ReLU.
    """
    x = inputs = keras.Input((None, None, 3), name="image")
    x = keras.layers.Rescaling(2.0, offset=-1.0, name="to_symmetric")(x)
    for number, (filters, stride) in enumerate(FILTERS_AND_STRIDES, start=1):
        x = _block(x, filters, stride, f"block_{number}")
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(inputs, x, name=name)


def _block(x: keras.KerasTensor, filters: int, stride: int, name: str) -> keras.KerasTensor:
    y = keras.layers.Conv2D(
        filters,
        3,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        kernel_regularizer=keras.regularizers.L2(L2),
        name=f"{name}_conv",
    )(x)
    y = keras.layers.BatchNormalization(
        momentum=BN_MOMENTUM, epsilon=BN_EPSILON, name=f"{name}_bn"
    )(y)
    if y.shape[1:] == x.shape[1:] and stride == 1:
        y = keras.layers.Add(name=f"{name}_add")([x, y])
    return keras.layers.ReLU(name=f"{name}_relu")(y)
