"""Features on disk: arrays written in blocks aside, and renamed into place when they are whole.

Knows neither Keras nor TensorFlow. An entry is a folder named by its key, with one .npy for each
array and `entry.json`. While it is made, `.making-KEY` has the arrays and `blocks.jsonl`, a line
for each finished block: a run that was killed goes on after the last.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from kerasmtl.modules.caches import cache_root
from kerasmtl.modules.folders import settle

FORMAT = 1
ENTRY, LOG, MAKING = "entry.json", "blocks.jsonl", ".making-"
BLOCK = 256  # rows between two lines of the log


@dataclass(frozen=True)
class Array:
    """One array of an entry: its name, the shape of a row and the type of its numbers."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Plan:
    """What an entry will hold: `rows` rows of each array, under a key. `about` is for people."""

    key: str
    rows: int
    arrays: tuple[Array, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return self.rows * sum(array.row_bytes for array in self.arrays)

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """First row and row after the last of each block."""
        starts = range(0, self.rows, BLOCK)
        return [(start, min(start + BLOCK, self.rows)) for start in starts]


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
    return sums == [_sums(arrays, *block) for block in plan.blocks]


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
    with _making(root, plan.key) as made:
        found = open_entry(root, plan.key)  # made by another process in the meantime
        if found is not None:
            return found
        with _writing(root, plan):
            files = _Files(made, plan)
        with files:
            for values in compute(files.done * BLOCK) if files.left else ():
                with _writing(root, plan):
                    files.append(values)
        if files.left:
            raise ValueError(
                f"`compute` ended too early. Expected {plan.rows} rows. Received: "
                f"{plan.rows - sum(b - a for a, b in plan.blocks[files.done :])}"
            )
        with _writing(root, plan):
            _describe(made, plan, files.sums)
            settle(made, target, good=lambda there: open_entry(root, there.name) is not None)
    found = open_entry(root, plan.key)
    if found is None:
        raise OSError(f"{target} was removed while it was read. Try once more.")
    return found


class _Files:
    """The arrays of an entry that is being made, opened after the last block that is sound."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._plan = plan
        self._folder = folder
        wanted = json.dumps(_plan_dict(plan), sort_keys=True)
        with contextlib.suppress(OSError):
            if (folder / "plan.json").read_text(encoding="utf-8") != wanted:
                shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        self.sums = self._sound()
        self._check_room()
        if not self.sums:
            self._prepare(wanted)
        self._starts = {}
        self._open: dict[str, Any] = {}
        for array in plan.arrays:
            path = folder / f"{array.name}.npy"
            self._starts[array.name] = np.load(path, mmap_mode="r").offset
            self._open[array.name] = path.open("r+b")
        log = folder / LOG
        sound = "".join(json.dumps(sums) + "\n" for sums in self.sums)
        log.with_suffix(".new").write_text(sound, encoding="utf-8")
        os.replace(log.with_suffix(".new"), log)
        self._log = log.open("a", encoding="utf-8")

    @property
    def done(self) -> int:
        return len(self.sums)

    @property
    def left(self) -> int:
        return len(self._plan.blocks) - self.done

    def _sound(self) -> list[dict[str, int]]:
        """The checksums of the first blocks, up to the first that is not as the log says."""
        found: list[dict[str, int]] = []
        try:
            lines = (self._folder / LOG).read_text(encoding="utf-8").splitlines()
            names = [array.name for array in self._plan.arrays]
            arrays = {n: np.load(self._folder / f"{n}.npy", mmap_mode="r") for n in names}
            for line, block in zip(lines, self._plan.blocks, strict=False):
                sums = _sums(arrays, *block)
                if json.loads(line) != sums:
                    break
                found.append(sums)
        except (OSError, ValueError):  # nothing there, or a last line that was cut short
            pass
        return found

    def _check_room(self) -> None:
        free = shutil.disk_usage(self._folder).free
        share = self.left / max(1, len(self._plan.blocks))
        if free < share * self._plan.bytes:
            raise OSError(errno.ENOSPC, f"{free:,} bytes are free")

    def _prepare(self, wanted: str) -> None:
        for array in self._plan.arrays:
            shape = (self._plan.rows, *array.shape)
            path = self._folder / f"{array.name}.npy"
            np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(array.dtype), shape=shape)
        (self._folder / "plan.json").write_text(wanted, encoding="utf-8")

    def append(self, values: Mapping[str, np.ndarray]) -> None:
        start, stop = self._plan.blocks[self.done]
        sums = {}
        for array in self._plan.arrays:
            rows = np.ascontiguousarray(values[array.name], dtype=np.dtype(array.dtype))
            if rows.shape != (stop - start, *array.shape):
                raise ValueError(
                    f"`features` {array.name!r} have another shape. Expected "
                    f"{(stop - start, *array.shape)}. Received: {rows.shape}"
                )
            # A write to a memory map of a full disk would kill the process.
            file = self._open[array.name]
            file.seek(self._starts[array.name] + start * array.row_bytes)
            file.write(rows.tobytes())
            file.flush()
            sums[array.name] = zlib.crc32(rows.tobytes())
        self.sums.append(sums)
        self._log.write(json.dumps(sums) + "\n")
        self._log.flush()

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *error: Any) -> None:
        for file in [*self._open.values(), self._log]:
            with contextlib.suppress(OSError):  # a full disk, which was reported by then
                file.close()


def _sums(arrays: Mapping[str, np.ndarray], start: int, stop: int) -> dict[str, int]:
    return {name: zlib.crc32(array[start:stop].tobytes()) for name, array in arrays.items()}


def _plan_dict(plan: Plan) -> dict[str, Any]:
    arrays = [{**asdict(array), "shape": list(array.shape)} for array in plan.arrays]
    return {
        "format": FORMAT,
        "key": plan.key,
        "rows": plan.rows,
        "block": BLOCK,
        "arrays": arrays,
        "about": dict(plan.about),
    }


def _describe(made: Path, plan: Plan, sums: Sequence[Mapping[str, int]]) -> None:
    (made / LOG).unlink()
    (made / "plan.json").unlink()
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    described = {**_plan_dict(plan), "bytes": plan.bytes, "made": now, "sums": list(sums)}
    (made / ENTRY).write_text(json.dumps(described), encoding="utf-8")
    for path in made.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


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
def _making(root: Path, key: str) -> Iterator[Path]:
    """The folder to make an entry in, for this process alone; it stays when that fails.

    Without locks on this file system it is one of this process's own, and does not stay.
    """
    with contextlib.ExitStack() as held:
        try:
            lock = held.enter_context(locked(root / f"{MAKING}{key}.lock"))
        except (ImportError, OSError):
            holder = Path(tempfile.mkdtemp(dir=root, prefix=f"{MAKING}{key}-"))
            held.callback(shutil.rmtree, holder, ignore_errors=True)
            yield holder / "made"
        else:
            holder = root / f"{MAKING}{key}"
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
