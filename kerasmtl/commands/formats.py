"""The command that writes the trained model for other runtimes: convert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasmtl.commands.models import trained_model, trusting
from kerasmtl.commands.shared import as_json, in_project, load_project, plain_errors
from kerasmtl.formats import FORMATS

if TYPE_CHECKING:
    from kerasmtl.manifest import Manifest
    from kerasmtl.project import Project


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
    folder: str,
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
    own runtime before it gets its name, and what that found is printed. Needs
    kerasmtl[litert] or kerasmtl[onnx].
    """
    project = load_project(folder)
    from kerasmtl.formats.convert import convert_model

    of = project.trained()
    file = out or Path(folder) / "converted" / f"{project.name}-{to}{FORMATS[to].ending}"
    try:
        made = convert_model(
            trained_model(project, trust),
            file,
            of.tasks,
            to,
            of.columns,
            samples or _training_rows(project),
            sample_count,
            uint8,
            seed=project.training.seed,
        )
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    if json_:
        about = {"path": str(file), "bytes": file.stat().st_size, **made.description}
        click.echo(json.dumps(about, indent=2, ensure_ascii=False))
        return
    click.echo(_said(file, made.description["check"]))


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
