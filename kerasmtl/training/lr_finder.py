"""Search for a learning rate: a short run in which it grows until the loss explodes.

`find_learning_rate` trains the given model itself, and puts everything back (`_undone`). It is
called by users, between `compile` and `fit`; no other part of the package does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerasmtl.data.dataset import source_of
from kerasmtl.training.optimizers import optimizer_like
from kerasmtl.training.resume import variables_of
from kerasmtl.utils.files import atomic_file
from kerasmtl.utils.validation import check_count, check_number

EXPLOSION = 4.0  # a smoothed loss that many times the lowest one ends the test
BELOW_LOWEST = 10.0  # the suggestion is the rate of the lowest smoothed loss divided by this


@dataclass(frozen=True, eq=False)
class LearningRateCurve:
    """Losses by learning rate, as `find_learning_rate` saw them.

    Attributes:
        rates: (steps,) float64.
        losses: (steps,) float64; `losses[i]` is of the batch before the update with `rates[i]`.
        smoothed: (steps,) float64.
        suggestion: a learning rate, None if the loss fell at no rate.

    Example:
        >>> import numpy as np
        >>> import kerasmtl as kt
        >>> rates, losses = np.array([0.01, 0.1, 1.0]), np.array([1.0, 0.8, 2.0])
        >>> curve = kt.optimizers.LearningRateCurve(rates, losses, losses, suggestion=0.01)
        >>> curve.suggestion
        0.01
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float | None

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the losses over the rates into a file.

        Args:
            path: of the image, with an ending that matplotlib knows, such as .png or .svg.
        """
        from matplotlib.figure import Figure  # half a second

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
        with atomic_file(Path(path)) as written:
            figure.savefig(written)


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

    What is trainable is trained, by a new optimizer of the same kind and settings: call it after
    `compile`, for each stage again. Afterwards, and after Ctrl-C or an error, the model's weights,
    statistics, seed generators, metrics, optimizer and what its loss remembers are bit for bit what
    they were, and so is the epoch that `data` gives next, if it is of `kt.make_dataset`.

    Missing labels: as in the model's loss. A batch without labels has the loss 0, which dents the
    curve, so take batches that have some.

    Args:
        model: built and compiled, with any optimizer, whose learning rate plays no part.
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

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import kerasmtl as kt
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> batch = np.ones((4, 1), "float32"), np.zeros((4, 1), "float32")
        >>> curve = kt.optimizers.find_learning_rate(model, [batch], low=1e-3, steps=20)
        >>> 0.001 < curve.suggestion < 1.0
        True
    """
    if not (model.built and model.compiled):
        raise ValueError(
            f"`model` must be built and compiled, got built={model.built}, "
            f"compiled={model.compiled}"
        )
    check_number("low", low, 0.0, open_low=True)
    check_number("high", high, low, open_low=True)
    check_count("steps", steps, 2)
    check_number("smoothing", smoothing, 0.0, 1.0, open_high=True)
    rates = np.geomspace(low, high, steps)
    loss, losses, smoothed = None, [], []
    with _undone(model, data, low) as optimizer:
        batches = chain.from_iterable(repeat(data, steps))  # gone through as often as needed
        for rate, batch in zip(rates, batches, strict=False):
            optimizer.learning_rate = float(rate)
            x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
            logs = model.train_on_batch(x, y, sample_weight=weight, return_dict=True)
            loss = float(logs["loss"])
            if not math.isfinite(loss):
                break
            losses.append(loss)
            weights = smoothing ** np.arange(len(losses))[::-1]
            smoothed.append(float(np.dot(weights, losses) / weights.sum()))
            if _exploded(smoothed):
                break
    if not losses:
        raise ValueError(
            "`data` must have batches (x, y), and a finite loss before any update, got "
            + ("no batch" if loss is None else str(loss))
        )
    lowest = int(np.argmin(smoothed))
    suggestion = float(rates[lowest] / BELOW_LOWEST) if lowest > 0 else None
    return LearningRateCurve(rates[: len(losses)], np.array(losses), np.array(smoothed), suggestion)


def _exploded(smoothed: list[float]) -> bool:
    lowest = min(smoothed)  # negative, too: some balancers add terms below zero
    return smoothed[-1] > lowest + (EXPLOSION - 1) * abs(lowest)


@contextmanager
def _undone(model: keras.Model, data: Any, rate: float) -> Iterator[keras.optimizers.Optimizer]:
    """Give the model a new optimizer of its kind; then everything the bits that it had before.

    Args:
        model: built and compiled.
        data: whose epoch is put back if `kt.make_dataset` made it.
        rate: the first learning rate.

    Yields:
        The optimizer, built: a number is its rate, which may be set.
    """
    moved = [*model.variables, *model.metrics_variables, *variables_of(model.loss)]
    before = [np.array(variable.numpy()) for variable in moved]
    source = source_of(data)
    epoch = None if source is None or source.epoch is None else int(source.epoch.numpy())
    own, train_function = model.optimizer, model.train_function
    with model.distribute_strategy.scope():
        optimizer = optimizer_like(own, rate, getattr(own, "factors", None))
        optimizer.build(model.trainable_variables)
    try:
        # Without its train function, which was traced with the other optimizer; Keras makes a new
        # one.
        model.optimizer, model.train_function = optimizer, None
        yield optimizer
    finally:
        model.optimizer, model.train_function = own, train_function
        for variable, value in zip(moved, before, strict=True):
            variable.assign(value)
        if epoch is not None:
            source.epoch.assign(epoch)
