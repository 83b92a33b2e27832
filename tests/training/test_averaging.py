"""The average of the weights: what it is, who sees it, and that training does not notice."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import kerasmtl as kt
from kerasmtl.training.callbacks import WeightAverage
from kerasmtl.training.optimizers import LayerwiseDecay

RNG = np.random.default_rng(0)
X, Y = RNG.random((24, 4), dtype="float32"), RNG.random((24, 1), dtype="float32")


def network(optimizer=None, **compiled):
    keras.utils.set_random_seed(0)
    row = keras.Input((4,))
    hidden = keras.layers.Dense(5, name="deep")(row)
    hidden = keras.layers.BatchNormalization(name="norm")(hidden)
    model = keras.Model(row, keras.layers.Dense(1, name="top")(hidden))
    model.compile(optimizer or keras.optimizers.Adam(0.05), "mse", **compiled)
    return model


def fit(model, *callbacks, epochs=2, **arguments):
    return model.fit(
        X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks),
        **arguments,
    )  # fmt: skip


def values(model):
    return [weight.numpy() for weight in model.weights]


class Record(keras.callbacks.Callback):
    """The weights after each batch and at the end of each epoch, as this callback sees them."""

    def on_train_begin(self, logs=None):
        self.batches, self.epochs = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(values(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(values(self.model))


def by_hand(start, batches, decay):
    average = [value.astype("float64") for value in start]
    for t, weights in enumerate(batches):
        d = min(decay, (1 + t) / (10 + t))
        average = [d * a + (1 - d) * w for a, w in zip(average, weights, strict=True)]
    return average


def same(first, second):
    return all((a == b).all() for a, b in zip(first, second, strict=True))


def close(first, second, tolerance=1e-6):
    return all(
        np.allclose(a, b, rtol=0, atol=tolerance) for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.9])
def test_it_is_the_average_of_weights_and_statistics(decay):
    model, record = network(), Record()
    start = values(model)
    fit(model, WeightAverage(decay), record)
    assert close(values(model), by_hand(start, record.batches, decay))
    assert close(record.epochs[0], by_hand(start, record.batches[:3], decay))


def test_training_does_not_notice():
    alone, averaged = Record(), Record()
    fit(network(), alone)
    fit(network(), WeightAverage(0.9), averaged, validation_data=(X, Y))
    for expected, received in zip(alone.batches, averaged.batches, strict=True):
        assert same(expected, received)


def test_validation_and_checkpoints_see_the_average(tmp_path):
    model = network(metrics=["mae"])
    best = keras.callbacks.EarlyStopping("val_loss", patience=9, restore_best_weights=True)
    record = Record()
    checkpoint = kt.callbacks.Checkpoint(tmp_path / "m.keras")
    history = fit(
        model, WeightAverage(0.9), record, checkpoint, best, epochs=4, validation_data=(X, Y)
    ).history
    saved = keras.models.load_model(tmp_path / "m.keras")
    assert same(values(saved), record.epochs[-1])
    received = saved.evaluate(X, Y, batch_size=8, verbose=0, return_dict=True)
    assert received["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-6)
    assert received["mae"] == pytest.approx(history["val_mae"][-1], rel=1e-6)
    assert same(values(model), record.epochs[int(np.argmin(history["val_loss"]))])


def test_a_second_fit_goes_on_from_the_raw_weights():
    model, average, record = network(), WeightAverage(0.9), Record()
    start = values(model)
    fit(model, average, record, epochs=1)
    first = record.batches
    assert average.swapped and not same(values(model), first[-1])
    fit(model, average, record, epochs=1)
    whole = Record()
    fit(network(), whole, epochs=2)
    for expected, received in zip(whole.batches, first + record.batches, strict=True):
        assert same(expected, received)
    assert close(values(model), by_hand(start, whole.batches, 0.9))


def test_weights_that_are_set_between_two_fits_are_taken():
    model, average, record = network(), WeightAverage(0.9), Record()
    fit(model, average)
    other = [value + 1 for value in values(model)]
    model.set_weights(other)
    fit(model, average, record, epochs=1)
    assert close(values(model), by_hand(other, record.batches, 0.9))


def test_what_is_frozen_stays_bit_for_bit_and_may_join_later():
    optimizer = LayerwiseDecay(keras.optimizers.Adam(0.05))
    model, average, record = network(optimizer), WeightAverage(0.9), Record()
    optimizer.build(model.trainable_variables)
    deep, norm = model.get_layer("deep"), model.get_layer("norm")
    deep.trainable = norm.trainable = False
    model.compile(optimizer, "mse")
    start = values(model)
    fit(model, average, record, epochs=1)
    assert same(values(model)[:6], start[:6]) and not same(values(model)[6:], start[6:])
    head = by_hand(start, record.batches, 0.9)
    deep.trainable = True
    model.compile(optimizer, "mse")
    fit(model, average, record, epochs=1)
    expected = head
    for t, weights in enumerate(record.batches, start=3):
        d = min(0.9, (1 + t) / (10 + t))
        expected = [d * a + (1 - d) * w for a, w in zip(expected, weights, strict=True)]
    assert close(values(model), expected)
    assert same(values(model)[2:6], start[2:6]) and not same(values(model)[:2], start[:2])


def test_a_state_goes_on_as_if_nothing_had_happened():
    whole = network()
    fit(whole, WeightAverage(0.9), epochs=2)

    class Save(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            with first.raw():
                self.kept = values(self.model), [v.numpy() for v in self.model.optimizer.variables]

    first, save, model = WeightAverage(0.9), Save(), network()
    fit(model, first, save, epochs=1)
    state = first.state()

    again, second = network(), WeightAverage(0.9)
    again.optimizer.build(again.trainable_variables)
    for variable, value in zip(again.weights, save.kept[0], strict=True):
        variable.assign(value)
    for variable, value in zip(again.optimizer.variables, save.kept[1], strict=True):
        variable.assign(value)
    second.set_model(again)
    second.restore(state)
    fit(again, second, epochs=1)
    assert same(values(again), values(whole))


@pytest.mark.parametrize("steps", [1, 3])
def test_updates_count_not_batches(steps):
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)
    model = network(optimizer, steps_per_execution=steps)
    average, record = WeightAverage(0.5), Record()
    start = values(model)
    fit(model, average, record, epochs=2)
    assert int(average.state()["updates"]) == 2
    after = record.batches[2::3] if steps == 1 else record.batches
    at = [i for i, v in enumerate(model.weights) if v.trainable]  # statistics move at each batch
    expected = by_hand([start[i] for i in at], [[w[i] for i in at] for w in after], 0.5)
    assert close([values(model)[i] for i in at], expected)


def test_evaluation_apart_from_fit_leaves_the_average_in_the_model():
    model, average = network(), WeightAverage(0.9)
    fit(model, average)
    before = values(model)
    model.evaluate(X, Y, verbose=0, callbacks=[average])
    assert same(values(model), before)


def test_errors_are_named():
    for decay in (1.0, -0.1, float("nan"), True):
        with pytest.raises(ValueError, match="`decay` is out of range"):
            WeightAverage(decay)
    with pytest.raises(ValueError, match="`optimizer` averages the weights too"):
        inner = keras.optimizers.Adam(use_ema=True)
        fit(network(LayerwiseDecay(inner)), WeightAverage())
    average = WeightAverage()
    with pytest.raises(ValueError, match="`state` does not fit"):
        average.restore({"updates": 1, "average/0": np.zeros((4, 5))})
    average.set_model(network())
    with pytest.raises(ValueError, match="`state` does not fit"):
        average.restore({"updates": 1, "average/0": np.zeros((3, 5))})


PROGRAM = """
import json
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
from kerasmtl.training.callbacks import WeightAverage
from kerasmtl.training.lr_finder import find_learning_rate

