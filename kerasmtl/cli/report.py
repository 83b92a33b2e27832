"""`kerasmtl report` writes the report of a training as one HTML file, which people can send on."""

from __future__ import annotations

import os

import click

from kerasmtl.cli.common import load_project, plain_errors, project_option
from kerasmtl.cli.predict import trained_model, trusting


@click.command()
@click.option("--run", help="The name of its folder in runs/.  [default: the newest with a model]")
@click.option(
    "--output",
    type=click.Path(dir_okay=False),
    help="The file to write.  [default: report.html in the folder of the run]",
)
@click.option("--compare", is_flag=True, help="Include the results of `kerasmtl compare`.")
@project_option
@trusting
@plain_errors
def report(run: str | None, output: str | None, compare: bool, project: str, trust: bool) -> None:
    """Write scores, curves, mistakes and likely wrong labels as one HTML file.

    The file has everything in it, and asks no other computer for anything: it can be sent by mail.
    train.py writes the same at the end of a training.

    \b
    Examples:
      kerasmtl report
      kerasmtl report --run 2026-05-04_10-00-00 --output street.html
    """
    found = load_project(project)
    chosen = found.run_of(run)
    model = trained_model(found, trust, chosen)
    click.echo(os.path.relpath(found.write_report(model, chosen, output, compare)))
