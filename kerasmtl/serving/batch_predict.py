"""Predictions for any number of files or rows, into one file.

`predict_to_file` reads its inputs in chunks, and writes the predictions for each of them, a shard,
aside and renames it into OUT.parts/. A shard is named by a hash of the model and of its inputs: a
call that is repeated after an interruption computes those that are not there, and whatever has
changed meanwhile. At the end they are joined into OUT. Memory does not depend on the number of
inputs.

    open_source -> FileSource or RowSource -> chunks -> predict_chunk -> shards -> _join -> OUT

A source knows how inputs are found, named and loaded; the `Predictor` only sees arrays. The command
`kerasmtl predict` calls `predict_to_file` with --out; without it, it prints what `predict_chunk`
returns and writes nothing.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from kerasmtl.data.inputs import Input
from kerasmtl.data.readers import LabelsFile, file_format, iter_lines, read_npz
from kerasmtl.export.description import DECISION
from kerasmtl.serving.predictor import Outputs, Predictor
from kerasmtl.utils.files import atomic_file, file_lock
from kerasmtl.utils.progress import progress_bar
from kerasmtl.utils.text import check_columns
from kerasmtl.utils.tf import error_text
from kerasmtl.utils.validation import check_count

FORMATS = (".csv", ".jsonl", ".parquet")
SHARD, SHARD_OF_ROWS = 512, 8192  # inputs: what an interruption costs at most
ERRORS = {"name": "str", "line": "str", "reason": "str"}
# What TensorFlow raises for bytes that cannot be decoded.
# Other errors, such as too little memory, are not the fault of an input and end the call: a
# repeated call then finds the shards that are finished.
_INVALID = (tf.errors.InvalidArgumentError, tf.errors.DataLossError, tf.errors.UnimplementedError)


class InvalidInputError(Exception):
    """An input that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Chunk:
    """Some inputs, in their order.

    Attributes:
        names: what they are called beside their predictions.
        lines: where they are listed in a file; None if they are files themselves.
        items: what a source loads: paths, or cells with a row each.
        files: the files whose size and time tell whether the inputs have changed.
    """

    names: list[str]
    lines: list[int] | None
    items: list[str] | pd.DataFrame
    files: list[str]

    def __len__(self) -> int:
        """Return the number of inputs."""
        return len(self.names)


