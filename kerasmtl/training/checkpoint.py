"""A model file that is whole at every moment."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np


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
