"""Large-loss modification: unknown labels that look positive are no longer taken for negative."""

from __future__ import annotations

from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from kerasmtl.losses.base import checked_number
from kerasmtl.losses.binary import BinaryLoss
from kerasmtl.masking import is_known


@keras.saving.register_keras_serializable(package="kerasmtl")
class LargeLoss(BinaryLoss):
    """Unknown counts as 0, but where that costs most, it counts for nothing or as 1.

    `Σ_{j known} BCE(y_ij, p_ij) + Σ_{j unknown} ℓ_ij` by example; `ℓ = -log(1 - p)` up to
    `p = threshold`, above it 0 ("reject", LL-R) or `-log p` ("correct", LL-Ct).

    Published (https://arxiv.org/abs/2206.03740), the largest share of the unknown
    losses *of a batch* is modified, a share that grows by the epoch: what a cell costs then depends
    on its batch and replica. That form is not offered. Here the threshold is one number for all
    data, and `LargeLossSchedule` moves it, so that it cuts off that share of the unknown cells *of
    the data set*: what the published form tends to as batches grow.

    Shapes: y_true (batch, tasks) float in [0, 1], NaN = missing; y_pred (batch, tasks),
    probabilities, or logits with `from_logits=True`. `call` returns (batch,).

    Missing cells count as said; with none known there still is a loss. With nothing missing it is
    `MaskedBinaryCrossentropy`. NaN predictions make the loss NaN, and labels outside [0, 1] are an
    error, see `MaskedBinaryCrossentropy`.

    Args:
        scheme: "reject" or "correct".
        threshold: a probability; 1, the default, modifies nothing. Part of the config as it stands.
        from_logits, normalization, task_weights, balancer, missing, reduction, name, dtype: as in
            `MaskedBinaryCrossentropy`.

    Raises:
        ValueError: as `MaskedBinaryCrossentropy`, or an unknown scheme.
    """

    counts_unknown = True

    def __init__(
        self,
        scheme: Literal["reject", "correct"] = "reject",
        threshold: float = 1.0,
        name: str = "large_loss",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        if scheme not in ("reject", "correct"):
            raise ValueError(
                f"`scheme` is unknown. Expected 'reject' or 'correct'. Received: {scheme!r}"
            )
        self.scheme = scheme
        # A variable: `fit` would bake a number into its graph.
        self._threshold = keras.Variable(
            checked_number("threshold", threshold, high=1.0),
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            name="threshold",
        )

    @property
    def threshold(self) -> float:
        return float(ops.convert_to_numpy(self._threshold))

    @threshold.setter
    def threshold(self, value: float) -> None:
        self._threshold.assign(checked_number("threshold", value, high=1.0))

    def _cells(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        cells = ops.binary_crossentropy(y, p, from_logits=logits)
        chance = ops.cast(ops.sigmoid(p) if logits else p, "float32")
        large = ops.logical_and(ops.logical_not(known), chance > self._threshold)
        if self.scheme == "reject":
            other = ops.zeros_like(cells)
        else:
            other = ops.binary_crossentropy(ops.ones_like(y), p, from_logits=logits)
        return ops.where(large, other, cells)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scheme": self.scheme, "threshold": self.threshold}


class LargeLossSchedule(keras.callbacks.Callback):
    """At the start of each epoch, set the threshold of the model's `LargeLoss`.

    It cuts off the share `min(epoch · step, limit)`, epoch = 0, 1, …, of the unknown cells of all
    data, those with the largest prediction; for that the model predicts the data once an epoch.
    Published with some tenths of a per cent an epoch (https://arxiv.org/abs/2206.03740).

    Shapes: x as in `model.predict`, in a fixed order; y (rows, tasks) float, NaN = missing.
    With no unknown cell the threshold stays 1.

    Args:
        x, y: the training data.
        step: share added by epoch, from 0 to 1.
        limit: the largest share, from 0 to 1.
        batch_size: as in `model.predict`.

    Raises:
        ValueError: numbers out of range, a model not compiled with one `LargeLoss`, or predictions
            that are not of the shape of y.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        step: float = 0.002,
        limit: float = 1.0,
        batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.x, self.y, self.batch_size = x, np.asarray(y), batch_size
        self.step = checked_number("step", step, high=1.0)
        self.limit = checked_number("limit", limit, high=1.0)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not isinstance(getattr(self.model, "loss", None), LargeLoss):
            raise ValueError(
                "`model` has no LargeLoss to schedule. Expected compile(loss=LargeLoss(…)). "
                f"Received: {getattr(self.model, 'loss', None)!r}"
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        loss = self.model.loss
        share = min(epoch * self.step, self.limit)
        loss.threshold = 1.0 if share <= 0.0 else self._cut(loss, share)

    def _cut(self, loss: LargeLoss, share: float) -> float:
        predicted = np.asarray(self.model.predict(self.x, self.batch_size, verbose=0), "float64")
        if predicted.shape != self.y.shape:
            raise ValueError(
                "`y` does not fit the predictions. Expected the same shape. "
                f"Received: y {self.y.shape}, predictions {predicted.shape}"
            )
        unknown = ~is_known(self.y, loss.missing)
        if not unknown.any():
            return 1.0
        cut = np.quantile(predicted[unknown], 1.0 - share)
        return float(1.0 / (1.0 + np.exp(-cut))) if loss.from_logits else float(np.clip(cut, 0, 1))
