"""`LayerwiseDecay` against the plain optimizer, saved, and its factors by depth."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import optimizers
from modules import save_reusable

import kerasmtl as kt
from kerasmtl.training.optimizers import LayerwiseDecay, WarmupCosine, layerwise_factors

RNG = np.random.default_rng(0)
X, Y = RNG.random((24, 4), dtype="float32"), RNG.random((24, 1), dtype="float32")
Cosine = optimizers.schedules.CosineDecay

MAKERS = {
    "adam": lambda: optimizers.Adam(0.01, amsgrad=True),
    "adamw": lambda: optimizers.AdamW(0.01, weight_decay=0.1),
    "momentum": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "rmsprop": lambda: optimizers.RMSprop(0.01, momentum=0.5),
    "lion": lambda: optimizers.Lion(0.01, weight_decay=0.1),
    "average": lambda: optimizers.Adam(
        0.01, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=2
    ),
    "clipnorm": lambda: optimizers.Adam(0.01, clipnorm=0.01),
    "global clipnorm": lambda: optimizers.SGD(0.1, global_clipnorm=0.01),
    "accumulation": lambda: optimizers.AdamW(0.01, gradient_accumulation_steps=2),
    "schedule": lambda: optimizers.Adam(Cosine(0.05, 5, warmup_target=0.1, warmup_steps=2)),
    "loss scale": lambda: optimizers.Adam(0.01, loss_scale_factor=1024.0),
}


def variables():
    """Two alike, so that what the factor does to one can be told from the other."""
    start = np.linspace(-1, 1, 6, dtype="float32").reshape(2, 3)
    return [keras.Variable(start, name=name) for name in ("whole", "scaled")]


def descend(optimizer, steps=5):
    of, rng = variables(), np.random.default_rng(1)
    for _ in range(steps):
        gradient = keras.ops.convert_to_tensor(rng.normal(size=(2, 3)).astype("float32"))
        optimizer.apply([gradient, gradient], of)
    return [v.numpy() for v in of]


@pytest.mark.parametrize("name", MAKERS)
def test_factors_of_1_are_the_plain_optimizer_bit_for_bit(name):
    plain, scaled = MAKERS[name](), LayerwiseDecay(MAKERS[name]())
    for expected, received in zip(descend(plain), descend(scaled), strict=True):
        np.testing.assert_array_equal(received, expected)
    assert int(scaled.iterations) == int(plain.iterations) and int(scaled.steps) == 5


@pytest.mark.parametrize("name", [name for name in MAKERS if "clip" not in name])
def test_a_factor_is_a_learning_rate_of_its_own(name):
    """Also for Adam, whose step a scaled gradient would not change, and in weight decay."""
    slow = MAKERS[name]()
    if name == "schedule":
        slow = optimizers.Adam(Cosine(0.005, 5, warmup_target=0.01, warmup_steps=2))
    else:
        slow.learning_rate = float(slow.learning_rate) * 0.1
    whole, scaled = descend(LayerwiseDecay(MAKERS[name](), {"scaled": 0.1}))
    np.testing.assert_array_equal(whole, descend(MAKERS[name]())[0])
    np.testing.assert_allclose(scaled, descend(slow)[1], rtol=0, atol=1e-6)
    assert np.abs(scaled - whole).max() > 1e-3


def network(policy="float32"):
    keras.utils.set_random_seed(0)
    row = keras.Input((4,))
    hidden = keras.layers.Dense(5, "relu", name="deep", dtype=policy)(row)
    return keras.Model(row, keras.layers.Dense(1, name="top", dtype=policy)(hidden))


def fit(model, optimizer=None, epochs=1):
    if optimizer is not None:
        model.compile(optimizer, "mse", run_eagerly=True)
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return [w.copy() for w in model.get_weights()]


def test_averages_replace_only_what_is_trained():
    model = network()
    optimizer = LayerwiseDecay(optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5))
    optimizer.build(model.trainable_variables)
    before = fit(model, optimizer)
    model.get_layer("deep").trainable = False
    model.get_layer("deep").set_weights([w + 1 for w in before[:2]])  # no average of it is this
    after = fit(model, optimizer)
    assert all((a == b + 1).all() for a, b in zip(after[:2], before[:2], strict=True))
    averages = {v.path: v.numpy() for v in optimizer.inner_optimizer.variables}
    (top,) = [v for path, v in averages.items() if "top_kernel_average" in path]
    np.testing.assert_array_equal(after[2], top)


@pytest.mark.parametrize("scaled", [False, True], ids=["alone", "loss scale"])
def test_a_trained_model_is_exported_and_a_saved_one_goes_on(tmp_path, scaled):
    model, rate = network(), Cosine(0.05, 9, warmup_target=0.1, warmup_steps=2)
    optimizer = LayerwiseDecay(optimizers.AdamW(rate, weight_decay=0.2), {"deep/kernel": 0.25})
    fit(model, optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer)
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(exported.serve(X), model.predict(X, verbose=0), rtol=0, atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    found = loaded.optimizer.inner_optimizer if scaled else loaded.optimizer
    assert found.factors == {"deep/kernel": 0.25} and found.weight_decay == 0.2
    for each in (model, loaded):
        each.run_eagerly = True
    for expected, received in zip(fit(model), fit(loaded), strict=True):
        np.testing.assert_array_equal(received, expected)


def test_a_loss_scale_around_it_is_the_plain_one_and_does_not_scale_twice():
    plain = fit(network("mixed_float16"), optimizers.LossScaleOptimizer(optimizers.Adam(0.01)), 2)
    around = optimizers.LossScaleOptimizer(
        LayerwiseDecay(optimizers.Adam(0.01, loss_scale_factor=512.0))
    )
    for expected, received in zip(plain, fit(network("mixed_float16"), around, 2), strict=True):
        np.testing.assert_array_equal(received, expected)
    around.learning_rate = 0.25
    assert float(around.inner_optimizer.learning_rate) == 0.25


def test_steps_that_a_loss_scale_skips_change_nothing():
    scaled = LayerwiseDecay(optimizers.Adam(0.01), {"scaled": 0.5})
    of, bad = variables(), keras.ops.full((2, 3), float("inf"))
    optimizers.LossScaleOptimizer(scaled).apply([bad, bad], of)
    for v, start in zip(of, variables(), strict=True):
        np.testing.assert_array_equal(v.numpy(), start.numpy())
    assert int(scaled.steps) == int(scaled.iterations) == 0


def test_weights_excluded_from_decay_are_not_decayed():
    """The one use of a private method of Keras: `_use_weight_decay`."""
    received = {}
    for kind, wrap in (("plain", lambda inner: inner), ("scaled", LayerwiseDecay)):
        optimizer = wrap(optimizers.AdamW(0.01, weight_decay=0.5))
        optimizer.exclude_from_weight_decay(var_names=["whole"])
        received[kind] = descend(optimizer)
    np.testing.assert_array_equal(received["scaled"], received["plain"])
    before = optimizers.AdamW(0.01, weight_decay=0.5)
    before.exclude_from_weight_decay(var_names=["whole"])
    np.testing.assert_array_equal(descend(LayerwiseDecay(before)), received["plain"])


def test_callbacks_set_its_rate_unless_it_has_a_schedule():
    model = network()
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    model.compile(LayerwiseDecay(optimizers.Adam(0.25)), "mse", run_eagerly=True)
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[halve])
    assert float(model.optimizer.learning_rate) == 0.0625
    with pytest.raises(TypeError, match="`learning_rate`"):
        model.optimizer.learning_rate = Cosine(0.1, 3)
    with pytest.raises(TypeError, match="`learning_rate`"):
        LayerwiseDecay(optimizers.Adam(Cosine(0.1, 3))).learning_rate = 0.1


def test_factors_by_depth_of_layers_and_of_a_module(tmp_path):
    image = keras.Input((12, 12, 3))
    deep = keras.layers.Conv2D(2, 3, name="first")(image)
    deep = keras.layers.BatchNormalization(name="norm")(deep)
    deep = keras.layers.Conv2D(2, 3, name="second")(deep)
    model = kt.build_model(keras.Model(image, deep), ["a"])
    factors = layerwise_factors(model, 0.5)
    backbone = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    for layer, factor in {"first": 0.25, "norm": 0.25, "second": 0.5}.items():
        paths = [v.path for v in backbone.get_layer(layer).weights]
        assert paths and all(factors[path] == factor for path in paths)
    assert len(factors) == len(backbone.weights)

    model = kt.build_model(str(save_reusable(tmp_path / "module")), ["a"], 12)
    factors = layerwise_factors(model, 0.5)
    depth = len(kt.backbones.layer_groups(model))
    assert set(factors.values()) == {0.5**n for n in range(1, depth + 1)}
    assert set(factors) < {v.path for v in model.weights}


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: LayerwiseDecay("adam"), "inner_optimizer"),
        (
            lambda: LayerwiseDecay(optimizers.LossScaleOptimizer(optimizers.SGD())),
            "inner_optimizer",
        ),
        (lambda: LayerwiseDecay(optimizers.SGD(), {"a": 0.0}), "factors"),
        (lambda: LayerwiseDecay(optimizers.SGD(), {"a": float("inf")}), "factors"),
        (lambda: layerwise_factors(network(), 0.0), "decay"),
        (lambda: layerwise_factors(network(), 1.5), "decay"),
    ],
)
def test_wrong_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=f"`{name}"):
        call()


def test_an_optimizer_with_a_past_and_a_shared_path_are_refused():
    used = optimizers.SGD()
    used.build(variables())
    with pytest.raises(ValueError, match="`inner_optimizer`"):
        LayerwiseDecay(used)
    twins = [keras.Variable(0.0, name="same"), keras.Variable(0.0, name="same")]
    with pytest.raises(ValueError, match="`factors`.*'same'"):
        LayerwiseDecay(optimizers.SGD(), {"same": 0.5}).build(twins)


@pytest.mark.parametrize(
    "rate, warmup, decay, final, begin",
    [(0.1, 5, None, 0.0, 3), (0.1, 0, 10, 0.0, 0), (2.0, 4, 9, 0.25, 2**24 + 1)],
)
def test_the_schedule_of_files_of_0_1_is_its_formula(rate, warmup, decay, final, begin):
    config = {"learning_rate": rate, "warmup_steps": warmup, "decay_steps": decay}
    config |= {"final": final, "begin": begin}
    schedule = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(WarmupCosine(**config))
    )
    for step in range(30):
        expected = rate * (step + 1) / max(warmup, 1)
        if step >= warmup:
            t = min((step - warmup) / decay, 1.0) if decay else 0.0
            expected = rate * (final + (1 - final) * (1 + math.cos(math.pi * t)) / 2)
        found = float(schedule(keras.Variable(begin + step, dtype="int64")))
        assert found == pytest.approx(expected, abs=1e-6 * rate)
