"""What a training says of itself: each stage and epoch, why it stops, which epoch was best."""

from __future__ import annotations

import sys
import time
from typing import Any

import keras

from kerasmtl.training.plans import Plan, counted, meaning


def as_verbose(verbose: Any) -> int:
    """0, 1 (a bar an epoch) or 2 (a line an epoch); "auto" is a bar on a terminal, else lines."""
    if verbose == "auto":
        return 1 if sys.stdout.isatty() else 2
    return int(verbose)


class EpochLines(keras.callbacks.Callback):
    """Print one line per finished epoch: its number, its seconds, its metrics.

    For logs and pipes, where Keras' own bar fills the file; pass `verbose=0` to `fit` beside it.

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> history = model.fit([[1.0]], [[2.0]], callbacks=[EpochLines()], verbose=0)
    """

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._began = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        seconds = time.monotonic() - self._began
        values = "  ".join(f"{name} {float(value):.4g}" for name, value in (logs or {}).items())
        print(f"Epoch {epoch + 1}/{self.params['epochs']}  {seconds:.1f} s  {values}", flush=True)

    def state(self) -> dict[str, Any]:
        """Nothing is kept from epoch to epoch."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on."""


def stage_line(plan: Plan, number: int, model: keras.Model) -> str:
    """What a stage, counted from 0, trains; `model` is frozen and unfrozen for it already."""
    stage = plan[number]
    trained = sum(variable.value.shape.num_elements() for variable in model.trainable_weights)
    whole = sum(variable.value.shape.num_elements() for variable in model.weights)
    return (
        f"Stage {number + 1} of {len(plan)}: {meaning(stage)} ({trained:,} of {whole:,} weights), "
        f"up to {counted(stage.epochs, 'epoch')}, learning rate {stage.learning_rate:g}."
    )


def stop_line(plan: Plan, number: int, epoch: int, monitor: str | None, asked: bool) -> str:
    """Why a stage ended before its last epoch."""
    if asked:
        return f"Stopped after epoch {epoch}: a callback asked for it."
    return (
        f"Stage {number + 1} ends early, after epoch {epoch}: {monitor} has not improved for "
        f"{counted(plan[number].patience, 'epoch')}."
    )


def best_line(best: int | None, epochs: int, monitor: str | None, rank: float | None) -> str:
    """Which epoch the model has its weights from."""
    if best is None or rank is None:
        return f"The model has the weights of the last epoch, {epochs}: nothing was monitored."
    return (
        f"Best epoch: {best} of {epochs}, {monitor} {abs(rank):.4g}. The model has the weights of "
        "that epoch."
    )
