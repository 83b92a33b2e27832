"""The record of a training: its tasks and input in model.json, and its rows in split.csv.

split.csv says for each row in which part it was: "name,split" or "name,split,group". With it, rows
that the model has seen never come into the test part, whatever becomes of the labels file.

`begin_run` saves it before the training, `Project.trained` loads it; `evaluate`, `predict` and
`export` use it to know tasks, input and parts as the model had them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kerasmtl.data.inputs import Input
from kerasmtl.data.manifest import SPLITS, Manifest
from kerasmtl.data.splits import units
from kerasmtl.tasks import Task
from kerasmtl.utils.files import atomic_file, file_sha256, write_text

SPLIT_FILE = "split.csv"


@dataclass(frozen=True, eq=False)
class TrainingRecord:
    """The tasks of a model, its input, and the rows it was trained, chosen and tested on.

    Attributes:
        tasks: the tasks, with their classes.
        input: the kind of input, with its options.
        seed: of the split.
        rows: text columns "name" (path or id of the row, or else a hash of its content), "split"
            (one of `SPLITS`) and, where rows are grouped, "group"; in the order of the labels file.
        data: of the labels file its "sha256", its name ("source"), and how many "rows" were
            trained on.
        backbone: its "handle" in project.toml, and the "sha256" of a SavedModel; None without one.
    """

    tasks: tuple[Task, ...]
    input: Input
    seed: int
    rows: pd.DataFrame
    data: dict[str, Any] | None = None
    backbone: dict[str, str] | None = None

    @classmethod
    def of(
        cls,
        split: Sequence[Manifest],
        seed: int = 0,
        labels: Path | None = None,
        backbone: dict[str, str] | None = None,
    ) -> TrainingRecord:
        """Return the record of a training on these train, val and test rows of a labels file.

        Args:
            split: the train, val and test rows, of one labels file.
            seed: of the split, by which new rows are drawn later.
            labels: the file, to be hashed; None without one.
            backbone: its handle and content hash.
        """
        frames = [
            _rows(part).assign(split=name).set_index(part.lines)
            for name, part in zip(SPLITS, split, strict=True)
        ]
        rows = pd.concat(frames).sort_index(kind="stable").reset_index(drop=True)
        source = None
        if labels is not None:
            sha256 = file_sha256(labels)
            source = {"sha256": sha256, "rows": len(split[0]), "source": labels.name}
        return cls(split[0].tasks, split[0].input, seed, rows, source, backbone)

    def changes_since(self, then: TrainingRecord) -> list[str]:
        """Return what differs from another training: the labels file, its rows, the backbone.

        Args:
            then: of the run that was interrupted.

        Returns:
            Names for a message; empty if nothing changed.
        """
        now, before = ((each.data or {}).get("sha256") for each in (self, then))
        same = {
            "the labels file": now == before,
            "which images can be used": now != before or self.rows.equals(then.rows),
            "the backbone": self.backbone == then.backbone,
        }
        return [name for name, kept in same.items() if not kept]

    def parts_of(self, manifest: Manifest) -> tuple[dict[str, Manifest], list[str]]:
        """Return the rows of each part, as the training had them, and notes on what changed.

        A row that was there is in the part that it was in, whatever its file says now; so is a
        row that is identical to one, and a row of a group that was there. A new row is where the
        file puts it: by its split column, or by drawing.

        Args:
            manifest: the rows of the labels file as it is now.

        Returns:
            The rows by the name of the part, and sentences for the user.
        """
        parts = self._known_parts(manifest)
        new = parts.isna().to_numpy()
        if new.any():
            parts = parts.where(~new, _parts_now(manifest, self.seed))
        found = {name: manifest.take(np.flatnonzero(parts == name)) for name in SPLITS}
        return found, self._notes(manifest, parts, new)

    def _known_parts(self, manifest: Manifest) -> pd.Series:
        """Return the part of each row that was there, or whose like was there; NaN for a new one.

        From the surest sign to the weakest: the same rows in the same order, then equal names, then
        names and groups of which some were there, then equal content.
        """
        now, then = _rows(manifest), self.rows
        if now["name"].equals(then["name"]):
            return then["split"].copy()
        # Rows of the same name are told apart by their order.
        numbered = [frame.assign(copy=frame.groupby("name").cumcount()) for frame in (now, then)]
        keys = ["name", "copy"]
        parts = numbered[0][keys].merge(numbered[1][[*keys, "split"]], on=keys, how="left")["split"]
        for key in ("name", "group"):
            if key in now and key in then:
                parts = parts.fillna(now[key].map(_first(then["split"], then[key])))
        if parts.isna().any():  # the content of rows is read only if there are new ones
            groups = np.arange(len(manifest)) if manifest.groups is None else manifest.groups
            together = pd.Series(units(groups, manifest.identical_rows()))
            parts = parts.fillna(together.map(_first(parts, together)))
        return parts

    def _notes(self, manifest: Manifest, parts: pd.Series, new: np.ndarray) -> list[str]:
        """Return sentences on rows that are new, or that the file has moved into the test part.

        Args:
            manifest: the rows as they are now.
            parts: the part of each row.
            new: (rows,) bool, whether the training did not have it.
        """
        if not len(self.rows):
            return []
        notes, count = [], int(new.sum())
        moved = 0
        if manifest.splits is not None:
            moved = int(((manifest.splits == "test") & (parts != "test")).sum())
        if moved:
            notes.append(
                f"{moved} rows that the file calls test were trained on, or chosen by, and are "
                "left out of it"
            )
        if count == len(manifest):
            notes.append(
                f"none of the {count} rows was there in the training. If they are the same rows "
                "changed, the scores are worth nothing"
            )
        elif count:
            test = int((new & (parts == "test")).sum())
            notes.append(
                f"{count} of {len(manifest)} rows are new since the training; {test} of them are "
                "test rows"
            )
        return [f"{note}: {manifest.source}" for note in notes]


def _rows(manifest: Manifest) -> pd.DataFrame:
    """Return the names of the rows, and their groups, as text."""
    columns = {"name": [str(key) for key in manifest.keys()]}
    if manifest.groups is not None:
        columns["group"] = [str(group) for group in manifest.groups]
    return pd.DataFrame(columns, dtype=str)


def _first(splits: pd.Series, keys: pd.Series) -> pd.Series:
    """Return by key the first of the parts, in the order of `SPLITS`, that its rows are in.

    Train comes before val and test: of a group that was in several parts, new rows are trained on,
    not tested on.
    """
    numbers = splits.map({name: number for number, name in enumerate(SPLITS)})
    return numbers.groupby(keys).min().map(dict(enumerate(SPLITS)))


def _parts_now(manifest: Manifest, seed: int) -> pd.Series:
    """Return the part of each row by the file's split column, or by drawing."""
    if manifest.splits is not None:
        return pd.Series(manifest.splits)
    drawn = zip(SPLITS, manifest.split(seed=seed), strict=True)
    parts = pd.concat([pd.Series(name, part.lines) for name, part in drawn])
    return parts[manifest.lines].reset_index(drop=True)


