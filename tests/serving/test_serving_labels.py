"""Labels of versions, from the command line and from TensorFlow Serving's model configuration."""

import shutil

import numpy as np
import pytest
import requests

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from served import b64, mean_of, picture, predict, save_pictures, serving

from kerasmtl.serving.client import predict_tfserving
from kerasmtl.serving.deploy import Deployment, models_config
from kerasmtl.serving.versions import (
    ALL,
    Versions,
    Wanted,
    model_names,
    read_label,
    read_models_config,
)

DATA = picture(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Versions 1, 2 and 3, to be copied."""
    base = tmp_path_factory.mktemp("made") / "street"
    for version in (1, 2, 3):
        save_pictures(base, version, shift=version / 10)
    return base


@pytest.fixture
def base(made, tmp_path):
    return shutil.copytree(made, tmp_path / "street")


@pytest.fixture
def plain(tmp_path):
    """Versions whose loading is left out."""
    base = tmp_path / "plain"
    for version in (1, 2, 3):
        (base / str(version)).mkdir(parents=True)
    return base


class Unloaded(Versions):
    """Versions that are there as soon as their folder is, unless it has a file `broken`."""

    def _loaded(self, version):
        if (self.base / str(version) / "broken").exists():
            raise ValueError("broken")
        return version


def config(path, labels, policy="specific { versions: 1 versions: 2 versions: 3 }", name="street"):
    lines = [f'version_labels {{ key: "{k}" value: {v} }}' for k, v in labels.items()]
    path.write_text(
        f'model_config_list {{ config {{ name: "{name}" base_path: "/models/x" '
        f"model_version_policy {{ {policy} }} {' '.join(lines)} }} }}\n"
    )
    return path


# ---------------------------------------------------------------- over HTTP


def test_a_label_has_the_paths_that_tensorflow_serving_gives_it(base):
    wanted = Wanted(1, {"stable": 1, "canary": 3})
    with serving(base, wanted=lambda: wanted) as running:
        assert running.versions.numbers == [3, 1]
        url = running.url + "/v1/models/street/labels/"
        for label, version in (("stable", 1), ("canary", 3)):
            path = f"/v1/models/street/labels/{label}:predict"
            (one,) = predict(running.url, {"instances": [b64(DATA)]}, path).json()["predictions"]
            np.testing.assert_allclose(one["night"], mean_of(DATA) + version / 10, atol=1e-5)
            (state,) = requests.get(url + label, timeout=60).json()["model_version_status"]
            assert state["version"] == str(version)
            spec = requests.get(url + label + "/metadata", timeout=60).json()["model_spec"]
            assert spec["version"] == str(version)
        (asked,) = predict_tfserving(url + "stable", [DATA])
        np.testing.assert_allclose(asked["night"], mean_of(DATA) + 0.1, atol=1e-5)
        answer = predict(running.url, {"instances": []}, "/v1/models/street/labels/blue:predict")
        assert answer.status_code == 404
        assert "Expected one of ['canary', 'stable']. Received: 'blue'" in answer.json()["error"]
        assert requests.get(url + "stable/versions/1", timeout=60).status_code == 404


def test_what_deploy_writes_is_what_serve_reads(base, tmp_path):
    file = tmp_path / "models.config"
    file.write_text(models_config(Deployment(base, "street", {"stable": 2, "a.b": 1})))
    assert model_names(file) == ["street"]
    assert read_models_config(file, "street") == Wanted(
        0, {"stable": 2, "a.b": 1}, frozenset({1, 2})
    )


def test_the_fields_are_those_of_tensorflow_serving():
    module = pytest.importorskip(
        "tensorflow_serving.config.model_server_config_pb2",
        reason="tensorflow-serving-api is not installed",
    )
    from kerasmtl.serving.versions import _message

    found = _message()()
    config = found.model_config_list.config.add(name="m", version_labels={"a": 7})
    config.model_version_policy.specific.versions.extend([7, 8])
    other = found.model_config_list.config.add(name="n")
    other.model_version_policy.latest.num_versions = 3
    theirs = module.ModelServerConfig.FromString(found.SerializeToString())
    first, second = theirs.model_config_list.config
    assert dict(first.version_labels) == {"a": 7}
    assert list(first.model_version_policy.specific.versions) == [7, 8]
    assert second.model_version_policy.latest.num_versions == 3


# ---------------------------------------------------------------- which versions


@pytest.mark.parametrize(
    "policy, wanted",
    [
        ("", Wanted(1)),
        ("latest { num_versions: 2 }", Wanted(2)),
        ("all { }", Wanted(ALL)),
        ("specific { versions: 2 }", Wanted(0, {}, frozenset({2}))),
    ],
)
def test_policies(tmp_path, plain, policy, wanted):
    found = read_models_config(config(tmp_path / "m.config", {}, policy), "street")
    assert found == wanted
    versions = Unloaded(plain, lambda: found, None)
    versions.load()
    expected = {1: [3], 2: [3, 2], ALL: [3, 2, 1], 0: [2]}[wanted.keep]
    assert versions.numbers == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("model_config_list {", "no ModelServerConfig in protobuf"),
        ("", "names no model"),
        ('model_config_list { config { name: "other" } }', r"lacks the model.*\['other'\]"),
        ("\ufeff{}", "no ModelServerConfig"),
    ],
)
def test_configurations_that_are_none_are_refused(tmp_path, text, message):
    file = tmp_path / "models.config"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_models_config(file, "street")


@pytest.mark.parametrize(
    "text", ["stable", "stable=", "=3", "a b=3", "stable=x", "stable=-1", "s=²"]
)
def test_labels_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="Expected NAME=VERSION"):
        read_label(text)


def test_a_label_of_a_version_that_is_not_there_is_said_at_the_start(plain):
    with pytest.raises(ValueError, match=r"some of \[3\]\. Received: {'stable': 9}"):
        Unloaded(plain, lambda: Wanted(1, {"stable": 9}), None).load()
    (plain / "2" / "broken").touch()
    with pytest.raises(ValueError, match=r"Received: {'stable': 2} \(2: broken\)"):
        Unloaded(plain, lambda: Wanted(1, {"stable": 2}), None).load()


def test_a_label_follows_the_file_and_moves_only_to_what_is_served(tmp_path, plain, caplog):
    file = config(tmp_path / "models.config", {"stable": 1})
    versions = Unloaded(plain, lambda: read_models_config(file, "street"), None)
    versions.load()
    assert versions.labels == {"stable": 1} and versions.numbers == [3, 2, 1]

    def edited(*given):
        config(file, *given)
        for _ in range(3):
            versions.refresh()
        return versions.labels, versions.numbers

    both = "specific { versions: 1 versions: 3 }"
    assert edited({"stable": 3}, both) == ({"stable": 3}, [3, 1])
    assert edited({"stable": 9, "old": 1}, both) == ({"stable": 3, "old": 1}, [3, 1])
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1 and "stay as they were: {'stable': 9}" in errors[0]
    # The version that a label waits to leave is kept though it is wanted no more.
    assert edited({"stable": 9}, "specific { versions: 1 }") == ({"stable": 3}, [3, 1])
    (plain / "9").mkdir()
    assert edited({"stable": 9}, "specific { versions: 1 }") == ({"stable": 9}, [9, 1])
    assert edited({}, "latest { }") == ({}, [9])


def test_a_file_that_is_spoilt_changes_nothing_and_is_said_once(tmp_path, plain, caplog):
    file = config(tmp_path / "models.config", {"stable": 1})
    versions = Unloaded(plain, lambda: read_models_config(file, "street"), None)
    versions.load()
    for spoil in (lambda: file.write_text("model_config_list {"), file.unlink):
        caplog.clear()
        spoil()
        for _ in range(3):
            versions.refresh()
        assert versions.labels == {"stable": 1} and versions.numbers == [3, 2, 1]
        (record,) = caplog.records
        assert "[3, 2, 1] go on being served" in record.getMessage()


def test_an_emptied_folder_stops_neither_versions_nor_labels(plain):
    versions = Unloaded(plain, lambda: Wanted(2, {"stable": 1}), None)
    versions.load()
    shutil.rmtree(plain)
    versions.refresh()
    assert versions.numbers == [3, 2, 1] and versions.labels == {"stable": 1}
