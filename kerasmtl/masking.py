"""The only definition of "missing": as text in a file, and as NaN everywhere else.

`known` is True where a label is present. Keras is imported on use: the text half serves the
command line, which must start without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

from kerasmtl.tasks import Task, as_number, code_text

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

# Compared without case and surrounding blanks.
MISSING_CODES = ("", "?", "na", "n/a", "nan", "none", "null")
LABEL_CODES = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}
LARGEST = 3.4028234663852886e38  # of float32


def parse_labels(cells: pd.Series, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Text cells as the labels of a task, NaN = missing, and a mask of the cells that are none.

    Shapes: cells (rows,) str; returns (rows,) float32 and (rows,) bool, True = invalid. NaN
    stands under an invalid cell, too. A binary label is 1, 0 or what `uncertain_as` makes of an
    uncertain one; a multiclass label is the position of its class, of those found if the task names
    none; a regression label is any number that float32 holds, and infinity is invalid.
    """
    import numpy as np
    import pandas as pd

    if task.kind == "multiclass" and not task.classes:
        task = replace(task, classes=find_classes(cells, task))
    meaning = _meanings(task)
    codes, distinct = pd.factorize(cells, use_na_sentinel=False)
    values = np.full(len(distinct), np.nan, dtype="float32")
    invalid = np.zeros(len(distinct), dtype=bool)
    for position, cell in enumerate(distinct):
        value = meaning(str(cell).strip().lower())
        if value is None:
            invalid[position] = True
        else:
            values[position] = value
    return values[codes], invalid[codes]


def find_classes(cells: pd.Series, task: Task) -> tuple[str, ...]:
    """The labels in the cells, sorted, numbers by size; case does not count, and 1.0 is 1."""
    missing = _missing(task)
    found: dict[str, str] = {}
    for cell in sorted({str(cell).strip() for cell in cells.unique()}):
        if cell.lower() not in MISSING_CODES and code_text(cell) not in missing:
            found.setdefault(code_text(cell), cell)
    numbers = {text: as_number(text) for text in found}
    if all(number is not None for number in numbers.values()):
        return tuple(found[text] for text in sorted(found, key=numbers.__getitem__))
    return tuple(found[text] for text in sorted(found))


def _missing(task: Task) -> set[str]:
    return {code_text(code) for code in task.missing}


def _meanings(task: Task) -> Callable[[str], float | None]:
    """From a cell's text, lower case, to its label: NaN = missing, None = no label."""
    nan, missing = float("nan"), _missing(task)
    both = sorted(set(map(code_text, task.uncertain)) & set(MISSING_CODES))
    if both:
        raise ValueError(
            f"`uncertain` of task {task.name!r} names codes that always mean missing. Expected "
            f"codes other than {MISSING_CODES}. Received: {both}"
        )
    doubt = {"ignore": nan, "zero": 0.0, "one": 1.0}.get(task.uncertain_as, task.uncertain_as)
    special = dict.fromkeys(MISSING_CODES, nan)
    special |= dict.fromkeys(missing, nan)
    special |= dict.fromkeys(map(code_text, task.uncertain), doubt)
    classes = {code_text(label): float(at) for at, label in enumerate(task.classes)}

    def binary(text: str) -> float | None:
        if text in special:  # first: a task may say that "false" means missing
            return special[text]
        return LABEL_CODES.get(text, special.get(code_text(text)))

    def multiclass(text: str) -> float | None:
        known = classes.get(code_text(text))
        return known if known is not None else special.get(text, special.get(code_text(text)))

    def regression(text: str) -> float | None:
        if text in special or missing and code_text(text) in missing:
            return nan
        number = as_number(text)
        return number if number is not None and abs(number) <= LARGEST else None

    return {"binary": binary, "multiclass": multiclass, "regression": regression}[task.kind]


