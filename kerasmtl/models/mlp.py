"""Backbones for tables: `mlp`, which is trained, and `columns`, a fixed encoding.

`build_model` takes both in place of an image backbone. Their first layer, `ColumnNormalization` or
`ColumnEncoding`, holds the statistics of the training rows, so that they are saved, exported and
served with the model and need no file beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasmtl.utils.validation import check_count, check_number

TINY = 1e-30  # what is divided by at least: float32 has an inverse of it


def mlp(
    inputs: int | np.ndarray,
    hidden: Sequence[int] = (256,),
    dropout: float = 0.5,
    input_dropout: float = 0.0,
    batch_norm: bool = False,
    indicators: bool = False,
    l2: float = 0.0,
    name: str = "mlp",
) -> keras.Model:
    """Build a backbone for rows of numbers, with random weights, for `build_model`.

    Shapes: (batch, columns) float32 in, NaN = missing; (batch, hidden[-1]) out. Standardization is
    the model's first layer, float32 under any policy, so that training and serving cannot differ.

    Args:
        inputs: the training rows (rows, columns), to which standardization adapts; or the number
            of columns, to adapt later: `model.get_layer("columns").adapt(rows)`.
        hidden: widths of the dense layers.
        dropout: fraction of features dropped in training, after each hidden layer.
        input_dropout: fraction of standardized columns dropped in training.
        batch_norm: normalize each hidden layer over the batch, before its ReLU.
        indicators: add an input for each column with missing values in the training rows: 1 where
            the value is missing.
        l2: weight of the sum of squares of the dense weights in the loss.
        name: of the model.

    Returns:
        A functional model that is not compiled. Its weights are random, so
        `plan="auto"` trains it as a whole.

    Raises:
        ValueError: no hidden layer, a width below 1, dropout outside [0, 1), a negative l2, rows
            that are not a finite matrix, or indicators without rows.

    Example:
        >>> import numpy as np
        >>> import kerasmtl as kt
        >>> rows = np.array([[1.0, 20.0], [3.0, np.nan], [5.0, 40.0]], "float32")
        >>> backbone = kt.backbones.mlp(rows, hidden=[16], indicators=True)
        >>> kt.build_model(backbone, ["fault"]).predict(rows, verbose=0).shape
        (3, 1)
        >>> backbone.get_layer("columns")(rows).numpy().round(2)
        array([[-1.22, -1.  ,  0.  ],
               [ 0.  ,  0.  ,  1.  ],
               [ 1.22,  1.  ,  0.  ]], dtype=float32)
    """
    if not len(hidden):
        raise ValueError("`hidden` must have at least one width, for example [256], got none")
    check_number("dropout", dropout, 0.0, 1.0, open_high=True)
    check_number("input_dropout", input_dropout, 0.0, 1.0, open_high=True)
    check_number("l2", l2, 0.0)
    if np.ndim(inputs) == 0:
        rows, columns = None, check_count("inputs", inputs)
        if indicators:
            raise ValueError("`indicators` must be False without rows to look at, got True")
    else:
        rows = _checked_rows(inputs)
        columns = rows.shape[1]
    missing = np.flatnonzero(np.isnan(rows).any(axis=0)) if indicators else ()
    first = ColumnNormalization(missing, dtype="float32", name="columns")
    entry = keras.Input((columns,), name="features")
    x = first(entry)
    if rows is not None:
        first.adapt(rows)
    if input_dropout:
        x = keras.layers.Dropout(input_dropout, name="input_dropout")(x)
    options = {
        "use_bias": not batch_norm,
        "kernel_initializer": "he_normal",
        "kernel_regularizer": keras.regularizers.L2(l2) if l2 else None,
    }
    for number, width in enumerate(hidden, start=1):
        x = keras.layers.Dense(check_count("hidden", width), name=f"dense_{number}", **options)(x)
        if batch_norm:
            x = keras.layers.BatchNormalization(name=f"bn_{number}")(x)
        x = keras.layers.ReLU(name=f"relu_{number}")(x)
        x = keras.layers.Dropout(dropout, name=f"dropout_{number}")(x)
    return keras.Model(entry, x, name=name)


@keras.saving.register_keras_serializable(package="kerasmtl")
class ColumnNormalization(keras.layers.Layer):
    """Standardize columns of numbers; missing values (NaN) become the training mean.

    Shapes: (batch, columns) float in, NaN = missing; (batch, columns + indicators) out, without
    NaN. `adapt` learns from the training rows; nothing here depends on the batch.

    A column of many values becomes `(x - mean) / standard deviation`. A column of 0 and 1 is
    centered and not divided: otherwise a bit would weigh the more the rarer it is. So is a column
    that is constant in the training rows.

    It is not `keras.layers.Normalization`, which has no notion of missing values and makes NaN of a
    whole column that contains one.

    Args:
        indicators: positions of columns that get an input for "is missing", 1 where it is.
        kwargs: as in `keras.layers.Layer`.
    """

    def __init__(self, indicators: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.indicators = [int(column) for column in indicators]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the two vectors that `adapt` fills; until then, only NaN changes, to 0.

        Args:
            input_shape: (batch, columns).
        """
        shape = (input_shape[-1],)
        self.center = self.add_weight(shape, "zeros", trainable=False, name="center")
        self.spread = self.add_weight(shape, "ones", trainable=False, name="spread")

    def adapt(self, rows: np.ndarray) -> None:
        """Learn mean and spread of every column from training rows, ignoring NaN.

        A second call replaces what the first has learned.

        Args:
            rows: (rows, columns).

        Raises:
            ValueError: rows are not a matrix of that many columns, or have an infinite value.
        """
        rows = _checked_rows(rows)
        if not self.built:
            self.build(rows.shape)
        if rows.shape[1] != self.center.shape[0]:
            raise ValueError(
                f"`rows` must have {self.center.shape[0]} columns, got {rows.shape[1]}"
            )
        center, spread = column_statistics(rows)
        self.center.assign(center)
        self.spread.assign(spread)

    def call(self, inputs: Any) -> Any:
        """Standardize a batch; append the indicators.

        Args:
            inputs: (batch, columns) float, NaN = missing.

        Returns:
            (batch, columns + indicators) float.
        """
        missing = ops.isnan(inputs)
        # Replaced before the arithmetic: NaN in a gradient outlives a `where` after it.
        filled = ops.where(missing, ops.broadcast_to(self.center, ops.shape(inputs)), inputs)
        scaled = (filled - self.center) / self.spread
        if not self.indicators:
            return scaled
        flags = ops.cast(ops.take(missing, np.array(self.indicators), axis=-1), scaled.dtype)
        return ops.concatenate([scaled, flags], axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return (batch, columns + indicators)."""
        return (*input_shape[:-1], input_shape[-1] + len(self.indicators))

    def get_config(self) -> dict[str, Any]:
        """Return the indicators and the settings of `Layer`; the statistics are weights."""
        return {**super().get_config(), "indicators": self.indicators}


def columns(inputs: np.ndarray, bins: int = 16, name: str = "encoding") -> keras.Model:
    """Build a backbone without anything to train: an encoding of numbers, bits and counts.

    Each column of more than two values is encoded piecewise linearly over the quantiles of the
    training rows (Gorishniy et al. 2022, https://arxiv.org/abs/2203.05556), and standardized
    beside it; columns of two values are bits, centered and multiplied by 2 alike, so that a rare
    bit does not weigh more; a column with missing values gets a bit for "is missing". Constant
    columns are left out. A linear head on it is an additive model of curves.

    Shapes: (batch, columns) float32 in, NaN = missing; (batch, features) out.

    Args:
        inputs: the training rows (rows, columns), NaN = missing.
        bins: pieces of a column, at most.
        name: of the model.

    Returns:
        A functional model whose only layer, `ColumnEncoding`, has nothing to train.

    Raises:
        ValueError: rows that are not a matrix without infinity, or no bins.

    Example:
        >>> import numpy as np
        >>> import kerasmtl as kt
        >>> rows = np.array([[0, 1.0], [1, 2.0], [0, 4.0], [1, 8.0]], "float32")
        >>> backbone = kt.backbones.columns(rows, bins=2)
        >>> backbone.output_shape  # two pieces, one bit, one standardized column
        (None, 4)
        >>> backbone.layers[-1].views
        {'piecewise linear': slice(0, 3, None), 'standardized': slice(2, 4, None)}
    """
    rows, count = _checked_rows(inputs), check_count("bins", bins)
    pieces: list[tuple[int, list[float]]] = []
    bits: list[tuple[int, list[float]]] = []
    plain: list[tuple[int, list[float]]] = []
    for column, cells in enumerate(rows.T):
        known = cells[~np.isnan(cells)].astype("float64")
        values = np.unique(known)
        if len(values) == 2:
            # (left, 1 / width, lowest, highest, shift, factor)
            share = float((known == values[1]).mean())
            width = max(float(values[1] - values[0]), TINY)
            bits.append((column, [float(values[0]), 1 / width, -1, 2, share, 2.0]))
        elif len(values) > 2:
            pieces += [(column, piece) for piece in _pieces(known, values, count)]
            spread = max(float(known.std()), TINY)
            # Beyond every value by far: an outlier should not decide alone.
            plain.append((column, [float(known.mean()), 1 / spread, -30, 30, 0.0, 1.0]))
    flags = np.flatnonzero(np.isnan(rows).any(axis=0) & ~np.isnan(rows).all(axis=0))
    found = [*pieces, *bits, *plain] or [(0, [0.0, 0.0, 0, 0, 0.0, 0.0])]  # constant rows: a 0
    sizes = (len(pieces), len(bits), len(found) - len(pieces) - len(bits))
    layer = ColumnEncoding(
        [each for each, _ in found], sizes, flags, dtype="float32", name="columns"
    )
    entry = keras.Input((rows.shape[1],), name="features")
    model = keras.Model(entry, layer(entry), name=name)
    layer.center.assign(column_statistics(rows)[0])
    layer.numbers.assign(np.array([numbers for _, numbers in found], "float32").T)
    layer.flag_shares.assign(np.isnan(rows[:, flags]).mean(axis=0))
    return model


def _pieces(known: np.ndarray, values: np.ndarray, bins: int) -> list[list[float]]:
    """Return the pieces of a column, whose encoding has a variance of 1 in all."""
    shares = np.linspace(0, 1, min(bins, len(values) - 1) + 1)
    edges = np.unique(np.quantile(known, shares))
    if len(edges) < 3:  # most cells are alike: by value, and not by row
        edges = np.unique(np.quantile(values, shares))
    left, width = edges[:-1], np.maximum(np.diff(edges), TINY)
    lowest, highest = np.zeros(len(left)), np.ones(len(left))
    lowest[0], highest[-1] = -1, 2
    encoded = np.clip((known[:, None] - left) / width, lowest, highest)
    factor = 1 / max(float(np.sqrt(encoded.var(axis=0).sum())), 1e-6)
    shift = encoded.mean(axis=0)
    stacked = np.stack([left, 1 / width, lowest, highest, shift, np.full(len(left), factor)])
    return stacked.T.tolist()


@keras.saving.register_keras_serializable(package="kerasmtl")
class ColumnEncoding(keras.layers.Layer):
    """Encode columns: `(clip((x - left) / width, lowest, highest) - shift) * factor`.

    Shapes: (batch, columns) float in, NaN = missing; (batch, features) out, without NaN: a missing
    value becomes the training mean. `columns` makes it, and sets its numbers.

    Args:
        sources: the column of each feature.
        sizes: how many features are pieces, bits and standardized columns, in this order.
        flags: columns with a bit for "is missing", among the bits.
        kwargs: as in `keras.layers.Layer`.

    Attributes:
        views: the features that are piecewise linear with bits, and those standardized with bits.
    """

    def __init__(
        self, sources: Sequence[int], sizes: Sequence[int], flags: Sequence[int] = (), **kwargs: Any
    ) -> None:
        super().__init__(**{**kwargs, "trainable": False})
        self.sources = [int(each) for each in sources]
        self.sizes = tuple(int(each) for each in sizes)
        self.flags = [int(each) for each in flags]

    @property
    def views(self) -> dict[str, slice]:
        """The features of each way to see the columns; one way if all are bits."""
        pieces, bits, plain = self.sizes
        bits += len(self.flags)
        if not pieces:
            return {"standardized": slice(0, bits + plain)}
        return {
            "piecewise linear": slice(0, pieces + bits),
            "standardized": slice(pieces, pieces + bits + plain),
        }

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the numbers that `columns` fills.

        Args:
            input_shape: (batch, columns).
        """
        self.center = self.add_weight((input_shape[-1],), "zeros", trainable=False, name="center")
        shape = (6, len(self.sources))
        self.numbers = self.add_weight(shape, "zeros", trainable=False, name="numbers")
        flags = (len(self.flags),)
        self.flag_shares = self.add_weight(flags, "zeros", trainable=False, name="flag_shares")

    def call(self, inputs: Any) -> Any:
        """Encode a batch.

        Args:
            inputs: (batch, columns) float, NaN = missing.

        Returns:
            (batch, features) float.
        """
        missing = ops.isnan(inputs)
        filled = ops.where(missing, ops.broadcast_to(self.center, ops.shape(inputs)), inputs)
        left, inverse, lowest, highest, shift, factor = ops.unstack(self.numbers, axis=0)
        x = (ops.take(filled, np.array(self.sources), axis=-1) - left) * inverse
        x = (ops.minimum(ops.maximum(x, lowest), highest) - shift) * factor
        if not self.flags:
            return x
        flags = ops.cast(ops.take(missing, np.array(self.flags), axis=-1), x.dtype)
        split = self.sizes[0] + self.sizes[1]
        flags = (flags - self.flag_shares) * 2
        return ops.concatenate([x[:, :split], flags, x[:, split:]], axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return (batch, features)."""
        return (*input_shape[:-1], len(self.sources) + len(self.flags))

    def get_config(self) -> dict[str, Any]:
        """Return which columns are encoded how; the statistics are weights."""
        of = {"sources": self.sources, "sizes": self.sizes, "flags": self.flags}
        return {**super().get_config(), **of}


def column_statistics(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean of every column, and what to divide it by.

    Computed in float64: in float32 the deviation of a column such as a time stamp, whose mean is
    far larger, would be lost to rounding.

    Args:
        rows: (rows, columns), NaN = missing.

    Returns:
        Two (columns,) float32: the means (0 without any value), and the standard deviations (1 for
        binary and constant columns).
    """
    center = np.zeros(rows.shape[1])
    spread = np.ones(rows.shape[1])
    for column, cells in enumerate(rows.T):  # one by one: no second copy of a large table
        cells = cells[~np.isnan(cells)].astype("float64")
        if not len(cells):
            continue
        center[column] = cells.mean()
        binary = np.isin(cells, (0.0, 1.0)).all()
        if not binary and cells.min() < cells.max():
            spread[column] = cells.std()
    # A tiny deviation may become 0 in float32, and dividing by it infinity.
    return center.astype("float32"), np.maximum(spread, TINY).astype("float32")


def _checked_rows(rows: Any) -> np.ndarray:
    """Return rows as an array; raise ValueError unless they are a matrix without infinity."""
    rows = np.asarray(rows)
    if rows.ndim != 2 or 0 in rows.shape or rows.dtype.kind not in "biuf":
        raise ValueError(f"`rows` must be numbers (rows, columns), got {rows.shape} {rows.dtype}")
    infinite = np.argwhere(np.isinf(rows))
    if len(infinite):
        row, column = infinite[0].tolist()
        raise ValueError(
            f"`rows` must be finite or NaN, got an infinite value in row {row}, column {column}"
        )
    return rows
