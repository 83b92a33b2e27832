"""The frozen part, run over the rows of a source in blocks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.backbones.hub import HubLayer
from kerasmtl.sources import Source

COMPUTED = 64  # rows that the frozen part is given at a time
TRIED = 8  # rows that are computed more than once, to see that they stay the same; divides COMPUTED
# Layers that give the same in training; so does a `HubLayer` that is frozen.
SAME_IN_TRAINING = (keras.layers.InputLayer, keras.layers.Rescaling)
MOST_CORES = 16  # that are used without tuning

Rows = Mapping[str, np.ndarray]


def batches_from(
    step: Step, source: Source, views: int, first: int, begun: Iterator[Any] | None = None
) -> Iterator[Rows]:
    """Features from a row on, of one view after the other.

    A row is computed in the same batch wherever this starts, so that its bits are the same.
    `begun`: the inputs of one view, from the first row on, in batches of `TRIED`, where an iterator
    is at hand: a new one takes its time to start.
    """
    for view in range(first // source.count, views):
        begin = max(0, first - view * source.count)
        if begun is not None and not first:
            batches = _joined(begun)
        else:
            batches = inputs_of(source, view, COMPUTED).skip(begin // COMPUTED)
        surplus = begin % COMPUTED
        for batch in batches:
            yield {name: values[surplus:] for name, values in step(batch).items()}
            surplus = 0


def inputs_of(source: Source, view: int, batch_size: int) -> tf.data.Dataset:
    """The inputs of a view, in the order of the rows."""
    found = (
        source.augmented_inputs(view, batch_size) if source.random else source.inputs(batch_size)
    )
    options = tf.data.Options()
    # Tuning gains nothing in one pass, at whose end it holds up the process for most of a second.
    options.autotune.enabled = (os.cpu_count() or 1) > MOST_CORES
    return found.with_options(options)


def _joined(batches: Iterator[Any]) -> Iterator[Any]:
    """Batches of `COMPUTED` rows, put together from those of `TRIED`."""
    while held := list(islice(batches, COMPUTED // TRIED)):
        yield _concatenated(held)


def _concatenated(batches: list[Any]) -> Any:
    return tf.nest.map_structure(lambda *parts: tf.concat(parts, axis=0), *batches)


def in_blocks(batches: Iterator[Rows], sizes: list[int]) -> Iterator[Rows]:
    """Rows in blocks of these sizes."""
    held: list[Rows] = []
    count = 0
    for size in sizes:
        while count < size:
            batch = next(batches, None)
            if batch is None:
                return
            held.append(batch)
            count += len(next(iter(batch.values())))
        whole = {name: np.concatenate([part[name] for part in held]) for name in held[0]}
        yield {name: values[:size] for name, values in whole.items()}
        held = [{name: values[size:] for name, values in whole.items()}]
        count -= size


class Step:
    """The frozen part as a function from a batch of inputs to arrays by name."""

    def __init__(self, features: keras.Model, inputs: Any) -> None:
        self.features = features
        # One trace for batches of any size: for some backbones it takes longer than an epoch.
        spec = tf.nest.map_structure(
            lambda each: tf.TensorSpec((None, *each.shape[1:]), each.dtype), inputs
        )
        self._run = tf.function(
            lambda batch: features(batch, training=False), input_signature=[spec], autograph=False
        )
        self._is_checked = False
        self.rows = {name: _row(tensor) for name, tensor in named(features.output).items()}

    def __call__(self, inputs: Any) -> Rows:
        return _arrays(self._run(inputs))

    def agrees(self, inputs: Any, kept: Rows) -> bool:
        """Whether kept rows are the features of these inputs; runs without a trace."""
        found = _arrays(self.features(inputs, training=False))
        kinds = named(self.features.output)
        count = len(next(iter(found.values())))
        return all(_alike(kept[n][:count], found[n], kind.dtype) for n, kind in kinds.items())

    def check(self, inputs: Any) -> None:
        """Raise ValueError if the same inputs do not always give the same features.

        Once: what else it is given, the frozen part does the same.
        """
        if self._is_checked:
            return
        before = [keras.ops.convert_to_numpy(v) for v in self.features.variables]
        first = self(inputs)
        again = {"when they are computed twice": self(inputs)}
        if any(map(_heeds_training, self.features.layers)):
            again["in training"] = _arrays(self.features(inputs, training=True))
        changed = []
        for variable, value in zip(self.features.variables, before, strict=True):
            if not np.array_equal(keras.ops.convert_to_numpy(variable), value, equal_nan=True):
                variable.assign(value)
                changed.append(variable.path)
        kinds = named(self.features.output)
        for when, values in again.items():
            if not all(_alike(first[n], values[n], kind.dtype) for n, kind in kinds.items()):
                raise ValueError(
                    f"`model` gives other features {when} for the same first rows: something "
                    f"random in {self.features.name!r}. Expected a frozen part that always gives "
                    "the same. Train without the feature cache."
                )
        if changed:
            raise ValueError(
                f"`model` changes its variables when it is called: {changed[:3]}. Expected a "
                "frozen part that stays as it is. Train without the feature cache."
            )
        self._is_checked = True


def _heeds_training(layer: keras.layers.Layer) -> bool:
    """Whether a layer may do something else in training."""
    return type(layer) not in SAME_IN_TRAINING and (type(layer) is not HubLayer or layer.trainable)


def named(outputs: Any) -> dict[str, Any]:
    """What the frozen part gives, by name."""
    return dict(outputs) if isinstance(outputs, Mapping) else {"features": outputs}


def _row(tensor: keras.KerasTensor) -> np.ndarray:
    """An empty row as it is kept; a type that NumPy lacks is kept as float32."""
    if tensor.dtype == "string" or None in tensor.shape[1:]:
        raise ValueError(
            "`model` has a frozen part that gives what cannot be kept. Expected numbers in a fixed "
            f"shape. Received: {tensor.dtype} {tensor.shape}. Train without the feature cache."
        )
    dtype = "float32" if tensor.dtype == "bfloat16" else tensor.dtype
    return np.empty(tensor.shape[1:], dtype)


def _arrays(outputs: Any) -> Rows:
    return {name: _stored(tensor) for name, tensor in named(outputs).items()}


def _stored(tensor: tf.Tensor) -> np.ndarray:
    return (tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor).numpy()


def _alike(a: np.ndarray, b: np.ndarray, dtype: str) -> bool:
    """Equal but for rounding: one of them may come from a graph that was optimized."""
    scale = np.nan_to_num(np.abs(a.astype(np.float64))).max(initial=0.0)
    share = 2e-2 if dtype in ("float16", "bfloat16") else 1e-3
    return np.allclose(a, b, rtol=share, atol=share * scale, equal_nan=True)
