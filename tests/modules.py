"""SavedModels to test against: made here, or real ones where they are at hand."""

from pathlib import Path

import pytest
import tensorflow as tf

SHARED = Path(__file__).parents[2] / "shared"
REAL = [
    "mobilenet_v1_025_224",
    "kws_ref_model",
    "fake_effdet_lite0_hub",
    "saved_model_v2_mini",
    "hub_module_v1_mini",
    "hub_module_v1_mini_train",
]


def shared(*parts: str) -> Path:
    """A path among the shared models or data; the test is skipped where they are absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real test data is not at hand: {Path(*parts)}")
    return path


class Reusable(tf.Module):
    """A convolution with batch statistics, as a TF2 reusable SavedModel.

    (batch, height, width, 3) in, (batch, 4) out; `scale` is a variable that the publisher left out
    of `trainable_variables`.
    """

    def __init__(self):
        super().__init__()
        start = tf.random.stateless_normal((3, 3, 3, 4), seed=(1, 2))
        self.kernel = tf.Variable(0.3 * start, name="block_1/conv/kernel")
        self.beta = tf.Variable(tf.zeros(4), name="block_1/bn/beta")
        self.mean = tf.Variable(tf.zeros(4), trainable=False, name="block_1/bn/moving_mean")
        self.scale = tf.Variable(tf.ones(4), name="scale")

    @tf.function
    def __call__(self, inputs, training=False):
        features = tf.reduce_mean(tf.nn.conv2d(inputs, self.kernel, 1, "VALID"), axis=(1, 2))
        if training:
            mean = tf.reduce_mean(features, axis=0)
            self.mean.assign(0.9 * self.mean + 0.1 * mean)
        else:
            mean = tf.convert_to_tensor(self.mean)
        return self.scale * (features - mean) + self.beta

    @tf.function(input_signature=[])
    def penalty(self):
        return 0.01 * tf.reduce_sum(self.kernel**2)


def save_reusable(folder: Path, size: int | None = None) -> Path:
    """Save `Reusable` the way TF-Hub publishes modules."""
    module = Reusable()
    spec = tf.TensorSpec((None, size, size, 3), tf.float32, name="inputs")
    for training in (False, True):
        module.__call__.get_concrete_function(spec, training=training)
    root = tf.train.Checkpoint(
        v=[module.kernel, module.beta, module.mean, module.scale],
    )
    root.__call__ = module.__call__
    root.variables = [module.kernel, module.beta, module.mean, module.scale]
    root.trainable_variables = [module.kernel, module.beta]
    root.regularization_losses = [module.penalty]
    tf.saved_model.save(root, str(folder))
    return folder


def save_dict_module(folder: Path) -> Path:
    """Save a module that returns a dict: "vector" (batch, 3) and "map" (batch, h, w, 3)."""

    class Several(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)])
        def __call__(self, x):
            return {"vector": tf.reduce_mean(x, axis=(1, 2)), "map": 2.0 * x}

    tf.saved_model.save(Several(), str(folder))
    return folder
