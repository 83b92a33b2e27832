"""The report of a model as one HTML file, which people can send on: no script, and no request.

`Project.write_report` collects `Results`, and `render_report` makes the file of them: each section
is a function from results to pieces of HTML, which the macros of report.html make of texts, data
frames, charts and cards. `render_comparison` does the same for what `kerasmtl compare` has
measured. Charts are Matplotlib's SVG in the colours of the page, and images are small JPEGs.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import PIL.Image
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from PIL import ImageOps
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from kerasmtl.data.manifest import Manifest
from kerasmtl.evaluation.calibration import Decision
from kerasmtl.evaluation.evaluate import DEFAULT, Known, with_intervals
from kerasmtl.evaluation.explain import attention_maps, column_importance, likely_wrong_labels
from kerasmtl.evaluation.report import MAIN, Report, is_scored
from kerasmtl.tasks import Task
from kerasmtl.utils.text import listed

DRAWS = 200  # of the bootstrap; `kerasmtl evaluate --bootstrap 1000` makes more
MOST_RESAMPLED = 40  # tasks, of which a draw takes milliseconds each
MOST_TASKS = 12  # with charts of their own, or in a matrix
MOST_ROWS = 200  # of a table
CARDS = 12  # of a gallery
SIDE = 176  # pixels of an image
INK = "#010203"  # stands for the colour of the text in a chart,
COLOURS = [f"#0a0b{number:02x}" for number in range(6)]  # these for --c0 to --c5 of the page
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
STYLE = dict.fromkeys(INKED, INK) | {
    "axes.prop_cycle": f"cycler(color={COLOURS})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "lines.markersize": 4,
    "path.simplify_threshold": 0.5,  # pixels: curves of many rows stay small
    "svg.fonttype": "none",
    "text.parse_math": False,
}
EVEN = {"color": INK, "linestyle": ":", "linewidth": 0.6}  # lines to compare a curve with
TITLES = {name: name.upper() for name in ("auc", "r2", "f1", "mae", "rmse", "ece")}

Charts = list[tuple[str, Markup]]
Found = list[tuple[float, Manifest, int, str]]  # size, rows, a row of them, what is said of it
TEMPLATES = Environment(loader=PackageLoader("kerasmtl", "evaluation"), autoescape=True)
HTML = TEMPLATES.get_template("report.html").module  # macros, which escape what they are given


@dataclass(frozen=True)
class Results:
    """What a report is made of."""

    name: str  # of the project
    model: keras.Model  # as trained
    parts: Mapping[str, Manifest]  # the rows by "train", "val" and "test"
    report: Report  # the scores of the test part
    cells: Mapping[str, Known]  # of the test part, by task name
    decisions: Mapping[str, Decision] = field(default_factory=dict)  # thresholds, by task name
    inputs: Callable[[Manifest], Any] | None = None  # makes batches of (inputs, labels) of rows
    about: Mapping[str, Any] = field(default_factory=dict)  # what else to list: data, seeds
    folder: Path | None = None  # of the run, with its history, log and settings
    comparisons: Sequence[Mapping[str, Any]] = ()  # as of `render_comparison`
    # By task, predictions of the train and then of the val rows by models that have not seen them;
    # NaN where there are none.
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
        train, val = self.parts["train"], self.parts["val"]
        found = [(self.test, dict(self.cells)), (train, {}), (val, {})]
        for task, whole in zip(train.tasks, self.out_of_fold, strict=False):
            for (rows, cells), p in zip(found[1:], np.split(whole, [len(train)]), strict=True):
                y = rows.labels[:, train.tasks.index(task)]
                known = is_scored(task.kind, y) & ~np.isnan(p.reshape(len(y), -1)).any(axis=1)
                cells[task.name] = Known(np.flatnonzero(known), y[known], p[known])
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
            blocks = [HTML.text(f"Could not be made: {failed[-1]}")]
        sections += [(title, blocks)] if blocks else []
    for result in reversed(results.comparisons):
        try:
            sections.insert(1, _compared(result))
        except (KeyError, TypeError, ValueError) as error:  # a file that somebody has changed
            failed.append(f"Comparison: {type(error).__name__}: {error}")
    return str(HTML.page(results.name, _summary(results), sections)), failed


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
    return str(HTML.page(title, [], map(_compared, results)))


def _compared(result: Mapping[str, Any]) -> tuple[str, list[Markup]]:
    """Return the title and the blocks of a comparison."""
    blocks, charts = [HTML.text(sentence) for sentence in result.get("sentences", ())], []
    if curves := result.get("curves"):
        labels = result.get("x_label", ""), result.get("y_label", "")
        with _chart(charts, result["kind"], *labels) as axes:
            for curve in curves:
                x, y = np.array(curve["x"], float), np.array(curve["y"], float)
                axes.plot(x, y, "o-", label=curve["label"])
                if "low" in curve:
                    ends = np.array([curve["low"], curve["high"]], float)
                    axes.fill_between(x, *ends, alpha=0.15, linewidth=0)
                if x.min() > 0 and x.max() > 10 * x.min():  # sizes
                    axes.set_xscale("log")
                    axes.set_xticks(x, [f"{size:g}" for size in x], minor=False)
                    axes.minorticks_off()
        said = "Bands: 95 % intervals of each curve. Paired differences are more precise."
        blocks += [HTML.figures(charts), HTML.text(said, dim=True)]
    for table in filter(None, map(result.get, ("table", "details"))):
        blocks.append(_table(pd.DataFrame(table["rows"], columns=table["columns"], dtype=object)))
    if result.get("setting"):
        blocks.append(HTML.text(f"project.toml: {result['setting']}"))
    return f"Comparison: {result['kind']}", blocks


def _summary(results: Results) -> list[str]:
    """Return three sentences: what was trained, how good it is, and what to be careful with."""
    report, (_, *learned) = results.report, results.unseen
    # A head by folds has learned from the validation rows as well.
    rows = sum(len(of) for of, cells in learned if any(len(each.y) for each in cells.values()))
    rows = f"{rows or len(results.parts['train'])} {results.test.input.noun}"
    tasks = f"{len(results.cells)} tasks" if len(results.cells) > 1 else "one task"
    good, unscored = [], []
    for kind, of in report.by_kind().items():
        score = MAIN[kind]
        values = pd.Series({name: getattr(scores, score) for name, scores in of.items()})
        unscored += values.index[values.isna()].tolist()
        values = values.dropna().sort_values(ascending=False)
        ends = report.bootstrap and report.bootstrap.macro[kind][score]
        spread = f" (95 % interval {ends.low:.2f} to {ends.high:.2f})" if ends else ""
        mean = f"{_title(score)} is {values.mean():.2f}{spread}"
        named = [f"{name} with {value:.2f}" for name, value in values.items()]
        if len(named) > 1:
            good.append(f"The mean {mean}; best is {named[0]}, weakest {named[-1]}.")
        elif named:
            good.append(f"{mean[0].upper()}{mean[1:]} for {values.index[0]}.")
    known = sum(len(each.y) for _, cells in results.unseen for each in cells.values())
    rest = f"; these labels cannot score {listed(unscored)}" if unscored and good else ""
    return [
        f"One network for {tasks} was trained on {rows} and tested on {len(results.test)} that it "
        "has not seen.",
        " ".join(good) or "No task has test labels that could score it.",
        f"{len(_wrong(results))} of {known} labels deserve a second look{rest}.",
    ]


def _scores(results: Results) -> list[Markup]:
    """Return a table for each kind of task, with intervals."""
    said, blocks = f"95 % intervals of {DRAWS} bootstrap draws.", []
    for kind, table in results.report.frames().items():
        table = table.rename(columns=_title).reset_index(names="task")
        blocks.append(_table(table, f"{kind}, {len(results.test)} test rows"))
    if results.report.bootstrap is None:
        said = "For intervals: kerasmtl evaluate --bootstrap 1000."
    return [*blocks, HTML.text(said, dim=True)]


def _charts(results: Results) -> list[Markup]:
    """Return the charts of each task, as its kind has them."""
    blocks = []
    shown = sorted(results.known, key=lambda pair: -len(pair[1].y))[:MOST_TASKS]
    for number, (task, known) in enumerate(shown):
        inside = [HTML.text(f"{len(known.y)} test labels, no two different ones: no curves.")]
        if len(np.unique(known.y)) > 1:
            inside = CHARTS[task.kind](task, known, results)
        blocks.append(HTML.details(task.name, inside, number < 3))
    if len(results.known) > len(shown):
        said = f"{len(shown)} of {len(results.known)} tasks, those with the most test labels."
        blocks.append(HTML.text(said, dim=True))
    return blocks


def _binary(task: Task, known: Known, results: Results) -> list[Markup]:
    """Return ROC, precision and recall, and calibration."""
    at, y, p = results.report.thresholds.get(task.name, DEFAULT), known.y == 1, known.p
    decided = p >= at
    hits, alarms = decided[y].mean(), decided[~y].mean()
    right = (decided & y).sum() / max(decided.sum(), 1)
    charts = []
    with _chart(charts, f"{task.name}: ROC", "false positive rate", "recall") as axes:
        axes.axline((0, 0), (1, 1), **EVEN)
        axes.plot(*roc_curve(y, p)[:2])
        axes.plot(alarms, hits, "o")
    with _chart(charts, f"{task.name}: precision and recall", "recall", "precision") as axes:
        axes.axhline(y.mean(), **EVEN)
        precision, recall, _ = precision_recall_curve(y, p)
        axes.plot(recall, precision)
        axes.plot(hits, right, "o")
    with _chart(charts, f"{task.name}: calibration", "predicted", "true") as axes:
        axes.axline((0, 0), (1, 1), **EVEN)
        bins = int(np.clip(len(y) // 10, 3, 10))
        share, mean = calibration_curve(y, p, n_bins=bins, strategy="quantile")
        axes.plot(mean, share, "o-")
    said = f"The dot is the threshold {at:.3g}: recall {hits:.2f}, precision {right:.2f}."
    return [HTML.figures(charts), HTML.text(said, dim=True)]


def _regression(task: Task, known: Known, results: Results) -> list[Markup]:
    """Return predicted against true numbers."""
    some, charts = slice(None, None, len(known.y) // 400 + 1), []  # that many dots
    with _chart(charts, f"{task.name}: predicted against true", "true", "predicted") as axes:
        axes.axline((known.y[0], known.y[0]), slope=1, **EVEN)
        axes.plot(known.y[some], known.p[some], ".")
    return [HTML.figures(charts)]


def _multiclass(task: Task, known: Known, results: Results) -> list[Markup]:
    """Return the confusion matrix of the most frequent classes."""
    names = list(task.classes)
    counts = confusion_matrix(known.y, known.p.argmax(axis=1), labels=range(len(names)))
    shares = pd.DataFrame(counts, names, names).div(counts.sum(axis=1), axis=0)
    most = shares.index[np.sort(np.argsort(-counts.sum(axis=1), kind="stable")[:MOST_TASKS])]
    which = "" if len(most) == len(names) else f", of the {len(most)} most frequent"
    caption = f"Share of each true class (in rows) that is predicted as a class (in columns){which}"
    return [_table(shares.loc[most, most].reset_index(names="true"), caption, shaded=True)]


def _thresholds(results: Results) -> list[Markup]:
    """Return the thresholds of binary tasks, and their scores."""
    rows = [
        {"task": name, "yes from": of.threshold, "rule": of.rule, "known": of.known}
        | {_title(score): of.scores.get(score) for score in ("precision", "recall", "f1")}
        | {"note": "; ".join(of.notes)}
        for name, of in results.decisions.items()
        if of.threshold is not None
    ]
    caption = "Fitted and scored on validation labels, or out of fold"
    return [_table(pd.DataFrame(rows), caption)] if rows else []


def _training(results: Results) -> list[Markup]:
    """Return the plan, the candidates for the head, and the history by stage."""
    lines = results.text("train.log").splitlines()
    blocks = [HTML.text(line) for line in lines if re.match("(Plan|Best epoch)", line)]
    if text := results.text("heads.json"):
        heads = json.loads(text)
        blocks += [HTML.text(heads["why"])] if heads.get("why") else []
        candidates = pd.DataFrame(heads["candidates"], dtype=object)
        blocks.append(_table(candidates, "Candidates for the head, by cross-validation"))
    if not (text := results.text("history.csv")):
        return blocks
    starts: dict[str, int] = {}
    stage = ""
    for line in lines:
        if named := re.match(r"(Stage \d+) of \d+: (.*?) \(", line):
            stage = f"{named[1]}: {named[2]}"
        elif epoch := re.match(r"Epoch (\d+)/", line):
            starts.setdefault(stage, int(epoch[1]))
    history, charts = pd.read_csv(io.StringIO(text)), []
    names = [n for n in history if n not in ("epoch", "seconds") and not n.startswith("val_")]
    for name in sorted(names, key=lambda name: name != "loss")[:3]:
        with _chart(charts, name, "epoch", name) as axes:
            for column, label in ((name, "training"), (f"val_{name}", "validation")):
                if column in history:
                    axes.plot(history["epoch"], history[column], label=label)
            for first in list(starts.values())[1:]:
                axes.axvline(first - 0.5, **EVEN)
    if len(starts) > 1:
        blocks.append(_table(pd.DataFrame(starts.items(), columns=["stage", "from epoch"])))
    return [*blocks, HTML.figures(charts)]


def _labels(results: Results) -> list[Markup]:
    """Return how many labels are known in each part, and which go together."""
    tasks = results.test.tasks
    names = [task.name for task in tasks]
    parts = {n: pd.DataFrame(part.labels, columns=names) for n, part in results.parts.items()}
    y = pd.concat(parts.values())
    known, ones = y.notna(), y == 1
    table = pd.DataFrame({f"known in {name}": of.notna().sum() for name, of in parts.items()})
    table["share known"] = known.mean()
    binary = [task.name for task in tasks if task.kind == "binary"]
    table["positive"] = ones[binary].sum() / known[binary].sum()
    blocks = [_table(table.reset_index(names="task"), f"{len(y)} rows", shaded=True)]
    binary = binary[:MOST_TASKS]
    if len(binary) > 1:
        positive = ones[binary].astype(int)
        shares = (positive.T @ positive) / (positive.T @ known[binary].astype(int))
        caption = "Where the task of the row is positive: how often that of the column is as well"
        blocks.append(_table(shares.reset_index(names=""), caption, shaded=True))
    return blocks


def _mistakes(results: Results) -> list[Markup]:
    """Return the most confident mistakes, some of each task."""
    found = []
    for task, known in results.known:
        size = _error(task, known, results)
        for at in np.argsort(-size, kind="stable")[: max(2, CARDS // len(results.known))]:
            if size[at] > 0:
                said = _said(task, known.y[at], known.p[at])
                found.append((size[at], results.test, known.rows[at], said))
    return [_gallery(found) if found else HTML.text("There are none.")]


def _of_label(task: Task, known: Known) -> np.ndarray:
    """Return the probability of each label, (n,); of a binary task 0 where the label is no."""
    if task.kind == "multiclass":
        return known.p[np.arange(len(known.y)), known.y.astype(int)]
    return known.p * (known.y == 1)


def _error(task: Task, known: Known, results: Results) -> np.ndarray:
    """Return how wrong each prediction is, (n,): 0 where it is right, else the distance from it."""
    if task.kind == "regression":
        return np.abs(known.p - known.y) / (known.y.std() or 1.0) if len(known.y) else known.y
    if task.kind == "multiclass":
        return known.p.max(axis=1) - _of_label(task, known)
    decided = known.p >= results.report.thresholds.get(task.name, DEFAULT)
    return np.where(decided == (known.y == 1), 0, np.abs(known.p - known.y))


def _wrong(results: Results) -> Found:
    """Return the labels that are likely wrong, with their margin."""
    found = []
    for rows, cells in results.unseen:
        for task in rows.tasks:
            if task.kind != "regression" and task.name in cells:
                known = cells[task.name]
                for each in likely_wrong_labels(known.y, known.p).itertuples():
                    said = f"{_said(task, each.label)}, likely {_class(task, each.suggested)}"
                    found.append((each.margin, rows, known.rows[each.row], said))
    return found


def _suspects(results: Results) -> list[Markup]:
    """Return the labels that are likely wrong, the surest first."""
    found = _wrong(results)
    said = (
        f"{len(found)} labels of rows that the model had not seen: it is surer of another answer "
        "than on average where that is the label (confident learning, arXiv:1911.00068). The first:"
    )
    return [HTML.text(said, dim=True), _gallery(found)] if found else []


def _looks(results: Results) -> list[Markup]:
    """Return where the model looks in images, or which columns it goes by."""
    test = results.test
    if test.input.kind == "table":
        table = column_importance(results.model, test.values, test.tasks, results.cells)
        top = table.loc[table.mean(axis=1).nlargest(15).index]
        top.insert(0, "column", [test.input.features[at] for at in top.index])
        caption = "How much the score (AUC, accuracy, R2) falls if the column is shuffled"
        return [] if table.empty else [_table(top, caption, shaded=True)]
    wanted = []
    for task, known in results.known[:CARDS] if test.input.kind == "image" else ():
        if task.kind != "regression":  # and a no has no place in the image that speaks for it
            sure = _of_label(task, known)
            if sure.any():
                best = sure.argmax()
                wanted.append((task, known.rows[best], known.y[best], known.p[best]))
    if not wanted or results.inputs is None:
        return []
    batches = results.inputs(test.take([row for _, row, *_ in wanted]))
    images = np.concatenate([np.asarray(x) for x, _ in batches])
    asked = [(task.name, int(y)) for task, _, y, _ in wanted]
    maps, method = attention_maps(results.model, images, test.tasks, asked)
    cards = []
    for (task, row, y, p), image, heat in zip(wanted, images, maps, strict=True):
        shown = [np.clip(each, 0, 1) * 255 for each in (image, _heated(image, heat))]
        shown = [_jpeg(keras.utils.array_to_img(each, scale=False)) for each in shown]
        cards.append({**_card(test, row, _said(task, y, p)), "images": shown})
    said = f"Of each task the label it is surest of; bright is what speaks for it ({method})."
    return [HTML.text(said, dim=True), HTML.cards(cards)]


def _about(results: Results) -> list[Markup]:
    """Return data, seeds, versions, and the settings as they were."""
    packages = ("kerasmtl", "keras", "tensorflow", "numpy", "scikit-learn")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    about = {**results.about, "versions": f"{versions}, Python {platform.python_version()}"}
    blocks = [HTML.pairs({name: str(value) for name, value in about.items()})]
    if text := results.text("project.toml"):
        # Without the folders of this machine.
        text = re.sub(r'"(?:/|[A-Za-z]:)[^"\n]*[/\\]([^"/\\\n]+)"', r'"…/\1"', text)
        blocks.append(HTML.details("project.toml", [HTML.code(text)]))
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


def _table(table: pd.DataFrame, caption: str = "", shaded: bool = False) -> Markup:
    """Return a table; a column without letters is one of numbers, shades are of fractions."""
    shown = table.iloc[:MOST_ROWS].map(_shown)
    shown = shown.loc[:, (shown != "").any()]
    numbers = [not column.str.contains(r"[^\W\d_]").any() for _, column in shown.items()]
    numbers[:1] = [False]  # a name, even if it is a number
    shades = table[shown.columns] if shaded else shown
    return HTML.table(shown, shades, numbers, caption, len(table) - len(shown))


def _shown(value: Any) -> str:
    """Return a cell of a table as text; None and NaN are a dash."""
    if isinstance(value, bool):
        return "yes" if value else ""
    if pd.isna(value):
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def _chart(charts: Charts, title: str, x: str, y: str) -> Iterator[Any]:
    """Give axes to draw on, and add their SVG, the same each time, with its title to `charts`."""
    import matplotlib  # half a second, which `import` of this module need not take
    from matplotlib.figure import Figure

    out = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": title}):
        figure = Figure(figsize=(3.6, 2.7), layout="constrained")
        axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
        yield axes
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        figure.savefig(out, format="svg", transparent=True)
    # In HTML an SVG needs no namespaces, and ids must be unique in the whole page.
    svg = re.sub(r"<metadata>.*?</metadata>", "", out.getvalue(), flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"|(?<=<g) id="[^"]*"', "", svg[svg.index("<svg") :])
    svg = re.sub(r"(font: [^';\"]*)'[^;\"]*", r"\1sans-serif", svg).replace(INK, "currentColor")
    for number, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--c{number})")
    charts.append((title, Markup(svg)))


def _title(score: str) -> str:
    """Return a score's name as a heading."""
    return TITLES.get(score, score.replace("_", " "))


