"""Between `fit`, which runs once a stage, and callbacks, for which all stages are one training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from kerasmtl.training.announcements import EpochLines
from kerasmtl.training.epochs_at_once import HeadAtOnce
from kerasmtl.training.guards import TrainableGuard, check_loss, check_refusal

Logs = dict[str, Any] | None


class Conductor(keras.callbacks.Callback):
    """The one callback of each `fit`: hands on what happens, and checks it.

    The callbacks' model is the full one, also while `fit` trains a head of it on features; their
    `on_train_begin` and `on_train_end` come once, and epoch numbers run on. Of a head that runs
    through many batches at once they see the last one.

    Args:
        full: the model.
        callbacks: of the user, and the history.
        params: as Keras gives them to callbacks: verbose, epochs, steps.
        epoch_begins: called with the epoch's number before each epoch.
        epoch_ended: called with number and logs after each; returns whether the stage is over.
        places: from epoch and batch to the places of the batch's rows.
        average: of the weights; validation and callbacks see it in their place.
    """

    def __init__(
        self,
        full: keras.Model,
        callbacks: Sequence[keras.callbacks.Callback],
        params: dict[str, Any],
        epoch_begins: Callable[[int], None],
        epoch_ended: Callable[[int, dict[str, Any]], bool],
        places: Callable[[int, int], Sequence[str]],
        average: keras.callbacks.Callback | None = None,
    ) -> None:
        super().__init__()
        self.full = full
        lines = params["verbose"] == 2 and not any(isinstance(c, EpochLines) for c in callbacks)
        self.users = keras.callbacks.CallbackList(
            [*callbacks, *([EpochLines()] if lines else [])],
            add_history=False,
            add_progbar=params["verbose"] == 1,
            model=full,
            **params,
        )
        self.guard = TrainableGuard()
        # A callback that does nothing stands for no average.
        self.average = average or keras.callbacks.Callback()
        self.average.set_model(full)
        self._epoch_begins, self._epoch_ended, self._places = epoch_begins, epoch_ended, places
        self.epoch, self.batch, self._testing = 0, 0, False

    def places(self) -> Sequence[str]:
        """Where the rows of the latest batch come from."""
        return self._places(self.epoch, self.batch)

    def stage_begins(self, fitted: keras.Model) -> None:
        """Before each `fit`, of the full model or of its head."""
        self.guard.set_model(self.full)
        self._compiled_anew = fitted is self.full
        self._at_once = fitted if isinstance(fitted, HeadAtOnce) else None
        self.average.on_train_begin()

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self.epoch, self.batch = epoch, 0
        self._check()
        self._epoch_begins(epoch)
        self.users.on_epoch_begin(epoch, logs)
        self._check()

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        self.batch = batch
        self.users.on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        batch = self.batch = batch if self._at_once is None else self._at_once.last_batch
        check_loss(logs, self.epoch, batch, self.places)
        self.average.on_train_batch_end(batch, logs)
        self.users.on_train_batch_end(batch, logs)
        if self._compiled_anew:
            self.guard.on_train_batch_begin(batch + 1)
        if self.full.stop_training:
            self.model.stop_training = True

    def on_test_begin(self, logs: Logs = None) -> None:
        self._testing = True
        self.average.on_test_begin(logs)
        self.users.on_test_begin(logs)

    def on_test_batch_begin(self, batch: int, logs: Logs = None) -> None:
        self.users.on_test_batch_begin(batch, logs)

    def on_test_batch_end(self, batch: int, logs: Logs = None) -> None:
        self.users.on_test_batch_end(batch, logs)

    def on_test_end(self, logs: Logs = None) -> None:
        self._testing = False
        self.users.on_test_end(logs)
        self.average.on_test_end(logs)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if self._epoch_ended(epoch, logs or {}):
            self.model.stop_training = True

    def refused(self, error: Exception) -> None:
        """Raise `LossNotFinite` if an error of `fit` is one of the loss about a training batch."""
        if not self._testing:
            if self._at_once is not None:
                self.batch = self._at_once.last_batch
            check_refusal(error, self.epoch, self.batch, self.places)

    def callbacks_end_epoch(self, epoch: int, logs: dict[str, Any]) -> bool:
        """Hand the end of an epoch on; True if a callback asks for the training to stop."""
        self._check()
        self.users.on_epoch_end(epoch, logs)
        self._check()
        return bool(self.full.stop_training)

    def _check(self) -> None:
        self.guard.check()
        if self._compiled_anew and self.model.train_function is None:
            self.guard.on_train_batch_begin(0)
