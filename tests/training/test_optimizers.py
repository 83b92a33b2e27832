"""Scaled updates: against the plain optimizer, over several compiles, saved, on two replicas."""

import json
import os
import subprocess
import sys

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

MAKERS = {
    "adam": lambda: optimizers.Adam(0.01, amsgrad=True),
    "adamw": lambda: optimizers.AdamW(0.01, weight_decay=0.1),
    "momentum": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "rmsprop": lambda: optimizers.RMSprop(0.01, momentum=0.5),
    "nadam": lambda: optimizers.Nadam(0.01),
    "lion": lambda: optimizers.Lion(0.01, weight_decay=0.1),
    "adagrad": lambda: optimizers.Adagrad(0.1),
    "average": lambda: optimizers.Adam(
        0.01, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=2
    ),
    "clipnorm": lambda: optimizers.Adam(0.01, clipnorm=0.01),
    "global clipnorm": lambda: optimizers.SGD(0.1, global_clipnorm=0.01),
    "accumulation": lambda: optimizers.AdamW(0.01, gradient_accumulation_steps=2),
    "schedule": lambda: optimizers.Adam(WarmupCosine(0.1, 2, 5)),
    "loss scale": lambda: optimizers.Adam(0.01, loss_scale_factor=1024.0),
}


def variables():
    """Two alike, so that what the factor does to one can be told from the other."""
    start = np.linspace(-1, 1, 6, dtype="float32").reshape(2, 3)
    return [keras.Variable(start, name=name) for name in ("whole", "scaled")]


def gradients(steps=5):
    rng = np.random.default_rng(1)
    for _ in range(steps):
        gradient = keras.ops.convert_to_tensor(rng.normal(size=(2, 3)).astype("float32"))
        yield [gradient, gradient]


def descend(optimizer, steps=5, of=None):
    of = of or variables()
    for grads in gradients(steps):
        optimizer.apply(grads[: len(of)], of)
    return [v.numpy() for v in of]


@pytest.mark.parametrize("name", MAKERS)
def test_factors_of_1_are_the_plain_optimizer_bit_for_bit(name):
    plain, scaled = MAKERS[name](), LayerwiseDecay(MAKERS[name]())
    for expected, received in zip(descend(plain), descend(scaled), strict=True):
        np.testing.assert_array_equal(received, expected)
    assert int(scaled.iterations) == int(plain.iterations)
    assert int(scaled.steps) == 5


@pytest.mark.parametrize("name", [name for name in MAKERS if "clip" not in name])
def test_a_factor_is_a_learning_rate_of_its_own(name):
    """Also for Adam, whose step a scaled gradient would not change, and in weight decay."""
    slow = MAKERS[name]()
    if name == "schedule":
        slow = optimizers.Adam(WarmupCosine(0.01, 2, 5))
    else:
        slow.learning_rate = float(slow.learning_rate) * 0.1
    whole, scaled = descend(LayerwiseDecay(MAKERS[name](), {"scaled": 0.1}))
    np.testing.assert_array_equal(whole, descend(MAKERS[name]())[0])
    np.testing.assert_allclose(scaled, descend(slow)[1], rtol=0, atol=1e-6)
    assert np.abs(scaled - whole).max() > 1e-3


def network(policy="float32"):
    keras.utils.set_random_seed(0)
    with_policy = {"dtype": policy}
    row = keras.Input((4,))
    hidden = keras.layers.Dense(5, "relu", name="deep", **with_policy)(row)
    return keras.Model(row, keras.layers.Dense(1, name="top", **with_policy)(hidden))


def fit(model, optimizer=None, epochs=1):
    if optimizer is not None:
        model.compile(optimizer, "mse")
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return [w.copy() for w in model.get_weights()]


def test_one_instance_through_several_compiles():
    """A head stage, then all: slots kept, rate and factors anew, frozen weights as they were."""
    model = network()
    optimizer = LayerwiseDecay(optimizers.Adam(0.1))
    optimizer.build(model.trainable_variables)
    count = len(optimizer.variables)
    assert not {id(v) for v in optimizer.variables} & {id(v) for v in model.variables}
    start = model.get_weights()

    model.get_layer("deep").trainable = False
    head = fit(model, optimizer)
    slots = {v.path: v.numpy() for v in optimizer.inner_optimizer.variables}
    assert all((a == b).all() for a, b in zip(head[:2], start[:2], strict=True))
    assert all((a != b).any() for a, b in zip(head[2:], start[2:], strict=True))
    assert all(not v.any() for path, v in slots.items() if "deep" in path)
    assert all(v.any() for path, v in slots.items() if "top" in path)

    model.get_layer("deep").trainable = True
    optimizer.set_rate(WarmupCosine(0.05, 3, 6, begin=int(optimizer.steps)))
    optimizer.factors = {"deep/kernel": 1e-3, "deep/bias": 1e-3}
    model.compile(optimizer, "mse")
    after = {v.path: v.numpy() for v in optimizer.inner_optimizer.variables}
    assert all((after[path] == value).all() for path, value in slots.items())
    whole = fit(model, epochs=2)
    moved = [float(np.abs(a - b).max()) for a, b in zip(whole, head, strict=True)]
    assert 0 < max(moved[:2]) < 2e-3 < 0.02 < min(moved[2:])

    optimizer.set_rate(1e-5)  # back from a schedule to a number
    optimizer.factors = {}
    last = fit(model, optimizer)
    moved = [float(np.abs(a - b).max()) for a, b in zip(last, whole, strict=True)]
    assert 0 < min(moved) and max(moved) < 1e-3
    assert len(optimizer.variables) == count and int(optimizer.steps) == 12
    assert float(optimizer.learning_rate) == np.float32(1e-5)


