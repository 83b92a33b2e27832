"""The report as HTML: what is in it, and that it needs nothing else."""

import json
import re
from html.parser import HTMLParser

import keras
import numpy as np
import pytest

import kerasmtl as kt
from kerasmtl.evaluation import html_report
from kerasmtl.evaluation.calibration import fit_decisions
from kerasmtl.evaluation.evaluate import Known, evaluated, with_intervals
from kerasmtl.evaluation.html_report import Results, render_comparison, render_report

NAN = float("nan")
TASKS = (
    kt.Task("a & <b>"),
    kt.Task("never"),
    kt.Task("grade", "multiclass", ("low", "middle", "high")),
    kt.Task("hours_$_a$", "regression"),
)
HISTORY = "epoch,seconds,loss,auc,val_loss,val_auc\n1,1,0.7,0.5,0.8,0.5\n2,1,0.5,0.7,0.6,0.6\n"
LOG = """Plan 'auto': the head, 1 epoch at 0.001.
Stage 1 of 2: the head (3 of 9 weights), up to 1 epoch, learning rate 0.001.
Epoch 1/1
Stage 2 of 2: everything (9 of 9 weights), up to 1 epoch, learning rate 0.0001.
Epoch 2/2
"""


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(html_report, "DRAWS", 10)


class Page(HTMLParser):
    """What a page refers to, and the text of its sections by their titles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.sections, self.title = [], [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        names = ("src", "href", "xlink:href", "srcset", "action", "data")
        self.links += [value for name, value in attrs if name in names]
        if tag == "h2":
            self.title = ""

    def handle_data(self, data):
        if self.title == "":
            self.title = data
            self.sections[data] = ""
        elif self.title:
            self.sections[self.title] += data


def is_self_contained(text):
    page = Page(text)
    assert not {"script", "iframe", "object", "embed", "audio", "video"} & set(page.tags)
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not re.search(r"@import|url\(\s*[\"']?(?!#)|https?://", text)
    assert len(text.encode()) < 5e6
    return page


def table_results(tmp_path, tasks=TASKS, rows=80):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3 * rows, 3)).astype("float32")
    x[5, 1] = NAN
    y = np.column_stack([x[:, 0] > 0, x[:, 0] > 99, np.digitize(x[:, 2], [-0.5, 0.5]), x[:, 2] * 9])
    y[rng.random(y.shape) < 0.2] = NAN
    y = y[:, [TASKS.index(task) for task in tasks]]
    manifest = kt.Manifest.from_arrays(x, y, tasks, kt.data.Table(("heat", "<i>", "mm")))
    parts = {n: manifest.take(range(at * rows, at * rows + rows)) for at, n in enumerate(PARTS)}
    keras.utils.set_random_seed(0)
    backbone = kt.backbones.mlp(x[:rows], hidden=[4])
    model = kt.build_model(backbone, tasks, labels=y)
    batches = kt.make_dataset(parts["test"], batch_size=64)
    decisions = fit_decisions(model, kt.make_dataset(parts["val"]), tasks)
    report, cells = evaluated(model, batches, tasks, decisions)
    (tmp_path / "history.csv").write_text(HISTORY)
    (tmp_path / "train.log").write_text(LOG)
    heads = [{"name": "linear", "loss": 0.5, "chosen": True}, {"name": "wide", "loss": None}]
    (tmp_path / "heads.json").write_text(json.dumps({"why": "Simplest.", "candidates": heads}))
    (tmp_path / "project.toml").write_text('labels = "/home/me/private/labels.csv"  # "a"\n')
    about = {"sha256": "c0ffee"}
    return Results("<p>", model, parts, report, cells, decisions, None, about, tmp_path)


PARTS = ("train", "val", "test")


def test_a_report_has_every_kind_of_task_and_needs_nothing_else(tmp_path):
    results = table_results(tmp_path)
    text, failed = render_report(results)
    assert failed == []
    page = is_self_contained(text)
    assert "&lt;p&gt;" in text and "<i>" not in text and "<b>never" not in text  # names are text
    said = page.sections
    assert list(said) == list(html_report.SECTIONS)
    assert "a & <b>: ROC" in said["Task by task"] and "calibration" in said["Task by task"]
    known = len(results.cells["never"].y)
    assert f"{known} test labels, no two different ones" in said["Task by task"]
    assert "never: ROC" not in text
    assert "hours_$_a$: predicted against true" in said["Task by task"]
    assert "Share of each true class" in said["Task by task"]
    assert "c0ffee" in said["How it was made"] and keras.__version__ in said["How it was made"]
    assert "Stage 2: everything" in said["Training"] and "Simplest." in said["Training"]
    assert "labels.csv" in said["How it was made"] and "/home" not in text
    score = results.report.tasks["a & <b>"]
    assert f"{score.auc:.3f} [" in said["Scores"]
    assert "heat" in said["What the model goes by"]
    count = sum(
        len(kt.reports.likely_wrong_labels(cell.y, cell.p))
        for name, cell in results.cells.items()
        if "hours" not in name
    )
    total = sum(len(cell.y) for cell in results.cells.values())
    assert f"{count} of {total} labels deserve a second look" in text
    assert render_report(results)[0] == text  # the same each time


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind + task.name[:1])
def test_a_report_of_one_task(tmp_path, task):
    text, failed = render_report(table_results(tmp_path, (task,)))
    assert failed == []
    page = is_self_contained(text)
    kinds = {"binary": "ROC", "multiclass": "true class", "regression": "against true"}
    assert (kinds[task.kind] in page.sections["Task by task"]) == (task.name != "never")


def test_labels_out_of_fold_are_judged_as_well(tmp_path):
    results = table_results(tmp_path, TASKS[:1])
    train, val = results.parts["train"], results.parts["val"]
    y = np.concatenate([train.labels, val.labels])[:, 0]
    p = np.where(np.isnan(y), NAN, 0.2 + 0.6 * (y == 1))
    wrong = len(train) + int(np.flatnonzero(val.labels[:, 0] == 1)[0])
    p[wrong] = 0.01
    found = Results(**{**vars(results), "out_of_fold": [p]})
    before = sum(len(cells["a & <b>"].y) for _, cells in results.unseen[:1])
    assert len(found.unseen) == 3
    (_, known), (_, late) = [(rows, cells["a & <b>"]) for rows, cells in found.unseen[1:]]
    assert len(known.y) + len(late.y) == np.isfinite(y).sum()
    text, failed = render_report(found)
    said = Page(text).sections["Labels that are likely wrong"]
    assert failed == [] and f"{val.names[wrong - len(train)]}" in said
    assert f"of {before + np.isfinite(y).sum()} labels deserve" in text
    assert f"trained on {len(train) + len(val)} rows" in text
    p[len(train) :] = NAN  # nothing was learned from the validation rows
    text, _ = render_report(found)
    assert f"trained on {len(train)} rows" in text


def test_one_test_row_and_no_validation_part_give_a_smaller_report(tmp_path):
    results = table_results(tmp_path)
    few = {**results.parts, "test": results.test.take([0]), "val": results.test.take([])}
    batches = kt.make_dataset(few["test"])
    report, cells = evaluated(results.model, batches, TASKS)
    text, failed = render_report(Results("few", results.model, few, report, cells))
    assert failed == [] and "nan" not in text
    is_self_contained(text)


def test_a_section_that_fails_is_named_and_the_others_are_there(tmp_path, monkeypatch):
    def fails(results):
        raise RuntimeError("no ink")

    monkeypatch.setitem(html_report.SECTIONS, "Labels", fails)
    text, failed = render_report(table_results(tmp_path, TASKS[:1]))
    assert failed == ["Labels: RuntimeError: no ink"]
    assert "no ink" in Page(text).sections["Labels"] and "Scores" in Page(text).sections


def test_images_are_small_and_inside(image_folder):
    manifest = kt.Manifest.from_csv(image_folder / "labels.csv")
    keras.utils.set_random_seed(0)
    backbone = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(3, 3)])
    model = kt.build_model(backbone, manifest.tasks)

    def batches(rows):
        return kt.make_dataset(rows, size=16)

    report, cells = evaluated(model, batches(manifest), manifest.tasks)
    (image_folder / manifest.names[0]).unlink()  # moved away since
    parts = dict.fromkeys(PARTS, manifest)
    text, failed = render_report(Results("pets", model, parts, report, cells, inputs=batches))
    page = is_self_contained(text)
    assert all("FileNotFound" in each or "NOT_FOUND" in each for each in failed)
    assert sum(link.startswith("data:image/jpeg") for link in page.links) > 3
    assert "heat" not in text and "01.png" in text


def test_of_many_classes_the_most_frequent_are_in_the_matrix():
    names = tuple(f"class {number}" for number in range(html_report.MOST_TASKS + 2))
    y = np.repeat(np.arange(len(names)), 3)
    y[y == 1] = 0  # class 1 is the rarest, and of the others the last is left out
    known = Known(np.arange(len(y)), y, np.eye(len(names))[y])
    (matrix,) = html_report._multiclass(kt.Task("kind", "multiclass", names), known, None)
    assert "of the 12 most frequent" in matrix and "class 12" in matrix
    assert "class 1<" not in matrix and "class 13" not in matrix and "nan" not in matrix


def test_comparisons_are_pages_and_sections(tmp_path):
    curve = {"label": "frozen <1>", "x": [30, 100, 3000], "y": [0.7, None, 0.9]}
    found = {
        "kind": "transfer",
        "sentences": ["It pays <off>."],
        "table": {"columns": ["rows", "gain"], "rows": [[30, 0.123456], [100, None]]},
        "curves": [{**curve, "low": [0.6, None, 0.8], "high": [0.8, None, 1.0]}, curve],
        "x_label": "rows",
        "y_label": "AUC",
        "setting": 'plan = "head"',
    }
    text = render_comparison([found, {"kind": "size"}])
    assert ">3000</text>" in text and "mathdefault" not in text  # ticks as text
    page = is_self_contained(text)
    said = page.sections
    assert list(said) == ["Comparison: transfer", "Comparison: size"]
    for part in ("It pays <off>.", "0.123", "–", "frozen <1>", 'plan = "head"'):
        assert part in said["Comparison: transfer"]
    results = table_results(tmp_path, TASKS[:1])
    text, _ = render_report(Results(**{**vars(results), "comparisons": [found]}))
    assert list(Page(text).sections)[:2] == ["Scores", "Comparison: transfer"]


def test_what_notebooks_show(tmp_path):
    results = table_results(tmp_path)
    shown = results.report._repr_html_()
    assert "a &amp; &lt;b&gt;" in shown and f"{results.report.tasks['a & <b>'].auc:.3f}" in shown
    drawn = with_intervals(results.report, results.cells, TASKS, None, 5)._repr_html_()
    assert f"{results.report.tasks['a & <b>'].auc:.3f} [" in drawn
    assert "policy" in results.test.audit()._repr_html_()
    plan = kt.plans.Plan("<mine>", (kt.plans.Stage("head", 3, 0.25),), "why & how")
    assert "0.25" in plan._repr_html_() and "why &amp; how" in plan._repr_html_()
    assert "<mine>" not in plan._repr_html_()
