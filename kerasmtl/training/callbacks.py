"""The moving average of a model's weights, which is validated and kept in their place."""

from __future__ import annotations

import math
import os
import re
import signal
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.models.layer_groups import is_batch_normalization, leaves

MORE = ("auc", "accuracy", "precision", "recall", "f1", "r2", "average_precision")
LESS = ("loss", "error", "mae", "mse", "rmse", "brier", "ece", "huber", "crossentropy")


class Monitor:
    """A name in the logs and its better direction.

    By default the first validation AUC, or else the first validation metric whose direction is
    known, or else the validation loss; None without validation data.

    Args:
        name: such as "val_auc"; or a pair, ("val_mine", "max") or "min".
        validated: whether there is validation data.

    Raises:
        ValueError: a direction that is neither or, of a name that does not say it, none; or a
            validation metric without validation data.
    """

    def __init__(self, name: str | tuple[str, str] | None, validated: bool) -> None:
        if name is not None and not isinstance(name, str) and not _is_pair(name):
            raise ValueError(
                "`monitor` is no name. Expected one such as 'val_auc', or ('val_mine', 'max'). "
                f"Received: {name!r}"
            )
        self.name, self.mode = (name, None) if name is None or isinstance(name, str) else name
        if self.mode not in (None, "max", "min"):
            raise ValueError(
                f"`monitor` has no direction. Expected ('{self.name}', 'max') or 'min'. "
                f"Received: {name!r}"
            )
        if self.name is not None and self.name.startswith("val_") and not validated:
            raise ValueError(f"`monitor` {self.name!r} needs validation data. Pass validation=….")
        self.validated = validated
        if self.name is not None and self.mode is None:
            self._direction()

    def check(self, names: Collection[str]) -> None:
        """Raise ValueError if the name is none of these, of the logs."""
        if self.name is not None and self.name not in names:
            raise ValueError(
                f"`monitor` {self.name!r} is not in the logs. Expected one of {sorted(names)}."
            )

    def rank(self, logs: Mapping[str, Any]) -> float | None:
        """How good an epoch is, the more the better; None if nothing is monitored, or it is NaN.

        Raises:
            ValueError: the name is not in the logs, or its direction is not known.
        """
        if self.name is None:
            if not self.validated:
                return None
            self.name = _default(logs)
        self.check(logs)
        value = float(logs[self.name])
        if math.isnan(value):
            return None
        return value if self._direction() == "max" else -value

    def _direction(self) -> str:
        mode = self.mode or direction(str(self.name))
        if mode is None:
            raise ValueError(
                f"`monitor` {self.name!r} may be better high or low. Expected a name that says it, "
                f"such as 'val_auc', or monitor=({self.name!r}, 'max') or 'min'."
            )
        return mode


def _is_pair(name: Any) -> bool:
    return isinstance(name, tuple | list) and len(name) == 2 and isinstance(name[0], str)


def direction(name: str) -> str | None:
    """ "max" if more of a metric is better, "min" if less is, None if its name does not say."""
    plain = name.removeprefix("val_")
    for mode, endings in (("max", MORE), ("min", LESS)):
        if any(plain == end or plain.endswith(f"_{end}") for end in endings):
            return mode
    return None


def _default(logs: Mapping[str, Any]) -> str:
    names = [name for name in logs if name.startswith("val_")]
    areas = [name for name in names if name == "val_auc" or name.endswith("_auc")]
    others = [n for n in names if not n.endswith("loss") and direction(n) is not None]
    return (areas + others + ["val_loss"])[0]


