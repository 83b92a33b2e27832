"""A .keras file contains its module, and loads where the folder is gone."""

import json
import shutil
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from modules import (
    save_arguments_module,
    save_keras_export,
    save_nested_module,
    save_reusable,
)

import kerasmtl as kt
from kerasmtl.models import hub_layer
from kerasmtl.models.hub.cache import content_sha256
from kerasmtl.models.saved_model import FORMAT


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return save_reusable(tmp_path_factory.mktemp("published") / "module")


@pytest.fixture
def folder(published, tmp_path):
    return shutil.copytree(published, tmp_path / "module")


def forget(folder):
    """As if in a new process: the module is neither in its place nor known to have been loaded."""
    shutil.rmtree(folder, ignore_errors=True)
    hub_layer._loaded.clear()


def images(rows=4, size=12, seed=0):
    return np.random.default_rng(seed).random((rows, size, size, 3), dtype="float32")


def classifier(layer, size=12):
    image = keras.Input((size, size, 3))
    return keras.Model(image, keras.layers.Dense(1)(layer(image)))


def trained(layer):
    model = classifier(layer)
    model.compile("adam", "mse")
    model.train_on_batch(images(), np.ones((4, 1), "float32"))
    return model


def load(path):
    return kt.load_model(path, safe_mode=False)


def hub(model):
    return next(layer for layer in model.layers if isinstance(layer, kt.HubLayer))


def same_weights(a, b):
    for x, y in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)


