"""Features on disk: entries made aside in blocks, and renamed into place when they are whole.

Knows neither Keras nor TensorFlow. An entry is a folder named by its key, with one .npy for each
array and `entry.json`; while it is made, it is in `.making-KEY`, where a run that was killed is
gone on with.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from kerasmtl.models.hub.cache import cache_root
from kerasmtl.utils.files import settle

FORMAT = 1
BLOCK = 256  # rows between two lines of the log
ENTRY, PLAN, LOG = "entry.json", "plan.json", "blocks.jsonl"


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


class BlockFiles:
    """The arrays of an entry that is being made, opened after the last block that is sound."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._plan = plan
        self._folder = folder
        if not self._is_of(plan):
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        self.sums = self._sound()
        self._check_room()
        if not self.sums:
            self._prepare()
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

    def _is_of(self, plan: Plan) -> bool:
        """Whether what is in the folder was begun for this plan, wherever its rows lie."""
        try:
            begun = json.loads((self._folder / PLAN).read_text(encoding="utf-8"))
            return {**begun, "about": dict(plan.about)} == plan_dict(plan)
        except (OSError, ValueError, TypeError):
            return False

    def _sound(self) -> list[dict[str, int]]:
        """The checksums of the first blocks, up to the first that is not as the log says."""
        found: list[dict[str, int]] = []
        try:
            lines = (self._folder / LOG).read_text(encoding="utf-8").splitlines()
            names = [array.name for array in self._plan.arrays]
            arrays = {n: np.load(self._folder / f"{n}.npy", mmap_mode="r") for n in names}
            for line, block in zip(lines, self._plan.blocks, strict=False):
                sums = block_sums(arrays, *block)
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

    def _prepare(self) -> None:
        for array in self._plan.arrays:
            shape = (self._plan.rows, *array.shape)
            path = self._folder / f"{array.name}.npy"
            np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(array.dtype), shape=shape)
        (self._folder / PLAN).write_text(json.dumps(plan_dict(self._plan)), "utf-8")

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

    def finish(self) -> None:
        """Write `entry.json`, and see all of it safe on disk."""
        for file in [*self._open.values(), self._log]:
            file.close()
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        entry = {**plan_dict(self._plan), "bytes": self._plan.bytes, "made": now}
        (self._folder / ENTRY).write_text(json.dumps({**entry, "sums": self.sums}), "utf-8")
        for path in self._folder.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())

    def __enter__(self) -> BlockFiles:
        return self

    def __exit__(self, *error: Any) -> None:
        for file in [*self._open.values(), self._log]:
            with contextlib.suppress(OSError):  # a full disk, which was reported by then
                file.close()


def block_sums(arrays: Mapping[str, np.ndarray], start: int, stop: int) -> dict[str, int]:
    return {name: zlib.crc32(array[start:stop].tobytes()) for name, array in arrays.items()}


def plan_dict(plan: Plan) -> dict[str, Any]:
    arrays = [{**asdict(array), "shape": list(array.shape)} for array in plan.arrays]
    return {
        "format": FORMAT,
        "key": plan.key,
        "rows": plan.rows,
        "block": BLOCK,
        "arrays": arrays,
        "about": dict(plan.about),
    }


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
