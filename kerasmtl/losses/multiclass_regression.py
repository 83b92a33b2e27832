"""Losses of multiclass and regression tasks over their known labels."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kerasmtl.losses.base import (
    MaskedLoss,
    checked_number,
    labels_fault,
    nan_where,
    outside_of_0_and_1,
    predictions_fault,
    refuse,
    values_and_kind,
)
from kerasmtl.masking import fill_missing, is_known, match_classes


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedCategoricalCrossentropy(MaskedLoss):
    """Cross-entropy of one multiclass task over the examples whose class is known.

    `(1/m) Σ_{i known} -log p_i[y_i]`, natural logarithm, p normalized to 1 as in Keras.

    Shapes: y_true (batch,) or (batch, 1) float, the number of the class, NaN = missing; y_pred
    (batch, classes), probabilities, or logits with `from_logits=True`. `call` returns (batch,).

    An example of unknown class adds exactly 0 and has a gradient of exactly 0, whatever is
    predicted; with none known the loss is 0. For a known example a NaN or infinite prediction makes
    the loss NaN, and a label that is no class (negative, too large, or broken) and a finite
    prediction that is (by more than 1e-6) no probability are an error; XLA, which drops assertions,
    makes them NaN as well. Where the probabilities are those of a layer's softmax, the loss is
    computed from its logits, as in Keras.

    Args:
        from_logits: predictions are logits, not probabilities.
        normalization: a number divides by it ("sum" and "mean" are the same: there is one task).
        task_weights: one number in a list, by which the loss is multiplied.
        balancer, missing, reduction, name, dtype: as in `MaskedBinaryCrossentropy`.

    Raises:
        ValueError: y_true is not one label a row, sample_weight is not (batch,), or `missing` is a
            class.
        tf.errors.InvalidArgumentError: a label that is no class, or no probabilities.
    """

    def __init__(
        self,
        from_logits: bool = False,
        name: str = "masked_categorical_crossentropy",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.from_logits = bool(from_logits)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        predicted, logits = values_and_kind(y_pred, self.from_logits)
        y_true, predicted = match_classes(y_true, predicted)
        classes = predicted.shape[-1]
        self._check_missing(classes)
        known = is_known(y_true, self.missing)
        y = fill_missing(y_true, known, 0.0)
        neutral = 0.0 if logits else 1.0 / classes
        p = fill_missing(predicted, ops.expand_dims(known, -1), neutral)
        index = ops.cast(ops.clip(ops.floor(y), 0.0, classes - 1.0), "int32")
        broken = ops.isnan(p) if logits else outside_of_0_and_1(p)
        no_class = y != ops.cast(index, y.dtype)
        wrong = ops.logical_or(no_class, ops.any(broken, axis=-1))
        refuse(
            wrong,
            lambda: [
                labels_fault(no_class, y, f"a class from 0 to {classes - 1}"),
                predictions_fault(broken, p),
            ],
        )
        spoilt = nan_where(wrong, p.dtype)
        p = p * ops.expand_dims(spoilt, -1)
        cells = ops.sparse_categorical_crossentropy(index, p, from_logits=logits)
        cells = fill_missing(cells * spoilt, known, 0.0)
        return self._by_row(ops.expand_dims(cells, -1), ops.expand_dims(known, -1))

    def _check_missing(self, classes: int) -> None:
        if self.missing in range(classes):
            raise ValueError(
                f"`missing` is a class. Expected none of 0 to {classes - 1}, such as -1. "
                f"Received: {self.missing:g}"
            )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "from_logits": self.from_logits}


class RegressionLoss(MaskedLoss):
    """Base of the losses of regression tasks: every finite label is right."""

    labels_must_be = "finite"

    def _wrong_labels(self, y: Any) -> Any:
        return ops.isinf(y)


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedMeanSquaredError(RegressionLoss):
    """Squared error summed over the known labels of an example, averaged over examples.

    `(1/m) Σ_i Σ_{j known} v_j (y_ij - p_ij)²`; with `normalization="mean"` and nothing missing it
    is that of Keras.

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks). `call` returns
    (batch,).

    A missing cell adds exactly 0 and has a gradient of exactly 0; with no known label the loss is
    0. A NaN prediction of a known cell makes the loss NaN, and an infinite label is an error, see
    `MaskedBinaryCrossentropy`. A balancer takes half of it, the negative logarithm of a normal
    density (https://arxiv.org/abs/1705.07115).

    Args:
        normalization, task_weights, balancer, missing, reduction, name, dtype: as in
            `MaskedBinaryCrossentropy`.

    Raises:
        ValueError: as `MaskedBinaryCrossentropy`.
    """

    gaussian = True

    def __init__(self, name: str = "masked_mean_squared_error", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def _cells(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        return ops.square(y - p)


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedMeanAbsoluteError(RegressionLoss):
    """Absolute error summed over the known labels of an example, averaged over examples.

    `(1/m) Σ_i Σ_{j known} v_j |y_ij - p_ij|`

    Shapes, missing labels, arguments and errors: as in `MaskedMeanSquaredError`.
    """

    def __init__(self, name: str = "masked_mean_absolute_error", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def _cells(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        return ops.absolute(y - p)


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedHuber(RegressionLoss):
    """Huber's loss summed over the known labels of an example, averaged over examples.

    `ℓ(r) = r²/2` for `|r| <= δ`, otherwise `δ |r| - δ²/2`, with `r = y_ij - p_ij`
    (https://doi.org/10.1214/aoms/1177703732).

    Shapes, missing labels, other arguments and errors: as in `MaskedMeanSquaredError`; `delta`
    must be positive.
    """

    def __init__(self, delta: float = 1.0, name: str = "masked_huber", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.delta = checked_number("delta", delta, low=1e-12)

    def _cells(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        size = ops.absolute(y - p)
        within = ops.minimum(size, self.delta)
        return 0.5 * ops.square(within) + self.delta * (size - within)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "delta": self.delta}
