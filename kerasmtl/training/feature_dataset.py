"""Batches of kept features, in the order of the data set that they were computed from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.graphs import as_written
from kerasmtl.sources import Source, permutation, register
from kerasmtl.training.feature_computing import named

MEMORY_LIMIT = 2**30  # bytes of features that are read into memory as a whole

Lookup = Callable[[tf.Tensor], Any]


def feature_source(
    features: keras.Model, of: Source, views: int, key: str, arrays: Mapping[str, np.ndarray]
) -> FeatureSource:
    """The rows of a source by their features; each epoch counts as one of the source's own.

    Shapes: arrays (views * rows, …), the rows of one view after those of the other.

    Args:
        features: the frozen part, which says how features are nested and typed.
        of: what they were computed from.
        views: how many views of each row there are; epoch e has view e modulo `views`.
        key: of the entry.
        arrays: by name; up to 1 GiB is read into memory.
    """
    in_memory = sum(array.nbytes for array in arrays.values()) <= MEMORY_LIMIT
    lookup, labels = _lookup(features, arrays, in_memory), _constants(of.labels)

    def gather(rows: tf.Tensor) -> tuple[Any, Any]:
        chosen = rows % of.count
        return lookup(rows), tf.nest.map_structure(lambda values: tf.gather(values, chosen), labels)

    return FeatureSource(
        count=of.count,
        labels=of.labels,
        batch_size=of.batch_size,
        training=of.training,
        seed=of.seed,
        epoch=of.epoch,
        random=f"views={views}" if views > 1 else None,
        of=of,
        views=views,
        key=key,
        lookup=lookup,
        gather=gather,
        in_memory=in_memory,
    )


def feature_dataset(source: FeatureSource) -> tf.data.Dataset:
    """Batches of features and labels.

    Shapes: features (batch, …), labels as the source has them, NaN = missing.
    """
    batches = _batches(source).map(as_written(source.gather)).prefetch(tf.data.AUTOTUNE)
    return register(batches, source)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FeatureSource(Source):
    """The rows of another source, by their features.

    `lookup` goes from numbers of rows, among those of all views, to features; `gather` to features
    and labels.
    """

    of: Source
    views: int
    key: str
    lookup: Lookup
    gather: Lookup
    in_memory: bool

    def next_order(self) -> tf.Tensor:
        """The rows of the next epoch, among those of all views; the epoch after it is next then."""
        number = self.epoch.assign_add(1, read_value=True) - 1
        return permutation(self.count, self.seed, number) + number % self.views * self.count

    def inputs(self, batch_size: int) -> tf.data.Dataset:
        """Features of the first view, in the order of the rows."""
        return self.augmented_inputs(0, batch_size)

    def augmented_inputs(self, view: int, batch_size: int) -> tf.data.Dataset:
        """Features of a view, counted modulo the number of views."""
        first = view % self.views * self.count
        return (
            tf.data.Dataset.range(first, first + self.count)
            .batch(batch_size)
            .map(as_written(self.lookup))
        )

    def content_sha256(self) -> str:
        """The key that the features are kept under."""
        return self.key

    def where(self, row: int) -> str:
        """The place of a row, for messages."""
        return self.of.where(row)


def _batches(source: FeatureSource) -> tf.data.Dataset:
    """The numbers of a batch's rows among those of all views, in the order of the source."""
    if source.epoch is None:
        return tf.data.Dataset.range(source.count).batch(source.batch_size)
    # Each function costs milliseconds in every epoch, more than small batches do: hence one, and
    # rows set apart and put together again, instead of `epoch_indices`.
    rows = tf.data.Dataset.from_tensors(0).map(as_written(lambda _: source.next_order())).unbatch()
    batches = -(-source.count // source.batch_size)
    return rows.batch(source.batch_size).apply(tf.data.experimental.assert_cardinality(batches))


def _lookup(features: keras.Model, arrays: Mapping[str, np.ndarray], in_memory: bool) -> Lookup:
    """From row numbers to features, nested and typed as the frozen part gives them."""
    outputs = named(features.output)
    if in_memory:
        kept = _constants(dict(arrays))
        picked = {name: _in_memory(kept[name]) for name in outputs}
    else:
        picked = {name: _on_disk(arrays[name]) for name in outputs}
    single = not isinstance(features.output, Mapping)

    def lookup(rows: tf.Tensor) -> Any:
        found = {name: tf.cast(picked[name](rows), out.dtype) for name, out in outputs.items()}
        return found["features"] if single else found

    return lookup


def _in_memory(kept: tf.Tensor) -> Lookup:
    return lambda rows: tf.gather(kept, rows)


def _on_disk(array: np.ndarray) -> Lookup:
    def lookup(rows: tf.Tensor) -> tf.Tensor:
        read = tf.numpy_function(lambda at: array[at], [rows], array.dtype, stateful=False)
        return tf.ensure_shape(read, (None, *array.shape[1:]))

    return lookup


def _constants(structure: Any) -> Any:
    with tf.device("CPU:0"):
        return tf.nest.map_structure(tf.constant, structure)
