"""`kt.compare`: fair, resumed, and honest about what it cannot say."""

import dataclasses
import json
import types

import keras
import numpy as np
import pandas as pd
import pytest

import kerasmtl as kt
from kerasmtl.advice import networks, transfer
from kerasmtl.advice.advise import advise
from kerasmtl.advice.cells import Cell, Cells
from kerasmtl.advice.networks import same_total
from kerasmtl.data.dataset import source_of

TOML = 'name = "p"\n[data]\nlabels = "labels.csv"\ntasks = {}\n[input]\nkind = "table"\n'
TASKS = ["a", "b", "c"]


def project(folder, labels=None, tasks=TASKS, rows=120, **columns):
    """A project of numbers that say something of three tasks; a third of the labels is missing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 5))
    if labels is None:
        labels = (x[:, :3] + rng.normal(size=(rows, 3)) > 0).astype(float)
        labels[rng.random(labels.shape) < 0.3] = np.nan
    table = pd.DataFrame(x, columns=[f"x{at}" for at in range(5)]).assign(**columns)
    folder.mkdir(exist_ok=True)
    for name, column in zip(TASKS, labels.T, strict=True):
        table[name] = column
    table.to_csv(folder / "labels.csv", index=False, na_rep="?")
    toml = TOML.format(json.dumps(tasks)) + "[model]\nhidden = [4]\n"
    (folder / "project.toml").write_text(toml)
    return kt.Project.load(folder)


@pytest.fixture
def calls(monkeypatch):
    """What `fit_head` is called with by the comparisons of networks."""
    found, fit = [], networks.fit_head
    monkeypatch.setattr(networks, "WIDTHS", (2, 4))

    def fit_head(features, labels, tasks, groups, kinds, **kwargs):
        found.append((features, labels, tasks, groups, kinds, kwargs))
        short = [dataclasses.replace(kind, steps=(20,)) for kind in kinds]
        return fit(features, labels, tasks, groups, short, **kwargs)

    monkeypatch.setattr(networks, "fit_head", fit_head)
    return found


# ---------------------------------------------------------------- cells


def cell(number, done, cost=1.0):
    def train():
        done.append(number)
        return {"a": np.array([0.25, number])}, {"a": np.nan}

    return Cell({"number": number}, cost, train)


def test_cells_are_kept_and_only_computed_once(tmp_path, capsys):
    done = []
    wanted = [cell(number, done, cost=3 - number) for number in range(3)]
    first = Cells(tmp_path, "data", 1, True).results(wanted)
    assert done == [2, 1, 0]  # the cheapest first
    assert "[3/3" in capsys.readouterr().err
    (tmp_path / next(tmp_path.iterdir()).name).write_text('{"predictions":')  # damaged
    again = Cells(tmp_path, "data", 1, False).results(wanted)
    assert len(done) == 4
    for one, two in zip(first, again, strict=True):
        assert np.allclose(one.predictions["a"], two.predictions["a"])
        assert np.isnan(two.held_out["a"])
    Cells(tmp_path, "other data", 1, False).results(wanted)
    assert len(done) == 7


def test_no_cell_is_begun_that_would_end_too_late(tmp_path, monkeypatch):
    now, done = [0.0], []
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("kerasmtl.advice.cells.time", clock)

    def lasting(number, seconds):
        def train():
            now[0] += seconds
            done.append(number)
            return {}, {}

        return Cell({"number": number}, seconds, train)

    cells = Cells(tmp_path, "data", 1, False)
    found = cells.results([lasting(0, 50), lasting(1, 20), lasting(2, 25)])
    assert done == [1, 2] and cells.left == 1 and found[0] is None


# ---------------------------------------------------------------- networks


def test_tasks_is_answered_in_two_sentences_with_the_numbers(tmp_path, calls):
    found = kt.compare(project(tmp_path), "tasks", progress=False)
    assert len(found.sentences) == 2 and "95 %, 3 seeds" in found.sentences[0]
    assert set(found.table["task"]) == {*TASKS, "macro AUC"}
    assert list(found.details["holds"].isin(["yes", "no", "undecided"])) == [True] * 3
    kept = json.loads((tmp_path / "runs" / "compare" / "tasks.json").read_text())
    assert kept["sentences"] == list(found.sentences) and kept["kind"] == "tasks"
    assert len(kept["table"]["rows"]) == len(found.table)
    assert found.sentences[0] in str(found) and found.setting in str(found)
    assert "<table" in found._repr_html_()


def test_both_sides_have_the_same_rows_seeds_and_steps(tmp_path, calls):
    kt.compare(project(tmp_path), "size", progress=False)
    by_size = {}
    for features, labels, tasks, groups, kinds, options in calls:
        assert np.array_equal(features, calls[0][0]) and groups is calls[0][3]
        assert len(kinds) == 1 and kinds[0].steps == calls[0][4][0].steps
        key = "one" if len(tasks) == 3 else "each"
        by_size.setdefault((key, kinds[0].width), []).append((options["seed"], labels))
    assert set(by_size) == {(key, width) for key in ("one", "each") for width in (2, 4)}
    for (key, _), found in by_size.items():
        assert sorted({seed for seed, _ in found}) == [0, 1, 2]
        assert len(found) == (3 if key == "one" else 9)
    together = np.hstack([labels for _, labels in by_size["each", 2] if labels.shape[1] == 1])
    assert np.isnan(together).sum() == 3 * np.isnan(by_size["one", 2][0][1]).sum()


def test_an_interrupted_comparison_goes_on(tmp_path, calls, monkeypatch):
    whole = kt.compare(project(tmp_path / "whole"), "size", progress=False)
    count, fit = len(calls), networks.fit_head
    calls.clear()

    def interrupted(*args, **kwargs):
        if len(calls) == 5:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    of = project(tmp_path / "stopped")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(networks, "fit_head", interrupted)
        kt.compare(of, "size", progress=False)
    assert len(calls) == 5
    found = kt.compare(of, "size", progress=False)
    assert len(calls) == count and found.sentences == whole.sentences
    kt.compare(of, "size", progress=False)
    assert len(calls) == count


def test_other_labels_are_other_cells(tmp_path, calls):
    kt.compare(project(tmp_path), "size", progress=False)
    count = len(calls)
    labels = np.tile([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]], (60, 1))
    kt.compare(project(tmp_path, labels), "size", progress=False)
    assert len(calls) == 2 * count


def test_no_time_says_how_much_is_left(tmp_path):
    for what in ("tasks", "size"):
        found = kt.compare(project(tmp_path), what, minutes=0, progress=False)
        assert found.left > 0 and str(found.left) in str(found) and found.table.empty


@pytest.mark.parametrize("what", ["tasks", "size"])
def test_degenerate_labels_get_an_answer_without_numbers_or_a_smaller_one(tmp_path, calls, what):
    labels = np.full((120, 3), np.nan)
    labels[:, 0] = np.arange(120) % 2
    labels[:50, 1] = 1  # one answer only
    found = kt.compare(project(tmp_path, labels), what, progress=False)
    assert "undecided" in str(found) or "nothing" in str(found).lower()
    assert "nan" not in " ".join(found.sentences)
    labels[:, 1] = np.nan
    found = kt.compare(project(tmp_path, labels, tasks=["a", "b"]), what, progress=False)
    assert "fewer than two tasks" in found.sentences[0]


def test_tasks_of_other_kinds_and_groups_are_compared(tmp_path, calls):
    rng = np.random.default_rng(0)
    labels = np.stack([rng.normal(size=120), np.arange(120) % 3, np.arange(120) % 2], axis=1)
    tasks = [
        {"name": "a", "kind": "regression"},
        {"name": "b", "kind": "multiclass"},
        {"name": "c"},
    ]
    of = project(tmp_path, labels, ["a"], video=np.arange(120) // 4)
    shown = ", ".join(
        "{" + ", ".join(f'{key} = "{value}"' for key, value in task.items()) + "}" for task in tasks
    )
    text = (tmp_path / "project.toml").read_text()
    text = text.replace('tasks = ["a"]', f'tasks = [{shown}]\ngroup_column = "video"')
    (tmp_path / "project.toml").write_text(text)
    of = kt.Project.load(tmp_path)
    found = kt.compare(of, "size", progress=False)
    assert len(found.table) == 2 and found.y_label.startswith("mean score")


@pytest.mark.parametrize(
    "options, named",
    [
        ({"what": "task"}, "what"),
        ({"what": "transfer"}, "what"),
        ({"what": "size", "seeds": 2}, "seeds"),
        ({"what": "size", "minutes": -1}, "minutes"),
        ({"what": "size", "shares": [0.0]}, "shares"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, options, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        kt.compare(project(tmp_path), **options)


def test_the_same_size_in_total_has_as_many_weights():
    for width, columns, tasks in [(64, 192, 4), (512, 256, 12), (8, 3, 2)]:
        one = width * (columns + 1) + (width + 1) * tasks
        narrow = same_total(width, columns, tasks)
        each = narrow * (columns + 1) + narrow + 1
        assert abs(tasks * each - one) <= tasks * (columns + 2) / 2


# ---------------------------------------------------------------- transfer


def images(folder, count=40, tasks=("bright", "odd"), hidden="auto"):
    """A project of small images, of which one task is their brightness."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    lines = ["image," + ",".join(tasks)]
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 100, (16, 16, 3)) + number % 2 * 100
        Image.fromarray(pixels.astype("uint8")).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{number % 2},{number // 2 % 2 if number % 3 else '?'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    toml = 'name = "p"\n[data]\nlabels = "labels.csv"\n[training]\nplan = "head"\nepochs = 2\n'
    toml += f"fine_tune_epochs = 1\n[model]\nhidden = {json.dumps(hidden)}\n"
    (folder / "project.toml").write_text(toml)
    return kt.Project.load(folder)


def test_scratch_and_the_plan_have_the_same_rows_steps_and_selection(tmp_path, monkeypatch):
    trained = {}

    def fine_tune(model, train, val, plan, verbose):
        names = [np.concatenate([y for _, y in data]) for data in (train, val)]
        backbone = kt.backbones.backbone_layers(model)[0]
        weights = backbone.module_variables[0].numpy().copy()
        trained[plan.name] = ([np.sort(each, axis=0) for each in names], plan, weights)
        assert (source_of(train).layer is not None) == (plan.name == "all")  # augmented
        assert source_of(val).layer is None

    monkeypatch.setattr(transfer, "fine_tune", fine_tune)
    monkeypatch.setattr(transfer, "fit_head", lambda *a, **k: pytest.fail("not asked for"))
    of = images(tmp_path, hidden=[8])
    rows = transfer.Rows.of(of)
    for method in ("scratch", "plan"):
        transfer._trained(rows, method, 0.5, 0, small=False)
    (same, plan, pretrained), (scratch, whole, random) = trained["head"], trained["all"]
    for one, other in zip(same, scratch, strict=True):
        assert np.array_equal(one, other, equal_nan=True)
    assert (plan.epochs, whole.epochs) == (2, 3)  # as many as head and fine-tuning together
    assert whole[0].patience is None
    assert np.std(random) > 0 and not np.allclose(pretrained, random)


def test_smaller_shares_are_parts_of_larger_ones():
    rows = types.SimpleNamespace(train=range(50), val=range(11))
    for part in range(2):
        small, large = (transfer._chosen(rows, share, 3)[part] for share in (0.2, 0.6))
        assert set(small) < set(large) and len(small) >= 1
    assert [len(part) for part in transfer._chosen(rows, 0.001, 0)] == [1, 1]


def test_forgotten_weights_are_drawn_anew():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 16)),
            keras.layers.DepthwiseConv2D(3),
            keras.layers.BatchNormalization(),
        ]
    )
    model.set_weights([each + 5 for each in model.get_weights()])
    transfer.forget(model.weights, seed=0)
    kernel, bias, gamma, beta, mean, variance = model.get_weights()
    assert kernel.std() == pytest.approx(np.sqrt(2 / 9), rel=0.2) and abs(kernel.mean()) < 0.2
    assert (gamma == 1).all() and (variance == 1).all()
    assert not np.concatenate([bias, beta, mean]).any()


