"""What a batch prediction reads: pictures or rows, any number of them, piece by piece."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from kerasmtl.batch_paths import PICTURES, is_address, shown, walk
from kerasmtl.csv_table import iter_lines
from kerasmtl.table_files import file_format, read_columns, read_npz

_HASHED = 2**20  # bytes at once


@dataclass(frozen=True)
class Piece:
    """Some inputs in a row: what each is called, its line or None, and where or what it is.

    `paths` of pictures; `features` (inputs, columns) of rows, where `faults` names by position
    those that cannot be used.
    """

    names: list[str]
    lines: list[int | None]
    paths: list[str] = field(default_factory=list)
    features: np.ndarray | None = None
    faults: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)


class PictureInputs:
    """The pictures of folders (with all folders in them, in order of their names) and files.

    Links are followed, but for those that lead back to a folder around them. A folder within that
    cannot be listed counts as one bad input.

    A CSV names pictures in one of its columns, from its own folder on; CSVs and pictures do not
    mix.

    Raises:
        FileNotFoundError: a folder or file is absent.
        ValueError: CSVs among others, or an address (https://…).
    """

    first = "image"

    def __init__(self, sources: Sequence[str], image_column: str = "image") -> None:
        self._sources = list(sources)
        self._column = image_column
        tables = [source for source in sources if source.lower().endswith(".csv")]
        self.has_lines = bool(tables)
        if tables and len(tables) < len(sources):
            raise ValueError(
                "`files` are CSVs and others. Expected either. Received: "
                f"{', '.join(self._sources[:5])}"
            )
        for source in sources:
            if is_address(source):
                raise ValueError(
                    "`files` names an address, and nothing is fetched. Expected files or folders "
                    f"of this machine. Received: {source}"
                )
            if not os.path.exists(source):
                raise FileNotFoundError(f"`files` {source} does not exist.")

    def measure(self) -> tuple[int, str]:
        """How many there are, and a hash over their names, sizes and times.

        Raises:
            ValueError: there are none, or a CSV is malformed.
        """
        whole, count = hashlib.sha256(), 0
        for name, line, path in self._each():
            try:
                status = os.stat(path)
                found = (status.st_size, status.st_mtime_ns)
            except (OSError, ValueError):  # ValueError: no name that a file can have
                found = None
            whole.update(repr((name, line, path, found)).encode())
            count += 1
        if not count:
            raise ValueError(
                f"`files` hold no pictures. Expected {', '.join(PICTURES)}. "
                f"Received: {', '.join(self._sources[:5])}"
            )
        return count, whole.hexdigest()

    def pieces(self, size: int, skip: int = 0) -> Iterator[Piece]:
        """All from position `skip` on, `size` at a time."""
        each = islice(self._each(), skip, None)
        while some := list(islice(each, size)):
            names, lines, paths = zip(*some, strict=True)
            yield Piece(list(names), list(lines), list(paths))

    def _each(self) -> Iterator[tuple[str, int | None, str]]:
        for source in self._sources:
            if os.path.isdir(source):
                for path in walk(source):
                    yield shown(path), None, path
            elif self.has_lines:
                yield from self._listed(Path(source))
            else:
                yield shown(source), None, source

    def _listed(self, source: Path) -> Iterator[tuple[str, int, str]]:
        found = iter_lines(source)
        _, names = next(found)
        at = _position(names, self._column, source, "image_column")
        for line, row in found:
            name = row[at].strip()
            yield name, line, os.path.join(source.parent, name)


class RowInputs:
    """The rows of tables: CSV and Parquet piece by piece, NPZ at once.

    Raises:
        FileNotFoundError, ValueError: a file is absent, or no table.
    """

    has_lines = True

    def __init__(
        self,
        sources: Sequence[str],
        columns: Sequence[str],
        packed_bits: bool = False,
        id_column: str | None = None,
    ) -> None:
        self._sources = [Path(source) for source in sources]
        self._columns = list(columns)
        self._packed_bits = packed_bits
        self._id_column = id_column
        self.first = "row" if id_column is None else "id"
        for source in self._sources:
            file_format(source)

    def measure(self) -> tuple[int, str]:
        """How many rows there are, and a hash over the files.

        Raises:
            ValueError: there are none, a file is malformed or lacks a column.
        """
        whole, count = hashlib.sha256(repr((self._columns, self._id_column)).encode()), 0
        for source in self._sources:
            whole.update(str(source).encode())
            with source.open("rb") as file:
                while part := file.read(_HASHED):
                    whole.update(part)
            count += self._rows_in(source)
        if not count:
            raise ValueError("`files` have no rows. Expected at least one.")
        return count, whole.hexdigest()

    def pieces(self, size: int, skip: int = 0) -> Iterator[Piece]:
        """All from position `skip`, a multiple of `size`, on; `size` at a time."""
        pending: list[tuple[Path, pd.DataFrame]] = []
        waiting = passed = 0
        for source, frame in self._frames(size):
            while len(frame):
                some, frame = frame.iloc[: size - waiting], frame.iloc[size - waiting :]
                pending.append((source, some))
                waiting += len(some)
                if waiting == size:
                    if passed >= skip:
                        yield self._piece(pending)
                    passed += size
                    pending, waiting = [], 0
        if pending and passed >= skip:
            yield self._piece(pending)

    def _piece(self, parts: list[tuple[Path, pd.DataFrame]]) -> Piece:
        names: list[str] = []
        lines: list[int | None] = []
        faults: dict[int, str] = {}
        features = np.empty((sum(len(frame) for _, frame in parts), len(self._columns)), "float32")
        for source, frame in parts:
            start = len(names)
            if self._id_column is None:
                names += [f"{source}:{line}" for line in frame.index]
            else:
                names += [str(cell) for cell in frame[self._id_column]]
            lines += [int(line) for line in frame.index]
            values, wrong = _numbers(frame, self._columns, source)
            features[start : start + len(frame)] = values
            faults |= {start + row: why for row, why in wrong.items()}
        return Piece(names, lines, features=features, faults=faults)

    def _frames(self, size: int) -> Iterator[tuple[Path, pd.DataFrame]]:
        needed = [*self._columns, *([self._id_column] if self._id_column else [])]
        for source in self._sources:
            kind = file_format(source)
            if kind == ".csv":
                frames = _csv_frames(source, needed, size)
            elif kind == ".parquet":
                frames = _parquet_frames(source, needed, size)
            else:
                frames = self._npz_frames(source, needed)
            for frame in frames:
                yield source, frame

    def _npz_frames(self, source: Path, needed: list[str]) -> Iterator[pd.DataFrame]:
        arrays = read_npz(source, self._packed_bits)
        frame = pd.DataFrame(arrays.features, columns=list(arrays.columns), copy=False)
        for name, values in arrays.others.items():
            if name == self._id_column:
                frame[name] = values
        _check_columns(needed, list(frame.columns), source)
        yield frame

    def _rows_in(self, source: Path) -> int:
        needed = [*self._columns, *([self._id_column] if self._id_column else [])]
        kind = file_format(source)
        if kind == ".npz":
            return len(read_npz(source, self._packed_bits).features)
        if kind == ".parquet":
            file = _parquet(source)
            _check_columns(needed, file.schema_arrow.names, source)
            return file.metadata.num_rows
        found = iter_lines(source)
        _check_columns(needed, next(found)[1], source)
        return sum(1 for _ in found)


def _numbers(
    frame: pd.DataFrame, columns: list[str], source: Path
) -> tuple[np.ndarray, dict[int, str]]:
    """The features, and by position why a row cannot be used: halves until it stands alone."""
    try:
        return read_columns(frame, columns, source, advice=""), {}
    except ValueError as error:
        if len(frame) == 1:
            why = str(error).rpartition("Received: ")[2].rstrip(".")
            return np.full((1, len(columns)), np.nan, "float32"), {0: f"no finite number: {why}"}
    half = len(frame) // 2
    first, wrong = _numbers(frame.iloc[:half], columns, source)
    second, more = _numbers(frame.iloc[half:], columns, source)
    return np.concatenate([first, second]), wrong | {half + row: why for row, why in more.items()}


def _csv_frames(source: Path, needed: list[str], size: int) -> Iterator[pd.DataFrame]:
    found = iter_lines(source)
    _, names = next(found)
    at = [_position(names, name, source, "features") for name in needed]
    while some := list(islice(found, size)):
        rows = [[row[position] for position in at] for _, row in some]
        yield pd.DataFrame(rows, columns=needed, index=[line for line, _ in some], dtype=object)


def _parquet_frames(source: Path, needed: list[str], size: int) -> Iterator[pd.DataFrame]:
    start = 0
    for batch in _parquet(source).iter_batches(batch_size=size, columns=needed):
        frame = batch.to_pandas(ignore_metadata=True)
        frame.index = pd.RangeIndex(start, start + len(frame))
        start += len(frame)
        yield frame


def _parquet(source: Path):  # noqa: ANN202 – the type is of an optional package
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(
            f"`path` {source} needs pyarrow to be read. Install it: "
            "pip install 'kerasmtl[parquet]'."
        ) from error
    try:
        return ParquetFile(source)
    except (ArrowException, OSError) as error:
        raise ValueError(f"`path` {source} is no Parquet file. Received: {error}") from None


def _check_columns(needed: Sequence[str], names: Sequence[str], source: Path) -> None:
    for name in needed:
        _position(names, name, source, "features")


def _position(names: Sequence[str], wanted: str, source: Path, argument: str) -> int:
    if wanted in names:
        return list(names).index(wanted)
    raise ValueError(
        f"`{argument}` names a column that {source} lacks: {wanted!r}. Expected one of: "
        f"{list(names)[:100]}"
    )
