"""Losses that a missing label cannot touch."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kerasmtl.masking import check_row_weights, check_same_shape, fill_missing, is_known


@keras.saving.register_keras_serializable(package="kerasmtl")
class MaskedBinaryCrossentropy(keras.losses.Loss):
    """Binary cross-entropy summed over the known labels of an example, averaged over examples.

    `(1/m) Σ_i Σ_{j known} -(y_ij log p_ij + (1 - y_ij) log(1 - p_ij))`, natural logarithm.

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks), probabilities, or
    logits with `from_logits=True`. `call` returns (batch,), so that Keras' reduction,
    `sample_weight` of shape (batch,) and the scaling by replicas stay right.

    A missing cell adds exactly 0 and has a gradient of exactly 0, whatever is predicted there;
    an example or a batch with no known label gives 0. Probabilities are clipped to
    [1e-7, 1 - 1e-7] (`keras.config.epsilon()`), as in Keras.

    Args:
        from_logits: predictions are logits, not probabilities.
        missing: one more code for missing besides NaN, for labels that come as integers.
        reduction, name, dtype: as in `keras.losses.Loss`.

    Raises:
        ValueError: y_true and y_pred are not both (batch, tasks), or sample_weight is not (batch,).
    """

    def __init__(
        self,
        from_logits: bool = False,
        missing: float | None = None,
        reduction: str = "sum_over_batch_size",
        name: str = "masked_binary_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.from_logits = from_logits
        self.missing = missing

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        # (batch, tasks) weights would broadcast against the (batch,) losses if batch == tasks.
        if sample_weight is not None:
            check_row_weights(sample_weight)
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        check_same_shape(y_true, y_pred)
        known = is_known(y_true, self.missing)
        # Labels and predictions are replaced before the logarithm and the result after it:
        # either alone lets NaN or a constant through (0 * NaN is NaN; logit 0 costs ln 2).
        cells = ops.binary_crossentropy(
            fill_missing(y_true, known, 0.0),
            fill_missing(y_pred, known, 0.0 if self.from_logits else 0.5),
            from_logits=self.from_logits,
        )
        return ops.sum(fill_missing(cells, known, 0.0), axis=-1)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(from_logits=self.from_logits, missing=self.missing)
        return config
