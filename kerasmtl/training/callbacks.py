"""Callbacks for `model.fit`: checkpoints, the best epoch, guards, and a line per epoch."""

from __future__ import annotations

import math
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerasmtl.data.dataset import permutation
from kerasmtl.utils.files import atomic_file
from kerasmtl.utils.validation import check_choice, check_count

Logs = dict[str, Any] | None

# Endings of metrics' names that say which direction is better.
HIGHER = ("auc", "accuracy", "precision", "recall", "f1", "r2", "average_precision")
LOWER = ("loss", "error", "mae", "mse", "rmse", "brier", "ece", "huber", "crossentropy")
SHOWN_ROWS = 5


class Monitor:
    """A metric's name in the logs, and its better direction.

    By default the first validation AUC, or else the first validation metric whose direction is
    known, or else the validation loss; nothing without validation data.

    Args:
        name: such as "val_auc"; or a pair, ("val_mine", "max") or ("val_mine", "min").

    Raises:
        ValueError: a direction other than "max" and "min", or none for a name that does not say it.
    """

    def __init__(self, name: str | tuple[str, str] | None) -> None:
        mode = None
        if isinstance(name, tuple | list) and len(name) == 2:
            name, mode = name
            check_choice("monitor", mode, ("max", "min"))
        if name is not None and not isinstance(name, str):
            raise ValueError(
                f"`monitor` must be a name such as 'val_auc', or ('val_mine', 'max'), got {name!r}"
            )
        self.name, self.mode = name, mode
        if name is not None:
            self._direction()

    def rank(self, logs: Mapping[str, Any]) -> float | None:
        """Return how good an epoch is, higher is better; None if nothing is monitored, or is NaN.

        Raises:
            ValueError: the name is not in the logs.
        """
        if self.name is None:
            self.name = _default(logs)
            if self.name is None:
                return None
        if self.name not in logs:
            hint = " Pass validation data." if self.name.startswith("val_") else ""
            raise ValueError(
                f"`monitor` must be in the logs, one of {sorted(logs)}, got {self.name!r}.{hint}"
            )
        value = float(logs[self.name])
        if math.isnan(value):
            return None
        return value if self._direction() == "max" else -value

    def _direction(self) -> str:
        mode = self.mode or direction(str(self.name))
        if mode is None:
            raise ValueError(
                "`monitor` must say whether higher is better, monitor="
                f"({self.name!r}, 'max') or 'min', got {self.name!r}"
            )
        return mode


def direction(name: str) -> str | None:
    """Return "max" or "min", what is better of a metric, or None if its name does not say it."""
    plain = name.removeprefix("val_")
    for mode, endings in (("max", HIGHER), ("min", LOWER)):
        if any(plain == end or plain.endswith(f"_{end}") for end in endings):
            return mode
    return None


