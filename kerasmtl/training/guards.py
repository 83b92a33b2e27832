"""Guards: what would spoil a training in silence is an error at once."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

SHOWN_ROWS = 5


class TrainableGuard(keras.callbacks.Callback):
    """Raise if something is frozen or unfrozen, or the model compiled, while `fit` runs.

    Keras fixes what is trained when `fit` starts: a callback that sets `trainable` later changes
    nothing, and nobody says so. Put the guard last among the callbacks.

    Raises:
        RuntimeError: from `fit`, at the latest at the end of the epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._trained: set[int] = set()
        self._optimizer: Any = None

    def set_model(self, model: keras.Model) -> None:
        """Remember what is trained, before any callback has its turn."""
        super().set_model(model)
        self._trained = {id(variable) for variable in model.trainable_variables}
        self._optimizer = getattr(model, "optimizer", None)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.check()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.model.train_function is None:  # Keras itself would stumble over that
            self._raise("`model` was compiled during training.")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.check()
        if self.model.train_function is None:
            self._raise("`model` was compiled during training.")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.check()

    def check(self) -> None:
        """Raise RuntimeError if the model is no longer trained as it was at the start."""
        if self.model.optimizer is not self._optimizer:
            self._raise("`model` was compiled during training.")
        trained = {id(variable): variable for variable in self.model.trainable_variables}
        if trained.keys() == self._trained:
            return
        more = [v.path for key, v in trained.items() if key not in self._trained]
        less = len(self._trained - trained.keys())
        change = f"unfrozen: {', '.join(more[:SHOWN_ROWS])}" if more else f"{less} variables frozen"
        self._raise(f"`trainable` was changed during training ({change}), which has no effect.")

    def _raise(self, what: str) -> None:
        raise RuntimeError(
            f"{what} Keras fixes what is trained when it compiles. Expected no change by a "
            "callback: list stages instead, fine_tune(plan=[Stage('head', …), Stage('all', …)]), "
            "or call fit twice and compile in between."
        )


class LossNotFinite(FloatingPointError):
    """The loss is NaN, infinite or an error: says the epoch, the batch and, if known, its rows."""


def check_loss(
    logs: dict[str, Any] | None, epoch: int, batch: int, rows: Sequence[str] | Any = ()
) -> None:
    """Raise `LossNotFinite` if the loss of this batch, counted from 0, is none.

    `rows` are the places of the batch's rows, or a function that finds them.
    """
    loss = (logs or {}).get("loss")
    if loss is not None and not math.isfinite(float(loss)):
        what = f"the loss is {float(loss)}"
        raise LossNotFinite(_message(what, epoch, f"batch {batch + 1}", rows))


def check_refusal(error: Exception, epoch: int, batch: int, rows: Sequence[str] | Any = ()) -> None:
    """Raise `LossNotFinite` with the loss's reason if it has refused labels or predictions.

    A graph's error has the parts of the reason in brackets, among the lines of code that made it.
    """
    found = _REFUSAL.search(str(error))
    if found:
        what, reason = "the loss refuses it", f"{found[1].replace('] [', ' ')}."
        message = _message(what, epoch, f"batch {batch + 1}", rows, reason)
        raise LossNotFinite(message) from error


_REFUSAL = re.compile(r"assertion failed: \[(`y_(?:true|pred)` must be .*?)\](?: \[Op:|$)", re.M)
# XLA drops what the loss would have said.
_FINITE = (
    "Expected finite inputs, labels and predictions that the loss takes (jit_compile=False has it "
    "say what is wrong with them), and a learning rate that is not too high."
)


def check_weights(weights: Sequence[np.ndarray], epoch: int, batch: int) -> None:
    """Raise `LossNotFinite` if a weight is none after the last batch of an epoch.

    Which batch it was is not known: a loss stays finite that does not depend on the weight, such
    as that of a task without labels in the batches after it.
    """
    for values in weights:
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            what = "weights are no longer finite"
            raise LossNotFinite(_message(what, epoch, f"in or before batch {batch + 1}", ()))


def _message(what: str, epoch: int, where: str, rows: Any, reason: str = _FINITE) -> str:
    found = list(rows() if callable(rows) else rows)
    places = "; ".join(found[:SHOWN_ROWS]) + ("; …" if len(found) > SHOWN_ROWS else "")
    return (
        f"`train` cannot be trained on: {what} in epoch {epoch + 1}, {where}"
        + (f", which has {len(found)} rows: {places}." if found else ".")
        + f" {reason} The model has the weights of the end of the last good epoch."
    )


def rows_of_batch(source: Any, epoch: int, batch: int) -> list[str]:
    """The places of the rows in a batch, where a data set's source knows them."""
    from kerasmtl.sources import permutation

    if source is None or not source.deterministic:
        return []
    first = batch * source.batch_size
    places = range(first, min(first + source.batch_size, source.count))
    if source.training:
        order = permutation(source.count, source.seed, epoch).numpy()
        return [source.where(int(order[place])) for place in places]
    return [source.where(place) for place in places]
