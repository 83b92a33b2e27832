"""Each training has a folder of its own in runs/."""

import csv
import json
import os
import shutil
import sys

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import kerasmtl as kt
from kerasmtl.evaluation.report import BinaryScores, Report
from kerasmtl.training import runs
from kerasmtl.training.resume import LOCK
from kerasmtl.training.tracking import HistoryFile
from kerasmtl.utils.files import file_lock

REPORT = Report(rows=4, tasks={"leak": BinaryScores(4, 2, 0.75, 0.8, 0.5)})


@pytest.fixture
def project(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=40), "leak": rng.integers(0, 2, 40)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "project.toml").write_text(
        'name = "p"\n[data]\nlabels = "t.csv"\n[input]\nkind = "table"\n'
    )
    return kt.Project.load(tmp_path)


def start(project):
    return project.start_run(*project.manifest().split())


def folders(project):
    found = (project.run.folder.parent).iterdir()
    return sorted(path.name for path in found if not path.is_symlink())


def model():
    keras.utils.set_random_seed(0)
    made = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    made.compile("sgd", "mse")
    return made


def fit(run, epochs=2):
    x = np.ones((4, 1), "float32")
    made = model()
    made.fit(x, x, epochs=epochs, callbacks=run.callbacks(), verbose=0)
    return made


def test_a_run_keeps_what_it_was_made_of_and_latest_points_to_it(project, tmp_path):
    run = start(project)
    latest = tmp_path / "runs" / "latest"
    assert latest.is_symlink() and latest.resolve() == run.folder
    assert not os.path.isabs(os.readlink(latest))
    assert (run.folder / "project.toml").read_bytes() == (tmp_path / "project.toml").read_bytes()
    record = json.loads((run.folder / "model.json").read_text())
    assert record["input"]["kind"] == "table" and record["data"]["source"] == "t.csv"


def test_nothing_is_overwritten_by_the_next_run(project):
    first = start(project)
    fit(first)
    first.finish(REPORT)
    kept = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    names = "project.toml model.json split.csv model.keras history.csv scores.json"
    assert set(kept) == set(names.split())
    second = start(project)
    fit(second, 1)
    assert second.folder != first.folder and len(folders(project)) == 2
    assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == kept


def test_the_model_is_that_of_the_newest_run_that_has_one(project):
    assert project.checkpoint.parts[-2:] == ("latest", "model.keras")
    first = start(project)
    assert not project.checkpoint.exists()
    fit(first)
    assert project.checkpoint == first.checkpoint
    start(project)
    assert project.checkpoint == first.checkpoint


@pytest.mark.parametrize("links", [True, False])
def test_an_interrupted_run_is_resumed_and_a_changed_one_is_not(
    project, tmp_path, capsys, monkeypatch, links
):
    if not links:
        monkeypatch.setattr(runs.Path, "symlink_to", lambda *args, **more: os.mkdir(""))
    first = start(project)
    first.state.mkdir()
    assert start(project).folder == first.folder
    assert "Resuming runs/" in capsys.readouterr().out
    settings = (tmp_path / "project.toml").read_text()
    (tmp_path / "project.toml").write_text(settings + "[training]\nepochs = 2\n")
    second = start(kt.Project.load(tmp_path))
    said = capsys.readouterr().out
    assert "project.toml changed since" in said and "New run: runs/" in said
    assert second.folder != first.folder and first.state.is_dir()
    (tmp_path / "project.toml").write_text(settings)
    second.finish(REPORT)
    assert start(project).folder not in (first.folder, second.folder)


def test_other_labels_or_another_backbone_begin_a_new_run(project, tmp_path, capsys):
    first = start(project)
    first.state.mkdir()
    labels = tmp_path / "t.csv"
    labels.write_text(labels.read_text().replace(",1\n", ",?\n", 1))
    second = start(project)
    second.state.mkdir()
    assert second.folder != first.folder
    assert "the labels file changed since" in capsys.readouterr().out
    record = json.loads((second.folder / "model.json").read_text())
    record["backbone"] = {"handle": "tiny", "sha256": "0" * 64}
    (second.folder / "model.json").write_text(json.dumps(record))
    assert start(project).folder != second.folder
    assert "the backbone changed since" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["{}", '{"tasks"', '{"input": 3}'])
def test_a_run_with_a_damaged_record_is_not_resumed(project, capsys, damage):
    first = start(project)
    first.state.mkdir()
    (first.folder / "model.json").write_text(damage)
    assert start(project).folder != first.folder
    assert "its record changed since" in capsys.readouterr().out


def test_a_run_that_is_under_way_is_left_alone(project):
    run = start(project)
    run.state.mkdir()
    with file_lock(run.state / LOCK), pytest.raises(ValueError, match="`runs`.*under way"):
        start(project)
    assert start(project).folder == run.folder
    assert not any(run.state.iterdir())


def test_a_copy_of_latest_does_not_hide_what_is_newer(project, tmp_path):
    first = start(project)
    fit(first)
    first.finish(REPORT)
    latest = tmp_path / "runs" / "latest"
    latest.unlink()
    shutil.copytree(first.folder, latest)  # as `cp -rL`, an archive or a cloud's folder make it
    second = start(project)
    fit(second)
    assert project.checkpoint == second.checkpoint
    assert {path.name for path in latest.parent.iterdir()} == {
        "latest",
        first.folder.name,
        second.folder.name,
    }


def test_a_finished_run_has_its_scores_and_no_state(project):
    run = start(project)
    run.state.mkdir()
    assert run.thresholds() == {}
    decisions = kt.calibration.fit_decisions(keras.Sequential([keras.Input((1,))]), None, ["leak"])
    run.finish(REPORT, decisions)
    assert not run.state.exists() and run.finished
    scores = json.loads((run.folder / "scores.json").read_text())
    assert scores["tasks"]["leak"]["auc"] == 0.75 and scores["macro_auc"] == 0.75
    assert run.thresholds() == {"leak": 0.5}


