"""`kerasmtl deploy`: each file parsed by what its server parses it with, or by a strict model."""

import os
import shutil
import subprocess
from typing import Literal

import pytest
import yaml
from click.testing import CliRunner
from google.protobuf import text_format
from pydantic import BaseModel, ConfigDict, Field
from servers import serving

from kerasmtl.cli.serve import deploy
from kerasmtl.serving.deploy import Deployment, write_deployment


@pytest.fixture
def base(tmp_path):
    """Three versions that look whole, and a folder that is not one."""
    folder = tmp_path / "saved models" / "street"
    for version in (1, 3, 12):
        (folder / str(version) / "variables").mkdir(parents=True)
        (folder / str(version) / "saved_model.pb").touch()
        (folder / str(version) / "variables" / "variables.index").touch()
    (folder / ".export-x").mkdir()
    return folder


def run(*words):
    return CliRunner().invoke(deploy, [str(word) for word in words])


def config(text):
    module = pytest.importorskip(
        "tensorflow_serving.config.model_server_config_pb2",
        reason="tensorflow-serving-api is not installed",
    )
    (found,) = text_format.Parse(text, module.ModelServerConfig()).model_config_list.config
    return found


# ---------------------------------------------------------------- TensorFlow Serving


@pytest.mark.parametrize(
    ("labels", "expected"),
    [({"stable": 3, "canary": 12}, None), ({}, {"stable": 12}), ({"a": 3, "b.c": 3}, None)],
)
def test_models_config_lists_versions_and_labels(base, tmp_path, labels, expected):
    out = write_deployment(Deployment(base, "street", labels), "tfserving", tmp_path / "d")
    found = config((out / "config" / "models.config").read_text())
    assert (found.name, found.base_path) == ("street", "/models/street")
    assert found.model_platform == "tensorflow"
    assert dict(found.version_labels) == (expected or labels)
    versions = sorted({*(expected or labels).values()})
    assert list(found.model_version_policy.specific.versions) == versions


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Mount(Strict):
    type: Literal["bind"]
    source: str = Field(pattern=r"^\.\.?/")  # else Compose takes it for a volume's name
    target: str = Field(pattern="^/")
    read_only: Literal[True]
    bind: dict[Literal["create_host_path"], Literal[False]]


class Health(Strict):
    test: list[str]
    interval: str = Field(pattern=r"^\d+s$")
    timeout: str = Field(pattern=r"^\d+s$")
    start_period: str = Field(pattern=r"^\d+s$")


class Service(Strict):
    image: str = Field(pattern=r"^tensorflow/serving:[\w.-]+$")
    platform: str
    entrypoint: list[str]
    command: list[str]
    ports: list[str]
    volumes: list[Mount]
    healthcheck: Health
    restart: Literal["unless-stopped"]


def read_compose(folder):
    text = (folder / "compose.yaml").read_text()
    ((name, service),) = yaml.safe_load(text).pop("services").items()
    assert name == "tfserving"
    return Service.model_validate(service)


def test_compose_mounts_what_the_flags_name(base, tmp_path):
    out = write_deployment(
        Deployment(base, "street", tag="2.19.1", port=80, grpc_port=81), "tfserving", tmp_path / "d"
    )
    service = read_compose(out)
    assert service.image == "tensorflow/serving:2.19.1"
    assert service.ports == ["127.0.0.1:80:8501", "127.0.0.1:81:8500"]
    models, files = service.volumes
    assert (out / models.source).resolve() == base and models.target == "/models/street"
    flags = dict(flag.removeprefix("--").partition("=")[::2] for flag in service.command)
    assert flags["allow_version_labels_for_unavailable_models"] == "true"
    assert "enable_batching" in flags
    for name in ("model_config_file", "monitoring_config_file", "batching_parameters_file"):
        file = flags[name].removeprefix(files.target + "/")
        assert (out / files.source / file).is_file()
    assert config((out / "config" / "models.config").read_text()).base_path == models.target


def test_without_batching_there_is_no_trace_of_it(base, tmp_path):
    out = write_deployment(Deployment(base, "street", batch_size=1), "tfserving", tmp_path / "d")
    assert not any("batching" in flag for flag in read_compose(out).command)
    assert sorted(os.listdir(out / "config")) == ["models.config", "monitoring.config"]
    assert "batching" not in (out / "README.md").read_text()


def test_a_dollar_in_a_path_is_not_a_variable(base, tmp_path):
    other = shutil.copytree(base, tmp_path / "a$b" / "street")
    out = write_deployment(Deployment(other, "street"), "tfserving", tmp_path / "d")
    assert read_compose(out).volumes[0].source == "../a$$b/street"


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize("state, code", [(b"AVAILABLE", 0), (b"LOADING", 1)])
def test_the_health_check_waits_for_the_model(base, tmp_path, state, code):
    out = write_deployment(Deployment(base, "street"), "tfserving", tmp_path / "d")
    kind, *words = read_compose(out).healthcheck.test
    with serving({"/v1/models/street": (200, {}, b'{"state": "' + state + b'"}')}) as server:
        port = server.url.rpartition(":")[2]
        words = [word.replace("8501", port) for word in words]
        assert kind == "CMD" and subprocess.run(words, timeout=20).returncode == code
        assert server.seen[0][:2] == ("GET", "/v1/models/street")
    assert subprocess.run(words, timeout=20, capture_output=True).returncode == 1


