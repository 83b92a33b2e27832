"""The commands around servers: `serve`, `client` and `deploy`.

The options of `serve` are the fields of `ServerConfig`, so that each limit is defined once. `serve`
needs the packages of kerasmtl[serve], which are imported when it is called; `client` needs neither
those nor TensorFlow, and `deploy` only writes text files.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasmtl.cli.common import (
    as_json,
    flags,
    load_project,
    plain_errors,
    print_predictions,
    project_option,
)
from kerasmtl.serving.config import ServerConfig

if TYPE_CHECKING:
    from kerasmtl.serving.versions import Versions

INSTALL = "pip install 'kerasmtl[serve]'"
PROTOCOLS = ("tfserving", "kserve")
# The options of `kerasmtl deploy` for each server.
USED = {
    "tfserving": {"label", "tag", "port", "grpc_port", "batch_size"},
    "kserve": {"tag", "storage_uri"},
}


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each field of ServerConfig.

    Args:
        command: a function that takes them as keyword arguments.

    Returns:
        The same function; in the help, options stand in the order of the fields.
    """
    for field in reversed(fields(ServerConfig)):
        kind, least = type(field.default), field.metadata["min"]
        ranged = click.IntRange if kind is int else click.FloatRange
        command = click.option(
            f"--{field.name.replace('_', '-')}",
            default=field.default,
            is_flag=kind is bool,
            type=kind if least is None else ranged(min=least),
            show_default=kind is not bool,
            help=field.metadata["help"],
        )(command)
    return command


@click.command()
@click.argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path))
@project_option
@click.option("--name", help="The model's name in the paths.  [default: FOLDER's]")
@server_options
@plain_errors
def serve(folder: Path | None, project: str, name: str | None, **settings: Any) -> None:
    """Serve the exported models in FOLDER/VERSION/ over HTTP, with a page to try them.

    FOLDER is the project's folder of exports by default. Speaks TensorFlow Serving's REST
    (/v1/models/NAME:predict) and the Open Inference Protocol (/v2/models/NAME/infer); /metrics is
    for Prometheus. New versions are loaded once they are complete; on SIGTERM, running requests are
    answered first. One process serves one model, without authentication.

    \b
    Examples:
      kerasmtl serve
      kerasmtl serve saved_models/street --port 8080 --access-log
    """
    # Before the server is imported: `basicConfig` does nothing once a library has set up logging.
    logging.basicConfig(format="%(asctime)s %(levelname)s: %(message)s", level=logging.WARNING)
    config = ServerConfig(**settings)
    logging.getLogger("kerasmtl.serving.access").setLevel(config.access_log and logging.INFO)
    base = folder or load_project(project).export_folder
    chosen = name or _plain_name(base)
    # The name is a part of paths, in which "/" and ":" mean something else.
    if not re.fullmatch(r"\w[\w.-]*", chosen, flags=re.ASCII):
        raise ValueError(f"`name` must have letters, digits, . _ - alone, got {chosen!r}")
    try:
        # TensorFlow and the web server are only loaded once all options are right.
        from kerasmtl.serving.server import run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise click.ClickException(f"{package} is not installed. Run: {INSTALL}") from error

    def ready(url: str, versions: Versions) -> None:
        shown = ", ".join(map(str, versions.numbers))
        click.echo(f"Serving {chosen}, version {shown}, from {base}. Open {url}")

    run(base, chosen, config, ready)


