"""The weights of the best epoch, for a `fit` of one's own."""

from __future__ import annotations

from typing import Any

import keras

from kerasmtl.training.announcements import best_line
from kerasmtl.training.monitoring import Monitor


class BestEpoch(keras.callbacks.Callback):
    """End `fit` with the weights of the epoch that was best on the validation data.

    Without validation data the model keeps the weights of the last epoch. `fine_tune` does this
    by itself.

    Args:
        monitor: such as "val_auc", or ("val_mine", "max"); by default the first AUC of the
            validation, or else its first metric, or else its loss. An epoch in which it is NaN is
            never the best.
        verbose: whether to print which epoch it was.

    Attributes:
        best_epoch: from 1 on; None if nothing was monitored.

    Raises:
        ValueError: `monitor` is not in the logs, or does not say whether more of it is better.

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> x, y = keras.ops.ones((4, 1)), keras.ops.ones((4, 1))
        >>> best = BestEpoch(verbose=False)
        >>> history = model.fit(x, y, validation_data=(x, y), callbacks=[best], verbose=0)
        >>> best.best_epoch
        1
    """

    def __init__(self, monitor: str | tuple[str, str] | None = None, verbose: bool = True) -> None:
        super().__init__()
        self._given, self.verbose = monitor, verbose
        self.best_epoch: int | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.best_epoch = self._rank = self._weights = self._monitor = None
        self._epochs = 0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        logs = logs or {}
        if self._monitor is None:
            self._monitor = Monitor(self._given, any(name.startswith("val_") for name in logs))
        self._epochs = epoch + 1
        rank = self._monitor.rank(logs)
        if rank is not None and (self._rank is None or rank > self._rank):
            self._rank, self.best_epoch = rank, self._epochs
            self._weights = self.model.get_weights()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._weights is not None:
            self.model.set_weights(self._weights)
        if self.verbose and self._monitor is not None:
            name = self._monitor.name
            print(best_line(self.best_epoch, self._epochs, name, self._rank), flush=True)
