"""`kerasmtl export`: the trained model as a SavedModel for any server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from kerasmtl.commands.models import trained_model, trusting
from kerasmtl.commands.shared import in_project, load_project, plain_errors
from kerasmtl.listing import listed

if TYPE_CHECKING:
    from kerasmtl.tasks import Task


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
    from kerasmtl.export import data_of, export_saved_model, read_description

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
