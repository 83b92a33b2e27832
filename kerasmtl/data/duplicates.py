"""Rows that are the same: merged or refused by name, found for splits by content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
import pandas as pd

from kerasmtl.data.readers import place
from kerasmtl.tasks import Task
from kerasmtl.utils.text import shortened, warn

_SHOWN = 5
_END = 4096  # bytes at the end of a file, which tell most files of one size apart
_BLOCK = 256  # files that a thread looks at in one go


def merge_duplicates(
    keys: np.ndarray,
    names: np.ndarray,
    labels: np.ndarray,
    lines: np.ndarray,
    others: dict[str, np.ndarray | None],
    tasks: tuple[Task, ...],
    source: Path,
    doubtful: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Merge rows of the same key, which complement each other; warns of what is merged.

    Args:
        keys: (rows,), the same for rows to merge.
        names: (rows,) str, what a message calls a row.
        labels: (rows, tasks) float32, NaN = missing.
        lines: (rows,) int, for messages.
        others: by name, columns that must agree, too, (rows,) each.
        tasks: of the columns of `labels`.
        source: the file, for messages.
        doubtful: (rows, tasks) bool, labels of uncertain cells, which give way to certain ones.

    Returns:
        (kept,) int, the first row of each key; and (kept, tasks) float32, their merged labels.

    Raises:
        ValueError: two rows of one key have different known labels, or differ in one of `others`;
            names both lines.
    """
    codes, again = _repeated(keys)
    if not len(again):
        return np.arange(len(keys)), labels
    at = place(source)

    def refuse(name: str, pair: Sequence[int], said: Sequence[str]) -> None:
        first, second = pair
        raise ValueError(
            f"`labels` in {source}, column {name!r}, must agree in rows of the same name, got for "
            f"{names[second]!r} {said[0]} in {at} {lines[first]} and {said[1]} in {at} "
            f"{lines[second]}. Remove one of the {at}s, or leave the label that is in doubt empty "
            "in both."
        )

    leader = _first(codes)
    for name, column in others.items():
        values = pd.Series(column if column is not None else np.zeros(len(keys)))
        ours, theirs = values.iloc[again].to_numpy(), values.iloc[leader[again]].to_numpy()
        differ = (ours != theirs) & ~(pd.isna(ours) & pd.isna(theirs))
        if differ.any():
            row = again[np.argmax(differ)]
            said = [
                f"{v:g}" if isinstance(v, float) else repr(v) for v in values[[leader[row], row]]
            ]
            refuse(name, (leader[row], row), said)
    certain = labels if doubtful is None else np.where(doubtful, np.float32("nan"), labels)
    for column, *pair in _clashes(certain, codes)[0]:
        refuse(
            tasks[column].name, pair, [_shown(labels[row, column], tasks[column]) for row in pair]
        )
    rows = np.flatnonzero(np.isin(codes, codes[again]))
    sure, guess = (_first_known(of[rows], codes[rows]) for of in (certain, labels))
    merged = labels.copy()
    merged[rows] = np.where(np.isnan(sure), guess, sure)
    shown = [f"{names[r]!r} in {at}s {lines[leader[r]]} and {lines[r]}" for r in again[:_SHOWN]]
    warn(
        f"{source} names {len(set(codes[again]))} rows more than once; they agree, and are "
        f"merged: {shortened(shown, _SHOWN, len(again))}"
    )
    kept = np.flatnonzero(leader == np.arange(len(keys)))
    return kept, merged[kept]


def warn_of_equal_rows(
    keys: np.ndarray,
    labels: np.ndarray,
    lines: np.ndarray,
    tasks: tuple[Task, ...],
    source: Path,
) -> None:
    """Warn of rows of the same content and different known labels, which no name tells apart.

    Shapes: keys (rows,), the same for the same content; labels (rows, tasks); lines (rows,).
    """
    (clashes, count), at = _clashes(labels, _repeated(keys)[0]), place(source)
    if clashes:
        shown = [
            f"{tasks[column].name!r} is {_shown(labels[first, column], tasks[column])} in {at} "
            f"{lines[first]} and {_shown(labels[other, column], tasks[column])} in {at} "
            f"{lines[other]}"
            for column, first, other in clashes
        ]
        warn(
            f"{source} has rows with the same features and different labels: "
            f"{shortened(shown, _SHOWN, count)}. Name rows with id_column=… if the same "
            "thing is there twice; if not, no model can tell them apart."
        )


