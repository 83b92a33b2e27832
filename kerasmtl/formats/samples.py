"""Rows that stand for those a model will see: they set the ranges of int8, and prove a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kerasmtl.formats.face import Face
from kerasmtl.manifest import Manifest
from kerasmtl.table import Table

COUNT = 300  # samples by default; TensorFlow's guide names some hundreds as enough
NOISE = 4  # rows of noise, where no samples are given


def draw_samples(source: Any, face: Face, count: int = COUNT, seed: int = 0) -> np.ndarray:
    """Inputs drawn from a source, (up to `count`, *face.shape) float32.

    Args:
        source: an array; a data set of `make_dataset`, of which the first rows are taken; a
            `Manifest` or `Table`, or the path of a labels file, of which rows are drawn. Rows that
            the file calls test are never drawn.
        face: of the model.
        count: the most rows.
        seed: of drawing.

    Raises:
        FileNotFoundError: the labels file or a picture is absent.
        ValueError: rows of another shape than the model takes, none at all, or pictures that are
            not in [0, 1].
    """
    if count < 1:
        raise ValueError(f"`sample_count` is too small. Expected at least 1. Received: {count}")
    if isinstance(source, str | os.PathLike):
        source = _read(Path(source), face)
    if isinstance(source, Manifest):
        rows = _of_manifest(source, face, count, seed)
    elif isinstance(source, tf.data.Dataset):
        rows = _of_dataset(source, count)
    else:
        rows = np.asarray(source)[:count]
    return _checked(rows, face)


def noise(face: Face) -> np.ndarray:
    """Rows that need no data, (rows, *face.shape) float32; of a table, one has missing cells."""
    rng = np.random.default_rng(0)
    if face.columns is None:
        return rng.random((NOISE, *face.shape), dtype="float32")
    rows = rng.normal(size=(NOISE, *face.shape)).astype("float32")
    rows[-1, ::2] = np.nan
    return rows


def _read(path: Path, face: Face) -> Manifest:
    if face.columns is None:
        return Manifest.from_csv(path)
    return Table.load(path, tasks=face.tasks, features=face.columns)


def _of_manifest(manifest: Manifest, face: Face, count: int, seed: int) -> np.ndarray:
    from kerasmtl.pipeline import make_dataset

    if isinstance(manifest, Table) == (face.columns is None):
        raise ValueError(
            "`samples` is of another kind than the model. Expected "
            f"{'pictures' if face.columns is None else 'a table'}. Received: {manifest!r}"
        )
    known = manifest.splits is not None
    rows = np.flatnonzero(manifest.splits != "test") if known else np.arange(len(manifest))
    if not len(rows):
        raise ValueError(
            f"`samples` {manifest.source} has test rows only. Expected rows to learn from."
        )
    drawn = np.random.default_rng(seed).permutation(rows)[:count]
    taken = manifest.take(drawn)
    if isinstance(taken, Table):
        return taken.with_columns(face.columns).features
    return _of_dataset(make_dataset(taken, face.shape[:2], cache=False), count)


def _of_dataset(dataset: tf.data.Dataset, count: int) -> np.ndarray:
    batches, found = [], 0
    for batch in dataset:
        batches.append(np.asarray(batch[0] if isinstance(batch, tuple) else batch)[: count - found])
        found += len(batches[-1])
        if found >= count:
            break
    if not batches:
        raise ValueError("`samples` is an empty data set. Expected at least one batch.")
    return np.concatenate(batches)


def _checked(rows: np.ndarray, face: Face) -> np.ndarray:
    if rows.dtype.kind not in "biuf" or rows.shape[1:] != face.shape or not len(rows):
        raise ValueError(
            f"`samples` do not fit the model. Expected (rows, {', '.join(map(str, face.shape))}) "
            f"numbers. Received: {rows.shape}, {rows.dtype}"
        )
    rows = rows.astype("float32")
    if face.columns is None and not (rows.min() >= 0 and rows.max() <= 1):  # NaN is refused, too
        raise ValueError(
            "`samples` are no pictures as the model takes them. Expected pixels in [0, 1]. "
            f"Received: {rows.min()} to {rows.max()}"
        )
    return rows
