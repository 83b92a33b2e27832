"""Rows of the same picture: one row if they agree or complement each other, else an error."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from kerasmtl.tasks import Task

_SHOWN = 5


def merge_duplicates(
    images: np.ndarray,
    labels: np.ndarray,
    lines: np.ndarray,
    others: dict[str, np.ndarray | None],
    tasks: tuple[Task, ...],
    source: Path,
    root: Path,
) -> tuple[np.ndarray, np.ndarray]:
    """The rows to keep, the first of each picture, and the labels with those of all its rows.

    Shapes: images (rows,) str; labels (rows, tasks) float32, NaN = missing; lines (rows,) int;
    `others` by name of a column that must agree, too, (rows,) each; returns (kept,) int and
    (kept, tasks) float32. Warns of what is merged.

    Raises:
        ValueError: two rows of one picture have different known labels, or differ in one of
            `others`; names both lines.
    """
    codes, _ = pd.factorize(picture_keys(images, root))
    rows = np.arange(len(images))
    first = np.full(codes.max(initial=-1) + 1, len(images))
    np.minimum.at(first, codes, rows)
    leader = first[codes]
    again = np.flatnonzero(leader != rows)
    if not len(again):
        return rows, labels
    for name, values in others.items():
        if values is not None:
            wrong = again[values[again] != values[leader[again]]]
            if len(wrong):
                pair = [leader[wrong[0]], wrong[0]]
                said = [repr(value) for value in values[pair]]
                raise _contradiction(name, said, images[pair], lines[pair], source)
    merged = labels.copy()
    for row in again:  # few, and each may add to what the one before has left
        at = leader[row]
        both = ~np.isnan(merged[at]) & ~np.isnan(labels[row])
        clash = np.flatnonzero(both & (merged[at] != labels[row]))
        if len(clash):
            column = int(clash[0])
            pair = [_who_said(codes, labels[:, column], row), row]
            said = [_as_text(value, tasks[column]) for value in labels[pair, column]]
            raise _contradiction(tasks[column].name, said, images[pair], lines[pair], source)
        merged[at] = np.where(both, merged[at], np.fmax(merged[at], labels[row]))
    _warn(again, leader, images, lines, source)
    kept = np.flatnonzero(leader == rows)
    return kept, merged[kept]


def picture_keys(images: np.ndarray, root: Path) -> np.ndarray:
    """One key for all ways to write the path of a picture, shape (rows,); no disk is read."""
    keys = images.copy()
    for row, image in enumerate(images):
        if "./" in image or "//" in image or "\\" in image or image[0] == "/" or image[-1] in "./":
            keys[row] = os.path.relpath(os.path.join(root, image), root)
    return keys


def _who_said(codes: np.ndarray, column: np.ndarray, row: int) -> int:
    """The first row of the same picture with a known label."""
    return int(np.flatnonzero((codes == codes[row]) & ~np.isnan(column))[0])


def _as_text(value: float, task: Task) -> str:
    return repr(task.classes[int(value)]) if task.kind == "multiclass" else f"{value:g}"


def _contradiction(
    name: str, said: list[str], images: np.ndarray, lines: np.ndarray, source: Path
) -> ValueError:
    return ValueError(
        f"`labels` in {source} contradict each other: picture {images[1]!r}, column {name!r}. "
        f"Expected one answer. Received: {said[0]} in line {lines[0]} and {said[1]} in line "
        f"{lines[1]}. Remove one of the lines, or leave the label that is in doubt empty in both."
    )


def _warn(
    again: np.ndarray, leader: np.ndarray, images: np.ndarray, lines: np.ndarray, source: Path
) -> None:
    shown = "; ".join(
        f"{images[row]!r} in lines {lines[leader[row]]} and {lines[row]}" for row in again[:_SHOWN]
    )
    warnings.warn(
        f"{source} names {len(set(leader[again]))} pictures more than once; their rows agree, and "
        f"are merged: {shown}{'; …' if len(again) > _SHOWN else ''}",
        stacklevel=4,
    )
