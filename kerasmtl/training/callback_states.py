"""What callbacks know between epochs: kept with a run, and given back to them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from kerasmtl.training.snapshots import same_bits

State = dict[str, np.ndarray]
Callback = keras.callbacks.Callback

# Of the callbacks of Keras, the numbers that change from epoch to epoch; None is left out.
_NUMBERS: dict[type, tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: ("wait", "best", "best_epoch", "stopped_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best",),
    keras.callbacks.CSVLogger: (),
    keras.callbacks.LearningRateScheduler: (),
    keras.callbacks.TerminateOnNaN: (),
    keras.callbacks.RemoteMonitor: (),
    keras.callbacks.ProgbarLogger: (),
}
WEIGHTS, KEYS, SIZE = "best_weights", "keys", "size"


class CallbackStates:
    """The states of callbacks: of their own, with `state()` and `restore(state)`, or of Keras.

    Args:
        callbacks: of the user.
        first: the first values of the model's weights, from which those that a callback keeps
            differ little while a backbone is frozen.
        parts: as `parts()` gave them at the end of an epoch, to go on from; None for a new run.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback],
        first: Sequence[np.ndarray],
        parts: Mapping[str, State] | None = None,
    ) -> None:
        self.callbacks, self.first, self._before = list(callbacks), list(first), parts

    def parts(self) -> dict[str, State]:
        """What is known now, by position and class."""
        states = {_name(*of): self._state(of[1]) for of in enumerate(self.callbacks)}
        return {name: state for name, state in states.items() if state is not None}

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Around `on_train_begin`, which resets callbacks, and has a log begin anew."""
        logs = [
            (callback, callback.append, state)
            for callback, state in self._with_states()
            if isinstance(callback, keras.callbacks.CSVLogger)
        ]
        for log, _, state in logs:
            _cut(log.filename, (state or {}).get(SIZE))
            log.append = True
        try:
            yield
        finally:
            for log, append, _ in logs:
                log.append = append
        for callback, state in self._with_states():
            if state:
                self._restore(callback, state)

    def notes(self) -> list[str]:
        """A line for each callback that does not go on, or not with all it knows."""
        found = []
        for position, callback in enumerate(self.callbacks):
            lost = _lost(callback)
            if lost is None and self._before is not None:
                state = self._state(callback)
                if state is not None and _name(position, callback) not in self._before:
                    lost = "was not there when the run was interrupted: it begins anew"
            if lost is not None:
                found.append(f"{type(callback).__name__} in `callbacks` {lost}.")
        return found

    def _with_states(self) -> list[tuple[Any, State | None]]:
        if self._before is None:
            return []
        return [(c, self._before.get(_name(i, c))) for i, c in enumerate(self.callbacks)]

    def _state(self, callback: Any) -> State | None:
        if _has_own(callback):
            return callback.state()
        kind = _kind(callback)
        if kind is None:
            return None
        values = {name: getattr(callback, name, None) for name in _NUMBERS[kind]}
        state = {name: np.asarray(value) for name, value in values.items() if value is not None}
        if kind is keras.callbacks.EarlyStopping and callback.best_weights is not None:
            pairs = enumerate(zip(callback.best_weights, self.first, strict=True))
            changed = {i: np.asarray(one) for i, (one, first) in pairs if not same_bits(one, first)}
            state |= {f"{WEIGHTS}/{position}": value for position, value in changed.items()}
            state[WEIGHTS] = np.array(len(changed))
        if kind is keras.callbacks.CSVLogger:
            if callback.keys:
                state[KEYS] = np.array(callback.keys)
            if os.path.isfile(callback.filename):
                state[SIZE] = np.array(os.path.getsize(callback.filename))
        return state

    def _restore(self, callback: Any, state: State) -> None:
        if _has_own(callback):
            callback.restore(state)
            return
        kind = _kind(callback)
        for name in _NUMBERS.get(kind, ()):  # type: ignore[arg-type]
            setattr(callback, name, state[name].item() if name in state else None)
        if WEIGHTS in state:
            callback.best_weights = [
                state.get(f"{WEIGHTS}/{position}", first)
                for position, first in enumerate(self.first)
            ]
        if KEYS in state:
            callback.keys = state[KEYS].tolist()


def _name(position: int, callback: Callback) -> str:
    return f"callback {position} {type(callback).__name__}"


def _has_own(callback: Any) -> bool:
    return all(callable(getattr(callback, name, None)) for name in ("state", "restore"))


def _kind(callback: Any) -> type | None:
    return next((kind for kind in _NUMBERS if isinstance(callback, kind)), None)


def _lost(callback: Any) -> str | None:
    """What of its state is not kept, None if all of it is or there is none."""
    if _has_own(callback):
        return None
    kind = _kind(callback)
    if kind is None:
        if vars(callback).keys() <= vars(Callback()).keys():
            return None
        return (
            "has no state() and restore(state): what it knows is not kept, and it begins anew when "
            "the run goes on"
        )
    if type(callback) is not kind:
        return f"has no state() and restore(state): only what {kind.__name__} knows is kept"
    if kind is keras.callbacks.ModelCheckpoint and callback.save_freq != "epoch":
        return "counts batches for save_freq anew when the run goes on"
    return None


def _cut(file: str, size: np.ndarray | None) -> None:
    """Drop what a log was given after the epoch that the state is of."""
    if size is not None and os.path.isfile(file) and os.path.getsize(file) > int(size):
        os.truncate(file, int(size))
