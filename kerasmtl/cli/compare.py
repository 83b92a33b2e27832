"""`kerasmtl advise` and `kerasmtl compare`: what to expect of transfer and of several tasks.

`advise` looks at labels and features; `compare` trains, within a time budget, and resumes where it
was stopped.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import click

from kerasmtl.cli.common import as_json, load_project, plain_errors, project_option

backbone_option = click.option(
    "--backbone",
    "backbones",
    multiple=True,
    help="A backbone's handle, to rank with others; may be repeated.",
)


@click.command()
@backbone_option
@project_option
@as_json
@plain_errors
def advise(backbones: tuple[str, ...], project: str, json_: bool) -> None:
    """Say what the labels and the frozen features suffice for, before anything is trained.

    Counts known labels, their ratio between tasks, probes the features of the backbone (or of each
    --backbone; of a table its columns) by a ridge regression in folds, and says which plan training
    would take, and why.

    \b
    Examples:
      kerasmtl advise
      kerasmtl advise --backbone tiny --backbone MobileNetV2
    """
    from kerasmtl.advice.advise import advise as look

    with contextlib.redirect_stdout(sys.stderr):  # only the answer is on stdout
        found = look(load_project(project), backbones)
    click.echo(json.dumps(found.to_dict(), indent=2) if json_ else str(found))


@click.command()
@click.argument("what", type=click.Choice(["transfer", "tasks", "size"]))
@click.option("--minutes", default=10.0, show_default=True, help="Begin no training after that.")
@click.option("--seeds", default=3, show_default=True, help="Trainings of each kind, 3 or more.")
@click.option("--shares", help="Of transfer: shares of the labels.  [default: 0.05,0.15,0.4,1]")
@backbone_option
@project_option
@as_json
@plain_errors
def compare(
    what: str,
    minutes: float,
    seeds: int,
    shares: str | None,
    backbones: tuple[str, ...],
    project: str,
    json_: bool,
) -> None:
    """Measure on the project's own rows whether transfer, several tasks, or more width pays.

    transfer: random weights, the frozen backbone and the project's plan, on shares of the labels.
    tasks: one network for all tasks, one per task, and groups. size: from which width on one
    network for all no longer loses. Finished trainings are kept in runs/compare:
    after Ctrl-C, or when the minutes are over, the same command resumes.

    \b
    Examples:
      kerasmtl compare tasks
      kerasmtl compare transfer --minutes 30 --shares 0.05,0.2,0.5,1
    """
    from kerasmtl.advice.compare import compare as measure

    options: dict[str, Any] = {}
    if shares is not None:
        try:
            options["shares"] = [float(share) for share in shares.split(",")]
        except ValueError:
            raise ValueError(
                f"`shares` must be numbers such as 0.05,0.2,1, got {shares!r}"
            ) from None
    found = load_project(project)
    options |= {"seeds": seeds, "minutes": minutes, "backbones": backbones}
    try:
        with contextlib.redirect_stdout(sys.stderr):
            answer = measure(found, what, **options)
    except KeyboardInterrupt:
        click.echo(
            "\nStopped. The same command resumes after the last finished training.", err=True
        )
        raise SystemExit(130) from None
    click.echo(json.dumps(answer.to_dict(), indent=2) if json_ else str(answer))
