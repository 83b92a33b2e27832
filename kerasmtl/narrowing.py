"""Numbers as float32: what is infinite there, and what it cannot tell apart."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

_SHOWN = 5  # how many faults one message lists
_EXACT = 2**24  # up to which float32 holds every whole number


def check_finite(features: np.ndarray, columns: Sequence[str], source: Path | str) -> None:
    """Raise ValueError for an infinite feature; names row and column."""
    infinite = np.argwhere(np.isinf(features))
    if len(infinite):
        shown = "; ".join(f"row {row}, column {columns[at]!r}" for row, at in infinite[:_SHOWN])
        raise ValueError(
            f"`features` in {source} are infinite, or beyond float32, in {len(infinite)} cells. "
            f"Expected numbers, or NaN = missing. Received: {shown}"
        )


def lost_numbers(numbers: np.ndarray) -> tuple[int, int] | None:
    """How many distinct numbers the first rows have, and how many in float32, if too few are left.

    Of whole numbers none may be lost; of others a tenth, since what is measured lies dense.
    """
    known = numbers[:100_000]
    known = known[~np.isnan(known)].astype("float64")
    whole = bool((known == np.round(known)).all())
    if not len(known) or whole and np.abs(known).max() <= _EXACT:
        return None
    before, after = len(pd.unique(known)), len(pd.unique(known.astype("float32")))
    return (before, after) if after < before * (1 if whole else 0.9) else None


def warn_of_collapse(x: np.ndarray, columns: Sequence[str], source: Path) -> None:
    """Warn of columns of a matrix, shape (rows, columns), whose numbers float32 loses."""
    if x.dtype.kind != "b" and x.dtype not in ("float32", "float16") and x.dtype.itemsize > 2:
        lost = {name: lost_numbers(x[:, at].astype("float64")) for at, name in enumerate(columns)}
        warn_of_lost({name: counts for name, counts in lost.items() if counts}, source, 6)


def warn_of_lost(collapsed: dict[str, tuple[int, int]], source: Path, stacklevel: int) -> None:
    """Warn of columns, by name, with how many distinct numbers they had and have left."""
    for name, (before, after) in list(collapsed.items())[:_SHOWN]:
        warnings.warn(
            f"column {name!r} of {source} has numbers that float32 cannot tell apart: {before} "
            f"distinct ones become {after}. Subtract the smallest, or leave the column out.",
            stacklevel=stacklevel,
        )