# ---------------------------------------------------------------- KServe


class Model(Strict):
    modelFormat: dict[Literal["name", "version"], str]
    protocolVersion: Literal["v1", "grpc-v1"]  # all that kserve-tensorflow-serving has
    runtimeVersion: str
    storageUri: str = Field(pattern="^(gs|s3|pvc|https?)://")
    resources: dict[Literal["requests", "limits"], dict[Literal["cpu", "memory"], str]]


class Predictor(Strict):
    minReplicas: int
    timeout: int
    model: Model


class InferenceService(Strict):
    """serving.kserve.io/v1beta1, the fields that are used."""

    apiVersion: Literal["serving.kserve.io/v1beta1"]
    kind: Literal["InferenceService"]
    metadata: dict[Literal["name"], str]
    spec: dict[Literal["predictor"], Predictor]


def test_the_inference_service_is_one(base, tmp_path):
    out = write_deployment(
        Deployment(base, "street", storage_uri="gs://bucket/street"), "kserve", tmp_path / "k"
    )
    found = InferenceService.model_validate(
        yaml.safe_load((out / "inferenceservice.yaml").read_text())
    )
    assert found.metadata["name"] == "street"
    model = found.spec["predictor"].model
    assert model.modelFormat["name"] == "tensorflow"
    assert model.storageUri == "gs://bucket/street"
    readme = (out / "README.md").read_text()
    assert "gs://bucket/street" in readme and "/v1/models/street" in readme


@pytest.mark.parametrize("name", ["Street", "street_1", "1street", "s" * 64, "street-"])
def test_names_that_kubernetes_refuses_are_refused(base, tmp_path, name):
    with pytest.raises(ValueError, match="`name`"):
        write_deployment(Deployment(base, name), "kserve", tmp_path / "k")
    assert not (tmp_path / "k").exists()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "a b"}, "`name`"),
        ({"labels": {"stable": 2}}, r"`labels`.*\[12, 3, 1\].*stable=2"),
        ({"labels": {'a"b': 3}}, "`labels`"),
        ({"tag": "2.19 --privileged"}, "`tag`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"storage_uri": "bucket/street"}, "`storage_uri`"),
    ],
)
def test_wrong_options_are_refused(base, options, message):
    with pytest.raises(ValueError, match=message):
        Deployment(base, **{"name": "street", **options})


def test_folders_without_whole_versions_are_refused(base, tmp_path):
    with pytest.raises(ValueError, match="`base`.*kerasmtl export"):
        Deployment(tmp_path, "street")
    with pytest.raises(ValueError, match="`base`.*the folder above"):
        Deployment(base / "3", "street")
    (base / "12" / "saved_model.pb").unlink()
    with pytest.raises(ValueError, match="stable=12: saved_model.pb"):
        Deployment(base, "street")
    assert Deployment(base, "street", {"stable": 3}).labels == {"stable": 3}


def test_nothing_is_overwritten(base, tmp_path):
    out = tmp_path / "d"
    out.mkdir()
    write_deployment(Deployment(base, "street"), "tfserving", out)  # an empty folder will do
    (out / "README.md").write_text("mine")
    for target in ("tfserving", "kserve"):
        with pytest.raises(FileExistsError, match="`out`"):
            write_deployment(Deployment(base, "street"), target, out)
    assert (out / "README.md").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["d", "saved models"]


# ---------------------------------------------------------------- the command


def test_the_command_writes_either(base, tmp_path):
    words = ("--label", "stable=3", "--label", "canary=12", "--port", 9000, "--batch-size", 8)
    result = run(base, "--for", "tfserving", "--out", tmp_path / "d", *words)
    assert result.exit_code == 0, result.output
    assert "README.md" in result.output
    assert read_compose(tmp_path / "d").ports[0] == "127.0.0.1:9000:8501"
    assert "max_batch_size { value: 8 }" in (tmp_path / "d/config/batching.config").read_text()
    readme = (tmp_path / "d" / "README.md").read_text()
    assert "http://127.0.0.1:9000/v1/models/street/labels/canary" in readme
    other = shutil.copytree(base, tmp_path / "My_Street 2")
    result = run(other, "--for", "kserve", "--out", tmp_path / "k")
    assert result.exit_code == 0, result.output
    assert "name: my-street-2" in (tmp_path / "k" / "inferenceservice.yaml").read_text()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--for", "tfserving", "--label", "stable"], "must be NAME=VERSION"),
        (["--for", "tfserving", "--storage-uri", "gs://a"], "--storage-uri cannot be used"),
        (["--for", "kserve", "--label", "a=3", "--port", "9"], "--label, --port cannot be used"),
    ],
)
def test_the_command_refuses_what_it_would_not_read(base, tmp_path, words, message):
    result = run(base, "--out", tmp_path / "d", *words)
    assert result.exit_code == 1 and message in result.output
    assert not (tmp_path / "d").exists()


def test_without_a_folder_it_is_the_project_s(tmp_path):
    result = run("--for", "tfserving", "--out", tmp_path / "d", "--project", tmp_path)
    assert result.exit_code == 1 and "must have a project.toml" in result.output
