"""HubLayer: what a SavedModel promises, as a Keras 3 layer."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from modules import REAL, save_dict_module, save_reusable, shared

from kerasmtl.models.hub_layer import HubLayer

INPUTS = {
    "mobilenet_v1_025_224": (2, 224, 224, 3),
    "kws_ref_model": (2, 49, 10, 1),
    "fake_effdet_lite0_hub": (2, 320, 320, 3),
    "saved_model_v2_mini": (2, 3),
    "hub_module_v1_mini": (2, 3),
    "hub_module_v1_mini_train": (2, 3),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_reusable(tmp_path_factory.mktemp("module") / "reusable")


def pictures(rows=8, size=12, seed=0):
    return np.random.default_rng(seed).random((rows, size, size, 3), dtype="float32")


def targets(rows=8, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (rows, 1)).astype("float32")


def classifier(layer, size=12):
    image = keras.Input((size, size, 3))
    return keras.Model(image, keras.layers.Dense(1, activation="sigmoid")(layer(image)))


def values(layer):
    return [variable.numpy().copy() for variable in layer.variables]


def changed(before, layer):
    return [
        variable.name
        for old, variable in zip(before, layer.variables, strict=True)
        if not np.array_equal(old, variable.numpy())
    ]


def direct(name):
    """The module's own inference call, without kerasmtl."""
    module = tf.saved_model.load(str(shared("models", name)))
    if not callable(module):
        return lambda x: module.signatures["default"](tf.constant(x))["default"]
    if name == "saved_model_v2_mini":
        return module
    return lambda x: module(x, False, None)


@pytest.mark.parametrize("name", REAL)
def test_a_real_module_gives_its_own_output(name):
    x = np.random.default_rng(0).random(INPUTS[name], dtype="float32")
    expected = tf.nest.flatten(direct(name)(x))
    received = tf.nest.flatten(HubLayer(shared("models", name))(x))
    for a, b in zip(expected, received, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("how", ["from the start", "after training", "through the model"])
def test_frozen_is_bit_for_bit_unchanged(folder, how):
    layer = HubLayer(folder, trainable=how == "after training")
    model = classifier(layer)
    if how == "after training":
        model.compile("adam", "binary_crossentropy")
        model.fit(pictures(), targets(), epochs=1, verbose=0)
        layer.trainable = False
    elif how == "through the model":
        model.trainable = True
        layer.trainable = False
    before = values(layer)
    model.compile("adam", "binary_crossentropy")
    model.fit(pictures(), targets(), epochs=3, verbose=0)
    assert changed(before, layer) == []
    assert len(model.trainable_variables) == 2


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.Adam,
        keras.optimizers.AdamW,
        keras.optimizers.RMSprop,
        lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
    ],
)
def test_trainable_moves_with_every_optimizer(folder, optimizer):
    layer = HubLayer(folder, trainable=True)
    model = classifier(layer)
    before = values(layer)
    model.compile(optimizer(1e-2), "binary_crossentropy")
    model.fit(pictures(), targets(), epochs=1, verbose=0)
    assert set(changed(before, layer)) == {
        "block_1_conv_kernel",
        "block_1_bn_beta",
        "block_1_bn_moving_mean",
    }


def test_moving_statistics_stay_in_inference(folder):
    layer = HubLayer(folder, trainable=True)
    model = classifier(layer)
    model.compile("adam", "binary_crossentropy")
    before = values(layer)
    model.predict(pictures(), verbose=0)
    model.evaluate(pictures(), targets(), verbose=0)
    assert changed(before, layer) == []


def test_only_what_the_publisher_lists_is_trainable(folder):
    layer = HubLayer(folder, trainable=True)
    assert [v.name for v in layer.trainable_variables] == [
        "block_1_conv_kernel",
        "block_1_bn_beta",
    ]
    assert [v.name for v in layer.non_trainable_variables] == ["block_1_bn_moving_mean", "scale"]


