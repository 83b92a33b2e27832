"""A trainable HubLayer on several devices: two virtual CPUs under a MirroredStrategy."""

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
from kerasmtl.models import module_spec
from modules import save_reusable

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
folder = save_reusable(Path("module"))
rng = np.random.default_rng(0)
x = rng.random((8, 12, 12, 3), dtype="float32")
y = rng.integers(0, 2, (8, 1)).astype("float32")

def model_of(choose, source=folder, size=12, adam=False):
    keras.utils.set_random_seed(0)
    layer = kt.HubLayer(source)
    choose(layer)
    optimizer = keras.optimizers.Adam(1e-3) if adam else keras.optimizers.SGD(0.05)
    image = keras.Input((size, size, 3))
    model = keras.Model(image, keras.layers.Dense(1, kernel_initializer="ones")(layer(image)))
    model.compile(optimizer, "mse")
    return model

def fit(model, x):
    data = tf.data.Dataset.from_tensor_slices((x, y[: len(x)])).batch(len(x))
    return model.fit(data, epochs=3, verbose=0, shuffle=False).history["loss"]

def whole(layer):
    layer.trainable = True

results = {}

def compare(name, choose, x, **source):
    one = model_of(choose, **source)
    before = one.get_weights()
    with strategy.scope():
        several = model_of(choose, **source)
    start = several.get_weights()
    losses = [fit(one, x), fit(several, x)]
    pairs = list(zip(one.get_weights(), several.get_weights()))
    results[name] = {
        "kind": type(several.layers[1].trainable_variables[0].value).__name__,
        "start": max(float(np.abs(a - b).max()) for a, b in zip(before, start)),
        "moved": [not np.array_equal(a, b) for a, b in zip(before, one.get_weights())],
        "weights": max(float(np.abs(a - b).max()) for a, b in pairs),
        "loss": float(np.abs(np.subtract(*losses) / losses[0]).max()),
        "groups": str(kt.backbones.layer_groups(several)) == str(kt.backbones.layer_groups(one)),
    }
    return several

partly = compare("partly", kt.unfreeze, x)
alike = np.concatenate([x[:4], x[:4]])  # the same batch statistics on each device
y[4:] = y[:4]
trained = compare("whole", whole, alike)
small = rng.random((4, 64, 64, 3), dtype="float32")
compare("tiny", lambda layer: kt.unfreeze(layer, last=2), small, source="tiny", size=64, adam=True)

with strategy.scope():
    other = model_of(whole)
layer = other.layers[1]
features = kt.HubLayer(folder)
start = features.module_variables[2].numpy()
means = (features(x) + start).numpy()  # beta is 0 and scale is 1: what is left are the features
data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
other.fit(data, epochs=1, verbose=0)
results["statistics"] = {
    "received": layer.module_variables[2].numpy().tolist(),
    "expected": (0.9 * start + 0.1 * means.mean(axis=0)).tolist(),
}

trained.save("model.keras")
expected = trained.predict(alike, batch_size=8, verbose=0)
shutil.rmtree(folder)
module_spec._loaded.clear()
with strategy.scope():
    loaded = kt.load_model("model.keras", safe_mode=False)
alone = kt.load_model("model.keras", safe_mode=False)
results["loaded"] = {
    "on two": float(np.abs(loaded.predict(alike, batch_size=8, verbose=0) - expected).max()),
    "on one": float(np.abs(alone.predict(alike, verbose=0) - expected).max()),
    "goes on": float(np.abs(np.subtract(fit(loaded, alike), fit(trained, alike))).max()),
}
Path("results.json").write_text(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    place = tmp_path_factory.mktemp("replicas")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(HELPERS)],
        cwd=place,
        env={**os.environ, "TFHUB_CACHE_DIR": str(place / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((place / "results.json").read_text())


@pytest.mark.parametrize("how", ["partly", "whole", "tiny"])
def test_two_devices_make_the_update_of_one(results, how):
    found = results[how]
    assert found["kind"] == "MirroredVariable"
    assert found["start"] == 0 and any(found["moved"])
    assert found["weights"] <= 1e-6
    assert found["loss"] <= 1e-5
    assert found["groups"]


def test_moving_statistics_read_as_the_mean_over_the_devices(results):
    found = results["statistics"]
    np.testing.assert_allclose(found["received"], found["expected"], rtol=0, atol=1e-6)


def test_a_file_loads_in_the_scope_without_the_folder(results):
    assert results["loaded"]["on two"] <= 1e-6
    assert results["loaded"]["on one"] <= 1e-6
    assert results["loaded"]["goes on"] <= 1e-6
