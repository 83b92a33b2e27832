"""A backbone for tables of numbers: columns brought to one scale, then dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasmtl.models.build import check_widths


@keras.saving.register_keras_serializable(package="kerasmtl")
class ColumnNormalization(keras.layers.Layer):
    """Columns of numbers brought to one scale, and missing ones (NaN) put at the training mean.

    Shapes: (batch, columns) float in, NaN = missing; (batch, columns + indicators) out, with no
    NaN. `adapt` learns from the training rows; nothing here changes with the batch.

    A column of many values becomes `(x - mean) / standard deviation`. A column of 0 and 1 is
    centred and not divided, since a bit that is rarely 1 would otherwise weigh the more the rarer
    it is; so is a column that is constant in the training rows.

    Args:
        indicators: positions of columns whose being missing is an input of its own: 1 where it is.
        kwargs: as in `keras.layers.Layer`.
    """

    def __init__(self, indicators: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.indicators = [int(column) for column in indicators]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the two vectors that `adapt` fills: until then, columns stay as they are."""
        shape = (input_shape[-1],)
        self.center = self.add_weight(shape, "zeros", trainable=False, name="center")
        self.spread = self.add_weight(shape, "ones", trainable=False, name="spread")

    def adapt(self, rows: np.ndarray) -> None:
        """Learn mean and spread of every column from the training rows, NaN left out.

        Shapes: rows (rows, columns).

        Raises:
            ValueError: rows are no matrix of that many columns, or hold an infinite value.
        """
        rows = checked_rows(rows)
        if not self.built:
            self.build(rows.shape)
        if rows.shape[1] != self.center.shape[0]:
            raise ValueError(
                f"`rows` do not fit. Expected {self.center.shape[0]} columns. Received: "
                f"{rows.shape[1]}"
            )
        center, spread = column_statistics(rows)
        self.center.assign(center)
        self.spread.assign(spread)

    def call(self, inputs: Any) -> Any:
        missing = ops.isnan(inputs)
        # Replaced before the arithmetic: NaN in a gradient outlives a `where` after it.
        filled = ops.where(missing, ops.broadcast_to(self.center, ops.shape(inputs)), inputs)
        scaled = (filled - self.center) / self.spread
        if not self.indicators:
            return scaled
        flags = ops.cast(ops.take(missing, np.array(self.indicators), axis=-1), scaled.dtype)
        return ops.concatenate([scaled, flags], axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*input_shape[:-1], input_shape[-1] + len(self.indicators))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "indicators": self.indicators}


def checked_rows(rows: Any) -> np.ndarray:
    """Rows as a float array (rows, columns); ValueError if they are none or not finite."""
    rows = np.asarray(rows)
    if rows.ndim != 2 or 0 in rows.shape or rows.dtype.kind not in "biuf":
        raise ValueError(
            "`rows` is no matrix of numbers. Expected shape (rows, columns), neither of them 0. "
            f"Received: shape {rows.shape}, {rows.dtype}"
        )
    infinite = np.argwhere(np.isinf(rows))
    if len(infinite):
        row, column = (int(number) for number in infinite[0])
        raise ValueError(
            f"`rows` has an infinite value in row {row}, column {column}. Expected numbers, or NaN "
            f"= missing. {len(infinite)} such cells."
        )
    return rows


def column_statistics(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every column the mean, and what to divide by: 1 where it is binary or constant.

    Shapes: rows (rows, columns), NaN = missing; two (columns,) float32. A column with no value at
    all has mean 0.
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
    return center.astype("float32"), np.maximum(spread, 1e-30).astype("float32")


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
    """Dense layers with ReLU over normalised columns, for `build_model`; the weights are random.

    Shapes: (batch, columns) float32 in, NaN = missing; (batch, hidden[-1]) out. Normalisation is
    the model's first layer, float32 under any policy, so that training and serving cannot differ.

    Args:
        inputs: the training rows (rows, columns), which normalisation adapts to; or their number
            of columns, to be adapted later: `model.get_layer("columns").adapt(rows)`.
        hidden: widths of the dense layers.
        dropout: share of features dropped in training, after each hidden layer.
        input_dropout: share of normalised columns dropped in training.
        batch_norm: normalise each hidden layer over the batch, before its ReLU.
        indicators: for each column that has holes in the training rows, add one that says where.
        l2: weight of the sum of squares of the dense weights in the loss.
        name: of the model.

    Raises:
        ValueError: no hidden layer, a width below 1, dropout outside [0, 1), a negative l2, rows
            that are no finite matrix, or indicators without rows.
    """
    _check_arguments(hidden, dropout, input_dropout, l2)
    if isinstance(inputs, int | np.integer):
        columns, rows, holes = int(inputs), None, ()
        if indicators or columns < 1:
            raise ValueError(
                "`inputs` is no number of columns, or `indicators` lack rows to look at. Expected "
                f"the training rows. Received: inputs={columns}, indicators={indicators}"
            )
    else:
        rows = checked_rows(inputs)
        columns = rows.shape[1]
        holes = np.flatnonzero(np.isnan(rows).any(axis=0)) if indicators else ()
    first = ColumnNormalization(holes, dtype="float32", name="columns")
    x = entry = keras.Input((columns,), name="features")
    x = first(x)
    if rows is not None:
        first.adapt(rows)
    if input_dropout:
        x = keras.layers.Dropout(input_dropout, name="input_dropout")(x)
    for number, width in enumerate(hidden, start=1):
        x = _block(x, width, dropout, batch_norm, l2, str(number))
    return keras.Model(entry, x, name=name)


def _block(x: Any, width: int, dropout: float, batch_norm: bool, l2: float, number: str) -> Any:
    x = keras.layers.Dense(
        width,
        use_bias=not batch_norm,
        kernel_initializer="he_normal",
        kernel_regularizer=keras.regularizers.L2(l2) if l2 else None,
        name=f"dense_{number}",
    )(x)
    if batch_norm:
        x = keras.layers.BatchNormalization(name=f"bn_{number}")(x)
    x = keras.layers.ReLU(name=f"relu_{number}")(x)
    return keras.layers.Dropout(dropout, name=f"dropout_{number}")(x)


def _check_arguments(
    hidden: Sequence[int], dropout: float, input_dropout: float, l2: float
) -> None:
    check_widths(hidden)
    if not hidden:
        raise ValueError("`hidden` is empty. Expected at least one width, for example [256].")
    for name, share in (("dropout", dropout), ("input_dropout", input_dropout)):
        if not 0.0 <= share < 1.0:
            raise ValueError(f"`{name}` is no share. Expected 0 <= {name} < 1. Received: {share}")
    if not l2 >= 0:
        raise ValueError(f"`l2` is negative. Expected 0 or more. Received: {l2}")