rng = np.random.default_rng(0)
x, y = rng.random((32, 4), dtype="float32"), rng.random((32, 1), dtype="float32")
data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)

def train(strategy):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        row = keras.Input((4,))
        hidden = keras.layers.Dense(5, "tanh")(row)
        model = keras.Model(row, keras.layers.Dense(1)(hidden))
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    start = model.get_weights()
    curve = find_learning_rate(model, data, steps=4, high=0.1)
    same = all((a == b).all() for a, b in zip(start, model.get_weights()))
    average = WeightAverage(0.5)
    for _ in range(2):
        history = model.fit(
            data, epochs=1, verbose=0, shuffle=False, validation_data=data, callbacks=[average]
        )
    held = model.get_weights()
    average.swap_out()
    found = [*held, *model.get_weights(), history.history["val_loss"], curve.losses]
    return same, [np.asarray(value) for value in found]

(same, one), (too, two) = (
    train(tf.distribute.get_strategy()),
    train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])),
)
apart = max(float(np.abs(a - b).max()) for a, b in zip(one, two))
moved = float(np.abs(one[0] - one[4]).max())
print(json.dumps({"apart": apart, "same": [same, too], "moved": moved}))
"""


@pytest.mark.slow
def test_on_two_replicas_the_average_and_the_rate_curve_are_those_of_one():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["apart"] <= 1e-6 < found["moved"]
    assert found["same"] == [True, True]
