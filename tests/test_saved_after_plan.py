"""What a plan has trained is saved, loaded elsewhere and exported."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasmtl as kt
from kerasmtl.training.plans import PLANS

LOAD = """
import sys, numpy as np, kerasmtl as kt
model = kt.load_model(sys.argv[1])
np.save(sys.argv[2], model.predict(np.load(sys.argv[3]), verbose=0))
print(type(model.optimizer).__name__)
"""


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (12, 2)).astype("float32")
    labels[0, 0] = labels[1, 1] = np.nan
    return rng.random((12, 16, 16, 3), dtype="float32"), labels


@pytest.mark.parametrize("name", PLANS)
def test_a_model_trained_by_a_plan_is_loaded_in_a_fresh_process_and_exported(
    name, pictures, tmp_path
):
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(3, 3, name="one")(image)
    x = keras.layers.Conv2D(3, 3, name="two")(x)
    tasks = [kt.Task("a"), kt.Task("b")]
    model = kt.build_model(keras.Model(image, x), tasks, (16, 16))
    data = tf.data.Dataset.from_tensor_slices(pictures).batch(4)
    plan = kt.make_plan(name, head_epochs=1, epochs=2)
    kt.fine_tune(model, data, data, plan=plan, verbose=0)
    kt.save_model(model, tmp_path / "model.keras")
    np.save(tmp_path / "inputs.npy", pictures[0])
    paths = [str(tmp_path / file) for file in ("model.keras", "outputs.npy", "inputs.npy")]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *paths], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == type(model.optimizer).__name__
    expected = model.predict(pictures[0], verbose=0)
    np.testing.assert_allclose(np.load(paths[1]), expected, atol=1e-6)
    folder = kt.export_saved_model(model, tmp_path / "saved", tasks, proof=False)
    assert (folder / "saved_model.pb").is_file()