def is_known(y_true: Any, missing: float | None = None) -> Any:
    """True where a label is present: not NaN, and not the code `missing` where one is given.

    NumPy for NumPy, a tensor for tensors. Labels and code are compared as float32, in which losses
    compute: -99.9 is the same code in float32 and in float64 labels.
    """
    import numpy as np

    code = None if missing is None else np.float32(missing)
    if isinstance(y_true, np.ndarray):
        with np.errstate(over="ignore"):
            known = ~np.isnan(y_true)
            return known if code is None else known & (y_true.astype("float32") != code)
    from keras import ops

    known = ops.logical_not(ops.isnan(y_true))
    if code is not None:
        known = ops.logical_and(known, ops.not_equal(ops.cast(y_true, "float32"), code))
    return known


def checked_missing(missing: Any, binary: bool = False) -> float | None:
    """A code for missing besides NaN, or None; ValueError if it is no number or a binary label."""
    if missing is None:
        return None
    label = "outside [0, 1]" if binary else "such as -1"
    if not isinstance(missing, Real) or isinstance(missing, bool) or math.isnan(missing):
        raise ValueError(
            f"`missing` is no code. Expected one number {label}, or None. NaN is always missing. "
            f"Received: {missing!r}"
        )
    if binary and 0.0 <= missing <= 1.0:
        raise ValueError(
            "`missing` is a label. Expected a number outside [0, 1], such as -1, or None. "
            f"Received: {missing!r}"
        )
    return float(missing)


def fill_missing(values: Any, known: Any, fill: float) -> Any:
    """`values` with the constant `fill` wherever the label is missing; no gradient flows there."""
    from keras import ops

    return ops.where(known, values, ops.convert_to_tensor(fill, dtype=values.dtype))


def with_known(labels: Any, known: Any) -> Any:
    """Labels with NaN wherever `known` is False, for data that bring a mask of their own.

    Shapes: labels (batch, tasks) or (batch,), numbers; known alike, True = present. Returns
    float32: NumPy for NumPy and lists, a tensor for tensors (`dataset.map`).

    What lies under known=False (a code, NaN, 1e30) is gone. NaN under known=True contradicts
    itself: ValueError with its place, or, where a tensor cannot raise, infinity, which every loss
    of kerasmtl refuses.

    Raises:
        ValueError: shapes that differ, `known` that is no mask, or NaN under known=True.
    """
    import numpy as np

    shapes = tuple(tuple(getattr(a, "shape", None) or np.shape(a)) for a in (labels, known))
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`labels` and `known` differ in shape. Expected the same. "
            f"Received: labels {shapes[0]}, known {shapes[1]}"
        )
    if not all(isinstance(array, np.ndarray | list | tuple) for array in (labels, known)):
        return _tensors_with_known(labels, known)
    values, mask = np.asarray(labels), np.asarray(known)
    if not np.isin(mask, (0, 1)).all():
        raise ValueError(
            "`known` is no mask. Expected booleans, or 0 and 1. "
            f"Received: {np.unique(mask)[:5].tolist()}"
        )
    # Masked first: a hidden 1e300 is beyond float32.
    values = np.where(mask.astype(bool), values, np.float32("nan")).astype("float32")
    wrong = np.argwhere(mask.astype(bool) & np.isnan(values))
    if len(wrong):
        raise ValueError(
            "`labels` has NaN where `known` is True. Expected a number. "
            f"Received: NaN at {tuple(wrong[0].tolist())}, {len(wrong)} in all"
        )
    return values


def _tensors_with_known(labels: Any, known: Any) -> Any:
    from keras import ops

    values = ops.cast(labels, "float32")
    values = ops.where(ops.isnan(values), ops.full_like(values, float("inf")), values)
    return ops.where(ops.cast(known, "bool"), values, ops.full_like(values, float("nan")))


def check_same_shape(y_true: Any, y_pred: Any) -> None:
    """Raise ValueError unless labels and predictions are both (batch, tasks)."""
    shapes = _ranked("y_true", y_true), _ranked("y_pred", y_pred)
    agree = len(shapes[0]) == len(shapes[1]) == 2 and all(
        a is None or b is None or a == b for a, b in zip(*shapes, strict=True)
    )
    if not agree:
        column = len(shapes[0]) == 1 and len(shapes[1]) == 2 and shapes[1][1] == 1
        raise ValueError(
            "`y_true` and `y_pred` differ in shape. Expected both (batch, tasks). "
            f"Received: y_true {shapes[0]}, y_pred {shapes[1]}"
            + (". Give the labels of this output as y.reshape(-1, 1)." if column else "")
        )


