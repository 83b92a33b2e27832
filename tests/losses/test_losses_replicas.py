"""Two replicas have the loss and the update of one device: a loss and a balancer of each kind."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from loss_table import CASES, TASKS
from modules import HELPERS
from test_balancing import BALANCERS

import kerasmtl as kt

HEADS = {"binary": "sigmoid", "numbers": "linear", "classes": "softmax"}
# One of each way from labels to a row's loss; each output more takes seconds to trace.
CHOSEN = ("binary-mean", "partial", "asl-partial", "epr", "ll-correct", "squared", "categorical")
BALANCED = ("uncertainty", "random", "famo")


def losses():
    """One for each output of the model; where there are balancers, they have one as well."""
    made = {name: CASES[name].make() for name in CHOSEN}
    balanced = {
        f"balanced-{name}": kt.losses.MaskedBinaryCrossentropy(balancer=BALANCERS[name]())
        for name in BALANCED
    }
    return made | balanced


def model_of(chosen):
    inputs = keras.Input((3,))
    outputs = {
        name: keras.layers.Dense(
            TASKS,
            HEADS[kind_of(name)],
            kernel_initializer=keras.initializers.GlorotUniform(seed=1),
            name=name,
        )(inputs)
        for name in chosen
    }
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.1), chosen, jit_compile=False)
    return model


def kind_of(name):
    return CASES[name].kind if name in CASES else "binary"


def data(names, rows, known):
    x = np.random.default_rng(0).normal(size=(rows, 3)).astype("float32")
    y = {
        name: CASES[name if name in CASES else "binary"].data(0, known, rows=rows)[0]
        for name in names
    }
    return x, y


def trained(strategy, make, rows, batch, known=0.6, drop=False):
    with strategy.scope():
        model = model_of(make())
    x, y = data(model.output_names, rows, known)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch, drop_remainder=drop)
    history = model.fit(batches, epochs=3, verbose=0)
    return {
        "replicas": strategy.num_replicas_in_sync,
        "losses": history.history["loss"],
        "weights": {w.path: w.numpy().tolist() for w in model.trainable_variables},
        "balancers": [
            loss.balancer.weights().tolist()
            for loss in model.loss.values()
            if getattr(loss, "balancer", None)
        ],
    }


def refused(strategy):
    """What is said of labels of -1, and of one alone, in the rows of the second replica."""
    with strategy.scope():
        model = model_of({"binary": kt.losses.MaskedBinaryCrossentropy()})
    x, y = data(["binary"], 24, 0.6)
    found = []
    for coded in (np.where(np.isnan(y["binary"]), -1, y["binary"]), y["binary"].copy()):
        coded[11, 2] = -1
        batches = tf.data.Dataset.from_tensor_slices((x, {"binary": coded})).batch(12)
        try:
            model.fit(batches, verbose=0)
        except tf.errors.InvalidArgumentError as error:
            found.append(str(error))
    return found


def balancer_outside(strategy):
    """What is said of a balancer created outside of the strategy's scope."""
    balancer = BALANCERS["famo"]()
    with strategy.scope():
        model = model_of({"binary": kt.losses.MaskedBinaryCrossentropy(balancer=balancer)})
    x, y = data(["binary"], 24, 0.6)
    try:
        model.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(12), verbose=0)
    except ValueError as error:
        return str(error)


def mean_and_stock():
    return {
        "ours": kt.losses.MaskedBinaryCrossentropy(normalization="mean"),
        "stock": keras.losses.BinaryCrossentropy(),
    }


PROGRAM = """
import json, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import test_losses_replicas as t

one, two = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
print(json.dumps({
    "even": [t.trained(s, t.losses, 25, 12, drop=True) for s in (one, two)],
    "refused": t.refused(two),
    "outside": t.balancer_outside(two),
    "uneven": t.trained(two, t.mean_and_stock, 17, 12, known=1.0),
}))
"""


@pytest.fixture(scope="module")
def found():
    # Virtual devices must be made before TensorFlow starts: hence a process of its own.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=HELPERS
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_batches_that_divide_by_the_replicas_give_the_update_of_one_device(found):
    one, two = found["even"]
    assert (one["replicas"], two["replicas"]) == (1, 2)
    assert len(one["weights"]) == 2 * (len(CHOSEN) + len(BALANCED))
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-5)
    for name, weights in one["weights"].items():
        np.testing.assert_allclose(
            two["weights"][name], weights, rtol=1e-4, atol=1e-5, err_msg=name
        )
    assert len(one["balancers"]) == len(BALANCED)
    np.testing.assert_allclose(two["balancers"], one["balancers"], rtol=1e-4)


@pytest.mark.slow
def test_a_wrong_label_of_any_replica_or_a_balancer_outside_the_scope_ends_the_training(found):
    assert "strategy.scope()" in found["outside"] and len(found["refused"]) == 2
    assert all("`y_true` must be from 0 to 1" in said for said in found["refused"])


@pytest.mark.slow
def test_other_batches_weigh_rows_as_keras_does(found):
    """Why the docs ask for batches that divide: a smaller part's rows count for more."""
    weights = found["uneven"]["weights"]
    alone = trained(tf.distribute.get_strategy(), mean_and_stock, 17, 12, known=1.0)["weights"]
    for part in ("kernel", "bias"):
        np.testing.assert_allclose(weights[f"ours/{part}"], weights[f"stock/{part}"], rtol=1e-5)
        np.testing.assert_allclose(alone[f"ours/{part}"], alone[f"stock/{part}"], rtol=1e-5)
        assert not np.allclose(weights[f"ours/{part}"], alone[f"ours/{part}"], rtol=1e-4)
