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
images = np.load("images.npy")
for name in sys.argv[1:]:
    model = kt.load_model(f"{name}.keras")
    np.save(f"{name}.npy", model.predict(images, verbose=0))
    print(name, type(model.optimizer).__name__)
"""
TASKS = [kt.Task("a"), kt.Task("b")]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((12, 16, 16, 3), dtype="float32")


@pytest.fixture(scope="module")
def trained(images):
    """By plan a model that it has trained."""
    labels = np.random.default_rng(1).integers(0, 2, (12, 2)).astype("float32")
    labels[0, 0] = labels[1, 1] = np.nan
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    models = {}
    for name in PLANS:
        keras.utils.set_random_seed(0)
        image = keras.Input((16, 16, 3))
        x = keras.layers.Conv2D(3, 3, name="one")(image)
        x = keras.layers.Conv2D(3, 3, name="two")(x)
        models[name] = kt.build_model(keras.Model(image, x), TASKS, (16, 16))
        plan = kt.plans.make_plan(name, head_epochs=1, epochs=2)
        kt.fine_tune(models[name], data, data, plan=plan, verbose=0)
    return models


@pytest.fixture(scope="module")
def loaded(trained, images, tmp_path_factory):
    """By plan the optimizer and the predictions of its model, loaded in a fresh process."""
    folder = tmp_path_factory.mktemp("models")
    np.save(folder / "images.npy", images)
    for name, model in trained.items():
        kt.save_model(model, folder / f"{name}.keras")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *trained],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    optimizers = dict(line.split() for line in done.stdout.splitlines()[-len(trained) :])
    return {name: (optimizers[name], np.load(folder / f"{name}.npy")) for name in trained}


@pytest.mark.parametrize("name", PLANS)
def test_a_model_trained_by_a_plan_is_loaded_in_a_fresh_process(name, trained, loaded, images):
    optimizer, predictions = loaded[name]
    assert optimizer == type(trained[name].optimizer).__name__
    np.testing.assert_allclose(predictions, trained[name].predict(images, verbose=0), atol=1e-6)


@pytest.mark.parametrize("name", PLANS)
def test_a_model_trained_by_a_plan_is_exported(name, trained, tmp_path):
    folder = kt.export_saved_model(trained[name], tmp_path / "saved", TASKS, verify=False)
    assert (folder / "saved_model.pb").is_file()
