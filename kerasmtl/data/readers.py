"""Files of numbers: CSV, Parquet and NPZ become float32 columns, strictly."""

from __future__ import annotations

import codecs
import csv
import os
import warnings
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
from kerasmtl.utils.text import check_columns


def read_table(source: Path, encoding: str) -> pd.DataFrame:
    """All cells as text, indexed by the line they start in; blank lines are left out.

    Raises:
        FileNotFoundError, ValueError: as `iter_lines`, or it has no rows.
    """
    shared = {}.setdefault  # one string for all cells of the same text
    found = iter_lines(source, encoding)
    _, names = next(found)
    rows, lines = [], []
    for line, row in found:
        rows.append(tuple(map(shared, row, row)))
        lines.append(line)
    if not rows:
        raise ValueError(f"`path` {source} has no rows. Expected at least one below the header.")
    return pd.DataFrame(rows, columns=names, index=lines, dtype=object)


def iter_lines(source: Path, encoding: str = "utf-8") -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of each line, the header first; blank lines are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, in another encoding, not comma-separated, has two columns of one
            name, or a line with too few or too many cells; names the line.
    """
    if not source.is_file():
        raise FileNotFoundError(f"`path` {source} is no file. Expected a CSV with a header.")
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
                if len(row) != len(names):
                    _check_blank(row, len(names), line, source)
                elif any(row):
                    yield line, row
                line = reader.line_num + 1
    except (UnicodeError, LookupError) as error:
        raise _wrong_encoding(source, encoding, error) from None
    except csv.Error as error:
        raise ValueError(
            f"`path` {source}, line {line} is malformed: {error}. Expected comma-separated cells, "
            "with every quote closed."
        ) from None


def place(source: str | os.PathLike[str]) -> str:
    """What a row is called in messages: the line of a text file, else the row, from 0."""
    return "row" if Path(source).suffix.lower() in ("", ".npz", ".parquet") else "line"


def _check_blank(row: list[str], expected: int, line: int, source: Path) -> None:
    if "".join(row).strip():
        raise ValueError(
            f"`path` {source}, line {line} has too {'few' if len(row) < expected else 'many'} "
            f"cells. Expected {expected}, as in the header. Received {len(row)}: {row[:5]}"
        )


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
        f"`encoding` {encoding!r} does not read {source} ({error}). Expected the encoding the "
        f"file was written in. Call with encoding={likely!r}, or save the file as UTF-8."
    )


def _check_header(names: list[str], source: Path) -> None:
    if not any(names):
        raise ValueError(f"`path` {source} is empty. Expected a CSV with a header.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"`path` {source} has columns of the same name. Expected distinct names in its header. "
            f"Received twice: {twice}"
        )
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        raise ValueError(
            f"`path` {source} is not comma-separated. Expected commas. Received: {names[0]!r}"
        )


_SHOWN = 5  # how many faults one message lists
_EXACT = 2**24  # up to which float32 holds every whole number


def check_finite(features: np.ndarray, columns: Sequence[str], source: Path | str) -> None:
    """Raise ValueError for an infinite feature; names row and column."""
    infinite = np.argwhere(np.isinf(features))
    if len(infinite):
        shown = "; ".join(f"row {row}, column {columns[at]!r}" for row, at in infinite[:_SHOWN])
        raise ValueError(
            f"`features` in {source} are infinite, or beyond float32, in {len(infinite)} cells. "
            f"Expected numbers, or NaN = missing. Received: {shown}"
        )


def lost_numbers(numbers: np.ndarray) -> tuple[int, int] | None:
    """How many distinct numbers the first rows have, and how many in float32, if too few are left.

    Of whole numbers none may be lost; of others a tenth, since what is measured lies dense.
    """
    known = numbers[:100_000]
    known = known[~np.isnan(known)].astype("float64")
    whole = bool((known == np.round(known)).all())
    if not len(known) or whole and np.abs(known).max() <= _EXACT:
        return None
    before, after = len(pd.unique(known)), len(pd.unique(known.astype("float32")))
    return (before, after) if after < before * (1 if whole else 0.9) else None


def warn_of_collapse(x: np.ndarray, columns: Sequence[str], source: Path) -> None:
    """Warn of columns of a matrix, shape (rows, columns), whose numbers float32 loses."""
    if x.dtype.kind != "b" and x.dtype not in ("float32", "float16") and x.dtype.itemsize > 2:
        lost = {name: lost_numbers(x[:, at].astype("float64")) for at, name in enumerate(columns)}
        warn_of_lost({name: counts for name, counts in lost.items() if counts}, source, 6)


def warn_of_lost(collapsed: dict[str, tuple[int, int]], source: Path, stacklevel: int) -> None:
    """Warn of columns, by name, with how many distinct numbers they had and have left."""
    for name, (before, after) in list(collapsed.items())[:_SHOWN]:
        warnings.warn(
            f"column {name!r} of {source} has numbers that float32 cannot tell apart: {before} "
            f"distinct ones become {after}. Subtract the smallest, or leave the column out.",
            stacklevel=stacklevel,
        )


FORMATS = (".csv", ".parquet", ".npz")
_COLUMNS = 20  # how many columns with faults one message lists
_NO_NPZ = (
    *(ValueError, OSError, EOFError, KeyError, TypeError, AttributeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error),
)
_ADVICE = (
    " Leave columns out with ignore=[…] (project.toml: [input] ignore), say what they are with "
    "group_column=…, id_column=… or split_column=…, name those that count with features=[…], or "
    "turn text into columns of 0 and 1 first: pandas.get_dummies(frame, columns=[…])."
)


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


def file_format(path: Path) -> str:
    """The ending of the file, among `FORMATS`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another ending.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"`path` {path} is no file. Expected a table, one of {', '.join(FORMATS)}."
        )
    if path.suffix.lower() not in FORMATS:
        raise ValueError(
            f"`path` {path} is no table that can be read. Expected a file that ends in one of "
            f"{', '.join(FORMATS)}. Received: {path.suffix!r}"
        )
    return path.suffix.lower()


