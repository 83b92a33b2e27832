"""Predictions for any number of pictures or rows, into a file, that can be interrupted."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import stat
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import tensorflow as tf

from kerasmtl.data.image_files import image_fault
from kerasmtl.data.readers import file_format, iter_lines, read_columns, read_npz
from kerasmtl.serving.predictor import BATCH, Predictor, joined
from kerasmtl.utils.files import file_lock
from kerasmtl.utils.progress import progress_bar
from kerasmtl.utils.tf import as_written

PICTURES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")


def shown(path: str) -> str:
    """A path as text that can be written anywhere."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_address(path: str) -> bool:
    """Whether a path is one on the network: a letter or more, and "://"."""
    scheme, sign, _ = path.partition("://")
    return bool(sign) and scheme.isalnum()


def walk(folder: str, around: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Pictures in a folder, then those of its folders; of one within that is shut, its own path."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        status = os.stat(folder)
    except OSError:
        if not around:
            raise
        yield folder
        return
    around = (*around, (status.st_dev, status.st_ino))
    for entry in entries:
        if entry.name.lower().endswith(PICTURES) and not _is_folder(entry):
            yield entry.path
    for entry in entries:
        if _is_folder(entry) and not _leads_back(entry, around):
            yield from walk(entry.path, around)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _leads_back(entry: os.DirEntry[str], around: tuple[tuple[int, int], ...]) -> bool:
    if not entry.is_symlink():
        return False
    status = entry.stat()
    return (status.st_dev, status.st_ino) in around


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


# What TensorFlow says of bytes that it cannot make a picture of.
_BAD = (tf.errors.InvalidArgumentError, tf.errors.DataLossError, tf.errors.UnimplementedError)

Outputs = dict[str, np.ndarray]


def predict_pieces(
    predictor: Predictor,
    pieces: Iterator[Piece],
    batch_size: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[Piece, Outputs, dict[int, str]]]:
    """By piece the outputs of its good pictures, and by position why the others are bad.

    Reading runs on from one piece to the next; a batch never does, so that a call which goes on
    after an interruption makes the same batches, and gets the same last digits.
    """
    waiting: list[Piece] = []  # handed to TensorFlow, and not whole yet
    failed: list[Exception] = []
    kept: list[tuple[np.ndarray, Outputs]] = []
    whys: dict[int, str] = {}
    first = passed = 0
    for places, batch in _batches(predictor, _remembered(pieces, waiting, failed), batch_size):
        advance(int(places[-1]) + 1 - passed)
        passed = int(places[-1]) + 1
        good, outputs, wrong = _on_good(predictor.call, batch)
        whys |= {int(places[row]): why for row, why in wrong.items()}
        if len(good):
            kept.append((places[good], outputs))
        # In order: of a piece that is passed, what has not come is bad.
        while waiting and passed >= first + len(waiting[0]):
            piece = waiting.pop(0)
            found, kept = _split(kept, first + len(piece))
            yield _finished(piece, first, found, whys)
            first += len(piece)
    if failed:
        raise failed[0]
    for piece in waiting:
        found, kept = _split(kept, first + len(piece))
        yield _finished(piece, first, found, whys)
        first += len(piece)
    advance(first - passed)


def _remembered(
    pieces: Iterator[Piece], waiting: list[Piece], failed: list[Exception]
) -> Iterator[Piece]:
    try:
        for piece in pieces:
            waiting.append(piece)
            yield piece
    except Exception as error:  # which TensorFlow would take for a bad picture, and ignore
        failed.append(error)


def _batches(
    predictor: Predictor, pieces: Iterator[Piece], batch_size: int
) -> Iterator[tuple[np.ndarray, tf.Tensor]]:
    """Positions and pictures, decoded or as bytes; what cannot be read is left out."""

    ends: list[int] = []

    def named() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        start = 0
        for piece in pieces:
            ends.append(start + len(piece))
            rows = [row for row, path in enumerate(piece.paths) if _special(path) is None]
            paths = np.array([os.fsencode(piece.paths[row]) for row in rows], object)
            yield start + np.array(rows, "int64"), paths
            start += len(piece)

    def read(place: tf.Tensor, path: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return place, tf.io.read_file(path)

    kinds = (tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None,), tf.string))
    found = tf.data.Dataset.from_generator(named, output_signature=kinds).unbatch()
    found = found.map(as_written(read), tf.data.AUTOTUNE, deterministic=True).ignore_errors()
    yield from _within(found.batch(batch_size).prefetch(tf.data.AUTOTUNE), ends, batch_size)


