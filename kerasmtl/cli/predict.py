"""Commands on a trained model: evaluate, export, predict."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasmtl.cli.common import (
    as_json,
    in_project,
    load_project,
    plain_errors,
    print_predictions,
    print_table,
)

if TYPE_CHECKING:
    import keras

    from kerasmtl.data.manifest import Manifest
    from kerasmtl.project import Project
    from kerasmtl.serving.batch_predict import Done, Predictor
    from kerasmtl.serving.predictor import Predicted

Load = Callable[["Project"], "keras.Model"]


@dataclass(frozen=True)
class Wanted:
    """The options of `predict` that --out has."""

    resume: bool = True
    overwrite: bool = False
    fail_on_bad: bool = False
    batch_size: int | None = None
    image_column: str | None = None
    id_column: str | None = None

    def check_unused(self) -> None:
        """Raise ValueError if one was given: there is no --out."""
        given = [name for name, value in asdict(self).items() if value != getattr(Wanted, name)]
        if given:
            names = ", ".join(
                "--no-resume" if name == "resume" else f"--{name.replace('_', '-')}"
                for name in given
            )
            raise ValueError(f"{names} belong to --out. Expected --out FILE with it.")


def predict_into(
    out: Path,
    files: Sequence[str],
    export: str | None,
    folder: str,
    wanted: Wanted,
    load: Load,
    as_json: bool,
) -> None:
    """Predict with an export, or else the project in `folder`, and say what was done.

    Raises:
        SystemExit: 1 if inputs are bad and that is to fail; 130 if interrupted.
    """
    from kerasmtl.serving.batch_predict import check_out

    check_out(out, wanted.overwrite)  # before anything slow
    predictor = make_predictor(export, folder, load, wanted.id_column)
    from kerasmtl.serving.batch_predict import BATCH, how_to_go_on, predict_to_file
    from kerasmtl.serving.predictor import ROWS

    try:
        done = predict_to_file(
            predictor,
            _inputs(files, predictor, wanted),
            out,
            batch_size=wanted.batch_size or (BATCH if predictor.columns is None else ROWS),
            resume=wanted.resume,
            overwrite=wanted.overwrite,
            progress=not as_json,
        )
    except KeyboardInterrupt:
        click.echo(f"\n{how_to_go_on(out)}", err=True)
        raise SystemExit(130) from None
    click.echo(json.dumps(asdict(done), default=str, indent=2) if as_json else _said(done))
    if done.bad and wanted.fail_on_bad:
        raise SystemExit(1)


def make_predictor(
    export: str | None, folder: str, load: Load, id_column: str | None = None
) -> Predictor:
    """What predicts: the export, or else the trained model of the project in `folder`."""
    from kerasmtl.serving.predictor import export_predictor, model_predictor

    if export is not None:
        return export_predictor(export, id_column)
    project = load_project(folder)
    model, of = load(project), project.trained()
    return model_predictor(
        model,
        of.tasks,
        project.checkpoint,
        input=of.input,
        id_column=id_column,
        thresholds=project.run.thresholds(),
    )


def _inputs(files: Sequence[str], predictor: Predictor, wanted: Wanted) -> Any:
    from kerasmtl.serving.batch_predict import PictureInputs, RowInputs

    if predictor.columns is None:
        if wanted.id_column is not None:
            raise ValueError("--id-column is for tables, and the model takes pictures.")
        return PictureInputs(files, wanted.image_column or "image")
    if wanted.image_column is not None:
        raise ValueError("--image-column is for pictures, and the model takes rows of a table.")
    of = predictor.input
    return RowInputs(files, of.features, of.packed_bits, of.id_column)


def _said(done: Done) -> str:
    text = f"{done.rows} predictions in {done.out}"
    if done.resumed:
        text += f", {done.resumed} inputs of them from before"
    if done.bad:
        text += f"; {done.bad} inputs could not be used, see {done.quarantine}"
    return text


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
@click.option("--model", "export_", type=click.Path(), help="An exported SavedModel's folder.")
@in_project
@trusting
@as_json
@plain_errors
def evaluate(
    part: str,
    bootstrap: int,
    recall: float | None,
    export_: str | None,
    folder: str,
    trust: bool,
    json_: bool,
) -> None:
    """Score the trained model, or an export, by task, on the labels that are known.

    Rows are in the part that they were in when the model was trained. Accuracy and F1 are those of
    the decisions, by the thresholds that were fitted in training or that the export has. With a
    group column, --bootstrap draws whole groups.
    """
    project = load_project(folder)
    if export_ is None:
        model: Any = trained_model(project, trust)
        rows = project.part(part)
        batches: Any = project.dataset(rows, model)
        thresholds = project.run.thresholds()
    else:
        model, rows, batches, thresholds = _of_export(project, export_, part)
    from kerasmtl.evaluation.evaluate import evaluate as score

    report = score(
        model,
        batches,
        rows.tasks,
        threshold=thresholds,
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


def _of_export(project: Project, folder: str, part: str) -> tuple[Any, Manifest, Any, Any]:
    """An export to score, the rows of a part of the run that it is of, and its thresholds."""
    from kerasmtl.serving.predictor import ExportScorer, describe_export, export_predictor

    described = describe_export(folder)
    rows = project.part(part, (described.get("data") or {}).get("run"))
    scorer = ExportScorer(export_predictor(folder), rows.tasks)
    thresholds = {
        task["name"]: task["threshold"]
        for task in described.get("tasks", ())
        if task.get("threshold") is not None
    }
    return scorer, rows, scorer.batches(rows), thresholds


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
    table = _is_table(export_, folder)
    # What is wrong with a file is said before TensorFlow and the model are loaded.
    bad = _bad_files(files, table)
    good = [file for file in files if file not in bad]
    found: dict[str, Predicted] = {}
    if good:
        from kerasmtl.serving.predictor import predict_images, predict_rows

        predictor = make_predictor(export_, folder, lambda p: trained_model(p, trust))
        if table:
            found = predict_rows(predictor, good)
        else:
            found, worse = predict_images(predictor, good)
            bad |= worse
    if json_:
        click.echo(json.dumps(_as_json(files, found, bad, table), indent=2, ensure_ascii=False))
    elif found:
        decisions = [each.decisions for each in found.values()]
        print_predictions("row" if table else "image", list(found), [*found.values()], decisions)
    if bad:
        for file, why in bad.items():
            click.echo(f"Error: {file}: {why}", err=True)
        raise SystemExit(1)


def _is_table(export_: str | None, folder: str) -> bool:
    """Whether the model takes rows, without loading it."""
    if export_ is None:
        project = load_project(folder)
        check_trained(project)
        return project.input.kind == "table"
    from kerasmtl.serving.predictor import describe_export

    return (describe_export(export_).get("input") or {}).get("kind") == "table"


def _bad_files(files: Sequence[str], table: bool) -> dict[str, str]:
    from kerasmtl.data.image_files import image_fault

    def fault(file: str) -> str | None:
        if table:
            return None if Path(file).is_file() else "missing"
        return image_fault(file)

    faults = {file: fault(file) for file in files}
    return {file: fault for file, fault in faults.items() if fault}


def _as_json(
    files: Sequence[str], found: Mapping[str, Predicted], bad: Mapping[str, str], table: bool
) -> list[dict[str, Any]]:
    """One object per image or row, in the order of the command line."""
    first, values = ("row", "predictions") if table else ("image", "probabilities")
    names = [*found, *bad] if table else [file for file in files if file in found or file in bad]
    return [
        {first: name, "error": bad[name]}
        if name in bad
        else {first: name, values: found[name], "decisions": found[name].decisions}
        for name in names
    ]


def _refuse_folders(files: Sequence[str]) -> None:
    for file in files:
        if Path(file).is_dir():
            raise ValueError(f"`files` {file} is a folder. Expected --out FILE with it.")


def trained_model(project: Project, trust: bool) -> keras.Model:
    """Load the model of the newest run; `trust` runs whatever graph its file brings.

    Raises:
        FileNotFoundError: nothing has been trained yet.
        ValueError: the file brings a graph that is not the one that the run was made with.
    """
    check_trained(project)
    from kerasmtl.models.build import load_model
    from kerasmtl.training.record import load_record

    record = load_record(project.checkpoint)
    of = (record and record.backbone) or {}
    if of and _is_another(of, project):
        click.echo(
            f"Warning: {project.checkpoint} was trained with the backbone {of['handle']!r}, and "
            f"project.toml names {project.model.backbone!r} now. Train again to use that one: "
            "python train.py",
            err=True,
        )
    # Not compiled: nothing here trains, and a stage's optimizer does not fit the next stage.
    if trust:
        return load_model(project.checkpoint, safe_mode=False, compile=False)
    vouched = [f"sha256:{of['sha256']}"] if of.get("sha256") else _vouched_for(project)
    try:
        return load_model(project.checkpoint, trust=vouched, compile=False)
    except ValueError as error:
        if "safe_mode" not in str(error):
            raise
        raise ValueError(
            f"{project.checkpoint} holds another backbone than project.toml names, "
            f"{project.model.backbone!r}. If the setting was changed, train again: python "
            "train.py. If you trust the file, which can run any TensorFlow graph: --trust."
        ) from error


def check_trained(project: Project) -> None:
    """Raise FileNotFoundError if nothing has been trained yet."""
    if not project.checkpoint.is_file():
        raise FileNotFoundError(
            f"{project.checkpoint} does not exist: nothing has been trained yet. Run: "
            "python train.py"
        )


def _is_another(of: Mapping[str, str], project: Project) -> bool:
    """Whether project.toml names another backbone than the one that a run was made with."""
    pinned = project.model.backbone_sha256
    if pinned and of["sha256"]:
        return pinned.lower() != of["sha256"].lower()
    return project.model.backbone != of["handle"]


def _vouched_for(project: Project) -> list[str]:
    """The module that the project itself names, if it is at hand: its owner trusts that one."""
    from kerasmtl.models.hub.handles import resolve_handle

    try:
        return [str(resolve_handle(project.backbone, project.model.backbone_sha256))]
    except ValueError:
        return []  # gone, changed, or no SavedModel at all
