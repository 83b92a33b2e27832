"""`import kerasmtl` is all that `keras.models.load_model` needs."""

import importlib
import os
import pkgutil
import subprocess
import sys

import keras
import numpy as np
import pytest

import kerasmtl as kt
from kerasmtl.utils.registration import PACKAGE, REGISTERED


def test_every_registered_class_is_known_before_its_module_is_imported():
    for found in pkgutil.walk_packages(kt.__path__, "kerasmtl."):
        # Not what needs extras, and not the script that shuts kerasmtl out of its process.
        if not found.name.startswith(("kerasmtl.serving", "kerasmtl.export.verify_process")):
            importlib.import_module(found.name)
    own = {
        name.removeprefix(f"{PACKAGE}>"): value
        for name, value in keras.saving.get_custom_objects().items()
        if name.startswith(f"{PACKAGE}>")
    }
    assert own.keys() == REGISTERED.keys()
    for name, module in REGISTERED.items():
        home, _, other = module.partition(":")
        assert own[name] is getattr(importlib.import_module(home), other or name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a compiled and trained model, inputs, and its predictions."""
    folder = tmp_path_factory.mktemp("trained")
    keras.utils.set_random_seed(0)
    model = kt.build_model(kt.backbones.mlp(3, [4]), ["a", "b"])
    loss = kt.losses.MaskedBinaryCrossentropy(balancer=kt.losses.UncertaintyWeighting(2))
    optimizer = kt.optimizers.LayerwiseDecay(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, 10))
    )
    metrics = [kt.metrics.MaskedAUC(), kt.metrics.MaskedF1()]
    model.compile(optimizer, loss, metrics=metrics, jit_compile=True)
    values = np.random.default_rng(0).random((4, 3), dtype="float32")
    model.fit(values, np.array([[1, np.nan], [0, 1], [1, 0], [np.nan, 0]]), verbose=0)
    model.save(folder / "model.keras")
    np.save(folder / "values.npy", values)
    np.save(folder / "expected.npy", model.predict(values, verbose=0))
    return folder


LOAD = """
import numpy as np
model = keras.models.load_model("model.keras")
values, expected = np.load("values.npy"), np.load("expected.npy")
np.testing.assert_array_equal(model.predict(values, verbose=0), expected)
model.evaluate(values, np.zeros((4, 2)), verbose=0)
"""
# Others ask whether a package is installed before they import it.
QUIET = """
import gc, kerasmtl, importlib.util
kerasmtl.quiet_tensorflow()
assert importlib.util.find_spec("keras") and importlib.util.find_spec("tensorflow")
import keras
assert gc.isenabled() and gc.get_freeze_count() > 100_000
"""


@pytest.mark.parametrize(
    "imports",
    [
        QUIET,
        pytest.param("import keras, kerasmtl", marks=pytest.mark.slow),
        pytest.param("import kerasmtl.cli, keras", marks=pytest.mark.slow),
    ],
    ids=["quietly", "afterwards", "by the command line"],
)
def test_keras_loads_a_compiled_and_trained_model(trained, imports):
    env = {name: value for name, value in os.environ.items() if not name.startswith("TF_CPP")}
    done = subprocess.run(
        [sys.executable, "-c", imports + LOAD], cwd=trained, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    if imports is QUIET:  # not a line of TensorFlow's start is shown
        assert done.stderr == ""