def read_frame(path: Path, encoding: str = "utf-8") -> pd.DataFrame:
    """The cells of a CSV, as text by line, or of a Parquet file, by row from 0.

    Raises:
        ValueError: the file is malformed or empty, or `pyarrow` is not installed.
    """
    if file_format(path) == ".csv":
        return read_table(path, encoding)
    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except ImportError as error:
        raise ValueError(
            f"`path` {path} needs pyarrow to be read. Install it: pip install 'kerasmtl[parquet]'."
        ) from error
    except Exception as error:  # pyarrow's own errors, which cannot be named without it
        raise ValueError(f"`path` {path} is no Parquet file. Received: {error}") from None
    if not len(frame):
        raise ValueError(f"`path` {path} has no rows. Expected at least one.")
    named = [name for name in frame.index.names if name is not None and name not in frame]
    frame = (frame.reset_index(level=named) if named else frame).reset_index(drop=True)
    return frame.set_axis([str(name) for name in frame.columns], axis=1)


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells as text as in a CSV: a missing one is "", true is 1, false is 0."""

    def text(cell: Any) -> str:
        if not pd.api.types.is_scalar(cell):
            return str(cell)  # a list, which no label is
        if pd.isna(cell):
            return ""
        return str(int(cell)) if isinstance(cell, bool | np.bool_) else str(cell).strip()

    made = {}
    for name in frame:
        cells = frame[name]
        if cells.dtype == object and pd.api.types.infer_dtype(cells, skipna=False) == "string":
            made[name] = cells  # as a CSV is read
            continue
        try:
            codes, distinct = pd.factorize(cells, use_na_sentinel=False)
        except TypeError:  # lists
            made[name] = [text(cell) for cell in cells]
            continue
        made[name] = np.array([*map(text, distinct), ""], dtype=object)[codes]
    return pd.DataFrame(made, index=frame.index, columns=frame.columns, dtype=object)


def read_columns(
    frame: pd.DataFrame, columns: Sequence[str], source: Path, advice: str = _ADVICE
) -> np.ndarray:
    """Cells as numbers, NaN = missing; warns of columns whose numbers float32 cannot tell apart.

    Shapes: returns (rows, columns) float32, of a frame as `read_frame` reads it.

    Raises:
        ValueError: a column is absent, or a cell is text, infinite or beyond float32; names lines
            and columns.
    """
    check_columns("features", columns, frame.columns, source)
    values = np.empty((len(frame), len(columns)), dtype="float32")
    faults, collapsed = [], {}
    for position, name in enumerate(columns):
        numbers, missing = _numbers(frame[name])
        with np.errstate(over="ignore"):
            values[:, position] = numbers
        wrong = np.flatnonzero(~missing & ~np.isfinite(values[:, position]))
        if len(wrong):
            cell = str(frame[name].iloc[wrong[0]])
            faults.append((frame.index[wrong[0]], name, cell[:60], len(wrong)))
        elif lost := lost_numbers(numbers):
            collapsed[name] = lost
    if faults:
        shown = [
            f"{place(source)} {index}, column {name!r}: {cell!r} ({count} such cells)"
            for index, name, cell, count in faults[:_COLUMNS]
        ]
        more = f"; … in {len(faults)} columns" if len(faults) > _COLUMNS else ""
        raise ValueError(
            f"`features` in {source} are no finite numbers. Expected numbers, or one of "
            f"{MISSING_CODES} = missing. Received: {'; '.join(shown)}{more}.{advice}"
        )
    warn_of_lost(collapsed, source, 4)
    return values


def _numbers(cells: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """A column as float64, NaN where it is missing or no number, and a mask of what is missing."""
    if pd.api.types.is_numeric_dtype(cells.dtype):
        numbers = cells.to_numpy(dtype="float64", na_value=np.nan)
        return numbers, np.isnan(numbers)
    text = cells.astype(object).where(cells.notna(), "").map(str).str.strip()
    numbers = pd.to_numeric(text, errors="coerce").to_numpy(dtype="float64")
    missing = text.str.lower().isin(MISSING_CODES).to_numpy()
    return np.where(missing, np.nan, numbers), missing


def _decoded(array: np.ndarray) -> np.ndarray:
    return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array


def read_npz(path: Path, packed_bits: bool = False) -> Arrays:
    """The arrays X and, where the file has them, Y, tasks, columns and others of a cell a row.

    With `packed_bits` the bits of X, as `numpy.packbits(…, axis=1)` packs them, are the columns.

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
            f"`path` {path} is no NPZ of plain arrays. Expected a file of numpy.savez. "
            f"Received: {reason}"
        ) from None
    if "X" not in found:
        raise ValueError(f"`path` {path} has no array X. Received the arrays: {sorted(found)}")
    features = _matrix(found["X"], packed_bits, path)
    rows, width = features.shape
    columns = _names(found, "columns", width, path)
    if columns is None:
        columns = tuple(f"x{number}" for number in range(width))
    labels = found.get("Y")
    if labels is not None and (labels.ndim != 2 or len(labels) != rows):
        raise ValueError(
            f"`path` {path}: the array Y is no matrix of labels. Expected shape ({rows}, tasks). "
            f"Received: {labels.shape}"
        )
    check_finite(features, columns, path)
    if not packed_bits:
        warn_of_collapse(found["X"], columns, path)
    more = {k: array for k, array in found.items() if k not in ("X", "Y", "tasks", "columns")}
    return Arrays(
        features=features,
        columns=columns,
        labels=labels,
        tasks=None if labels is None else _names(found, "tasks", labels.shape[1], path),
        others={name: array for name, array in more.items() if array.shape == (rows,)},
        unfit={name: array.shape for name, array in more.items() if array.shape != (rows,)},
    )


