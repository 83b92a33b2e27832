"""Strict readers of labels files: CSV, Parquet and NPZ become cells by line and column."""

from __future__ import annotations

import codecs
import csv
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kerasmtl.tasks import MISSING_CODES
from kerasmtl.utils.text import check_columns, listed, warn

FORMATS = (".csv", ".parquet", ".npz")
_SHOWN = 5  # how many faults a message lists
_COLUMNS = 20  # how many columns with faults a message lists
_EXACT = 2**24  # up to which float32 holds every whole number
_NO_NPZ = (
    *(ValueError, OSError, EOFError, KeyError, TypeError, AttributeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error),
)
_ADVICE = (
    " Leave columns out with ignore=[…] (project.toml: [input] ignore), say what they are with "
    "group_column=…, id_column=… or split_column=…, name those that count with features=[…], or "
    "turn text into columns of 0 and 1 first: pandas.get_dummies(frame, columns=[…])."
)


@dataclass(frozen=True, eq=False)
class LabelsFile:
    """The cells of a labels file.

    Attributes:
        source: the file.
        cells: by line of a CSV (header = 1), all text, or by row from 0 of another file.
        tasks: the columns that an NPZ itself says are labels, else None.
        features: the columns that an NPZ itself says are numbers to learn from, else None.
        unfit: the shapes of arrays in an NPZ that cannot be columns.
    """

    source: Path
    cells: pd.DataFrame
    tasks: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    unfit: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Arrays:
    """What an NPZ holds; what it lacks is None.

    Shapes: features (rows, columns) float32; labels (rows, tasks); columns and tasks of str; others
    (rows,) each. `unfit`: the shapes of further arrays.
    """

    features: np.ndarray
    columns: tuple[str, ...]
    labels: np.ndarray | None
    tasks: tuple[str, ...] | None
    others: dict[str, np.ndarray]
    unfit: dict[str, tuple[int, ...]]


def place(source: str | os.PathLike[str]) -> str:
    """What a row is called in messages: the line of a text file, else the row, from 0."""
    return "row" if Path(source).suffix.lower() in ("", ".npz", ".parquet") else "line"


