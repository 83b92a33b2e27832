"""From labels.csv to a served model, the way a user goes it."""

import contextlib
import json
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from modules import shared

from kerasmtl.cli import main

pytestmark = pytest.mark.slow  # each test trains in processes of its own


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


def test_a_broken_image_names_its_line_in_training(tmp_path):
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
    assert f"line 8: {lines[7].split(',')[0]} is truncated" in said


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
