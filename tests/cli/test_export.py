"""`kerasmtl export` and `kerasmtl convert` in a project."""

import hashlib
import json
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import kerasmtl as kt
from kerasmtl.cli import main
from kerasmtl.cli.export import convert
from kerasmtl.evaluation.calibration import Decision

SPLIT = ["train"] * 60 + ["val"] * 40 + ["test"] * 10


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project of a table with a keyword of Python, a name with a dot, and missing labels."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    rows = len(SPLIT)
    frame = pd.DataFrame({"class": rng.normal(size=rows), "x": rng.normal(size=rows)})
    frame["is.wet"] = rng.integers(0, 2, rows)
    frame["leak"] = np.where(np.arange(rows) % 3, rng.integers(0, 2, rows), -1)
    frame["split"] = SPLIT
    frame.to_csv(folder / "t.csv", index=False)
    options = ["--task", "is.wet", "--task", "leak:missing=-1", "--labels", folder / "t.csv"]
    result = run("new", "multitask-tabular", folder / "p", *options, "--no-input")
    assert result.exit_code == 0, result.output
    project = kt.Project.load(folder / "p")
    train, val, test = project.manifest().split()
    kept = project.start_run(train, val, test)
    keras.utils.set_random_seed(0)
    kt.save_model(kt.build_model(kt.backbones.mlp(2, [3]), train.tasks), kept.checkpoint)
    return folder


@pytest.fixture
def export(trained, tmp_path, monkeypatch):
    """Without the verification, which takes a process."""
    monkeypatch.setattr("kerasmtl.export.verify.verify", lambda *args: None)
    return lambda *options: run("export", tmp_path / "m", "--project", trained / "p", *options)


def described(folder):
    return kt.export.read_description(folder)


def test_all_options_together(export, trained, tmp_path):
    labels = trained / "t.csv"
    before = labels.read_bytes()
    try:  # the hash stays that of the training, whatever becomes of the file
        labels.write_bytes(before + b"1,2,1,0,val\n")
        options = ["--thresholds", "recall=0.9", "--calibrate", "--licence", "CC-BY-4.0"]
        result = export(*options, "--require", "is.wet.auc=0.1", "--require", "macro_brier=0.9")
    finally:
        labels.write_bytes(before)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == str(tmp_path / "m" / "1")
    about = described(tmp_path / "m" / "1")
    digest = hashlib.sha256(before).hexdigest()
    assert {"sha256": digest, "rows": 60, "source": "t.csv"}.items() <= about["data"].items()
    assert (about["name"], about["licence"]) == ("p", "CC-BY-4.0")
    assert "column_class" in about["signatures"]["columns"]["inputs"]
    for task in about["tasks"]:
        assert task["decision"]["rule"] == "recall>=0.9" and task["decision"]["recall"] >= 0.9
    card = (tmp_path / "m" / "1" / "assets.extra" / "MODEL_CARD.md").read_text()
    assert digest in card and "Rows trained on: 60" in card


def test_a_head_that_learned_from_validation_rows_is_judged_out_of_fold(tmp_path, monkeypatch):
    monkeypatch.setattr("kerasmtl.export.verify.verify", lambda *args: None)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=120), "y": rng.normal(size=120)})
    frame["leak"] = np.where(rng.random(120) < 0.2, "?", rng.integers(0, 2, 120))  # noise
    frame["wet"] = (frame["x"] + rng.normal(size=120) > 0).astype(int)
    frame["split"] = ["train"] * 80 + ["val"] * 30 + ["test"] * 10
    frame.to_csv(tmp_path / "t.csv", index=False)
    options = ["--task", "leak", "--task", "wet", "--labels", tmp_path / "t.csv"]
    assert run("new", "multitask-tabular", tmp_path / "p", *options, "--no-input").exit_code == 0
    project = kt.Project.load(tmp_path / "p")
    train, val, test = project.manifest().split()
    kept = project.start_run(train, val, test)
    model = kt.build_model(kt.backbones.columns(train.values), train.tasks, labels=train.labels)
    head = project.fit_head(model, train, val, kept)
    model = head.attach(model)
    kt.save_model(model, kept.checkpoint)
    project.finish(kept, model, test, None, head)

    def export(*options):
        return run("export", tmp_path / "m", "--project", tmp_path / "p", *options)

    for required in (head.scores()["leak"] + 0.01, 0.99):
        assert export("--require", f"leak.auc={required}").exit_code == 1
    (tmp_path / "t.csv").unlink()  # not needed: what the folds said is kept in the run
    required = ["--require", f"leak.auc={head.scores()['leak'] - 1e-6}"]
    result = export(*required, "--thresholds", "recall=0.9", "--calibrate")
    assert result.exit_code == 0, result.output
    about = described(tmp_path / "m" / "1")
    assert about["metrics"]["of"] == "folds"
    for task in about["tasks"]:
        y, p = head.cells()[task["name"]]
        (fitted,) = kt.calibration.fit_temperatures(y, p)
        assert task["temperature"] == fitted.value
    assert "models of its folds" in next((tmp_path / "m").rglob("MODEL_CARD.md")).read_text()


