"""`kt.tune` and `kerasmtl tune`: settings searched on the validation part, kept, and written."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import r2_score, roc_auc_score

import kerasmtl as kt
from kerasmtl.advice import tune as module
from kerasmtl.advice.tune import _fair, _Judge, apply_settings, tune
from kerasmtl.cli import main

pytest.importorskip("optuna")

MODEL = """
import kerasmtl as kt

def build(project, train):
    if project.model.hidden == "auto":
        return kt.build_model(kt.backbones.columns(train.values), train.tasks, labels=train.labels)
    layers = kt.backbones.mlp(train.values, project.hidden, project.model.dropout)
    return kt.build_model(layers, train.tasks, labels=train.labels)
"""
IMAGES = """
import kerasmtl as kt

def build(project, train):
    return kt.build_model(
        project.load_backbone(), train.tasks, project.image_size, hidden=project.hidden
    )
"""
TOML = """
name = "pumps"
data = {labels = "pumps.csv", tasks = ["leak", {name = "hours", kind = "regression"}]}
input = {kind = "table"}

[model]
hidden = [4]  # narrow
dropout = 0.0

[training]
epochs = 2  # short
learning_rate = 1e-9  # nothing is learned
batch_size = 16

[tune]
learning_rate = {low = 1e-2, high = 2e-2, log = true}
"""


def write_project(folder, toml=TOML, rows=90, leak="01"):
    """A table of two columns, whose first says the binary task and whose second the number."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 2))
    lines = ["a,b,split,leak,hours"]
    for number, (a, b) in enumerate(x):
        part = ("train", "val", "test")[number % 3]
        lines.append(f"{a:.3f},{b:.3f},{part},{leak[int(a > 0) % len(leak)]},{3 * b:.3f}")
    (folder / "pumps.csv").write_text("\n".join(lines))
    (folder / "project.toml").write_text(toml)
    (folder / "model.py").write_text(MODEL)
    return kt.Project.load(folder)


@pytest.fixture
def instant(monkeypatch):
    """Trials without training: the higher the learning rate, the better."""

    def train(self, settings, seed, trial=None):
        return np.full((1, 7), settings["learning_rate"])

    monkeypatch.setattr(module._Trainer, "train", train)


def quietly(project, **options):
    return tune(project, seeds=1, progress=False, **options)


def test_the_first_trial_has_todays_settings_and_the_search_goes_on(tmp_path, instant):
    project = write_project(tmp_path)
    first = quietly(project, trials=1)
    assert (
        first.trials["learning_rate"].tolist() == [1e-9] and first.settings["learning_rate"] == 1e-9
    )
    assert not first.better and "nothing to change" in str(first)
    found = quietly(project, trials=3)
    # The trial of the first call counts.
    assert len(found.trials) + found.pruned == 3
    assert 1e-9 < found.settings["learning_rate"] <= 2e-2
    assert found.trials["score"].is_monotonic_decreasing
    assert found.rows == 30
    again = quietly(project, trials=3)
    assert again.trials.equals(found.trials)
    assert (tmp_path / "project.toml").read_text() == TOML


def test_training_learns_and_the_test_part_changes_nothing(tmp_path):
    project = write_project(tmp_path)
    trainer = module._Trainer(project, False)
    settings = {"hidden": [16], "learning_rate": 0.03, "epochs": 20}
    scores = trainer.train(settings, 0)
    assert _fair(scores)[1] > 0.8 and scores.shape == (20, 7) and scores[:, 0].argmax() > 0
    lines = (tmp_path / "pumps.csv").read_text().splitlines()
    changed = [
        ",".join([*line.split(",")[:3], "0", "7"]) if ",test," in line else line for line in lines
    ]
    (tmp_path / "pumps.csv").write_text("\n".join(changed))
    other = module._Trainer(project, False)
    assert other.identity({}) == trainer.identity({})
    np.testing.assert_array_equal(other.train(settings, 0), scores)


def test_auto_is_a_head_chosen_by_folds_of_the_train_part(tmp_path):
    toml = TOML.replace("hidden = [4]", 'hidden = "auto"').split("[tune]")[0]
    project = write_project(tmp_path, toml + '[tune]\nhidden = ["auto"]\n')
    found = quietly(project, trials=1)
    assert found.settings == {"hidden": "auto"}
    train, val, _ = project.manifest().split()
    model = kt.build_model(kt.backbones.columns(train.values), train.tasks, labels=train.labels)
    features, _ = kt.features.split_model(model)
    head = kt.features.fit_head(
        features.predict(train.values, verbose=0),
        train.labels,
        train.tasks,
        views=model.get_layer("encoding").get_layer("columns").views,
    )
    outputs = head.predict(features.predict(val.values, verbose=0))
    halves = np.array_split(np.random.default_rng(0).permutation(30), 2)
    expected = [
        np.mean(
            [
                roc_auc_score(val.labels[rows, 0], outputs["binary"][rows, 0]),
                r2_score(val.labels[rows, 1], outputs["hours"][rows, 0]),
            ]
        )
        for rows in halves
    ]
    judge = _Judge(val)
    judge.see(outputs)
    np.testing.assert_allclose(judge.scores[0][1:3], expected, rtol=1e-6)
    score = _fair(np.array(judge.scores))[1]
    np.testing.assert_allclose(found.trials["score"], score, atol=1e-3)


