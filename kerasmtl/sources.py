"""What a data set was made from, and the order of its rows in each epoch.

The order of an epoch depends on the seed, the number of the epoch and the number of rows alone: not
on TensorFlow's global seed, nor on how many iterators there were before. So an interrupted run can
go on where it was, and a data set of features gives its rows in the order of the data set of
pictures that it stands for.
"""

from __future__ import annotations

import warnings
import weakref
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kerasmtl.graphs import as_written

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Source(ABC):
    """The rows behind a data set of `make_dataset` or `make_table_dataset`.

    Shapes: labels (count, tasks) float32, or a dict of (count, columns), as the batches have them,
    in the order of the rows; NaN = missing.

    `epoch` is the number of the epoch that the next iterator gives (`new_epoch`), None without
    training. `random` says why the inputs of a row differ from epoch to epoch, None if they do not.
    `deterministic` is False if batches may come in another order than `epoch_indices` says.
    """

    count: int
    labels: Any
    batch_size: int
    training: bool
    seed: int
    epoch: tf.Variable | None
    random: str | None = None
    deterministic: bool = True

    @abstractmethod
    def inputs(self, batch_size: int) -> tf.data.Dataset:
        """The inputs alone, in batches, in the order of the rows, without augmentation."""

    @abstractmethod
    def augmented_inputs(self, view: int, batch_size: int) -> tf.data.Dataset:
        """As `inputs`, each row augmented: the same in every call with this view, from 0."""

    @abstractmethod
    def content_sha256(self) -> str:
        """A hash over the content of all rows' inputs, in order, and what prepares them."""

    @abstractmethod
    def where(self, row: int) -> str:
        """The place of a row, for messages."""


_SOURCES: weakref.WeakKeyDictionary[Any, Source] = weakref.WeakKeyDictionary()


def register(dataset: tf.data.Dataset, source: Source) -> tf.data.Dataset:
    """The data set, of which `source_of` henceforth knows the source."""
    _SOURCES[dataset] = source
    # Which is Keras' default in `fit`; it is the data set that shuffles, or does not.
    warnings.filterwarnings("ignore", "`shuffle=True` was passed, but will be ignored")
    return dataset


def source_of(dataset: Any) -> Source | None:
    """What a data set was made from; None if that is not known.

    It is known of what `make_dataset` and `make_table_dataset` return, and of nothing that was
    made from that, such as by `.map` or `.take`.
    """
    try:
        return _SOURCES.get(dataset)
    except TypeError:  # not hashable, or nothing that a weak reference can point to
        return None


def new_epoch() -> tf.Variable:
    """The number of a data set's next epoch, shape (), int64, on the CPU, at first 0.

    Each new iterator takes the number and adds 1; assign another to have that epoch next.
    """
    import tensorflow as tf

    def make() -> tf.Variable:
        with tf.device("CPU:0"):
            return tf.Variable(0, dtype=tf.int64, trainable=False, name="epoch")

    # In another thread no distribution strategy is in scope that would make a copy per replica.
    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(make).result()


def next_epochs(epoch: tf.Variable) -> tf.data.Dataset:
    """A data set of one element, the number of the epoch, shape (), int64; adds 1 to it."""
    import tensorflow as tf

    return tf.data.Dataset.from_tensors(0).map(
        as_written(lambda _: epoch.assign_add(1, read_value=True) - 1)
    )


def permutation(count: int, seed: int, epoch: Any) -> tf.Tensor:
    """The order of the rows in an epoch: (count,) int64, each of 0 … count - 1 once.

    The stable order of `count` draws of 64 bits from the counter-based generator Philox (Salmon et
    al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by seed and epoch.
    """
    import tensorflow as tf

    key = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
    with tf.device("CPU:0"):
        draws = tf.random.stateless_uniform(
            [count], key, minval=None, maxval=None, dtype=tf.int64, alg="philox"
        )
        return tf.cast(tf.argsort(draws, stable=True), tf.int64)


def epoch_indices(count: int, seed: int, epoch: tf.Variable) -> tf.data.Dataset:
    """Row numbers, shape () int64, in the order of the epoch that `epoch` says, which moves on.

    Every iterator gives each of 0 … count - 1 once, by `permutation`.
    """
    import tensorflow as tf

    rows = next_epochs(epoch).flat_map(
        as_written(
            lambda number: tf.data.Dataset.from_tensor_slices(permutation(count, seed, number))
        )
    )
    return rows.apply(tf.data.experimental.assert_cardinality(count))
