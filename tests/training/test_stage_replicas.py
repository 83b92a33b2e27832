"""Stages on two virtual CPUs under a MirroredStrategy: as on one, and going on from a state."""

import json
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
import json
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
import kerasmtl as kt
from kerasmtl.training.plans import Stage
from kerasmtl.training.fine_tune import fine_tune

rng = np.random.default_rng(0)
x = rng.random((16, 8, 8, 3), dtype="float32")
y = rng.choice([0.0, 1.0, np.nan], (16, 2)).astype("float32")
y[:2] = [[0, 1], [1, 0]]
cosine = Stage("all", 1, 1e-2, warmup=1.0, schedule="cosine", backbone_decay=0.5)
PLAN = [Stage("head", 1, 1e-2), Stage(1, 1, 1e-2), cosine]

class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt

def run(strategy, directory, callbacks=()):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        image = z = keras.Input((8, 8, 3))
        for name in ("first", "second"):
            z = keras.layers.Conv2D(3, 3, activation="relu", name=name)(z)
        model = kt.build_model(keras.Model(image, z), ["a", "b"], 8)
        loss = kt.losses.MaskedBinaryCrossentropy()
        model.compile("adam", loss, metrics=[kt.metrics.MaskedAUC()], jit_compile=False)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    try:
        fine_tune(model, data, data, PLAN, callbacks, 0, directory)
    except KeyboardInterrupt:
        return run(strategy, directory)
    return model

def apart(one, other):
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
one = run(tf.distribute.get_strategy(), "one")
two = run(strategy, "two")
print(json.dumps({
    "kind": type(two.trainable_variables[0].value).__name__,
    "replicas": apart(one, two),
    "resumed": apart(two, run(strategy, "again", [Stop()])),
}))
"""


@pytest.mark.slow
def test_two_replicas_train_as_one_and_go_on(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["kind"] == "MirroredVariable"
    assert results["replicas"] < 1e-6
    assert results["resumed"] == 0.0
