"""Which learning rate: a short run in which it grows until the loss explodes."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerasmtl.data.dataset import source_of
from kerasmtl.training.compile import _collect
from kerasmtl.training.optimizers import positive_number
from kerasmtl.training.resume import Snapshots

EXPLOSION = 4.0  # a smoothed loss that many times the lowest one ends the test
BELOW_LOWEST = 10.0  # the suggestion is the rate of the lowest smoothed loss divided by this


@dataclass(frozen=True, eq=False)
class LearningRateCurve:
    """What `find_learning_rate` saw.

    Shapes: rates, losses and smoothed (steps,) float64; `losses[i]` is that of the batch before the
    update with `rates[i]`. `suggestion` is a rate, None if the loss fell at no rate.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float | None

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the losses over the rates into a file: written aside, then renamed.

        Args:
            path: the picture, with an ending that matplotlib knows, such as .png or .svg.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "`plot` needs matplotlib. Install it with: pip install 'kerasmtl[plot]'"
            ) from error
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.plot(self.rates, self.losses, color="0.75", label="by batch")
        axes.plot(self.rates, self.smoothed, color="C0", label="smoothed")
        if self.suggestion is not None:
            label = f"suggested: {self.suggestion:.2g}"
            axes.axvline(self.suggestion, color="C1", linestyle="--", label=label)
        # The explosion at the end would flatten all that is to be seen.
        lowest, highest = self.losses.min(), self.losses[: self.smoothed.argmin() + 1].max()
        axes.set_ylim(lowest - 0.1 * abs(lowest), highest + 0.5 * abs(highest))
        axes.legend()
        target = Path(path)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".plotting-") as aside:
            figure.savefig(Path(aside) / target.name)
            os.replace(Path(aside) / target.name, target)


def find_learning_rate(
    model: keras.Model,
    data: Iterable[Any],
    low: float = 1e-7,
    high: float = 10.0,
    steps: int = 100,
    smoothing: float = 0.9,
) -> LearningRateCurve:
    """Train for some batches at a rate that grows from `low` to `high`, and undo it.

    `rate_i = low · (high / low)^(i / (steps - 1))`, one batch each, i = 0, 1, …; smoothed with
    β = `smoothing`: `s_i = (1 - β) Σ_{j ≤ i} β^(i - j) loss_j / (1 - β^(i + 1))`. It ends before
    the last rate when the loss is not finite, or the smoothed one four times the lowest so far.
    Suggested is the rate at the lowest smoothed loss divided by 10, since a loss still falls for a
    while at a rate too high for it, and smoothing adds to that. (Where it falls fastest, the other
    custom, jumps about with noise.) Smith 2017, section 3.3, the range test
    (https://arxiv.org/abs/1506.01186), here in equal ratios; the tenth is not from there.

    What is trainable is trained, by a fresh optimizer of the same kind and settings: run it after
    `compile`, for each stage anew. Afterwards, and after Ctrl-C or an error, the model's weights,
    statistics, seed generators, metrics, optimizer and what its loss remembers are bit for bit what
    they were, and so is the epoch that `data` gives next, if it is of `make_dataset`.

    Missing labels: as in the model's loss; a batch without labels has the loss 0, which dents the
    curve, so take batches that have some.

    Args:
        model: built and compiled, with any optimizer; its learning rate and schedule play no part.
        data: batches (x, y) or (x, y, sample_weight), such as a tf.data.Dataset; gone through
            again where it has fewer than `steps`.
        low, high: the first and the last rate.
        steps: how many, from 2.
        smoothing: from 0, for none, to below 1.

    Returns:
        The curve and the suggestion.

    Raises:
        ValueError: arguments out of range, a model not built or compiled, no batch, or a loss that
            is not finite before the first update.
        tf.errors.InvalidArgumentError: labels or predictions that the loss does not take.
    """
    _check(model, low, high, steps, smoothing)
    rates = np.geomspace(low, high, steps)
    losses: list[float] = []
    smoothed: list[float] = []
    with undone(model, data), _fresh_optimizer(model, low) as optimizer:
        for rate, batch in zip(rates, _endless(data), strict=False):
            optimizer.learning_rate = float(rate)
            x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
            logs = model.train_on_batch(x, y, sample_weight=weight, return_dict=True)
            loss = float(logs["loss"])
            if not math.isfinite(loss):
                break
            losses.append(loss)
            smoothed.append(_smooth(losses, smoothing))
            if smoothed[-1] > EXPLOSION * min(smoothed):
                break
    if not losses:
        raise ValueError(f"`data` gives a loss of {loss} before any update. Expected a number.")
    return _curve(rates[: len(losses)], losses, smoothed)


def _check(model: keras.Model, low: float, high: float, steps: int, smoothing: float) -> None:
    if not (model.built and model.compiled):
        raise ValueError(
            "`model` cannot be trained yet. Expected a model that is built and compiled. "
            f"Received: built={model.built}, compiled={model.compiled}"
        )
    if not positive_number("low", low) < positive_number("high", high):
        raise ValueError(f"`low` is not below `high`. Received: low={low}, high={high}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise ValueError(f"`steps` are too few. Expected a whole number from 2. Received: {steps}")
    if isinstance(smoothing, bool) or not 0.0 <= smoothing < 1.0:
        raise ValueError(
            f"`smoothing` is out of range. Expected 0 <= smoothing < 1. Received: {smoothing}"
        )


def _endless(data: Iterable[Any]) -> Iterator[Any]:
    while True:
        batch = None
        for batch in data:
            yield batch
        if batch is None:
            raise ValueError("`data` has no batch. Expected batches (x, y). Received: nothing")


def _smooth(losses: list[float], smoothing: float) -> float:
    weights = smoothing ** np.arange(len(losses))[::-1]
    return float(np.dot(weights, losses) / weights.sum())


def _curve(rates: np.ndarray, losses: list[float], smoothed: list[float]) -> LearningRateCurve:
    lowest = int(np.argmin(smoothed))
    suggestion = float(rates[lowest] / BELOW_LOWEST) if lowest > 0 else None
    return LearningRateCurve(rates, np.array(losses), np.array(smoothed), suggestion)


@contextmanager
def undone(model: keras.Model, data: Any) -> Iterator[None]:
    """Afterwards all variables that training moves are bit for bit what they were."""
    of_loss: dict[int, keras.Variable] = {}
    _collect(model.loss, of_loss, set())
    before = Snapshots([*model.variables, *model.metrics_variables, *of_loss.values()])
    source = source_of(data)
    epoch = None if source is None or source.epoch is None else int(source.epoch.numpy())
    try:
        yield
    finally:
        before.restore({})
        if epoch is not None:
            source.epoch.assign(epoch)


@contextmanager
def _fresh_optimizer(model: keras.Model, rate: float) -> Iterator[keras.optimizers.Optimizer]:
    """The model with another optimizer of its kind, which has seen nothing; then with its own."""
    own, train_function = model.optimizer, model.train_function
    with model.distribute_strategy.scope():
        optimizer = type(own).from_config(_at_rate(own.get_config(), rate))
        optimizer.build(model.trainable_variables)
    try:
        model.optimizer = optimizer
        model.train_function = None
        yield optimizer
    finally:
        model.optimizer, model.train_function = own, train_function


def _at_rate(config: dict[str, Any], rate: float) -> dict[str, Any]:
    """The config of an optimizer, or of one around another, at a constant rate."""
    if "inner_optimizer" not in config:
        return {**config, "learning_rate": float(rate)}
    inner = config["inner_optimizer"]
    inner = {**inner, "config": _at_rate(inner["config"], rate)}
    return {**config, "inner_optimizer": inner}