class FileSource:
    """Files that are inputs: given themselves, in folders, or listed in a column of CSV files.

    Folders are searched with all their subfolders, in order of the names; links are followed. The
    paths in a CSV start from its own folder.

    Args:
        files: such files, folders of them, or CSVs that list them.
        input: what the model takes; of a kind with `suffixes`.

    Attributes:
        first: the heading of the names.
        shard: inputs per shard by default.
        has_lines: whether inputs are listed in a file, and so have lines.

    Raises:
        ValueError: CSV files and others are mixed.
    """

    shard = SHARD

    def __init__(self, files: Sequence[str], input: Input) -> None:
        self._files, self._input, self.first = list(files), input, input.kind
        lists = [file for file in files if file.lower().endswith(".csv")]
        self.has_lines = bool(lists)
        if lists and len(lists) < len(files):
            raise ValueError(f"`files` must be all CSV files or none, got {', '.join(files[:5])}")

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Yield all inputs, at most `size` at a time.

        Folders and lists are read as chunks are asked for, and not all at once.

        Args:
            size: inputs per chunk; only the last one has fewer.

        Raises:
            OSError: a folder or a list cannot be read.
            ValueError: a CSV file is malformed or lacks the column of the files.
        """
        each = self._each()
        while some := list(islice(each, size)):
            names, lines, paths = map(list, zip(*some, strict=True))
            yield Chunk(names, lines if self.has_lines else None, paths, paths)

    def load(self, items: list[str]) -> np.ndarray:
        """Read a batch of files.

        Args:
            items: paths, absolute or from the working folder.

        Returns:
            What the input makes of them, (batch, …), such as the bytes of images.

        Raises:
            InvalidInputError: one of them is missing, not a file or unreadable.
        """
        for path in items:
            if not os.path.isfile(path):  # a pipe, for example, would block
                raise InvalidInputError("not a file" if os.path.exists(path) else "missing")
        try:
            return self._input.load(_absolute(items))
        except OSError as error:
            raise InvalidInputError(f"unreadable ({error.strerror})") from error

    def reason(self, items: list[str], error: Exception) -> str:
        """Say why an input was refused.

        Args:
            items: its path alone.
            error: what `load` or the model raised; the input's own check of the file, which is made
                again, is preferred to a message of TensorFlow's.
        """
        if isinstance(error, InvalidInputError):
            return str(error)
        return self._input.faults(_absolute(items)).get(0) or error_text(error)

    def _each(self) -> Iterator[tuple[str, int | None, str]]:
        """Yield name, line and path of each input."""
        for file in self._files:
            if os.path.isdir(file):
                found = find_files(file, self._input.suffixes)
                yield from ((_printable(path), None, path) for path in found)
            elif self.has_lines:
                rows = iter_lines(Path(file))
                _, names = next(rows)
                # The header is checked per file, since each CSV may have its columns in another
                # order.
                column = self._input.column
                check_columns("column", [column], names, Path(file))
                at = names.index(column)
                for line, row in rows:
                    yield row[at], line, os.path.join(os.path.dirname(file), row[at].strip())
            else:
                yield _printable(file), None, file


class RowSource:
    """The rows of CSV, Parquet and NPZ files: CSV and Parquet piece by piece, NPZ at once.

    Rows are called by the input's `id_column`, if it has one, or else FILE:LINE. Has the methods
    and attributes of `FileSource`.

    Args:
        files: tables with the columns that the input claims.
        input: what the model takes.

    Raises:
        FileNotFoundError, ValueError: a file is absent, or ends in another suffix.
    """

    has_lines = True
    shard = SHARD_OF_ROWS

    def __init__(self, files: Sequence[str], input: Input) -> None:
        self._files, self._input = [Path(file) for file in files], input.like(input)
        self._id = getattr(input, "id_column", None)
        self._columns = list(dict.fromkeys(name for n in input.claimed().values() for name in n))
        self.first = "row" if self._id is None else "id"
        for file in self._files:
            file_format(file)

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Yield all rows, at most `size` at a time, and never of two files together.

        Args:
            size: rows per chunk.

        Raises:
            ValueError: a file is malformed, or lacks a column that the model needs.
        """
        for file in self._files:
            for frame in self._frames(file, size):
                lines = frame.index.tolist()
                names = [f"{file}:{line}" for line in lines]
                if self._id is not None:
                    names = [str(cell) for cell in frame[self._id]]
                yield Chunk(names, lines, frame, [str(file)])

    def load(self, items: pd.DataFrame) -> np.ndarray:
        """Convert a batch of cells to the numbers that the model takes.

        Args:
            items: one row per input, with the columns of the model; of CSV files as text.

        Returns:
            What the input makes of them, (batch, …).

        Raises:
            InvalidInputError: a cell is invalid; the message is the part that does not depend on
                the file.
        """
        try:
            with warnings.catch_warnings(action="ignore"):  # they are for training, not per batch
                values = self._input.read(LabelsFile(Path("row"), items), {}).values
            return self._input.load(values)
        except ValueError as error:
            # The reader's message is about a whole file ("`column` of FILE must …, got …"). Here
            # the name and line of the row are columns of their own, so that only what was found is
            # kept.
            reason = str(error).rpartition(", got ")[2].partition(" (1 such")[0].rstrip(".")
            raise InvalidInputError(f"invalid: {reason}") from error

    def reason(self, items: pd.DataFrame, error: Exception) -> str:
        """Say why a row was refused, which the error of `load` does already."""
        return error_text(error)

    def _frames(self, file: Path, size: int) -> Iterator[pd.DataFrame]:
        """Yield the needed columns; the index is the line, or the row of files without lines."""
        kind, needed = file_format(file), self._columns
        if kind == ".csv":
            rows = iter_lines(file)
            _, names = next(rows)
            check_columns("features", needed, names, file)
            while some := list(islice(rows, size)):
                lines, cells = map(list, zip(*some, strict=True))
                yield pd.DataFrame(cells, lines, names, dtype=object)[needed]
            return
        start = 0
        read = self._npz_frames if kind == ".npz" else self._parquet_frames
        for frame in read(file, size):
            yield frame.set_axis(range(start, start + len(frame)))
            start += len(frame)

    def _npz_frames(self, file: Path, size: int) -> Iterator[pd.DataFrame]:
        """Yield slices of an NPZ file, which NumPy can only read as a whole."""
        whole = read_npz(file, getattr(self._input, "packed_bits", False)).cells
        check_columns("features", self._columns, whole.columns, file)
        return (whole.iloc[at : at + size] for at in range(0, len(whole), size))

    def _parquet_frames(self, file: Path, size: int) -> Iterator[pd.DataFrame]:
        """Yield the batches of a Parquet file; only the needed columns are read from the disk."""
        pyarrow = _pyarrow(file)
        try:
            found = pyarrow.parquet.ParquetFile(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"`files` {file} must be a Parquet file, got: {error}") from None
        check_columns("features", self._columns, found.schema_arrow.names, file)
        # Without pandas' metadata, which could turn a column into the index of the frame.
        batches = found.iter_batches(batch_size=size, columns=self._columns)
        return (batch.to_pandas(ignore_metadata=True) for batch in batches)


