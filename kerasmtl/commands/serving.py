"""Commands around servers: client, deploy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from kerasmtl.commands.shared import as_json, plain_errors, print_table

PROTOCOLS = ("tfserving", "kserve")


@click.command()
@click.argument("url")
@click.argument("images", nargs=-1, required=True, type=click.Path())
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
    help="Pictures in a request.",
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
    images: tuple[str, ...],
    protocol: str | None,
    name: str | None,
    version: str | None,
    json_: bool,
    **asking: Any,
) -> None:
    """Predictions for IMAGES from the server at URL.

    URL is http://HOST:PORT with --name, or http://HOST:PORT/v1/models/NAME (TensorFlow Serving)
    or http://HOST:PORT/v2/models/NAME (KServe).
    """
    from kerasmtl.client import model_url, predict_kserve, predict_tfserving, protocol_of

    chosen = protocol or protocol_of(url)
    predict = predict_tfserving if chosen == "tfserving" else predict_kserve
    rows = predict(model_url(url, chosen, name, version), images, **asking)
    if json_:
        named = [{"image": image, "outputs": row} for image, row in zip(images, rows, strict=True)]
        click.echo(json.dumps(named, indent=2, ensure_ascii=False))
        return
    _print(images, rows)


def _print(images: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    tasks = [name for name in rows[0] if name.removesuffix("_decision") not in {*rows[0]} - {name}]
    table = Table()
    table.add_column("picture", overflow="fold")
    for name in tasks:
        table.add_column(Text(name), justify="right", overflow="fold")
    for image, row in zip(images, rows, strict=True):
        cells = (_shown(row[name], row.get(f"{name}_decision")) for name in tasks)
        table.add_row(Text(image), *map(Text, cells))
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
