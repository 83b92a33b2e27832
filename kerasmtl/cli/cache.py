"""`kerasmtl cache`: what is kept of features, and its removal."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import click

from kerasmtl.training.feature_store import Entry, entries, features_root, remove
from kerasmtl.utils.tables import Name, print_whole

SHOWN = 12  # characters of a key


@click.command()
@click.argument("key", required=False)
@click.option("--clear", is_flag=True, help="Remove KEY, or everything, after asking.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False),
    help="Where features are kept.  [default: features in the cache of modules]",
)
@click.option("--json", "json_", is_flag=True, help="Print JSON instead of a table.")
def cache(key: str | None, clear: bool, yes: bool, folder: str | None, json_: bool) -> None:
    """List the features that are kept of frozen backbones, or --clear them.

    KEY: the first characters of one entry's key, as the list shows it.
    """
    try:
        root = features_root(folder)
        found = _chosen(entries(root), key, root)
        if clear:
            _clear(found, yes, root)
        elif json_:
            click.echo(json.dumps([_described(entry) for entry in found], indent=2))
        else:
            _print(found, root)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _chosen(found: list[Entry], key: str | None, root: Path) -> list[Entry]:
    if key is None:
        return found
    fitting = [entry for entry in found if entry.key.startswith(key)]
    if not key or len({entry.key for entry in fitting}) != 1:
        keys = ", ".join(entry.key[:SHOWN] for entry in found[:5]) or "none"
        raise ValueError(
            f"`key` is that of {len(fitting)} entries in {root}. Expected the first characters of "
            f"one key: {keys}{', …' if len(found) > 5 else ''}. Received: {key!r}"
        )
    return fitting


def _clear(found: list[Entry], yes: bool, root: Path) -> None:
    if not found:
        click.echo(f"Nothing is kept in {root}.")
        return
    size = sum(entry.bytes for entry in found)
    if not yes:
        some = "1 entry" if len(found) == 1 else f"{len(found)} entries"
        click.confirm(f"Remove {some}, {size / 1e6:.1f} MB, from {root}?", abort=True)
    in_use = [entry for entry in found if not remove(entry)]
    freed = size - sum(entry.bytes for entry in in_use)
    click.echo(f"Removed {len(found) - len(in_use)}, {freed / 1e6:.1f} MB.")
    for entry in in_use:
        click.echo(f"{entry.key[:SHOWN]} stays: another process is computing it.")


def _described(entry: Entry) -> dict[str, object]:
    return {
        "key": entry.key,
        "path": str(entry.path),
        "rows": entry.rows,
        "bytes": entry.bytes,
        "made": entry.made or None,
        **{f"of_{name}": value for name, value in entry.about.items()},
    }


def _print(found: list[Entry], root: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    if not found:
        click.echo(f"Nothing is kept in {root}.")
        return
    table = Table(title=str(root), title_justify="left")
    for name in ("key", "backbone", "of rows from", "rows", "MB", "made"):
        table.add_column(name, justify="right" if name in ("rows", "MB") else "left")
    for entry in found:
        made = datetime.fromisoformat(entry.made).strftime("%Y-%m-%d %H:%M") if entry.made else ""
        views = entry.about.get("views", 1)
        table.add_row(
            entry.key[:SHOWN],
            # Older entries name the model.
            Name(str(entry.about.get("backbone", entry.about.get("model", "unknown")))),
            Name(str(entry.about.get("first", "")) + (f", {views} views" if views > 1 else "")),
            f"{entry.rows:,}",
            f"{entry.bytes / 1e6:.1f}",
            made or "unfinished",
        )
    print_whole(table, Console())
    click.echo(f"{len(found)} entries, {sum(entry.bytes for entry in found) / 1e6:.1f} MB")