def edit(source, target, change):
    """Write an archive again; `change` gives the new content of a file, or None to leave it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def edit_layers(change):
    def edited(name, content):
        if name != "config.json":
            return content
        config = json.loads(content)
        for layer in config["config"]["layers"]:
            if "module" in layer["config"]:
                change(layer["config"])
        return json.dumps(config)

    return edited


# ---------------------------------------------------------------- the folder is gone


def test_weights_and_optimizer_come_back_without_the_folder(folder, tmp_path):
    model = trained(kt.HubLayer(folder, trainable=True))
    model.save(tmp_path / "model.keras")
    forget(folder)
    loaded = load(tmp_path / "model.keras")
    same_weights(loaded, model)
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables)
    for a, b in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(loaded(images()), model(images()))
    for _ in range(2):
        x, y = images(seed=1), np.zeros((4, 1), "float32")
        assert loaded.train_on_batch(x, y) == pytest.approx(model.train_on_batch(x, y), abs=1e-6)


@pytest.mark.parametrize("to", ["another module", "a link out of it"])
def test_a_folder_with_another_content_is_left_alone(folder, tmp_path, to):
    model = trained(kt.HubLayer(folder, trainable=True))
    model.save(tmp_path / "model.keras")
    forget(folder)
    if to == "another module":
        save_nested_module(folder)
    else:
        folder.mkdir()
        (folder / "saved_model.pb").write_bytes(b"nothing of the sort")
        (folder / "extra").symlink_to(tmp_path)
    before = sorted(path.name for path in folder.glob("*"))
    loaded = load(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images()), model(images()))
    assert hub(loaded).module.folder != folder
    assert sorted(path.name for path in folder.glob("*")) == before


def test_a_loaded_model_is_saved_again(folder, tmp_path):
    model = trained(kt.HubLayer(folder, trainable=True))
    model.save(tmp_path / "first.keras")
    forget(folder)
    load(tmp_path / "first.keras").save(tmp_path / "second.keras")
    shutil.rmtree(tmp_path / "cache")
    hub_layer._loaded.clear()
    loaded = load(tmp_path / "second.keras")
    same_weights(loaded, model)
    np.testing.assert_array_equal(loaded(images()), model(images()))


def test_a_clone_and_a_layer_from_json_run_without_the_folder(folder, tmp_path):
    model = trained(kt.HubLayer(folder, trainable=True, name="spine"))
    model.save(tmp_path / "model.keras")
    forget(folder)
    loaded = load(tmp_path / "model.keras")
    for copy in (
        keras.models.clone_model(loaded),
        classifier(kt.HubLayer.from_config(json.loads(json.dumps(hub(loaded).get_config())))),
    ):
        assert hub(copy).name == "spine" and hub(copy).trainable
        copy.set_weights(loaded.get_weights())
        np.testing.assert_allclose(copy(images()), loaded(images()), rtol=1e-6)


def test_a_layer_shared_by_calls_of_several_shapes(folder, tmp_path):
    layer = kt.HubLayer(folder)
    small, large = keras.Input((8, 8, 3)), keras.Input((20, 16, 3))
    model = keras.Model([small, large], keras.layers.Add()([layer(small), layer(large)]))
    x = [images(2, 8), np.ones((2, 20, 16, 3), "float32")]
    expected = model(x)
    model.save(tmp_path / "model.keras")
    forget(folder)
    np.testing.assert_array_equal(load(tmp_path / "model.keras")(x), expected)


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """Holds the layer; its config carries it."""

    def __init__(self, spine, **kwargs):
        super().__init__(**kwargs)
        self.spine = spine
        self.top = keras.layers.Dense(1)

    def call(self, x, training=None):
        return self.top(self.spine(x, training=training))

    def get_config(self):
        return {**super().get_config(), "spine": keras.saving.serialize_keras_object(self.spine)}

    @classmethod
    def from_config(cls, config):
        spine = keras.saving.deserialize_keras_object(config.pop("spine"))
        return cls(spine, **config)


def test_a_subclassed_model_that_carries_the_layer_in_its_config(folder, tmp_path):
    model = Subclassed(kt.HubLayer(folder, trainable=True))
    before = [variable.numpy() for variable in model.spine.variables]
    model.compile("adam", "mse")
    model.fit(images(), np.ones((4, 1), "float32"), verbose=0)
    pairs = zip(before, model.spine.variables, strict=True)
    assert "block_1_bn_moving_mean" in {v.name for old, v in pairs if (old != v.numpy()).any()}
    expected = model(images()).numpy()
    model.save(tmp_path / "model.keras")
    forget(folder)
    loaded = load(tmp_path / "model.keras")
    same_weights(loaded, model)
    np.testing.assert_array_equal(loaded(images()), expected)


def test_settings_travel(tmp_path):
    settings = {"arguments": {"double": True}, "input_range": (0, 255), "output_shape": (3,)}
    folder = save_arguments_module(tmp_path / "arguments")
    left, right = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([left, right], kt.HubLayer(folder, name="other", **settings)([left, right]))
    x = [np.full((2, 3), 3.0, "float32"), np.ones((2, 3), "float32")]
    mixed = np.array([1.0, 2.0, 3.0]) * x[0] - x[1]
    model.save(tmp_path / "model.keras")
    forget(folder)
    loaded = load(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), 2 * mixed, rtol=1e-6)
    layer = hub(loaded)
    assert layer.input_range == (0, 255) and layer.name == "other"


# ---------------------------------------------------------------- what is trained


@pytest.mark.parametrize(
    "choose",
    [
        lambda layer: kt.unfreeze(layer, match="first", normalization=True),
        lambda layer: kt.freeze(layer),
    ],
)
def test_the_selection_and_the_mode_travel(tmp_path, choose):
    folder = save_keras_export(tmp_path / "export")
    layer = kt.HubLayer(folder)
    choose(layer)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "model.keras")
    forget(folder)
    loaded = hub(load(tmp_path / "model.keras"))
    assert [v.trainable for v in loaded.module_variables] == [
        v.trainable for v in layer.module_variables
    ]
    assert (
        loaded.get_config()["module"]["training_mode"]
        == (layer.get_config()["module"]["training_mode"])
    )
    assert str(kt.backbones.layer_groups(loaded)) == str(kt.backbones.layer_groups(layer))


# ---------------------------------------------------------------- errors


def test_a_changed_module_in_the_file_is_refused(folder, tmp_path, cache):
    classifier(kt.HubLayer(folder)).save(tmp_path / "model.keras")
    digest = content_sha256(folder)
    forget(folder)
    tampered = edit(
        tmp_path / "model.keras",
        tmp_path / "tampered.keras",
        lambda name, content: content + b"\0" if name.endswith("saved_model.pb") else content,
    )
    with pytest.raises(ValueError, match="`handle`.*was changed since") as error:
        load(tampered)
    assert digest in str(error.value) and str(folder) in str(error.value)
    assert list(cache.rglob("*.pb")) == []


def test_a_file_without_its_module_says_so(folder, tmp_path):
    layer = kt.HubLayer(folder, name="spine")
    other = kt.HubLayer(save_keras_export(tmp_path / "export"))
    inputs = [keras.Input((12, 12, 3)), keras.Input((4,))]
    model = keras.Model(inputs, [layer(inputs[0]), other(inputs[1])])
    model.save(tmp_path / "model.keras")
    forget(folder)
    half = edit(
        tmp_path / "model.keras",
        tmp_path / "half.keras",
        lambda name, content: None if "assets/layers/hub_layer/" in name else content,
    )
    with pytest.raises(ValueError, match=f"`handle` '{folder}'.*contains no module"):
        load(half)


def test_a_file_of_a_later_format_names_the_version_to_install(folder, tmp_path):
    classifier(kt.HubLayer(folder)).save(tmp_path / "model.keras")
    later = edit(
        tmp_path / "model.keras",
        tmp_path / "later.keras",
        edit_layers(lambda config: config["module"].update(format=FORMAT + 1, version="9.9.9")),
    )
    with pytest.raises(
        ValueError, match=rf"format {FORMAT + 1}. Expected format {FORMAT}.*'kerasmtl==9.9.9'"
    ):
        load(later)


def test_a_layer_whose_module_is_not_there_says_what_to_do(folder):
    model = classifier(kt.HubLayer(folder, name="spine"))
    config = hub(model).get_config()
    forget(folder)
    layer = kt.HubLayer.from_config(config)
    assert layer(keras.Input((12, 12, 3))).shape == (None, 4)
    for call in (lambda: layer(images()), lambda: layer.module):
        with pytest.raises(ValueError, match="'spine' waits for its module.*kerasmtl.load_model"):
            call()
    with pytest.raises(ValueError, match="`inputs`"):
        layer(keras.Input((20, 20, 3)))


def test_saving_without_the_module_leaves_the_last_file_whole(folder, tmp_path):
    model = trained(kt.HubLayer(folder, trainable=True))
    checkpoint = kt.callbacks.Checkpoint(tmp_path / "runs" / "model.keras")
    checkpoint.set_model(model)
    checkpoint.on_epoch_end(0)
    (folder / "further.txt").write_text("more")
    with pytest.warns(UserWarning, match=f"`handle` '{folder}'.*Restore the module"):
        checkpoint.on_epoch_end(1)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["model.keras"]
    forget(folder)
    with pytest.raises(ValueError, match="`handle`|waits for its module"):
        load(tmp_path / "runs" / "model.keras")(images())


def test_a_cache_that_cannot_be_written_to_is_no_obstacle(folder, tmp_path, monkeypatch):
    model = trained(kt.HubLayer(folder, trainable=True))
    model.save(tmp_path / "model.keras")
    forget(folder)
    monkeypatch.setenv("TFHUB_CACHE_DIR", "/proc/nowhere")
    loaded = load(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images()), model(images()))
    loaded.save(tmp_path / "again.keras")


# ---------------------------------------------------------------- files of version 0.1

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
    assert model.optimizer.iterations == 4  # resumes from there


def test_a_compiled_model_with_a_hub_layer():
    model = kt.load_model(SAVED / "image.keras", safe_mode=False)
    given = np.load(SAVED / "image.npz")
    np.testing.assert_allclose(model.predict(given["x"], verbose=0), given["y"], atol=1e-6)
    assert isinstance(model.loss, kt.losses.MaskedBinaryCrossentropy)
    y = np.array([[1, np.nan], [0, 1]] * 4, "float32")
    assert np.isfinite(model.fit(given["x"], y, verbose=0).history["loss"]).all()