def test_a_small_network_has_about_as_many_weights():
    backbone = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(100)]
    )
    model = kt.build_model(backbone, ["cat"])
    found = transfer.small_network(model)
    assert found.input_shape == (None, 32, 32, 3)
    assert found.count_params() == pytest.approx(backbone.count_params(), rel=0.15)


@pytest.mark.slow
def test_transfer_is_measured_from_end_to_end(tmp_path):
    found = kt.compare(images(tmp_path), "transfer", shares=[1], backbones=["tiny"], progress=False)
    assert found.left == 0 and list(found.table["images"]) == [34]
    assert "no falling power law" in str(found) or "catch up" in str(found)
    assert [len(curve["x"]) for curve in found.curves] == [1, 1, 1]
    assert list(found.details["backbone"]) == ["tiny"]


# ---------------------------------------------------------------- advise


def test_advice_counts_probes_and_names_the_plan_of_training(tmp_path):
    of = project(tmp_path)
    found = advise(of)
    train, val, _ = of.manifest().split(seed=0)
    known = (~np.isnan(np.concatenate([train.labels, val.labels]))).sum(axis=0)
    assert found.tasks["known"].tolist() == known.tolist()
    assert found.tasks["to all others"][0] == round(known[0] / known[1:].sum(), 2)
    assert found.backbones["ridge probe, macro AUC"][0] > 0.6
    assert found.plan.startswith("Plan 'all'") and found.plan in str(found)  # of hidden = [4]
    assert json.loads(json.dumps(found.to_dict()))["plan"] == found.plan
    with pytest.raises(ValueError, match="`backbones`"):
        advise(of, ["tiny"])


def test_advice_of_images_names_each_backbone(tmp_path):
    found = advise(images(tmp_path), ["tiny"])
    assert "tiny" in found.tasks and found.plan.startswith("Plan 'head'")
    assert float(found.tasks["tiny"][0].split()[0]) > 0.9  # brightness