@click.command()
@click.argument("url")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    help="TensorFlow Serving's REST, or KServe's V2.  [default: as in URL, or tfserving]",
)
@click.option("--name", help="The model's name, if URL is the server's alone.")
@click.option("--version", help="A version's number, or for tfserving its label.")
@click.option("--signature", help="The signature to call.  [default: serving_default]")
@click.option(
    "--batch-size",
    default=32,
    show_default=True,
    type=click.IntRange(min=1),
    help="Images or rows per request.",
)
@click.option(
    "--timeout",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds to wait for an answer.",
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
    """Predict for FILES with the server at URL.

    FILES are images, or tables (.csv, .parquet, .npz) with the columns of training. URL is
    http://HOST:PORT with --name, or http://HOST:PORT/v1/models/NAME (TensorFlow Serving) or
    http://HOST:PORT/v2/models/NAME (KServe).

    \b
    Examples:
      kerasmtl client http://127.0.0.1:8501 --name street photo.jpg
      kerasmtl client http://127.0.0.1:8501/v2/models/heart patients.csv --json
    """
    from kerasmtl.serving.client import model_url, predict, protocol_of

    # A URL with a name says its protocol; where both are given they must agree.
    target = model_url(url, protocol or protocol_of(url), name, version)
    names, examples = _examples(target, files, asking)
    rows = predict(target, examples, **asking) if examples else []
    first = "image" if examples is files else "row"
    if json_:
        named = [{first: one, "outputs": row} for one, row in zip(names, rows, strict=True)]
        click.echo(json.dumps(named, indent=2, ensure_ascii=False))
    elif rows:
        _print(first, names, rows)


def _examples(
    target: str, files: Sequence[str], asking: Mapping[str, Any]
) -> tuple[Sequence[str], Sequence[Any]]:
    """Return what to ask the server about.

    Args:
        target: the URL of the model.
        files: of the user, all images or all tables.
        asking: the options `signature` and `timeout`, among others.

    Returns:
        The name of each example (the path of an image, FILE:LINE of a row), and the examples as
        `kerasmtl.serving.client.predict` takes them.

    Raises:
        ValueError: images and tables are mixed, or tables do not have what the model takes.
    """
    from kerasmtl.serving.client import is_table, read_rows, table_inputs

    tables = [file for file in files if is_table(file)]
    if not tables:
        return files, files
    if len(tables) < len(files):
        other = next(file for file in files if file not in tables)
        raise ValueError(f"`files` must be all tables or all images, got {tables[0]} and {other}")
    # Only the server knows which columns a row has.
    inputs = table_inputs(target, asking["signature"], asking["timeout"])
    names, rows = [], []
    for file in tables:
        more, found = read_rows(file, inputs)
        names += more
        rows += found
    return names, rows


def _print(first: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print answers; classes are called by their numbers, since servers do not send names.

    Args:
        first: the heading of the names.
        names: one per answer.
        rows: by output, a number, a text, or a list of probabilities; "<task>_decision" is shown
            beside its task.
    """

    def shown(value: Any) -> Any:
        return {str(n): one for n, one in enumerate(value)} if isinstance(value, list) else value

    tasks = [name for name in rows[0] if name.removesuffix("_decision") not in {*rows[0]} - {name}]
    values = [{name: shown(row[name]) for name in tasks} for row in rows]
    decisions = [{name: row.get(f"{name}_decision") for name in tasks} for row in rows]
    print_predictions(first, names, values, decisions)


@click.command()
@click.argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option("--for", "target", required=True, type=click.Choice(list(USED)), help="Which server.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="A new folder for the files."
)
@click.option("--name", help="The model's name in URLs.  [default: FOLDER's]")
@click.option(
    "--label",
    "labels",
    multiple=True,
    help="For tfserving: NAME=VERSION, such as stable=3; may be repeated. Labelled versions are "
    "loaded.  [default: stable, the newest]",
)
@click.option("--tag", help="Tag of the image tensorflow/serving.  [default: 2.21.0]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of REST.  [default: 8501]")
@click.option("--grpc-port", type=click.IntRange(1, 65535), help="Port of gRPC.  [default: 8500]")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Most examples in one call of the model; 1 turns batching off.  [default: 32]",
)
@click.option(
    "--storage-uri",
    help="For kserve: where the versions are, such as gs://BUCKET/NAME.  "
    "[default: pvc://NAME-models/NAME]",
)
@project_option
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
    """Write the files with which TensorFlow Serving or KServe serve the versions in FOLDER.

    FOLDER is the project's folder of exports by default. tfserving: a compose file, models.config
    with version labels, batching, monitoring. kserve: an InferenceService. Both with a README.

    \b
    Examples:
      kerasmtl deploy --for tfserving --out deploy
      kerasmtl deploy saved_models/street --for kserve --out kserve --storage-uri gs://models/street
    """
    from kerasmtl.serving.deploy import Deployment, write_deployment

    base = folder or load_project(project).export_folder
    given = {key: value for key, value in more.items() if value is not None}
    if unused := {*given, *(["label"] if labels else [])} - USED[target]:
        raise ValueError(f"{flags(sorted(unused))} cannot be used with --for {target}.")
    chosen = name or _plain_name(base)
    if target == "kserve" and name is None:
        # Kubernetes' rules for names are stricter than those for folders. A name that the user
        # gives is not changed, but refused where it breaks them.
        chosen = re.sub(r"[^a-z0-9]+", "-", chosen.lower()).strip("-")
    deployment = Deployment(base, chosen, labels=dict(map(read_label, labels)), **given)
    made = write_deployment(deployment, target, out)
    click.echo(f"Made {made}. Continue with its README.md.")


def read_label(text: str) -> tuple[str, int]:
    """Parse NAME=VERSION.

    Args:
        text: one value of --label.

    Returns:
        The label, and the number of the version.

    Raises:
        ValueError: anything else.
    """
    found = re.fullmatch(r"([A-Za-z0-9][\w.-]*)=([0-9]+)", text, flags=re.ASCII)
    if not found:
        raise ValueError(f"`labels` must be NAME=VERSION, such as stable=3, got {text!r}")
    return found[1], int(found[2])


def _plain_name(base: Path) -> str:
    """Return the name of a folder without the characters that a path of a URL cannot have."""
    return re.sub(r"[^\w.-]+", "-", base.resolve().name, flags=re.ASCII)