def test_the_log_has_what_was_printed_without_bars_and_colours(project, capsys):
    run = start(project)
    capsys.readouterr()
    with run:
        print("begins")
        sys.stdout.write("1/2\r\x1b[1m2/2\x1b[0m done\n")
        print("told", file=sys.stderr)
    print("after it")
    assert (run.folder / "train.log").read_text() == "begins\n2/2 done\ntold\n"
    said = capsys.readouterr()
    assert "1/2\r" in said.out and said.err == "told\n" and "after it" in said.out
    with pytest.raises(ValueError), run:
        print("again")
        raise ValueError("too late")
    assert (run.folder / "train.log").read_text().endswith("told\nagain\nValueError: too late\n")


def test_what_a_graph_finds_wrong_with_data_is_raised_in_a_line(project):
    def refuse(value):
        raise ValueError("labels.csv, line 7: image 'a.jpg' is truncated")

    with pytest.raises(ValueError, match="^labels.csv, line 7: image 'a.jpg' is truncated$"):
        with start(project) as run:
            tf.numpy_function(refuse, [1.0], tf.float32)
    assert "truncated" in (run.folder / "train.log").read_text()


def test_a_bar_of_many_states_is_one_line_of_the_log(project):
    with start(project) as run:
        for step in range(5):
            sys.stdout.write(f"\r\x1b[1m{step}/4\x1b[0m ")
            sys.stdout.write("loss 1")
        print()
    assert (run.folder / "train.log").read_text() == "4/4 loss 1\n"


def test_a_last_line_without_an_end_is_in_the_log(project):
    with pytest.raises(ValueError, match="broken"):
        with start(project) as run:
            print("half", end="")
            raise ValueError("broken")
    assert (run.folder / "train.log").read_text() == "half\nValueError: broken\n"


def test_the_history_has_a_line_per_epoch(project):
    run = start(project)
    history = fit(run, 3).history.history
    with open(run.folder / "history.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    np.testing.assert_array_equal([float(row["loss"]) for row in rows], history["loss"])
    assert all(float(row["seconds"]) >= 0 for row in rows)


def test_a_resumed_history_replaces_the_epochs_that_are_done_again(tmp_path):
    for epochs in ((0, 1, 2), (1, 2, 3)):
        kept = HistoryFile(tmp_path / "history.csv")
        for epoch in epochs:
            kept.on_epoch_begin(epoch)
            kept.on_epoch_end(epoch, {"loss": epoch + len(epochs) / 10, f"new_{epochs[0]}": 1.0})
    frame = pd.read_csv(tmp_path / "history.csv")
    assert frame.epoch.tolist() == [1, 2, 3, 4]
    assert frame.columns.tolist() == ["epoch", "seconds", "loss", "new_0", "new_1"]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_tracking_without_its_package_says_what_to_install(project, tmp_path, monkeypatch, name):
    text = (tmp_path / "project.toml").read_text() + f'[training]\ntracking = "{name}"\n'
    (tmp_path / "project.toml").write_text(text)
    monkeypatch.setattr("kerasmtl.training.runs.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"`tracking`.*kerasmtl\[{name}\]"):
        start(kt.Project.load(tmp_path))
    assert not (tmp_path / "runs").exists()


def test_tensorboard_gets_the_metrics(project):
    loader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is absent: pip install 'kerasmtl[tensorboard]'",
    )
    run = runs.Run(start(project).folder, "tensorboard")
    history = fit(run, 2).history.history
    found = loader.EventAccumulator(str(run.folder / "tensorboard" / "train"))
    found.Reload()
    tensors = [tf.make_ndarray(event.tensor_proto) for event in found.Tensors("epoch_loss")]
    np.testing.assert_allclose(tensors, history["loss"], rtol=1e-6)


def test_tensorboard_gets_the_scores_of_a_training_without_epochs(project):
    """A head that is chosen by folds has no epoch."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = runs.Run(start(project).folder, "tensorboard")
    (run.folder / runs.HEADS).write_text(json.dumps({"scores": {"leak": 0.625}}))
    run.finish(REPORT)
    found = loader.EventAccumulator(str(run.folder / "tensorboard" / "scores"))
    found.Reload()
    scores = {
        tag: tf.make_ndarray(found.Tensors(tag)[0].tensor_proto) for tag in found.Tags()["tensors"]
    }
    assert scores["test_binary_auc"] == 0.75
    assert scores["folds_binary_auc"] == 0.625


def test_mlflow_gets_settings_metrics_and_scores(project, monkeypatch):
    mlflow = pytest.importorskip(
        "mlflow", reason="mlflow is absent: pip install 'kerasmtl[mlflow]'"
    )
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = runs.Run(start(project).folder, "mlflow")
    history = fit(run, 2).history.history
    fit(runs.Run(run.folder, "mlflow"), 1)  # resumed: the same run of MLflow
    mlflow.set_tracking_uri(None)  # as in a process that has only the scores to log
    run.finish(REPORT)
    client = mlflow.MlflowClient(f"sqlite:///{run.folder.parent / 'mlflow.db'}")
    (kept,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert kept.info.run_name == run.folder.name
    assert kept.data.params["data.labels"] == "t.csv"
    losses = {m.step: m.value for m in client.get_metric_history(kept.info.run_id, "loss")}
    assert losses[2] == pytest.approx(history["loss"][1])
    assert kept.data.metrics["test_binary_auc"] == 0.75
