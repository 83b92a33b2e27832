"""The report of a model as one HTML file, which people can send on: no script, and no request.

`Project.write_report` collects `Results`, and `render_report` makes the file of them: each section
is a function from results to blocks (text, tables, charts, cards), which report.html lays out.
`render_comparison` does the same for what `kerasmtl compare` has measured. Charts are Matplotlib's
SVG in the colours of the page, and images are small JPEGs inside of it.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from importlib.resources import files
from itertools import cycle
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import PIL.Image
from jinja2 import Environment
from markupsafe import Markup
from PIL import ImageOps
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from kerasmtl.data.manifest import Manifest
from kerasmtl.evaluation.calibration import Decision
from kerasmtl.evaluation.evaluate import DEFAULT, Known, with_intervals
from kerasmtl.evaluation.explain import attention_maps, column_importance, likely_wrong_labels
from kerasmtl.evaluation.report import MAIN, Report
from kerasmtl.tasks import Task
from kerasmtl.utils.text import listed

DRAWS = 200  # of the bootstrap; `kerasmtl evaluate --bootstrap 1000` makes more
MOST_RESAMPLED = 40  # tasks, of which a draw takes milliseconds each
MOST_TASKS = 12  # with charts of their own, or in a matrix
MOST_ROWS = 200  # of a table
MOST_POINTS = 150  # of a curve
CARDS = 12  # of a gallery
SIDE = 176  # pixels of an image
INK = "#010203"  # stands for the colour of the text in a chart,
COLOURS = [f"#0a0b{number:02x}" for number in range(6)]  # these for --c0 to --c5 of the page
TITLES = {name: name.upper() for name in ("auc", "r2", "f1", "mae", "rmse", "ece")}

Block = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """What a report is made of.

    Attributes:
        name: of the project.
        model: as trained.
        parts: the rows by "train", "val" and "test".
        report: the scores of the test part.
        cells: known labels and their predictions by task name, of the test part.
        decisions: by task name, the thresholds.
        inputs: makes batches of (inputs, labels) of rows.
        about: what else to list: data, seeds, by name.
        folder: of the run, with its history, log and settings; None without one.
        comparisons: as of `render_comparison`.
        out_of_fold: by task, predictions of the train and then of the val rows by models that have
            not seen them; NaN where there are none.
    """

    name: str
    model: keras.Model
    parts: Mapping[str, Manifest]
    report: Report
    cells: Mapping[str, Known]
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    inputs: Callable[[Manifest], Any] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    comparisons: Sequence[Mapping[str, Any]] = ()
    out_of_fold: Sequence[np.ndarray] = ()

    @property
    def test(self) -> Manifest:
        """The rows that the model has not seen."""
        return self.parts["test"]

    @property
    def known(self) -> list[tuple[Task, Known]]:
        """The tasks with their known labels and predictions."""
        return [(task, self.cells[task.name]) for task in self.test.tasks]

    @property
    def unseen(self) -> list[tuple[Manifest, dict[str, Known]]]:
        """Rows, and known labels with predictions of models that have not seen these rows."""
        found, start = [(self.test, dict(self.cells))], 0
        for rows in (self.parts["train"], self.parts["val"]):
            cells, end = {}, start + len(rows)
            for task, y, p in zip(rows.tasks, rows.labels.T, self.out_of_fold, strict=False):
                if len(p) >= end:
                    p = p[start:end]
                    valid = np.isin(y, range(max(2, task.outputs)))  # neither missing nor soft
                    valid &= ~np.isnan(p.reshape(len(p), -1)).any(axis=1)
                    cells[task.name] = Known(np.flatnonzero(valid), y[valid], p[valid])
            found.append((rows, cells))
            start = end
        return found

    def text(self, name: str) -> str:
        """Return the text of a file of the run; "" if there is none."""
        file = self.folder and self.folder / name
        return file.read_text(encoding="utf-8") if file and file.is_file() else ""


def render_report(results: Results) -> tuple[str, list[str]]:
    """Return the report of a model as HTML, and what could not be shown, a sentence each.

    A section that fails is left out, and says so in the page as well.
    """
    tasks, groups = results.test.tasks, results.test.groups
    if len(tasks) <= MOST_RESAMPLED and results.report.bootstrap is None:
        found = with_intervals(results.report, results.cells, tasks, groups, DRAWS)
        results = replace(results, report=found)
    sections, failed = [], []
    for title, make in SECTIONS.items():
        try:
            blocks = make(results)
        except Exception as error:  # whatever it is: the other sections are worth having
            failed.append(f"{title}: {type(error).__name__}: {error}")
            blocks = [_text(f"Could not be made: {failed[-1]}")]
        sections += [{"title": title, "blocks": blocks}] if blocks else []
    sections[1:1] = map(_compared, results.comparisons)
    return _page(results.name, _summary(results), sections), failed


def render_comparison(results: Iterable[Mapping[str, Any]], title: str = "Comparison") -> str:
    """Return comparisons as one HTML page, which needs no other file.

    Args:
        results: each with "kind", "sentences", "table" ({"columns", "rows"}), and perhaps "curves",
            a list of {"label", "x", "y", "low", "high"}, "x_label" and "y_label", another table as
            "details", and the "setting" that follows.
        title: of the page.

    Example:
        >>> import kerasmtl as kt
        >>> found = {"kind": "size", "sentences": ["Width 8 is enough."],
        ...          "table": {"columns": ["width", "AUC"], "rows": [[8, 0.8]]}}
        >>> "Width 8 is enough." in kt.reports.render_comparison([found])
        True
    """
    return _page(title, [], [_compared(each) for each in results])


def _compared(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section of a comparison."""
    blocks = [_text(sentence) for sentence in result.get("sentences", ())]
    if curves := result.get("curves"):
        labels = result.get("x_label", ""), result.get("y_label", "")
        blocks.append(_figures(_chart(result["kind"], curves, *labels)))
    tables = [result[name] for name in ("table", "details") if result.get(name)]
    blocks += [_table(table["columns"], table["rows"]) for table in tables]
    if result.get("setting"):
        blocks.append(_text(f"project.toml: {result['setting']}"))
    return {"title": f"Comparison: {result['kind']}", "blocks": blocks}