def file_format(path: Path) -> str:
    """Return the suffix of a file, one of `FORMATS`.

    Raises:
        FileNotFoundError: the file is absent.
        ValueError: another suffix.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be a file that exists, got {path}")
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"`path` must be a file that ends in one of {FORMATS}, got {path}")
    return path.suffix.lower()


def read_labels_file(
    source: Path, encoding: str = "utf-8", packed_bits: bool = False
) -> LabelsFile:
    """Read the cells of an NPZ with the arrays X and Y, of a Parquet file, or else of a CSV.

    Raises:
        FileNotFoundError, ValueError: absent or malformed; `packed_bits` of another file.
    """
    if source.suffix.lower() != ".npz":
        if packed_bits:
            raise ValueError(f"`packed_bits` must be False but for NPZ files, got {source}")
        return LabelsFile(source, read_frame(source, encoding))
    arrays = read_npz(source, packed_bits)
    if arrays.labels is None:
        raise ValueError(f"`path` {source} must have an array Y, (rows, tasks), got none")
    tasks = arrays.tasks or tuple(f"y{number}" for number in range(arrays.labels.shape[1]))
    names = Counter([*arrays.columns, *tasks, *arrays.others])
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        raise ValueError(
            f"`path` {source} must have distinct names of the columns of X, tasks and other "
            f"arrays, got twice {listed(twice)}"
        )
    parts = [
        pd.DataFrame(arrays.features, columns=list(arrays.columns), copy=False),
        pd.DataFrame(arrays.labels, columns=list(tasks)),
        pd.DataFrame(arrays.others),
    ]
    return LabelsFile(source, pd.concat(parts, axis=1), tasks, arrays.columns, arrays.unfit)


def read_frame(path: Path, encoding: str = "utf-8") -> pd.DataFrame:
    """Read the cells of a Parquet file, by row from 0, or else of a CSV, as text by line.

    Raises:
        FileNotFoundError: the file is absent.
        ValueError: it is malformed or empty, or `pyarrow` is not installed.
    """
    if path.suffix.lower() != ".parquet":
        return read_table(path, encoding)
    file_format(path)
    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except ImportError as error:
        raise ValueError(
            f"`path` {path} needs pyarrow to be read. Install it: pip install 'kerasmtl[parquet]'."
        ) from error
    except Exception as error:  # pyarrow's own errors, which cannot be named without it
        raise ValueError(f"`path` {path} must be a Parquet file, got {error}") from None
    if not len(frame):
        raise ValueError(f"`path` {path} must have rows, got none")
    named = [name for name in frame.index.names if name is not None and name not in frame]
    frame = (frame.reset_index(level=named) if named else frame).reset_index(drop=True)
    return frame.set_axis([str(name) for name in frame.columns], axis=1)


def read_table(source: Path, encoding: str) -> pd.DataFrame:
    """Read the cells of a CSV as text, indexed by the line they start in; see `iter_lines`."""
    shared = {}.setdefault  # one string for all cells of the same text
    found = iter_lines(source, encoding)
    _, names = next(found)
    rows, lines = [], []
    for line, row in found:
        rows.append(tuple(map(shared, row, row)))
        lines.append(line)
    if not rows:
        raise ValueError(f"`path` {source} must have rows below the header, got none")
    return pd.DataFrame(rows, columns=names, index=lines, dtype=object)


def iter_lines(source: Path, encoding: str = "utf-8") -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of each line of a CSV, the header first, without blank lines.

    Raises:
        FileNotFoundError: the file is absent.
        ValueError: it is empty, in another encoding, not comma-separated, has two columns of one
            name, or a line with too few or too many cells; names the line.
    """
    if not source.is_file():
        raise FileNotFoundError(f"`path` must be a CSV that exists, got {source}")
    utf8 = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    line = 1
    try:
        with source.open(newline="", encoding="utf-8-sig" if utf8 else encoding) as file:
            # Not pandas: it fills short lines up, and counts a cell of two lines as one.
            reader = csv.reader(file, strict=True)
            names = [name.strip() for name in next((row for row in reader if any(row)), [])]
            _check_header(names, source)
            yield reader.line_num, names
            line = reader.line_num + 1
            for row in reader:
                if len(row) == len(names):
                    if any(row):
                        yield line, row
                elif "".join(row).strip():
                    raise ValueError(
                        f"`path` {source}, line {line}, must have {len(names)} cells, as the "
                        f"header, got too {'few' if len(row) < len(names) else 'many'}, "
                        f"{len(row)}: {row[:5]}"
                    )
                line = reader.line_num + 1
    except (UnicodeError, LookupError) as error:
        raise _wrong_encoding(source, encoding, error) from None
    except csv.Error as error:
        raise ValueError(
            f"`path` {source}, line {line}, must be comma-separated cells, with every quote "
            f"closed, got one that is malformed: {error}"
        ) from None


def _check_header(names: list[str], source: Path) -> None:
    if not any(names):
        raise ValueError(f"`path` {source} must be a CSV with a header, got an empty file")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"`path` {source} must have distinct columns, got twice {twice}")
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        raise ValueError(f"`path` {source} must be comma-separated, got {names[0]!r}")


