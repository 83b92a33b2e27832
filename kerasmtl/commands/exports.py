"""`kerasmtl export`: the trained model as a SavedModel for any server."""

from __future__ import annotations

from typing import Any

import click

from kerasmtl.commands.models import trained_model, trusting
from kerasmtl.commands.shared import in_project, load_project, plain_errors


@click.command()
@click.argument("out", required=False, type=click.Path(file_okay=False))
@click.option(
    "--require",
    "required",
    multiple=True,
    metavar="SCORE=NUMBER",
    help="Publish only a model as good as that on the validation part, such as macro_auc=0.8 or "
    "car.auc=0.7; may be repeated.",
)
@click.option(
    "--thresholds",
    metavar="RULE",
    help="How decisions are made: f1, fixed (0.5), precision=0.9 or recall=0.9, fitted on the "
    "validation part. [default: f1 if there is one, else fixed]",
)
@click.option("--calibrate", is_flag=True, help="Calibrate probabilities on the validation part.")
@click.option("--licence", help="Of the model, for its card.")
@in_project
@trusting
@plain_errors
def export(
    out: str | None,
    required: tuple[str, ...],
    thresholds: str | None,
    calibrate: bool,
    licence: str | None,
    folder: str,
    trust: bool,
) -> None:
    """Write the trained model as a SavedModel, under the next version number of OUT.

    It appears after a fresh process without kerasmtl has answered golden requests as the model
    does. Without the labels file nothing is fitted or measured.
    """
    require = dict(_score(text) for text in required)
    rule = _rule(thresholds)
    project = load_project(folder)
    from kerasmtl.export import data_of, export_saved_model

    model = trained_model(project, trust)
    of = project.trained()
    validation, data = None, None
    if project.labels_csv.is_file():
        data = data_of(project.labels_csv)
        try:
            validation = project.dataset(project.part("val"), model)
        except ValueError as error:
            if require or calibrate or rule not in (None, "fixed"):
                raise
            click.echo(f"Nothing is fitted or measured: {error}", err=True)
    click.echo(
        export_saved_model(
            model,
            out or project.export_folder,
            of.tasks,
            columns=of.columns,
            packed_bits=of.packed_bits,
            validation=validation,
            thresholds=rule,
            calibrate=calibrate,
            require=require or None,
            data=data,
            licence=licence,
            name=project.name,
        )
    )


def _score(text: str) -> tuple[str, float]:
    name, equals, number = text.partition("=")
    try:
        return name.strip(), float(number)
    except ValueError:
        raise click.BadParameter(
            f"expected SCORE=NUMBER, such as macro_auc=0.8, received {text!r}",
            param_hint="--require",
        ) from None


def _rule(text: str | None) -> Any:
    if text is None or "=" not in text:
        return text
    name, _, number = text.partition("=")
    try:
        return name.strip(), float(number)
    except ValueError:
        raise click.BadParameter(
            f"expected f1, fixed, precision=NUMBER or recall=NUMBER, received {text!r}",
            param_hint="--thresholds",
        ) from None
