"""The command that writes the trained model for other runtimes: convert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasmtl.commands.models import trained_model, trusting
from kerasmtl.commands.shared import as_json, in_project, load_project, plain_errors
from kerasmtl.formats import FORMATS
from kerasmtl.formats.runtimes import check_runtime

if TYPE_CHECKING:
    from kerasmtl.formats.runtimes import ConvertedModel
    from kerasmtl.manifest import Manifest
    from kerasmtl.project import Project

# A model or an export's folder, its tasks and columns, and a seed.
Origin = tuple[Any, Any, Any, int]


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
@click.option(
    "--float-layers",
    type=click.IntRange(min=0),
    help="How many of the first convolutions of litert-int8 compute in float32; 0: integers "
    "throughout.  [default: five eighths of them]",
)
@click.option(
    "--model",
    "export",
    type=click.Path(),
    help="An exported SavedModel's folder, with its thresholds and temperatures.  [default: the "
    "project's trained model]",
)
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
    float_layers: int | None,
    export: str | None,
    folder: str,
    trust: bool,
    json_: bool,
) -> None:
    """Write the trained or an exported model as the file OUT for LiteRT (TensorFlow Lite) or ONNX.

    \b
    litert          float32
    litert-dynamic  weights of 8 bits
    litert-int8     integers of 8 bits, but for the first layers and the last
    onnx            float32

    OUT is converted/NAME-FORMAT.tflite or .onnx in the project by default. The file is run in its
    own runtime before it gets its name, and what that found is printed. Needs
    kerasmtl[litert] or kerasmtl[onnx].
    """
    try:
        check_runtime(FORMATS[to].runtime)  # before anything slow
        origin, name, rows = _from_export(export, folder) if export else _trained(folder, trust)
        file = out or Path(folder) / "converted" / f"{name}-{to}{FORMATS[to].ending}"
        made = _made(origin, file, to, samples or rows, sample_count, uint8, float_layers)
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    if json_:
        about = {"path": str(file), "bytes": file.stat().st_size, **made.description}
        click.echo(json.dumps(about, indent=2, ensure_ascii=False))
        return
    click.echo(_said(file, made.description["check"]))


def _made(origin: Origin, file: Path, to: str, samples: Any, *options: Any) -> ConvertedModel:
    from kerasmtl.formats.convert import convert_model

    model, tasks, columns, seed = origin
    count, uint8, float_layers = options
    return convert_model(
        model,
        file,
        tasks,
        to,
        columns,
        samples,
        count,
        uint8,
        seed=seed,
        float_layers=float_layers,
    )


def _trained(folder: str, trust: bool) -> tuple[Origin, str, Any]:
    project = load_project(folder)
    of = project.trained()
    origin = (trained_model(project, trust), of.tasks, of.columns, project.training.seed)
    return origin, project.name, _training_rows(project)


def _from_export(export: str, folder: str) -> tuple[Origin, str, Any]:
    """With the rows of the project that it lies in, if it lies in one."""
    from kerasmtl.exporting.description import read_description

    rows = None
    if (Path(folder) / "project.toml").is_file():
        rows = _training_rows(load_project(folder))
    described = read_description(export) or {}
    return (export, None, None, 0), described.get("name", "model"), rows


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
