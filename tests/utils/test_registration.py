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


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )


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


# Others ask whether a package is installed before they import it.
LOOKED = "import kerasmtl, importlib.util; importlib.util.find_spec('keras'); import keras"


@pytest.mark.parametrize(
    "imports",
    ["import keras, kerasmtl", "import kerasmtl.cli, keras", LOOKED],
)
def test_keras_loads_a_compiled_and_trained_model(tmp_path, imports):
    keras.utils.set_random_seed(0)
    model = kt.build_model("tiny", ["a", "b"], 32, hidden=[4])
    loss = kt.losses.MaskedBinaryCrossentropy(balancer=kt.losses.UncertaintyWeighting(2))
    optimizer = kt.optimizers.LayerwiseDecay(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, 10))
    )
    model.compile(optimizer, loss, metrics=[kt.metrics.MaskedAUC(), kt.metrics.MaskedF1()])
    images = np.random.default_rng(0).random((4, 32, 32, 3), dtype="float32")
    model.fit(images, np.array([[1, np.nan], [0, 1], [1, 0], [np.nan, 0]]), verbose=0)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "expected.npy", model.predict(images, verbose=0))
    result = run(
        f"{imports}\n"
        "import numpy as np\n"
        f"model = keras.models.load_model({str(tmp_path / 'model.keras')!r})\n"
        f"images, expected = [np.load({str(tmp_path)!r} + f'/{{name}}.npy')"
        " for name in ('images', 'expected')]\n"
        "np.testing.assert_array_equal(model.predict(images, verbose=0), expected)\n"
        "model.evaluate(images, np.zeros((4, 2)), verbose=0)\n"
    )
    assert result.returncode == 0, result.stderr


def test_importing_kerasmtl_imports_neither_keras_nor_tensorflow():
    code = "import sys, kerasmtl; assert not {'keras', 'tensorflow', 'numpy'} & set(sys.modules)"
    assert run(code).returncode == 0