def of_same_shape(y_true: Any, y_pred: Any) -> tuple[Any, Any]:
    """Labels and predictions that are both (batch, tasks): what is not known yet is checked later.

    Raises:
        ValueError: shapes that cannot be the same.
        tf.errors.InvalidArgumentError: when a graph runs and they are not.
    """
    check_same_shape(y_true, y_pred)
    if None in (*y_true.shape, *y_pred.shape):
        y_true, y_pred = _compared_later(y_true, y_pred, "shape (batch, tasks)")
        # XLA drops assertions, not this.
        y_true, y_pred = _ensured(y_true, y_pred.shape), _ensured(y_pred, y_true.shape)
    return y_true, y_pred


def one_class_a_row(y_true: Any, y_pred: Any) -> tuple[Any, Any]:
    """Labels (batch,) or (batch, 1) as (batch,), and predictions (batch, classes).

    Raises:
        ValueError: other shapes.
        tf.errors.InvalidArgumentError: when a graph runs and they are other shapes.
    """
    labels, predictions = _ranked("y_true", y_true), _ranked("y_pred", y_pred)
    one_a_row = len(labels) == 1 or (len(labels) == 2 and labels[1] in (1, None))
    rows = {size for size in (labels[:1] + predictions[:1]) if size is not None}
    if not one_a_row or len(predictions) != 2 or len(rows) > 1:
        raise ValueError(
            "`y_true` is not one class a row. Expected y_true (batch,) or (batch, 1) and y_pred "
            f"(batch, classes). Received: y_true {labels}, y_pred {predictions}"
        )
    if len(labels) == 2:
        y_true = _ensured(y_true, (None, 1))[:, 0]
    if None in (labels[0], predictions[0]):
        y_true, y_pred = _compared_later(y_true, y_pred, "rows", slice(1))
    return y_true, y_pred


def _ranked(argument: str, values: Any) -> tuple[int | None, ...]:
    if getattr(values.shape, "rank", 0) is None:
        raise ValueError(
            f"`{argument}` has no known number of dimensions. Expected (batch, tasks). Received: "
            "an unknown shape. Name the shapes of the data set: output_signature= of "
            "from_generator, or tf.ensure_shape in a map."
        )
    return tuple(values.shape)


def _compared_later(
    y_true: Any, y_pred: Any, what: str, part: slice | None = None
) -> tuple[Any, Any]:
    import tensorflow as tf

    shapes = [tf.shape(y_true), tf.shape(y_pred)]
    if part is not None:
        shapes = [shape[part] for shape in shapes]
    message = f"`y_true` and `y_pred` differ in {what}. Expected the same. Received:"
    # The operation itself: tf.debugging.assert_equal makes twice as many.
    same = tf.raw_ops.Assert(
        condition=tf.reduce_all(tf.equal(*shapes)), data=[message, *shapes], summarize=2
    )
    with tf.control_dependencies([] if same is None else [same]):
        return tf.identity(y_true), tf.identity(y_pred)


def _ensured(values: Any, shape: Any) -> Any:
    import tensorflow as tf

    return tf.ensure_shape(values, shape)


def check_row_weights(sample_weight: Any) -> None:
    """Raise ValueError if the weights are more than one a row: (batch,), (batch, 1) or ()."""
    import numpy as np

    shape = tuple(
        sample_weight.shape if hasattr(sample_weight, "shape") else np.shape(sample_weight)
    )
    if len(shape) > 2 or (len(shape) == 2 and shape[1] not in (1, None)):
        raise ValueError(
            "`sample_weight` is not one weight a row. Expected shape (batch,). "
            f"Received: {shape}. To weigh out single labels, make them NaN."
        )
