"""`kerasmtl convert`: the trained model of a project as a file for another runtime."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from pictures import write_picture_folder

import kerasmtl as kt
from kerasmtl.cli.export import convert
from kerasmtl.export.converted_model import ConvertedModel

pytest.importorskip(
    "ai_edge_litert", reason="ai-edge-litert is absent: pip install 'kerasmtl[litert]'"
)
pytest.importorskip("tf2onnx", reason="tf2onnx is absent: pip install 'kerasmtl[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'kerasmtl[onnx]'")

TASKS = ["cat", "dog", "bird"]


@pytest.fixture
def project(tmp_path):
    """A project whose model is built, not trained."""
    keras.utils.set_random_seed(0)
    write_picture_folder(tmp_path)
    (tmp_path / "project.toml").write_text('name = "pets"\n[data]\nlabels = "labels.csv"\n')
    project = kt.Project.load(tmp_path)
    image = keras.Input((24, 24, 3))
    backbone = keras.Model(image, keras.layers.Conv2D(8, 3, 2, activation="relu")(image))
    kept = project.start_run(*project.manifest().split())
    kt.build_model(backbone, TASKS, 24).save(kept.checkpoint)
    return project


def run(folder, *arguments):
    return CliRunner().invoke(convert, [*arguments, "--project", str(folder)])


def test_every_format_has_a_place_of_its_own_and_says_what_was_found(project, tmp_path):
    model = kt.load_model(project.checkpoint)
    images = np.random.default_rng(0).random((3, 24, 24, 3), dtype="float32")
    wanted = model.predict(images, verbose=0)
    for to, name in {
        "litert": "pets-litert.tflite",
        "litert-dynamic": "pets-litert-dynamic.tflite",
        "litert-int8": "pets-litert-int8.tflite",
        "onnx": "pets-onnx.onnx",
    }.items():
        done = run(tmp_path, "--to", to)
        assert done.exit_code == 0, done.output
        file = tmp_path / "converted" / name
        assert str(file) in done.output and "from the model" in done.output
        assert "of decisions the same" in done.output
        got = ConvertedModel(file).predict(images)
        assert list(got) == TASKS
        np.testing.assert_allclose(got["dog"], wanted[:, 1], atol=0.05)


def test_a_file_of_ones_own_samples_and_json(project, tmp_path):
    out, labels = tmp_path / "phone.tflite", tmp_path / "labels.csv"
    arguments = [str(out), "--to", "litert-int8", "--uint8", "--samples", str(labels)]
    done = run(tmp_path, *arguments, "--sample-count", "6", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout[done.stdout.index("{") :])
    assert said["path"] == str(out) and said["bytes"] == out.stat().st_size
    assert said["check"]["rows"] == 2 and said["inputs"]["pixels"]["dtype"] == "uint8"
    again = run(tmp_path, *arguments)
    assert again.exit_code == 1 and "never overwritten" in again.output


def test_without_the_labels_only_int8_is_refused(project, tmp_path):
    (tmp_path / "labels.csv").unlink()
    done = run(tmp_path, "--to", "onnx")
    assert done.exit_code == 0 and "on 4 rows" in done.output
    refused = run(tmp_path, "--to", "litert-int8")
    assert refused.exit_code == 1 and "--samples are missing" in refused.output


def test_an_absent_extra_is_a_plain_line(project, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    done = run(tmp_path, "--to", "onnx")
    assert done.exit_code == 1 and "pip install 'kerasmtl[onnx]'" in done.output
    assert not (tmp_path / "converted").exists() or not list((tmp_path / "converted").iterdir())


def test_help_needs_no_tensorflow():

    code = (
        "import sys; from kerasmtl.cli.export import convert\n"
        "try: convert(['--help'])\n"
        "except SystemExit: assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "litert-int8" in done.stdout
