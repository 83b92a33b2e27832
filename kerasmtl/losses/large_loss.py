"""Large-loss modification: missing labels that look positive no longer count as negative."""

from __future__ import annotations

from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from kerasmtl.losses.binary import BinaryLoss
from kerasmtl.masking import is_known
from kerasmtl.utils.validation import check_choice, check_number


@keras.saving.register_keras_serializable(package="kerasmtl")
class LargeLoss(BinaryLoss):
    """Compute binary cross-entropy in which missing counts as 0, except where that costs most.

    `Σ_{j known} BCE(y_ij, p_ij) + Σ_{j missing} ℓ_ij` per row; `ℓ = -log(1 - p)` up to
    `p = threshold`, and above it 0 ("reject", LL-R) or `-log p` ("correct", LL-Ct).

    As published (https://arxiv.org/abs/2206.03740), the largest share of the missing labels' losses
    *of a batch* is modified, and the share grows by the epoch: the loss of a label then depends on
    its batch and replica. Here the threshold is one number for all data, which
    `kt.callbacks.LargeLossSchedule` moves so that it cuts off that share *of the data set*: what
    the published form tends to as batches grow.

    Shapes: y_true (batch, tasks) float in [0, 1], NaN = missing; y_pred (batch, tasks),
    probabilities, or logits with `from_logits=True`. `call` returns (batch,).

    A row without known labels has a loss, too. With nothing missing it equals
    `MaskedBinaryCrossentropy`.

    Args:
        scheme: "reject" or "correct".
        threshold: a probability; 1, the default, modifies nothing. Its current value is saved.
        from_logits, normalization, task_weights, balancer, missing, reduction, name, dtype: as in
            `MaskedBinaryCrossentropy`.

    Raises:
        ValueError: as `MaskedBinaryCrossentropy`, or an unknown scheme.

    Example:
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> y = np.array([[1, np.nan]], "float32")
        >>> p = np.array([[0.5, 0.9]], "float32")
        >>> loss = kt.losses.LargeLoss("reject", threshold=0.8)
        >>> round(float(loss(y, p)), 4)  # ln 2: the missing label looks positive
        0.6931
        >>> loss.threshold = 1.0
        >>> round(float(loss(y, p)), 4)  # ln 2 - ln 0.1
        2.9957
    """

    SETTINGS = ("scheme", "threshold")
    includes_missing = True

    def __init__(
        self,
        scheme: Literal["reject", "correct"] = "reject",
        threshold: float = 1.0,
        name: str = "large_loss",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.scheme = check_choice("scheme", scheme, ("reject", "correct"))
        # A variable: `fit` would make a number a constant of its graph.
        self._threshold = keras.Variable(
            check_number("threshold", threshold, 0.0, 1.0),
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            name="threshold",
        )

    @property
    def threshold(self) -> float:
        """The probability above which a missing label is rejected or corrected; assignable."""
        return float(ops.convert_to_numpy(self._threshold))

    @threshold.setter
    def threshold(self, value: float) -> None:
        self._threshold.assign(check_number("threshold", value, 0.0, 1.0))

    @property
    def variables(self) -> list[keras.Variable]:
        return [*super().variables, self._threshold]

    def _elementwise(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        losses = ops.binary_crossentropy(y, p, from_logits=logits)
        probability = ops.cast(ops.sigmoid(p) if logits else p, "float32")
        large = ops.logical_and(ops.logical_not(known), probability > self._threshold)
        if self.scheme == "reject":
            other = ops.zeros_like(losses)
        else:
            other = ops.binary_crossentropy(ops.ones_like(y), p, from_logits=logits)
        return ops.where(large, other, losses)


class LargeLossSchedule(keras.callbacks.Callback):
    """Set the threshold of the model's `LargeLoss` at the start of each epoch.

    The threshold cuts off the share `min(epoch · step, limit)`, epoch = 0, 1, …, of the missing
    labels of all data, those with the largest predictions; for that the model predicts the data
    once per epoch. The authors use some tenths of a percent per epoch
    (https://arxiv.org/abs/2206.03740).

    Args:
        x: the training inputs as in `model.predict`, in a fixed order.
        y: (rows, tasks) float, NaN = missing. If none is missing, the threshold stays 1.
        step: share added per epoch, from 0 to 1.
        limit: the largest share, from 0 to 1.
        batch_size: as in `model.predict`.

    Raises:
        ValueError: numbers out of range, a model not compiled with one `LargeLoss`, or predictions
            that do not have the shape of y.

    Example:
        >>> import keras
        >>> import kerasmtl as kt
        >>> import numpy as np
        >>> x = np.linspace(-1, 1, 8).reshape(-1, 1)
        >>> y = np.where(x > 0, np.nan, 0)  # half of the labels are missing
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, "sigmoid")])
        >>> model.compile("sgd", kt.losses.LargeLoss())
        >>> schedule = kt.callbacks.LargeLossSchedule(x, y, step=0.25)
        >>> history = model.fit(x, y, epochs=2, verbose=0, callbacks=[schedule])
        >>> model.loss.threshold < 1
        True
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
        self.step = check_number("step", step, 0.0, 1.0)
        self.limit = check_number("limit", limit, 0.0, 1.0)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        loss = getattr(self.model, "loss", None)
        if not isinstance(loss, LargeLoss):
            raise ValueError(f"`model` must be compiled with loss=LargeLoss(…), got {loss!r}")

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        loss = self.model.loss
        share = min(epoch * self.step, self.limit)
        loss.threshold = 1.0 if share <= 0.0 else self._threshold(loss, share)

    def _threshold(self, loss: LargeLoss, share: float) -> float:
        predicted = np.asarray(self.model.predict(self.x, self.batch_size, verbose=0), "float64")
        if predicted.shape != self.y.shape:
            raise ValueError(
                f"`y` must have the shape of the predictions, {predicted.shape}, got {self.y.shape}"
            )
        missing = ~is_known(self.y, loss.missing)
        if not missing.any():
            return 1.0
        cut = np.quantile(predicted[missing], 1.0 - share)
        return float(1.0 / (1.0 + np.exp(-cut))) if loss.from_logits else float(np.clip(cut, 0, 1))
