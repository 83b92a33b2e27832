"""`kerasmtl tune` searches the settings of project.toml, and writes the best only when asked."""

from __future__ import annotations

import logging

import click

from kerasmtl.cli.common import load_project, plain_errors, project_option


@click.command()
@click.option("--trials", default=30, show_default=True, help="Trainings, earlier calls included.")
@click.option("--minutes", type=float, help="Begin no training after that time.")
@click.option(
    "--augment", is_flag=True, help="Train the whole network, and search augmentation; takes long."
)
@click.option("--seeds", default=3, show_default=True, help="For the spread of the best settings.")
@click.option("--apply", is_flag=True, help="Write better settings into project.toml.")
@project_option
@plain_errors
def tune(
    trials: int, minutes: float | None, augment: bool, seeds: int, apply: bool, project: str
) -> None:
    """Search head, rates and batches by training, scored on the validation part.

    What is searched may be named in [tune] of project.toml. Trials are kept in runs/tune.db: the
    same command resumes after an interruption. The test part is never looked at.

    \b
    Examples:
      kerasmtl tune
      kerasmtl tune --trials 100 --minutes 10
      kerasmtl tune --apply
    """
    from kerasmtl.advice.tune import apply_settings
    from kerasmtl.advice.tune import tune as search

    loaded = load_project(project)
    # TensorFlow warns of functions traced again and again, which trials of other networks must be.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        found = search(loaded, trials, minutes, augment, seeds)
    except KeyboardInterrupt:
        click.echo("Stopped. The same command resumes; finished trials are kept.", err=True)
        raise SystemExit(130) from None
    click.echo(str(found))
    if apply and found.better:
        click.echo(f"Written into {apply_settings(loaded, found.settings)}.")
    elif found.better:
        click.echo("`kerasmtl tune --apply` writes them into project.toml.")
