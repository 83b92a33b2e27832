"""`kerasmtl serve`: its options, and what it says."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kerasmtl.serving.limits import MIB, Limits

if TYPE_CHECKING:
    from kerasmtl.serving.versions import Versions

INSTALL = "pip install 'kerasmtl[serve]'"
_DEFAULT = Limits()
_POSITIVE = click.IntRange(min=1)
_SECONDS = click.FloatRange(min=0)


@click.command()
@click.argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--project",
    default=".",
    show_default=True,
    type=click.Path(file_okay=False),
    help="The project whose exports are served if no FOLDER is given.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: for everybody.")
@click.option(
    "--port",
    default=8501,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="0: a free one, which is printed.",
)
@click.option("--name", help="The model's name in the paths.  [default: FOLDER's]")
@click.option(
    "--max-body",
    default=_DEFAULT.max_body // MIB,
    show_default=True,
    type=_POSITIVE,
    help="MiB of a request; more is answered with 413.",
)
@click.option(
    "--max-pixels",
    default=_DEFAULT.max_pixels,
    show_default=True,
    type=_POSITIVE,
    help="Of a picture, and of all pictures in one call of the model.",
)
@click.option(
    "--max-queue",
    default=_DEFAULT.max_queue,
    show_default=True,
    type=_POSITIVE,
    help="Requests at a time; more are answered with 503.",
)
@click.option(
    "--batch-size",
    default=_DEFAULT.batch_size,
    show_default=True,
    type=_POSITIVE,
    help="Examples in one call of the model.",
)
@click.option(
    "--batch-wait",
    default=_DEFAULT.batch_wait * 1000,
    show_default=True,
    type=_SECONDS,
    help="Milliseconds that an example waits for others.",
)
@click.option(
    "--workers",
    default=_DEFAULT.workers,
    show_default=True,
    type=_POSITIVE,
    help="Calls of the model at the same time.",
)
@click.option(
    "--keep",
    default=_DEFAULT.keep,
    show_default=True,
    type=_POSITIVE,
    help="How many of the newest versions are served.",
)
@click.option(
    "--poll",
    default=_DEFAULT.poll,
    show_default=True,
    type=_SECONDS,
    help="Seconds between two looks for a new version.",
)
@click.option(
    "--drain",
    default=_DEFAULT.drain,
    show_default=True,
    type=_SECONDS,
    help="Seconds that running requests have left after SIGTERM.",
)
@click.option("--access-log", is_flag=True, help="Print a line for each request.")
def serve(
    folder: Path | None,
    project: str,
    host: str,
    port: int,
    name: str | None,
    max_body: int,
    batch_wait: float,
    access_log: bool,
    **numbers: float,
) -> None:
    """Serve the exported models in FOLDER/<version>/, and a page to try them on.

    Speaks TensorFlow Serving's REST (/v1/models/NAME:predict) and the Open Inference Protocol
    (/v2/models/NAME/infer). A newer version is taken up as soon as it is whole; on SIGTERM,
    running requests are finished.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        limits = Limits(max_body=max_body * MIB, batch_wait=batch_wait / 1000, **numbers)
        base = folder or _exports(project)
        chosen = _name(name or re.sub(r"[^\w.-]+", "-", base.resolve().name, flags=re.ASCII))

        def ready(url: str, versions: Versions) -> None:
            shown = ", ".join(map(str, versions.numbers))
            click.echo(f"Serving {chosen}, version {shown}, from {base}. Open {url}")

        _runner()(base, chosen, host, port, limits, ready, access_log)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _runner() -> Callable[..., None]:
    try:
        from kerasmtl.serving.running import run
    except ModuleNotFoundError as error:
        lacking = (error.name or "").split(".")[0]
        if lacking not in ("starlette", "uvicorn"):
            raise
        raise click.ClickException(f"{lacking} is not installed. Run: {INSTALL}") from error
    return run


def _exports(project: str) -> Path:
    from kerasmtl.project import Project

    return Path(Project.load(project).export_folder)


def _name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", name, flags=re.ASCII):
        raise ValueError(
            f"`--name` is no name for a path. Expected letters, digits, . _ -. Received: {name!r}"
        )
    return name
