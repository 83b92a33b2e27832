"""The arrays of features while they are written, a block of rows at a time.

The folder has one .npy for each array, `plan.json` and `blocks.jsonl`, a line of checksums for
each finished block: who opens it again goes on after the last block that is as its line says.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

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
