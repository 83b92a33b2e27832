"""Commands `evaluate` and `predict`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

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
    from kerasmtl.serving.batch_predict import Source, Summary
    from kerasmtl.serving.predictor import Prediction, Predictor

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

    \b
    Examples:
      kerasmtl evaluate
      kerasmtl evaluate --bootstrap 1000 --json
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
    """Return an export to score, the rows of a part of its run, their batches, its thresholds."""
    from kerasmtl.export.description import check_version_folder, read_description
    from kerasmtl.serving.predictor import ExportScorer, export_predictor

    described = read_description(check_version_folder(folder)) or {}
    rows = project.part(part, (described.get("data") or {}).get("run"))
    scorer = ExportScorer(export_predictor(folder), rows)
    thresholds = {
        task["name"]: task["threshold"]
        for task in described.get("tasks", ())
        if task.get("threshold") is not None
    }
    return scorer, rows, scorer.batches(), thresholds


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("--model", "export_", type=click.Path(), help="An exported SavedModel's folder.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write predictions to this file: .csv, .parquet or .jsonl.",
)
@click.option(
    "--resume/--no-resume",
    default=True,
    show_default=True,
    help="With --out: continue where an interrupted call stopped.",
)
@click.option("--overwrite", is_flag=True, help="With --out: replace the file.")
@click.option(
    "--fail-on-bad", is_flag=True, help="With --out: exit with 1 if some inputs cannot be used."
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Inputs in one call of the model.  [default: 32 images, 1024 rows]",
)
@click.option(
    "--image-column", help="The column with the images, if FILES are CSVs.  [default: the model's]"
)
@click.option(
    "--id-column", help="A table's column with the names of its rows.  [default: the model's]"
)
@in_project
@trusting
@as_json
@plain_errors
def predict(
    files: tuple[str, ...],
    export_: str | None,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    fail_on_bad: bool,
    batch_size: int | None,
    image_column: str | None,
    id_column: str | None,
    folder: str,
    trust: bool,
    json_: bool,
) -> None:
    """Predict for FILES with the trained model or an export.

    FILES are images, folders of images, CSVs that list images, or tables. With --out there may be
    any number of them: what is finished is kept if the command is interrupted, and the same
    command continues. Inputs that cannot be used are listed in OUT.errors.csv.

    \b
    Examples:
      kerasmtl predict a.jpg b.jpg
      kerasmtl predict photos --out predictions.parquet
    """
    absent = [file for file in files if not Path(file).exists()]
    if len(absent) == len(files):  # said before TensorFlow and the model are loaded
        _fail([(file, "missing") for file in absent])
    if out is None:
        _refuse(click.get_current_context(), ("resume", "overwrite", "fail_on_bad"))
        predictor, source = _open(files, export_, folder, trust, image_column, id_column)
        found = _predict_all(predictor, source, batch_size or predictor.batch_size)
        _show(source.first, predictor, found, json_)
        return
    from kerasmtl.serving.batch_predict import check_out, parts_of, predict_to_file

    check_out(out, overwrite)  # before the model is loaded
    predictor, source = _open(files, export_, folder, trust, image_column, id_column)
    try:
        done = predict_to_file(
            predictor,
            source,
            out,
            batch_size=batch_size,
            resume=resume,
            overwrite=overwrite,
            progress=not json_,
        )
    except KeyboardInterrupt:
        kept = f"What is finished is in {parts_of(out)}; the same command continues from there."
        click.echo(f"\nInterrupted. {kept}", err=True)
        raise SystemExit(130) from None
    click.echo(json.dumps(asdict(done), default=str, indent=2) if json_ else _summary(done))
    if done.invalid and fail_on_bad:
        raise SystemExit(1)


def _refuse(context: click.Context, names: Sequence[str]) -> None:
    """Raise ValueError if options that belong to --out were given without it."""
    given = [n for n in names if context.get_parameter_source(n) is ParameterSource.COMMANDLINE]
    options = [f"--{'no-' * (n == 'resume')}{n.replace('_', '-')}" for n in given]
    if options:
        raise ValueError(f"{', '.join(options)} must be used with --out FILE")


def make_predictor(export: str | None, folder: str, trust: bool = False) -> Predictor:
    """Make a predictor of an export, or else of the trained model of the project in `folder`."""
    from kerasmtl.serving.predictor import export_predictor, model_predictor

    if export is not None:
        return export_predictor(export)
    project = load_project(folder)
    model, of = trained_model(project, trust), project.trained()
    thresholds = project.run.thresholds()
    return model_predictor(model, of.tasks, project.checkpoint, of.input, thresholds)


def _open(
    files: Sequence[str],
    export: str | None,
    folder: str,
    trust: bool,
    image_column: str | None,
    id_column: str | None,
) -> tuple[Predictor, Source]:
    """Load the model, and open files of the kind of its input."""
    from kerasmtl.data.inputs import Input
    from kerasmtl.serving.batch_predict import open_source

    predictor = make_predictor(export, folder, trust)
    columns = {"column": image_column, "id_column": id_column}
    given = {name: column for name, column in columns.items() if column is not None}
    if set(given) - {*Input.options(predictor.input.kind)}:
        option = "--id-column" if id_column is not None else "--image-column"
        raise ValueError(f"{option} must be left out: the model takes {predictor.input.noun}")
    return predictor, open_source(files, replace(predictor.input, **given))


def _predict_all(
    predictor: Predictor, source: Source, batch_size: int
) -> list[tuple[str, Prediction | str]]:
    """Return the name of each input, and what is predicted or why it cannot be used."""
    from kerasmtl.serving.batch_predict import predict_chunk
    from kerasmtl.serving.predictor import predictions

    found: list[tuple[str, Prediction | str]] = []
    for chunk in source.chunks(source.shard):
        rows, outputs, reasons = predict_chunk(predictor, source, chunk, batch_size)
        said = reasons | dict(zip(rows, predictions(predictor, outputs), strict=True))
        found += [(name, said[row]) for row, name in enumerate(chunk.names)]
    return found


def _show(
    first: str, predictor: Predictor, found: Sequence[tuple[str, Any]], as_json: bool
) -> None:
    good = [(name, each) for name, each in found if not isinstance(each, str)]
    if as_json:
        values = "probabilities" if predictor.input.kind == "image" else "predictions"
        rows = [
            {first: name, "error": each}
            if isinstance(each, str)
            else {first: name, values: each, "decisions": each.decisions}
            for name, each in found
        ]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif good:
        names, values = zip(*good, strict=True)
        print_predictions(first, names, values, [each.decisions for each in values])
    if len(good) < len(found):
        _fail([(name, each) for name, each in found if isinstance(each, str)])


def _fail(faults: Sequence[tuple[str, str]]) -> None:
    for name, reason in faults:
        click.echo(f"Error: {name}: {reason}", err=True)
    raise SystemExit(1)


def _summary(done: Summary) -> str:
    text = f"{done.rows} predictions in {done.out}"
    if done.resumed:
        text += f"; {done.resumed} inputs were finished before"
    if done.invalid:
        text += f"; {done.invalid} inputs could not be used, see {done.errors}"
    return text


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
