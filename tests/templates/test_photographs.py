"""Real photographs of every size, shape and format, through every command of the README's table."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from click.testing import CliRunner
from photographs import COUNT, SKIES, write_photographs

import kerasmtl as kt
from kerasmtl.cli import main
from kerasmtl.data.images import prepare_images

TASKS = {
    "binary": ["bright", "wide"],
    "multiclass": ["sky:multiclass"],
    "regression": ["light:regression"],
}
SHORT = (("epochs = 20", "epochs = 2"), ("batch_size = 32", "batch_size = 8"))


def kerasmtl(*words, code=0):
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def run(*words, cwd):
    """A process of its own; what it wrote on stderr has to be nothing."""
    quiet = {key: value for key, value in os.environ.items() if not key.startswith("TF_CPP")}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, env=quiet
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=pytest.mark.slow) for kind in TASKS],
)
def project(request, photographs, tmp_path_factory):
    """A project of one kind of task, trained by its own train.py."""
    kind, folder = request.param, tmp_path_factory.mktemp("projects") / request.param
    words = [word for task in TASKS[kind] for word in ("--task", task)]
    kerasmtl(
        "new", "multitask-image", folder, "--labels", photographs, "--backbone", "tiny", *words
    )
    settings = (folder / "project.toml").read_text()
    for old, new in SHORT:
        settings = settings.replace(old, new)
    if kind == "binary":  # the others end with the head, which few labels allow
        settings = settings.replace('plan = "auto"', 'plan = "gradual"')
    (folder / "project.toml").write_text(settings)
    said = run("train.py", cwd=folder)
    assert "SavedModel:" in said and "loss of " in said and "Note: tiny was trained" in said
    epochs = [line.split()[1] for line in said.splitlines() if line.startswith("Epoch ")]
    assert bool(epochs) == ("Best epoch:" in said) == ("Fine-tuning is" in said)
    assert bool(epochs) == (kind == "binary") and len(set(epochs)) == len(epochs)
    return kind, folder


@pytest.mark.slow
def test_training_and_serving_prepare_every_image_alike(photographs):
    manifest = kt.Manifest.from_csv(photographs, tasks=["bright"])
    assert manifest.faults() == []
    for size in ((64, 64), (224, 160)):
        trained = np.concatenate([x for x, _ in kt.make_dataset(manifest, size, 8)])
        data = tf.constant(
            [Path(path).read_bytes() for path in manifest.input.paths(manifest.values)]
        )
        served = prepare_images(data, size).numpy()
        assert trained.min() >= 0 and trained.max() <= 1
        np.testing.assert_array_equal(trained, served)


def test_a_run_keeps_its_log_history_and_scores(project):
    kind, folder = project
    latest = folder / "runs" / "latest"
    assert json.loads((latest / "scores.json").read_text())["rows"] > 0
    heads = json.loads((latest / "heads.json").read_text())
    assert heads["validation"] == ("unseen" if kind == "binary" else "learned")
    if kind != "binary":
        return
    with open(latest / "history.csv", newline="") as lines:
        epochs = [int(row["epoch"]) for row in csv.DictReader(lines)]
    assert epochs == list(range(1, len(epochs) + 1)) and len(epochs) >= 2
    assert "Stage 1 of" in (latest / "train.log").read_text()


def test_check_finds_the_project_in_order(project):
    _, folder = project
    found = json.loads(kerasmtl("check", "--project", folder, "--json"))
    assert found["rows"] == COUNT and not found["faults"]


@pytest.mark.slow
@pytest.mark.parametrize("project", ["binary"], indirect=True)
def test_evaluate_writes_nothing_but_its_scores(project):
    kind, folder = project
    found = json.loads(run("-m", "kerasmtl", "evaluate", "--json", cwd=folder))
    names = [task.split(":")[0] for task in TASKS[kind]]
    assert list(found["tasks"]) == names and found["rows"] > 0
    kept = json.loads((folder / "runs" / "latest" / "scores.json").read_text())
    assert kept["tasks"] == found["tasks"]
    table = kerasmtl("evaluate", "--bootstrap", 20, "--project", folder)
    assert names[0] in table


def test_predict_export_and_evaluate_agree(project, photographs, tmp_path):
    kind, folder = project
    files = sorted((photographs.parent / "images").iterdir())
    export = kerasmtl("export", tmp_path / "out", "--project", folder).strip().splitlines()[-1]
    trained = json.loads(kerasmtl("predict", *files, "--json", "--project", folder))
    served = json.loads(kerasmtl("predict", *files, "--json", "--model", export))
    assert len(trained) == len(served) == COUNT
    for a, b in zip(trained, served, strict=True):
        assert a["decisions"] == b["decisions"]
        for name, value in a["probabilities"].items():
            assert b["probabilities"][name] == pytest.approx(value, rel=1e-4, abs=1e-4)
        if kind == "multiclass":
            assert set(a["probabilities"]["sky"]) == set(SKIES)
    kerasmtl("predict", files[0].parent, "--out", tmp_path / "all.csv", "--project", folder)
    written = pd.read_csv(tmp_path / "all.csv")
    assert len(written) == COUNT
    if kind != "multiclass":
        name = TASKS[kind][0].split(":")[0]
        expected = [row["probabilities"][name] for row in trained]
        np.testing.assert_allclose(written[name], expected, rtol=1e-4, atol=1e-4)
    assert ".jpg" in kerasmtl("predict", *files[:2], "--project", folder)
    scores = json.loads(kerasmtl("evaluate", "--model", export, "--json", "--project", folder))
    own = json.loads(kerasmtl("evaluate", "--json", "--project", folder))
    for name, found in own["tasks"].items():
        for score, value in found.items():
            if not isinstance(value, str):
                other = scores["tasks"][name][score]
                assert other == pytest.approx(value, rel=1e-3, abs=1e-3), score


def test_the_server_and_its_client_say_the_same(project, photographs):
    pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    from served import serving

    kind, folder = project
    files = sorted((photographs.parent / "images").iterdir())
    rows = json.loads(kerasmtl("predict", *files, "--json", "--project", folder))
    with serving(folder / "saved_models" / kind, kind) as running:
        url = f"{running.url}/v1/models/{kind}"
        answers = json.loads(kerasmtl("client", url, *files, "--json"))
        table = kerasmtl("client", url, *files[:3])
    assert files[0].name in table.replace("\n", "")
    for row, answer in zip(rows, answers, strict=True):
        for name, value in row["probabilities"].items():
            value = list(value.values()) if kind == "multiclass" else value
            assert answer["outputs"][name] == pytest.approx(value, rel=1e-4, abs=1e-4)
        for name, decided in row["decisions"].items():
            assert answer["outputs"][f"{name}_decision"] == decided


@pytest.mark.parametrize("to, package", [("litert", "ai_edge_litert"), ("onnx", "tf2onnx")])
def test_convert_takes_photographs_as_samples(project, to, package):
    pytest.importorskip(package, reason=f"{package} is absent: pip install 'kerasmtl[{to}]'")
    _, folder = project
    found = json.loads(kerasmtl("convert", "--to", to, "--project", folder, "--json"))
    assert Path(found["path"]).is_file() and found["check"]["rows"] > 10


def test_cache_inspect_vendor_and_deploy(project, tmp_path):
    kind, folder = project
    assert kerasmtl("cache")
    assert "128" in kerasmtl("inspect", "tiny")
    kerasmtl("vendor", "tiny", tmp_path / "module")
    assert (tmp_path / "module" / "SHA256SUMS").is_file()
    for server in ("tfserving", "kserve"):
        kerasmtl("deploy", "--for", server, "--out", tmp_path / server, "--project", folder)
        assert (tmp_path / server / "README.md").is_file()
    assert "multitask-image" in kerasmtl("templates")


@pytest.mark.slow
@pytest.mark.parametrize("project", ["multiclass"], indirect=True)
def test_the_projects_own_tests_pass(project):
    _, folder = project
    assert "4 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder)
