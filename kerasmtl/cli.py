"""The command line. TensorFlow is imported by the commands that need it, and by no other."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from kerasmtl._version import __version__

if TYPE_CHECKING:
    import keras

    from kerasmtl.project import Project

# The names of what was predicted, and by each, task name → prediction.
Predicted = tuple[list[str], list[dict[str, Any]]]

as_json = click.option("--json", "json_", is_flag=True, help="Print JSON instead of a table.")
in_project = click.option(
    "--project",
    "folder",
    default=".",
    show_default=True,
    type=click.Path(file_okay=False),
    help="The project's folder.",
)
trusting = click.option(
    "--trust",
    is_flag=True,
    help="Run the SavedModel that travels in the trained model's file, though the project's own "
    "is gone or has changed.",
)


def _plain_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Errors that name what is wrong are shown as they are, without a traceback."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error

    return wrapped


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kerasmtl")
def main() -> None:
    """From a CSV with holes in it to a served model.

    Make a project with `kerasmtl new`, train it with `python train.py`; inside the project the
    other commands need no arguments.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@main.command()
@click.argument("template")
@click.argument("folder", type=click.Path())
@click.option(
    "--labels",
    type=click.Path(),
    help="CSV with an image column and 0/1/? columns; or a table: CSV, Parquet or NPZ.",
)
@click.option(
    "--backbone",
    help="tiny, a keras.applications name, a folder, archive or URL, kaggle:… or hf:…",
)
@click.option("--task", "tasks", multiple=True, help="A column to learn, if not every 0/1/? one.")
@click.option("--image-column", help="The CSV's column of pictures.  [default: image]")
@click.option("--ignore", multiple=True, help="A table's column that is no feature and no task.")
@click.option("--no-input", is_flag=True, help="Ask nothing; take the defaults.")
@_plain_errors
def new(
    template: str,
    folder: str,
    labels: str | None,
    backbone: str | None,
    tasks: tuple[str, ...],
    image_column: str | None,
    ignore: tuple[str, ...],
    no_input: bool,
) -> None:
    """Make a project FOLDER from TEMPLATE.

    With --labels nothing is asked: each 0/1/? column of the file becomes a task.
    """
    from kerasmtl.scaffold import check_target, new_project

    known, _ = check_target(template, folder)
    given = {"labels": labels, "backbone": backbone, "_image_column": image_column}
    answers = {key: value for key, value in given.items() if value is not None}
    if not no_input and labels is None:
        for key, (question, default) in known.questions.items():
            if key not in answers:
                answers[key] = click.prompt(question, default=default)
    for key, columns in (("_tasks", tasks), ("_ignore", ignore)):
        if columns:
            answers[key] = list(columns)
    target = new_project(template, folder, answers)
    click.echo(f"Made {target}. Go on with:\n\n  cd {os.path.relpath(target)}\n  python train.py")


@main.command("templates")
@_plain_errors
def list_templates() -> None:
    """List the templates."""
    from kerasmtl.scaffold import templates

    for template in templates().values():
        click.echo(f"{template.name}  {template.description}")


@main.command()
@click.argument("labels", required=False, type=click.Path())
@click.option("--task", "tasks", multiple=True, help="A column to learn, if not every 0/1/? one.")
@click.option("--image-column", default="image", show_default=True)
@click.option("--split-column", default="split", show_default=True)
@click.option("--group-column", help="The column of what belongs together (video, patient).")
@click.option("--allow-outside", is_flag=True, help="Accept pictures outside of the CSV's folder.")
@click.option("--table", is_flag=True, help="The CSV holds numbers instead of pictures.")
@click.option("--no-leaks", is_flag=True, help="Do not look for pictures in two parts at once.")
@in_project
@as_json
@_plain_errors
def check(
    labels: str | None,
    tasks: tuple[str, ...],
    image_column: str,
    split_column: str,
    group_column: str | None,
    allow_outside: bool,
    table: bool,
    no_leaks: bool,
    folder: str,
    json_: bool,
) -> None:
    """Check a labels file (by default the project's): rows, broken pictures, coverage, leaks.

    Shows what is known by task, whether what is missing is so at random and what to do about it,
    and pictures that stand, also nearly alike, in two parts of the split. Ends with 1 if a picture
    cannot be used or a task cannot be learnt.
    """
    from kerasmtl.manifest import Manifest

    seed = 0
    if labels is None:
        project = _project(folder)
        manifest, seed = project.manifest(), project.training.seed
    elif table or not labels.endswith(".csv"):
        from kerasmtl.table import Table

        manifest = Table.load(
            labels, tasks=tasks or None, split_column=split_column, group_column=group_column
        )
    else:
        manifest = Manifest.from_csv(
            labels,
            tasks=tasks or None,
            image_column=image_column,
            split_column=split_column,
            group_column=group_column,
            allow_outside=allow_outside,
        )
    from kerasmtl import checking

    found = checking.check(manifest, seed, leaks=not no_leaks, quiet=json_)
    click.echo(json.dumps(found.to_dict(), indent=2) if json_ else found.text())
    if found.faults or found.class_faults:
        raise SystemExit(1)


