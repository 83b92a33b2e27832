"""Fine-tuning through HubLayer is fine-tuning of the network itself: every weight, step by step."""

import keras
import numpy as np
import pytest
from modules import twin

import kerasmtl as kt

STEPS, ROWS, SIZE, TASKS = 6, 4, 32, 3
BATCHES = 3  # different ones, seen again


def with_head(backbone):
    keras.utils.set_random_seed(1)  # the same head on both
    image = keras.Input((SIZE, SIZE, 3))
    model = keras.Model(
        image, keras.layers.Dense(TASKS, activation="sigmoid", name="head")(backbone(image))
    )
    model.compile(
        keras.optimizers.Adam(1e-3), kt.losses.MaskedBinaryCrossentropy(), jit_compile=False
    )
    return model


def batches():
    rng = np.random.default_rng(0)
    x = rng.random((BATCHES, ROWS, SIZE, SIZE, 3), dtype="float32")
    y = rng.integers(0, 2, (BATCHES, ROWS, TASKS)).astype("float32")
    y[rng.random(y.shape) < 0.3] = np.nan
    return [(x[step % BATCHES], y[step % BATCHES]) for step in range(STEPS)]


def train(model):
    """The loss of every step."""
    return np.array([float(model.train_on_batch(x, y)) for x, y in batches()])


def weights(model):
    """By name, e.g. "block_1_conv_kernel", of the hub layer or of the nested network's layers."""
    found = {f"head_{w.name}": w.numpy() for w in model.get_layer("head").weights}
    backbone = model.layers[1]
    if isinstance(backbone, kt.HubLayer):
        return found | {w.name: w.numpy() for w in backbone.variables}
    return found | {
        f"{part.name}_{w.name}": w.numpy() for part in backbone.layers for w in part.weights
    }


@pytest.fixture(params=[True, False], ids=["trainable", "frozen"])
def models(request):
    layer = kt.HubLayer("tiny", trainable=request.param)
    return with_head(layer), with_head(twin(layer))


def test_every_weight_is_that_of_plain_keras_after_some_steps(models):
    through_hub, plain = models
    before = weights(through_hub)
    losses = train(through_hub)
    np.testing.assert_allclose(losses, train(plain), atol=1e-5)
    after, expected = weights(through_hub), weights(plain)
    assert after.keys() == expected.keys() and len(after) == 8 * 5 + 2
    for name, value in expected.items():
        np.testing.assert_allclose(after[name], value, rtol=0, atol=1e-5, err_msg=name)
    moved = {name for name in after if not np.array_equal(before[name], after[name])}
    trainable = through_hub.layers[1].trainable
    assert moved == (set(after) if trainable else {"head_kernel", "head_bias"})
