"""`kerasmtl evaluate` and `kerasmtl predict`, with the trained model or an export.

Both take the model of the newest run by default, which `trained_model` loads with its record, and
an export with --model. `predict` makes a `Predictor` of either, and `evaluate` scores an export by
an `ExportScorer`, so that what follows does not depend on it. `export` and `convert` load the
trained model with `trained_model` as well.

Modules that import TensorFlow are imported in functions, after options and files are checked: what
is wrong with a call is said at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from kerasmtl.cli.common import (
    as_json,
    load_project,
    plain_errors,
    print_predictions,
    print_table,
    project_option,
)

if TYPE_CHECKING:
    import keras

    from kerasmtl.data.manifest import Manifest
    from kerasmtl.project import Project
    from kerasmtl.serving.batch_predict import Source, Summary
    from kerasmtl.serving.predictor import Prediction, Predictor
    from kerasmtl.training.runs import Run

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
@project_option
@trusting
@as_json
@plain_errors
def evaluate(
    part: str,
    bootstrap: int,
    recall: float | None,
    export_: str | None,
    project: str,
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
    found = load_project(project)
    if export_ is None:
        model: Any = trained_model(found, trust)
        rows = found.part(part)
        batches: Any = found.dataset(rows, model)
        thresholds = found.run.thresholds()
    else:
        model, rows, batches, thresholds = _of_export(found, export_, part)
    from kerasmtl.evaluation.evaluate import evaluate as score

    report = score(
        model,
        batches,
        rows.tasks,
        threshold=thresholds,
        progress=not json_,
        bootstrap=bootstrap,
        seed=found.training.seed,
        groups=rows.groups,
        recall=recall,
    )
    if json_:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        print_table(report.table())


def _of_export(project: Project, folder: str, part: str) -> tuple[Any, Manifest, Any, Any]:
    """Return what `evaluate` needs to score an export.

    The rows are those of the run that the export was made of, which model.json names: a later run
    may have drawn another test split, which has rows that this model was trained on.

    Args:
        project: whose labels are the truth.
        folder: of the exported version.
        part: "train", "val" or "test".

    Returns:
        The export in place of a model, the rows, their batches, and the thresholds by binary task.

    Raises:
        FileNotFoundError, ValueError: the export does not exist, or its tasks are not those of the
            rows.
    """
    from kerasmtl.export.description import check_version_folder, read_description
    from kerasmtl.serving.predictor import ExportScorer, export_predictor

    described = read_description(check_version_folder(folder)) or {}
    rows = project.part(part, (described.get("data") or {}).get("run"))
    scorer = ExportScorer(export_predictor(folder), rows)
    thresholds = {task["name"]: task.get("threshold") for task in described.get("tasks", ())}
    known = {name: number for name, number in thresholds.items() if number is not None}
    return scorer, rows, scorer.batches(), known


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
@project_option
@trusting
@as_json
@plain_errors
def predict(
    files: tuple[str, ...],
    export_: str | None,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    batch_size: int | None,
    image_column: str | None,
    id_column: str | None,
    project: str,
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
    # Where some exist, those are predicted first, and the others reported with what is invalid.
    if len(absent) == len(files):  # said before TensorFlow and the model are loaded
        _fail([(file, "missing") for file in absent])
    if out is None:
        # --resume has a default, so that its value cannot tell whether the user gave it.
        context = click.get_current_context()
        for name, option in (("resume", "--no-resume"), ("overwrite", "--overwrite")):
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise ValueError(f"{option} must be used with --out FILE")
        predictor, source = _open(files, export_, project, trust, image_column, id_column)
        found = _predict_all(predictor, source, batch_size or predictor.batch_size)
        _show(source.first, predictor, found, json_)
        return
    from kerasmtl.serving.batch_predict import check_out, parts_of, predict_to_file

    check_out(out, overwrite)  # before the model is loaded
    predictor, source = _open(files, export_, project, trust, image_column, id_column)
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
        # Shards are complete or absent: nothing needs to be cleaned up. 130 is what shells expect
        # of a command that was interrupted.
        kept = f"What is finished is in {parts_of(out)}; the same command continues from there."
        click.echo(f"\nInterrupted. {kept}", err=True)
        raise SystemExit(130) from None
    click.echo(json.dumps(asdict(done), default=str, indent=2) if json_ else _summary(done))


def _open(
    files: Sequence[str],
    export: str | None,
    folder: str,
    trust: bool,
    image_column: str | None,
    id_column: str | None,
) -> tuple[Predictor, Source]:
    """Load an export, or the trained model of a project, and open files of its kind of input.

    Args:
        files: as `open_source` takes them.
        export: the folder of an exported version; None for the model of the project.
        folder: of the project.
        trust: run the graph in the trained model's file without asking where it is from.
        image_column: of CSVs that list images.
        id_column: of tables.

    Returns:
        The model, and the inputs as it takes them.

    Raises:
        FileNotFoundError: the model, its record or a file is absent.
        ValueError: a column that the model's kind of input does not have.
    """
    from kerasmtl.data.inputs import Input
    from kerasmtl.serving.batch_predict import open_source
    from kerasmtl.serving.predictor import export_predictor, model_predictor

    if export is not None:
        predictor = export_predictor(export)
    else:
        project = load_project(folder)
        model, of = trained_model(project, trust), project.trained()
        thresholds = project.run.thresholds()
        predictor = model_predictor(model, of.tasks, project.checkpoint, of.input, thresholds)
    options = {"column": "--image-column", "id_column": "--id-column"}
    given = {"column": image_column, "id_column": id_column}
    given = {name: column for name, column in given.items() if column is not None}
    # Only the model says which kind it takes, so that the option cannot be refused any earlier.
    if wrong := set(given) - {*Input.options(predictor.input.kind)}:
        option = options[wrong.pop()]
        raise ValueError(f"{option} must be left out: the model takes {predictor.input.noun}")
    return predictor, open_source(files, replace(predictor.input, **given))


def _predict_all(
    predictor: Predictor, source: Source, batch_size: int
) -> list[tuple[str, Prediction | str]]:
    """Predict for all inputs in memory, for the terminal.

    Args:
        predictor: of the model.
        source: the inputs.
        batch_size: inputs in one call of the model.

    Returns:
        In order, the name of each input, and what is predicted or why it cannot be used.
    """
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
    """Print predictions as a table or JSON; exit with status 1 if there are invalid inputs.

    Args:
        first: the heading of the names.
        predictor: of the model.
        found: as `_predict_all` returns it.
        as_json: JSON has the invalid inputs as well, with their error.
    """
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
    """Say which inputs cannot be used, by name, and exit with status 1.

    Args:
        faults: names, and why. They are printed after all results: a script that reads those has
            them even if some inputs fail.
    """
    for name, reason in faults:
        click.echo(f"Error: {name}: {reason}", err=True)
    raise SystemExit(1)


def _summary(done: Summary) -> str:
    """Return a line on what was written, resumed and left out."""
    text = f"{done.rows} predictions in {done.out}"
    if done.resumed:
        text += f"; {done.resumed} inputs were finished before"
    if done.invalid:
        text += f"; {done.invalid} inputs could not be used, see {done.errors}"
    return text


def trained_model(project: Project, trust: bool, run: Run | None = None) -> keras.Model:
    """Load the model of a run, by default of the newest one.

    A model file can bring a SavedModel along, whose graph may read and write files of whoever runs
    it. It is run if its content has the hash that the record of the run has, which start_run wrote
    beside it from the project's own backbone. Warns if project.toml names another backbone by now.

    Args:
        project: whose run.
        trust: run whatever graph the file brings.
        run: of the project.

    Returns:
        The model, not compiled.

    Raises:
        FileNotFoundError: nothing has been trained yet, or the run has no record.
        ValueError: the file brings a graph that is not the one that the run was made with.
    """
    path, settings = (run or project.run).checkpoint, project.model
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: nothing has been trained yet. Run: python train.py"
        )
    of, pin = (
        project.trained(run and run.folder.name).backbone or {},
        (settings.backbone_sha256 or "").lower(),
    )
    sha256 = of.get("sha256", "").lower()
    # By content where both are known: the same module may have moved to another folder.
    same = pin == sha256 if pin and sha256 else settings.backbone == of.get("handle")
    if of and not same:
        click.echo(
            f"Warning: {path} was trained with the backbone {of['handle']!r}, and project.toml "
            f"names {settings.backbone!r} now. Train again to use that one: python train.py",
            err=True,
        )
    from kerasmtl.models.build import load_model

    # Not compiled: nothing here trains, and a stage's optimizer does not fit the next stage.
    if trust:
        return load_model(path, safe_mode=False, compile=False)
    try:
        return load_model(path, trust=[f"sha256:{sha256}"] if sha256 else [], compile=False)
    except ValueError as error:
        # Keras raises the same class for a file that is damaged; only its message tells them apart.
        if "safe_mode" not in str(error):
            raise
        raise ValueError(
            f"{path} holds another backbone than it was trained with, {of.get('handle')!r}. Train "
            "again: python train.py. If you trust the file, which can run any graph: --trust."
        ) from error
