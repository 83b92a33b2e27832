"""Callbacks for `model.fit`: checkpoints, the best epoch, and a guard.

`BestEpoch` and `TrainableGuard` work in any `fit`; `kt.callbacks.Resume` (in `resume`) hands the
events of several `fit`s on to them as if they were one, and keeps the state of those that have
`state()` and `restore(state)`. `Checkpoint` writes what people load, not what a run is resumed
from.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerasmtl.utils.files import atomic_file
from kerasmtl.utils.validation import check_count

Logs = dict[str, Any] | None

# Endings of metrics' names that say which direction is better.
HIGHER = ("auc", "accuracy", "precision", "recall", "f1", "r2", "average_precision")
LOWER = ("loss", "error", "mae", "mse", "rmse", "brier", "ece", "huber", "crossentropy")
SHOWN = 5  # variables, or rows, that a message names


def direction(name: str) -> str | None:
    """Return "max" or "min", what is better of a metric, or None if its name does not say it.

    Args:
        name: as in the logs, with or without "val_"; "a_task_auc" ends like "auc".
    """
    plain = name.removeprefix("val_")
    for mode, endings in (("max", HIGHER), ("min", LOWER)):
        if any(plain == end or plain.endswith(f"_{end}") for end in endings):
            return mode
    return None


def default_monitor(logs: Mapping[str, Any]) -> str | None:
    """Return the first validation AUC, or metric of known direction, or the validation loss.

    Args:
        logs: of an epoch; without validation data none of them counts.
    """
    names = [name for name in logs if name.startswith("val_")]
    areas = [name for name in names if name.endswith("_auc")]
    others = [n for n in names if not n.endswith("loss") and direction(n) is not None]
    return next(iter([*areas, *others, *(n for n in names if n == "val_loss")]), None)


class BestEpoch(keras.callbacks.Callback):
    """End the training with the weights of the epoch that was best on the validation data.

    Without validation data the model keeps the weights of the last epoch. An epoch in which the
    monitored metric is NaN is never the best; of equal ones the earliest is.

    Args:
        monitor: such as "val_auc", or ("val_mine", "max"); by default the first AUC of the
            validation, or else its first metric, or else its loss.
        patience: stop after that many epochs without a better one. In the stages of a plan
            (`kt.callbacks.Resume`) it is that of each stage, and counts from the stage's own best.
        verbose: whether to print which epoch it was.

    Attributes:
        best_epoch: from 1 on; None if nothing was monitored.

    Raises:
        ValueError: `monitor` is not in the logs, or does not say whether higher is better; or
            there is patience and nothing to monitor.

    Example:
        >>> import keras
        >>> import kerasmtl as kt
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> x, y = keras.ops.ones((4, 1)), keras.ops.ones((4, 1))
        >>> best = kt.callbacks.BestEpoch(verbose=False)
        >>> history = model.fit(x, y, validation_data=(x, y), callbacks=[best], verbose=0)
        >>> best.best_epoch
        1
    """

    def __init__(
        self,
        monitor: str | tuple[str, str] | None = None,
        patience: int | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        pair = isinstance(monitor, tuple | list) and len(monitor) == 2
        self._given, self._mode = monitor if pair else (monitor, None)
        if isinstance(self._given, str) and self._mode is None:
            self._mode = direction(self._given)
        if monitor is not None and self._mode not in ("max", "min"):
            raise ValueError(
                "`monitor` must be a metric such as 'val_auc', or one with its better direction, "
                f"('val_mine', 'max'), got {monitor!r}"
            )
        self.patience = None if patience is None else check_count("patience", patience)
        self.verbose = verbose
        self.on_train_begin()

    def on_train_begin(self, logs: Logs = None) -> None:
        """Forget an earlier training."""
        self.monitor = self._given
        self.best_epoch: int | None = None
        self._rank: float | None = None  # higher is better
        self._weights: list[np.ndarray] = []
        self._epochs = 0
        self.begin_stage(self.patience)

    def begin_stage(self, patience: int | None) -> None:
        """Count the patience of a stage from its first epoch on.

        `kt.callbacks.Resume` calls it. The best epoch of all stages stays what it is: only the
        waiting begins again.

        Args:
            patience: of the stage; None never stops it.
        """
        self.patience = patience
        self._stage_rank: float | None = None
        self._waited = 0

    @property
    def out_of_patience(self) -> bool:
        """Whether the stage has waited for something better as long as it may."""
        return self.patience is not None and self._waited >= self.patience

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Rank the epoch, keep its weights if it is the best, and stop when patience ends."""
        self._epochs = epoch + 1
        rank = self._ranked(logs or {})
        if self.patience is not None and self.monitor is None:
            raise ValueError(
                "`patience` must go with validation data or a monitor, got neither. Pass "
                "validation data."
            )
        # Two counts: the stage's best decides how long it waits, the best of all stages whose
        # weights the model gets.
        better = rank is not None and (self._stage_rank is None or rank > self._stage_rank)
        self._stage_rank = rank if better else self._stage_rank
        self._waited = 0 if better else self._waited + 1
        if rank is not None and (self._rank is None or rank > self._rank):
            self._rank, self.best_epoch = rank, self._epochs
            # Copied: TensorFlow may hand out the memory of the variable itself.
            self._weights = [np.array(weight) for weight in self.model.get_weights()]
        if self.out_of_patience:
            self.model.stop_training = True

    def _ranked(self, logs: Mapping[str, Any]) -> float | None:
        """Return how good an epoch is, higher is better; None if nothing is monitored, or NaN.

        Raises:
            ValueError: the logs do not have the metric.
        """
        self.monitor = self.monitor or default_monitor(logs)
        if self.monitor is None:
            return None
        if self.monitor not in logs:
            raise ValueError(
                f"`monitor` must be in the logs, one of {sorted(logs)}, got {self.monitor!r}. "
                "Those that start with val_ need validation data."
            )
        value = float(logs[self.monitor])
        return None if math.isnan(value) else self._sign * value

    @property
    def _sign(self) -> int:
        """1 if the monitored metric is better the higher it is, else -1."""
        return 1 if (self._mode or direction(self.monitor)) == "max" else -1

    def on_train_end(self, logs: Logs = None) -> None:
        """Give the model the best weights, and print which epoch they are from."""
        if self._weights:
            self.model.set_weights(self._weights)
        if not self.verbose:
            return
        said = (
            f"The model has the weights of the last epoch, {self._epochs}: nothing was monitored."
        )
        if self.best_epoch is not None:
            said = (
                f"Best epoch: {self.best_epoch} of {self._epochs}, {self.monitor} "
                f"{self._sign * self._rank:.4g}. The model has the weights of that epoch."
            )
        print(said, flush=True)

    def state(self) -> dict[str, np.ndarray]:
        """Return what `kt.callbacks.Resume` keeps of it: counters and the best weights.

        Returns:
            Arrays by name, for `np.savez`; what is None is left out.
        """
        weights = {f"weights/{i}": weight for i, weight in enumerate(self._weights)}
        found = {name: getattr(self, name) for name in _COUNTERS}
        return {k: np.asarray(v) for k, v in found.items() if v is not None} | weights

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a state.

        Args:
            state: what `state` returned, perhaps in another process.
        """
        for name in _COUNTERS:
            setattr(self, name, state[name].item() if name in state else None)
        self._weights = [
            state[f"weights/{i}"] for i in range(len(state)) if f"weights/{i}" in state
        ]


# These names are in the files of runs: under a new one, a run that is resumed would lose the value.
_COUNTERS = ("monitor", "best_epoch", "_rank", "_epochs", "_stage_rank", "_waited", "patience")


class Checkpoint(keras.callbacks.Callback):
    """Write the model after each finished epoch: to a hidden file first, then renamed.

    An interruption at any moment leaves the last finished epoch in `path`, ready for
    `kt.load_model`; Ctrl-C during the writing takes effect after it.

    Args:
        path: of the file, ending in .keras. With `BestEpoch`, save the model once more after `fit`.

    Raises:
        ValueError: wrong file ending.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import keras
        >>> import kerasmtl as kt
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "model.keras"
        ...     history = model.fit(keras.ops.ones((4, 1)), keras.ops.ones((4, 1)), verbose=0,
        ...                         callbacks=[kt.callbacks.Checkpoint(path)])
        ...     kt.load_model(path).count_params()
        2
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = _model_file(path)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Write the model; other callbacks of this epoch may not have run yet."""
        save_model(self.model, self.path)


def save_model(model: keras.Model, path: str | os.PathLike[str]) -> Path:
    """Write a model to a .keras file: to a hidden file first, then renamed.

    Args:
        model: any Keras model.
        path: of the file, ending in .keras; its folder is made if it is absent.

    Returns:
        The path. Whatever interrupts the writing, it is the former file or the new one, whole.

    Raises:
        ValueError: wrong file ending.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import keras
        >>> import kerasmtl as kt
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     kt.save_model(model, Path(folder) / "model.keras").name
        'model.keras'
    """
    file = _model_file(path)
    with _ctrl_c_later(), atomic_file(file) as written:
        model.save(written)
    return file


def _model_file(path: str | os.PathLike[str]) -> Path:
    """Return the path of a .keras file.

    Raises:
        ValueError: another ending, which Keras would refuse, or take for another format.
    """
    if Path(path).suffix != ".keras":
        raise ValueError(f"`path` must end in .keras, got {str(path)!r}")
    return Path(path)


@contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Hold Ctrl-C back: an archive interrupted while open ends in an error about the archive.

    The handler that was there is called once the file is written, so that Ctrl-C still ends the
    training.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    received: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *given: received.append(given))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received and callable(before):
        before(*received[0])


class TrainableGuard(keras.callbacks.Callback):
    """Raise if something is frozen or unfrozen, or the model compiled, while `fit` runs.

    Keras fixes what is trained when `fit` starts: a callback that sets `trainable` later changes
    nothing, and nobody says so. Put the guard last among the callbacks.

    Raises:
        RuntimeError: from `fit`, at the latest at the end of the epoch.

    Example:
        >>> import keras
        >>> import kerasmtl as kt
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> class Freeze(keras.callbacks.Callback):
        ...     def on_epoch_begin(self, epoch, logs=None):
        ...         self.model.layers[0].trainable = False
        >>> model.fit(keras.ops.ones((4, 1)), keras.ops.ones((4, 1)), verbose=0,
        ...           callbacks=[Freeze(), kt.callbacks.TrainableGuard()])
        Traceback (most recent call last):
        RuntimeError: `trainable` must not change during training, got 2 variables frozen. ...
    """

    def set_model(self, model: keras.Model) -> None:
        """Remember what is trained, before any callback has its turn."""
        super().set_model(model)
        self._trained = {id(variable) for variable in model.trainable_variables}
        self._optimizer = getattr(model, "optimizer", None)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Check before a step, to see what another `on_epoch_begin` has changed."""
        self.check()

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        # With the next batch Keras itself would stumble over a model that was compiled.
        if self.model.optimizer is not self._optimizer:
            self.check()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self.check()

    def on_train_end(self, logs: Logs = None) -> None:
        self.check()

    def check(self) -> None:
        """Raise RuntimeError if the model is no longer trained as it was at the start.

        Called at the start and the end of each epoch and at the end of the training, and after a
        batch if the model was compiled meanwhile.
        """
        if self.model.optimizer is not self._optimizer:
            raise RuntimeError(f"`model` must not be compiled during training. {_STAGES}")
        trained = {id(variable): variable for variable in self.model.trainable_variables}
        if trained.keys() == self._trained:
            return
        more = [v.path for key, v in trained.items() if key not in self._trained]
        less = len(self._trained - trained.keys())
        change = f"unfrozen: {', '.join(more[:SHOWN])}" if more else f"{less} variables frozen"
        raise RuntimeError(f"`trainable` must not change during training, got {change}. {_STAGES}")


_STAGES = (
    "Keras fixes what is trained when it compiles: use stages instead, such as "
    "kt.fine_tune(plan=[kt.plans.Stage('head', …), kt.plans.Stage('all', …)])."
)