def test_a_stage_is_what_the_plain_optimizer_makes_of_it():
    weights = []
    for wrap in (lambda inner: inner, LayerwiseDecay):
        model = network()
        optimizer = wrap(optimizers.AdamW(0.1))
        optimizer.build(model.trainable_variables)
        model.get_layer("deep").trainable = False
        fit(model, optimizer)
        model.get_layer("deep").trainable = True
        optimizer.learning_rate = 0.01
        weights.append(fit(model, optimizer))
    for expected, received in zip(*weights, strict=True):
        np.testing.assert_array_equal(received, expected)


def test_averages_replace_only_what_is_trained_now():
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


@pytest.mark.parametrize(
    "wrap", [lambda o: o, optimizers.LossScaleOptimizer], ids=["alone", "loss scale"]
)
def test_a_saved_model_goes_on_as_if_it_had_not_been(tmp_path, wrap):
    model = network()
    inner = optimizers.AdamW(WarmupCosine(0.1, 2, 9), weight_decay=0.2, loss_scale_factor=None)
    fit(model, wrap(LayerwiseDecay(inner, {"deep/kernel": 0.25})))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    optimizer = getattr(loaded.optimizer, "inner_optimizer", None)
    optimizer = loaded.optimizer if isinstance(loaded.optimizer, LayerwiseDecay) else optimizer
    assert optimizer.factors == {"deep/kernel": 0.25} and optimizer.weight_decay == 0.2
    for expected, received in zip(fit(model), fit(loaded), strict=True):
        np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize("name", ["adamw", "momentum", "average", "schedule"])
def test_a_trained_model_is_exported_and_saved(tmp_path, name):
    """Over several rates as well, in which Keras' own setter would lose a variable."""
    model = network()
    optimizer = LayerwiseDecay(MAKERS[name](), {"deep/kernel": 0.5})
    fit(model, optimizer)
    for rate in (WarmupCosine(0.01, 2, 6), 0.02):
        optimizer.set_rate(rate)
        fit(model, optimizer)
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(exported.serve(X), model.predict(X, verbose=0), rtol=0, atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
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
    around = optimizers.LossScaleOptimizer(scaled)
    of = variables()
    bad = keras.ops.full((2, 3), float("inf"))
    around.apply([bad, bad], of)
    for v, start in zip(of, variables(), strict=True):
        np.testing.assert_array_equal(v.numpy(), start.numpy())
    assert int(scaled.steps) == int(scaled.iterations) == 0


def test_weights_excluded_from_decay_are_not_decayed():
    """The one use of a private method of Keras 3.15: `_use_weight_decay`."""
    received = {}
    for kind, wrap in (("plain", lambda inner: inner), ("scaled", LayerwiseDecay)):
        optimizer = wrap(optimizers.AdamW(0.01, weight_decay=0.5))
        optimizer.exclude_from_weight_decay(var_names=["whole"])
        received[kind] = descend(optimizer)
    np.testing.assert_array_equal(received["scaled"], received["plain"])
    before = optimizers.AdamW(0.01, weight_decay=0.5)
    before.exclude_from_weight_decay(var_names=["whole"])
    np.testing.assert_array_equal(descend(LayerwiseDecay(before)), received["plain"])
    undecayed = descend(optimizers.Adam(0.01))[0]
    np.testing.assert_allclose(received["scaled"][0], undecayed, rtol=0, atol=1e-6)


def test_the_callbacks_of_keras_set_its_rate():
    model = network()
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    model.compile(LayerwiseDecay(optimizers.Adam(0.25)), "mse")
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[halve])
    assert float(model.optimizer.learning_rate) == 0.0625


class Rate(keras.callbacks.Callback):
    """Sets a rate after an epoch, the first of which is 0."""

    def __init__(self, epoch, rate):
        super().__init__()
        self.epoch, self.rate = epoch, rate

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            self.model.optimizer.learning_rate = self.rate


@pytest.mark.parametrize("wrap", [lambda o: o, optimizers.LossScaleOptimizer])
@pytest.mark.parametrize("first, then", [("schedule", 1e-3), ("number", WarmupCosine(0.1))])
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_rate_that_the_traced_step_does_not_see_is_refused(wrap, first, then, epoch):
    """As Keras refuses a number over a schedule; without it nothing would happen, silently."""
    model = network()
    rate = WarmupCosine(0.1, 2, 9) if first == "schedule" else 0.1
    model.compile(wrap(LayerwiseDecay(optimizers.Adam(rate))), "mse")
    with pytest.raises(TypeError, match=r"`learning_rate` .* set_rate.* Received: "):
        model.fit(X, Y, epochs=3, verbose=0, callbacks=[Rate(epoch, then)])