@main.command()
@click.option(
    "--part",
    default="test",
    show_default=True,
    type=click.Choice(["train", "val", "test"]),
    help="Which rows.",
)
@click.option(
    "--bootstrap",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Draws for 95 % intervals, such as 1000; 0: none.",
)
@in_project
@trusting
@as_json
@_plain_errors
def evaluate(part: str, bootstrap: int, folder: str, trust: bool, json_: bool) -> None:
    """Score the trained model by task, on the labels that are known."""
    project = _project(folder)
    from kerasmtl.evaluation import evaluate as score
    from kerasmtl.manifest import SPLITS

    model = _trained(project, trust)
    manifest = project.manifest()
    rows = manifest.split(seed=project.training.seed)[SPLITS.index(part)]
    report = score(
        model,
        project.dataset(rows, model),
        manifest.tasks,
        progress=not json_,
        bootstrap=bootstrap,
        seed=project.training.seed,
    )
    if json_:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        from rich.console import Console

        Console().print(report.table())


@main.command()
@click.argument("out", required=False, type=click.Path(file_okay=False))
@in_project
@trusting
@_plain_errors
def export(out: str | None, folder: str, trust: bool) -> None:
    """Write the trained model as a SavedModel, under the next version number of OUT."""
    project = _project(folder)
    from kerasmtl.export import export_saved_model

    model = _trained(project, trust)
    manifest = project.manifest()
    columns = getattr(manifest, "columns", None)  # those of a table
    target = out or project.export_folder
    click.echo(export_saved_model(model, target, manifest.tasks, columns=columns))


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("--model", "export_", type=click.Path(), help="An exported SavedModel's folder.")
@in_project
@trusting
@as_json
@_plain_errors
def predict(
    files: tuple[str, ...], export_: str | None, folder: str, trust: bool, json_: bool
) -> None:
    """Predictions for FILES, pictures or tables, from the trained model or an exported one."""
    from kerasmtl.prediction import exported_table

    if export_ is None:
        project = _project(folder)
        table = project.table is not None
        read = _predict_rows if table else _predict_pictures
        names, rows = read(project, _trained(project, trust), files)
    else:
        table = exported_table(export_) is not None
        names, rows = (_serve_rows if table else _serve_pictures)(export_, files)
    if json_:
        keys = ("row", "predictions") if table else ("image", "probabilities")
        named = [dict(zip(keys, pair, strict=True)) for pair in zip(names, rows, strict=True)]
        click.echo(json.dumps(named, indent=2, ensure_ascii=False))
        return
    _print_predictions("row" if table else "picture", names, rows)


def _predict_pictures(project: Project, model: keras.Model, files: Sequence[str]) -> Predicted:
    from kerasmtl.prediction import predict_with_model

    return list(files), predict_with_model(model, files, project.manifest().tasks)


def _predict_rows(project: Project, model: keras.Model, files: Sequence[str]) -> Predicted:
    from kerasmtl.prediction import predict_rows_with_model

    manifest = project.manifest()
    names, features = _read_rows(files, manifest.columns, project.table.packed_bits)
    return names, predict_rows_with_model(model, features, manifest.tasks)


