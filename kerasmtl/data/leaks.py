"""Leaks between the parts of a split: the same file, nearly the same image, or one group.

`Manifest.leaks` calls `find_leaks` with the keys that the kind of input gives (`Input.identities`,
`Input.near_duplicates`), and shows what it finds with `leak_table`; `kerasmtl check` prints it.

Images are compared by their difference hash: made grey and shrunk, is a pixel darker than its right
neighbour? 64 such bits find candidates, 256 finer ones decide; they mostly survive another size,
another compression and another brightness, but not a crop, a rotation or a mirror image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from kerasmtl.data.duplicates import by_threads
from kerasmtl.data.splits import cut_pairs

COARSE, FINE = 8, 16  # bits a side
FINE_BITS = 30  # how many of the 256 may differ
_FLAT = 3.0  # grey levels: below that spread an image is plain, and its bits are noise
_BANDS = 4  # parts of the 64 bits; candidates agree in one, as they must if 3 bits differ or less
_WINDOW = 500  # candidates looked at for each image and band, so that time stays linear


class Leak(NamedTuple):
    """Two rows of different parts with the same content, or group.

    `kind`: "same file", "same bytes", "near-duplicate", "same row" or "same group"; `first` and
    `second` are the rows' numbers.
    """

    kind: str
    first: int
    second: int


def find_leaks(
    parts: np.ndarray,
    identities: Mapping[str, np.ndarray],
    pairs: Iterable[tuple[int, int]] = (),
    groups: np.ndarray | None = None,
) -> list[Leak]:
    """Find what is on both sides of a split, worst first; names one partner per row.

    Args:
        parts: (rows,), the part that a row is in.
        identities: by kind of leak, keys (rows,) that should not occur in two parts.
        pairs: rows that are nearly the same.
        groups: (rows,) of what should not be in two parts, or None.

    Example:
        >>> find_leaks(np.array(["train", "test"]), {"same file": np.array(["a.jpg", "a.jpg"])})
        [Leak(kind='same file', first=0, second=1)]
    """
    found: dict[int, Leak] = {}

    def add(kind: str, some: Iterable[Sequence[int]]) -> None:
        for first, second in some:
            # The first kind that a row is found by is the one that is reported: identical content
            # before near-duplicates, and those before groups.
            found.setdefault(int(second), Leak(kind, int(first), int(second)))

    for kind, keys in identities.items():
        add(kind, zip(*cut_pairs(keys, parts), strict=True))
    add("near-duplicate", map(sorted, pairs))
    if groups is not None:
        add("same group", zip(*cut_pairs(groups, parts), strict=True))
    return list(found.values())


def near_duplicates(
    paths: Sequence[str], parts: np.ndarray, progress: Callable[[], None] | None = None
) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows in different parts whose images look alike; reads each file once.

    Images that cannot be read are left out, and plain ones, whose hashes are noise.

    Args:
        paths: (rows,) of the files.
        parts: (rows,), the part that a row is in.
        progress: called per image, from several threads.

    Yields:
        Row numbers, in any order; of several rows that are alike in one part, one stands for all.
    """
    coarse, fine = _hashes(paths, progress)
    return _near(coarse, fine, parts)


def leak_table(
    leaks: Sequence[Leak], parts: np.ndarray, lines: np.ndarray, names: np.ndarray
) -> pd.DataFrame:
    """Return one row per leak: its kind, and part, line and name of both sides.

    Args:
        leaks: as `find_leaks` returns them.
        parts: (rows,), the part that a row is in.
        lines: (rows,) int, of the labels file.
        names: (rows,), what rows are called.

    Returns:
        Columns kind, part, line, name, other_part, other_line, other_name.
    """
    sides = {
        f"{side}{name}": [values[getattr(leak, row)] for leak in leaks]
        for side, row in (("", "first"), ("other_", "second"))
        for name, values in (("part", parts), ("line", lines.tolist()), ("name", names))
    }
    return pd.DataFrame({"kind": [leak.kind for leak in leaks], **sides})


def _hashes(
    paths: Sequence[str], progress: Callable[[], None] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return difference hashes, (rows, 8) and (rows, 32) uint8; zeros: plain or unreadable."""
    coarse = np.zeros((len(paths), COARSE**2 // 8), dtype="uint8")
    fine = np.zeros((len(paths), FINE**2 // 8), dtype="uint8")

    def look(row: int) -> None:
        grey = _grey(paths[row])
        if grey is not None and np.std(grey) >= _FLAT:
            coarse[row], fine[row] = _bits(grey, COARSE), _bits(grey, FINE)
        if progress is not None:
            progress()

    by_threads(look, range(len(paths)))
    return coarse, fine


def _grey(path: str) -> Image.Image | None:
    """Return an image as 72 x 72 grey levels; None if it cannot be read."""
    try:
        with Image.open(path) as image:
            image.draft("L", (144, 144))  # a JPEG is decoded at an eighth, where that is enough
            return image.convert("L").resize((72, 72), Image.Resampling.BOX).convert("F")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return None  # `Manifest.faults` says why


def _bits(grey: Image.Image, side: int) -> np.ndarray:
    """Return the difference hash of `side` bits a side, (side * side / 8,) uint8."""
    small = np.asarray(grey.resize((side + 1, side), Image.Resampling.BOX))
    return np.packbits(small[:, 1:] > small[:, :-1])


def _near(
    coarse: np.ndarray, fine: np.ndarray, parts: np.ndarray
) -> Iterator[tuple[np.intp, np.intp]]:
    """Yield pairs of rows in different parts whose hashes are near, one row for all like it."""
    seen = np.flatnonzero(coarse.any(axis=1))
    codes = pd.factorize(parts)[0]
    keys = np.column_stack([coarse[seen], fine[seen], codes[seen].astype("uint8")])
    _, first = np.unique(keys, axis=0, return_index=True)
    rows = seen[first]  # in the order of their hashes: the nearest are near
    width = coarse.shape[1] // _BANDS
    for band in range(_BANDS):
        values = coarse[rows, band * width : (band + 1) * width].copy().view(f"u{width}")[:, 0]
        for value, bucket in pd.Series(rows).groupby(values):
            if value in (0, 2 ** (8 * width) - 1):  # plain images
                continue
            near = bucket.to_numpy()
            for at, row in enumerate(near):
                others = near[at + 1 : at + 1 + _WINDOW]
                others = others[codes[others] != codes[row]]
                bits = np.bitwise_count(fine[others] ^ fine[row]).sum(axis=1)
                yield from ((row, other) for other in others[bits <= FINE_BITS])
