"""Features on disk: entries made aside in blocks, and renamed into place when they are whole.

Knows neither Keras nor TensorFlow. An entry is a folder named by its key, with one .npy for each
array and `entry.json`; while it is made, it is in `.making-KEY`, where a run that was killed is
gone on with.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kerasmtl.feature_blocks import (
    BLOCK,
    ENTRY,
    FORMAT,
    PLAN,
    Array,
    BlockFiles,
    Plan,
    block_sums,
)
from kerasmtl.modules.caches import cache_root
from kerasmtl.modules.folders import settle

MAKING = ".making-"

# From the first row that is wanted, blocks of rows in order: name → (rows, …).
Compute = Callable[[int], Iterable[Mapping[str, np.ndarray]]]


def features_root(folder: str | os.PathLike[str] | None = None) -> Path:
    """Where entries are: the folder, or "features" in the cache of modules."""
    return cache_root() / "features" if folder is None else Path(folder).expanduser()


def open_entry(root: Path, key: str) -> Mapping[str, np.ndarray] | None:
    """The arrays of a whole entry, memory-mapped and read-only; None if there is none."""
    folder = root / key
    try:
        plan, _ = _described(folder)
        found = {
            array.name: np.load(folder / f"{array.name}.npy", mmap_mode="r")
            for array in plan.arrays
        }
    except (OSError, ValueError, KeyError, TypeError):  # absent, being removed, or damaged
        return None
    fits = all(
        found[a.name].shape == (plan.rows, *a.shape) and found[a.name].dtype == np.dtype(a.dtype)
        for a in plan.arrays
    )
    return found if fits and plan.key == key else None


def is_intact(root: Path, key: str) -> bool:
    """Whether every block of an entry is as it was written; reads all of it."""
    arrays = open_entry(root, key)
    if arrays is None:
        return False
    plan, sums = _described(root / key)
    return sums == [block_sums(arrays, *block) for block in plan.blocks]


def make_entry(root: Path, plan: Plan, compute: Compute) -> Mapping[str, np.ndarray]:
    """The arrays of an entry, computed from the last finished block on and put into place whole.

    Where another process makes the same entry, this waits for it, and goes on where that one ends.

    Args:
        root: the folder of all entries.
        plan: what to make.
        compute: gives the blocks from a row on, each as long as `plan.blocks` says.

    Raises:
        OSError: the folder cannot be written to, or is full; says what is needed.
    """
    target = root / plan.key
    with _writing(root, plan):
        root.mkdir(parents=True, exist_ok=True)
    with _making(root, plan) as made:
        found = open_entry(root, plan.key)  # made by another process in the meantime
        if found is not None:
            return found
        with _writing(root, plan):
            files = BlockFiles(made, plan)
        with files:
            for values in compute(files.done * BLOCK) if files.left else ():
                with _writing(root, plan):
                    files.append(values)
            if files.left:
                raise ValueError(
                    f"`compute` ended too early. Expected {plan.rows} rows. Received: "
                    f"{files.done * BLOCK}"
                )
            with _writing(root, plan):
                files.finish()
        with _writing(root, plan):
            settle(made, target, good=lambda there: open_entry(root, there.name) is not None)
    found = open_entry(root, plan.key)
    if found is None:
        raise OSError(f"{target} was removed while it was read. Try once more.")
    return found


@dataclass(frozen=True)
class Entry:
    """Something in the folder of features: an entry, or what is left of an unfinished one.

    `about` says what was computed; `made` is when, an ISO date, empty while unfinished.
    """

    key: str
    path: Path
    rows: int
    bytes: int
    made: str
    about: Mapping[str, Any]


def entries(root: Path) -> list[Entry]:
    """All that is kept in a folder, the oldest first, the unfinished last."""
    if not root.is_dir():
        return []
    found = [_entry(path) for path in root.iterdir() if path.is_dir()]
    return sorted((e for e in found if e), key=lambda e: (not e.made, e.made, e.key))


def remove(entry: Entry) -> bool:
    """Remove an entry; False if it is unfinished and another process is at work on it."""
    root = entry.path.parent
    if entry.path.name != f"{MAKING}{entry.key}":
        shutil.rmtree(entry.path)
        return True
    try:
        with locked(root / f"{MAKING}{entry.key}.lock", wait=False) as lock:
            shutil.rmtree(entry.path)
            lock.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    except ImportError:
        shutil.rmtree(entry.path)
    return True


def _entry(path: Path) -> Entry | None:
    whole = not path.name.startswith(MAKING)
    try:
        file = path / ENTRY if whole else path / "made" / PLAN
        found = json.loads(file.read_text(encoding="utf-8"))
        made = found["made"] if whole else ""
        return Entry(found["key"], path, found["rows"], _size(path), made, found["about"])
    except (OSError, ValueError, KeyError, TypeError):
        if whole:  # not ours, or another format
            return None
        return Entry(path.name.removeprefix(MAKING), path, 0, _size(path), "", {})


def _size(folder: Path) -> int:
    """The bytes that the files take on disk, of which an unfinished one has fewer than it says."""
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            size += getattr(found, "st_blocks", found.st_size / 512) * 512
    return int(size)


def _described(folder: Path) -> tuple[Plan, list[dict[str, int]]]:
    found = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
    if found["format"] != FORMAT or found["block"] != BLOCK:
        raise ValueError("written by another version")
    arrays = [Array(a["name"], tuple(a["shape"]), a["dtype"]) for a in found["arrays"]]
    return Plan(found["key"], found["rows"], tuple(arrays), found["about"]), found["sums"]


@contextlib.contextmanager
def _writing(root: Path, plan: Plan) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"`folder` {root} cannot hold the features: {error.strerror or error}. Expected "
            f"{plan.bytes:,} bytes free, for {plan.rows} rows. Make room (`kerasmtl cache` lists "
            "what is kept), or pass another folder; the same call then goes on after the last "
            "finished block."
        ) from error


@contextlib.contextmanager
def _making(root: Path, plan: Plan) -> Iterator[Path]:
    """The folder to make an entry in, for this process alone; it stays when that fails.

    Without locks on this file system it is one of this process's own, and does not stay.
    """
    with contextlib.ExitStack() as held:
        try:
            lock = held.enter_context(locked(root / f"{MAKING}{plan.key}.lock"))
        except (ImportError, OSError):
            with _writing(root, plan):
                holder = Path(tempfile.mkdtemp(dir=root, prefix=f"{MAKING}{plan.key}-"))
            held.callback(shutil.rmtree, holder, ignore_errors=True)
            yield holder / "made"
        else:
            holder = root / f"{MAKING}{plan.key}"
            with _writing(root, plan):
                holder.mkdir(exist_ok=True)
            yield holder / "made"
            shutil.rmtree(holder, ignore_errors=True)
            lock.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[Path]:
    """A file that one process at a time holds; the system frees it if that is killed.

    Raises:
        BlockingIOError: without `wait`, another process holds it.
        ImportError, OSError: the system or the file system has no such locks.
    """
    import fcntl  # not on Windows

    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                print("Waiting for another process that makes the same features.", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(path, file):  # the process before this one may have removed the file
                yield path
                return


def _is_at(path: Path, file: Any) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
