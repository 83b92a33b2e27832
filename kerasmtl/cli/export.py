"""`kerasmtl export` and `kerasmtl convert`: the trained model as a SavedModel, LiteRT or ONNX.

Both use the record of the run: its tasks, its input and its rows, whatever the labels file and
project.toml say by now. Rules of --thresholds and scores of --require are checked by the library.

Standard output has the path of what was made and, of `convert`, how near it is to the model: a
script can read it with VERSION=$(kerasmtl export).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasmtl.cli.common import as_json, load_project, plain_errors, project_option
from kerasmtl.cli.predict import trained_model, trusting
from kerasmtl.export.converted_model import FORMATS, check_runtime
from kerasmtl.utils.text import listed

if TYPE_CHECKING:
    from kerasmtl.tasks import Task


@click.command()
@click.argument("out", required=False, type=click.Path(file_okay=False))
@click.option(
    "--require",
    "required",
    multiple=True,
    metavar="SCORE=NUMBER",
    help="Minimum score on the validation split: macro_auc=0.8, car.auc=0.7, macro_brier=0.2 (of "
    "an error: maximum). A worse model is not published. May be repeated.",
)
@click.option(
    "--thresholds",
    multiple=True,
    metavar="[TASK:]RULE",
    help="Probability from which a decision is yes: f1 (the best F1), precision=0.9 (the best "
    "recall at that precision or more), recall=0.9 (likewise), fitted per task on the validation "
    "split; fixed (0.5), or a number. With TASK: for that task; may be repeated.  [default: as in "
    "training]",
)
@click.option(
    "--calibrate",
    is_flag=True,
    help="Calibrate probabilities by one temperature per task, fitted on the validation split.",
)
@click.option("--licence", help="Of the model, such as CC-BY-4.0, for its card.")
@project_option
@trusting
@plain_errors
def export(
    out: str | None,
    required: tuple[str, ...],
    thresholds: tuple[str, ...],
    calibrate: bool,
    licence: str | None,
    project: str,
    trust: bool,
) -> None:
    """Write the trained model as a SavedModel, under the next version number of OUT.

    It appears after a fresh process without kerasmtl has answered as the model does. OUT is
    saved_models/NAME of the project by default. A head by folds that has learned from the
    validation split is judged, and fitted to, by what its folds predicted for rows that they had
    not seen; for other models, nothing is fitted or measured without the labels file.

    \b
    Examples:
      kerasmtl export
      kerasmtl export --require macro_auc=0.8 --thresholds precision=0.9 --licence CC-BY-4.0
    """
    require = dict(_parse_score(text) for text in required)
    rules = dict(_parse_threshold(text) for text in thresholds)
    found = load_project(project)
    from kerasmtl.export.description import read_description

    model, of, validation = trained_model(found, trust), found.trained(), None
    # Exports can be made on a machine without the data; then nothing that needs labels may be asked
    # for.
    # A head that has learned from the validation rows has predictions of its folds instead.
    if found.labels_csv.is_file() and not found.run.saw_validation:
        try:
            validation = found.dataset(found.part("val"), model)
        except ValueError as error:
            # The labels file has changed since: rows of the validation split, or columns, are gone.
            # What was to be fitted or measured on them must not be left out in silence.
            fixed = all(rule == "fixed" or isinstance(rule, float) for rule in rules.values())
            if require or calibrate or not fixed:
                raise
            click.echo(f"Nothing is fitted or measured: {error}", err=True)
    # Thresholds of the training are not those of calibrated probabilities.
    fitted = {} if calibrate or None in rules else found.run.decisions()
    chosen = _rules_by_task(rules, of.tasks)
    # The thresholds of the training hold for tasks that --thresholds does not name.
    made = found.export(
        model,
        validation,
        out,
        decisions={**fitted, **(chosen or {})} if fitted else chosen,
        calibrate=calibrate,
        require=require or None,
        card={"licence": licence},
    )
    for line in _summary(read_description(made) or {}):
        click.echo(line, err=True)  # the folder alone is the output
    click.echo(made)


@click.command()
@click.argument("out", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--to", required=True, type=click.Choice(list(FORMATS)), help="The format.")
@click.option(
    "--decisions",
    "version",
    type=click.Path(),
    metavar="VERSION",
    help="Exported version, such as saved_models/NAME/1, whose thresholds and temperatures the "
    "file gets.  [default: thresholds as in training]",
)
@click.option(
    "--samples",
    type=click.Path(dir_okay=False),
    help="Labels file whose rows set the ranges of litert-int8 and check any format; rows of the "
    "test split are left out.  [default: the training rows]",
)
@click.option(
    "--sample-count",
    default=300,
    show_default=True,
    type=click.IntRange(min=1),
    help="How many rows of them at most.",
)
@click.option("--uint8", is_flag=True, help="litert-int8 takes pixels of 0 to 255.")
@project_option
@trusting
@as_json
@plain_errors
def convert(
    out: Path | None,
    to: str,
    version: str | None,
    samples: str | None,
    sample_count: int,
    uint8: bool,
    project: str,
    trust: bool,
    json_: bool,
) -> None:
    """Write the trained model as the file OUT for LiteRT (TensorFlow Lite) or ONNX.

    \b
    litert          float32
    litert-dynamic  weights of 8 bits
    litert-int8     integers of 8 bits throughout
    onnx            float32

    OUT is converted/NAME-FORMAT.tflite or .onnx in the project by default. The file is run in its
    own runtime before it appears, and how near it is to the model is printed. Needs
    kerasmtl[litert] or kerasmtl[onnx].

    \b
    Examples:
      kerasmtl convert --to litert --decisions saved_models/NAME/1
    """
    check_runtime(FORMATS[to].runtime)  # before anything slow
    found = load_project(project)
    model, of = trained_model(found, trust), found.trained()
    file = out or Path(project) / "converted" / f"{found.name}-{to}{FORMATS[to].suffix}"
    from kerasmtl.export.convert import convert_model
    from kerasmtl.export.description import read_decisions

    # Rows of training, since ranges that were fitted to those of the test split would make its
    # scores too good.
    rows = found.part("train") if samples is None and found.labels_csv.is_file() else samples
    made = convert_model(
        model,
        file,
        of.tasks,
        to,
        input=of.input,
        samples=rows,
        sample_count=sample_count,
        uint8=uint8,
        decisions=read_decisions(version) if version else found.run.decisions(),
        seed=found.training.seed,
    )
    if json_:
        about = {"path": str(file), "bytes": file.stat().st_size, **made.description}
        click.echo(json.dumps(about, indent=2, ensure_ascii=False))
        return
    check = made.description["check"]
    agree = check["decisions_agree"]
    click.echo(
        f"{file}\n{file.stat().st_size / 1e6:.2f} MB; on {check['rows']} rows at most "
        f"{max(check['largest_difference'].values()):.2g} from the model"
        + ("" if agree is None else f", {agree:.1%} of decisions the same")
    )


def _summary(described: Mapping[str, Any]) -> list[str]:
    """Say an export's mean scores on the validation split, and its thresholds.

    Args:
        described: the content of model.json; empty without one.

    Returns:
        One line per kind of task that has scores, and one of thresholds.
    """
    lines = []
    for kind, scores in ((described.get("metrics") or {}).get("macro") or {}).items():
        means = {name: of["mean"] for name, of in scores.items() if of["mean"] is not None}
        shown = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        lines.append(f"Validation, mean over the {kind} tasks: {shown}")
    thresholds = [
        f"{task['name']} {task['threshold']:.3g}"
        for task in described.get("tasks", ())
        if task.get("threshold") is not None
    ]
    return [*lines, *([f"Thresholds: {listed(thresholds)}"] if thresholds else [])]


def _parse_score(text: str) -> tuple[str, float]:
    """Parse SCORE=NUMBER of --require; which scores there are is known by `export_saved_model`."""
    name, _, number = text.partition("=")
    try:
        return name.strip(), float(number)
    except ValueError:
        raise ValueError(
            f"`required` must be SCORE=NUMBER, such as macro_auc=0.8, got {text!r}"
        ) from None


def _parse_threshold(text: str) -> tuple[str | None, Any]:
    """Parse [TASK:]RULE of --thresholds; a task's name may contain colons.

    Args:
        text: one value of the option.

    Returns:
        The task, None for all; and the rule as `export_saved_model` takes it: a word, a number, or
        (name, number as text). It refuses anything that is not a rule.
    """
    task, colon, rule = text.rpartition(":")
    name, equals, number = rule.strip().partition("=")
    # precision>=0.9 means the same as precision=0.9.
    found: Any = (name.strip().rstrip(">"), number) if equals else rule.strip()
    with contextlib.suppress(ValueError):  # a word
        found = float(rule)
    return (task if colon else None), found


def _rules_by_task(rules: dict[str | None, Any], tasks: Sequence[Task]) -> Any:
    """Return the rules as `export_saved_model` takes them.

    Args:
        rules: by task, None for all tasks; the entry for all is removed.
        tasks: of the model.

    Returns:
        One rule for all tasks, None for none; or a dict, where a task's own rule precedes that for
        all binary ones.
    """
    every = rules.pop(None, None)
    if not rules:
        return every
    of_all = {} if every is None else {t.name: every for t in tasks if t.kind == "binary"}
    return of_all | rules