def _repeated(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a number for each key, and the rows whose key an earlier row has."""
    codes = pd.factorize(keys)[0]
    return codes, np.flatnonzero(pd.Series(codes).duplicated())


def _first(codes: np.ndarray) -> np.ndarray:
    """Return for every row the first row of the same code, (rows,)."""
    _, first, code = np.unique(codes, return_index=True, return_inverse=True)
    return first[code]


def _first_known(labels: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return the first known label among the rows of the same code, (rows, tasks)."""
    return pd.DataFrame(labels).groupby(codes).transform("first").to_numpy(labels.dtype)


def _clashes(labels: np.ndarray, codes: np.ndarray) -> tuple[list[tuple[int, int, int]], int]:
    """Find labels that differ from the first known one of the same code.

    Returns:
        Column, row of the first label and row of the other one, of a few of them; and their number.
    """
    rows = np.flatnonzero(pd.Series(codes).duplicated(keep=False))
    labels, codes = labels[rows], codes[rows]
    first = _first_known(labels, codes) if len(rows) else labels
    cells = np.argwhere(~np.isnan(labels) & (labels != first))
    found = []
    for at, column in cells[:_SHOWN]:
        same = (codes == codes[at]) & (labels[:, column] == first[at, column])
        found.append((int(column), int(rows[np.argmax(same)]), int(rows[at])))
    return found, len(cells)


def _shown(value: float, task: Task) -> str:
    return repr(task.classes[int(value)]) if task.kind == "multiclass" else f"{value:g}"


def path_keys(paths: np.ndarray, root: Path) -> np.ndarray:
    """Return one key for all ways to write a path below `root`, (rows,) str; reads no disk."""
    keys = paths.copy()
    for row, path in enumerate(paths):
        if "./" in path or "//" in path or "\\" in path or path[0] == "/" or path[-1] in "./":
            keys[row] = os.path.relpath(os.path.join(root, path), root)
    return keys


def row_keys(features: np.ndarray, columns: Sequence[str]) -> np.ndarray:
    """Return a key of the numbers in each row, (rows,) uint64, the same in every file.

    Shapes: features (rows, columns) float32, NaN = missing. Neither the order of rows nor that of
    columns matters; 0.0 and -0.0 are alike.
    """
    keys = np.zeros(len(features), dtype="uint64")
    for at, name in enumerate(columns):
        salt = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=8).digest(), "<u8")
        values = np.where(np.isnan(features[:, at]), np.float32("nan"), features[:, at] + 0.0)
        bits = values.astype("float32").view("uint32").astype("uint64")
        keys += pd.util.hash_array(bits + salt)
    return keys


def identical_files(paths: Sequence[str]) -> np.ndarray:
    """Number files by content, (rows,) int: the same number for the same bytes.

    Only files of equal size are opened, and of these only those read whole whose last 4 KiB are
    equal as well. A file that is empty, absent or cannot be read is like no other.
    """
    content = pd.factorize(pd.Series(by_threads(_file, paths), dtype=object))[0]
    first = np.unique(content, return_index=True)[1]  # one path of each file, by its number
    for look in (_size, _end, _whole):
        found = pd.Series(
            by_threads(look, [paths[row] for row in first]), index=first, dtype=object
        )
        shared = found[found.notna() & found.duplicated(keep=False)]
        first = shared.index.to_numpy()
    leader = np.arange(len(paths))
    leader[first] = first[_first(pd.factorize(shared)[0])] if len(first) else first
    return leader[_first(content)]


def _file(path: str) -> Any:
    """Return the device and number of a file: links are the file that they name."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return object()
    return (found.st_dev, found.st_ino) if S_ISREG(found.st_mode) else object()


def _size(path: str) -> int | None:
    return os.path.getsize(path) or None if os.path.isfile(path) else None


def _end(path: str) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _END, 0))
            return b"%d:" % size + hashlib.sha256(file.read(_END)).digest()
    except OSError:
        return None


def _whole(path: str) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None


def by_threads(look: Callable[[str], Any], paths: Sequence[str]) -> list[Any]:
    """Return what `look` says of each path; several threads wait for the disk together."""
    # Blocks, since every call that waits in the pool takes memory.
    blocks = [paths[at : at + _BLOCK] for at in range(0, len(paths), _BLOCK)]
    with ThreadPoolExecutor() as pool:
        done = pool.map(lambda block: [look(path) for path in block], blocks)
        return [found for block in done for found in block]