def _wrong_encoding(source: Path, encoding: str, error: Exception) -> ValueError:
    data = source.read_bytes()
    if isinstance(error, UnicodeDecodeError):  # its position is that in a block of the file
        try:
            data.decode(encoding)
        except UnicodeDecodeError as again:
            line = data.count(b"\n", 0, again.start) + 1
            error = ValueError(f"line {line}, byte {again.start}: {again.reason}")
    likely = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "latin-1"
    return ValueError(
        f"`encoding` must be the one {source} was written in, got {encoding!r} ({error}). Call "
        f"with encoding={likely!r}, or save the file as UTF-8."
    )


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells as text as in a CSV: a missing one is "", true is 1, false is 0."""

    def text(cell: Any) -> str:
        if not pd.api.types.is_scalar(cell):
            return str(cell)  # a list, which is not a label
        if pd.isna(cell):
            return ""
        return str(int(cell)) if isinstance(cell, bool | np.bool_) else str(cell).strip()

    def is_text(cells: pd.Series) -> bool:
        is_object = cells.dtype == object
        return is_object and pd.api.types.infer_dtype(cells, skipna=False) == "string"

    typed = [name for name in frame if not is_text(frame[name])]
    if not typed:
        return frame  # as a CSV is read
    made = {name: frame[name] for name in frame if name not in typed}
    for name in typed:
        cells = frame[name]
        try:
            codes, distinct = pd.factorize(cells, use_na_sentinel=False)
        except TypeError:  # lists
            made[name] = [text(cell) for cell in cells]
            continue
        made[name] = np.array([*map(text, distinct), ""], dtype=object)[codes]
    return pd.DataFrame(made, index=frame.index, columns=frame.columns, dtype=object)


def read_features(
    path: str | os.PathLike[str],
    columns: Sequence[str],
    packed_bits: bool = False,
    encoding: str = "utf-8",
) -> tuple[np.ndarray, np.ndarray]:
    """Read the numbers of a file that may lack labels, for prediction.

    Returns:
        (rows, columns) float32, NaN = missing, in the order of `columns`; and (rows,) int, the
        lines of a CSV (header = 1) or the rows of another file, from 0.

    Raises:
        FileNotFoundError, ValueError: absent or malformed, or text in a column.
    """
    source = Path(path)
    if file_format(source) == ".npz":
        arrays = read_npz(source, packed_bits)
        frame = pd.DataFrame(arrays.features, columns=list(arrays.columns), copy=False)
    else:
        frame = read_frame(source, encoding)
    advice = " Write a number there, or leave the cell empty."
    return read_columns(frame, columns, source, advice), frame.index.to_numpy()


def read_columns(
    frame: pd.DataFrame, columns: Sequence[str], source: Path, advice: str = _ADVICE
) -> np.ndarray:
    """Read cells as numbers; warns of columns whose numbers float32 cannot tell apart.

    Args:
        frame: as `read_frame` reads it.
        columns: whose cells.
        source: the file, for messages.
        advice: the end of the message.

    Returns:
        (rows, columns) float32, NaN = missing.

    Raises:
        ValueError: a column is absent, or a cell is text, infinite or beyond float32; names lines
            and columns.
    """
    check_columns("features", columns, frame.columns, source)
    values = np.empty((len(frame), len(columns)), dtype="float32")
    faults = []
    for position, name in enumerate(columns):
        numbers, missing = _numbers(frame[name])
        with np.errstate(over="ignore"):
            values[:, position] = numbers
        wrong = np.flatnonzero(~missing & ~np.isfinite(values[:, position]))
        if len(wrong):
            cell = str(frame[name].iloc[wrong[0]])[:60]
            line = f"{place(source)} {frame.index[wrong[0]]}"
            faults.append(f"{line}, column {name!r}: {cell!r} ({len(wrong)} such cells)")
        else:
            _warn_of_lost(numbers, name, source)
    if faults:
        more = f"; … in {len(faults)} columns" if len(faults) > _COLUMNS else ""
        raise ValueError(
            f"`features` in {source} must be finite numbers, or one of {MISSING_CODES} = missing, "
            f"got {'; '.join(faults[:_COLUMNS])}{more}.{advice}"
        )
    return values


def _numbers(cells: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """A column as float64, NaN where it is missing or not a number, and where it is missing."""
    if pd.api.types.is_numeric_dtype(cells.dtype):
        numbers = cells.to_numpy(dtype="float64", na_value=np.nan)
        return numbers, np.isnan(numbers)
    text = cells.astype(object).where(cells.notna(), "").map(str).str.strip()
    numbers = pd.to_numeric(text, errors="coerce").to_numpy(dtype="float64")
    missing = text.str.lower().isin(MISSING_CODES).to_numpy()
    return np.where(missing, np.nan, numbers), missing


def _warn_of_lost(numbers: np.ndarray, name: str, source: Path) -> None:
    """Warn of a column that has fewer distinct numbers in float32.

    Of whole numbers none may be lost; of others a tenth, since measurements are dense.
    """
    known = numbers[:100_000]
    known = known[~np.isnan(known)].astype("float64")
    whole = bool((known == np.round(known)).all())
    if not len(known) or (whole and np.abs(known).max() <= _EXACT):
        return
    before, after = len(pd.unique(known)), len(pd.unique(known.astype("float32")))
    if after < before * (1 if whole else 0.9):
        warn(
            f"column {name!r} of {source} has numbers that float32 cannot tell apart: {before} "
            f"distinct ones become {after}. Subtract the smallest, or leave the column out."
        )


def check_finite(features: np.ndarray, columns: Sequence[str], source: Path | str) -> None:
    """Raise ValueError for an infinite feature; names row and column."""
    infinite = np.argwhere(np.isinf(features))
    if len(infinite):
        shown = "; ".join(f"row {row}, column {columns[at]!r}" for row, at in infinite[:_SHOWN])
        raise ValueError(
            f"`features` in {source} must be numbers that float32 holds, or NaN = missing, got "
            f"{len(infinite)} infinite cells: {shown}"
        )


def read_npz(path: Path, packed_bits: bool = False) -> Arrays:
    """Read the array X and, where the file has them, Y, tasks, columns and others.

    Args:
        path: of the file.
        packed_bits: whether the bits of X, as `numpy.packbits(…, axis=1)` packs them, are the
            columns.

    Raises:
        ValueError: no X, an array of another shape or of text, or an infinite value; names row and
            column.
    """
    file_format(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: _decoded(file[name]) for name in file.files}
    except _NO_NPZ as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, AttributeError | TypeError):
            reason = "a single array, as numpy.save writes it"
        raise ValueError(
            f"`path` {path} must be an NPZ of plain arrays, as numpy.savez writes it, got {reason}"
        ) from None
    if "X" not in found:
        raise ValueError(f"`path` {path} must have an array X, got {sorted(found)}")
    features = _matrix(found["X"], packed_bits, path)
    rows, width = features.shape
    columns = _names(found, "columns", width, path) or tuple(f"x{at}" for at in range(width))
    labels = found.get("Y")
    if labels is not None and (labels.ndim != 2 or len(labels) != rows):
        raise ValueError(
            f"`path` {path}: the array Y must be of shape ({rows}, tasks), got {labels.shape}"
        )
    check_finite(features, columns, path)
    exact = packed_bits or found["X"].dtype.kind == "b" or found["X"].dtype.itemsize <= 2
    if not exact and found["X"].dtype != "float32":
        for at, name in enumerate(columns):
            _warn_of_lost(found["X"][:, at].astype("float64"), name, path)
    more = {k: array for k, array in found.items() if k not in ("X", "Y", "tasks", "columns")}
    return Arrays(
        features=features,
        columns=columns,
        labels=labels,
        tasks=None if labels is None else _names(found, "tasks", labels.shape[1], path),
        others={name: array for name, array in more.items() if array.shape == (rows,)},
        unfit={name: array.shape for name, array in more.items() if array.shape != (rows,)},
    )


def _decoded(array: np.ndarray) -> np.ndarray:
    return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array


def _matrix(x: np.ndarray, packed_bits: bool, path: Path) -> np.ndarray:
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "biuf":
        raise ValueError(
            f"`path` {path}: the array X must be numbers of shape (rows, columns), got shape "
            f"{x.shape}, {x.dtype}"
        )
    if packed_bits and x.dtype != np.uint8:
        raise ValueError(f"`packed_bits` must be False for X of {x.dtype} in {path}, got True")
    with np.errstate(over="ignore"):
        return (np.unpackbits(x, axis=1) if packed_bits else x).astype("float32")


def _names(
    found: dict[str, np.ndarray], name: str, count: int, path: Path
) -> tuple[str, ...] | None:
    array = found.get(name)
    if array is None:
        return None
    names = tuple(str(text) for text in array.ravel())
    if array.shape != (count,) or len(set(names)) != count:
        raise ValueError(
            f"`path` {path}: the array {name} must be {count} distinct names, got shape "
            f"{array.shape}, {len(set(names))} distinct"
        )
    return names
