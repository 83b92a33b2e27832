"""Commands on labels files: new, templates, check."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from kerasmtl.cli.common import HELP, as_json, in_project, load_project, plain_errors, read_task

task_option = click.option("--task", "tasks", multiple=True, help=HELP)
ignore_option = click.option(
    "--ignore", multiple=True, help="A table's column that is no feature and no task."
)
outside_option = click.option(
    "--allow-outside", is_flag=True, help="Accept images outside of the CSV's folder."
)
image_option = click.option(
    "--image-column", help="The CSV's column of pictures.  [default: image]"
)
split_option = click.option(
    "--split-column", help="The column of train, val, test.  [default: split, if there is one]"
)
group_option = click.option(
    "--group-column", help="The column of what belongs together (video, patient)."
)
id_option = click.option("--id-column", help="The column with the names of a table's rows.")


@click.command()
@click.argument("template")
@click.argument("folder", type=click.Path())
@click.option(
    "--labels",
    type=click.Path(),
    help="CSV with an image column and 0/1/? columns; or a table: CSV, Parquet or NPZ.",
)
@click.option(
    "--backbone",
    help="tiny, a keras.applications name, a folder, archive or URL, kaggle:… or hf:…  [default: "
    "for images of your own a trained one that is on this machine, else tiny]",
)
@task_option
@image_option
@split_option
@group_option
@id_option
@ignore_option
@outside_option
@click.option(
    "--on-invalid-image",
    type=click.Choice(["error", "skip"]),
    help="What training does about absent and broken images.  [default: error]",
)
@click.option("--no-input", is_flag=True, help="Ask nothing; take the defaults.")
@plain_errors
def new(
    template: str,
    folder: str,
    labels: str | None,
    backbone: str | None,
    tasks: tuple[str, ...],
    image_column: str | None,
    split_column: str | None,
    group_column: str | None,
    id_column: str | None,
    ignore: tuple[str, ...],
    allow_outside: bool,
    on_invalid_image: str | None,
    no_input: bool,
) -> None:
    """Make a project FOLDER from TEMPLATE.

    With --labels nothing is asked: each 0/1/? column of the file becomes a task. What training
    would refuse is refused here.
    """
    from kerasmtl.cli.new import check_target, new_project
    from kerasmtl.models.hub.embedded import DATASETS
    from kerasmtl.models.hub.local import trained_backbones

    known, _ = check_target(template, folder)
    given = {
        "labels": labels,
        "backbone": backbone,
        "_column": image_column,
        "_split_column": split_column,
        "_group_column": group_column,
        "_id_column": id_column,
        "_tasks": [read_task(word) for word in tasks] or None,
        "_ignore": list(ignore) or None,
        "_allow_outside": allow_outside or None,
        "_on_invalid_image": on_invalid_image,
    }
    answers = {key: value for key, value in given.items() if value is not None}
    if not no_input and labels is None:
        for key, (question, default) in known.questions.items():
            if key == "backbone" and answers["labels"] not in DATASETS:
                default = next((found.handle for found in trained_backbones()), default)
            if key not in answers:
                answers[key] = click.prompt(question, default=default)
    target = new_project(template, folder, answers, tell=click.echo)
    click.echo(f"Made {target}. Go on with:\n\n  cd {os.path.relpath(target)}\n  python train.py")


@click.command("templates")
@plain_errors
def list_templates() -> None:
    """List the templates."""
    from kerasmtl.cli.new import templates

    for template in templates().values():
        click.echo(f"{template.name}  {template.description}")


@click.command()
@click.argument("labels", required=False, type=click.Path())
@task_option
@image_option
@split_option
@group_option
@id_option
@ignore_option
@outside_option
@click.option("--table", is_flag=True, help="The CSV holds numbers instead of pictures.")
@click.option("--no-leaks", is_flag=True, help="Do not look for pictures in two parts at once.")
@in_project
@as_json
@plain_errors
def check(
    labels: str | None, table: bool, no_leaks: bool, folder: str, json_: bool, **reading: Any
) -> None:
    """Check a labels file (by default the project's): rows, broken pictures, coverage, leaks.

    Shows what is known by task, whether what is missing is so at random and what to do about it,
    and pictures that stand, also nearly alike, in two parts of the split. Ends with 1 if a picture
    cannot be used or a task cannot be learnt.
    """
    given = {name: value for name, value in reading.items() if value}
    seed, skips = 0, False
    if labels is not None:
        manifest = _read(labels, table, given)
    else:
        _refuse({**given, **({"table": True} if table else {})})
        project = load_project(folder)
        manifest, seed = project.manifest(every_row=True), project.training.seed
        skips = project.data.on_invalid_image == "skip"
    from kerasmtl.cli import check as checking

    found = checking.check(manifest, seed, leaks=not no_leaks, quiet=json_)
    click.echo(json.dumps(found.to_dict(), indent=2) if json_ else found.text())
    if found.faults and skips and not json_:
        click.echo('Training skips these images: on_invalid_image = "skip".')
    if (found.faults and not skips) or found.class_faults:
        raise SystemExit(1)


def _read(labels: str, table: bool, given: dict[str, Any]) -> Any:
    from kerasmtl.data.inputs import Input
    from kerasmtl.data.manifest import Manifest

    tasks = [read_task(word) for word in given.pop("tasks", ())] or None
    reading = {key: given.pop(key) for key in ("split_column", "group_column") if key in given}
    kind = "image" if labels.lower().endswith(".csv") and not table else "table"
    if "image_column" in given:
        given["column"] = given.pop("image_column")
    input = Input.from_config({"kind": kind, **given})
    return Manifest.from_csv(labels, tasks=tasks, input=input, **reading)


def _refuse(given: dict[str, Any]) -> None:
    if given:
        names = [f"--{'task' if name == 'tasks' else name.replace('_', '-')}" for name in given]
        raise ValueError(f"{', '.join(names)} must come with LABELS: they belong to a labels file.")
