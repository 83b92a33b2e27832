"""The loss against NumPy on deleted cells, and what a missing cell must not do."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

import kerasmtl as kt

NAN = float("nan")
MODES = ["eager", "graph", "xla"]
# What may stand, as a prediction, under a missing label.
HIDDEN = [0.0, 1.0, 0.3, 1e30, -1e30, NAN, np.inf, -np.inf]
both_kinds = pytest.mark.parametrize("logits", [False, True], ids=["probabilities", "logits"])
all_modes = pytest.mark.parametrize("mode", MODES)


def in_mode(function, mode):
    return function if mode == "eager" else tf.function(function, jit_compile=mode == "xla")


def loss_and_gradient(loss, y, p, mode="eager"):
    def both(y, p):
        with tf.GradientTape() as tape:
            tape.watch(p)
            value = loss(y, p)
        return value, tape.gradient(value, p)

    value, slope = in_mode(both, mode)(tf.constant(y), tf.constant(p))
    return value.numpy(), slope.numpy()


@all_modes
@both_kinds
@pytest.mark.parametrize("known", [0.05, 0.5, 1.0])
def test_loss_and_gradient_are_those_of_the_known_cells(known, logits, mode):
    y, p = reference.case(rows=64, tasks=7, known=known, logits=logits)
    value, slope = loss_and_gradient(
        kt.losses.MaskedBinaryCrossentropy(from_logits=logits), y, p, mode
    )
    np.testing.assert_allclose(value, reference.loss(y, p, logits), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(slope, reference.gradient(y, p, logits), rtol=1e-4, atol=1e-7)


@both_kinds
def test_six_hundred_tasks_with_few_labels_keep_the_accuracy(logits):
    y, p = reference.case(rows=256, tasks=600, known=0.02, logits=logits)
    value = kt.losses.MaskedBinaryCrossentropy(from_logits=logits)(y, p)
    np.testing.assert_allclose(value, reference.loss(y, p, logits), rtol=1e-6)


@both_kinds
@pytest.mark.parametrize("tasks", [1, 4])
def test_without_missing_labels_it_is_tasks_times_that_of_keras(tasks, logits):
    y, p = reference.case(tasks=tasks, known=1.0, logits=logits)
    stock = keras.losses.BinaryCrossentropy(from_logits=logits)(y, p)
    ours = kt.losses.MaskedBinaryCrossentropy(from_logits=logits)(y, p)
    np.testing.assert_allclose(ours, tasks * stock, rtol=1e-6)


def test_reduction_none_gives_a_loss_by_row_and_sum_their_sum():
    y, p = reference.case()
    rows = reference.row_losses(y, p)
    none = kt.losses.MaskedBinaryCrossentropy(reduction="none")(y, p)
    np.testing.assert_allclose(none, rows, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        kt.losses.MaskedBinaryCrossentropy(reduction="sum")(y, p), rows.sum(), rtol=1e-6
    )


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_a_row_counts_by_its_sample_weight(shape):
    y, p = reference.case()
    weight = np.random.default_rng(1).random(len(y)).astype("float32")
    ours = kt.losses.MaskedBinaryCrossentropy()(y, p, sample_weight=weight.reshape(shape))
    np.testing.assert_allclose(ours, (weight * reference.row_losses(y, p)).mean(), rtol=1e-6)


@pytest.mark.parametrize("rows", [4, 5, 1])
def test_weights_by_label_are_refused_even_if_the_batch_is_as_long_as_the_tasks(rows):
    y, p = reference.case(rows=rows, tasks=4)
    with pytest.raises(ValueError, match="not one weight a row"):
        kt.losses.MaskedBinaryCrossentropy()(y, p, sample_weight=np.ones_like(p))


@all_modes
@both_kinds
@pytest.mark.parametrize("code", [NAN, -1.0], ids=["nan", "-1"])
def test_nothing_under_a_missing_cell_changes_a_bit_of_loss_or_gradient(code, logits, mode):
    y, p = reference.case(rows=16, tasks=4, logits=logits)
    missing = np.isnan(y)
    y = np.where(missing, np.float32(code), y)
    loss = kt.losses.MaskedBinaryCrossentropy(from_logits=logits, missing=-1)
    results = []
    for hidden in HIDDEN:
        value, slope = loss_and_gradient(loss, y, np.where(missing, np.float32(hidden), p), mode)
        assert (slope[missing] == 0).all() and np.isfinite(slope).all()
        results.append(value.tobytes() + slope.tobytes())
    assert len(set(results)) == 1
    np.testing.assert_allclose(value, reference.loss(np.where(missing, NAN, y), p, logits), 1e-6)


def test_nan_and_the_code_are_missing_side_by_side_also_in_integers():
    y, p = reference.case(rows=16, tasks=4)
    coded = np.where(np.isnan(y), -1, y).astype("int32")
    loss = kt.losses.MaskedBinaryCrossentropy(missing=-1)
    mixed = np.where(np.arange(4) % 2, y, coded).astype("float32")
    assert float(loss(coded, p)) == float(loss(mixed, p)) == float(loss(y, p))


@all_modes
@both_kinds
@pytest.mark.parametrize("hidden", [0.5, NAN, np.inf])
def test_a_batch_without_labels_costs_exactly_nothing(hidden, logits, mode):
    y, p = np.full((3, 2), NAN, "float32"), np.full((3, 2), hidden, "float32")
    value, slope = loss_and_gradient(
        kt.losses.MaskedBinaryCrossentropy(from_logits=logits), y, p, mode
    )
    assert value == 0 and (slope == 0).all()


def test_a_row_without_labels_adds_nothing_but_counts_in_the_mean():
    y, p = reference.case(rows=8, known=1.0)
    half = y.copy()
    half[4:] = NAN
    loss = kt.losses.MaskedBinaryCrossentropy()
    np.testing.assert_allclose(loss(half, p), loss(y[:4], p[:4]) / 2, rtol=1e-6)


@all_modes
@both_kinds
def test_a_nan_prediction_of_a_known_cell_is_not_hidden(logits, mode):
    y, p = reference.case(rows=4, known=1.0, logits=logits)
    p[1, 2] = NAN
    value, _ = loss_and_gradient(kt.losses.MaskedBinaryCrossentropy(from_logits=logits), y, p, mode)
    assert np.isnan(value)


def test_saturated_wrong_predictions_cost_what_the_clip_says():
    y, p = np.array([[1, 0]], "float32"), np.array([[0, 1]], "float32")
    np.testing.assert_allclose(
        kt.losses.MaskedBinaryCrossentropy()(y, p), reference.loss(y, p), rtol=1e-2
    )
    logit = kt.losses.MaskedBinaryCrossentropy(from_logits=True)(
        y, np.array([[-50, 50]], "float32")
    )
    np.testing.assert_allclose(logit, 100.0, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_predictions_give_a_float32_loss(dtype):
    y, p = reference.case()
    p = tf.cast(p, dtype)
    value = kt.losses.MaskedBinaryCrossentropy()(y, p)
    assert value.dtype == tf.float32
    np.testing.assert_allclose(value, reference.loss(y, tf.cast(p, "float32").numpy()), rtol=1e-6)


@pytest.mark.parametrize("shapes", [((4, 3), (4, 2)), ((4,), (4, 1)), ((4, 3), (2, 3))])
def test_labels_that_do_not_fit_the_predictions_are_refused(shapes):
    with pytest.raises(ValueError, match="differ in shape"):
        kt.losses.MaskedBinaryCrossentropy()(*(np.zeros(shape, "float32") for shape in shapes))


def test_the_config_makes_an_equal_loss():
    loss = kt.losses.MaskedBinaryCrossentropy(True, missing=-1, reduction="sum", name="mine")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is kt.losses.MaskedBinaryCrossentropy
    assert again.get_config() == loss.get_config()
    assert (again.from_logits, again.missing, again.reduction) == (True, -1, "sum")


def small_model(tasks=3):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(tasks, "sigmoid")])
    model.compile(keras.optimizers.SGD(0.1), loss=kt.losses.MaskedBinaryCrossentropy())
    return model


def small_data(rows=40, tasks=3):
    x = np.random.default_rng(3).normal(size=(rows, 4)).astype("float32")
    return x, reference.case(rows=rows, tasks=tasks, known=0.4)[0]


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_the_epoch_loss_does_not_depend_on_the_batches(batch_size):
    model, (x, y) = small_model(), small_data()
    expected = reference.loss(y, model.predict(x, verbose=0))
    value = model.evaluate(x, y, batch_size=batch_size, verbose=0)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_sample_weights_pass_through_compile_and_evaluate():
    model, (x, y) = small_model(), small_data()
    weight = np.random.default_rng(1).random(len(x)).astype("float32")
    rows = reference.row_losses(y, model.predict(x, verbose=0))
    value = model.evaluate(x, y, sample_weight=weight, batch_size=8, verbose=0)
    np.testing.assert_allclose(value, (weight * rows).mean(), rtol=1e-6)


def test_a_step_of_descent_is_that_of_the_formula():
    model, (x, y) = small_model(), small_data()
    kernel, bias = (np.array(weight) for weight in model.get_weights())
    slope = reference.gradient(y, x @ kernel + bias, logits=True)
    model.fit(x, y, batch_size=len(x), epochs=1, verbose=0)
    new_kernel, new_bias = model.get_weights()
    np.testing.assert_allclose(new_kernel, kernel - 0.1 * x.T @ slope, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(new_bias, bias - 0.1 * slope.sum(0), rtol=1e-4, atol=1e-6)


def test_a_task_without_labels_keeps_its_weights_bit_for_bit():
    model, (x, y) = small_model(), small_data()
    y[:, 1] = NAN
    before = model.layers[0].kernel.numpy()
    model.fit(x, y, epochs=2, verbose=0)
    after = model.layers[0].kernel.numpy()
    assert before[:, 1].tobytes() == after[:, 1].tobytes()
    assert (before[:, [0, 2]] != after[:, [0, 2]]).all()


REPLICAS = """
import json, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path[:0] = ["tests/losses", "tests/helpers"]
import numpy as np, test_losses, reference, kerasmtl as kt

