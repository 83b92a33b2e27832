"""Lists of names in messages, and warnings at the user's line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kerasmtl.data.manifest import Manifest

SHOWN = 12


def listed(names: Iterable[object]) -> str:
    """Join names by commas; of more than `SHOWN` the first ones, and how many others there are.

    Example:
        >>> listed(range(14))
        '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more'
    """
    texts = [str(name) for name in names]
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more


def shortened(texts: Iterable[str], most: int = 5, count: int | None = None) -> str:
    """Join the first texts by semicolons, and say how many more there are.

    Args:
        texts: at least the first `most` of them.
        most: how many are shown.
        count: of all; by default that of `texts`.

    Example:
        >>> shortened(["a", "b", "c"], most=2)
        'a; b; and 1 more'
    """
    found = list(texts)
    more = (len(found) if count is None else count) - most
    return "; ".join([*found[:most], *([f"and {more} more"] if more > 0 else [])])


def check_columns(
    argument: str, names: Iterable[str], known: Iterable[object], source: Path
) -> None:
    """Raise ValueError if an argument names columns that a file does not have.

    Example:
        >>> check_columns("tasks", ["carr"], ["image", "car"], Path("labels.csv"))
        Traceback (most recent call last):
        ValueError: `tasks` must be in the columns of labels.csv, got 'carr'. ...
    """
    columns = [str(column) for column in known]
    there = set(columns)
    absent = [name for name in names if name not in there]
    if absent:
        near = get_close_matches(str(absent[0]), columns, 1, 0.7)
        raise ValueError(
            f"`{argument}` must be in the columns of {source}, got {listed(map(repr, absent))}. "
            f"They are {listed(map(repr, columns))}."
            + (f" Did you mean {near[0]!r}?" if near else "")
        )


def columns_text(manifest: Manifest) -> str:
    """Say what the columns of a file were taken for: "tasks: …; features: …; ignored: …"."""
    taken = {
        "tasks": [task.name for task in manifest.tasks],
        **manifest.input.claimed(),
        "ignored": manifest.ignored,
    }
    shown = {part: [name or "(no name)" for name in names] for part, names in taken.items()}
    return "; ".join(f"{part}: {listed(names)}" for part, names in shown.items() if names)


def warn(message: str) -> None:
    """Warn at the line of the user's code that called this package."""
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("kerasmtl"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
