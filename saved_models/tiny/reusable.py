"""The extractor as a reusable TF2 SavedModel: callable, trainable, no Keras needed to load it."""

from __future__ import annotations

from pathlib import Path

import keras
import tensorflow as tf

from kerasmtl.saved_models.tiny.network import BN_EPSILON, BN_MOMENTUM, FILTERS_AND_STRIDES, L2

STRIDES = tuple(stride for _, stride in FILTERS_AND_STRIDES)
IMAGES = tf.TensorSpec((None, None, None, 3), tf.float32, name="inputs")


class Extractor(tf.train.Checkpoint):
    """The tiny network built from TensorFlow operations, its variables named by block.

    Called with images in [0, 1], height and width 64 or more, it returns pooled features.
    """

    def __init__(self, network: keras.Model) -> None:
        super().__init__()
        self.blocks = [_variables(network, f"block_{k}") for k in range(1, len(STRIDES) + 1)]
        self.variables = [weight for block in self.blocks for weight in block.values()]
        self.trainable_variables = [weight for weight in self.variables if weight.trainable]
        self.regularization_losses = [_penalty(block["kernel"]) for block in self.blocks]

    @tf.function
    def __call__(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = inputs * 2.0 - 1.0
        for block, stride in zip(self.blocks, STRIDES, strict=True):
            y = _normalise(tf.nn.conv2d(x, block["kernel"], stride, "SAME"), block, training)
            x = tf.nn.relu(x + y if stride == 1 else y)
        return tf.reduce_mean(x, axis=[1, 2])


def export(network: keras.Model, out: Path) -> None:
    """Write a trained tiny network as a SavedModel, traced for training and for inference."""
    module = Extractor(network)
    for training in (False, True):
        module.__call__.get_concrete_function(IMAGES, training=training)
    tf.saved_model.save(module, str(out))


def _variables(network: keras.Model, block: str) -> dict[str, tf.Variable]:
    """The weights of one block: kernel, gamma, beta, moving_mean and moving_variance."""
    return {
        weight.name: tf.Variable(
            weight.numpy(), trainable=weight.trainable, name=f"{block}/{part}/{weight.name}"
        )
        for part in ("conv", "bn")
        for weight in network.get_layer(f"{block}_{part}").weights
    }


def _normalise(x: tf.Tensor, bn: dict[str, tf.Variable], training: bool) -> tf.Tensor:
    mean, variance = bn["moving_mean"], bn["moving_variance"]
    if training:
        mean, variance = tf.nn.moments(x, [0, 1, 2])
        for moving, batch in ((bn["moving_mean"], mean), (bn["moving_variance"], variance)):
            moving.assign(BN_MOMENTUM * moving + (1 - BN_MOMENTUM) * batch)
    return tf.nn.batch_normalization(x, mean, variance, bn["beta"], bn["gamma"], BN_EPSILON)


def _penalty(kernel: tf.Variable) -> tf.types.experimental.PolymorphicFunction:
    return tf.function(lambda: L2 * tf.reduce_sum(tf.square(kernel)), input_signature=[])
