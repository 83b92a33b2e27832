"""`kerasmtl serve`: its options, and what it says."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasmtl.serving.labels import Wanted, model_names, read_label, read_models_config
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
    type=_POSITIVE,
    help="Of a picture; larger ones are refused undecoded.  [default, and most: what the model was "
    "exported with]",
)
@click.option(
    "--batch-pixels",
    default=_DEFAULT.batch_pixels,
    show_default=True,
    type=_POSITIVE,
    help="Of all pictures in one call of the model.",
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
@click.option(
    "--label",
    "labels",
    multiple=True,
    help="NAME=VERSION, such as stable=3, for /v1/models/MODEL/labels/NAME; may be repeated.",
)
@click.option(
    "--models-config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="TensorFlow Serving's, as `kerasmtl deploy` writes it: its name, versions and "
    "labels, in place of --keep. Edits are followed.",
)
@click.option(
    "--access-log",
    is_flag=True,
    help="Print a line for each request: who, what, status, time, X-Request-ID.",
)
def serve(
    folder: Path | None,
    project: str,
    host: str,
    port: int,
    name: str | None,
    max_body: int,
    batch_wait: float,
    labels: tuple[str, ...],
    models_config: Path | None,
    access_log: bool,
    **numbers: Any,
) -> None:
    """Serve the exported models in FOLDER/<version>/, and a page to try them on.

    Speaks TensorFlow Serving's REST (/v1/models/NAME:predict) and the Open Inference Protocol
    (/v2/models/NAME/infer), both over HTTP; gRPC is not spoken. Prometheus finds /metrics. A newer
    version is taken up as soon as it is whole; on SIGTERM, running requests are finished. One model
    for each server: for more, start more, with --port.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("kerasmtl.serving.access").setLevel(access_log and logging.INFO)
    try:
        limits = Limits(max_body=max_body * MIB, batch_wait=batch_wait / 1000, **numbers)
        base = folder or _exports(project)
        name = name or _configured(models_config)
        chosen = _name(name or re.sub(r"[^\w.-]+", "-", base.resolve().name, flags=re.ASCII))
        wanted = _wanted(limits.keep, labels, models_config, chosen)

        def ready(url: str, versions: Versions) -> None:
            called = {number: [] for number in versions.numbers}
            for label, number in versions.labels.items():
                called[number].append(label)
            shown = ", ".join(
                f"{number} ({', '.join(names)})" if names else str(number)
                for number, names in called.items()
            )
            click.echo(f"Serving {chosen}, version {shown}, from {base}. Open {url}")

        _runner()(base, chosen, host, port, limits, ready, wanted)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _runner() -> Callable[..., None]:
    try:
        from kerasmtl.serving.running import run
    except ModuleNotFoundError as error:
        lacking = (error.name or "").split(".")[0]
        if lacking not in ("starlette", "uvicorn", "httptools", "prometheus_client"):
            raise
        raise click.ClickException(f"{lacking} is not installed. Run: {INSTALL}") from error
    return run


def _wanted(
    keep: int, labels: tuple[str, ...], models_config: Path | None, name: str
) -> Callable[[], Wanted]:
    if models_config is None:
        found = Wanted(keep, dict(map(read_label, labels)))
        return lambda: found
    if labels:
        raise ValueError(
            "`--label` and `--models-config` exclude each other. Expected one of them."
        )
    return lambda: read_models_config(models_config, name)


def _configured(models_config: Path | None) -> str | None:
    """The name of the only model in a configuration."""
    if models_config is None:
        return None
    names = model_names(models_config)
    if len(names) > 1:
        raise ValueError(
            f"`--models-config` {models_config} names several models. Expected --name with one of "
            f"{names}"
        )
    return names[0]


def _exports(project: str) -> Path:
    from kerasmtl.project import Project

    return Path(Project.load(project).export_folder)


def _name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", name, flags=re.ASCII):
        raise ValueError(
            f"`--name` is no name for a path. Expected letters, digits, . _ -. Received: {name!r}"
        )
    return name
