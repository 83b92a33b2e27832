"""Table → tf.data.Dataset of (features, labels)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
        seed: of the shuffling.

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
    # Row numbers are shuffled and whole batches gathered: rows one by one would cost far more.
    features, labels = tf.constant(table.features), tf.constant(table.labels)
    rows = tf.data.Dataset.range(len(table))
    if training:
        rows = rows.shuffle(len(table), seed=seed)

    def gather(chosen: tf.Tensor) -> tuple[tf.Tensor, Any]:
        return tf.gather(features, chosen), _by_output(tf.gather(labels, chosen), table.tasks)

    return rows.batch(batch_size).map(gather, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _by_output(labels: tf.Tensor, tasks: Sequence[Task]) -> Any:
    """(batch, tasks), or a dict of (batch, columns) if the model gives a dict."""
    import tensorflow as tf

    if all_binary(tasks):
        return labels
    return {
        key: tf.gather(labels, list(columns), axis=1)
        for key, columns in output_columns(tasks).items()
    }