def test_a_number_that_is_set_acts_from_the_next_step_on():
    weights = []
    for callbacks in ([Rate(1, 1e-12)], []):
        model = network()
        model.compile(LayerwiseDecay(optimizers.SGD(0.1)), "mse")
        model.fit(X, Y, epochs=2 + len(callbacks), verbose=0, shuffle=False, callbacks=callbacks)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-9)


def test_depth_factors_of_layers_and_of_a_module(tmp_path):
    image = keras.Input((12, 12, 3))
    deep = keras.layers.Conv2D(2, 3, name="first")(image)
    deep = keras.layers.BatchNormalization(name="norm")(deep)
    deep = keras.layers.Conv2D(2, 3, name="second")(deep)
    model = kt.build_model(keras.Model(image, deep), ["a"])
    factors = layerwise_factors(model, 0.5)
    backbone = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    expected = {"first": 0.25, "norm": 0.25, "second": 0.5}
    for layer, factor in expected.items():
        paths = [v.path for v in backbone.get_layer(layer).weights]
        assert paths and all(factors[path] == factor for path in paths)
    assert len(factors) == len(backbone.weights)

    model = kt.build_model(str(save_reusable(tmp_path / "module")), ["a"], 12)
    factors = layerwise_factors(model, 0.5)
    depth = len(kt.backbones.layer_groups(model))
    assert set(factors.values()) == {0.5**n for n in range(1, depth + 1)}
    known = {v.path for v in model.weights}
    assert set(factors) < known and layerwise_factors(model, 1.0).keys() == factors.keys()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: LayerwiseDecay("adam"), "`inner_optimizer` has no step"),
        (
            lambda: LayerwiseDecay(optimizers.LossScaleOptimizer(optimizers.SGD())),
            "`inner_optimizer` has no step",
        ),
        (lambda: LayerwiseDecay(optimizers.SGD(), {"a": 0.0}), r"`factors\['a'\]` is not positive"),
        (
            lambda: LayerwiseDecay(optimizers.SGD(), {"a": float("inf")}),
            r"`factors\['a'\]` is not positive",
        ),
        (lambda: layerwise_factors(network(), 0.0), "`decay` is not positive"),
        (lambda: layerwise_factors(network(), 1.5), "`decay` is too large"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_optimizer_with_a_past_and_a_shared_path_are_refused():
    used = optimizers.SGD()
    used.build(variables())
    with pytest.raises(ValueError, match="`inner_optimizer` was built already"):
        LayerwiseDecay(used)
    twins = [keras.Variable(0.0, name="same"), keras.Variable(0.0, name="same")]
    with pytest.raises(ValueError, match="'same', which is the path of several"):
        LayerwiseDecay(optimizers.SGD(), {"same": 0.5}).build(twins)
    optimizer = LayerwiseDecay(optimizers.SGD(), {"other": 0.5})
    optimizer.build(twins)
    with pytest.raises(ValueError, match="'same', which is the path of several"):
        optimizer.factors = {"same": 0.5}
    assert optimizer.factors == {"other": 0.5}


PROGRAM = """
import json
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
from kerasmtl.training.optimizers import LayerwiseDecay
from kerasmtl.training.optimizers import WarmupCosine

rng = np.random.default_rng(0)
x, y = rng.random((32, 4), dtype="float32"), rng.random((32, 1), dtype="float32")

def train(strategy, inner, around):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        row = keras.Input((4,))
        deep = keras.layers.Dense(5, "tanh", name="deep")
        model = keras.Model(row, keras.layers.Dense(1, name="top")(deep(row)))
        optimizer = LayerwiseDecay(inner())
        optimizer.build(model.trainable_variables)
        whole = keras.optimizers.LossScaleOptimizer(optimizer) if around else optimizer
    for rate, factors, trainable in (
        (0.1, {}, False),
        (WarmupCosine(0.05, 2, 6, begin=4), {"deep/kernel": 0.1}, True),
    ):
        deep.trainable = trainable
        optimizer.set_rate(rate)
        optimizer.factors = factors
        with strategy.scope():
            model.compile(whole, "mse")
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
        model.fit(data, epochs=1, shuffle=False, verbose=0)
    return model.get_weights(), int(optimizer.steps.numpy())

makers = {
    "loss scale": lambda: keras.optimizers.AdamW(0.1, weight_decay=0.1),
    "average": lambda: keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True),
}
results = {}
for name, inner in makers.items():
    one, steps = train(tf.distribute.get_strategy(), inner, name == "loss scale")
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    two, too = train(mirrored, inner, name == "loss scale")
    far = max(float(np.abs(a - b).max()) for a, b in zip(one, two))
    results[name] = {"apart": far, "steps": [steps, too]}
print(json.dumps(results))
"""


def test_two_replicas_make_the_updates_of_one():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for name, found in json.loads(done.stdout.splitlines()[-1]).items():
        assert found["apart"] <= 1e-5, name
        assert found["steps"] == [8, 8], name
