"""What a model was trained on: columns, tasks and rows, kept beside its file."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kerasmtl.data.inputs import Input
from kerasmtl.data.manifest import SPLITS, Manifest
from kerasmtl.data.splits import units
from kerasmtl.tasks import Task
from kerasmtl.utils.files import write_text

_NEW = len(SPLITS)  # the part of a row that was not there


@dataclass(frozen=True, eq=False)
class Trained:
    """The tasks of a model, its input, and which rows it has seen.

    Shapes: rows (rows,) uint64, a digest of each row of the training's file, in its order; parts
    (rows,) uint8, the position in `SPLITS` of the part that it was in; groups (rows,) uint64, or
    None. A row is known by its name (path, id), or else by its content. `data`: SHA-256
    and name of the labels file as it was then, and how many rows were trained on. `backbone`: the
    "handle" of project.toml that it was made with, and the "sha256" of a SavedModel; None of a
    model without one.
    """

    tasks: tuple[Task, ...]
    input: Input
    seed: int
    rows: np.ndarray
    parts: np.ndarray
    groups: np.ndarray | None = None
    data: dict[str, Any] | None = None
    backbone: dict[str, str] | None = None

    @classmethod
    def of(
        cls,
        split: Sequence[Manifest],
        seed: int = 0,
        labels: Path | None = None,
        backbone: dict[str, str] | None = None,
    ) -> Trained:
        """The record of a training on these train, validation and test rows of a labels file."""
        first = split[0]
        order = np.argsort(np.concatenate([part.lines for part in split]), kind="stable")
        sizes = [len(part) for part in split]

        def joined(digests: list[np.ndarray]) -> np.ndarray:
            return np.concatenate(digests)[order]

        return cls(
            tasks=first.tasks,
            input=first.input,
            seed=seed,
            rows=joined([_texts(part.keys()) for part in split]),
            parts=np.repeat(np.arange(len(sizes), dtype="uint8"), sizes)[order],
            groups=None if first.groups is None else joined([_texts(p.groups) for p in split]),
            data=None if labels is None else _data(labels, sizes[0]),
            backbone=backbone,
        )

    @classmethod
    def unrecorded(cls, tasks: tuple[Task, ...], input: Input, seed: int) -> Trained:
        """What is known of a model of whose rows nothing was written down."""
        none = np.empty(0, dtype="u8"), np.empty(0, dtype="u1")
        return cls(tasks, input, seed, *none)

    def changes_since(self, then: Trained) -> list[str]:
        """Name what this training has otherwise than another one: labels, rows, backbone."""
        now, before = ((each.data or {}).get("sha256") for each in (self, then))
        rows = zip((self.rows, self.parts), (then.rows, then.parts), strict=True)
        same = {
            "the labels file": now == before,
            "which images can be used": now != before or all(np.array_equal(*p) for p in rows),
            "the backbone": self.backbone == then.backbone,
        }
        return [name for name, kept in same.items() if not kept]

    def parts_of(self, manifest: Manifest) -> tuple[dict[str, Manifest], list[str]]:
        """The rows of each part, as the training had them, and what is to be said about it.

        A row that was there is in the part that it was in, whatever its file says now; so is a
        row that is identical to one, and a row of a group that was there. A row that is new is
        where the file puts it: by its split column, or by drawing.
        """
        parts = self._known_parts(manifest)
        new = parts == _NEW
        if new.any():
            parts[new] = _parts_now(manifest, self.seed)[new]
        found = {name: manifest.take(np.flatnonzero(parts == n)) for n, name in enumerate(SPLITS)}
        return found, self._notes(manifest, parts, new)

    def _known_parts(self, manifest: Manifest) -> np.ndarray:
        """The part of each row that was there, or whose like was there; else `_NEW`."""
        now = pd.DataFrame({"row": _texts(manifest.keys())})
        if np.array_equal(now["row"], self.rows):
            return self.parts.copy()
        then = pd.DataFrame({"row": self.rows, "part": self.parts})
        for frame in (now, then):  # rows alike are told apart by their order
            frame["copy"] = frame.groupby("row").cumcount()
        parts = now.merge(then, on=["row", "copy"], how="left")["part"]
        likes = [(now["row"], then.groupby("row")["part"].min())]
        if self.groups is not None and manifest.groups is not None:
            groups = pd.Series(self.parts).groupby(self.groups).min()
            likes.append((pd.Series(_texts(manifest.groups)), groups))
        for keys, known in likes:
            parts = parts.fillna(keys.map(known))
        if parts.isna().any():  # files are read only if there are new rows
            groups = np.arange(len(manifest)) if manifest.groups is None else manifest.groups
            together = pd.Series(units(groups, manifest.identical_rows()))
            parts = parts.fillna(together.map(parts.groupby(together).min()))
        return parts.fillna(_NEW).to_numpy("uint8")

    def _notes(self, manifest: Manifest, parts: np.ndarray, new: np.ndarray) -> list[str]:
        notes = []
        if manifest.splits is not None:
            moved = int(((manifest.splits == "test") & (parts < SPLITS.index("test"))).sum())
            if moved:
                notes.append(
                    f"{moved} rows that the file calls test were trained on, or chosen by, and "
                    f"are left out of it: {manifest.source}"
                )
        count = int(new.sum())
        if not len(self.rows):
            return []
        if count == len(manifest):
            notes.append(
                f"none of the {count} rows was there in the training. If they are the same rows "
                f"changed, the scores are worth nothing: {manifest.source}"
            )
        elif count:
            test = int((new & (parts == SPLITS.index("test"))).sum())
            notes.append(
                f"{count} of {len(manifest)} rows are new since the training; {test} of them are "
                f"test rows: {manifest.source}"
            )
        return notes


def record_file(checkpoint: Path) -> Path:
    """Where the record of a model file is."""
    return checkpoint.with_suffix(".json")


def save_trained(trained: Trained, checkpoint: Path) -> None:
    """Write the record of a training that is about to write `checkpoint`."""
    content = json.dumps(_plain(trained), indent=1, ensure_ascii=False)
    write_text(record_file(checkpoint), content)


def load_trained(checkpoint: Path) -> Trained | None:
    """The record of a model file; None if nobody wrote one.

    Raises:
        ValueError: the record is broken.
    """
    file = record_file(checkpoint)
    if not file.is_file():
        return None
    try:
        return _made(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`{file}` is no record of a training. Received: {error!r}. Train again: python "
            "train.py"
        ) from None


def _plain(trained: Trained) -> dict[str, Any]:
    def packed(numbers: np.ndarray | None, dtype: str) -> str | None:
        if numbers is None:
            return None
        return base64.b64encode(numbers.astype(dtype).tobytes()).decode("ascii")

    return {
        "tasks": [asdict(task) for task in trained.tasks],
        "input": trained.input.config(),
        "seed": trained.seed,
        "rows": packed(trained.rows, "<u8"),
        "parts": packed(trained.parts, "u1"),
        "groups": packed(trained.groups, "<u8"),
        "data": trained.data,
        "backbone": trained.backbone,
    }


def _made(content: dict[str, Any]) -> Trained:
    def unpacked(text: str, dtype: str) -> np.ndarray:
        return np.frombuffer(base64.b64decode(text, validate=True), dtype)

    groups = content["groups"]
    return Trained(
        tasks=tuple(Task(**fields) for fields in content["tasks"]),
        input=Input.from_config(content["input"]),
        seed=content["seed"],
        rows=unpacked(content["rows"], "<u8"),
        parts=unpacked(content["parts"], "u1"),
        groups=None if groups is None else unpacked(groups, "<u8"),
        data=content["data"],
        backbone=content["backbone"],
    )


def _parts_now(manifest: Manifest, seed: int) -> np.ndarray:
    if manifest.splits is not None:
        return pd.Index(SPLITS).get_indexer(manifest.splits).astype("uint8")
    position = pd.Series(np.arange(len(manifest)), index=manifest.lines)
    parts = np.empty(len(manifest), dtype="uint8")
    for number, part in enumerate(manifest.split(seed=seed)):
        parts[position[part.lines]] = number
    return parts


def _texts(texts: Sequence[Any] | np.ndarray) -> np.ndarray:
    encoded = (str(text).encode() for text in texts)
    joined = b"".join(blake2b(text, digest_size=8).digest() for text in encoded)
    return np.frombuffer(joined, "<u8")


def _data(labels: Path, rows: int) -> dict[str, Any]:
    return {"sha256": _sha256(labels), "rows": rows, "source": labels.name}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()