def trained(strategy):
    with strategy.scope():
        model = test_losses.small_model()
        loss, metric = kt.losses.MaskedBinaryCrossentropy(), kt.metrics.MaskedBinaryAccuracy()
        model.compile("sgd", loss, metrics=[metric])
    x, y = test_losses.small_data()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(20)
    before = reference.loss(y, model.predict(x, verbose=0))
    logs = model.evaluate(data, verbose=0, return_dict=True)
    model.fit(data, epochs=2, verbose=0)
    accuracy = reference.accuracy_per_task(y, test_losses.small_model().predict(x, verbose=0))
    return dict(replicas=strategy.num_replicas_in_sync, before=before, accuracy=accuracy.mean(),
                logs=logs, weights=[w.tolist() for w in model.get_weights()])

print(json.dumps([trained(tf.distribute.get_strategy()),
                  trained(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))]))
"""


def test_two_replicas_lose_and_learn_what_one_does():
    # Virtual devices must be made before TensorFlow starts: hence a process of its own.
    one, two = json.loads(run_fresh(REPLICAS))
    assert (one["replicas"], two["replicas"]) == (1, 2)
    for run in (one, two):
        np.testing.assert_allclose(run["logs"]["loss"], run["before"], rtol=1e-5)
        np.testing.assert_allclose(run["logs"]["binary_accuracy"], run["accuracy"], rtol=1e-5)
    for ours, theirs in zip(one["weights"], two["weights"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def run_fresh(code, *arguments):
    """The last line that a fresh Python prints."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


LOAD = """
import sys
import kerasmtl as kt

loss = kt.load_model(sys.argv[1]).loss
print(type(loss) is kt.losses.MaskedBinaryCrossentropy)
"""


def test_a_saved_compiled_model_loads_in_a_fresh_process(tmp_path):
    model, (x, y) = small_model(), small_data()
    model.compile("adam", kt.losses.MaskedBinaryCrossentropy(), metrics=[kt.metrics.MaskedAUC()])
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = run_fresh(LOAD, str(tmp_path / "model.keras"))
    assert loaded == "True"
