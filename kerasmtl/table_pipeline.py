"""Table → tf.data.Dataset of (features, labels)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasmtl.graphs import as_written
from kerasmtl.sources import Source, epoch_indices, new_epoch, register
from kerasmtl.table import Table
from kerasmtl.tasks import Task, all_binary, output_columns

if TYPE_CHECKING:
    import tensorflow as tf


def make_table_dataset(
    table: Table, batch_size: int = 32, training: bool = False, seed: int = 0
) -> tf.data.Dataset:
    """Batches of features and labels: what `make_dataset` is for pictures.

    Shapes: features (batch, columns) float32, NaN = missing; labels (batch, tasks) float32,
    NaN = missing, or a dict as `output_columns` names it if other kinds than binary are there.

    Args:
        table: the rows.
        batch_size: rows a batch; the last batch may be smaller.
        training: shuffle anew in every epoch, and check that every task has known labels of
            both classes. Otherwise the order is that of the table.
        seed: of the shuffling; the order of an epoch depends on it, the number of the epoch and
            the number of rows alone.

    Raises:
        ValueError: no rows, a batch size below 1, or (training) a task with no known label.
    """
    import tensorflow as tf

    if batch_size < 1:
        raise ValueError(f"`batch_size` is too small. Expected at least 1. Received: {batch_size}")
    if not len(table):
        raise ValueError(f"`table` has no rows. Expected at least one. Received: {table!r}")
    if training:
        table.check_classes()
    source = TableSource(
        count=len(table),
        labels=_by_output(table.labels, table.tasks),
        batch_size=batch_size,
        training=training,
        seed=seed,
        epoch=new_epoch() if training else None,
        table=table,
    )
    # Row numbers are shuffled and whole batches gathered: rows one by one would cost far more.
    features = tf.constant(table.features)
    labels = tf.nest.map_structure(tf.constant, source.labels)
    if source.epoch is None:
        rows = tf.data.Dataset.range(len(table))
    else:
        rows = epoch_indices(len(table), seed, source.epoch)

    def gather(chosen: tf.Tensor) -> tuple[tf.Tensor, Any]:
        return tf.gather(features, chosen), tf.nest.map_structure(
            lambda values: tf.gather(values, chosen), labels
        )

    batches = rows.batch(batch_size).map(as_written(gather), tf.data.AUTOTUNE, deterministic=True)
    return register(batches.prefetch(tf.data.AUTOTUNE), source)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TableSource(Source):
    """The rows of a table."""

    table: Table

    def inputs(self, batch_size: int) -> tf.data.Dataset:
        """Features (batch, columns) float32, in the order of the rows."""
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices(self.table.features).batch(batch_size)

    def augmented_inputs(self, view: int, batch_size: int) -> tf.data.Dataset:
        """The same as `inputs`: rows of numbers are not augmented."""
        return self.inputs(batch_size)

    def content_sha256(self) -> str:
        """A hash over the features, their names and their shape."""
        features = np.ascontiguousarray(self.table.features)
        head = repr(("table", 1, self.table.columns, features.shape, str(features.dtype)))
        return hashlib.sha256(head.encode() + b"\0" + features.tobytes()).hexdigest()

    def where(self, row: int) -> str:
        """File, line or row, and its name."""
        return self.table.where(row)


def _by_output(labels: np.ndarray, tasks: Sequence[Task]) -> Any:
    """(rows, tasks), or a dict of (rows, columns) if the model gives a dict."""
    if all_binary(tasks):
        return labels
    columns = output_columns(tasks)
    return {key: labels[:, list(at)] for key, at in columns.items()}