def held_rows(labels, tasks=("leak",), **options):
    """Rows of the validation part with these labels."""
    values = np.zeros((len(labels), 1))
    return kt.Manifest.from_arrays(values, labels, tasks, kt.data.Table(), **options)


def test_an_epoch_is_chosen_by_one_half_and_judged_by_the_other():
    labels = np.tile([[0.0], [1.0]], (20, 1))
    judge = _Judge(held_rows(labels))
    one = judge.weights[1].astype(bool)
    right, wrong = labels.copy(), 1 - labels
    first, second = np.where(one[:, None], [right, wrong], [wrong, right])
    judge.see(first)
    judge.see(second)
    of_halves = np.array(judge.scores)[:, :3]
    assert of_halves[:, 1:].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    # Each half chooses the epoch that is best there, and worst on the other half.
    assert _fair(of_halves) == (1.0, 0.0)
    judge.see(right)
    assert judge.scores[2].tolist() == [1.0] * 7
    judge.see(np.full((40, 1), np.nan))  # of no use, and no crash
    judge.see(None)
    assert np.isnan(judge.scores[3:]).all()
    assert _fair(np.array(judge.scores)[2:]) == (1.0, 1.0)


def test_halves_divide_the_rows_and_keep_groups_whole():
    labels = np.tile([[0.0], [1.0]], (20, 1))
    groups = np.arange(40) // 4
    for held in (held_rows(labels), held_rows(labels, groups=groups)):
        weights = _Judge(held).weights
        assert (weights[0] == 1).all() and weights[1::2].sum() == weights[2::2].sum() == 60
        assert (weights[1::2] + weights[2::2] == 1).all()
    by_group = weights.reshape(7, 10, 4)
    assert (by_group == by_group[:, :, :1]).all()


def test_classes_are_judged_by_their_accuracy_and_uncertain_labels_not_at_all():
    labels = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 0.5], [2.0, np.nan]] * 5)
    tasks = [
        kt.Task("grade", "multiclass", classes=["a", "b", "c"]),
        kt.Task("leak", uncertain="u", uncertain_as=0.5),
    ]
    judge = _Judge(held_rows(labels, tasks))
    outputs = {"grade": np.eye(3)[[0, 1, 0, 2] * 5], "binary": labels[:, 1:] * 0.5}
    outputs["binary"][np.isnan(labels[:, 1])] = 0.9
    judge.see(outputs)
    assert judge.scores[0][0] == (0.75 + 1.0) / 2


def test_optimism_is_what_the_other_half_says():
    # Epoch 0 is chosen by the first half, epoch 1 by the second; one without a score is left out.
    scores = np.array([[0.7, 0.9, 0.5, np.nan, 0.3], [0.6, 0.8, 0.7, np.nan, 0.5]])
    assert _fair(scores) == pytest.approx(((0.9 + 0.7) / 2, (0.5 + 0.8) / 2))
    assert _fair(scores[:, [0, 3, 4]]) == (0.7, 0.7)  # no half can judge: all rows