def _gallery(found: Found) -> Markup:
    """Return cards of those with the largest sizes."""
    most = sorted(found, key=lambda each: -each[0])[:CARDS]
    return HTML.cards([_card(rows, row, said) for _, rows, row, said in most])


def _card(rows: Manifest, row: int, said: str) -> dict[str, Any]:
    """Return a card of a row: its image, or its most unusual columns."""
    images, lines = [], [said]
    if rows.input.kind == "image":
        with contextlib.suppress(OSError):  # it has been moved away since
            path = rows.input.paths(rows.values[[row]])[0]
            images = [_jpeg(ImageOps.exif_transpose(PIL.Image.open(path)))]
    elif rows.input.kind == "table":
        table = pd.DataFrame(rows.values, columns=list(rows.input.features))
        unusual = ((table.loc[row] - table.mean()) / table.std()).abs().nlargest(3).index
        lines += [f"{column} = {table.at[row, column]:.4g}" for column in unusual]
    return {"title": str(rows.names[row]), "lines": lines, "images": images}


def _jpeg(image: PIL.Image.Image) -> str:
    """Return a small JPEG as a data URI."""
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


def _class(task: Task, label: float) -> str:
    """Return a label as people say it."""
    if task.kind == "regression":
        return f"{label:.4g}"
    return (task.classes or ("no", "yes"))[int(label)]


def _said(task: Task, label: float, p: Any = None) -> str:
    """Return a line about a label, and what was predicted."""
    said = f"{task.name}: {_class(task, label)}"
    if p is None:
        return said
    if task.kind == "multiclass":
        return f"{said}, predicted {_class(task, np.argmax(p))} ({np.max(p):.2f})"
    return f"{said}, predicted {p:.2f}" if task.kind == "binary" else f"{said}, predicted {p:.4g}"
