"""From labels.csv to a served model, the way a user goes it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from modules import shared

from kerasmtl.cli import main

BIN = Path(sys.executable).parent


def call(*words, cwd):
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def kerasmtl(*words, cwd):
    with contextlib.chdir(cwd):
        done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A project on real photographs with a real backbone, trained."""
    csv = shared("data", "street_photos", "labels.csv")
    backbone = shared("models", "mobilenet_v1_025_224")
    base = tmp_path_factory.mktemp("work")
    kerasmtl(
        *("new", "multitask-image", "photos", "--labels", csv, "--backbone", backbone), cwd=base
    )
    output = call(sys.executable, "train.py", cwd=base / "photos")
    assert "SavedModel:" in output and "Plan 'head'" in output
    return base / "photos", csv.parent


@pytest.mark.slow
def test_real_photographs_reach_their_score(photos):
    project, _ = photos
    evaluated = subprocess.run(
        [sys.executable, "-m", "kerasmtl", "evaluate", "--json"],
        cwd=project,
        env={key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"},
        capture_output=True,
        text=True,
    )
    assert evaluated.stderr == ""
    report = json.loads(evaluated.stdout)
    assert report["rows"] == 46
    assert report["macro_auc"] >= 0.83
    assert set(report["tasks"]) == {"vehicle", "traffic_sign", "pedestrian", "cyclist"}
    assert all(scores["known"] == 46 for scores in report["tasks"].values())
    aucs = [scores["auc"] for scores in report["tasks"].values()]
    np.testing.assert_allclose(report["macro_auc"], np.mean(aucs), atol=1e-12)


def test_command_model_and_export_agree_on_every_kind_of_picture(photos):
    project, data = photos
    pictures = sorted((data / "images").glob("test_*"))
    assert {p.suffix for p in pictures} == {".png", ".jpg", ".jpeg"}
    trained = json.loads(kerasmtl("predict", "--json", *pictures, cwd=project))
    served = tf.saved_model.load(str(project / "saved_models" / "photos" / "1"))
    outputs = served.signatures["serving_default"](
        image_bytes=tf.constant([path.read_bytes() for path in pictures])
    )
    for name in trained[0]["probabilities"]:
        expected = [row["probabilities"][name] for row in trained]
        np.testing.assert_allclose(outputs[name], expected, atol=1e-5)


def test_predict_prints_a_table_from_model_or_export(photos):
    project, data = photos
    picture = data / "images" / "test_1.png"
    table = kerasmtl("predict", picture, cwd=project)
    assert "vehicle" in table and "0." in table
    from_export = kerasmtl(
        *("predict", "--json", "--model", "saved_models/photos/1", picture), cwd=project
    )
    from_model = kerasmtl("predict", "--json", picture, cwd=project)
    a, b = (json.loads(text)[0]["probabilities"] for text in (from_export, from_model))
    assert a == pytest.approx(b, abs=1e-5)


def test_export_counts_on(photos):
    project, _ = photos
    before = {p.name for p in (project / "saved_models" / "photos").iterdir()}
    printed = kerasmtl("export", cwd=project).strip()
    assert Path(printed).name == str(max(int(name) for name in before) + 1)


def test_predict_lists_every_unreadable_picture(photos, tmp_path):
    project, data = photos
    (tmp_path / "empty.jpg").write_bytes(b"")
    done = subprocess.run(
        [BIN / "kerasmtl", "predict", "no.jpg", tmp_path / "empty.jpg"],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no.jpg: absent" in done.stderr and "empty.jpg: empty" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_picture_names_its_line_in_training(tmp_path):
    csv = shared("data", "street_photos", "labels.csv")
    (tmp_path / "images").mkdir()
    lines = csv.read_text().splitlines()[:90]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    for line in lines[1:]:
        name = line.split(",")[0]
        (tmp_path / name).write_bytes((csv.parent / name).read_bytes())
    kerasmtl("new", "multitask-image", "p", "--labels", "labels.csv", cwd=tmp_path)
    broken = tmp_path / lines[7].split(",")[0]
    broken.write_bytes(broken.read_bytes()[:5000])
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path / "p", capture_output=True, text=True
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert f"line 8: picture {lines[7].split(',')[0]!r} is truncated" in said


def test_ctrl_c_leaves_the_last_finished_epoch_usable(tmp_path):
    kerasmtl("new", "multitask-image", "p", "--no-input", cwd=tmp_path)
    project = tmp_path / "p"
    with subprocess.Popen(
        [sys.executable, "-u", "train.py"],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as training:
        for line in training.stdout:
            if line.startswith("Epoch 3/"):
                training.send_signal(signal.SIGINT)
                break
        _, errors = training.communicate(timeout=120)
    assert training.returncode == 1
    assert "Stopped. `python train.py` resumes" in errors and "Traceback" not in errors
    (kept,) = [path for path in (project / "runs").iterdir() if not path.is_symlink()]
    files = {path.name for path in kept.iterdir()}
    assert {"model.keras", "model.json", "state", "history.csv", "train.log"} <= files
    report = json.loads(kerasmtl("evaluate", "--json", cwd=project))
    assert report["macro_auc"] > 0.5
    text = (project / "project.toml").read_text()
    (project / "project.toml").write_text(
        text.replace("epochs = 20", "epochs = 1").replace('plan = "auto"', 'plan = "head"')
    )
    said = call(sys.executable, "train.py", cwd=project)
    assert "project.toml changed since" in said and "New run: " in said
    assert len([path for path in (project / "runs").iterdir() if not path.is_symlink()]) == 2
