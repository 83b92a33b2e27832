"""Commands around servers: client, deploy."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasmtl.cli.common import as_json, load_project, plain_errors, print_predictions
from kerasmtl.serving.config import MIB, Limits
from kerasmtl.serving.versions import Wanted, model_names, read_label, read_models_config

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
        from kerasmtl.serving.server import run
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


PROTOCOLS = TARGETS = ("tfserving", "kserve")


@click.command()
@click.argument("url")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    help="TensorFlow Serving's REST, or KServe's V2.  [default: what URL says, or tfserving]",
)
@click.option("--name", help="The model's name, if URL is only that of the server.")
@click.option("--version", help="A version's number, or for tfserving its label.")
@click.option("--signature", help="Which signature.  [default: serving_default]")
@click.option(
    "--batch-size",
    default=32,
    show_default=True,
    type=click.IntRange(min=1),
    help="Pictures or rows in a request.",
)
@click.option(
    "--timeout",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds for an answer.",
)
@click.option(
    "--retries",
    default=5,
    show_default=True,
    type=click.IntRange(min=0),
    help="How often to ask again if the server is busy (503).",
)
@as_json
@plain_errors
def client(
    url: str,
    files: tuple[str, ...],
    protocol: str | None,
    name: str | None,
    version: str | None,
    json_: bool,
    **asking: Any,
) -> None:
    """Predictions for FILES from the server at URL.

    FILES are pictures, or tables (.csv, .parquet, .npz) whose columns are called as in training.
    URL is http://HOST:PORT with --name, or http://HOST:PORT/v1/models/NAME (TensorFlow Serving)
    or http://HOST:PORT/v2/models/NAME (KServe).
    """
    from kerasmtl.serving.client import model_url, predict_kserve, predict_tfserving, protocol_of

    chosen = protocol or protocol_of(url)
    predict = predict_tfserving if chosen == "tfserving" else predict_kserve
    target = model_url(url, chosen, name, version)
    names, examples = _examples(target, files, asking)
    rows = predict(target, examples, **asking) if examples else []
    first = "image" if examples is files else "row"
    if json_:
        named = [{first: one, "outputs": row} for one, row in zip(names, rows, strict=True)]
        click.echo(json.dumps(named, indent=2, ensure_ascii=False))
        return
    _print("image" if examples is files else "row", names, rows)


def _examples(
    target: str, files: Sequence[str], asking: Mapping[str, Any]
) -> tuple[Sequence[str], Sequence[Any]]:
    """What each example is called, and the examples."""
    from kerasmtl.serving.client import is_table, read_rows, table_inputs

    tables = [file for file in files if is_table(file)]
    if not tables:
        return files, files
    if len(tables) < len(files):
        others = [file for file in files if file not in tables]
        raise ValueError(
            f"`files` are tables and others. Expected only tables, or only pictures. "
            f"Received: {tables[0]}, {others[0]}"
        )
    inputs = table_inputs(target, asking["signature"], asking["timeout"])
    names, rows = [], []
    for file in tables:
        more, found = read_rows(file, inputs)
        names += more
        rows += found
    return names, rows


def _print(first: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    tasks = [name for name in rows[0] if name.removesuffix("_decision") not in {*rows[0]} - {name}]
    values = [{name: _value(row[name]) for name in tasks} for row in rows]
    decisions = [{name: row.get(f"{name}_decision") for name in tasks} for row in rows]
    print_predictions(first, names, values, decisions)


def _value(value: Any) -> Any:
    """A server names no classes: their numbers stand for them."""
    if not isinstance(value, list):
        return value
    return {str(number): one for number, one in enumerate(value)}


@click.command()
@click.argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option("--for", "target", required=True, type=click.Choice(TARGETS), help="Which server.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="A new folder for the files."
)
@click.option("--name", help="The model's name in URLs.  [default: FOLDER's]")
@click.option(
    "--label",
    "labels",
    multiple=True,
    help="NAME=VERSION, such as stable=3; may be repeated. For tfserving: what has a label is "
    "loaded.  [default: stable, the newest]",
)
@click.option("--tag", help="Of the image tensorflow/serving.  [default: 2.21.0]")
@click.option("--port", type=click.IntRange(1, 65535), help="Of REST.  [default: 8501]")
@click.option("--grpc-port", type=click.IntRange(1, 65535), help="Of gRPC.  [default: 8500]")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Examples in one call of the model; 1: no batching.  [default: 32]",
)
@click.option(
    "--storage-uri",
    help="For kserve: where the versions are, such as gs://BUCKET/NAME.  "
    "[default: pvc://NAME-models/NAME]",
)
@click.option(
    "--project",
    default=".",
    show_default=True,
    type=click.Path(file_okay=False),
    help="The project whose exports are deployed if no FOLDER is given.",
)
@plain_errors
def deploy(
    folder: Path | None,
    target: str,
    out: Path,
    name: str | None,
    labels: tuple[str, ...],
    project: str,
    **more: Any,
) -> None:
    """Write what TensorFlow Serving or KServe needs to serve the exported versions in FOLDER.

    FOLDER is the project's by default. tfserving: a compose file, models.config with version
    labels, batching, monitoring. kserve: an InferenceService. Both with a README.
    """
    from kerasmtl.serving.deploy import Deployment, for_kserve, for_tfserving
    from kerasmtl.serving.versions import read_label

    base = folder or load_project(project).export_folder
    given = {key: value for key, value in more.items() if value is not None}
    _refuse_unread(target, {**given, **({"label": labels} if labels else {})})
    chosen = name or re.sub(r"[^\w.-]+", "-", base.resolve().name, flags=re.ASCII)
    if target == "kserve" and name is None:
        chosen = re.sub(r"[^a-z0-9]+", "-", chosen.lower()).strip("-")
    deployment = Deployment(base, chosen, labels=dict(map(read_label, labels)), **given)
    write = for_tfserving if target == "tfserving" else for_kserve
    click.echo(f"Made {write(deployment, out)}. Go on with its README.md.")


def _refuse_unread(target: str, given: Mapping[str, Any]) -> None:
    read = {
        "tfserving": {"label", "tag", "port", "grpc_port", "batch_size"},
        "kserve": {"tag", "storage_uri"},
    }
    unread = [f"--{key.replace('_', '-')}" for key in given if key not in read[target]]
    if unread:
        raise ValueError(f"{', '.join(unread)} cannot be set with --for {target}.")
