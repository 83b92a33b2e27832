"""Losses of multiclass and regression tasks over their known labels."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kerasmtl.losses.base import MaskedLoss
from kerasmtl.losses.binary import ProbabilityLoss
from kerasmtl.masking import match_classes
from kerasmtl.utils.validation import check_number


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedCategoricalCrossentropy(ProbabilityLoss):
    """Compute the cross-entropy of one multiclass task over the rows whose class is known.

    `(1/m) Σ_{i known} -log p_i[y_i]`, natural logarithm, p normalized to 1 as in
    `keras.losses.SparseCategoricalCrossentropy`.

    Shapes: y_true (batch,) or (batch, 1) float, the number of the class, NaN = missing; y_pred
    (batch, classes), probabilities, or logits with `from_logits=True`. `call` returns (batch,).

    A row of unknown class adds exactly 0 and has a gradient of exactly 0, whatever is predicted;
    with none known the loss is 0. Labels that are not a class (negative, too large, or fractional)
    and predictions that are not probabilities are refused, see `kerasmtl.losses.base.MaskedLoss`.
    The logits of a layer's softmax are used where Keras knows them, as in Keras' own loss.

    Args:
        from_logits: whether predictions are logits rather than probabilities.
        normalization: a number divides by it ("sum" and "mean" are the same: there is one task).
        task_weights: one number in a list, by which the loss is multiplied.
        balancer, missing, reduction, name, dtype: as in `MaskedBinaryCrossentropy`.

    Raises:
        ValueError: y_true is not one label per row, sample_weight is not (batch,), or `missing` is
            a class.
        tf.errors.InvalidArgumentError: a label that is not a class, or invalid probabilities.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> y = np.array([2, np.nan], "float32")
        >>> p = np.array([[0.25, 0.25, 0.5], [1, 0, 0]], "float32")
        >>> round(float(kt.losses.MaskedCategoricalCrossentropy()(y, p)), 4)  # ln 2, two rows
        0.3466
    """

    labels_must_be = "a class from 0 on, below the number of predictions"

    def __init__(
        self,
        from_logits: bool = False,
        name: str = "masked_categorical_crossentropy",
        **kwargs: Any,
    ) -> None:
        super().__init__(from_logits, name=name, **kwargs)

    def _aligned(self, y_true: Any, y_pred: Any) -> tuple[Any, Any]:
        y_true, y_pred = match_classes(y_true, y_pred)
        classes = y_pred.shape[-1]
        if self.missing in range(classes):
            raise ValueError(
                f"`missing` must be none of the classes 0 to {classes - 1}, such as -1, "
                f"got {self.missing:g}"
            )
        return ops.expand_dims(y_true, -1), y_pred

    def _by_label(self, invalid: Any) -> Any:
        return ops.any(invalid, axis=-1, keepdims=True)

    def _invalid_labels(self, y: Any, p: Any) -> Any:
        return y != ops.cast(_classes(y, p), y.dtype)

    def _elementwise(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        index = ops.squeeze(_classes(y, p), -1)
        losses = ops.sparse_categorical_crossentropy(index, p, from_logits=logits)
        return ops.expand_dims(losses, -1)


def _classes(y: Any, p: Any) -> Any:
    """Return labels (batch, 1) as the nearest classes there are."""
    return ops.cast(ops.clip(ops.floor(y), 0.0, p.shape[-1] - 1.0), "int32")


class RegressionLoss(MaskedLoss):
    """Base of the losses of regression tasks, whose labels may be any finite number."""

    labels_must_be = "finite"

    def _invalid_labels(self, y: Any, p: Any) -> Any:
        return ops.isinf(y)


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedMeanSquaredError(RegressionLoss):
    """Compute the squared error over the known labels of a row, averaged over rows.

    `(1/m) Σ_i Σ_{j known} v_j (y_ij - p_ij)²`; with `normalization="mean"` and nothing missing it
    equals `keras.losses.MeanSquaredError`.

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks). `call` returns
    (batch,).

    A missing label adds exactly 0 and has a gradient of exactly 0; with no known label the loss is
    0. A NaN prediction for a known label makes the loss NaN, and an infinite label is an error, see
    `kerasmtl.losses.base.MaskedLoss`. A balancer takes half of the squared error, the negative log
    likelihood of a normal distribution (https://arxiv.org/abs/1705.07115).

    Args:
        normalization, task_weights, balancer, missing, reduction, name, dtype: as in
            `MaskedBinaryCrossentropy`.

    Raises:
        ValueError: as `MaskedBinaryCrossentropy`.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> y = np.array([[1, np.nan], [3, 5]], "float32")
        >>> p = np.array([[2, 9], [3, 3]], "float32")
        >>> float(kt.losses.MaskedMeanSquaredError()(y, p))  # (1 + 0 + 4) / 2 rows
        2.5
    """

    gaussian = True

    def __init__(self, name: str = "masked_mean_squared_error", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def _elementwise(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        return ops.square(y - p)


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedMeanAbsoluteError(RegressionLoss):
    """Compute the absolute error over the known labels of a row, averaged over rows.

    `(1/m) Σ_i Σ_{j known} v_j |y_ij - p_ij|`

    Shapes, missing labels, arguments and errors: as in `MaskedMeanSquaredError`.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> y = np.array([[1, np.nan], [3, 5]], "float32")
        >>> p = np.array([[2, 9], [3, 3]], "float32")
        >>> float(kt.losses.MaskedMeanAbsoluteError()(y, p))  # (1 + 0 + 2) / 2 rows
        1.5
    """

    def __init__(self, name: str = "masked_mean_absolute_error", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def _elementwise(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        return ops.absolute(y - p)


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedHuber(RegressionLoss):
    """Compute Huber's loss over the known labels of a row, averaged over rows.

    `(1/m) Σ_i Σ_{j known} v_j ℓ(y_ij - p_ij)`, `ℓ(r) = r²/2` for `|r| <= δ`, otherwise
    `δ |r| - δ²/2` (https://doi.org/10.1214/aoms/1177703732).

    Shapes, missing labels, other arguments and errors: as in `MaskedMeanSquaredError`.

    Args:
        delta: δ, above 0.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> y = np.array([[1, np.nan], [3, 5]], "float32")
        >>> p = np.array([[2, 9], [3, 3]], "float32")
        >>> float(kt.losses.MaskedHuber(delta=1.0)(y, p))  # (0.5 + 0 + 1.5) / 2 rows
        1.0
    """

    SETTINGS = ("delta",)

    def __init__(self, delta: float = 1.0, name: str = "masked_huber", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.delta = check_number("delta", delta, 0.0, open_low=True)

    def _elementwise(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        size = ops.absolute(y - p)
        within = ops.minimum(size, self.delta)
        return 0.5 * ops.square(within) + self.delta * (size - within)
