"""Safe mode: the graph in a .keras file runs only if its reader trusts it."""

import json
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


@pytest.fixture
def folder(tmp_path):
    return save_reusable(tmp_path / "module")


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
        lambda file: kt.load_model(file, trust=[str(file.parent / "elsewhere"), "tiny"]),
        lambda file: kt.load_model(
            file, trust=f"sha256:{content_sha256(file.parent / 'elsewhere').upper()}"
        ),
    ],
    ids=["kt unsafe", "keras unsafe", "folder", "folders", "hash"],
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


def test_trust_ends_after_a_failure(file, tmp_path):
    trusted = f"sha256:{content_sha256(tmp_path / 'elsewhere')}"
    (tmp_path / "broken.keras").write_bytes(b"no archive")
    with pytest.raises(ValueError):
        kt.load_model(tmp_path / "broken.keras", trust=trusted)
    with pytest.raises(ValueError, match=REFUSED):
        kt.load_model(file)


def test_outside_of_loading_nothing_is_refused(folder):
    model = classifier(kt.HubLayer(folder, name="spine"))
    clone = keras.models.clone_model(model)
    hub_layer._loaded.clear()
    keras.models.clone_model(model)
    again = kt.HubLayer.from_config(hub(model).get_config())
    np.testing.assert_array_equal(hub(clone)(images()), again(images()))


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


@pytest.fixture(scope="module")
def projects(tmp_path_factory, shared_pictures):
    """A project on its own backbone; the trained model's file holds that, or another one."""
    place = tmp_path_factory.mktemp("projects")
    backbone = save_reusable(place / "backbone")
    labels = str(shared_pictures / "labels.csv")
    made = new_project(
        "multitask-image", place / "project", {"labels": labels, "backbone": str(backbone)}
    )
    project = Project.load(made)
    model = kt.build_model(str(backbone), project.manifest().tasks, 12)
    project.checkpoint.parent.mkdir(parents=True)
    model.save(project.checkpoint)
    return made, backbone, shared_pictures / "01.png"


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


COMMANDS = ["evaluate", "predict"]


def words(command, made, picture, tmp_path):
    last = {"predict": [picture, "--json"], "export": [tmp_path / "out"], "evaluate": ["--json"]}
    return [command, *last[command], "--project", made]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.slow
def test_a_projects_own_backbone_is_trusted(projects, command, tmp_path):
    made, _, picture = projects
    done = run(*words(command, made, picture, tmp_path))
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.slow
def test_another_graph_runs_only_with_trust(projects, command, tmp_path):
    made, backbone, picture = projects
    shutil.copytree(made, tmp_path / "project")
    settings = tmp_path / "project" / "project.toml"
    settings.write_text(settings.read_text().replace('"../backbone"', '"tiny"'))
    call = words(command, tmp_path / "project", picture, tmp_path)
    hub_layer._loaded.clear()
    refused = run(*call)
    assert refused.exit_code == 1 and "holds another backbone" in refused.output
    assert "train again" in refused.output and "safe_mode" not in refused.output
    trusted = run(*call, "--trust")
    assert trusted.exit_code == 0, trusted.output
    if command == "predict":
        (row,) = json.loads(trusted.stdout)
        assert set(row["probabilities"]) == {"cat", "dog", "bird"}
