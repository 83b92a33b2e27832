"""What a batch prediction writes: finished blocks aside, then the whole file at once."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from kerasmtl.feature_store import locked

FORMATS = (".csv", ".parquet")
BAD = ("path", "line", "reason")
_GROUP = 2**16  # rows that a Parquet file keeps together
_RUN = "run.json"

Columns = Sequence[tuple[str, str]]  # name, NumPy type; "str" for text


class Writer(Protocol):
    """One format: a block, and the file made of all blocks."""

    def write(self, path: Path, values: Mapping[str, Any]) -> None: ...

    def join(self, blocks: Sequence[Path], path: Path) -> None: ...


class Unfinished:
    """The blocks of a prediction that is under way, in a folder beside the file to be.

    They belong to one model and one list of inputs, which `identity` tells. Open with
    `unfinished`.
    """

    def __init__(self, out: Path, columns: Columns) -> None:
        self.out = out
        self.folder = folder_of(out)
        self._columns = columns
        self._writer = _writer(out, columns)

    def begin(self, identity: Mapping[str, Any], resume: bool, total: int) -> int:
        """How many blocks are finished; without `resume` they are removed first.

        Raises:
            ValueError: they belong to another model, or to other inputs.
        """
        record = self.folder / _RUN
        if resume and record.is_file():
            self._compare(json.loads(record.read_text(encoding="utf-8")), dict(identity))
        else:
            for path in self.folder.glob("*.*"):  # all but the lock
                path.unlink()
            _put(record, json.dumps({**identity, "inputs_found": total}, indent=2))
        return len(self._blocks())

    def write(
        self, number: int, values: Mapping[str, Any], bad: Sequence[tuple[str, int | None, str]]
    ) -> None:
        """Keep a block, once it is whole: its predictions, and path, line and reason of others."""
        if bad:
            rows = pd.DataFrame(bad, columns=list(BAD), dtype=object)
            _put(self._bad(number), rows.to_csv(header=False, index=False, lineterminator="\n"))
        path = self._block(number)
        aside = path.with_name(path.name + ".part")
        self._writer.write(aside, values)
        _settle(aside, path)

    def publish(self, overwrite: bool) -> tuple[Path | None, int]:
        """Make the file and, if there are bad inputs, their list; return the list, and its length.

        Raises:
            FileExistsError: another process made the file meanwhile.
        """
        whole = self.folder / f"whole{self.out.suffix}"
        self._writer.join(self._blocks(), whole)
        listed, count = quarantine_of(self.out), 0
        found = sorted(self.folder.glob("*.bad"))
        if found:
            aside = self.folder / "quarantine.csv"
            count = _join_lists(found, aside)
            _settle(aside, listed)
        elif overwrite:
            listed.unlink(missing_ok=True)  # it would be taken for this file's
        if not overwrite:
            check_free(self.out)
        _settle(whole, self.out)
        shutil.rmtree(self.folder)
        return (listed if found else None), count

    def _compare(self, found: dict[str, Any], now: dict[str, Any]) -> None:
        for key, value in now.items():
            if found.get(key) != value:
                raise ValueError(
                    f"`out` {self.out} was begun with other {key}. Expected the same model, inputs "
                    f"and options, to go on from the blocks in {self.folder}. To begin anew, call "
                    "with resume=False (command line: --no-resume)."
                )

    def _blocks(self) -> list[Path]:
        """Those that are finished, without a gap from the first on."""
        found = []
        while self._block(len(found)).is_file():
            found.append(self._block(len(found)))
        return found

    def _block(self, number: int) -> Path:
        return self.folder / f"{number:08d}{self.out.suffix.lower()}"

    def _bad(self, number: int) -> Path:
        return self.folder / f"{number:08d}.bad"


@contextmanager
def unfinished(out: Path, columns: Columns) -> Iterator[Unfinished]:
    """The blocks of a file to be, for one process at a time.

    Raises:
        ValueError: another ending than .csv or .parquet, no pyarrow, or another process is at it.
    """
    made = Unfinished(out, columns)
    made.folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(made.folder / "lock", wait=False):
            yield made
    except BlockingIOError:
        raise ValueError(
            f"`out` {out} is being written by another process. Expected one at a time."
        ) from None


def check_out(out: Path, overwrite: bool) -> None:
    """Raise unless the file, and its list of bad inputs, can be written.

    Raises:
        FileExistsError: one is there; without `overwrite` neither is touched.
        ValueError: another ending than .csv or .parquet, or no pyarrow.
    """
    _writer(out, ())
    if not overwrite:
        check_free(out)
        if not folder_of(out).exists():  # else the list is of the run that goes on
            check_free(quarantine_of(out))


def check_free(path: Path) -> None:
    """Raise FileExistsError if there is such a file."""
    if path.exists():
        raise FileExistsError(
            f"`out` {path} exists, and is not overwritten unasked. Call with overwrite=True "
            "(command line: --overwrite), or with another name."
        )


def quarantine_of(out: Path) -> Path:
    """The list of the inputs that could not be used."""
    return out.with_name(out.name + ".quarantine.csv")


def folder_of(out: Path) -> Path:
    """Where blocks are until all are there."""
    return out.with_name(out.name + ".unfinished")


class _Csv:
    def __init__(self, columns: Columns) -> None:
        self._names = [name for name, _ in columns]

    def write(self, path: Path, values: Mapping[str, Any]) -> None:
        frame = pd.DataFrame({name: values[name] for name in self._names})
        frame.to_csv(path, header=False, index=False, lineterminator="\n")

    def join(self, blocks: Sequence[Path], path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(self._names)
        _append(blocks, path)


class _Parquet:
    def __init__(self, columns: Columns) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ValueError(
                "`out` needs pyarrow to become a Parquet file. Install it: pip install "
                "'kerasmtl[parquet]', or write a .csv."
            ) from error
        self._arrow = pyarrow
        types = [
            pyarrow.string() if kind == "str" else pyarrow.from_numpy_dtype(np.dtype(kind))
            for _, kind in columns
        ]
        self._schema = pyarrow.schema(
            [(name, kind) for (name, _), kind in zip(columns, types, strict=True)]
        )

    def write(self, path: Path, values: Mapping[str, Any]) -> None:
        table = self._arrow.table(
            {name: values[name] for name in self._schema.names}, schema=self._schema
        )
        self._arrow.parquet.write_table(table, path)

    def join(self, blocks: Sequence[Path], path: Path) -> None:
        with self._arrow.parquet.ParquetWriter(path, self._schema) as file:
            pending, rows = [], 0
            for block in blocks:
                pending.append(self._arrow.parquet.read_table(block, schema=self._schema))
                rows += pending[-1].num_rows
                if rows >= _GROUP:
                    file.write_table(self._arrow.concat_tables(pending).combine_chunks())
                    pending, rows = [], 0
            if rows:
                file.write_table(self._arrow.concat_tables(pending).combine_chunks())


def _writer(out: Path, columns: Columns) -> Writer:
    kind = out.suffix.lower()
    if kind not in FORMATS:
        raise ValueError(
            f"`out` {out} has another ending. Expected one of {', '.join(FORMATS)}. "
            f"Received: {out.suffix!r}"
        )
    return _Csv(columns) if kind == ".csv" else _Parquet(columns)


def _join_lists(found: Sequence[Path], path: Path) -> int:
    path.write_text(",".join(BAD) + "\n", encoding="utf-8")
    _append(found, path)
    with path.open(newline="", encoding="utf-8") as file:
        return sum(1 for _ in csv.reader(file)) - 1


def _append(parts: Sequence[Path], path: Path) -> None:
    with path.open("ab") as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file)


def _put(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8", newline="")
    _settle(aside, path)


def _settle(aside: Path, path: Path) -> None:
    """Rename, once the disk has it: after a power failure, too, what has the name is whole."""
    with aside.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)
