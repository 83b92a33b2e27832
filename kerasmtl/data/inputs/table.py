"""`Table`, the input kind of rows of numbers.

The values of a manifest are the model input itself, (rows, columns) float32. What needs care is
which columns count: a column of labels that is learned from by mistake gives perfect and useless
scores, so that doubtful ones are an error (`Table.infer_tasks`) or a warning (`_warn_of_labels`).
"""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from kerasmtl.data.duplicates import row_keys
from kerasmtl.data.inputs.base import Input, Rows, Signature
from kerasmtl.data.labels import infer_tasks, is_missing, read_labels
from kerasmtl.data.readers import (
    LabelsFile,
    as_text,
    file_format,
    place,
    read_columns,
    read_labels_file,
)
from kerasmtl.tasks import Task
from kerasmtl.utils.text import check_columns, listed, warn

if TYPE_CHECKING:
    import tensorflow as tf

MOST_NAMED = 100  # columns; a table of more is served as a matrix
_EXAMPLES = 3
_UNNAMED = re.compile(r"(Unnamed: \d+)?")  # what pandas writes, and reads again, for its index


@dataclass(frozen=True)
class Table(Input):
    """Rows of numbers, NaN = missing: model input is (batch, columns) float32.

    Args:
        features: the columns to learn from; by default all that are nothing else, which must be
            numbers. Columns without a name or without a known value are left out, with a warning.
        ignore: columns that are neither features nor tasks.
        id_column: the column with the names of the rows; by default they are numbered. Rows of one
            name are merged, with a warning, if they do not contradict each other.
        packed_bits: of an NPZ, the bits of X are the columns (`numpy.packbits(…, axis=1)`).

    Example:
        >>> import kerasmtl as kt
        >>> kt.data.Table(ignore=["date"], id_column="patient")
        Table(features=(), ignore=('date',), id_column='patient', packed_bits=False)
    """

    kind: ClassVar[str] = "table"
    settings: ClassVar[frozenset[str]] = frozenset({"input_dropout", "batch_norm", "indicators"})
    raw_signature: ClassVar[str] = "matrix"
    model_signature: ClassVar[str] = "matrix"

    features: Sequence[str] = ()
    ignore: Sequence[str] = ()
    id_column: str | None = None
    packed_bits: bool = False

    def __post_init__(self) -> None:
        for argument in ("features", "ignore"):
            names = getattr(self, argument) or ()
            if isinstance(names, str):
                raise ValueError(
                    f"`{argument}` must be a list of columns, got {names!r}. Call with "
                    f"{argument}=[{names!r}]."
                )
            object.__setattr__(self, argument, tuple(names))
        twice = [name for name, count in Counter(self.features).items() if count > 1]
        if twice:
            raise ValueError(f"`features` must be distinct columns, got twice {listed(twice)}")

    def open(self, source: Path, encoding: str = "utf-8") -> LabelsFile:
        """Read the cells of a CSV, a Parquet file, or an NPZ with the arrays X and Y.

        Args:
            source: the file; its suffix says which of them it is.
            encoding: of a CSV.

        Raises:
            FileNotFoundError: the file is absent.
            ValueError: another suffix, or the file is malformed.
        """
        file_format(source)
        return read_labels_file(source, encoding, self.packed_bits)

    def claimed(self) -> dict[str, tuple[str, ...]]:
        """Return the features, and the column of the names."""
        names = () if self.id_column is None else (self.id_column,)
        return {"features": self.features, "id_column": names}

    def infer_tasks(self, cells: pd.DataFrame, source: Path) -> tuple[Task, ...]:
        """Find all columns of 0, 1 and missing.

        A feature may be a column of 0 and 1, too. Where `features` names none, columns with missing
        values cannot be told from complete ones, of which some may be features.

        Args:
            cells: (rows, columns) of the columns that nothing else claims.
            source: the file, for messages.

        Raises:
            ValueError: some may be features, or there are none.
        """
        text = as_text(cells)
        found = infer_tasks(text, source)
        if self.features:
            return found
        labels = read_labels(text[[task.name for task in found]], found, source)[1]
        names, partly = np.array([task.name for task in found]), np.isnan(labels).any(axis=0)
        some, full = names[partly].tolist(), names[~partly].tolist()
        if some and full:
            raise ValueError(
                f"`tasks` cannot be told from features in {source}: of its columns of 0 and 1, "
                f"{listed(some)} have missing values, and {listed(full)} have none. Name those to "
                f"learn: tasks={some[:20]} (command line: --task)."
            )
        return found

    def read(self, file: LabelsFile, taken: set[str]) -> Rows:
        """Read the features as float32; warns of columns that look like labels or are empty.

        Args:
            file: the cells of the labels file.
            taken: its columns that are tasks, splits or groups, and thus not features.

        Returns:
            This input with the names of its columns; values (rows, columns) float32, NaN = missing;
            and the names of the rows, None without `id_column`.

        Raises:
            ValueError: no column is left, a cell is not a number, or a row has no name.
        """
        named = self.features or tuple(n for n in file.features or () if n not in self.ignore)
        others = {*taken, *self.ignore, self.id_column}
        chosen = named or _usable(file, [name not in others for name in file.cells])
        if not chosen:
            raise ValueError(f"`features` must be at least one column of {file.source}, got none")
        values = read_columns(file.cells, chosen, file.source)
        if not named:
            _warn_of_labels(values, chosen, file.source)
        names = None if self.id_column is None else _read_names(file, self.id_column)
        return Rows(replace(self, features=chosen), values, names)

    def adopt(self, values: Any) -> tuple[Table, np.ndarray]:
        """Take a matrix of numbers; unnamed columns are called x0, x1 and so on.

        Args:
            values: (rows, columns), NaN = missing.

        Returns:
            This input with the names of its columns, and the values, (rows, columns) float32.

        Raises:
            ValueError: another shape, names that do not fit it, or numbers beyond float32.
        """
        matrix = np.asarray(values)
        if matrix.ndim != 2 or not matrix.shape[1]:
            raise ValueError(f"`values` must be of shape (rows, columns), got {matrix.shape}")
        names = self.features or tuple(f"x{n}" for n in range(matrix.shape[1]))
        if len(names) != matrix.shape[1]:
            raise ValueError(
                f"`features` must name the {matrix.shape[1]} columns of `values`, got {len(names)}"
            )
        cells = pd.DataFrame(matrix, columns=list(names))
        return replace(self, features=names), read_columns(cells, names, Path("arrays"))

    def like(self, trained: Input) -> Table:
        """Return the input of the training: other columns are not read."""
        super().like(trained)
        return replace(trained, ignore=())

    def identical(self, values: np.ndarray) -> np.ndarray:
        """Return the same number for the same features, (rows,) uint64; missing ones are alike."""
        return row_keys(values, self.features)

    def columns(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Return the features by name."""
        return {name: values[:, at] for at, name in enumerate(self.features)}

    def select(self, values: np.ndarray, trained: Input) -> np.ndarray:
        """Return the columns of the training, in its order.

        Args:
            values: (rows, columns) of this input.
            trained: the input of the model.

        Returns:
            (rows, columns of the training) float32.

        Raises:
            ValueError: a column is absent.
        """
        check_columns("features", trained.features, self.features, Path("arrays"))
        return values[:, [self.features.index(name) for name in trained.features]]

    @property
    def spec(self) -> tf.TensorSpec:
        """The spec of (batch, columns) float32, NaN = missing."""
        import tensorflow as tf

        return tf.TensorSpec((None, len(self.features)), tf.float32)

    @property
    def arguments(self) -> dict[str, str] | None:
        """The argument of each column in the signature `columns`; None if there are too many.

        TensorFlow takes letters, digits and "_"; names that it would take for the same (`a b`,
        `a_b`) leave the matrix only, too. Words of Python cannot name an argument.
        """
        names = {}
        for column in self.features:
            plain = re.sub(r"\W", "_", column, flags=re.ASCII)
            free = plain[:1].isalpha() and not keyword.iskeyword(plain) and plain != "self"
            names[column] = plain if free else f"column_{plain}"
        # TensorFlow compares names in a graph without case: `A` beside `a` would become `A_1`.
        distinct = len({name.lower() for name in names.values()}) == len(self.features)
        return names if distinct and len(self.features) <= MOST_NAMED else None

    def signatures(self) -> list[Signature]:
        """Return `columns`, one argument each, the default up to 100 columns; and `matrix`."""
        import tensorflow as tf

        arguments = self.arguments

        def rows(seed: int) -> np.ndarray:
            drawn = np.random.default_rng(seed).normal(size=(_EXAMPLES, len(self.features)))
            return drawn.round(3).astype("float32")

        def gaps(seed: int) -> dict[str, np.ndarray]:
            # Only here: JSON has no word for a missing value that all servers take.
            """Return a matrix with about 30 % missing values."""
            missing = np.random.default_rng(seed).random((_EXAMPLES, len(self.features))) < 0.3
            return {"features": np.where(missing, np.float32("nan"), rows(seed))}

        whole = {"features": tf.TensorSpec((None, len(self.features)), tf.float32, name="features")}
        matrix = Signature("matrix", whole, lambda raw: raw["features"], gaps)
        if arguments is None:
            plain = matrix._replace(name="serving_default")
            return [plain._replace(sample=lambda seed: {"features": rows(seed)}), matrix]

        def stacked(raw: dict[str, tf.Tensor]) -> tf.Tensor:
            """Put the arguments, (batch,) each, into the order of training: (batch, columns)."""
            return tf.stack([raw[arguments[name]] for name in self.features], axis=1)

        def named(seed: int) -> dict[str, np.ndarray]:
            return dict(zip(arguments.values(), rows(seed).T, strict=True))

        each = {n: tf.TensorSpec((None,), tf.float32, name=n) for n in arguments.values()}
        columns = Signature("columns", each, stacked, named)
        # The default is there under its own name, too: which one is the default depends on the
        # width.
        return [columns._replace(name="serving_default"), columns, matrix]

    def described(self) -> str:
        """Say how many numbers are taken."""
        return (
            f"Rows of {len(self.features)} numbers, float32, NaN = missing. model.json lists the "
            "columns and their arguments."
        )


def _usable(file: LabelsFile, wanted: Sequence[bool]) -> tuple[str, ...]:
    """Return the wanted columns that can be features; warns of the others."""
    found = []
    for number, name in enumerate(file.cells, start=1):
        cells = file.cells[name]
        if not wanted[number - 1]:
            continue
        if _UNNAMED.fullmatch(name):
            why = "has no name: an index that pandas wrote? (to_csv(…, index=False) writes none)"
        elif cells.isna().all() or (cells.dtype == object and is_missing(cells.fillna("")).all()):
            why = "has no known value"
        else:
            found.append(name)
            continue
        warn(f"column {number}, {name!r}, of {file.source} {why}; it is left out.")
    return tuple(found)


def _warn_of_labels(features: np.ndarray, columns: Sequence[str], source: Path) -> None:
    """Warn of features that look like labels: 0, 1 and missing, or 0, 1 and -1."""

    def like_labels(values: np.ndarray) -> bool:
        """Return whether a column looks like labels; most are ruled out by their first rows."""
        known = values[~np.isnan(values)]
        if not np.isin(known[:1000], (-1, 0, 1)).all():  # as in most columns
            return False
        states = set(np.unique(known).tolist())
        return states == {-1, 0, 1} or (states == {0, 1} and len(known) < len(values))

    found = [name for values, name in zip(features.T, columns, strict=True) if like_labels(values)]
    if found:
        warn(
            f"{len(found)} columns of {source} that are not tasks hold 0, 1 and missing or -1, as "
            f"labels do, and are learned from: {listed(found)}. If they are labels, name them in "
            "tasks=[…], with -1 as Task(name, missing=-1) or Task(name, uncertain=-1), or leave "
            "them out with ignore=[…]; if not, name all features in features=[…]."
        )


def _read_names(file: LabelsFile, column: str) -> np.ndarray:
    """Return the names of the rows; raises ValueError for a row without one."""
    text = as_text(file.cells[[column]])[column]
    unnamed = np.flatnonzero(is_missing(text))
    if len(unnamed):
        raise ValueError(
            f"`id_column` in {file.source}, {place(file.source)} {text.index[unnamed[0]]}, column "
            f"{column!r} must name each row, got {text.iloc[unnamed[0]]!r} ({len(unnamed)} such "
            "rows)"
        )
    return text.str.strip().to_numpy(dtype=object)
