"""The only definition of "missing": as text in a file, and as NaN everywhere else.

`known` is True where a label is present. Keras is imported on use: the text half serves the
command line, which must start without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

# Compared without case and surrounding blanks.
MISSING_CODES = ("", "?", "na", "n/a", "nan", "none", "null")
LABEL_CODES = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}


def parse_labels(cells: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Text cells as float32 labels, 1, 0 or NaN = missing, and a mask of the cells that are none.

    Shapes: cells (rows,) str; returns (rows,) float32 and (rows,) bool, True = invalid. NaN
    stands under an invalid cell, too.
    """
    import numpy as np
    import pandas as pd

    codes, distinct = pd.factorize(cells, use_na_sentinel=False)
    values = np.full(len(distinct), np.nan, dtype="float32")
    invalid = np.zeros(len(distinct), dtype=bool)
    for position, cell in enumerate(distinct):
        text = str(cell).strip().lower()
        if text in LABEL_CODES:
            values[position] = LABEL_CODES[text]
        elif text not in MISSING_CODES:
            invalid[position] = True
    return values[codes], invalid[codes]


def is_known(y_true: Any, missing: float | None = None) -> Any:
    """True where a label is present: not NaN, and not the code `missing` where one is given."""
    from keras import ops

    known = ops.logical_not(ops.isnan(y_true))
    if missing is not None:
        known = ops.logical_and(known, ops.not_equal(y_true, missing))
    return known


def fill_missing(values: Any, known: Any, fill: float) -> Any:
    """`values` with the constant `fill` wherever the label is missing; no gradient flows there."""
    from keras import ops

    return ops.where(known, values, ops.full_like(values, fill))


def check_same_shape(y_true: Any, y_pred: Any) -> None:
    """Raise ValueError unless labels and predictions are both (batch, tasks)."""
    shapes = tuple(y_true.shape), tuple(y_pred.shape)
    agree = len(shapes[0]) == len(shapes[1]) == 2 and all(
        a is None or b is None or a == b for a, b in zip(*shapes, strict=True)
    )
    if not agree:
        raise ValueError(
            "`y_true` and `y_pred` differ in shape. Expected both (batch, tasks). "
            f"Received: y_true {shapes[0]}, y_pred {shapes[1]}"
        )


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