def test_a_task_may_have_a_rule_of_its_own(export, tmp_path):
    result = export("--thresholds", "leak:recall=0.8", "--thresholds", "0.25")
    assert result.exit_code == 0, result.output
    wet, leak = described(tmp_path / "m" / "1")["tasks"]
    assert (wet["threshold"], leak["decision"]["rule"]) == (0.25, "recall>=0.8")
    assert export("--thresholds", "is.wet:0.1").exit_code == 0
    wet, leak = described(tmp_path / "m" / "2")["tasks"]
    assert (wet["threshold"], leak["decision"]["rule"]) == (0.1, "f1")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--require", "macro_auc=0.99999"], "macro_auc at least"),
        (["--require", "macro_auc"], "SCORE=NUMBER"),
        (["--require", "macro_auc=nan"], "macro_auc"),
        (["--require", "car.auc=0.5"], "['is.wet', 'leak']"),
        (["--require", "leak.acc=0.5"], "leak.auc, leak.average"),
        (["--thresholds", "best"], "a number from 0 to 1"),
        (["--thresholds", "precision=90"], "a number from 0 to 1"),
        (["--thresholds", "car:f1"], "'car'"),
        (["--thresholds", "leak:best"], "a number from 0 to 1"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(export, tmp_path, options, said):
    result = export(*options)
    assert result.exit_code in (1, 2) and "Traceback" not in result.output
    assert said in " ".join(result.output.split())
    assert not (tmp_path / "m").exists()


def test_every_format_has_a_file_of_its_own_and_the_decisions_of_a_version(trained, tmp_path):
    for extra in ("ai_edge_litert", "tf2onnx", "onnxruntime"):
        pytest.importorskip(extra, reason=f"{extra} is absent: pip install 'kerasmtl[litert,onnx]'")
    project = kt.Project.load(trained / "p")
    model = kt.load_model(project.checkpoint)
    rows = np.random.default_rng(0).normal(size=(3, 2)).astype("float32")
    wanted = model.predict(rows, verbose=0)
    for to, suffix in (("litert", "tflite"), ("litert-dynamic", "tflite"), ("onnx", "onnx")):
        done = run("convert", "--to", to, "--project", trained / "p")
        assert done.exit_code == 0, done.output
        file = trained / "p" / "converted" / f"p-{to}.{suffix}"
        assert str(file) in done.output and "from the model" in done.output
        assert "of decisions the same" in done.output and "on 20 rows" in done.output
        found = kt.export.ConvertedModel(file).predict(rows)
        assert list(found) == ["is.wet", "leak"]
        np.testing.assert_allclose(found["leak"], wanted[:, 1], atol=0.05)
    version = kt.export_saved_model(
        model,
        tmp_path / "m",
        project.trained().tasks,
        project.trained().input,
        decisions={"leak": Decision(0.3, 2.0), "is.wet": Decision(0.4, 1.0)},
        verify=False,
    )
    out = tmp_path / "phone.onnx"
    words = [out, "--to", "onnx", "--project", trained / "p", "--decisions", version]
    done = run("convert", *words, "--sample-count", "6", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout[done.stdout.index("{") :])
    assert said["path"] == str(out) and said["bytes"] == out.stat().st_size
    assert said["check"]["rows"] == 2
    assert [(task["threshold"], task["temperature"]) for task in said["tasks"]] == [
        (0.4, 1.0),
        (0.3, 2.0),
    ]
    again = run("convert", *words)
    assert again.exit_code == 1 and "exists" in again.output


def test_an_absent_extra_and_an_unknown_version_are_plain_lines(trained, tmp_path, monkeypatch):
    words = ["convert", tmp_path / "m.onnx", "--to", "onnx", "--project", trained / "p"]
    done = run(*words, "--decisions", tmp_path / "none")
    assert done.exit_code == 1 and "does not exist" in done.output
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = run(*words)
    assert done.exit_code == 1 and "pip install 'kerasmtl[onnx]'" in done.output
    assert list(tmp_path.iterdir()) == []


def test_int8_is_refused_for_a_table(trained, tmp_path):
    done = run("convert", tmp_path / "m.tflite", "--to", "litert-int8", "--project", trained / "p")
    assert done.exit_code == 1 and "--to must be litert" in done.output


def test_help_needs_no_tensorflow():
    code = (
        "import sys; from kerasmtl.cli.export import convert\n"
        "try: convert(['--help'])\n"
        "except SystemExit: assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "litert-int8" in done.stdout and convert.name == "convert"
