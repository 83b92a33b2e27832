"""Files that version 0.1 saved, before the package was rebuilt, keep loading."""

from pathlib import Path

import keras
import numpy as np
import pytest

import kerasmtl as kt

SAVED = Path(__file__).parents[1] / "fixtures" / "saved_0_1"


@pytest.mark.parametrize("load", [kt.load_model, keras.models.load_model])
def test_a_compiled_model_of_a_table(load):
    model = load(SAVED / "table.keras")
    given = np.load(SAVED / "table.npz")
    found = model.predict(given["x"], verbose=0)
    assert found.keys() == set(given.files) - {"x"}
    for name, values in found.items():
        np.testing.assert_allclose(values, given[name], atol=1e-6)
    assert isinstance(model.optimizer, kt.optimizers.LayerwiseDecay)
    assert model.optimizer.iterations == 4  # goes on from there


def test_a_compiled_model_with_a_hub_layer():
    model = kt.load_model(SAVED / "image.keras", safe_mode=False)
    given = np.load(SAVED / "image.npz")
    np.testing.assert_allclose(model.predict(given["x"], verbose=0), given["y"], atol=1e-6)
    assert isinstance(model.loss, kt.losses.MaskedBinaryCrossentropy)
    y = np.array([[1, np.nan], [0, 1]] * 4, "float32")
    assert np.isfinite(model.fit(given["x"], y, verbose=0).history["loss"]).all()
