"""Two virtual CPUs under a MirroredStrategy train as one: a HubLayer, an optimizer, stages."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from modules import HELPERS

PROGRAM = """
import json, shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
import kerasmtl as kt
from modules import save_reusable

strategy, alone = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), tf.distribute.get_strategy()
folder = save_reusable(Path("module"))
rng = np.random.default_rng(0)
x = rng.random((8, 12, 12, 3), dtype="float32")
y = rng.integers(0, 2, (8, 1)).astype("float32")
results = {}

def apart(one, other):
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)

# ---------------------------------------------------------------- a trainable HubLayer

def model_of(choose):
    keras.utils.set_random_seed(0)
    layer = kt.HubLayer(folder)
    choose(layer)
    image = keras.Input((12, 12, 3))
    model = keras.Model(image, keras.layers.Dense(1, kernel_initializer="ones")(layer(image)))
    model.compile(keras.optimizers.SGD(0.05), "mse")
    return model

def fit(model, x):
    data = tf.data.Dataset.from_tensor_slices((x, y[: len(x)])).batch(len(x))
    return model.fit(data, epochs=3, verbose=0, shuffle=False).history["loss"]

def whole(layer):
    layer.trainable = True

def compare(name, choose, x):
    one = model_of(choose)
    with strategy.scope():
        several = model_of(choose)
    start, before = apart(one, several), one.get_weights()
    losses = [fit(one, x), fit(several, x)]
    results[name] = {
        "kind": type(several.layers[1].trainable_variables[0].value).__name__,
        "start": start,
        "moved": any(not np.array_equal(a, b) for a, b in zip(before, one.get_weights())),
        "weights": apart(one, several),
        "loss": float(np.abs(np.subtract(*losses) / losses[0]).max()),
    }
    return several

compare("partly", kt.unfreeze, x)
alike = np.concatenate([x[:4], x[:4]])  # the same batch statistics on each device
y[4:] = y[:4]
trained = compare("whole", whole, alike)

with strategy.scope():
    other = model_of(whole)
layer, features = other.layers[1], kt.HubLayer(folder)
start = features.module_variables[2].numpy()
means = (features(x) + start).numpy()  # beta is 0 and scale is 1: what is left are the features
other.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(8), epochs=1, verbose=0)
results["statistics"] = {
    "received": layer.module_variables[2].numpy().tolist(),
    "expected": (0.9 * start + 0.1 * means.mean(axis=0)).tolist(),
}

trained.save("model.keras")
expected = trained.predict(alike, batch_size=8, verbose=0)
shutil.rmtree(folder)
with strategy.scope():
    loaded = kt.load_model("model.keras", safe_mode=False)
found = loaded.predict(alike, batch_size=8, verbose=0)
results["loaded"] = float(np.abs(found - expected).max())

# ---------------------------------------------------------------- LayerwiseDecay

rows, numbers = rng.random((32, 4), dtype="float32"), rng.random((32, 1), dtype="float32")

def train(scope, inner, scaled):
    with scope.scope():
        keras.utils.set_random_seed(0)
        row = keras.Input((4,))
        deep = keras.layers.Dense(5, "tanh", name="deep")(row)
        model = keras.Model(row, keras.layers.Dense(1, name="top")(deep))
        optimizer = kt.optimizers.LayerwiseDecay(inner, {"deep/kernel": 0.1})
        around = keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer
        model.compile(around, "mse", jit_compile=False)
    data = tf.data.Dataset.from_tensor_slices((rows, numbers)).batch(8)
    model.fit(data, epochs=2, shuffle=False, verbose=0)
    return model

cosine = keras.optimizers.schedules.CosineDecay(0.01, 6, warmup_target=0.05, warmup_steps=2)
results["optimizers"] = [
    apart(train(alone, make(), scaled), train(strategy, make(), scaled))
    for make, scaled in (
        (lambda: keras.optimizers.AdamW(cosine, weight_decay=0.1), True),
        (lambda: keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True), False),
    )
]

# ---------------------------------------------------------------- stages, and resuming

x = rng.random((16, 8, 8, 3), dtype="float32")
y = rng.choice([0.0, 1.0, np.nan], (16, 2)).astype("float32")
y[:2] = [[0, 1], [1, 0]]
cosine = kt.plans.Stage("all", 1, 1e-2, warmup=1.0, schedule="cosine", backbone_decay=0.5)
PLAN = [kt.plans.Stage("head", 1, 1e-2), kt.plans.Stage(1, 1, 1e-2), cosine]

class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt

def run(scope, directory, callbacks=()):
    keras.utils.set_random_seed(0)
    with scope.scope():
        image = z = keras.Input((8, 8, 3))
        for name in ("first", "second"):
            z = keras.layers.Conv2D(3, 3, activation="relu", name=name)(z)
        model = kt.build_model(keras.Model(image, z), ["a", "b"], 8)
        loss = kt.losses.MaskedBinaryCrossentropy()
        model.compile("adam", loss, metrics=[kt.metrics.MaskedAUC()], jit_compile=False)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    try:
        kt.fine_tune(model, data, data, PLAN, callbacks, 0, directory)
    except KeyboardInterrupt:
        return run(scope, directory)
    return model

one, two = run(alone, "one"), run(strategy, "two")
results["stages"] = {
    "kind": type(two.trainable_variables[0].value).__name__,
    "replicas": apart(one, two),
    "resumed": apart(two, run(strategy, "again", [Stop()])),
}
Path("results.json").write_text(json.dumps(results))
"""


@pytest.mark.slow
def test_two_replicas_train_as_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(HELPERS)],
        cwd=tmp_path,
        env={**os.environ, "TFHUB_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads((tmp_path / "results.json").read_text())
    for how in ("partly", "whole"):
        found = results[how]
        assert found["kind"] == "MirroredVariable" and found["moved"]
        assert found["start"] == 0 and found["weights"] <= 1e-6 and found["loss"] <= 1e-5
    # Moving statistics read as the mean over the devices.
    statistics = results["statistics"]
    np.testing.assert_allclose(statistics["received"], statistics["expected"], rtol=0, atol=1e-6)
    assert results["loaded"] <= 1e-6  # in the scope, without the folder
    assert max(results["optimizers"]) <= 1e-5
    assert results["stages"]["kind"] == "MirroredVariable"
    assert results["stages"]["replicas"] < 1e-6 and results["stages"]["resumed"] == 0.0
