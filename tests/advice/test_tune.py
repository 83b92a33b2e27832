"""`kt.tune` and `kerasmtl tune`: settings searched on the validation part, kept, and written."""

import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import r2_score, roc_auc_score

import kerasmtl as kt
from kerasmtl.advice import tune as module
from kerasmtl.advice.tune import _Judge, _optimism, apply_settings, tune
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
        score = settings["learning_rate"]
        return SimpleNamespace(judged=score, epoch=1, halves=[[score, score]])

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
    judge = trainer.train(settings, 0)
    assert judge.judged > 0.8 and 1 < judge.epoch <= 20
    lines = (tmp_path / "pumps.csv").read_text().splitlines()
    changed = [
        ",".join([*line.split(",")[:3], "0", "7"]) if ",test," in line else line for line in lines
    ]
    (tmp_path / "pumps.csv").write_text("\n".join(changed))
    other = module._Trainer(project, False)
    assert other.identity({}) == trainer.identity({})
    assert other.train(settings, 0).halves == judge.halves


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
    judge = _Judge(train.tasks, val.labels, [], None)
    judge.see([outputs], 0)
    # The first half chooses, and the second one judges; then the other way round.
    np.testing.assert_allclose(judge.halves[0], expected, rtol=1e-6)
    np.testing.assert_allclose(judge.halves[1], expected[::-1], rtol=1e-6)
    np.testing.assert_allclose(found.trials["score"], judge.judged, atol=1e-3)


def test_an_epoch_is_chosen_by_one_half_and_judged_by_the_other():
    labels = np.tile([[0.0], [1.0]], (20, 1))
    judge = _Judge([kt.Task("leak")], labels, [], None)
    (one, other), *_ = judge._pairs
    right, wrong = labels.copy(), 1 - labels
    first, second = np.where(np.isin(np.arange(40), one)[:, None], [right, wrong], [wrong, right])
    judge.see([first], 0)
    judge.see([second], 1)
    assert judge.halves[0] == [1.0, 0.0] and judge.halves[1] == [1.0, 0.0]
    judge.see([right], 2)
    assert judge.best == 1.0 and judge.epoch == 3
    judge.see([np.full((40, 1), np.nan)], 3)  # of no use, and no crash
    assert judge.epoch == 3


def test_optimism_is_what_the_other_half_says():
    # Trial 0 is chosen by the first half, trial 1 by the second; one without a score is left out.
    halves = np.array(
        [[[0.9, 0.5], [0.4, 0.8], [-np.inf, np.nan]], [[0.8, 0.7], [0.6, 0.6], [0.5, 0.5]]]
    )
    chosen, judged = _optimism(halves)
    assert chosen == pytest.approx((0.9 + 0.6) / 2) and judged == pytest.approx((0.5 + 0.6) / 2)
    assert _optimism(halves[:, 2:]) is None


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
    judge = _Judge([kt.Task("leak")], np.array([[0.0], [1.0]] * 4), [np.zeros((8, 1))], trial)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, activation="sigmoid")])
    judge.set_model(model)
    with pytest.raises(optuna.TrialPruned):
        judge.on_epoch_end(0)
