"""summary: the facts about a backbone, against the SavedModel itself."""

import json
import math
import socket

import keras
import pytest
import tensorflow as tf
from click.testing import CliRunner
from modules import (
    REAL,
    save_arguments_module,
    save_dict_module,
    save_keras_export,
    save_nested_module,
    save_reusable,
    save_text_module,
    shared,
)

import kerasmtl as kt
from kerasmtl.cli import main
from kerasmtl.models.hub.cache import content_sha256
from kerasmtl.models.hub.embedded import extractor_folder
from kerasmtl.models.inspection import summary
from kerasmtl.saved_models.tiny.network import tiny_network

SAVE = {
    "reusable": save_reusable,
    "text": save_text_module,
    "nested": save_nested_module,
    "arguments": save_arguments_module,
    "dict": save_dict_module,
    "keras export": save_keras_export,
}
KINDS = {
    "mobilenet_v1_025_224": "TF2 reusable SavedModel",
    "kws_ref_model": "TF2 reusable SavedModel",
    "fake_effdet_lite0_hub": "TF2 reusable SavedModel",
    "hub_module_v1_mini": "TF1 Hub format",
    "hub_module_v1_mini_train": "TF1 Hub format",
    "keras export": "export of a Keras model",
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something was fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(keras.utils, "get_file", refuse)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("modules")


def folder_of(name, place):
    if name == "tiny":
        return extractor_folder("tiny")
    if name in REAL:
        return shared("models", name)
    folder = place / name.replace(" ", "_")
    return folder if folder.is_dir() else SAVE[name](folder)


def cli(*words):
    done = CliRunner().invoke(main, ["inspect", *words])
    assert done.exit_code == 0, done.output
    return done


def count(variables):
    return sum(math.prod(v.shape) for v in variables)


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in REAL), *SAVE, "tiny"]
)
def test_the_numbers_are_the_modules_own(name, place):
    folder = folder_of(name, place)
    found = summary("tiny" if name == "tiny" else str(folder))
    module = tf.saved_model.load(str(folder))
    trained = list(getattr(module, "trainable_variables", None) or [])
    runs = callable(module) or name == "keras export"
    if runs:
        assert found.trainable_parameters == count(trained)
        listed = list(getattr(module, "variables", None) or [])
        assert found.parameters == count(listed)
        assert found.regularization_losses == len(
            getattr(module, "regularization_losses", None) or []
        )
    assert found.can_be_trained == bool(runs and trained)
    assert (found.why_not is None) == found.can_be_trained
    assert found.signatures == sorted(module.signatures)
    assert found.sha256 == content_sha256(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert found.size == sum(path.stat().st_size for path in files)
    assert found.kind == KINDS.get(name, found.kind)
    if found.can_be_trained:
        assert [group["depth"] for group in found.groups] == list(range(1, len(found.groups) + 1))
        assert sum(group["trainable"] for group in found.groups) == found.trainable_parameters


@pytest.mark.parametrize(
    "name, inputs, outputs",
    [
        ("reusable", {"inputs": "float32 (None, None, None, 3)"}, {"": "float32 (None, 4)"}),
        ("text", {"text": "string (None,)"}, {"": "float32 (None, 4)"}),
        (
            "nested",
            {"inputs": "{'ids': int32 (None, 5), 'weights': float32 (None, 5)}"},
            {
                "['pooled']": "float32 (None, 3)",
                "['steps'][0]": "float32 (None, 3)",
                "['steps'][1]": "float32 (None, 3)",
            },
        ),
        (
            "arguments",
            {"left": "float32 (None, 3)", "right": "float32 (None, 3)"},
            {"": "float32 (None, 3)"},
        ),
    ],
)
def test_inputs_and_outputs_are_those_of_inference(name, inputs, outputs, place):
    found = summary(str(folder_of(name, place)))
    assert found.inputs == inputs
    assert found.outputs == outputs


def test_what_could_be_trained_is_told_whatever_is_trained_now(place):
    folder = folder_of("reusable", place)
    layer = kt.HubLayer(folder)
    kt.unfreeze(layer)
    before = [v.trainable for v in layer.module_variables]
    assert summary(layer).groups == summary(str(folder)).groups
    assert [v.trainable for v in layer.module_variables] == before


def test_an_application_is_described_without_its_weights():
    found = summary("MobileNetV2")
    network = keras.applications.MobileNetV2(include_top=False, weights=None, pooling="avg")
    assert (found.image_size, found.input_range) == ((224, 224), (0.0, 1.0))
    assert found.parameters == network.count_params()
    convolutions = [v for v in network.trainable_variables if "kernel" in v.path]
    norms = [v for v in network.trainable_variables if "kernel" not in v.path]
    assert found.trainable_parameters == count(convolutions) + count(norms)
    assert found.outputs == {"": "float32 (None, 1280)"}
    assert found.folder is None and found.can_be_trained


def test_a_keras_model_is_described_and_left_as_it_is():
    network = tiny_network()
    kt.unfreeze(network, last=2)
    before = [v.path for v in network.trainable_variables]
    found = summary(network)
    assert [v.path for v in network.trainable_variables] == before
    assert found.kind == "Keras model" and found.parameters == network.count_params()
    assert [group["name"] for group in found.groups] == [f"block_{n}_conv" for n in range(1, 9)]
    tiny = summary("tiny")
    assert [g["parameters"] for g in found.groups] == [g["parameters"] for g in tiny.groups]


def test_json_says_what_python_says(place):
    handle = str(folder_of("nested", place))
    printed = json.loads(cli(handle, "--json").stdout)
    assert printed == json.loads(json.dumps(summary(handle).to_dict()))
    assert printed["handle"] == handle


def test_the_table_shows_the_key_facts(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    found = summary("tiny")
    text = " ".join(cli("tiny").stdout.split())
    for part in (
        "TF2 reusable SavedModel",
        found.sha256,
        "float32 (None, None, None, 3)",
        "float32 (None, 192)",
        "0 to 1 (convention of TF-Hub)",
        "128 x 128",
        f"yes, {found.trainable_parameters:,} parameters in 8 groups",
        "block_8/conv",
        "training=True",
    ):
        assert part in text, part
