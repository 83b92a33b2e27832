"""Rows that are the same: by name, merged or refused; by content, found for splits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from kerasmtl.data.readers import place
from kerasmtl.tasks import Task
from kerasmtl.utils.text import warn

_SHOWN = 5
_END = 4096  # bytes at the end of a file, which tell most files apart
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
    leader = _leaders(pd.factorize(keys)[0])
    rows = np.arange(len(keys))
    again = np.flatnonzero(leader != rows)
    if not len(again):
        return rows, labels

    def contradiction(name: str, pair: Sequence[int], said: Sequence[str]) -> ValueError:
        at, (first, second) = place(source), lines[pair]
        return ValueError(
            f"`labels` in {source}, column {name!r}, must agree in rows of the same name, got for "
            f"{names[pair[1]]!r} {said[0]} in {at} {first} and {said[1]} in {at} {second}. Remove "
            f"one of the {at}s, or leave the label that is in doubt empty in both."
        )

    for name, values in others.items():
        wrong = (
            again[:0] if values is None else again[_differ(values[again], values[leader[again]])]
        )
        if len(wrong):
            pair = [leader[wrong[0]], wrong[0]]
            said = [f"{v:g}" if isinstance(v, float) else repr(v) for v in values[pair].tolist()]
            raise contradiction(name, pair, said)
    certain = labels if doubtful is None else np.where(doubtful, np.float32("nan"), labels)
    members, starts = _blocks(leader, again)
    for column, pair in _clashes(certain, members, starts, most=1):
        said = [_as_text(value, tasks[column]) for value in labels[pair, column]]
        raise contradiction(tasks[column].name, pair, said)
    sure, guess = (np.fmax.reduceat(of[members], starts, axis=0) for of in (certain, labels))
    merged = labels.copy()
    merged[members[starts]] = np.where(np.isnan(sure), guess, sure)
    kept = np.flatnonzero(leader == rows)
    shown = "; ".join(
        f"{names[row]!r} in {place(source)}s {lines[leader[row]]} and {lines[row]}"
        for row in again[:_SHOWN]
    )
    warn(
        f"{source} names {len(set(leader[again]))} rows more than once; they agree, and are "
        f"merged: {shown}{'; …' if len(again) > _SHOWN else ''}"
    )
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
    leader = _leaders(pd.factorize(keys)[0])
    again = np.flatnonzero(leader != np.arange(len(keys)))
    clashes = _clashes(labels, *_blocks(leader, again), most=_SHOWN + 1) if len(again) else []
    if not clashes:
        return
    at = place(source)
    shown = [
        f"{tasks[column].name!r} is {_as_text(labels[first, column], tasks[column])} in {at} "
        f"{lines[first]} and {_as_text(labels[other, column], tasks[column])} in {at} "
        f"{lines[other]}"
        for column, (first, other) in clashes[:_SHOWN]
    ]
    warn(
        f"{source} has rows with the same features and different labels: {'; '.join(shown)}"
        f"{'; …' if len(clashes) > _SHOWN else ''}. Name rows with id_column=… if the same thing "
        "is there twice; if not, no model can tell them apart."
    )


def _leaders(codes: np.ndarray) -> np.ndarray:
    """The first row of the same code, for every row, (rows,)."""
    first = np.full(codes.max(initial=-1) + 1, len(codes))
    np.minimum.at(first, codes, np.arange(len(codes)))
    return first[codes]


def _blocks(leader: np.ndarray, again: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that are not alone, side by side with those alike, and where each block starts."""
    members = np.flatnonzero(np.isin(leader, leader[again]))
    members = members[np.argsort(leader[members], kind="stable")]
    return members, np.flatnonzero(np.diff(leader[members], prepend=-1))


def _clashes(
    labels: np.ndarray, members: np.ndarray, starts: np.ndarray, most: int
) -> list[tuple[int, np.ndarray]]:
    """Columns in which the rows of a block differ, each with two such rows; the first few."""
    high, low = (of.reduceat(labels[members], starts, axis=0) for of in (np.fmax, np.fmin))
    found = []
    for block, column in np.argwhere(high > low)[:most]:
        rows = np.split(members, starts[1:])[block]
        known = rows[~np.isnan(labels[rows, column])]
        other = known[labels[known, column] != labels[known[0], column]][0]
        found.append((int(column), np.array([known[0], other])))
    return found