# ---------------------------------------------------------------- sections


def _summary(results: Results) -> list[str]:
    """Return three sentences: what was trained, how good it is, and what to be careful with."""
    report, train, several = results.report, results.parts["train"], len(results.cells) > 1
    tasks = f"{len(results.cells)} tasks" if several else "one task"
    found = [
        f"One network for {tasks} was trained on {len(train)} {train.input.noun} and tested on "
        f"{len(results.test)} that it has not seen."
    ]
    good, few = [], []
    for kind, of in report.by_kind().items():
        score = MAIN[kind]
        ranked = sorted((getattr(s, score), name) for name, s in of.items())
        few += [name for value, name in ranked if math.isnan(value)]
        ranked = [pair for pair in ranked if not math.isnan(pair[0])]
        if ranked:
            at = report.bootstrap and report.bootstrap.macro[kind][score]
            spread = f" (95 % interval {at.low:.2f} to {at.high:.2f})" if at else ""
            ends = [f"{name} with {value:.2f}" for value, name in (ranked[-1], ranked[0])]
            ends_text = f"; best is {ends[0]}, weakest {ends[1]}" if len(ranked) > 1 else ""
            mean = f"{_title(score)} is {report.macro(score, kind):.2f}{spread}{ends_text}"
            good.append(f"the mean {mean}" if len(ranked) > 1 else f"{mean} for {ranked[0][1]}")
    found.append(". ".join(good) or "no task has test labels that could score it")
    unscored = f"; these labels cannot score {listed(few)}" if few and good else ""
    known = sum(len(known.y) for _, cells in results.unseen for known in cells.values())
    found.append(f"{len(_wrong(results))} of {known} labels deserve a second look{unscored}")
    return [f"{text[0].upper()}{text[1:].rstrip('.')}." for text in found]


