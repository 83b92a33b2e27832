"""Which callbacks have to see every batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

Callback = keras.callbacks.Callback

HOOKS = [
    f"on_{kind}batch_{moment}" for kind in ("", "train_", "test_") for moment in ("begin", "end")
]


def see_batches(callbacks: Sequence[Callback]) -> bool:
    """Whether one of the callbacks does something in a batch that the end of many is no match for.

    Callbacks of Keras that have such hooks and need them only with other settings do not.
    """
    return any(_has_hooks(callback) and not _is_idle(callback) for callback in callbacks)


def _has_hooks(callback: Any) -> bool:
    hooks = [getattr(callback, name) for name in HOOKS]  # a LambdaCallback has its own in itself
    return any(getattr(hook, "__func__", None) not in _DEFAULTS for hook in hooks)


_DEFAULTS = [getattr(Callback, name) for name in HOOKS]


def _is_idle(callback: Any) -> bool:
    kind = type(callback)
    if kind is keras.callbacks.ModelCheckpoint:
        return callback.save_freq == "epoch"
    # Training stops at the batch in which the loss is NaN, whoever looks.
    return kind in (keras.callbacks.ProgbarLogger, keras.callbacks.TerminateOnNaN)