@dataclass(frozen=True, eq=False)
class LabelsFile:
    """The cells of a labels file.

    `cells`: by line of a CSV, all text, or by row from 0 of another file; `tasks` and `features`:
    the columns that an NPZ itself says are labels and numbers, else None; `unfit`: the shapes of
    its arrays that cannot be columns.
    """

    source: Path
    cells: pd.DataFrame
    tasks: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    unfit: dict[str, tuple[int, ...]] = field(default_factory=dict)


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
        if source.suffix.lower() == ".parquet":
            return LabelsFile(source, read_frame(source))
        return LabelsFile(source, read_table(source, encoding))
    arrays = read_npz(source, packed_bits)
    if arrays.labels is None:
        raise ValueError(f"`path` {source} must have an array Y, (rows, tasks), got none")
    tasks = arrays.tasks or tuple(f"y{number}" for number in range(arrays.labels.shape[1]))
    names = [*arrays.columns, *tasks, *arrays.others]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(
            f"`path` {source} must have distinct names of the columns of X, tasks and other "
            f"arrays, got twice {twice[:_SHOWN]}"
        )
    parts = [
        pd.DataFrame(arrays.features, columns=list(arrays.columns), copy=False),
        pd.DataFrame(arrays.labels, columns=list(tasks)),
        pd.DataFrame(arrays.others),
    ]
    return LabelsFile(source, pd.concat(parts, axis=1), tasks, arrays.columns, arrays.unfit)


def read_features(
    path: str | os.PathLike[str],
    columns: Sequence[str],
    packed_bits: bool = False,
    encoding: str = "utf-8",
) -> tuple[np.ndarray, np.ndarray]:
    """The features of a file that may lack labels, for prediction.

    Shapes: (rows, columns) float32, NaN = missing, in the order of `columns`; (rows,) int, the
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


def _matrix(x: np.ndarray, packed_bits: bool, path: Path) -> np.ndarray:
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "biuf":
        raise ValueError(
            f"`path` {path}: the array X is no matrix of numbers. Expected shape (rows, columns). "
            f"Received: shape {x.shape}, {x.dtype}"
        )
    if packed_bits and x.dtype != np.uint8:
        raise ValueError(
            f"`packed_bits` does not fit {path}. Expected X of uint8, as numpy.packbits makes it. "
            f"Received: {x.dtype}. Call with packed_bits=False."
        )
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
            f"`path` {path}: the array {name} does not fit. Expected {count} distinct names. "
            f"Received: shape {array.shape}, {len(set(names))} distinct"
        )
    return names