class Checkpoint(keras.callbacks.Callback):
    """Write the model after each finished epoch: aside first, then renamed into place.

    An interruption at any moment leaves the last finished epoch in `path`, ready for
    `kerasmtl.load_model`; Ctrl-C during the writing takes effect after it.

    Args:
        path: the file, ending in .keras.
        monitor: a name in the epoch's logs, such as "val_auc"; then only epochs that improve on
            the best so far are written. By default every epoch is.
        mode: "max" if more is better, "min" if less is.

    Raises:
        ValueError: wrong file ending or mode, or (after an epoch) `monitor` is not in the logs.
    """

    def __init__(
        self, path: str | os.PathLike[str], monitor: str | None = None, mode: str = "max"
    ) -> None:
        super().__init__()
        self.path = _model_file(path)
        if mode not in ("max", "min"):
            raise ValueError(f"`mode` is unknown. Expected 'max' or 'min'. Received: {mode!r}")
        self.monitor = monitor
        self.mode = mode
        self.best: float | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.monitor is None or self._improved(logs or {}):
            self._write()

    def state(self) -> dict[str, np.ndarray]:
        """What `fine_tune(directory=…)` keeps, so that a run that goes on knows the best so far."""
        return {} if self.best is None else {"best": np.array(self.best)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a state."""
        self.best = float(state["best"]) if "best" in state else None

    def _improved(self, logs: dict[str, Any]) -> bool:
        if self.monitor not in logs:
            raise ValueError(
                f"`monitor` {self.monitor!r} is not in the logs. Expected one of {sorted(logs)}."
            )
        value = float(logs[self.monitor])
        sign = 1.0 if self.mode == "max" else -1.0
        # NaN (a metric defined for no task) is better than no file, and worse than any number.
        rank = float("-inf") if value != value else sign * value
        improved = self.best is None or rank > sign * self.best
        if improved:
            self.best = sign * rank
        return improved

    def _write(self) -> None:
        save_model(self.model, self.path)


def save_model(model: keras.Model, path: str | os.PathLike[str]) -> Path:
    """Write a model to a .keras file: aside first, then renamed into place.

    Returns:
        The file. Whatever interrupts the writing, it is the former one or the new one, whole.

    Raises:
        ValueError: wrong file ending.
    """
    file = _model_file(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside_of = tempfile.TemporaryDirectory(dir=file.parent, prefix=".saving-")
    with _ctrl_c_later(), aside_of as aside:
        written = Path(aside) / file.name
        model.save(written)
        os.replace(written, file)
    return file


def _model_file(path: str | os.PathLike[str]) -> Path:
    if Path(path).suffix != ".keras":
        raise ValueError(f"`path` is no model file. Expected NAME.keras. Received: {path}")
    return Path(path)


@contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Hold Ctrl-C back: an archive interrupted while open ends in an error about the archive."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    held: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *received: held.append(received))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held and callable(before):
        before(*held[0])


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
    from kerasmtl.data.dataset import permutation

    if source is None or not source.deterministic:
        return []
    first = batch * source.batch_size
    places = range(first, min(first + source.batch_size, source.count))
    if source.training:
        order = permutation(source.count, source.seed, epoch).numpy()
        return [source.where(int(order[place])) for place in places]
    return [source.where(place) for place in places]


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


class WeightAverage(keras.callbacks.Callback):
    """Validate, keep and end with an average of the weights; train the weights themselves.

    After each update of the optimizer, number t = 0, 1, …: `average ← d · average + (1 - d) ·
    weights`, `d = min(decay, (1 + t) / (10 + t))`, so that a short run averages as well.

    Averaged are the trainable weights and, in layers that train, moving statistics: those of the
    raw weights would not fit. What is frozen stays as it is, bit for bit, and so does the training:
    without this callback the raw weights would be the same ones.

    In evaluation, at the end of an epoch and after `fit` the model holds the average. Callbacks see
    it at the end of an epoch, such as `Checkpoint` or EarlyStopping with `restore_best_weights`, if
    they come later in the list: put this one first. A further `fit` goes on from the raw weights;
    if the model's weights were set in between, from those, with a new average. What a later stage
    trains for the first time enters the average as it is then.

    Missing labels: an update is an update; without labels too, weights may move by their momentum.

    Polyak & Juditsky 1992 (https://doi.org/10.1137/0330046), with exponential weights; d as in
    tf.train.ExponentialMovingAverage. `use_ema=True` of Keras' optimizers does not serve here: it
    averages no statistics, and its `SwapEMAWeights` adds and subtracts to swap, which rounds, and
    takes a step between stages for one of all weights.

    Args:
        decay: from 0, which averages nothing, to below 1.

    Raises:
        ValueError: a decay out of range, or (in `fit`) an optimizer that averages too.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        if isinstance(decay, bool) or not 0.0 <= decay < 1.0:
            raise ValueError(f"`decay` is out of range. Expected 0 <= decay < 1. Received: {decay}")
        self.decay = float(decay)
        self._of: keras.Model | None = None
        self._forget()

    def _forget(self) -> None:
        self._averages: dict[int, tf.Variable] = {}
        self._raw: dict[int, np.ndarray] | None = None
        self._updates = tf.Variable(0, dtype=tf.int64, trainable=False)

    @property
    def swapped(self) -> bool:
        """Whether the model holds the average now."""
        return self._raw is not None

    def swap_in(self) -> None:
        """Put the average into the model, and keep the raw weights; nothing if it is there."""
        if self.swapped:
            return
        weights = self._of.weights if self._of is not None else []
        self._raw = {at: np.array(weights[at].numpy()) for at in self._averages}
        for at, average in self._averages.items():
            weights[at].assign(average)

    def swap_out(self) -> None:
        """Put the raw weights back into the model; nothing if they are there."""
        raw, self._raw = self._raw, None
        for at, value in (raw or {}).items():
            self._of.weights[at].assign(value)

    @contextmanager
    def raw(self) -> Iterator[None]:
        """Within it the model holds the raw weights: what a state to resume from must hold."""
        swapped = self.swapped
        self.swap_out()
        try:
            yield
        finally:
            if swapped:
                self.swap_in()

    def state(self) -> dict[str, np.ndarray]:
        """The average for `restore`, by the position in `model.weights`; not the raw weights."""
        averages = {f"average/{at}": value.numpy() for at, value in self._averages.items()}
        return {"updates": self._updates.numpy(), **averages}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a `state` again, when the model holds the raw weights of that moment.

        Raises:
            ValueError: no model yet (call `set_model`), or a state of another model.
        """
        shapes = [tuple(weight.shape) for weight in self.model.weights] if self.model else None
        places = {int(name.partition("/")[2]): name for name in state if name != "updates"}
        if shapes is None or any(
            at >= len(shapes) or np.shape(state[name]) != shapes[at] for at, name in places.items()
        ):
            raise ValueError(
                "`state` does not fit the model. Expected the state of a WeightAverage of the same "
                "model, and set_model(model) before."
            )
        self._forget()
        self._of = self.model
        self._updates.assign(int(state["updates"]))
        self._averages = {at: _variable(state[name]) for at, name in places.items()}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        optimizer = self.model.optimizer
        while optimizer is not None:
            if getattr(optimizer, "use_ema", False):
                raise ValueError(
                    "`optimizer` averages the weights too. Expected use_ema=False with a "
                    "WeightAverage."
                )
            optimizer = getattr(optimizer, "inner_optimizer", None)
        if self._of is not self.model or (self.swapped and not self._untouched()):
            self._forget()
        self._of = self.model
        self.swap_out()
        weights = self.model.weights
        for at in _moving(self.model):
            if at not in self._averages:
                self._averages[at] = _variable(weights[at].numpy())
        self._seen = tf.Variable(_steps(self.model.optimizer), trainable=False)
        self._move = tf.function(self._follow, autograph=False)

    def _untouched(self) -> bool:
        weights = self._of.weights
        return all(
            np.array_equal(weights[at].numpy(), average.numpy())
            for at, average in self._averages.items()
        )

    def _follow(self) -> None:
        now = _steps(self.model.optimizer)
        count = tf.cast(self._updates, tf.float32)
        decay = tf.minimum(self.decay, (1.0 + count) / (10.0 + count))
        # None with gradient accumulation or a skipped step, several with steps_per_execution.
        fresh = now - self._seen
        share = 1.0 - decay ** tf.cast(fresh, tf.float32)
        weights = self._of.weights
        for at, average in self._averages.items():
            apart = tf.convert_to_tensor(weights[at]) - average
            average.assign_add(tf.cast(share, average.dtype) * apart)
        self._updates.assign_add(fresh)
        self._seen.assign(now)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._move()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.swap_out()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.swap_in()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.swap_in()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._to_undo = self._of is self.model and not self.swapped
        if self._to_undo:
            self.swap_in()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._to_undo:
            self.swap_out()


def _moving(model: keras.Model) -> list[int]:
    """The positions in `model.weights` of what training moves, statistics included."""
    moving = {id(weight) for weight in model.trainable_weights}
    for layer in leaves(model):
        if layer.trainable and (layer.trainable_weights or is_batch_normalization(layer)):
            moving |= {id(weight) for weight in layer.weights}
    return [
        at
        for at, weight in enumerate(model.weights)
        if id(weight) in moving and keras.backend.is_float_dtype(weight.dtype)
    ]


def _variable(value: Any) -> tf.Variable:
    return tf.Variable(np.asarray(value), trainable=False)


def _steps(optimizer: keras.optimizers.Optimizer) -> Any:
    return tf.cast(tf.convert_to_tensor(optimizer.iterations), tf.int64)


def best_line(best: int | None, epochs: int, monitor: str | None, rank: float | None) -> str:
    """Which epoch the model has its weights from."""
    if best is None or rank is None:
        return f"The model has the weights of the last epoch, {epochs}: nothing was monitored."
    return (
        f"Best epoch: {best} of {epochs}, {monitor} {abs(rank):.4g}. The model has the weights of "
        "that epoch."
    )
