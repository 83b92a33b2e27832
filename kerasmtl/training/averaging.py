"""The moving average of a model's weights, which is validated and kept in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.backbones.layer_tree import is_batch_normalization, leaves


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