def _scores(results: Results) -> list[Block]:
    """Return a table for each kind of task, with intervals."""
    report, blocks = results.report, []
    for kind, tasks in report.by_kind().items():
        scores = report.scores(kind)
        values = {name: [getattr(of, s) for s in scores] for name, of in tasks.items()}
        known = {name: of.known for name, of in tasks.items()}
        ends = dict(report.bootstrap.tasks) if report.bootstrap else {}
        if len(tasks) > 1:
            values["mean"], known["mean"] = [report.macro(s, kind) for s in scores], None
            ends["mean"] = report.bootstrap.macro[kind] if report.bootstrap else {}
        rows = [
            [name, known[name], *map(_interval, row, map(ends.get(name, {}).get, scores))]
            for name, row in values.items()
        ]
        caption = f"{kind}, {len(results.test)} test rows"
        blocks.append(_table(["task", "known", *map(_title, scores)], rows, caption))
    said = f"95 % intervals of {DRAWS} bootstrap draws."
    more = "For intervals: kerasmtl evaluate --bootstrap 1000."
    return [*blocks, _text(said if report.bootstrap else more, dim=True)]


def _charts(results: Results) -> list[Block]:
    """Return the charts of each task, as its kind has them."""
    blocks = []
    most = sorted(len(known.y) for known in results.cells.values())[-MOST_TASKS:][0]
    shown = [(task, known) for task, known in results.known if len(known.y) >= most][:MOST_TASKS]
    for number, (task, known) in enumerate(shown):
        if len(np.unique(known.y)) > 1:
            inside = CHARTS[task.kind](task, known, results)
        else:
            inside = [_text(f"{len(known.y)} test labels, no two different ones: no curves.")]
        blocks.append({"kind": "details", "title": task.name, "blocks": inside, "open": number < 3})
    if len(results.known) > len(shown):
        said = f"{len(shown)} of {len(results.known)} tasks, those with the most test labels."
        blocks.append(_text(said, dim=True))
    return blocks


