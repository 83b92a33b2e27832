"""What XLA may compile, and what is trained without it."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from modules import save_keras_export, save_nested_module, save_reusable, save_text_module, shared

import kerasmtl as kt

TEXTS = np.array(["stop go", "car", "turn left right", "go"])


@pytest.fixture
def folder(tmp_path):
    return save_reusable(tmp_path / "module")


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype="float32")


def case(kind, place):
    """A frozen layer, what to feed it, and the symbolic inputs."""
    place.mkdir(exist_ok=True)
    if kind == "tiny":
        return kt.HubLayer("tiny"), numbers(4, 64, 64, 3), keras.Input((64, 64, 3))
    if kind == "text":
        layer = kt.HubLayer(save_text_module(place / "text"))
        return layer, tf.constant(TEXTS), keras.Input((), dtype="string")
    layer = kt.HubLayer(save_nested_module(place / "nested"), output_key="pooled")
    ids = np.random.default_rng(0).integers(0, 7, (4, 5)).astype("int32")
    inputs = {
        "ids": keras.Input((5,), dtype="int32", name="ids"),
        "weights": keras.Input((5,), name="weights"),
    }
    return layer, {"ids": ids, "weights": numbers(4, 5)}, inputs


def with_head(layer, inputs):
    keras.utils.set_random_seed(0)
    return keras.Model(inputs, keras.layers.Dense(1)(layer(inputs)))


def caught(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in found]


TARGETS = np.array([[0.0], [1.0], [1.0], [0.0]], "float32")


def test_a_module_that_xla_takes_is_compiled_and_trains_alike(tmp_path):
    folder = save_keras_export(tmp_path / "export")
    weights = []
    for jit in (False, True):
        layer = kt.HubLayer(folder, trainable=True)
        model = with_head(layer, keras.Input((4,)))
        model.compile(keras.optimizers.SGD(1e-2), "mse", jit_compile=jit)
        assert model.jit_compile is jit
        for _ in range(3):
            model.train_on_batch(numbers(4, 4), TARGETS)
        weights.append([*model.get_weights(), model.predict(numbers(4, 4), verbose=0)])
    for plain, compiled in zip(*weights, strict=True):
        np.testing.assert_allclose(compiled, plain, rtol=1e-5, atol=1e-6)


def test_a_real_module_is_compiled():
    layer = kt.HubLayer(shared("models", "kws_ref_model"))
    messages = caught(lambda: layer.supports_jit)
    assert layer.supports_jit and not [m for m in messages if "jit_compile" in m]


def test_tiny_is_not_compiled_for_its_gradient():
    layer = kt.HubLayer("tiny")
    (message,) = caught(lambda: (layer.supports_jit, layer.supports_jit))
    assert not layer.supports_jit
    assert message == (
        "jit_compile is off: 'tiny' cannot be compiled by XLA: its gradient would be compiled "
        "anew for every batch"
    )


def test_text_is_not_compiled(tmp_path):
    layer, _, _ = case("text", tmp_path)
    (message,) = caught(lambda: layer.supports_jit)
    assert "cannot be compiled by XLA: it takes or returns text" in message


@pytest.mark.parametrize("kind", ["tiny", "text"])
def test_a_model_that_asks_for_it_falls_back_and_trains(kind, tmp_path):
    layer, x, inputs = case(kind, tmp_path)
    layer.trainable = True
    model = with_head(layer, inputs)
    messages = caught(lambda: model.compile("adam", "mse", jit_compile=True))
    assert len([m for m in messages if "cannot be compiled by XLA" in m]) == 1
    assert model.jit_compile is False
    before = [v.numpy() for v in layer.trainable_variables]
    messages = caught(lambda: [model.train_on_batch(x, TARGETS) for _ in range(2)])
    assert not [m for m in messages if "jit" in m]
    after = [v.numpy() for v in layer.trainable_variables]
    assert any((a != b).any() for a, b in zip(before, after, strict=True))


def test_asked_once_it_says_so_once(tmp_path):
    layer, _, inputs = case("text", tmp_path)
    model = with_head(layer, inputs)
    found = caught(lambda: [model.compile("adam", "mse", jit_compile=True) for _ in range(3)])
    assert len([m for m in found if "cannot be compiled by XLA" in m]) == 1


@pytest.mark.parametrize("kind", ["tiny", "text", "nested"])
def test_eager_steps_are_those_of_the_graph(kind, tmp_path):
    weights = []
    for eagerly in (False, True):
        layer, x, inputs = case(kind, tmp_path / str(eagerly))
        layer.unfreeze()
        model = with_head(layer, inputs)
        model.compile(keras.optimizers.SGD(1e-4), "mse", run_eagerly=eagerly, jit_compile=False)
        losses = [model.train_on_batch(x, TARGETS) for _ in range(2)]
        assert losses[1] != losses[0]
        weights.append(model.get_weights())
    for graph, eager in zip(*weights, strict=True):
        np.testing.assert_allclose(eager, graph, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("kind", ["tiny", "text", "nested"])
def test_mixed_policies_train_the_module_in_float32(kind, policy, tmp_path):
    direct, x, _ = case(kind, tmp_path / "direct")
    expected = direct(x)
    keras.config.set_dtype_policy(policy)
    try:
        layer, x, inputs = case(kind, tmp_path / "mixed")
        layer.trainable = True
        np.testing.assert_array_equal(layer(x), expected)
        model = with_head(layer, inputs)
        before = [v.numpy() for v in layer.trainable_variables]
        model.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=False)
        loss = model.fit(x, TARGETS, epochs=6, verbose=0).history["loss"]
        assert np.isfinite(loss).all()
        assert model.layers[-1].compute_dtype == policy.removeprefix("mixed_")
        after = [v.numpy() for v in layer.trainable_variables]
        assert {a.dtype.name for a in after} == {"float32"}
        assert any((a != b).any() for a, b in zip(before, after, strict=True))
    finally:
        keras.config.set_dtype_policy("float32")
