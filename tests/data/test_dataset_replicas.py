"""The input pipeline on several devices, and in deterministic mode: two virtual CPUs."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # a TensorFlow process of its own

PROGRAM = """
import json, sys
from pathlib import Path
import keras, numpy as np, tensorflow as tf
from PIL import Image
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
tf.config.experimental.enable_op_determinism()
tf.random.set_seed(0)
from kerasmtl.data.manifest import Manifest
from kerasmtl.data.dataset import make_dataset
from kerasmtl.data.dataset import permutation, source_of

folder = Path(sys.argv[1])
for row in range(13):
    Image.new("RGB", (3, 2), (10 * row,) * 3).save(folder / f"{row}.png")
lines = [f"{row}.png,{row % 2}" for row in range(13)]
(folder / "labels.csv").write_text("image,a\\n" + "\\n".join(lines))
manifest = Manifest.from_csv(folder / "labels.csv")
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
still = keras.layers.RandomFlip("horizontal")
result = {"expected": permutation(13, 0, 5).numpy().tolist()}

def order(batches):
    return [int(row) for x in batches for row in np.round(x.numpy()[:, 0, 0, 0] * 25.5)]

for cache in (True, False, folder / "cache"):
    with strategy.scope():
        data = make_dataset(manifest, 2, 4, training=True, cache=cache, augment=still)
        model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    losses = model.fit(data, epochs=2, verbose=0, shuffle=False).history["loss"]
    source_of(data).epoch.assign(5)
    shared = strategy.experimental_distribute_dataset(data)
    parts = [x for x, _ in shared]
    split = order(part for x in parts for part in strategy.experimental_local_results(x))
    source_of(data).epoch.assign(5)
    result[str(cache is True or cache)[-5:]] = [split, order(x for x, _ in data), losses]
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("cache", ["True", "False", "cache"])
def test_replicas_share_the_batches_in_the_order_of_the_epoch(result, cache):
    split, plain, losses = result[cache]
    assert split == plain == result["expected"]
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)