def test_regularization_losses_count_only_while_trainable(folder):
    layer = HubLayer(folder, trainable=True)
    layer(pictures())
    kernel = layer.trainable_variables[0].numpy()
    np.testing.assert_allclose(layer.losses, [0.01 * (kernel**2).sum()], rtol=1e-6)
    layer.trainable = False
    layer(pictures())
    assert layer.losses == []


def test_five_real_regularization_losses():
    layer = HubLayer(shared("models", "kws_ref_model"), trainable=True)
    layer(np.zeros((1, 49, 10, 1), "float32"))
    assert len(layer.losses) == 5 and all(loss > 0 for loss in layer.losses)


@pytest.mark.parametrize("name", ["hub_module_v1_mini", "hub_module_v1_mini_train"])
def test_training_a_module_of_signatures_is_refused_with_the_reason(name):
    path = shared("models", name)
    with pytest.raises(ValueError, match="signatures are for inference"):
        HubLayer(path, trainable=True)
    layer = HubLayer(path)
    with pytest.raises(ValueError, match="`trainable` cannot be True"):
        layer.trainable = True


def test_training_a_module_without_variables_is_refused(tmp_path):
    folder = save_dict_module(tmp_path / "several")
    with pytest.raises(ValueError, match="declares no trainable variables"):
        HubLayer(folder, trainable=True)


def test_output_key_picks_one_output_and_names_the_others(tmp_path):
    folder = save_dict_module(tmp_path / "several")
    x = pictures(2, 5)
    np.testing.assert_allclose(
        HubLayer(folder, output_key="vector")(x), x.mean(axis=(1, 2)), rtol=1e-5
    )
    with pytest.raises(ValueError, match=r"\['map', 'vector'\]"):
        HubLayer(folder, output_key="vektor")(x)


def test_a_signature_that_is_not_there_names_those_that_are(folder):
    with pytest.raises(ValueError, match="`signature` 'nope' is not in"):
        HubLayer(folder, signature="nope")


@pytest.mark.parametrize("size", [None, 12])
def test_image_size_is_read_from_the_module(tmp_path, size):
    layer = HubLayer(save_reusable(tmp_path / "module", size))
    assert layer.image_size == (size and (size, size))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_float32_under_a_mixed_policy(folder, policy):
    keras.config.set_dtype_policy(policy)
    try:
        layer = HubLayer(folder, trainable=True)
        model = classifier(layer)
        assert layer(pictures()).dtype == tf.float32
        model.compile("adam", "binary_crossentropy")
        history = model.fit(pictures(), targets(), epochs=1, verbose=0)
        assert np.isfinite(history.history["loss"]).all()
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("trainable", [False, True])
def test_a_clone_has_the_same_settings(folder, trainable):
    model = classifier(HubLayer(folder, trainable=trainable, name="spine"))
    layer = keras.models.clone_model(model).get_layer("spine")
    assert layer.trainable is trainable
    assert layer.handle == str(folder)


def test_save_and_load_in_a_new_process_gives_equal_predictions(folder, tmp_path):
    model = classifier(HubLayer(folder, trainable=True))
    model.compile("adam", "binary_crossentropy")
    model.fit(pictures(), targets(), epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "expected.npz", x=pictures(), p=model.predict(pictures(), verbose=0))
    code = (
        "import keras, numpy as np, kerasmtl as kt; kt.HubLayer\n"
        "data = np.load('expected.npz')\n"
        "model = keras.models.load_model('model.keras', safe_mode=False)\n"
        "np.testing.assert_array_equal(model.predict(data['x'], verbose=0), data['p'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_sequential_and_subclassed_models_take_the_layer(folder):
    layer = HubLayer(folder)
    sequential = keras.Sequential([keras.Input((12, 12, 3)), layer, keras.layers.Dense(1)])
    assert sequential.predict(pictures(), verbose=0).shape == (8, 1)

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.spine, self.top = HubLayer(folder, trainable=True), keras.layers.Dense(1)

        def call(self, x, training=None):
            return self.top(self.spine(x, training=training))

    model = Subclassed()
    before = values(model.spine)
    model.compile("adam", "mse")
    model.fit(pictures(), targets(), epochs=1, verbose=0)
    assert "block_1_bn_moving_mean" in changed(before, model.spine)
