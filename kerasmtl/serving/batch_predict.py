"""Predictions for any number of files or rows, into one file.

`predict_to_file` reads its inputs in parts of a fixed size, the shards, and writes the predictions
for each of them aside and renames them into OUT.parts/. A call that is repeated after an
interruption skips the shards that are there; at the end they are joined into OUT. Memory does not
depend on the number of inputs.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
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
from kerasmtl.utils.files import Shards, atomic_file, file_lock, write_text
from kerasmtl.utils.progress import progress_bar
from kerasmtl.utils.text import check_columns
from kerasmtl.utils.tf import graph_fault
from kerasmtl.utils.validation import check_count

FORMATS = (".csv", ".jsonl", ".parquet")
SHARD, SHARD_OF_ROWS = 512, 8192  # inputs: what an interruption costs at most
ERRORS = ("name", "line", "reason")
# What TensorFlow raises for bytes that cannot be decoded.
_INVALID = (tf.errors.InvalidArgumentError, tf.errors.DataLossError, tf.errors.UnimplementedError)

Columns = Sequence[tuple[str, str]]  # name and NumPy type; "str" for text


class InvalidInputError(Exception):
    """An input that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Chunk:
    """Some inputs: names, lines in a file or None, the paths or cells, and the files to look at."""

    names: list[str]
    lines: list[int] | None
    items: list[str] | pd.DataFrame
    files: list[str]

    def __len__(self) -> int:
        return len(self.names)


class Source(ABC):
    """Inputs without labels, in files; made by `open_source`.

    Attributes:
        first: the heading of the names.
        shard: inputs per shard by default.
        has_lines: whether inputs have lines in a file.
    """

    first: str
    shard: int
    has_lines: bool

    @abstractmethod
    def chunks(self, size: int) -> Iterator[Chunk]:
        """Yield all inputs, at most `size` at a time; twice the same for the same files."""

    @abstractmethod
    def load(self, items: Any) -> np.ndarray:
        """Return raw inputs, (batch, …); raises InvalidInputError."""

    def reason(self, item: Any, error: Exception) -> str:
        """Say why an input was refused."""
        return str(error)

    def measure(self, size: int) -> tuple[int, int, str]:
        """Count inputs and chunks, and hash names, and sizes and times of files.

        Raises:
            FileNotFoundError: a file that was given is absent.
            ValueError: there are no inputs, or a table is malformed or lacks a column.
        """
        whole, total, count = hashlib.sha256(), 0, 0
        for chunk in self.chunks(size):
            states = [_state(file) for file in chunk.files]
            whole.update(repr((chunk.names, chunk.lines, chunk.files, states)).encode())
            total, count = total + len(chunk), count + 1
        if not total:
            raise ValueError("`files` must have at least one input, got none")
        return total, count, whole.hexdigest()


def open_source(files: Sequence[str], input: Input) -> Source:
    """Open files with inputs of a kind.

    Args:
        files: of a kind with `suffixes`, such files, folders of them, or CSVs that list them; of
            other kinds, tables with the columns that the input claims.
        input: what the model takes.

    Raises:
        FileNotFoundError, ValueError: a file is absent, or does not belong there.
    """
    return FileSource(files, input) if input.suffixes else RowSource(files, input)


class FileSource(Source):
    """Files that are inputs: given themselves, in folders, or listed in a column of CSV files.

    Folders are searched with all their subfolders, in order of the names; links are followed. The
    paths in a CSV start from its own folder.
    """

    shard = SHARD

    def __init__(self, files: Sequence[str], input: Input) -> None:
        self._files, self._input, self.first = list(files), input, input.kind
        lists = [file for file in files if file.lower().endswith(".csv")]
        self.has_lines = bool(lists)
        if lists and len(lists) < len(files):
            raise ValueError(f"`files` must be all CSV files or none, got {', '.join(files[:5])}")

    def measure(self, size: int) -> tuple[int, int, str]:
        """See `Source.measure`."""
        for file in self._files:
            if not os.path.exists(file):
                raise FileNotFoundError(f"`files` {file} does not exist.")
        return super().measure(size)

    def chunks(self, size: int) -> Iterator[Chunk]:
        """See `Source.chunks`."""
        each = self._each()
        while some := list(islice(each, size)):
            names, lines, paths = map(list, zip(*some, strict=True))
            yield Chunk(names, lines if self.has_lines else None, paths, paths)

    def load(self, items: list[str]) -> np.ndarray:
        """Return what the input makes of paths; raises InvalidInputError."""
        for path in items:
            if not os.path.isfile(path):  # such as a pipe, which would be waited for
                raise InvalidInputError("not a file" if os.path.exists(path) else "missing")
        try:
            return self._input.load(_absolute(items))
        except OSError as error:
            raise InvalidInputError(f"unreadable ({error.strerror})") from error

    def reason(self, item: str, error: Exception) -> str:
        """Say what is wrong with a file."""
        if isinstance(error, InvalidInputError):
            return str(error)
        fault = self._input.faults(_absolute([item])).get(0)
        return fault or (graph_fault(error) or str(error)).partition(". If it is an image")[0]

    def _each(self) -> Iterator[tuple[str, int | None, str]]:
        for file in self._files:
            if os.path.isdir(file):
                found = find_files(file, self._input.suffixes)
                yield from ((_printable(path), None, path) for path in found)
            elif self.has_lines:
                rows = iter_lines(Path(file))
                _, names = next(rows)
                column = self._input.column
                check_columns("column", [column], names, Path(file))
                at = names.index(column)
                for line, row in rows:
                    yield row[at], line, os.path.join(os.path.dirname(file), row[at].strip())
            else:
                yield _printable(file), None, file


