"""`kerasmtl export`: the trained model as a SavedModel for any server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasmtl.cli.common import as_json, in_project, load_project, plain_errors
from kerasmtl.cli.predict import trained_model, trusting
from kerasmtl.export.converted_model import check_runtime
from kerasmtl.export.formats import FORMATS
from kerasmtl.utils.text import listed

if TYPE_CHECKING:
    from kerasmtl.data.manifest import Manifest
    from kerasmtl.export.converted_model import ConvertedModel
    from kerasmtl.project import Project
    from kerasmtl.tasks import Task

# A model or an export's folder, its tasks and columns, and a seed.
Origin = tuple[Any, Any, Any, int]


@click.command()
@click.argument("out", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--to", required=True, type=click.Choice(list(FORMATS)), help="The format.")
@click.option(
    "--samples",
    type=click.Path(dir_okay=False),
    help="Labels file, whose rows set the ranges of litert-int8 and check any format; test rows "
    "are left out.  [default: the training rows]",
)
@click.option(
    "--sample-count",
    default=300,
    show_default=True,
    type=click.IntRange(min=1),
    help="How many rows of them.",
)
@click.option("--uint8", is_flag=True, help="litert-int8 takes pixels of 0 to 255.")
@click.option(
    "--float-layers",
    type=click.IntRange(min=0),
    help="How many of the first convolutions of litert-int8 compute in float32; 0: integers "
    "throughout.  [default: five eighths of them]",
)
@click.option(
    "--model",
    "export",
    type=click.Path(),
    help="An exported SavedModel's folder, with its thresholds and temperatures.  [default: the "
    "project's trained model]",
)
@in_project
@trusting
@as_json
@plain_errors
def convert(
    out: Path | None,
    to: str,
    samples: str | None,
    sample_count: int,
    uint8: bool,
    float_layers: int | None,
    export: str | None,
    folder: str,
    trust: bool,
    json_: bool,
) -> None:
    """Write the trained or an exported model as the file OUT for LiteRT (TensorFlow Lite) or ONNX.

    \b
    litert          float32
    litert-dynamic  weights of 8 bits
    litert-int8     integers of 8 bits, but for the first layers and the last
    onnx            float32

    OUT is converted/NAME-FORMAT.tflite or .onnx in the project by default. The file is run in its
    own runtime before it gets its name, and what that found is printed. Needs
    kerasmtl[litert] or kerasmtl[onnx].
    """
    try:
        check_runtime(FORMATS[to].runtime)  # before anything slow
        origin, name, rows = _from_export(export, folder) if export else _trained(folder, trust)
        file = out or Path(folder) / "converted" / f"{name}-{to}{FORMATS[to].ending}"
        made = _made(origin, file, to, samples or rows, sample_count, uint8, float_layers)
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    if json_:
        about = {"path": str(file), "bytes": file.stat().st_size, **made.description}
        click.echo(json.dumps(about, indent=2, ensure_ascii=False))
        return
    click.echo(_said(file, made.description["check"]))


def _made(origin: Origin, file: Path, to: str, samples: Any, *options: Any) -> ConvertedModel:
    from kerasmtl.export.convert import convert_model

    model, tasks, columns, seed = origin
    count, uint8, float_layers = options
    return convert_model(
        model,
        file,
        tasks,
        to,
        columns,
        samples,
        count,
        uint8,
        seed=seed,
        float_layers=float_layers,
    )


def _trained(folder: str, trust: bool) -> tuple[Origin, str, Any]:
    project = load_project(folder)
    of = project.trained()
    origin = (trained_model(project, trust), of.tasks, of.columns, project.training.seed)
    return origin, project.name, _training_rows(project)


def _from_export(export: str, folder: str) -> tuple[Origin, str, Any]:
    """With the rows of the project that it lies in, if it lies in one."""
    from kerasmtl.export.description import read_description

    rows = None
    if (Path(folder) / "project.toml").is_file():
        rows = _training_rows(load_project(folder))
    described = read_description(export) or {}
    return (export, None, None, 0), described.get("name", "model"), rows


def _training_rows(project: Project) -> Manifest | None:
    """None where the labels are not at hand: most formats can do without."""
    return project.part("train") if project.labels_csv.is_file() else None


def _said(file: Path, check: dict[str, Any]) -> str:
    off = max(check["largest_difference"].values())
    agree = check["decisions_agree"]
    decisions = "" if agree is None else f", {agree:.1%} of decisions the same"
    return (
        f"{file}\n{file.stat().st_size / 1e6:.2f} MB; on {check['rows']} rows at most {off:.2g} "
        f"from the model{decisions}"
    )


@click.command()
@click.argument("out", required=False, type=click.Path(file_okay=False))
@click.option(
    "--require",
    "required",
    multiple=True,
    metavar="SCORE=NUMBER",
    help="Publish only a model as good as that on the validation part: macro_auc=0.8, car.auc=0.7, "
    "macro_brier=0.2 (of an error: at most); may be repeated.",
)
@click.option(
    "--thresholds",
    multiple=True,
    metavar="[TASK:]RULE",
    help="From which probability on an answer is yes: f1 (the best F1), precision=0.9 (the best "
    "recall at that precision or more), recall=0.9 (likewise), fitted by task on the validation "
    "part; fixed (0.5), or a number. With TASK: for that one; may be repeated.  [default: as in "
    "training]",
)
@click.option(
    "--calibrate",
    is_flag=True,
    help="Calibrate probabilities, by one temperature a task, on the validation part.",
)
@click.option("--licence", help="Of the model, such as CC-BY-4.0, for its card.")
@in_project
@trusting
@plain_errors
def export(
    out: str | None,
    required: tuple[str, ...],
    thresholds: tuple[str, ...],
    calibrate: bool,
    licence: str | None,
    folder: str,
    trust: bool,
) -> None:
    """Write the trained model as a SavedModel, under the next version number of OUT.

    It appears after a fresh process without kerasmtl has answered golden requests as the model
    does; OUT is by default saved_models/NAME of the project. Without the labels file nothing is
    fitted or measured.
    """
    require = dict(_score(text) for text in required)
    rules = dict(_rule(text) for text in thresholds)
    project = load_project(folder)
    from kerasmtl.export.description import data_of, read_description
    from kerasmtl.export.saved_model import export_saved_model

    model = trained_model(project, trust)
    of = project.trained()
    validation, data = None, of.data
    if project.labels_csv.is_file():
        data = of.data or data_of(project.labels_csv)
        try:
            validation = project.dataset(project.part("val"), model)
        except ValueError as error:
            fixed = all(rule == "fixed" or isinstance(rule, float) for rule in rules.values())
            if require or calibrate or not fixed:
                raise
            click.echo(f"Nothing is fitted or measured: {error}", err=True)
    # Calibrated probabilities are others: their thresholds are fitted here.
    decided = {} if calibrate or None in rules else project.run.decisions()
    chosen = _by_task(rules, of.tasks)
    made = export_saved_model(
        model,
        out or project.export_folder,
        of.tasks,
        columns=of.columns,
        packed_bits=of.packed_bits,
        validation=validation,
        thresholds={**decided, **(chosen or {})} if decided else chosen,
        calibrate=calibrate,
        require=require or None,
        data=data,
        licence=licence,
        name=project.name,
    )
    for line in _worth(read_description(made) or {}):
        click.echo(line, err=True)  # the folder alone is the output
    click.echo(made)


def _worth(described: Mapping[str, Any]) -> list[str]:
    """What an export scores on the validation part, and from which probability on it says yes."""
    lines = []
    for kind, scores in ((described.get("metrics") or {}).get("macro") or {}).items():
        means = {name: of["mean"] for name, of in scores.items() if of["mean"] is not None}
        shown = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        lines.append(f"Validation, mean over the {kind} tasks: {shown}")
    yes = [
        f"{task['name']} from {task['threshold']:.3g}"
        for task in described.get("tasks", ())
        if task.get("threshold") is not None
    ]
    return [*lines, *([f"Yes: {listed(yes)}"] if yes else [])]


def _score(text: str) -> tuple[str, float]:
    name, equals, number = text.partition("=")
    try:
        return name.strip(), float(number)
    except ValueError:
        raise click.BadParameter(
            f"expected SCORE=NUMBER, such as macro_auc=0.8, received {text!r}",
            param_hint="--require",
        ) from None


def _by_task(rules: dict[str | None, Any], tasks: Sequence[Task]) -> Any:
    """One rule for all, or a dict: what is said of a task goes before what is said of all."""
    every = rules.pop(None, None)
    if not rules:
        return every
    of_all = {} if every is None else {t.name: every for t in tasks if t.kind == "binary"}
    return of_all | rules


def _rule(text: str) -> tuple[str | None, Any]:
    """The task, None for all of them, and the rule; a task's name may have colons, too."""
    task, colon, rule = text.rpartition(":")
    return (task if colon else None), _rule_of(rule.strip(), text)


def _rule_of(rule: str, text: str) -> Any:
    if rule in ("f1", "fixed"):
        return rule
    name, equals, number = rule.partition("=")
    try:
        found = (name.strip().rstrip(">"), float(number)) if equals else float(rule)
    except ValueError:
        found = None
    if isinstance(found, float) and 0 <= found <= 1:
        return found
    if isinstance(found, tuple) and found[0] in ("precision", "recall") and 0 < found[1] <= 1:
        return found
    raise click.BadParameter(
        "expected f1, fixed, a number from 0 to 1, or a share such as precision=0.9 or "
        f"recall=0.9, of one task as car:recall=0.9, received {text!r}",
        param_hint="--thresholds",
    )
