"""`kerasmtl cache`: lists the features that are kept, and removes them.

Training with a frozen backbone computes its features once and keeps them on disk
(`kerasmtl.training.feature_cache`), an entry for each backbone and data set. Entries never expire:
this command is how their space is won back. Its answers name what an entry was computed from, since
its key is a hash.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import click

from kerasmtl.cli.common import as_json, plain_errors
from kerasmtl.training.feature_store import Entry, entries, features_root, remove
from kerasmtl.utils.tables import Name, print_whole
from kerasmtl.utils.text import listed

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
    if json_ and not clear:
        click.echo(json.dumps([_described(entry) for entry in found], indent=2, default=str))
    elif not found:
        click.echo(f"Nothing is kept in {root}.")
    elif clear:
        _clear(found, yes, root)
    else:
        _print(found, root)


def _chosen(found: list[Entry], key: str | None, root: Path) -> list[Entry]:
    """Return all entries, or the one whose key begins like this.

    Args:
        found: the entries.
        key: the first characters of one key; None for all.
        root: their folder, for messages.

    Raises:
        ValueError: no key begins like this, or several do: what is removed must be beyond doubt.
    """
    fitting = [entry for entry in found if key is None or entry.key.startswith(key)]
    if key is not None and (not key or len(fitting) != 1):
        keys = listed(entry.key[:SHOWN] for entry in found) or "none"
        raise ValueError(
            f"`key` must be the first characters of one of the keys in {root} ({keys}), got "
            f"{key!r}, which fits {len(fitting)}"
        )
    return fitting


def _clear(found: list[Entry], yes: bool, root: Path) -> None:
    """Remove entries; those that another process computes stay.

    Args:
        found: the entries.
        yes: do not ask.
        root: their folder, for messages.

    Raises:
        click.Abort: the user says no.
    """
    # Before they are removed: an entry's size is read from the disk.
    sizes = {entry.key: entry.bytes for entry in found}
    if not yes:
        some = "1 entry" if len(found) == 1 else f"{len(found)} entries"
        whole = f"{sum(sizes.values()) / 1e6:.1f} MB"
        click.confirm(f"Remove {some}, {whole}, from {root}?", abort=True)
    busy = [entry.key for entry in found if not remove(entry)]
    freed = sum(size for key, size in sizes.items() if key not in busy)
    click.echo(f"Removed {len(found) - len(busy)}, {freed / 1e6:.1f} MB.")
    for key in busy:
        click.echo(f"{key[:SHOWN]} stays: another process is computing it.")


def _described(entry: Entry) -> dict[str, object]:
    """Return an entry for JSON; what it was computed from has "of_" before its names."""
    names = ("key", "path", "rows", "views", "bytes", "made", "finished")
    about = {f"of_{name}": value for name, value in entry.about.items()}
    return {name: getattr(entry, name) for name in names} | about


def _print(found: list[Entry], root: Path) -> None:
    """Print a table of entries, and their size in all."""
    from rich.console import Console
    from rich.table import Table

    table = Table("key", "backbone", "of rows from", title=str(root), title_justify="left")
    table.add_column("rows", justify="right")
    table.add_column("MB", justify="right")
    table.add_column("made")
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