def _binary(task: Task, known: Known, results: Results) -> list[Block]:
    """Return ROC, precision and recall, and calibration."""
    at, y, p = results.report.thresholds.get(task.name, DEFAULT), known.y == 1, known.p
    decided = p >= at
    hits, alarms = (decided & y).sum() / y.sum(), (decided & ~y).sum() / (~y).sum()
    right = (decided & y).sum() / max(decided.sum(), 1)
    roc, (precision, recall, _) = roc_curve(y, p)[:2], precision_recall_curve(y, p)
    bins = int(np.clip(len(y) // 10, 3, 10))
    share, mean = calibration_curve(y, p, n_bins=bins, strategy="quantile")
    even = _curve([0, 1], [0, 1], style=":")
    roc = [even, _curve(*roc), _curve([alarms], [hits], style="o")]
    pr = [_curve([0, 1], [y.mean()] * 2, style=":"), _curve(recall, precision)]
    pr += [_curve([hits], [right], style="o")]
    said = f"The dot is the threshold {at:.3g}: recall {hits:.2f}, precision {right:.2f}."
    return [
        _figures(
            _chart(f"{task.name}: ROC", roc, "false positive rate", "recall"),
            _chart(f"{task.name}: precision and recall", pr, "recall", "precision"),
            _chart(
                f"{task.name}: calibration",
                [even, _curve(mean, share, style="o-")],
                "predicted",
                "true",
            ),
        ),
        _text(said, dim=True),
    ]


def _regression(task: Task, known: Known, results: Results) -> list[Block]:
    """Return predicted against true numbers."""
    some = slice(None, None, len(known.y) // 400 + 1)
    y, p = known.y[some], known.p[some]
    ends = [float(min(y.min(), p.min())), float(max(y.max(), p.max()))]
    curves = [_curve(ends, ends, style=":"), {**_curve([], []), "x": y, "y": p, "style": "."}]
    return [_figures(_chart(f"{task.name}: predicted against true", curves, "true", "predicted"))]


def _multiclass(task: Task, known: Known, results: Results) -> list[Block]:
    """Return the confusion matrix, or, of many classes, what is confused most often."""
    names = np.array(task.classes)
    counts = confusion_matrix(known.y, known.p.argmax(axis=1), labels=range(len(names)))
    if len(names) <= MOST_TASKS:
        rows = [[name, *_shares(row, row.sum())] for name, row in zip(names, counts, strict=True)]
        caption = "Share of each true class (in rows) that is predicted as a class (in columns)"
        return [_table(["true", *names], rows, caption)]
    y, p = np.nonzero(counts * (1 - np.eye(len(names), dtype=int)))
    most = np.argsort(-counts[y, p], kind="stable")[:MOST_TASKS]
    rows = [[names[y[at]], names[p[at]], int(counts[y[at], p[at]])] for at in most]
    return [_table(["true", "predicted", "rows"], rows, "What is confused most often")]


def _thresholds(results: Results) -> list[Block]:
    """Return from where on each binary task says yes, and what that is worth on validation."""
    names = ("precision", "recall", "f1")
    rows = [
        [task, of.threshold, of.rule, of.known, *map(of.scores.get, names), "; ".join(of.notes)]
        for task, of in results.decisions.items()
        if of.threshold is not None
    ]
    columns = ["task", "yes from", "rule", "known", "precision", "recall", "F1", "note"]
    return (
        [_table(columns, rows, "Fitted and scored on validation labels, or out of fold")]
        if rows
        else []
    )


def _training(results: Results) -> list[Block]:
    """Return the plan, the candidates for the head, and the history by stage."""
    lines = results.text("train.log").splitlines()
    blocks = [_text(line) for line in lines if re.match("(Plan|Best epoch)", line)]
    if text := results.text("heads.json"):
        heads = json.loads(text)
        blocks += [_text(heads["why"])] if heads.get("why") else []
        table = pd.DataFrame(heads["candidates"]).astype(object)
        rows = table.where(table.notna(), None).to_numpy().tolist()
        blocks.append(_table(list(table), rows, "Candidates for the head, by cross-validation"))
    if not (text := results.text("history.csv")):
        return blocks
    starts: dict[str, int] = {}
    stage = ""
    for line in lines:
        if named := re.match(r"(Stage \d+) of \d+: (.*?) \(", line):
            stage = f"{named[1]}: {named[2]}"
        elif epoch := re.match(r"Epoch (\d+)/", line):
            starts.setdefault(stage, int(epoch[1]))
    history = pd.read_csv(io.StringIO(text))
    names = [n for n in history if n not in ("epoch", "seconds") and not n.startswith("val_")]
    charts = []
    for name in sorted(names, key=lambda name: name != "loss")[:3]:
        both = {name: "training", f"val_{name}": "validation"}
        curves = [
            _curve(history["epoch"], history[column], label=label)
            for column, label in both.items()
            if column in history
        ]
        charts.append(_chart(name, curves, "epoch", name, [first for first in starts.values()][1:]))
    if len(starts) > 1:
        blocks.append(_table(["stage", "from epoch"], list(map(list, starts.items()))))
    return [*blocks, _figures(*charts)]


def _labels(results: Results) -> list[Block]:
    """Return how many labels are known in each part, and which go together."""
    y = np.concatenate([part.labels for part in results.parts.values()])
    known = {n: (~np.isnan(part.labels)).sum(axis=0) for n, part in results.parts.items()}
    tasks, share = results.test.tasks, _shares((~np.isnan(y)).sum(axis=0), len(y))
    positive = _shares((y == 1).sum(axis=0), (~np.isnan(y)).sum(axis=0))
    rows = [
        [task.name, *(int(of[at]) for of in known.values()), share[at]]
        + [positive[at] if task.kind == "binary" else None]
        for at, task in enumerate(tasks)
    ]
    columns = ["task", *(f"known in {name}" for name in known), "share known", "positive"]
    blocks = [_table(columns, rows, f"{len(y)} rows")]
    binary = [at for at, task in enumerate(tasks) if task.kind == "binary"][:MOST_TASKS]
    if len(binary) > 1:
        ones, names = (y[:, binary] == 1).astype(int), [tasks[at].name for at in binary]
        both, of = ones.T @ ones, ones.T @ (~np.isnan(y[:, binary])).astype(int)
        rows = [[name, *_shares(*pair)] for name, *pair in zip(names, both, of, strict=True)]
        caption = "Where the task of the row is positive: how often that of the column is as well"
        blocks.append(_table(["", *names], rows, caption))
    return blocks


def _mistakes(results: Results) -> list[Block]:
    """Return the most confident mistakes, some of each task."""
    found = []
    for task, known in results.known:
        size = _error(task, known, results)
        worst = np.argsort(-size, kind="stable")[: max(2, CARDS // len(results.known))]
        found += [(size[at], task, known, at) for at in worst if size[at] > 0]
    found.sort(key=lambda each: -each[0])
    cards = [
        _card(
            results.test,
            k.rows[at],
            f"{task.name}: {_said(task, k.y[at])}, predicted ",
            task,
            k.p[at],
        )
        for _, task, k, at in found[:CARDS]
    ]
    return [{"kind": "cards", "cards": cards}] if cards else [_text("There are none.")]


def _error(task: Task, known: Known, results: Results) -> np.ndarray:
    """Return how wrong each prediction is, (n,): 0 where it is right, else the distance from it."""
    if task.kind == "regression":
        return np.abs(known.p - known.y) / (known.y.std() or 1.0) if len(known.y) else known.y
    if task.kind == "multiclass":
        p = known.p[np.arange(len(known.y)), known.y.astype(int)]
        return np.where(known.p.argmax(axis=1) == known.y, 0, known.p.max(axis=1) - p)
    decided = known.p >= results.report.thresholds.get(task.name, DEFAULT)
    return np.where(decided == (known.y == 1), 0, np.abs(known.p - known.y))


def _wrong(results: Results) -> list[tuple[float, Manifest, Task, int, int, int]]:
    """Return the labels that are likely wrong: margin, rows, task, row, label, suggested."""
    found = []
    for rows, cells in results.unseen:
        for task in rows.tasks:
            if task.kind != "regression" and task.name in cells:
                known = cells[task.name]
                table = likely_wrong_labels(known.y, known.p).to_numpy()
                found += [(m, rows, task, known.rows[int(at)], y, q) for at, y, q, m in table]
    return sorted(found, key=lambda each: -each[0])


def _suspects(results: Results) -> list[Block]:
    """Return the labels that are likely wrong, the surest first."""
    found = _wrong(results)
    cards = [
        _card(rows, row, f"{task.name}: {_said(task, y)}, likely {_said(task, instead)}")
        for _, rows, task, row, y, instead in found[:CARDS]
    ]
    said = (
        f"{len(found)} labels of rows that the model had not seen: it is surer of another answer "
        "than on average where that is the label (confident learning, arXiv:1911.00068). The first:"
    )
    return [_text(said, dim=True), {"kind": "cards", "cards": cards}] if cards else []


def _looks(results: Results) -> list[Block]:
    """Return where the model looks in images, or which columns it goes by."""
    test = results.test
    if test.input.kind == "table":
        table = column_importance(results.model, test.values, test.tasks, results.cells)
        top = table.mean(axis=1).sort_values(ascending=False).index[:15] if len(table) else []
        rows = [[test.input.features[at], *_shares(table.loc[at].to_numpy(), 1)] for at in top]
        caption = "How much the score (AUC, accuracy, R2) falls if the column is shuffled"
        return [_table(["column", *table], rows, caption)] if rows else []
    wanted = []
    for task, known in results.known[:CARDS] if test.input.kind == "image" else ():
        right = (_error(task, known, results) == 0) & (task.kind != "regression")
        # A binary task's no has no place in the image that speaks for it.
        right &= known.y == 1 if task.kind == "binary" else True
        if right.any():
            sure = known.p if task.kind == "binary" else known.p.max(axis=1)
            best = int(np.where(right, sure, -1).argmax())
            wanted.append((int(known.rows[best]), task, known.y[best], known.p[best]))
    if not wanted or results.inputs is None:
        return []
    batches = results.inputs(test.take([row for row, *_ in wanted]))
    images = np.concatenate([np.asarray(x) for x, _ in batches])
    asked = [(task.name, int(label)) for _, task, label, _ in wanted]
    maps, method = attention_maps(results.model, images, test.tasks, asked)
    cards = []
    for (row, task, label, p), *seen in zip(wanted, images, maps, strict=True):
        said = f"{task.name}: {_said(task, label)}, predicted "
        card = _card(test, row, said, task, p)
        cards.append({**card, "images": [_jpeg(seen[0]), _jpeg(_heated(*seen))]})
    said = f"Of each task the surest right answer; bright is what speaks for it ({method})."
    return [_text(said, dim=True), {"kind": "cards", "cards": cards}]


def _about(results: Results) -> list[Block]:
    """Return data, seeds, versions, and the settings as they were."""
    packages = ("kerasmtl", "keras", "tensorflow", "numpy", "scikit-learn")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    about = {**results.about, "versions": f"{versions}, Python {platform.python_version()}"}
    blocks = [_table([], [[name, str(value)] for name, value in about.items()])]
    if text := results.text("project.toml"):
        # Without the folders of this machine.
        text = re.sub(r'"(?:/|[A-Za-z]:)[^"\n]*[/\\]([^"/\\\n]+)"', r'"…/\1"', text)
        inside = [{"kind": "pre", "text": text}]
        blocks.append({"kind": "details", "title": "project.toml", "blocks": inside})
    return blocks


CHARTS = {"binary": _binary, "multiclass": _multiclass, "regression": _regression}
SECTIONS = {
    "Scores": _scores,
    "Task by task": _charts,
    "Thresholds": _thresholds,
    "Training": _training,
    "Labels": _labels,
    "Most confident mistakes": _mistakes,
    "Labels that are likely wrong": _suspects,
    "What the model goes by": _looks,
    "How it was made": _about,
}


# ---------------------------------------------------------------- blocks


def _text(text: str, dim: bool = False) -> Block:
    """Return a paragraph; `dim` is for remarks."""
    return {"kind": "text", "text": text, "dim": dim}


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> Block:
    """Return a table; None and NaN are a dash."""
    return {"kind": "table", "columns": columns, "rows": rows, "caption": caption}


def _figures(*charts: tuple[str, Markup]) -> Block:
    """Return charts side by side, each with its label for those who cannot see it."""
    return {"kind": "figures", "figures": charts}


class Shaded(float):
    """A number in a table whose cell is the darker the nearer it is to 1."""

    @property
    def shade(self) -> float:
        """The number from 0 to 1, rounded; 0 where it is undefined."""
        return 0.0 if math.isnan(self) else round(min(max(float(self), 0.0), 1.0), 2)


def _shares(part: np.ndarray, whole: Any) -> list[Shaded]:
    """Return part / whole; NaN where that is 0."""
    whole = np.broadcast_to(np.asarray(whole, "float64"), part.shape)
    return [Shaded(a / b) if b else Shaded("nan") for a, b in zip(part, whole, strict=True)]


def _curve(x: Any, y: Any, style: str = "-", label: str = "") -> dict[str, Any]:
    """Return a curve of at most `MOST_POINTS` points; ":" is a line to compare with, "o" dots."""
    at = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).astype(int)) if len(x) else []
    return {"x": np.asarray(x)[at], "y": np.asarray(y)[at], "style": style, "label": label}


def _chart(
    title: str, curves: Iterable[Mapping[str, Any]], x: str, y: str, marks: Iterable[float] = ()
) -> tuple[str, Markup]:
    """Draw curves as SVG that is the same each time; `x`, `y` are labels, `marks` lines at x."""
    import matplotlib  # half a second, which `import` of this module need not take
    from matplotlib.figure import Figure

    parts = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style = dict.fromkeys(parts, INK) | dict.fromkeys(
        ("axes.spines.top", "axes.spines.right"), False
    )
    style |= {"svg.fonttype": "none", "svg.hashsalt": title, "text.parse_math": False}
    style |= {"font.size": 9, "axes.titlesize": 10, "legend.frameon": False}
    out, colours = io.StringIO(), cycle(COLOURS)
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(3.6, 2.7), layout="constrained")
        axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
        for curve in curves:
            at, kind = np.asarray(curve["x"], "float64"), curve.get("style", "o-")
            values = {name: curve.get(name) for name in ("y", "low", "high")}
            values = {n: np.array(v, "float64") for n, v in values.items() if v is not None}
            colour = INK if kind == ":" else next(colours)
            axes.plot(
                at,
                values["y"],
                kind,
                color=colour,
                markersize=4,
                linewidth=0.6 if kind == ":" else 1.5,
                label=curve.get("label") or None,
            )
            if len(values) == 3:
                ends = values["low"], values["high"]
                axes.fill_between(at, *ends, color=colour, alpha=0.15, linewidth=0)
            if "style" not in curve and at.min() > 0 and at.max() > 20 * at.min():  # sizes
                axes.set_xscale("log")
        for mark in marks:
            axes.axvline(mark - 0.5, color=INK, linewidth=0.6, linestyle=":")
        if any(curve.get("label") for curve in curves):
            axes.legend()
        no_date = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=no_date)
    # In HTML an SVG needs no namespaces, and ids must be unique in the whole page.
    svg = re.sub(r"<metadata>.*?</metadata>", "", out.getvalue(), flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"|(?<=<g) id="[^"]*"', "", svg[svg.index("<svg") :])
    svg = re.sub(r"(font: [^';\"]*)'[^;\"]*", r"\1sans-serif", svg).replace(INK, "currentColor")
    for number, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--c{number})")
    return title, Markup(svg)


def _title(score: str) -> str:
    """Return a score's name as a heading."""
    return TITLES.get(score, score.replace("_", " "))


def _interval(value: float, ends: Any) -> Any:
    """Return a score, with its interval where there is one."""
    if ends is None or math.isnan(ends.low) or math.isnan(value):
        return value
    return f"{value:.3f} [{ends.low:.2f}, {ends.high:.2f}]"


def _card(
    rows: Manifest, row: int, said: str, task: Task | None = None, p: Any = None
) -> dict[str, Any]:
    """Return a card of a row: its image, or its most unusual columns; a line, a prediction."""
    images, lines = [], [said + ("" if task is None else _predicted(task, p))]
    if rows.input.kind == "image":
        with contextlib.suppress(OSError):  # it has been moved away since
            path = rows.input.paths(rows.values[[row]])[0]
            images = [_jpeg(ImageOps.exif_transpose(PIL.Image.open(path)))]
    elif rows.input.kind == "table":
        table = pd.DataFrame(rows.values, columns=list(rows.input.features))
        unusual = ((table.loc[row] - table.mean()) / table.std()).abs().nlargest(3).index
        lines += [f"{column} = {table.at[row, column]:.4g}" for column in unusual]
    return {"title": str(rows.names[row]), "lines": lines, "images": images}


def _jpeg(image: Any) -> str:
    """Return a small JPEG as a data URI, of Pillow's image or of (height, width, 3) in [0, 1]."""
    if not isinstance(image, PIL.Image.Image):
        image = PIL.Image.fromarray((np.clip(image, 0, 1) * 255).astype("uint8"))
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=75)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _heated(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return an image under a map of any size, both from 0 to 1."""
    from matplotlib import colormaps

    coarse = PIL.Image.fromarray(heat.astype("float32")).resize((16, 16), PIL.Image.Resampling.BOX)
    large = np.asarray(coarse.resize(image.shape[1::-1], PIL.Image.Resampling.BICUBIC))
    return 0.45 * image + 0.55 * colormaps["inferno"](large / max(large.max(), 1e-9))[..., :3]


def _said(task: Task, label: float) -> str:
    """Return a label as people say it."""
    if task.kind == "multiclass":
        return task.classes[int(label)]
    return f"{label:.4g}" if task.kind == "regression" else "yes" if label == 1 else "no"


def _predicted(task: Task, p: Any) -> str:
    """Return a prediction as people read it."""
    if task.kind == "multiclass":
        return f"{task.classes[int(np.argmax(p))]} ({np.max(p):.2f})"
    return f"{p:.4g}" if task.kind == "regression" else f"{p:.2f}"


def _shown(value: Any) -> str:
    """Return a cell of a table as text."""
    if value is None or isinstance(value, float) and math.isnan(value):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _page(title: str, summary: Sequence[str], sections: Sequence[Mapping[str, Any]]) -> str:
    """Return a page of sections."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shown"] = _shown
    text = files("kerasmtl.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    page = environment.from_string(text)
    return page.render(title=title, summary=summary, sections=sections, most=MOST_ROWS)