class RowSource(Source):
    """The rows of CSV, Parquet and NPZ files: CSV and Parquet bit by bit, NPZ at once.

    Rows are called by the input's `id_column`, if it has one, or else FILE:LINE.
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
        """See `Source.chunks`; a chunk never has rows of two files."""
        for file in self._files:
            for frame in self._frames(file, size):
                lines = [int(line) for line in frame.index]
                if self._id is None:
                    names = [f"{file}:{line}" for line in lines]
                else:
                    names = [str(cell) for cell in frame[self._id]]
                yield Chunk(names, lines, frame, [str(file)])

    def load(self, items: pd.DataFrame) -> np.ndarray:
        """Return what the input makes of cells; raises InvalidInputError."""
        try:
            return self._input.load(self._input.read(LabelsFile(Path("row"), items), {}).values)
        except ValueError as error:
            reason = str(error).rpartition(", got ")[2].partition(" (1 such")[0].rstrip(".")
            raise InvalidInputError(f"invalid: {reason}") from error

    def _frames(self, file: Path, size: int) -> Iterator[pd.DataFrame]:
        """Yield the needed columns; the index is the line, or the row of files without lines."""
        kind = file_format(file)
        if kind == ".csv":
            rows = iter_lines(file)
            _, names = next(rows)
            check_columns("features", self._columns, names, file)
            at = [names.index(name) for name in self._columns]
            while some := list(islice(rows, size)):
                cells = [[row[position] for position in at] for _, row in some]
                lines = [line for line, _ in some]
                yield pd.DataFrame(cells, columns=self._columns, index=lines, dtype=object)
            return
        if kind == ".parquet":
            frames = _parquet_frames(file, self._columns, size)
        else:
            arrays = read_npz(file, getattr(self._input, "packed_bits", False))
            whole = pd.DataFrame(arrays.features, columns=list(arrays.columns), copy=False)
            others = {n: arrays.others[n] for n in self._columns if n in arrays.others}
            whole = whole.assign(**others)
            check_columns("features", self._columns, whole.columns, file)
            frames = (whole.iloc[at : at + size] for at in range(0, len(whole), size))
        start = 0
        for frame in frames:
            yield frame.set_axis(range(start, start + len(frame)))
            start += len(frame)


def _parquet_frames(file: Path, columns: list[str], size: int) -> Iterator[pd.DataFrame]:
    pyarrow = _pyarrow(file)
    try:
        found = pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"`files` {file} must be a Parquet file, got an error: {error}") from None
    check_columns("features", columns, found.schema_arrow.names, file)
    for batch in found.iter_batches(batch_size=size, columns=columns):
        yield batch.to_pandas(ignore_metadata=True)


def _pyarrow(file: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            f"{file} needs pyarrow. Install it: pip install 'kerasmtl[parquet]', or use CSV."
        ) from error
    return pyarrow


def find_files(folder: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Yield the files in a folder and its subfolders that end in one of `suffixes`, in order.

    Raises:
        OSError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    seen = {os.path.realpath(folder)}
    for root, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = {name: os.path.realpath(os.path.join(root, name)) for name in sorted(folders)}
        folders[:] = [name for name, path in real.items() if path not in seen]  # links may loop
        seen.update(real.values())
        yield from (os.path.join(root, n) for n in sorted(files) if n.lower().endswith(suffixes))


def _printable(path: str) -> str:
    """Return a path as text for files: bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace").replace("\r", "\\r")


