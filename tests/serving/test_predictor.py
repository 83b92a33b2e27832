"""Predictions and decisions: the same of a trained model, of its export and in every output."""

import json
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from click.testing import CliRunner
from image_folder import write_images

import kerasmtl as kt
import kerasmtl.export.verify
from kerasmtl.cli import main
from kerasmtl.export.description import read_description
from kerasmtl.serving.predictor import (
    ExportScorer,
    export_predictor,
)

TASKS = [
    kt.Task("cat"),
    kt.Task("sky", "multiclass", classes=("clear", "grey")),
    kt.Task("size", "regression"),
    kt.Task("dog"),
]
NAMES = [f"{number:02}.png" for number in range(24)]


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A finished run of a model of several kinds, and its export, whose thresholds are not 0.5."""
    folder = tmp_path_factory.mktemp("doors")
    write_images(folder, NAMES)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"image": NAMES, "cat": [0, 1] * 12, "sky": ["clear", "grey"] * 12})
    frame["size"] = rng.normal(size=24).round(3)
    frame["dog"] = [0, 0, 1, 1] * 6
    frame["split"] = ["train"] * 8 + ["val"] * 8 + ["test"] * 8
    frame.to_csv(folder / "labels.csv", index=False)
    (folder / "project.toml").write_text(
        'name = "p"\n[data]\nlabels = "labels.csv"\ntasks = ["cat", '
        '{name = "sky", kind = "multiclass", classes = ["clear", "grey"]}, '
        '{name = "size", kind = "regression"}, "dog"]\n'
    )
    made = kt.Project.load(folder)
    train, val, test = made.manifest().split()
    kept = made.start_run(train, val, test)
    keras.utils.set_random_seed(3)
    model = kt.build_model("tiny", TASKS, 32, hidden=[8], labels=train.labels)
    kt.save_model(model, kept.checkpoint)
    decisions = kt.calibration.fit_decisions(model, None, TASKS, {"cat": 0.45, "dog": 0.55})
    report = kt.evaluate(model, made.dataset(test, model), TASKS, decisions)
    kept.finish(report, decisions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kerasmtl.export.verify, "verify", lambda *args: None)
        export = kt.export_saved_model(
            model, folder / "out", TASKS, decisions=decisions, card={"data": made.trained().data}
        )
    return folder, export


def test_the_same_decisions_in_every_output(project, tmp_path):
    folder, export = project
    files = [folder / name for name in NAMES]
    found = {}
    for name, words in {"trained": [], "exported": ["--model", export]}.items():
        done = run("predict", *files, *words, "--json", "--project", folder)
        rows = json.loads(done.stdout)
        found[name] = pd.DataFrame([row["decisions"] for row in rows])
        chances = pd.DataFrame([row["probabilities"] for row in rows])
        for task, threshold in {"cat": 0.45, "dog": 0.55}.items():
            expected = (chances[task].astype("float32") >= np.float32(threshold)).astype(int)
            assert found[name][task].tolist() == expected.tolist()
            assert 0 < expected.sum() < len(expected)  # both answers, so that it says something
        assert found[name]["sky"].tolist() == [max(row, key=row.get) for row in chances["sky"]]
    assert found["trained"].equals(found["exported"])
    out = tmp_path / "p.csv"
    assert run("predict", *files, "--model", export, "--out", out).exit_code == 0
    written = pd.read_csv(out)
    for task in ("cat", "dog"):
        assert written[f"{task}_decision"].tolist() == found["exported"][task].tolist()
    printed = run("predict", *files, "--model", export).output
    lines = [line for line in printed.splitlines() if ".png" in line]
    for line, cat in zip(lines, found["exported"]["cat"], strict=True):
        assert line.split("│")[2].split()[1] == ("yes" if cat else "no")


def test_evaluate_scores_the_thresholds_of_the_model_or_the_export(project):
    folder, export = project
    reports = [
        json.loads(run("evaluate", "--json", "--project", folder, *words).stdout)
        for words in ([], ["--model", export])
    ]
    assert reports[0]["thresholds"] == {"cat": 0.45, "dog": 0.55}
    for name, scores in reports[0]["tasks"].items():
        other = reports[1]["tasks"][name]
        assert other == pytest.approx(scores, abs=1e-4), name
    assert reports[1]["thresholds"] == pytest.approx(reports[0]["thresholds"])
    kept = json.loads((kt.Project.load(folder).run.folder / "scores.json").read_text())
    assert kept["tasks"] == reports[0]["tasks"]


def test_an_export_of_other_tasks_is_refused(project):
    folder, export = project
    rows = kt.Manifest.from_csv(folder / "labels.csv", tasks=["cat"])
    with pytest.raises(ValueError, match="`model` must predict the tasks"):
        ExportScorer(export_predictor(export), rows)


def test_outputs_that_nothing_describes_are_sorted(tmp_path):
    module = tf.Module()
    module.run = tf.function(
        lambda image_bytes: {
            name: tf.cast(tf.strings.length(image_bytes), tf.float32) for name in "zbkamcy"
        },
        input_signature=[tf.TensorSpec((None,), tf.string, name="image_bytes")],
    )
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": module.run})
    found = export_predictor(tmp_path / "1")
    assert [task.name for task in found.tasks] == list("abckmyz") and found.input.kind == "image"


@pytest.mark.parametrize("signature", ["other", "serving_default"])
def test_an_export_that_takes_no_raw_inputs_is_refused(tmp_path, signature):
    module = tf.Module()
    spec = tf.TensorSpec((None,), tf.float32)
    module.run = tf.function(lambda a, b: {"sum": a + b}, input_signature=[spec, spec])
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={signature: module.run})
    with pytest.raises(ValueError, match="`export` must have a signature 'serving_default'"):
        export_predictor(tmp_path / "1")


def test_an_exported_table_gives_the_numbers_of_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(kerasmtl.export.verify, "verify", lambda *args: None)
    model = kt.build_model(kt.backbones.mlp(2, [4]), ["up", "down"])
    table = kt.data.Table(features=["a", "b"])
    folder = kt.export_saved_model(model, tmp_path / "t", ["up", "down"], input=table)
    predictor = export_predictor(folder)
    assert predictor.input.features == ("a", "b")
    values = np.stack([np.full(9, 0.5), np.arange(9)], axis=1).astype("float32")
    found, expected = predictor.call(values), model.predict(values, verbose=0)
    for column, name in enumerate(["up", "down"]):
        np.testing.assert_allclose(found[name], expected[:, column], atol=1e-5)
    (tmp_path / "t.csv").write_text("b,a\n1,2\nwarm,3\n")
    done = run("predict", tmp_path / "t.csv", "--model", folder, "--json")
    first, second = json.loads(done.stdout)
    assert list(first) == ["row", "predictions", "decisions"] and "'warm'" in second["error"]


def test_bad_files_are_named_and_the_others_predicted(project, tmp_path):
    folder, export = project
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((folder / NAMES[1]).read_bytes()[:-30])
    bad = [tmp_path / name for name in ("absent.jpg", "empty.jpg", "cut.png")]
    files = [bad[0], folder / NAMES[0], *bad[1:], "--model", export]
    done = run("predict", *files)
    assert done.exit_code == 1
    assert NAMES[0] in done.stdout.replace("\n", "")
    assert done.stderr.count("Error: ") == 3 and "cut.png: truncated" in done.stderr
    assert "absent.jpg: missing" in done.stderr and "empty.jpg: empty" in done.stderr
    done = run("predict", *files, "--json")
    absent, good, empty, _ = json.loads(done.stdout)
    assert (absent["error"], empty["error"]) == ("missing", "empty") and done.exit_code == 1
    assert set(good["decisions"]) == {"cat", "sky", "dog"}


@pytest.mark.parametrize("words", [[], ["--out", "p.csv"]])
def test_files_that_are_all_absent_are_named_without_loading_tensorflow(project, words):
    folder, _ = project
    code = (
        "import sys\nfrom kerasmtl.cli import main\n"
        f"try: main(['predict', 'absent.jpg', '--project', {str(folder)!r}, *{words}])\n"
        "except SystemExit as end: assert end.code == 1\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "absent.jpg: missing" in done.stderr


def test_an_absent_export_is_named_by_its_option(project):
    folder, _ = project
    for words in (["evaluate"], ["predict", folder / NAMES[0]]):
        done = run(*words, "--model", "nowhere", "--project", folder)
        assert done.exit_code == 1 and "--model" in done.stderr and "nowhere" in done.stderr


@pytest.mark.slow
def test_an_export_by_the_command_decides_as_training_did(project, monkeypatch):
    folder, _ = project
    monkeypatch.setattr(kerasmtl.export.verify, "verify", lambda *args: None)
    done = run("export", folder / "again", "--project", folder)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{folder / 'again' / '1'}\n"
    assert "cat 0.45, dog 0.55" in done.stderr
    described = read_description(folder / "again" / "1")
    rules = {task["name"]: task["threshold"] for task in described["tasks"]}
    assert (rules["cat"], rules["dog"]) == (0.45, 0.55)
    done = run("export", folder / "again", "--project", folder, "--thresholds", "cat:fixed")
    assert "cat 0.5, dog 0.55" in done.stderr


def test_an_export_of_a_run_that_is_gone_is_not_scored(project, tmp_path):
    folder, export = project
    kept = kt.Project.load(folder)
    with pytest.raises(FileNotFoundError, match="`run`.*gone"):
        kept.part("test", "gone")
