"""Features on disk: an entry per key, its rows in shards.

`feature_cache` decides what is computed, and under which key; here an `Entry` is a folder of that
name with entry.json and numbered .npy files. Each file is written under another name and renamed,
so that an interrupted run leaves whole shards, and the next one computes the others. `kerasmtl
cache` lists and removes entries.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from kerasmtl.models.hub.cache import cache_root
from kerasmtl.utils.files import Shards, file_lock, write_text

FORMAT = 2
ENTRY = "entry.json"
SHARD_ROWS = 1024  # rows of a shard, at least
MOST_SHARDS = 64  # of an entry: each open shard takes a file descriptor


@dataclass(frozen=True)
class Entry:
    """The features of `views` times `count` rows, in a folder that is called by its key.

    The shards of a view follow those of the view before; the last shard of a view is shorter than
    `shard_rows` if `count` is not a multiple of it. A shard is a structured NumPy array (rows,)
    with a field per feature. `about` is for people, and `made` an ISO date.

    Attributes:
        path: the folder.
        count: rows of the data set.
        views: augmented views of each row; 1 without augmentation.
        shard_rows: rows of a shard.
    """

    path: Path
    count: int
    views: int
    shard_rows: int
    about: Mapping[str, Any]
    made: str

    @property
    def key(self) -> str:
        """The key: the name of the folder."""
        return self.path.name

    @property
    def rows(self) -> int:
        """How many rows the finished entry has."""
        return self.views * self.count

    @property
    def per_view(self) -> int:
        """How many shards a view has."""
        return -(-self.count // self.shard_rows)

    @property
    def shards(self) -> Shards:
        """The shards of all views."""
        return Shards(self.path, self.views * self.per_view, ".npy")

    @property
    def finished(self) -> bool:
        """Whether all shards are there."""
        return not self.shards.missing()

    @property
    def bytes(self) -> int:
        """The size of all files, in bytes."""
        return sum(path.stat().st_size for path in self.path.iterdir() if path.is_file())

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the shards of rows, which are numbered over all views, and their places there.

        Args:
            rows: (n,) int64, from 0 to `rows` - 1.

        Returns:
            Two (n,) int64: the number of the shard, and the row in it.
        """
        view, row = np.divmod(rows, self.count)
        part, place = np.divmod(row, self.shard_rows)
        return view * self.per_view + part, place

    def write(self, number: int, rows: np.ndarray) -> None:
        """Write a shard, and before the first one entry.json.

        Args:
            number: of the shard, over all views.
            rows: (rows of the shard,) structured.

        Raises:
            OSError: the folder cannot be written to, or is full; says how much is needed.
        """
        try:
            # First: without it `kerasmtl cache` would not see the shards.
            if not (self.path / ENTRY).is_file():
                content = {name: value for name, value in vars(self).items() if name != "path"}
                write_text(self.path / ENTRY, json.dumps({"format": FORMAT, **content}, indent=1))
            with self.shards.write(number) as file:
                np.save(file, rows)
        except OSError as error:
            raise OSError(
                error.errno,
                f"`folder` must have room for the features, about "
                f"{self.rows * rows.dtype.itemsize:,} bytes, got {self.path.parent}: "
                f"{error.strerror or error}. Make room (`kerasmtl cache` lists what is kept), or "
                "pass another folder; the same call then computes the rest",
            ) from error

    def read(self, dtype: np.dtype) -> list[np.ndarray | None]:
        """Return the shards, memory-mapped; None for one absent, damaged or of other features.

        Args:
            dtype: of the structured rows, with a field per feature. A shard of another one was
                written for other features.
        """
        return [self._read(number, dtype) for number in range(self.shards.count)]

    def _read(self, number: int, dtype: np.dtype) -> np.ndarray | None:
        """Return a shard, or None if it cannot be used."""
        rows = min(self.shard_rows, self.count - number % self.per_view * self.shard_rows)
        try:
            found = np.load(self.shards.path(number), mmap_mode="r")
        except (OSError, ValueError):
            return None
        return found if found.shape == (rows,) and found.dtype == dtype else None

    def lock(self, wait: bool = True) -> contextlib.AbstractContextManager[None]:
        """Return the context in which one process alone writes the entry; see `file_lock`.

        The lock file lies beside the folder, which may be removed and made again while the lock is
        held.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        message = "Waiting for another process that computes the same features."
        return file_lock(self.path.with_name(f"{self.key}.lock"), wait, message)


def features_root(folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of all entries: by default "features" in the cache of modules."""
    return cache_root() / "features" if folder is None else Path(folder).expanduser()


def entry_at(path: Path, count: int, views: int, align: int, about: Mapping[str, Any]) -> Entry:
    """Return the entry in a folder, or a new one, of which nothing is written yet.

    Args:
        path: the folder, called by the entry's key.
        count: rows of a view.
        views: how many views of each row there are.
        align: rows of a shard are a multiple of it.
        about: what is in it, for people.

    Returns:
        The entry. One that was found keeps its own `shard_rows`, by which its files were cut.
    """
    found = _read(path)
    if found is not None and (found.count, found.views) == (count, views):
        return found
    rows = max(SHARD_ROWS, -(-count * views // MOST_SHARDS))
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return Entry(path, count, views, -(-rows // align) * align, about, now)


def entries(root: Path) -> list[Entry]:
    """Return all entries of a folder, the oldest first."""
    found = [_read(path) for path in root.iterdir()] if root.is_dir() else []
    return sorted((entry for entry in found if entry), key=lambda e: (e.made, e.key))


def remove(entry: Entry) -> bool:
    """Remove an entry; False if another process is computing it."""
    try:
        with entry.lock(wait=False):
            shutil.rmtree(entry.path, ignore_errors=True)
    except BlockingIOError:
        return False
    return True


def _read(path: Path) -> Entry | None:
    """Return the entry in a folder; None if there is none, or one of another format."""
    try:
        content = json.loads((path / ENTRY).read_text(encoding="utf-8"))
        if content.pop("format") == FORMAT:
            return Entry(path, **content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # absent, or written by something else
    return None