def _default(logs: Mapping[str, Any]) -> str | None:
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
        self.monitor = Monitor(monitor)
        self._given = self.monitor.name
        self.patience = None if patience is None else check_count("patience", patience)
        self.verbose = verbose
        self.on_train_begin()

    def on_train_begin(self, logs: Logs = None) -> None:
        self.monitor.name = self._given
        self.best_epoch: int | None = None
        self._rank: float | None = None
        self._weights: list[np.ndarray] = []
        self._epochs = 0
        self.begin_stage(self.patience)

    def begin_stage(self, patience: int | None) -> None:
        """Count the patience of a stage from its first epoch on."""
        self.patience = patience
        self._stage_rank: float | None = None
        self._waited = 0

    @property
    def out_of_patience(self) -> bool:
        """Whether the stage has waited for something better as long as it may."""
        return self.patience is not None and self._waited >= self.patience

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self._epochs = epoch + 1
        rank = self.monitor.rank(logs or {})
        if self.patience is not None and self.monitor.name is None:
            raise ValueError(
                "`patience` must go with validation data or a monitor, got neither. Pass "
                "validation data."
            )
        better = rank is not None and (self._stage_rank is None or rank > self._stage_rank)
        self._stage_rank = rank if better else self._stage_rank
        self._waited = 0 if better else self._waited + 1
        if rank is not None and (self._rank is None or rank > self._rank):
            self._rank, self.best_epoch = rank, self._epochs
            self._weights = [np.array(weight) for weight in self.model.get_weights()]
        if self.out_of_patience:
            self.model.stop_training = True

    def on_train_end(self, logs: Logs = None) -> None:
        if self._weights:
            self.model.set_weights(self._weights)
        if not self.verbose:
            return
        if self.best_epoch is None or self._rank is None:
            last = f"the last epoch, {self._epochs}"
            print(f"The model has the weights of {last}: nothing was monitored.", flush=True)
        else:
            print(
                f"Best epoch: {self.best_epoch} of {self._epochs}, {self.monitor.name} "
                f"{abs(self._rank):.4g}. The model has the weights of that epoch.",
                flush=True,
            )

    def state(self) -> dict[str, np.ndarray]:
        """Return what `kt.callbacks.Resume` keeps of it: counters and the best weights."""
        found = {name: getattr(self, name) for name in _COUNTERS} | {"monitor": self.monitor.name}
        weights = {f"weights/{i}": weight for i, weight in enumerate(self._weights)}
        return {k: np.asarray(v) for k, v in found.items() if v is not None} | weights

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a state."""
        for name in _COUNTERS:
            setattr(self, name, state[name].item() if name in state else None)
        self.monitor.name = str(state["monitor"]) if "monitor" in state else self._given
        count = sum(name.startswith("weights/") for name in state)
        self._weights = [state[f"weights/{i}"] for i in range(count)]


_COUNTERS = ("best_epoch", "_rank", "_epochs", "_stage_rank", "_waited", "patience")


class Checkpoint(keras.callbacks.Callback):
    """Write the model after each finished epoch: to a hidden file first, then renamed.

    An interruption at any moment leaves the last finished epoch in `path`, ready for
    `kt.load_model`; Ctrl-C during the writing takes effect after it.

    Args:
        path: of the file, ending in .keras.
        monitor: a name in the epoch's logs, such as "val_auc"; then only epochs that improve on
            the best so far are written. By default every epoch is.
        mode: "max" if higher is better, "min" if lower is.

    Raises:
        ValueError: wrong file ending or mode, or (after an epoch) `monitor` is not in the logs.

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

    def __init__(
        self, path: str | os.PathLike[str], monitor: str | None = None, mode: str = "max"
    ) -> None:
        super().__init__()
        self.path = _model_file(path)
        check_choice("mode", mode, ("max", "min"))
        self.monitor = None if monitor is None else Monitor((monitor, mode))
        self.best: float | None = None  # higher is better, whatever the mode

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if self.monitor is not None:
            rank = self.monitor.rank(logs or {})
            # NaN (a metric defined for no task) is better than no file, and worse than any number.
            rank = -math.inf if rank is None else rank
            if self.best is not None and rank <= self.best:
                return
            self.best = rank
        save_model(self.model, self.path)

    def state(self) -> dict[str, np.ndarray]:
        """Return what `kt.callbacks.Resume` keeps of it: the best value so far."""
        return {} if self.best is None else {"best": np.array(self.best)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a state."""
        self.best = float(state["best"]) if "best" in state else None


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
    if Path(path).suffix != ".keras":
        raise ValueError(f"`path` must end in .keras, got {str(path)!r}")
    return Path(path)


@contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Hold Ctrl-C back: an archive interrupted while open ends in an error about the archive."""
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
        """Raise RuntimeError if the model is no longer trained as it was at the start."""
        if self.model.optimizer is not self._optimizer:
            raise RuntimeError(f"`model` must not be compiled during training. {_STAGES}")
        trained = {id(variable): variable for variable in self.model.trainable_variables}
        if trained.keys() == self._trained:
            return
        more = [v.path for key, v in trained.items() if key not in self._trained]
        less = len(self._trained - trained.keys())
        change = f"unfrozen: {', '.join(more[:SHOWN_ROWS])}" if more else f"{less} variables frozen"
        raise RuntimeError(f"`trainable` must not change during training, got {change}. {_STAGES}")


_STAGES = (
    "Keras fixes what is trained when it compiles: use stages instead, such as "
    "kt.fine_tune(plan=[kt.plans.Stage('head', …), kt.plans.Stage('all', …)])."
)


class LossNotFinite(FloatingPointError):
    """The loss is NaN or infinite, or refuses a batch: says epoch, batch and, if known, rows."""


def check_loss(logs: Logs, epoch: int, batches: tuple[int, int], source: Any = None) -> None:
    """Raise `LossNotFinite` if the loss is not a finite number.

    Args:
        logs: of the batches.
        epoch: from 0.
        batches: the first and the last batch that the logs are of, from 0.
        source: of the data set, as `source_of` returns it, to name the rows of a single batch.
    """
    loss = (logs or {}).get("loss")
    if loss is not None and not math.isfinite(float(loss)):
        raise LossNotFinite(_message(f"the loss is {float(loss)}", epoch, batches, source))


def check_refusal(
    error: Exception, epoch: int, batches: tuple[int, int], source: Any = None
) -> None:
    """Raise `LossNotFinite` with the loss's own reason if it has refused labels or predictions.

    An error of a graph has the parts of the reason in brackets, among the lines of code that made
    the graph.
    """
    found = _REFUSAL.search(str(error))
    if found:
        reason = f"{found[1].replace('] [', ' ')}."
        message = _message("the loss refuses it", epoch, batches, source, reason)
        raise LossNotFinite(message) from error


_REFUSAL = re.compile(r"assertion failed: \[(`y_(?:true|pred)` must be .*?)\](?: \[Op:|$)", re.M)
# XLA drops what the loss would have said.
_FINITE = (
    "Expected finite inputs, labels and predictions that the loss takes (jit_compile=False has it "
    "say what is wrong with them), and a learning rate that is not too high."
)


def check_weights(values: Sequence[np.ndarray], epoch: int, batch: int) -> None:
    """Raise `LossNotFinite` if a weight is not finite at the end of an epoch.

    Which batch it was is not known: a loss stays finite that does not depend on the weight, such
    as that of a task without labels in the batches after it.
    """
    if any(v.dtype.kind == "f" and not np.isfinite(v).all() for v in values):
        raise LossNotFinite(_message("weights are no longer finite", epoch, (0, batch)))


def _message(
    what: str, epoch: int, batches: tuple[int, int], source: Any = None, reason: str = _FINITE
) -> str:
    first, last = batches
    where = f"batch {last + 1}" if first == last else f"one of batches {first + 1} to {last + 1}"
    rows = _rows_of(source, epoch, first) if first == last else []
    shown = "; ".join(rows[:SHOWN_ROWS]) + ("; …" if len(rows) > SHOWN_ROWS else "")
    return (
        f"`train` cannot be trained on: {what} in epoch {epoch + 1}, {where}"
        + (f", which has {len(rows)} rows: {shown}." if rows else ".")
        + f" {reason} The model has the weights of the end of the last good epoch."
    )


def _rows_of(source: Any, epoch: int, batch: int) -> list[str]:
    """Return where the rows of a batch come from, if the data set's source knows it."""
    if source is None or not source.deterministic:
        return []
    first = batch * source.batch_size
    places = list(range(first, min(first + source.batch_size, source.count)))
    if source.training:
        order = permutation(source.count, source.seed, epoch).numpy()
        places = [int(order[place]) for place in places]
    return [source.where(place) for place in places]


class EpochLines(keras.callbacks.Callback):
    """Print one line per finished epoch: its number, its seconds, its metrics.

    For logs and pipes, where Keras' own bar fills the file; pass `verbose=0` to `fit` beside it.
    """

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._began = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        seconds = time.monotonic() - self._began
        values = "  ".join(f"{name} {float(value):.4g}" for name, value in (logs or {}).items())
        print(f"Epoch {epoch + 1}/{self.params['epochs']}  {seconds:.1f} s  {values}", flush=True)