def test_settings_are_written_with_all_comments(tmp_path):
    project = write_project(tmp_path)
    apply_settings(project, {"hidden": [8, 4], "learning_rate": 0.01})
    expected = TOML.replace("hidden = [4]", "hidden = [8, 4]").replace("1e-9", "0.01")
    assert (tmp_path / "project.toml").read_text() == expected
    for wrong in ({"dropout": 2.0}, {"widths": [3]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            apply_settings(project, wrong)
    assert (tmp_path / "project.toml").read_text() == expected


@pytest.mark.parametrize(
    "line",
    [
        "widths = [[3]]",
        'backbone = ["tiny"]',
        "indicators = {low = 0, high = 1}",
        "dropout = {low = 0.1}",
        "learning_rate = {low = 0.0, high = 0.1, log = true}",
        "augment = [true, false]",
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(tmp_path, line):
    project = write_project(tmp_path, TOML.split("[tune]")[0] + f"[tune]\n{line}\n")
    with pytest.raises(ValueError, match="tune"):
        quietly(project, trials=1)


def test_a_validation_part_that_cannot_judge_is_refused(tmp_path):
    toml = TOML.replace(', {name = "hours", kind = "regression"}', "")
    project = write_project(tmp_path, toml, leak="01")
    lines = (tmp_path / "pumps.csv").read_text().splitlines()
    kept = [line.replace(",val,1,", ",val,0,") for line in lines]
    (tmp_path / "pumps.csv").write_text("\n".join(kept))
    with pytest.raises(ValueError, match="project"):
        quietly(project, trials=1)


def test_a_trial_that_was_killed_is_forgotten_and_begun_again(tmp_path, monkeypatch, instant):
    project = write_project(tmp_path)

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module._Trainer, "train", killed)
        result = CliRunner().invoke(main, ["tune", "--project", str(tmp_path), "--trials", "1"])
    assert result.exit_code == 130 and "same command" in result.output
    assert quietly(project, trials=1).settings["learning_rate"] == 1e-9


def test_the_command_writes_only_if_asked(tmp_path, monkeypatch, instant):
    write_project(tmp_path)
    arguments = ["tune", "--project", str(tmp_path), "--trials", "3", "--seeds", "1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "--apply" in result.output and (tmp_path / "project.toml").read_text() == TOML
    result = CliRunner().invoke(main, [*arguments, "--apply"])
    assert result.exit_code == 0, result.output
    assert kt.Project.load(tmp_path).training.learning_rate > 1e-9
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and "pip install 'kerasmtl[tune]'" in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.slow
def test_images_are_searched_on_features(tmp_path, monkeypatch):
    toml = 'name = "s"\n[data]\nlabels = "street_scenes"\n[training]\nepochs = 1\n'
    toml += '[tune]\nhidden = ["auto", [4]]\n'
    (tmp_path / "project.toml").write_text(toml)
    (tmp_path / "model.py").write_text(IMAGES)
    seen = []
    monkeypatch.setattr(module, "network", spy(module.network, seen))
    found = quietly(kt.Project.load(tmp_path), trials=2)
    assert sorted(map(str, found.trials["hidden"])) in (["[4]", "auto"], ["auto"])
    # The backbone is in the first network alone; the others take what it gives.
    assert seen[0].input_shape == (None, 128, 128, 3)
    assert all(len(each.input_shape) == 2 for each in seen[1:])


def spy(function, seen):
    """Keep what a function returns."""

    def called(*args):
        seen.append(function(*args))
        return seen[-1]

    return called


@pytest.mark.slow
def test_augmentation_trains_the_whole_network(tmp_path, image_folder):
    toml = f'name = "s"\n[data]\nlabels = "{image_folder / "labels.csv"}"\n'
    toml += '[training]\nepochs = 1\nfine_tune_epochs = 1\nplan = "full"\n[model]\nhidden = [4]\n'
    (tmp_path / "project.toml").write_text(toml + "[tune]\naugment = [true, false]\n")
    (tmp_path / "model.py").write_text(IMAGES)
    found = quietly(kt.Project.load(tmp_path), trials=2, augment=True)
    assert set(found.trials.columns) == {"trial", "score", "epoch", "augment"}


def test_a_trial_that_falls_behind_is_given_up():
    import optuna

    trial = SimpleNamespace(report=lambda value, step: None, should_prune=lambda: True)
    held = held_rows([[0.0], [1.0]] * 4)
    judge = _Judge(held, [(held.values, held.labels)], trial)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, activation="sigmoid")])
    judge.set_model(model)
    with pytest.raises(optuna.TrialPruned):
        judge.on_epoch_end(0)
    trial.should_prune = lambda: False
    judge.on_epoch_end(1)
    with pytest.raises(optuna.TrialPruned):  # diverged
        judge.see(None)


def test_a_trial_that_diverges_is_given_up_and_another_follows(tmp_path):
    toml = TOML.replace("hidden = [4]", "hidden = [4, 4]").replace("1e-9", "1e30")
    toml = toml.split("[tune]")[0] + "[tune]\nlearning_rate = [0.01]\n"
    found = quietly(write_project(tmp_path, toml), trials=3)
    assert found.pruned >= 1 and found.better and found.settings == {"learning_rate": 0.01}
    str(found)


@pytest.mark.slow
def test_a_search_that_was_killed_keeps_its_trials_and_continues(tmp_path):
    project = write_project(tmp_path, TOML.replace("epochs = 2", "epochs = 20"))
    command = [sys.executable, "-m", "kerasmtl", "tune", "--project", str(tmp_path)]

    def finished():
        store = f"file:{tmp_path / 'runs' / 'tune.db'}?mode=ro"
        try:
            with sqlite3.connect(store, uri=True) as database:
                rows = "FROM trials JOIN trial_values USING (trial_id) WHERE state = 'COMPLETE'"
                return database.execute(f"SELECT number, value {rows} ORDER BY number").fetchall()
        except sqlite3.OperationalError:  # not there yet, or being written
            return []

    with subprocess.Popen([*command, "--trials", "500"], stderr=subprocess.DEVNULL) as running:
        end = time.monotonic() + 240
        while len(finished()) < 2 and running.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(running.pid, signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
    kept = dict(finished())
    assert len(kept) >= 2
    found = quietly(project, trials=len(kept) + 2)
    assert len(found.trials) + found.pruned >= len(kept) + 2
    scores = found.trials.set_index("trial")["score"].to_dict()
    assert kept.items() <= scores.items()
    # Today's settings are not tried twice.
    assert (found.trials["learning_rate"] == 1e-9).sum() == 1
