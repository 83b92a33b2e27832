"""Files of numbers: CSV, Parquet and NPZ become float32 columns, strictly."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kerasmtl.csv_table import place, read_table
from kerasmtl.listing import check_columns
from kerasmtl.masking import MISSING_CODES
from kerasmtl.narrowing import check_finite, lost_numbers, warn_of_collapse, warn_of_lost

FORMATS = (".csv", ".parquet", ".npz")
_COLUMNS = 20  # how many columns with faults one message lists
_NO_NPZ = (
    *(ValueError, OSError, EOFError, KeyError, TypeError, AttributeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error),
)
_ADVICE = (
    " Leave columns out with ignore=[…] (project.toml: [table] ignore), say what they are with "
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
        FileNotFoundError, ValueError: absent, malformed or text in a column, as in `Table.load`.
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