def _within(
    found: Iterable[tuple[tf.Tensor, tf.Tensor]], ends: list[int], batch_size: int
) -> Iterator[tuple[np.ndarray, tf.Tensor]]:
    """The same in batches that do not run over the end of a piece."""
    places: np.ndarray = np.empty(0, "int64")
    waiting: list[tf.Tensor] = []
    for more, batch in found:
        places = np.concatenate([places, more.numpy()])
        waiting.append(batch)
        while len(places):
            end = ends[bisect_right(ends, places[0])]
            inside = int(np.searchsorted(places, end))
            if inside < batch_size and inside == len(places):
                break  # more of this piece may come
            whole = waiting[0] if len(waiting) == 1 else tf.concat(waiting, 0)
            count = min(inside, batch_size)
            yield places[:count], whole if count == len(places) else whole[:count]
            places = places[count:]
            waiting = [whole[count:]] if len(places) else []
    if len(places):
        yield places, waiting[0] if len(waiting) == 1 else tf.concat(waiting, 0)


def _on_good(
    call: Callable[[Any], Any], batch: tf.Tensor
) -> tuple[np.ndarray, Outputs, dict[int, str]]:
    """Which of a batch are good, their outputs, and why the others are not.

    A batch that fails is halved until the bad ones stand alone.
    """
    rows = len(batch)
    try:
        return np.arange(rows), dict(call(batch)), {}
    except _BAD as error:
        if rows == 1:
            return np.arange(0), {}, {0: _plain(error)}
    half = rows // 2
    good, outputs, wrong = _on_good(call, batch[:half])
    more, others, worse = _on_good(call, batch[half:])
    whys = wrong | {half + row: why for row, why in worse.items()}
    parts = [part for part in (outputs, others) if part]
    return np.concatenate([good, half + more]), joined(parts), whys


def _split(
    kept: list[tuple[np.ndarray, Outputs]], end: int
) -> tuple[list[tuple[np.ndarray, Outputs]], list[tuple[np.ndarray, Outputs]]]:
    """The batches before a position, and those from it on."""
    before, after = [], []
    for places, outputs in kept:
        at = int(np.searchsorted(places, end))
        if at:
            before.append((places[:at], {name: part[:at] for name, part in outputs.items()}))
        if at < len(places):
            after.append((places[at:], {name: part[at:] for name, part in outputs.items()}))
    return before, after


def _finished(
    piece: Piece,
    first: int,
    found: list[tuple[np.ndarray, Outputs]],
    whys: dict[int, str],
) -> tuple[Piece, Outputs, dict[int, str]]:
    good = {int(place) - first for places, _ in found for place in places}
    bad = {
        row: _why(piece.names[row], piece.paths[row], whys.pop(first + row, None))
        for row in range(len(piece))
        if row not in good
    }
    return piece, joined([outputs for _, outputs in found]), bad


def _why(name: str, path: str, said: str | None) -> str:
    """Why a picture is bad: what Pillow finds, else what TensorFlow said, or says now."""
    if is_address(name):
        return "an address, and nothing is fetched"
    fault = _special(path) or image_fault(path)
    if fault or said:
        return fault or str(said)
    try:
        data = tf.io.read_file(path)
    except tf.errors.OpError as error:
        return _plain(error)
    return f"could not be read at first, and can be now ({len(data.numpy())} bytes)"


def _special(path: str) -> str | None:
    """What a path is that is no file: a pipe, say, on which a reader waits for ever."""
    try:
        mode = os.stat(path).st_mode
    except ValueError:
        return "no name that a file can have"
    except OSError:
        return None  # the reader says why
    if stat.S_ISDIR(mode):
        return "a folder" if os.access(path, os.R_OK | os.X_OK) else "a folder that cannot be read"
    return None if stat.S_ISREG(mode) else "no regular file"


def _plain(error: tf.errors.OpError) -> str:
    text = (error.message or type(error).__name__).strip().splitlines()[0]
    return text.partition("{{")[0].strip()[:300] or type(error).__name__


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


BAD = ("path", "line", "reason")
_RUN = "run.json"
_PUBLISHED = "published.json"


