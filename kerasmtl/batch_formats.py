"""The formats of a batch prediction: blocks, and the file that is made of them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

_GROUP = 2**16  # rows that a Parquet file keeps together

Columns = Sequence[tuple[str, str]]  # name, NumPy type; "str" for text


class Writer(Protocol):
    """One format: a block, and the file made of all blocks."""

    def write(self, path: Path, values: Mapping[str, Any]) -> None: ...

    def join(self, blocks: Sequence[Path], path: Path) -> None: ...


class _Csv:
    def __init__(self, columns: Columns) -> None:
        self._names = [name for name, _ in columns]

    def write(self, path: Path, values: Mapping[str, Any]) -> None:
        frame = pd.DataFrame({name: values[name] for name in self._names})
        path.write_text(csv_lines(frame), encoding="utf-8", newline="")

    def join(self, blocks: Sequence[Path], path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(self._names)
        append(blocks, path)


def csv_lines(frame: pd.DataFrame) -> str:
    """Rows as lines of a CSV, without a header."""
    texts = [frame[name] for name in frame if not pd.api.types.is_numeric_dtype(frame[name])]
    # Python before 3.13 leaves a carriage return bare, which readers take for the end of a line.
    bare = any("\r" in str(cell) for cells in texts for cell in cells)
    quoting = csv.QUOTE_NONNUMERIC if bare else csv.QUOTE_MINIMAL
    return frame.to_csv(header=False, index=False, lineterminator="\n", quoting=quoting)


class _JsonLines:
    """An object by input in a line; a number that is not finite is null."""

    def __init__(self, columns: Columns) -> None:
        self._names = [name for name, _ in columns]

    def write(self, path: Path, values: Mapping[str, Any]) -> None:
        cells = [_as_json(values[name]) for name in self._names]
        with path.open("w", newline="", encoding="utf-8") as file:
            for row in zip(*cells, strict=True):
                line = dict(zip(self._names, row, strict=True))
                file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")

    def join(self, blocks: Sequence[Path], path: Path) -> None:
        path.write_bytes(b"")
        append(blocks, path)


def _as_json(values: Any) -> list[Any]:
    array = np.asarray(values)
    if array.dtype.kind != "f":
        return array.tolist()
    # By way of text: 0.1 of float32 is then 0.1, not 0.10000000149011612.
    return [float(text) if np.isfinite(float(text)) else None for text in array.astype(str)]


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


FORMATS = {".csv": _Csv, ".parquet": _Parquet, ".jsonl": _JsonLines}


def writer_of(out: Path, columns: Columns) -> Writer:
    """What writes a file of this name.

    Raises:
        ValueError: an unknown ending, or no pyarrow for Parquet.
    """
    kind = out.suffix.lower()
    if kind not in FORMATS:
        raise ValueError(
            f"`out` {out} has another ending. Expected one of {', '.join(FORMATS)}. "
            f"Received: {out.suffix!r}"
        )
    return FORMATS[kind](columns)


def append(parts: Sequence[Path], path: Path) -> None:
    """Put files behind one another, at the end of another one."""
    with path.open("ab") as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file)