def _differ(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Where two columns differ; missing numbers are alike."""
    differ = ours != theirs
    return differ & ~(np.isnan(ours) & np.isnan(theirs)) if ours.dtype.kind == "f" else differ


def _as_text(value: float, task: Task) -> str:
    return repr(task.classes[int(value)]) if task.kind == "multiclass" else f"{value:g}"


def path_keys(paths: np.ndarray, root: Path) -> np.ndarray:
    """One key for all ways to write a path below `root`, (rows,) str; no disk is read."""
    keys = paths.copy()
    for row, path in enumerate(paths):
        if "./" in path or "//" in path or "\\" in path or path[0] == "/" or path[-1] in "./":
            keys[row] = os.path.relpath(os.path.join(root, path), root)
    return keys


def row_keys(features: np.ndarray, columns: Sequence[str]) -> np.ndarray:
    """A key of the numbers in each row, (rows,) uint64, the same in every file.

    Shapes: features (rows, columns) float32, NaN = missing. Neither the order of rows nor that of
    columns matters; 0.0 and -0.0 are alike.
    """
    keys = np.zeros(len(features), dtype="uint64")
    for at, name in enumerate(columns):
        salt = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=8).digest(), "<u8")
        values = np.where(np.isnan(features[:, at]), np.float32("nan"), features[:, at] + 0.0)
        bits = values.astype("float32").view("uint32").astype("uint64") + salt
        # The finalizer of splitmix64 (Steele, Lea and Flood 2014): every bit changes half of all.
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
        keys += bits ^ (bits >> np.uint64(31))
    return keys


def identical_files(paths: Sequence[str]) -> np.ndarray:
    """Number files by content, (rows,) int: the same number for the same bytes.

    Only files of equal size are opened, and of these only those read whole whose last 4 KiB are
    equal as well. A file that is empty, absent or cannot be read is like no other.
    """
    found = pd.DataFrame(_each(_identity, paths), columns=["size", "device", "inode"])
    nothing = found["size"] <= 0
    found.loc[nothing, "inode"] = np.flatnonzero(nothing)
    codes = found.groupby(["size", "device", "inode"], sort=False).ngroup().to_numpy()
    first = np.unique(codes, return_index=True)[1]  # one path of each file, by its code
    size = found["size"].to_numpy()[first]
    content = np.arange(len(first))
    rest = np.flatnonzero((size > 0) & _shared(size))
    rest = rest[_shared(_digests(_end, [paths[row] for row in first[rest]]))]
    content[rest] = rest[_leaders(_digests(_whole, [paths[row] for row in first[rest]]))]
    return content[codes]


def _identity(path: str) -> tuple[int, int, int]:
    """Size, device and inode of a file; -1 if it is not a file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return -1, -1, -1
    return (found.st_size, found.st_dev, found.st_ino) if S_ISREG(found.st_mode) else (-1, -1, -1)


def _digests(read: Callable[[BinaryIO], bytes], paths: Sequence[str]) -> np.ndarray:
    """Number what `read` says of each file, (files,) int; what cannot be read is like no other."""

    def look(path: str) -> bytes | None:
        try:
            with open(path, "rb", buffering=0) as file:
                return read(file)
        except OSError:
            return None

    found = [at if said is None else said for at, said in enumerate(_each(look, paths))]
    return pd.factorize(pd.Series(found, dtype=object))[0]


def _end(file: BinaryIO) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _END, 0))
    return hashlib.sha256(b"%d:" % size + file.read(_END)).digest()


def _whole(file: BinaryIO) -> bytes:
    return hashlib.file_digest(file, "sha256").digest()


def _each(look: Callable[[str], Any], paths: Sequence[str]) -> list[Any]:
    """What `look` says of each path, by several threads, which wait for the disk together."""
    blocks = [paths[at : at + _BLOCK] for at in range(0, len(paths), _BLOCK)]
    with ThreadPoolExecutor() as pool:
        done = pool.map(lambda block: [look(path) for path in block], blocks)
        return [found for block in done for found in block]


def _shared(codes: np.ndarray) -> np.ndarray:
    """Which values occur more than once, (rows,) bool."""
    _, code, count = np.unique(codes, return_inverse=True, return_counts=True)
    return count[code] > 1
