"""`kerasmtl export`: a project's trained model, its gate, its thresholds and its card."""

import hashlib

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from click.testing import CliRunner

import kerasmtl as kt
import kerasmtl.export.saved_model
from kerasmtl.cli import main
from kerasmtl.cli.common import plain_errors
from kerasmtl.export.description import read_description

SPLIT = ["train"] * 60 + ["val"] * 40 + ["test"] * 10


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A table with words of Python, a name with a dot, and holes; the model knows little of it."""
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
    """Without the proof, which takes a process."""
    monkeypatch.setattr(kerasmtl.export.saved_model, "prove", lambda *args: None)
    return lambda *options: run("export", tmp_path / "m", "--project", trained / "p", *options)


def test_all_options_together(export, trained, tmp_path):
    digest = hashlib.sha256((trained / "t.csv").read_bytes()).hexdigest()
    options = ["--thresholds", "recall=0.9", "--calibrate", "--licence", "CC-BY-4.0"]
    result = export(*options, "--require", "is.wet.auc=0.1", "--require", "macro_brier=0.9")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == str(tmp_path / "m" / "1")
    about = read_description(tmp_path / "m" / "1")
    expected = {"sha256": digest, "rows": 60, "source": "t.csv"}
    assert expected.items() <= about["data"].items()
    assert about["licence"] == "CC-BY-4.0" and about["inputs"]["class"] == "column_class"
    for task in about["tasks"]:
        assert task["decision"]["rule"] == "recall>=0.9" and task["decision"]["recall"] >= 0.9
    card = (tmp_path / "m" / "1" / "assets.extra" / "MODEL_CARD.md").read_text()
    assert digest in card and "Rows trained on: 60" in card


def test_the_hash_is_that_of_the_training_whatever_became_of_the_file(export, trained, tmp_path):
    labels = trained / "t.csv"
    before = labels.read_bytes()
    try:
        labels.write_bytes(before + b"1,2,1,0,val\n")
        result = export()
    finally:
        labels.write_bytes(before)
    assert result.exit_code == 0, result.output
    about = read_description(tmp_path / "m" / "1")
    assert about["data"]["sha256"] == hashlib.sha256(before).hexdigest()


def test_a_number_is_a_rule(export, tmp_path):
    assert export("--thresholds", "0.25").exit_code == 0
    tasks = read_description(tmp_path / "m" / "1")["tasks"]
    assert [task["threshold"] for task in tasks] == [0.25, 0.25]


def test_a_task_may_have_a_rule_of_its_own(export, tmp_path):
    result = export("--thresholds", "leak:recall=0.8", "--thresholds", "0.25")
    assert result.exit_code == 0, result.output
    wet, leak = read_description(tmp_path / "m" / "1")["tasks"]
    assert (wet["threshold"], leak["decision"]["rule"]) == (0.25, "recall>=0.8")
    assert export("--thresholds", "is.wet:0.1").exit_code == 0
    wet, leak = read_description(tmp_path / "m" / "2")["tasks"]
    assert (wet["threshold"], leak["decision"]["rule"]) == (0.1, "f1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--require", "macro_auc=0.99999"], "does not pass `require`"),
        (["--require", "macro_auc"], "expected SCORE=NUMBER"),
        (["--require", "macro_auc=nan"], "is no number"),
        (["--require", "car.auc=0.5"], "tasks of ['is.wet', 'leak']"),
        (["--require", "leak.acc=0.5"], "a score of 'leak': ['known', 'positive', 'auc'"),
        (["--thresholds", "best"], "expected f1, fixed, a number from 0 to 1"),
        (["--thresholds", "precision=90"], "expected f1, fixed, a number from 0 to 1"),
        (["--thresholds", "car:f1"], "names what is no binary task"),
        (["--thresholds", "leak:best"], "expected f1, fixed, a number from 0 to 1"),
        (["--thresholds", "1.5"], "expected f1, fixed, a number from 0 to 1"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(export, tmp_path, options, message):
    result = export(*options)
    assert result.exit_code in (1, 2) and "Traceback" not in result.output
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "{{function_node __inference_f_1}} ValueError: l.csv, line 7: picture '5.png' is "
            "truncated.\nTraceback (most recent call last):\n",
            "Error: l.csv, line 7: picture '5.png' is truncated.\n",
        ),
        ("{{function_node f}} {{node g}} Invalid PNG data\n\t [[{{node x}}]]", "`kerasmtl check`"),
    ],
)
def test_what_a_graph_cannot_take_is_a_plain_line(said, shown):
    import click

    @click.command()
    @plain_errors
    def command():
        raise tf.errors.InvalidArgumentError(None, None, said)

    result = CliRunner().invoke(command)
    assert result.exit_code == 1 and shown in result.output and "{{" not in result.output