def _absolute(paths: list[str]) -> np.ndarray:
    """Return paths for which the folder of the training's images does not count."""
    return np.array([os.path.abspath(path) for path in paths], dtype=object)


def _state(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a name with a null byte
        return None
    return found.st_size, found.st_mtime_ns


def predict_chunk(
    predictor: Predictor, source: Source, chunk: Chunk, batch_size: int
) -> tuple[list[int], Outputs, dict[int, str]]:
    """Predict for a chunk.

    Returns:
        The positions of its valid inputs, their outputs, and by position why others are invalid.
    """
    rows: list[int] = []
    parts: list[Outputs] = []
    reasons: dict[int, str] = {}

    def predict(start: int, end: int) -> None:
        """Predict for some; if that fails, for each half, until invalid inputs are alone."""
        items = chunk.items
        some = items.iloc[start:end] if isinstance(items, pd.DataFrame) else items[start:end]
        try:
            parts.append(dict(predictor.call(source.load(some))))
            rows.extend(range(start, end))
        except (InvalidInputError, *_INVALID) as error:
            if end - start == 1:
                item = None if isinstance(some, pd.DataFrame) else some[0]
                reasons[start] = source.reason(item, error)
            else:
                middle = (start + end) // 2
                predict(start, middle)
                predict(middle, end)

    for start in range(0, len(chunk), batch_size):
        predict(start, min(start + batch_size, len(chunk)))
    names = parts[0] if parts else ()
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in names}
    return rows, outputs, reasons


