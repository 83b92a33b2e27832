"""`kerasmtl cache`: lists the features that are kept, and removes them."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import click

from kerasmtl.cli.common import as_json, plain_errors
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
@as_json
@plain_errors
def cache(key: str | None, clear: bool, yes: bool, folder: str | None, json_: bool) -> None:
    """List the features of frozen backbones that are kept, or --clear them.

    KEY: the first characters of one entry's key, as the list shows it.

    \b
    Examples:
      kerasmtl cache
      kerasmtl cache --clear --yes
    """
    root = features_root(folder)
    found = _chosen(entries(root), key, root)
    if clear:
        _clear(found, yes, root)
    elif json_:
        click.echo(json.dumps([_described(entry) for entry in found], indent=2))
    elif not found:
        click.echo(f"Nothing is kept in {root}.")
    else:
        _print(found, root)


def _chosen(found: list[Entry], key: str | None, root: Path) -> list[Entry]:
    """All entries, or the one whose key begins like this."""
    if key is None:
        return found
    fitting = [entry for entry in found if entry.key.startswith(key)]
    if not key or len(fitting) != 1:
        keys = ", ".join(entry.key[:SHOWN] for entry in found[:5]) or "none"
        raise ValueError(
            f"`key` must be the first characters of one of the keys in {root} ({keys}"
            f"{', …' if len(found) > 5 else ''}), got {key!r}, which fits {len(fitting)}"
        )
    return fitting


def _clear(found: list[Entry], yes: bool, root: Path) -> None:
    if not found:
        click.echo(f"Nothing is kept in {root}.")
        return
    sizes = {entry.key: entry.bytes for entry in found}
    if not yes:
        some = "1 entry" if len(found) == 1 else f"{len(found)} entries"
        click.confirm(
            f"Remove {some}, {sum(sizes.values()) / 1e6:.1f} MB, from {root}?", abort=True
        )
    busy = [entry.key for entry in found if not remove(entry)]
    freed = sum(size for key, size in sizes.items() if key not in busy)
    click.echo(f"Removed {len(found) - len(busy)}, {freed / 1e6:.1f} MB.")
    for key in busy:
        click.echo(f"{key[:SHOWN]} stays: another process is computing it.")


def _described(entry: Entry) -> dict[str, object]:
    return {
        "key": entry.key,
        "path": str(entry.path),
        "rows": entry.rows,
        "views": entry.views,
        "bytes": entry.bytes,
        "made": entry.made,
        "finished": entry.finished,
        **{f"of_{name}": value for name, value in entry.about.items()},
    }


def _print(found: list[Entry], root: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=str(root), title_justify="left")
    for name in ("key", "backbone", "of rows from", "rows", "MB", "made"):
        table.add_column(name, justify="right" if name in ("rows", "MB") else "left")
    for entry in found:
        views = f", {entry.views} views" if entry.views > 1 else ""
        made = datetime.fromisoformat(entry.made).strftime("%Y-%m-%d %H:%M")
        table.add_row(
            entry.key[:SHOWN],
            Name(str(entry.about.get("backbone", "unknown"))),
            Name(str(entry.about.get("first", "")) + views),
            f"{entry.rows:,}",
            f"{entry.bytes / 1e6:.1f}",
            made if entry.finished else "unfinished",
        )
    print_whole(table, Console())
    click.echo(f"{len(found)} entries, {sum(entry.bytes for entry in found) / 1e6:.1f} MB")
