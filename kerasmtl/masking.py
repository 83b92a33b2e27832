"""The one definition of "missing" for arrays and tensors: a label that is NaN, or a given code.

Losses and metrics mask in three steps: `is_known` finds the known labels, `fill_missing` replaces
labels and predictions *before* the formula, and replaces its result *after* it. One of the two
alone is not enough: 0 * NaN is NaN, and a constant prediction has a loss of its own.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

Shape = tuple[int | None, ...]


def is_known(y_true: Any, missing: float | None = None) -> Any:
    """Return a mask that is True where a label is known: not NaN, and not the code `missing`.

    Labels and code are compared as float32, in which losses compute, so that -99.9 is the same
    code in float32 and in float64 labels.

    Args:
        y_true: labels of any shape.
        missing: one more code for missing, besides NaN.

    Returns:
        A boolean mask of the same shape: NumPy for NumPy, a tensor for tensors.
    """
    code = None if missing is None else np.float32(missing)
    if isinstance(y_true, np.ndarray):
        with np.errstate(over="ignore"):
            known = ~np.isnan(y_true)
            return known if code is None else known & (y_true.astype("float32") != code)
    known = ops.logical_not(ops.isnan(y_true))
    if code is not None:
        known = ops.logical_and(known, ops.not_equal(ops.cast(y_true, "float32"), code))
    return known


def check_missing(missing: Any, binary: bool = False) -> float | None:
    """Return a code for missing as a float, or None.

    Raises:
        ValueError: `missing` is not a number, or, with `binary`, is in [0, 1] like a label.
    """
    if missing is None:
        return None
    number = isinstance(missing, Real) and not isinstance(missing, bool)
    if not number or math.isnan(missing) or (binary and 0.0 <= missing <= 1.0):
        where = " outside [0, 1]" if binary else ""
        raise ValueError(
            f"`missing` must be one number{where}, such as -1, or None (NaN is always missing), "
            f"got {missing!r}"
        )
    return float(missing)


def fill_missing(values: Any, known: Any, fill: float) -> Any:
    """Return `values` with the constant `fill` where `known` is False; no gradient flows there."""
    return ops.where(known, values, ops.convert_to_tensor(fill, dtype=values.dtype))


def with_known(labels: Any, known: Any) -> Any:
    """Return labels with NaN wherever `known` is False, for data that come with a mask.

    Whatever is stored under known=False (a code, NaN, 1e30) has no influence afterwards. NaN under
    known=True is a contradiction: a ValueError, or, where a tensor cannot raise, infinity, which
    every loss of kerasmtl refuses.

    Args:
        labels: (batch, tasks) or (batch,) numbers.
        known: same shape; booleans, or 0 and 1. True = known.

    Returns:
        float32 of the same shape, NaN = missing: NumPy for NumPy and lists, a tensor for tensors,
        so that it can be used in `Dataset.map`.

    Raises:
        ValueError: the shapes differ, `known` has other values, or NaN is marked as known.

    Example:
        >>> import kerasmtl as kt
        >>> kt.data.with_known([[1, -1], [0, 7]], [[True, False], [True, True]])
        array([[ 1., nan],
               [ 0.,  7.]], dtype=float32)
    """
    shapes = tuple(tuple(getattr(a, "shape", None) or np.shape(a)) for a in (labels, known))
    if shapes[0] != shapes[1]:
        raise ValueError(f"`known` must have the shape of `labels`, {shapes[0]}, got {shapes[1]}")
    if not all(isinstance(array, np.ndarray | list | tuple) for array in (labels, known)):
        values = ops.cast(labels, "float32")
        values = ops.where(ops.isnan(values), ops.full_like(values, math.inf), values)
        return ops.where(ops.cast(known, "bool"), values, ops.full_like(values, math.nan))
    values, mask = np.asarray(labels), np.asarray(known)
    if not np.isin(mask, (0, 1)).all():
        raise ValueError(
            f"`known` must be booleans, or 0 and 1, got {np.unique(mask)[:5].tolist()}"
        )
    # Masked first: a hidden 1e300 is beyond float32.
    values = np.where(mask.astype(bool), values, np.float32("nan")).astype("float32")
    wrong = np.argwhere(mask.astype(bool) & np.isnan(values))
    if len(wrong):
        raise ValueError(
            "`labels` must be numbers where `known` is True, got NaN at "
            f"{tuple(wrong[0].tolist())}, {len(wrong)} in all"
        )
    return values


def match_shapes(y_true: Any, y_pred: Any) -> tuple[Any, Any]:
    """Return labels and predictions that are both (batch, tasks), without broadcasting.

    Raises:
        ValueError: shapes that cannot be the same.
        tf.errors.InvalidArgumentError: they differ, and only a running graph knows it.
    """
    labels, predictions = _shape_of("y_true", y_true), _shape_of("y_pred", y_pred)
    agree = len(labels) == len(predictions) == 2 and all(
        a is None or b is None or a == b for a, b in zip(labels, predictions, strict=True)
    )
    if not agree:
        column = len(labels) == 1 and len(predictions) == 2 and predictions[1] == 1
        raise ValueError(
            "`y_true` and `y_pred` must have the same shape, (batch, tasks), got "
            f"y_true {labels} and y_pred {predictions}"
            + (". Give the labels of this output as y.reshape(-1, 1)." if column else "")
        )
    if None in (*labels, *predictions):
        y_true, y_pred = _equal_when_run(y_true, y_pred, slice(None))
        # XLA drops assertions, but not this.
        y_true = tf.ensure_shape(y_true, y_pred.shape)
        y_pred = tf.ensure_shape(y_pred, y_true.shape)
    return y_true, y_pred


def match_classes(y_true: Any, y_pred: Any) -> tuple[Any, Any]:
    """Return labels (batch,), given as (batch,) or (batch, 1), and predictions (batch, classes).

    Raises:
        ValueError: other shapes.
        tf.errors.InvalidArgumentError: other shapes, and only a running graph knows it.
    """
    labels, predictions = _shape_of("y_true", y_true), _shape_of("y_pred", y_pred)
    one_per_row = len(labels) == 1 or (len(labels) == 2 and labels[1] in (1, None))
    rows = {size for size in (labels[:1] + predictions[:1]) if size is not None}
    if not one_per_row or len(predictions) != 2 or len(rows) > 1:
        raise ValueError(
            "`y_true` must be one class per row, (batch,) or (batch, 1), with y_pred "
            f"(batch, classes), got y_true {labels} and y_pred {predictions}"
        )
    if len(labels) == 2:
        y_true = tf.ensure_shape(y_true, (None, 1))[:, 0]
    if None in (labels[0], predictions[0]):
        y_true, y_pred = _equal_when_run(y_true, y_pred, slice(1))
    return y_true, y_pred


def _shape_of(argument: str, values: Any) -> Shape:
    if getattr(values.shape, "rank", 0) is None:
        raise ValueError(
            f"`{argument}` must have a known number of dimensions, (batch, tasks), got an unknown "
            "shape. Declare the shapes of the data set: output_signature= of from_generator, or "
            "tf.ensure_shape in a map."
        )
    return tuple(values.shape)


def _equal_when_run(y_true: Any, y_pred: Any, dimensions: slice) -> tuple[Any, Any]:
    """Let a graph compare, when it runs, the dimensions that were unknown when it was traced."""
    message = "`y_true` and `y_pred` must have the same shape"
    shapes = (tf.shape(values)[dimensions] for values in (y_true, y_pred))
    same = tf.debugging.assert_equal(*shapes, message=message)
    with tf.control_dependencies([] if same is None else [same]):
        return tf.identity(y_true), tf.identity(y_pred)


def check_row_weights(sample_weight: Any) -> None:
    """Raise ValueError unless there is one weight per row: shape (batch,), (batch, 1) or ()."""
    weights = sample_weight if hasattr(sample_weight, "shape") else np.asarray(sample_weight)
    shape = tuple(weights.shape)
    if len(shape) > 2 or (len(shape) == 2 and shape[1] not in (1, None)):
        raise ValueError(
            f"`sample_weight` must be one weight per row, (batch,), got shape {shape}. To leave "
            "out single labels, make them NaN."
        )