Source = FileSource | RowSource


def open_source(files: Sequence[str], input: Input) -> Source:
    """Open inputs without labels, of whatever kind the model takes.

    Args:
        files: of kinds with `suffixes` as `FileSource` takes them, of others as `RowSource` does.
        input: what the model takes.

    Raises:
        FileNotFoundError, ValueError: a file is absent, or of another kind.
    """
    return FileSource(files, input) if input.suffixes else RowSource(files, input)


def find_files(folder: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Yield the files in a folder and its subfolders that end in one of `suffixes`, in order.

    Links are followed, but not back to a folder that has been searched.

    Args:
        folder: where to search.
        suffixes: in lower case, with the dot; files are compared without regard to case.

    Raises:
        OSError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:  # `os.walk` would leave the folder out
        raise error

    seen = {os.path.realpath(folder)}
    for root, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = {name: os.path.realpath(os.path.join(root, name)) for name in sorted(folders)}
        # In place: `os.walk` goes into what is left in the list, in its order.
        folders[:] = [name for name, path in real.items() if path not in seen]
        seen.update(real.values())
        yield from (os.path.join(root, n) for n in sorted(files) if n.lower().endswith(suffixes))


def _printable(path: str) -> str:
    """Return a path as text for files: bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace").replace("\r", "\\r")


def _absolute(paths: list[str]) -> np.ndarray:
    """Return paths for which the folder of the training's images does not count."""
    return np.array([os.path.abspath(path) for path in paths], dtype=object)


def predict_chunk(
    predictor: Predictor, source: Source, chunk: Chunk, batch_size: int
) -> tuple[list[int], Outputs, dict[int, str]]:
    """Predict for a chunk; a batch that fails is halved until its invalid inputs are alone.

    Args:
        predictor: of the model.
        source: the one that the chunk is from.
        chunk: the inputs.
        batch_size: inputs in one call of the model.

    Returns:
        The positions of the valid inputs, their outputs by name, (valid, …), and by position why
        the others are invalid.
    """
    rows: list[int] = []
    parts: list[Outputs] = []
    reasons: dict[int, str] = {}

    def predict(start: int, end: int) -> None:
        items = getattr(chunk.items, "iloc", chunk.items)[start:end]
        try:
            parts.append(dict(predictor.call(source.load(items))))
            rows.extend(range(start, end))
        except (InvalidInputError, *_INVALID) as error:
            if end - start == 1:
                reasons[start] = source.reason(items, error)
            else:
                middle = (start + end) // 2
                predict(start, middle)
                predict(middle, end)

    for start in range(0, len(chunk), batch_size):
        predict(start, min(start + batch_size, len(chunk)))
    # Where all inputs are invalid, there are no outputs, and their names are not known either.
    names = parts[0] if parts else ()
    return rows, {n: np.concatenate([part[n] for part in parts]) for n in names}, reasons


@dataclass(frozen=True)
class Summary:
    """The result of `predict_to_file`.

    Attributes:
        out: the file.
        rows: how many predictions it has.
        invalid: how many inputs could not be used.
        errors: the list of those, or None.
        resumed: how many inputs an earlier call had dealt with.
    """

    out: Path
    rows: int
    invalid: int
    errors: Path | None
    resumed: int


def predict_to_file(
    predictor: Predictor,
    source: Source,
    out: str | os.PathLike[str],
    batch_size: int | None = None,
    resume: bool = True,
    overwrite: bool = False,
    progress: bool = False,
    shard_size: int | None = None,
) -> Summary:
    """Write predictions for all inputs to a CSV, Parquet or JSON lines file, in their order.

    Columns: "image", or "row" or "id"; "line", where inputs have lines; by task its probability or
    number, and "<task>_decision" if the model decides; of a multiclass task the likeliest class,
    and "<task>:<class>", the probability of each. Inputs that cannot be used are listed with line
    and reason in OUT.errors.csv.

    Args:
        predictor: of the model.
        source: the inputs, of the kind that the predictor takes.
        out: the file; ends in .csv, .parquet or .jsonl.
        batch_size: inputs in one call of the model.
        resume: use the shards of an interrupted call that had the same model and inputs; False
            starts over.
        overwrite: replace an existing file.
        progress: show a progress bar on a terminal.
        shard_size: inputs per shard; by default 512 files or 8192 rows.

    Raises:
        FileExistsError: `out` or OUT.errors.csv exists; nothing is changed.
        ValueError: no inputs, an unknown ending, a table that is malformed or lacks a column, or
            another process is writing `out`.
    """
    target = Path(out)
    check_out(target, overwrite)
    batch_size = check_count("batch_size", batch_size or predictor.batch_size)
    size = check_count("shard_size", shard_size or source.shard)
    columns = _columns(predictor, source)
    # Listed twice: once to be counted, which finds malformed files before the model is called, and
    # once to be predicted. Nothing but the counts is kept.
    total = sum(map(len, source.chunks(size)))
    if not total:
        raise ValueError("`files` must have at least one input, got none")
    parts = parts_of(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shards: list[Path] = []
    resumed = 0
    try:
        # Two processes with the same OUT would remove each other's shards at the end.
        with file_lock(parts.with_name(f"{parts.name}.lock"), wait=False):
            if not resume:
                shutil.rmtree(parts, ignore_errors=True)
            with progress_bar("predicting", total, progress, transient=False) as advance:
                for chunk in source.chunks(size):
                    shards.append(parts / f"{_key(predictor, columns, chunk)}.npz")
                    if shards[-1].is_file():
                        resumed += len(chunk)
                    else:
                        found = predict_chunk(predictor, source, chunk, batch_size)
                        with atomic_file(shards[-1]) as file:
                            np.savez(file, *_shard(predictor, columns, chunk, *found))
                    advance(len(chunk))
            # Both files are complete or absent. The shards are removed last: until then a call that
            # is interrupted can be repeated without any call of the model.
            errors = errors_of(target)
            with atomic_file(target) as whole, atomic_file(errors) as listed:
                invalid = _join(shards, columns, whole, listed)
            if not invalid:
                errors.unlink()
            shutil.rmtree(parts)
    except BlockingIOError:
        raise ValueError(f"`out` {out} is being written by another process") from None
    return Summary(target, total - invalid, invalid, errors if invalid else None, resumed)


def check_out(out: Path, overwrite: bool) -> None:
    """Raise unless a file, and its list of invalid inputs, can be written.

    Raises:
        FileExistsError: one exists, and `overwrite` is False.
        ValueError: an unknown ending, or no pyarrow for Parquet.
    """
    kind = out.suffix.lower()
    if kind not in FORMATS:
        raise ValueError(f"`out` must end in {', '.join(FORMATS)}, got {str(out)!r}")
    if kind == ".parquet":
        _pyarrow(out)
    for path in (out, errors_of(out)):
        if path.exists() and not overwrite:
            raise FileExistsError(
                f"`out` must be a new file, got {path}, which exists. Call with overwrite=True "
                "(command line: --overwrite), or use another name."
            )


def parts_of(out: Path) -> Path:
    """Return the folder of the shards.

    Example:
        >>> parts_of(Path("p.csv")).name, errors_of(Path("p.csv")).name
        ('p.csv.parts', 'p.csv.errors.csv')
    """
    return out.with_name(out.name + ".parts")


def errors_of(out: Path) -> Path:
    """Return the list of the inputs that could not be used."""
    return out.with_name(out.name + ".errors.csv")


def _key(predictor: Predictor, columns: Mapping[str, str], chunk: Chunk) -> str:
    """Return a hash of all that determines a shard: model, inputs, and the state of their files.

    Size and time of modification stand for the content, as in make: to hash images would cost as
    much as to predict for them.
    """

    def state(path: str) -> tuple[int, int] | None:
        try:
            found = os.stat(path)
        except (OSError, ValueError):  # ValueError: a name with a null byte
            return None
        return found.st_size, found.st_mtime_ns

    inputs = (chunk.names, chunk.lines, chunk.files, [state(file) for file in chunk.files])
    return hashlib.sha256(repr((predictor.sha256, columns, inputs)).encode()).hexdigest()[:32]


def _columns(predictor: Predictor, source: Source) -> dict[str, str]:
    """Return the NumPy type of each column by its name, "str" for text."""
    found = [(source.first, "str"), *([("line", "int64")] if source.has_lines else [])]
    for task in predictor.tasks:
        found.append((task.name, "str" if task.kind == "multiclass" else "float32"))
        found += [(f"{task.name}:{label}", "float32") for label in task.classes]
        if task.name in predictor.decided:
            found.append((task.name + DECISION, "int32"))
    names = [name for name, _ in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"`tasks` must give columns of different names, got twice {twice}")
    return dict(found)


def _shard(
    predictor: Predictor,
    columns: Mapping[str, str],
    chunk: Chunk,
    rows: Sequence[int],
    outputs: Outputs,
    reasons: Mapping[int, str],
) -> list[np.ndarray]:
    """Return the columns of the predictions, (valid,) each, and of the errors, (invalid,) each."""
    lines = chunk.lines or [""] * len(chunk)
    values: list[Any] = [[chunk.names[row] for row in rows]]
    if chunk.lines is not None:
        values.append([lines[row] for row in rows])
    for task in predictor.tasks if rows else ():
        found = outputs[task.name]
        if task.kind == "multiclass":
            values += [np.array(task.classes)[found.argmax(axis=1)], *found.T]
        else:
            values.append(found.reshape(len(rows)))
        if task.name in predictor.decided:
            values.append(outputs[task.name + DECISION])
    # The number of arrays is the same in every shard, since `_join` finds them by their position.
    values += [()] * (len(columns) - len(values))  # nothing is valid
    bad = sorted(reasons)
    values += [[each[row] for row in bad] for each in (chunk.names, lines, reasons)]
    kinds = [*columns.values(), *ERRORS.values()]
    return [np.array(cells, kind) for cells, kind in zip(values, kinds, strict=True)]


def _join(shards: Iterable[Path], columns: Mapping[str, str], out: Path, errors: Path) -> int:
    """Write predictions and errors of all shards; return the number of errors."""
    invalid, width = 0, len(columns)
    with _writer(out, columns) as write, _writer(errors, ERRORS) as write_errors:
        for shard in shards:
            with np.load(shard) as file:
                arrays = [file[f"arr_{at}"] for at in range(width + len(ERRORS))]
            write(pd.DataFrame(dict(zip(columns, arrays[:width], strict=True))))
            write_errors(pd.DataFrame(dict(zip(ERRORS, arrays[width:], strict=True))))
            invalid += len(arrays[-1])
    return invalid


@contextmanager
def _writer(path: Path, columns: Mapping[str, str]) -> Iterator[Callable[[pd.DataFrame], Any]]:
    """Open a file, and yield a function that appends rows to it."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        pyarrow, schema = _pyarrow(path), _schema(columns)
        with pyarrow.parquet.ParquetWriter(path, schema) as parquet:
            yield lambda rows: parquet.write_table(
                pyarrow.Table.from_pandas(rows, schema, preserve_index=False)
            )
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        if kind == ".jsonl":
            yield lambda rows: file.write(_json_lines(rows))
        else:
            csv.writer(file, lineterminator="\n").writerow(columns)
            yield lambda rows: rows.to_csv(file, header=False, index=False, lineterminator="\n")


def _json_lines(rows: pd.DataFrame) -> str:
    """Write rows as one JSON object per line, each with a line break."""

    def cells(values: np.ndarray) -> list[Any]:
        if values.dtype.kind != "f":
            return values.tolist()
        # By way of text: 0.1 of float32 is then 0.1, not 0.10000000149011612. JSON has no NaN.
        return [float(text) if np.isfinite(float(text)) else None for text in values.astype(str)]

    plain = [cells(rows[name].to_numpy()) for name in rows]
    records = (dict(zip(rows, row, strict=True)) for row in zip(*plain, strict=True))
    return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)


def _schema(columns: Mapping[str, str]) -> Any:
    """Return the Arrow schema of the columns, which is the same for shards without valid inputs."""
    import pyarrow

    kinds = {"str": pyarrow.string()}
    return pyarrow.schema(
        [(n, kinds.get(kind) or pyarrow.from_numpy_dtype(kind)) for n, kind in columns.items()]
    )


def _pyarrow(file: Path) -> Any:
    """Import pyarrow, or say how to install it for `file`; it is an optional dependency."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            f"{file} needs pyarrow. Install it: pip install 'kerasmtl[parquet]', or use CSV."
        ) from error
    return pyarrow