def record_file(checkpoint: Path) -> Path:
    """Return where the record of a model file is: model.json beside model.keras."""
    return checkpoint.with_suffix(".json")


def save_record(record: TrainingRecord, checkpoint: Path) -> None:
    """Write the record of a training that is about to write `checkpoint`.

    Args:
        record: of the training.
        checkpoint: the model file, beside which it is written. split.csv comes first: a model.json
            is never without its rows.
    """
    with atomic_file(checkpoint.with_name(SPLIT_FILE)) as written:
        record.rows.to_csv(written, index=False, lineterminator="\n")
    content = {
        "tasks": [asdict(task) for task in record.tasks],
        "input": record.input.config(),
        "seed": record.seed,
        "data": record.data,
        "backbone": record.backbone,
    }
    write_text(record_file(checkpoint), json.dumps(content, indent=1, ensure_ascii=False))


def load_record(checkpoint: Path) -> TrainingRecord | None:
    """Return the record of a model file; None if there is none.

    Args:
        checkpoint: the model file, which need not exist yet.

    Raises:
        ValueError: the record is broken, or without its rows.
    """
    file = record_file(checkpoint)
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        content["tasks"] = tuple(Task(**fields) for fields in content["tasks"])
        content["input"] = Input.from_config(content["input"])
        rows = pd.read_csv(checkpoint.with_name(SPLIT_FILE), dtype=str, na_filter=False)
        if not set(rows["split"]) <= set(SPLITS):
            raise ValueError(f"`split` must be one of {SPLITS}")
        return TrainingRecord(rows=rows.filter(["name", "group", "split"]), **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`{file}` must be the record of a training, with {SPLIT_FILE} beside it, got "
            f"{error!r}. Train again: python train.py"
        ) from None
