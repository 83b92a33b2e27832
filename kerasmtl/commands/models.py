"""Commands on a trained model: evaluate, export, predict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasmtl.commands.batch import Wanted, predict_into
from kerasmtl.commands.shared import (
    as_json,
    in_project,
    load_project,
    plain_errors,
    print_table,
)
from kerasmtl.report import Name

if TYPE_CHECKING:
    import keras

    from kerasmtl.project import Project

# The names of what was predicted, and by each, task name → prediction.
Predicted = tuple[list[str], list[dict[str, Any]]]

trusting = click.option(
    "--trust",
    is_flag=True,
    help="Run the SavedModel that travels in the trained model's file, though the project's own "
    "is gone or has changed.",
)


@click.command()
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
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, min_open=True),
    help="Show the best precision at this recall, such as 0.9.",
)
@in_project
@trusting
@as_json
@plain_errors
def evaluate(
    part: str, bootstrap: int, recall: float | None, folder: str, trust: bool, json_: bool
) -> None:
    """Score the trained model by task, on the labels that are known.

    Rows are in the part that they were in when the model was trained. With a group column,
    --bootstrap draws whole groups.
    """
    project = load_project(folder)
    from kerasmtl.evaluation import evaluate as score

    model = trained_model(project, trust)
    rows = project.part(part)
    report = score(
        model,
        project.dataset(rows, model),
        rows.tasks,
        progress=not json_,
        bootstrap=bootstrap,
        seed=project.training.seed,
        groups=rows.groups,
        recall=recall,
    )
    if json_:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        print_table(report.table())


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("--model", "export_", type=click.Path(), help="An exported SavedModel's folder.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write predictions here, .csv, .parquet or .jsonl; FILES may then be folders and lists, "
    "too.",
)
@click.option(
    "--resume/--no-resume",
    default=True,
    show_default=True,
    help="With --out: go on where an interrupted call stopped.",
)
@click.option("--overwrite", is_flag=True, help="With --out: replace the file.")
@click.option(
    "--fail-on-bad", is_flag=True, help="With --out: end with 1 if some inputs cannot be used."
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="With --out: inputs in one call of the model.  [default: 32; 1024 rows of a table]",
)
@click.option("--image-column", help="With --out: a list's column of pictures.  [default: image]")
@click.option(
    "--id-column",
    help="With --out: a table's column with the names of its rows.  [default: the project's]",
)
@in_project
@trusting
@as_json
@plain_errors
def predict(
    files: tuple[str, ...],
    export_: str | None,
    out: Path | None,
    folder: str,
    trust: bool,
    json_: bool,
    **into_file: Any,
) -> None:
    """Predictions for FILES, pictures or tables, from the trained model or an exported one.

    With --out, any number of them: FILES are pictures, folders of pictures, CSVs that list
    pictures, or tables. What is finished is kept when the command is interrupted, and the same
    command goes on from there. What cannot be used is listed in OUT.quarantine.csv.
    """
    wanted = Wanted(**into_file)
    if out is not None:
        predict_into(out, files, export_, folder, wanted, lambda p: trained_model(p, trust), json_)
        return
    wanted.check_unused()
    _refuse_folders(files)
    from kerasmtl.prediction import exported_table

    if export_ is None:
        project = load_project(folder)
        table = project.table is not None
        read = _predict_rows if table else _predict_pictures
        names, rows = read(project, trained_model(project, trust), files)
    else:
        table = exported_table(export_) is not None
        names, rows = (_serve_rows if table else _serve_pictures)(export_, files)
    if json_:
        keys = ("row", "predictions") if table else ("image", "probabilities")
        named = [dict(zip(keys, pair, strict=True)) for pair in zip(names, rows, strict=True)]
        click.echo(json.dumps(named, indent=2, ensure_ascii=False))
        return
    _print_predictions("row" if table else "picture", names, rows)


def _refuse_folders(files: Sequence[str]) -> None:
    for file in files:
        if Path(file).is_dir():
            raise ValueError(f"`files` {file} is a folder. Expected --out FILE with it.")


def _predict_pictures(project: Project, model: keras.Model, files: Sequence[str]) -> Predicted:
    from kerasmtl.prediction import predict_with_model

    return list(files), predict_with_model(model, files, project.trained().tasks)


def _predict_rows(project: Project, model: keras.Model, files: Sequence[str]) -> Predicted:
    from kerasmtl.prediction import predict_rows_with_model, read_rows

    of = project.trained()
    names, features = read_rows(files, of.columns, of.packed_bits)
    return names, predict_rows_with_model(model, features, of.tasks)


def _serve_pictures(export_: str, files: Sequence[str]) -> Predicted:
    from kerasmtl.prediction import predict_with_export

    return list(files), predict_with_export(export_, files)


def _serve_rows(export_: str, files: Sequence[str]) -> Predicted:
    from kerasmtl.prediction import exported_table, predict_rows_with_export, read_rows

    described = exported_table(export_)
    names, features = read_rows(files, described["columns"], described.get("packed_bits", False))
    return names, predict_rows_with_export(export_, features)


def _print_predictions(first: str, names: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    def text(value: Any) -> str:
        if isinstance(value, dict):  # by class: the likeliest
            likeliest = max(value, key=value.__getitem__)
            return f"{likeliest} ({value[likeliest]:.3f})"
        return f"{value:.3f}"

    table = Table()
    table.add_column(first)
    for name in rows[0]:
        table.add_column(Name(name), justify="right", overflow="fold")
    for name, row in zip(names, rows, strict=True):
        table.add_row(Name(name), *(Text(text(value)) for value in row.values()))
    print_table(table)


def trained_model(project: Project, trust: bool) -> keras.Model:
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