def _serve_pictures(export_: str, files: Sequence[str]) -> Predicted:
    from kerasmtl.prediction import predict_with_export

    return list(files), predict_with_export(export_, files)


def _serve_rows(export_: str, files: Sequence[str]) -> Predicted:
    from kerasmtl.prediction import exported_table, predict_rows_with_export

    names, features = _read_rows(files, exported_table(export_)["columns"], False)
    return names, predict_rows_with_export(export_, features)


def _read_rows(files: Sequence[str], columns: Sequence[str], packed: bool) -> tuple[list[str], Any]:
    """The names of the rows of all files, "file:line", and their features."""
    import numpy as np

    from kerasmtl.table_files import read_features

    read = [(file, *read_features(file, columns, packed)) for file in files]
    names = [f"{file}:{line}" for file, _, lines in read for line in lines]
    return names, np.concatenate([features for _, features, _ in read])


def _print_predictions(first: str, names: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def text(value: Any) -> str:
        if isinstance(value, dict):  # by class: the likeliest
            likeliest = max(value, key=value.__getitem__)
            return f"{likeliest} ({value[likeliest]:.3f})"
        return f"{value:.3f}"

    table = Table()
    table.add_column(first, overflow="fold")
    for name in rows[0]:
        table.add_column(Text(name), justify="right", overflow="fold")
    for name, row in zip(names, rows, strict=True):
        table.add_row(Text(name), *(Text(text(value)) for value in row.values()))
    Console().print(table)


@main.command("vendor")
@click.argument("handle")
@click.argument("directory", type=click.Path(file_okay=False))
@click.option(
    "--project",
    "folder",
    type=click.Path(file_okay=False),
    help="The project to pin.  [default: the one above DIRECTORY]",
)
@click.option("--sha256", help="What the module's content hash must be.")
@as_json
@_plain_errors
def vendor_module(
    handle: str, directory: str, folder: str | None, sha256: str | None, json_: bool
) -> None:
    """Copy the module HANDLE into DIRECTORY, and pin the project to its content.

    HANDLE: tiny, a folder, an archive, a URL, kaggle:owner/model/framework/variation/version,
    hf:owner/repo@revision, or gs://…
    """
    from kerasmtl.vendor import vendor

    done = vendor(handle, directory, project=folder, sha256=sha256)
    if json_:
        from dataclasses import asdict

        click.echo(json.dumps(asdict(done), indent=2, default=str))
        return
    shown = os.path.relpath(done.folder)
    click.echo(f"{shown}: {done.files} files, {done.size / 1e6:.1f} MB\nsha256 {done.sha256}")
    if done.project:
        click.echo(
            f"{os.path.relpath(done.project)}: [model] backbone and backbone_sha256 are set."
        )
    else:
        click.echo(f'Use it: HubLayer("{shown}", sha256="{done.sha256}")')


@main.command()
@click.argument("handle")
@as_json
@_plain_errors
def inspect(handle: str, json_: bool) -> None:
    """Show what a backbone takes, gives and holds.

    HANDLE is tiny, a keras.applications name, a folder, an archive, a URL, kaggle:… or hf:…
    """
    from kerasmtl.backbones.inspection import inspect as look

    found = look(handle)
    if json_:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        from rich.console import Console

        Console().print(found.table())


def _project(folder: str) -> Project:
    from kerasmtl.project import Project

    return Project.load(folder)


def _trained(project: Project, trust: bool) -> keras.Model:
    if not project.checkpoint.is_file():
        raise FileNotFoundError(
            f"{project.checkpoint} does not exist: nothing has been trained yet. Run: "
            "python train.py"
        )
    from kerasmtl.model import load_model

    if trust:
        return load_model(project.checkpoint, safe_mode=False)
    return load_model(project.checkpoint, trust=_vouched_for(project))


def _vouched_for(project: Project) -> list[str]:
    """The module that the project itself names, if it is at hand: its owner trusts that one."""
    from kerasmtl.modules.handles import resolve_handle

    if project.model.backbone_sha256:
        return [f"sha256:{project.model.backbone_sha256}"]
    try:
        return [str(resolve_handle(project.backbone))]
    except ValueError:
        return []  # gone, or no SavedModel at all
