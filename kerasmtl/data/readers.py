"""Strict readers of labels files: the cells of a CSV, a Parquet file or an NPZ, by line and column.

A CSV is read as text, so that nothing is guessed: what a cell means is decided by
`kerasmtl.data.labels` (labels) and by `read_columns` (numbers). `Input.open` reads whole files for
training; `batch_predict` reads CSVs line by line with `iter_lines`, and `serving.client` reads rows
with `read_features`. Every error names the file and, where there is one, the line.
"""

from __future__ import annotations

import codecs
import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kerasmtl.tasks import MISSING_CODES
from kerasmtl.utils.text import check_columns, listed, shortened, warn

FORMATS = (".csv", ".parquet", ".npz")
_EXACT = 2**24  # up to which float32 holds every whole number
_ADVICE = (
    ". Leave columns out with ignore=[…] (project.toml: [input] ignore), say what they are with "
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


def place(source: str | os.PathLike[str]) -> str:
    """Return what a row is called in messages: the line of a text file, else the row, from 0."""
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

    Args:
        source: the file; a suffix other than .npz and .parquet is taken for that of a CSV.
        encoding: of a CSV.
        packed_bits: of an NPZ, whether the bits of X are the columns.

    Raises:
        FileNotFoundError: the file is absent.
        ValueError: it is malformed, or `packed_bits` is set for a file that is not an NPZ.
    """
    if source.suffix.lower() != ".npz":
        if packed_bits:
            raise ValueError(f"`packed_bits` must be False but for NPZ files, got {source}")
        return LabelsFile(source, read_frame(source, encoding))
    file = read_npz(source, packed_bits)
    if file.tasks is None:
        raise ValueError(f"`path` {source} must have an array Y, (rows, tasks), got none")
    return file


def _check_distinct(names: Sequence[str], source: Path) -> None:
    """Raise ValueError for two columns of one name."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"`path` {source} must have distinct columns, got twice {listed(twice)}")


def read_frame(path: Path, encoding: str = "utf-8") -> pd.DataFrame:
    """Read the cells of a Parquet file, by row from 0, or else of a CSV, as text by line.

    Args:
        path: of the file.
        encoding: of a CSV.

    Returns:
        (rows, columns), columns named by text; the index is the line (header = 1) or the row.

    Raises:
        FileNotFoundError: the file is absent.
        ValueError: it is malformed or empty, or `pyarrow` is not installed.
    """
    if path.suffix.lower() != ".parquet":
        return _read_csv(path, encoding)
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
    # pandas stores a named index, such as "id", outside of the columns: it becomes one again.
    named = [name for name in frame.index.names if name is not None and name not in frame]
    frame = (frame.reset_index(level=named) if named else frame).reset_index(drop=True)
    return frame.set_axis([str(name) for name in frame.columns], axis=1)


def _read_csv(source: Path, encoding: str) -> pd.DataFrame:
    """Return the cells of a CSV as text, indexed by line."""
    shared = {}.setdefault  # one string for all cells of the same text
    (_, names), *found = (
        (line, tuple(map(shared, row, row))) for line, row in iter_lines(source, encoding)
    )
    if not found:
        raise ValueError(f"`path` {source} must have rows below the header, got none")
    lines, rows = zip(*found, strict=True)
    return pd.DataFrame(list(rows), columns=names, index=list(lines), dtype=object)


def iter_lines(source: Path, encoding: str = "utf-8") -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of each line of a CSV, the header first, without blank lines.

    Args:
        source: the file; it is read line by line, and never in memory as a whole.
        encoding: of its text; for UTF-8 a byte order mark, as Excel writes it, is skipped.

    Yields:
        The line at which the row begins, from 1, and its cells; those of the header are stripped.

    Raises:
        FileNotFoundError: the file is absent.
        ValueError: it is empty, in another encoding, not comma-separated, has two columns of one
            name, or a line with too few or too many cells; names the line.
    """
    if not source.is_file():
        raise FileNotFoundError(f"`path` must be a CSV file that exists, got {source}")
    utf8 = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    line = 1
    try:
        with source.open(newline="", encoding="utf-8-sig" if utf8 else encoding) as file:
            # Not pandas: it fills short lines up, and counts a cell of two lines as one.
            reader = csv.reader(file, strict=True)
            names = [name.strip() for name in next((row for row in reader if any(row)), [])]
            if not any(names):
                raise ValueError(f"`path` {source} must be a CSV with a header, got an empty file")
            _check_distinct(names, source)
            if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
                raise ValueError(f"`path` {source} must be comma-separated, got {names[0]!r}")
            yield reader.line_num, names
            # A quoted cell may hold line breaks: a row begins one line after the one where the last
            # row ended.
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


def _wrong_encoding(source: Path, encoding: str, error: Exception) -> ValueError:
    """Return the error for bytes that are not in this encoding; names line and a likely one."""
    data, said = source.read_bytes(), str(error)
    if isinstance(error, UnicodeDecodeError):  # its position is that in a block of the file
        try:
            data.decode(encoding)
        except UnicodeDecodeError as whole:
            line = data.count(b"\n", 0, whole.start) + 1
            said = f"line {line}, byte {whole.start}: {whole.reason}"
    likely = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "latin-1"
    return ValueError(
        f"`encoding` must be the one {source} was written in, got {encoding!r} ({said}). Call "
        f"with encoding={likely!r}, or save the file as UTF-8."
    )


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the cells as text, as a CSV has them: "" for missing, 1 for true, 0 for false.

    Args:
        frame: (rows, columns) of any type, such as a Parquet file has.

    Returns:
        (rows, columns) of str, with the same index and columns.
    """

    def text(cell: Any) -> str:
        if not pd.api.types.is_scalar(cell):
            return str(cell)  # a list, which is not a label
        if pd.isna(cell):
            return ""
        return str(int(cell)) if isinstance(cell, bool | np.bool_) else str(cell).strip()

    def column(cells: pd.Series) -> Any:
        if pd.api.types.infer_dtype(cells, skipna=False) == "string":
            return cells
        try:
            codes, distinct = pd.factorize(cells, use_na_sentinel=False)
        except TypeError:  # lists cannot be hashed
            return cells.map(text)
        return np.array([*map(text, distinct)], dtype=object)[codes]

    made = {name: column(frame[name]) for name in frame}
    return pd.DataFrame(made, index=frame.index, columns=frame.columns, dtype=object)


def read_features(
    path: str | os.PathLike[str],
    columns: Sequence[str],
    packed_bits: bool = False,
    encoding: str = "utf-8",
) -> tuple[np.ndarray, np.ndarray]:
    """Read the numbers of a file that may lack labels, for prediction.

    Args:
        path: of a CSV, Parquet or NPZ file.
        columns: which ones, in the order of the result.
        packed_bits: of an NPZ, whether the bits of X are the columns.
        encoding: of a CSV.

    Returns:
        (rows, columns) float32, NaN = missing, in the order of `columns`; and (rows,) int, the
        lines of a CSV (header = 1) or the rows of another file, from 0.

    Raises:
        FileNotFoundError: the file is absent.
        ValueError: it is malformed, or a column has text.
    """
    source = Path(path)
    npz = file_format(source) == ".npz"
    frame = read_npz(source, packed_bits).cells if npz else read_frame(source, encoding)
    advice = ". Write a number there, or leave the cell empty."
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
        cells = frame[name]
        if pd.api.types.is_numeric_dtype(cells.dtype):
            numbers = cells.to_numpy(dtype="float64", na_value=np.nan)
            missing = np.isnan(numbers)
        else:
            text = cells.astype(object).where(cells.notna(), "").map(str).str.strip()
            missing = text.str.lower().isin(MISSING_CODES).to_numpy()
            numbers = pd.to_numeric(text, errors="coerce").to_numpy(dtype="float64")
            numbers = np.where(missing, np.nan, numbers)
        # What is beyond float32 becomes infinite here, and is then found with what was infinite
        # before.
        with np.errstate(over="ignore"):
            values[:, position] = numbers
        wrong = np.flatnonzero(~missing & ~np.isfinite(values[:, position]))
        if len(wrong):
            line, cell = frame.index[wrong[0]], str(cells.iloc[wrong[0]])[:60]
            where = f"{place(source)} {line}, column {name!r}"
            faults.append(f"{where}: {cell!r} ({len(wrong)} such cells)")
        else:
            _warn_of_lost(numbers, name, source)
    if faults:
        raise ValueError(
            f"`features` in {source} must be finite numbers, or one of {MISSING_CODES} = missing, "
            f"got {shortened(faults, 20)}{advice}"
        )
    return values


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


def read_npz(path: Path, packed_bits: bool = False) -> LabelsFile:
    """Read an NPZ: the array X and, where the file has them, Y, tasks, columns and others.

    Args:
        path: of the file.
        packed_bits: whether the bits of X, as `numpy.packbits(…, axis=1)` packs them, are the
            columns.

    Returns:
        Its columns, with `tasks` None if there is no Y.

    Raises:
        ValueError: no X, an array of another shape or of text, or two columns of one name.
    """
    file_format(path)
    try:
        # A pickle runs code when it is read; a file from a stranger must not.
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except Exception as error:  # NumPy, zipfile and zlib each raise errors of their own
        raise ValueError(
            f"`path` {path} must be an NPZ of plain arrays, as numpy.savez writes it, got "
            f"{type(error).__name__}: {error}"
        ) from None
    found = {k: np.char.decode(v, "utf-8") if v.dtype.kind == "S" else v for k, v in found.items()}
    if "X" not in found:
        raise ValueError(f"`path` {path} must have an array X, got {sorted(found)}")
    x = found.pop("X")
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "biuf":
        raise ValueError(
            f"`path` {path}: the array X must be numbers of shape (rows, columns), got shape "
            f"{x.shape}, {x.dtype}"
        )
    if packed_bits and x.dtype != np.uint8:
        raise ValueError(f"`packed_bits` must be False for X of {x.dtype} in {path}, got True")
    x = np.unpackbits(x, axis=1) if packed_bits else x
    rows, width = x.shape
    y = found.pop("Y", np.empty((rows, 0)))
    if y.ndim != 2 or len(y) != rows:
        raise ValueError(
            f"`path` {path}: the array Y must be of shape ({rows}, tasks), got {y.shape}"
        )
    columns = _names(found, "columns", "x", width, path)
    tasks = _names(found, "tasks", "y", y.shape[1], path)
    fit = {name: array for name, array in found.items() if array.shape == (rows,)}
    _check_distinct([*columns, *tasks, *fit], path)
    cells = pd.concat(
        [pd.DataFrame(x, columns=columns), pd.DataFrame(y, columns=tasks), pd.DataFrame(fit)],
        axis=1,
    )
    unfit = {name: array.shape for name, array in found.items() if name not in fit}
    return LabelsFile(path, cells, tuple(tasks) or None, tuple(columns), unfit)


def _names(
    found: dict[str, np.ndarray], name: str, letter: str, count: int, path: Path
) -> list[str]:
    """Take the names of `count` columns out of the arrays, or number them: x0, x1 and so on."""
    array = found.pop(name, None)
    if array is None or not count:
        return [f"{letter}{number}" for number in range(count)]
    names = [str(text) for text in array.ravel()]
    if array.shape != (count,) or len(set(names)) != count:
        raise ValueError(
            f"`path` {path}: the array {name} must be {count} distinct names, got shape "
            f"{array.shape}, {len(set(names))} distinct"
        )
    return names
