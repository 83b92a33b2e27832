"""Safe mode: the graph in a .keras file runs only if its reader trusts it."""

import shutil

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from modules import save_reusable
from test_module_spec import classifier, edit, edit_layers, forget, hub, images

import kerasmtl as kt
from kerasmtl.cli import main
from kerasmtl.cli.new import new_project
from kerasmtl.models import hub_layer
from kerasmtl.models.hub.cache import content_sha256
from kerasmtl.models.hub.embedded import extractor_folder
from kerasmtl.project import Project

REFUSED = "`safe_mode` is on, and this file runs the graph of a foreign SavedModel"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return save_reusable(tmp_path_factory.mktemp("published") / "module")


@pytest.fixture
def folder(published, tmp_path):
    return shutil.copytree(published, tmp_path / "module")


@pytest.fixture
def file(folder, tmp_path):
    """A saved model whose module is in the file alone."""
    model = classifier(kt.HubLayer(folder, name="spine"))
    model.save(tmp_path / "model.keras")
    shutil.move(folder, tmp_path / "elsewhere")
    forget(folder)
    return tmp_path / "model.keras"


@pytest.mark.parametrize("load", [kt.load_model, keras.models.load_model])
def test_a_foreign_graph_is_refused_and_the_message_says_how_to_trust_it(file, load, tmp_path):
    with pytest.raises(ValueError, match=REFUSED) as error:
        load(file)
    digest = content_sha256(tmp_path / "elsewhere")
    for part in (digest, "safe_mode=False", "trust=", "--trust", str(tmp_path / "module")):
        assert part in str(error.value)
    assert not (tmp_path / "cache").exists()  # nothing was unpacked


def test_a_graph_is_refused_though_its_module_is_in_its_place(folder, tmp_path):
    classifier(kt.HubLayer(folder)).save(tmp_path / "model.keras")
    hub_layer._loaded.clear()  # as in a new process
    with pytest.raises(ValueError, match=REFUSED):
        keras.models.load_model(tmp_path / "model.keras")


def test_a_graph_that_this_process_runs_already_is_not_refused(folder, tmp_path):
    model = classifier(kt.HubLayer(folder))
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        kt.load_model(tmp_path / "model.keras")(images()), model(images())
    )


@pytest.mark.parametrize(
    "how",
    [
        lambda file: kt.load_model(file, safe_mode=False),
        lambda file: keras.models.load_model(file, safe_mode=False),
        lambda file: kt.load_model(file, trust=str(file.parent / "elsewhere")),
        lambda file: kt.load_model(
            file, trust=f"sha256:{content_sha256(file.parent / 'elsewhere').upper()}"
        ),
    ],
    ids=["kt unsafe", "keras unsafe", "folder", "hash"],
)
def test_a_file_is_trusted_knowingly(file, how):
    loaded = how(file)
    again = kt.HubLayer(file.parent / "elsewhere")
    np.testing.assert_array_equal(hub(loaded)(images()), again(images()))
    hub_layer._loaded.clear()
    with pytest.raises(ValueError, match=REFUSED):  # the trust has ended with the call
        kt.load_model(file)


def test_keras_own_switch_is_respected(file):
    keras.config.enable_unsafe_deserialization()
    try:
        assert hub(keras.models.load_model(file)).name == "spine"
    finally:
        from keras.src.backend.common import global_state  # Keras has no way back

        global_state.set_global_attribute("safe_mode_saving", None)
    hub_layer._loaded.clear()
    with pytest.raises(ValueError, match=REFUSED):
        kt.load_model(file)


def test_trust_in_something_else_is_none(file):
    for other in ("sha256:" + "0" * 64, "tiny"):
        with pytest.raises(ValueError, match=REFUSED):
            kt.load_model(file, trust=other)
    with pytest.raises(ValueError, match="`sha256`"):
        kt.load_model(file, trust="sha256:123")
    with pytest.raises(ValueError, match="`handle`"):
        kt.load_model(file, trust="absent")


def test_a_model_nested_in_another_is_cloned(folder):
    image = keras.Input((12, 12, 3))
    nested = keras.Model(image, classifier(kt.HubLayer(folder))(image))
    clone = keras.models.clone_model(nested)
    clone.set_weights(nested.get_weights())
    np.testing.assert_allclose(clone(images()), nested(images()), rtol=1e-6)


@pytest.mark.parametrize("sha256", ["its own", "the embedded one's"])
def test_a_foreign_module_under_the_name_of_the_embedded_one(file, tmp_path, sha256):
    def claim(config):
        config["handle"] = "tiny"
        if sha256 != "its own":
            config["module"]["sha256"] = content_sha256(extractor_folder("tiny"))

    claiming = edit(file, tmp_path / "claiming.keras", edit_layers(claim))
    with pytest.raises(ValueError, match=REFUSED if sha256 == "its own" else None):
        kt.load_model(claiming)(images())


def test_a_layer_without_a_description_is_refused(file, tmp_path):
    bare = edit(file, tmp_path / "bare.keras", edit_layers(lambda config: config.pop("module")))
    with pytest.raises(ValueError, match=REFUSED):
        kt.load_model(bare)


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    "command",
    ["predict", *(pytest.param(c, marks=pytest.mark.slow) for c in ("evaluate", "export"))],
)
def test_commands_run_another_graph_only_with_trust(tmp_path, shared_images, monkeypatch, command):
    monkeypatch.setattr("kerasmtl.export.verify.verify", lambda *args: None)
    backbone = save_reusable(tmp_path / "backbone")
    labels = str(shared_images / "labels.csv")
    made = new_project(
        "multitask-image", tmp_path / "project", {"labels": labels, "backbone": str(backbone)}
    )
    project = Project.load(made)
    kept = project.start_run(*project.manifest().split())
    layer = kt.HubLayer(backbone, input_range=(0, 1))
    kt.build_model(layer, project.manifest().tasks, 12).save(kept.checkpoint)

    def run(*words):
        hub_layer._loaded.clear()
        return CliRunner().invoke(main, [*map(str, words), "--project", str(made)])

    call = {
        "predict": ("predict", shared_images / "01.png", "--json"),
        "evaluate": ("evaluate", "--json"),
        "export": ("export", tmp_path / "out"),
    }[command]
    done = run(*call)
    assert done.exit_code == 0, done.output  # the backbone of the run
    record = kept.folder / "model.json"
    record.write_text(record.read_text().replace(content_sha256(backbone), "0" * 64))
    refused = run(*call)
    assert refused.exit_code == 1 and "holds another backbone" in refused.output
    assert "Train again" in refused.output and "safe_mode" not in refused.output
    trusted = run(*call, "--trust")
    assert trusted.exit_code == 0, trusted.output
