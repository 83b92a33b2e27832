"""`kerasmtl predict --out`: predictions into a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasmtl.commands.shared import load_project

if TYPE_CHECKING:
    import keras

    from kerasmtl.batch import Done, Predictor
    from kerasmtl.project import Project

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
    from kerasmtl.batch_outputs import check_out

    check_out(out, wanted.overwrite)  # before anything slow
    predictor = make_predictor(export, folder, load, wanted.id_column)
    from kerasmtl.batch import BATCH, how_to_go_on, predict_to_file
    from kerasmtl.predictors import ROWS

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
    from kerasmtl.predictors import export_predictor, model_predictor

    if export is not None:
        return export_predictor(export, id_column)
    project = load_project(folder)
    model, of = load(project), project.trained()
    return model_predictor(
        model,
        of.tasks,
        project.checkpoint,
        columns=of.columns,
        packed_bits=of.packed_bits,
        id_column=id_column or of.id_column,
        thresholds=project.run.thresholds(),
    )


def _inputs(files: Sequence[str], predictor: Predictor, wanted: Wanted) -> Any:
    from kerasmtl.batch_inputs import PictureInputs, RowInputs

    if predictor.columns is None:
        if wanted.id_column is not None:
            raise ValueError("--id-column is for tables, and the model takes pictures.")
        return PictureInputs(files, wanted.image_column or "image")
    if wanted.image_column is not None:
        raise ValueError("--image-column is for pictures, and the model takes rows of a table.")
    return RowInputs(files, predictor.columns, predictor.packed_bits, predictor.id_column)


def _said(done: Done) -> str:
    text = f"{done.rows} predictions in {done.out}"
    if done.resumed:
        text += f", {done.resumed} inputs of them from before"
    if done.bad:
        text += f"; {done.bad} inputs could not be used, see {done.quarantine}"
    return text
