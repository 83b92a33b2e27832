"""Commands around servers: client, deploy."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from kerasmtl.commands.shared import as_json, load_project, plain_errors, print_table
from kerasmtl.report import Name

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
    from kerasmtl.client import model_url, predict_kserve, predict_tfserving, protocol_of

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
    _print("picture" if examples is files else "row", names, rows)


def _examples(
    target: str, files: Sequence[str], asking: Mapping[str, Any]
) -> tuple[Sequence[str], Sequence[Any]]:
    """What each example is called, and the examples."""
    from kerasmtl.client import table_inputs
    from kerasmtl.client_rows import is_table, read_rows

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
    from rich.table import Table
    from rich.text import Text

    tasks = [name for name in rows[0] if name.removesuffix("_decision") not in {*rows[0]} - {name}]
    table = Table()
    table.add_column(first)
    for name in tasks:
        table.add_column(Name(name), justify="right", overflow="fold")
    for one, row in zip(names, rows, strict=True):
        cells = (_shown(row[name], row.get(f"{name}_decision")) for name in tasks)
        table.add_row(Name(one), *map(Text, cells))
    print_table(table)


def _shown(value: Any, decision: Any) -> str:
    """A probability and what is decided; of classes the likeliest."""
    if isinstance(value, list):
        if decision is None:
            first = ", ".join(_number(one) for one in value[:3])
            return f"{first}, … ({len(value)})" if len(value) > 3 else first
        return f"{decision} ({max(value):.3f})"
    if decision is None:
        return _number(value)
    return f"{_number(value)} {'yes' if decision else 'no'}"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else str(value)


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
    from kerasmtl.deployment import Deployment, for_kserve, for_tfserving
    from kerasmtl.serving.labels import read_label

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