@dataclass(frozen=True)
class Summary:
    """What `predict_to_file` did.

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
        resume: use the shards of an interrupted call; False starts over.
        overwrite: replace an existing file.
        progress: show a progress bar on a terminal.
        shard_size: inputs per shard; by default 512 images or 8192 rows.

    Raises:
        FileExistsError: `out` or OUT.errors.csv exists; nothing is changed.
        ValueError: no inputs, an unknown ending, or shards of another model or other inputs.
    """
    target = Path(out)
    check_out(target, overwrite)
    batch_size = check_count("batch_size", batch_size or predictor.batch_size)
    size = check_count("shard_size", shard_size or source.shard)
    columns = _columns(predictor, source)
    total, count, digest = source.measure(size)
    identity = {"model": predictor.sha256, "inputs": digest, "columns": columns, "shards": size}
    parts = parts_of(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file_lock(parts.with_name(f"{parts.name}.lock"), wait=False):
            _begin(target, json.loads(json.dumps(identity)), resume)
            shards, errors = Shards(parts, count, target.suffix), Shards(parts, count, ".errors")
            missing, resumed, seen = set(shards.missing()), 0, 0
            with progress_bar("predicting", total, progress, transient=False) as advance:
                for number, chunk in enumerate(source.chunks(size)):
                    if number in missing:
                        rows, outputs, why = predict_chunk(predictor, source, chunk, batch_size)
                        with errors.write(number) as file:
                            _write_errors(file, chunk, why)
                        with shards.write(number) as file:
                            frame = _frame(predictor, source, chunk, rows, outputs)
                            _write(file, frame, columns)
                    else:
                        resumed += len(chunk)
                    seen += len(chunk)
                    advance(len(chunk))
            if seen != total:
                raise ValueError(
                    f"`source` must not change meanwhile, got {seen} of {total} inputs"
                )
            listed, invalid = _publish(target, columns, shards, errors)
            shutil.rmtree(parts)
    except BlockingIOError:
        raise ValueError(f"`out` {out} is being written by another process") from None
    return Summary(target, total - invalid, invalid, listed, resumed)


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
    """Return the folder of the shards."""
    return out.with_name(out.name + ".parts")


def errors_of(out: Path) -> Path:
    """Return the list of the inputs that could not be used."""
    return out.with_name(out.name + ".errors.csv")


def _begin(out: Path, identity: dict[str, Any], resume: bool) -> None:
    """Write down what the shards belong to, or compare it with what is written there."""
    record = parts_of(out) / "run.json"
    if resume and record.is_file():
        found = json.loads(record.read_text(encoding="utf-8"))
        if other := [key for key in identity if found.get(key) != identity[key]]:
            raise ValueError(
                f"`out` {out} was begun with other {', '.join(other)}: use the same model, inputs "
                "and options to continue. To start over, call with resume=False (command line: "
                "--no-resume)."
            )
        return
    shutil.rmtree(parts_of(out), ignore_errors=True)
    write_text(record, json.dumps(identity, indent=1))


def _columns(predictor: Predictor, source: Source) -> list[tuple[str, str]]:
    columns = [(source.first, "str"), *([("line", "int64")] if source.has_lines else [])]
    for task in predictor.tasks:
        if task.kind == "multiclass":
            columns.append((task.name, "str"))
            columns += [(f"{task.name}:{label}", "float32") for label in task.classes]
        else:
            columns.append((task.name, "float32"))
            if task.name in predictor.decided:
                columns.append((task.name + DECISION, "int32"))
    names = [name for name, _ in columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"`tasks` must give columns of different names, got twice {twice}")
    return columns


def _frame(
    predictor: Predictor, source: Source, chunk: Chunk, rows: list[int], outputs: Outputs
) -> pd.DataFrame:
    """Return the predictions for the valid inputs of a chunk, a column each."""
    values: dict[str, Any] = {source.first: [chunk.names[row] for row in rows]}
    if chunk.lines is not None:
        values["line"] = np.array([chunk.lines[row] for row in rows], "int64")
    for task in predictor.tasks:
        found = outputs[task.name] if rows else np.empty((0, len(task.classes) or 1))
        if task.kind == "multiclass":
            values[task.name] = np.array(task.classes, object)[found.argmax(axis=1)]
            values |= {
                f"{task.name}:{label}": found[:, at].astype("float32")
                for at, label in enumerate(task.classes)
            }
        else:
            values[task.name] = np.asarray(found, "float32").reshape(len(rows))
            if task.name in predictor.decided:
                name = task.name + DECISION
                values[name] = np.asarray(outputs[name] if rows else [], "int32")
    return pd.DataFrame(values)


def _write(path: Path, frame: pd.DataFrame, columns: Columns) -> None:
    """Write a shard: CSV without a header, JSON lines, or Parquet."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        pyarrow = _pyarrow(path)
        table = pyarrow.Table.from_pandas(frame, _schema(columns), preserve_index=False)
        pyarrow.parquet.write_table(table, path)
    elif kind == ".csv":
        path.write_text(_csv_lines(frame), encoding="utf-8", newline="")
    else:
        cells = [_json_cells(frame[name].to_numpy()) for name in frame]
        lines = [
            json.dumps(dict(zip(frame, row, strict=True)), ensure_ascii=False, allow_nan=False)
            for row in zip(*cells, strict=True)
        ]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")


def _csv_lines(frame: pd.DataFrame) -> str:
    return frame.to_csv(header=False, index=False, lineterminator="\n")


def _json_cells(values: np.ndarray) -> list[Any]:
    if values.dtype.kind != "f":
        return values.tolist()
    # By way of text: 0.1 of float32 is then 0.1, not 0.10000000149011612. JSON has no NaN.
    return [float(text) if np.isfinite(float(text)) else None for text in values.astype(str)]


def _schema(columns: Columns) -> Any:
    import pyarrow

    kinds = {
        name: pyarrow.string() if kind == "str" else pyarrow.from_numpy_dtype(np.dtype(kind))
        for name, kind in columns
    }
    return pyarrow.schema(list(kinds.items()))


def _write_errors(path: Path, chunk: Chunk, reasons: Mapping[int, str]) -> None:
    rows = [
        (chunk.names[row], chunk.lines[row] if chunk.lines else None, reasons[row])
        for row in sorted(reasons)
    ]
    frame = pd.DataFrame(rows, columns=list(ERRORS), dtype=object)
    path.write_text(_csv_lines(frame), encoding="utf-8", newline="")


def _publish(
    out: Path, columns: Columns, shards: Shards, errors: Shards
) -> tuple[Path | None, int]:
    """Join the shards; returns the list of invalid inputs, and how many it has."""
    listed = errors_of(out)
    with atomic_file(listed) as whole:
        _join(errors.paths(), whole, ERRORS)
        with whole.open(newline="", encoding="utf-8") as file:
            invalid = sum(1 for _ in csv.reader(file)) - 1
    if not invalid:
        listed.unlink()
    with atomic_file(out) as whole:
        if out.suffix.lower() == ".parquet":
            pyarrow = _pyarrow(out)
            with pyarrow.parquet.ParquetWriter(whole, _schema(columns)) as file:
                for path in shards.paths():
                    file.write_table(pyarrow.parquet.read_table(path, schema=_schema(columns)))
        else:
            csv_file = out.suffix.lower() == ".csv"
            _join(shards.paths(), whole, [name for name, _ in columns] if csv_file else None)
    return (listed if invalid else None), invalid


def _join(parts: Sequence[Path], path: Path, header: Sequence[str] | None) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        if header is not None:
            csv.writer(file, lineterminator="\n").writerow(header)
    with path.open("ab") as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file)