class Unfinished:
    """The blocks of a prediction that is under way, in a folder beside the file to be.

    They belong to one model and one list of inputs, which `identity` tells. Open with
    `unfinished`.
    """

    def __init__(self, out: Path, columns: Columns) -> None:
        self.out = out
        self.folder = folder_of(out)
        self._columns = columns
        self._writer = writer_of(out, columns)
        self._identity: dict[str, Any] = {}

    def begin(self, identity: Mapping[str, Any], resume: bool, total: int) -> int:
        """How many blocks are finished; without `resume` they are removed first.

        Raises:
            ValueError: they belong to another model, or to other inputs.
        """
        record, self._identity = self.folder / _RUN, dict(identity)
        if resume and record.is_file():
            self._compare(json.loads(record.read_text(encoding="utf-8")), dict(identity))
        else:
            self._clear()
            _put(record, json.dumps({**identity, "inputs_found": total}, indent=2))
        return len(self._blocks())

    def published(
        self, identity: Mapping[str, Any], overwrite: bool
    ) -> tuple[Path | None, int] | None:
        """What `publish` returned, where it was killed once the file had its name; else None.

        Raises:
            FileExistsError: the file is of another model, or of other inputs.
        """
        if not _is_published(self.out):
            return None
        said = json.loads((self.folder / _PUBLISHED).read_text(encoding="utf-8"))
        same = said["identity"] == json.loads(json.dumps(identity))
        if overwrite and not same:
            self._clear()
            return None
        shutil.rmtree(self.folder)
        if not same:
            check_free(self.out)
        return (quarantine_of(self.out) if said["bad"] else None), said["bad"]

    def write(
        self, number: int, values: Mapping[str, Any], bad: Sequence[tuple[str, int | None, str]]
    ) -> None:
        """Keep a block, once it is whole: its predictions, and path, line and reason of others."""
        if bad:
            rows = pd.DataFrame(bad, columns=list(BAD), dtype=object)
            _put(self._bad(number), csv_lines(rows))
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
        # From here to the end a killed call is one that is done: see `published`.
        said = {"file": _mark(whole), "identity": self._identity, "bad": count}
        _put(self.folder / _PUBLISHED, json.dumps(said))
        _settle(whole, self.out)
        self._clear(but=_PUBLISHED)
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

    def _clear(self, but: str = "") -> None:
        for path in self.folder.glob("*.*"):  # all but the lock
            if path.name != but:
                path.unlink()

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
        ValueError: an unknown ending, no pyarrow, or another process is at it.
    """
    made = Unfinished(out, columns)
    made.folder.mkdir(parents=True, exist_ok=True)
    try:
        with file_lock(made.folder / "lock", wait=False):
            yield made
    except BlockingIOError:
        raise ValueError(
            f"`out` {out} is being written by another process. Expected one at a time."
        ) from None


def check_out(out: Path, overwrite: bool) -> None:
    """Raise unless the file, and its list of bad inputs, can be written.

    Raises:
        FileExistsError: one is there; without `overwrite` neither is touched.
        ValueError: an unknown ending, or no pyarrow.
    """
    writer_of(out, ())
    if not overwrite:
        if not _is_published(out):
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


def _is_published(out: Path) -> bool:
    """Whether the file is that of a call which was killed before it could tidy up."""
    try:
        said = json.loads((folder_of(out) / _PUBLISHED).read_text(encoding="utf-8"))
        return said["file"] == _mark(out)
    except OSError:
        return False


def _mark(path: Path) -> list[int]:
    """What a file keeps when it is renamed, and another one does not have."""
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def quarantine_of(out: Path) -> Path:
    """The list of the inputs that could not be used."""
    return out.with_name(out.name + ".quarantine.csv")


def folder_of(out: Path) -> Path:
    """Where blocks are until all are there."""
    return out.with_name(out.name + ".unfinished")


def _join_lists(found: Sequence[Path], path: Path) -> int:
    path.write_text(",".join(BAD) + "\n", encoding="utf-8")
    append(found, path)
    with path.open(newline="", encoding="utf-8") as file:
        return sum(1 for _ in csv.reader(file)) - 1


def _put(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8", newline="")
    _settle(aside, path)


def _settle(aside: Path, path: Path) -> None:
    """Rename, once the disk has it: after a power failure, too, what has the name is whole."""
    with aside.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)


BLOCK = 512  # pictures that are lost at most by an interruption
BLOCK_OF_ROWS = 8192

Bad = tuple[str, int | None, str]


@dataclass(frozen=True)
class Done:
    """What a batch prediction did: the file, its rows, how many inputs were bad, and their list.

    `resumed`: inputs that an earlier call had dealt with.
    """

    out: Path
    rows: int
    bad: int
    quarantine: Path | None
    resumed: int


def predict_to_file(
    predictor: Predictor,
    inputs: PictureInputs | RowInputs,
    out: str | os.PathLike[str],
    batch_size: int = BATCH,
    resume: bool = True,
    overwrite: bool = False,
    progress: bool = False,
    block: int | None = None,
) -> Done:
    """Write predictions for all inputs to a CSV, Parquet or JSON lines file, in their order.

    Columns: image, or row or id; line, where the inputs have lines; by task its probability or
    number, and the decision if the model has one; of a multiclass task the likeliest class and
    `task:class`, a probability each. Memory does not depend on the number of inputs.

    Predictions are kept in finished blocks in `<out>.unfinished/` until all are there; the same
    call goes on from them after an interruption. Inputs that cannot be used are listed with the
    reason in `<out>.quarantine.csv`.

    Args:
        predictor: as `model_predictor` or `export_predictor` makes it.
        inputs: pictures or rows, as the predictor takes them.
        out: ends in .csv, .parquet or .jsonl.
        batch_size: inputs in one call of the model.
        resume: False forgets the blocks of an interrupted call.
        overwrite: replace a file of that name.
        progress: show a bar on a terminal.
        block: inputs in a block; by default 512 pictures or 8192 rows.

    Raises:
        FileExistsError: `out` or its list of bad inputs exists; nothing is changed.
        FileNotFoundError: an input file is absent.
        ValueError: no inputs, a wrong batch size or ending, or blocks of another model or of
            other inputs.
    """
    target = Path(out)
    if batch_size < 1:
        raise ValueError(f"`batch_size` is too small. Expected at least 1. Received: {batch_size}")
    check_out(target, overwrite)
    columns = _columns(predictor, inputs)
    total, digest = inputs.measure()
    size = block or (BLOCK if predictor.columns is None else BLOCK_OF_ROWS)
    identity = {"model": predictor.sha256, "inputs": digest, "columns": columns, "block": size}
    bar = progress_bar("predicting", total, progress, transient=False)
    with unfinished(target, columns) as kept, bar as advance:
        before = kept.published(identity, overwrite)
        if before is not None:
            return Done(target, total - before[1], before[1], before[0], total)
        finished = kept.begin(identity, resume, total)
        resumed = min(finished * size, total)
        advance(resumed)
        seen = resumed
        pieces = inputs.pieces(size, skip=finished * size)
        for number, (piece, outputs, bad) in enumerate(
            _predicted(predictor, pieces, batch_size, advance), start=finished
        ):
            kept.write(number, _values(predictor, inputs, piece, outputs, bad), _listed(piece, bad))
            seen += len(piece)
        if seen != total:
            raise ValueError(f"`inputs` changed meanwhile. Expected {total}. Received: {seen}")
        quarantine, count = kept.publish(overwrite)
    return Done(target, total - count, count, quarantine, resumed)


def how_to_go_on(out: str | os.PathLike[str]) -> str:
    """What to tell somebody who has interrupted a prediction."""
    kept = folder_of(Path(out))
    if not kept.is_dir():
        return "Interrupted before anything was predicted."
    return f"Interrupted. What is finished is in {kept}; the same command goes on from there."


def _predicted(
    predictor: Predictor,
    pieces: Iterator[Piece],
    batch_size: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[Piece, dict[str, np.ndarray], dict[int, str]]]:
    """By piece the outputs of its good inputs, and by position why the others are bad."""
    if predictor.columns is None:
        yield from predict_pieces(predictor, pieces, batch_size, advance)
        return
    for piece in pieces:
        good = np.array([row for row in range(len(piece)) if row not in piece.faults], int)
        parts = [
            predictor.call(piece.features[good[start : start + batch_size]])
            for start in range(0, len(good), batch_size)
        ]
        advance(len(piece))
        yield piece, joined(parts), piece.faults


def _columns(predictor: Predictor, inputs: PictureInputs | RowInputs) -> list[list[str]]:
    columns = [[inputs.first, "str"], *([["line", "int64"]] if inputs.has_lines else [])]
    for task in predictor.tasks:
        if task.kind == "multiclass":
            columns.append([task.name, "str"])
            columns += [[f"{task.name}:{label}", "float32"] for label in task.classes]
        else:
            columns.append([task.name, "float32"])
            if task.name in predictor.decided:
                columns.append([f"{task.name}_decision", "int32"])
    names = [name for name, _ in columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"`tasks` give columns of the same name. Received twice: {twice}")
    return columns


def _values(
    predictor: Predictor,
    inputs: PictureInputs | RowInputs,
    piece: Piece,
    outputs: Mapping[str, np.ndarray],
    bad: Mapping[int, str],
) -> dict[str, Any]:
    good = [row for row in range(len(piece)) if row not in bad]
    values: dict[str, Any] = {inputs.first: [piece.names[row] for row in good]}
    if inputs.has_lines:
        values["line"] = np.array([piece.lines[row] for row in good], "int64")
    for task in predictor.tasks:
        found = outputs[task.name] if good else np.empty((0, len(task.classes) or 1), "float32")
        if task.kind == "multiclass":
            labels = np.array(task.classes, object)
            values[task.name] = labels[found.argmax(axis=1)]
            values |= {f"{task.name}:{label}": found[:, n] for n, label in enumerate(labels)}
        else:
            values[task.name] = np.asarray(found, "float32").reshape(len(good))
            if task.name in predictor.decided:
                decided = f"{task.name}_decision"
                values[decided] = np.asarray(outputs[decided] if good else [], "int32")
    return values


def _listed(piece: Piece, bad: Mapping[int, str]) -> list[Bad]:
    return [(piece.names[row], piece.lines[row], bad[row]) for row in sorted(bad)]
