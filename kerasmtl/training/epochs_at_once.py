"""The head on features in memory: `fit` runs through many batches in one call of its graph.

A step of so small a model costs less than what `fit` does around it, and a data set's iterator
costs more than its batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from kerasmtl.training.feature_dataset import FeatureSource

AT_ONCE = 256  # batches in one call, during which no Ctrl-C is seen

Logs = dict[str, Any]


class Stretches:
    """The batches of a data set of features, in stretches of up to 256.

    `dataset` gives the numbers of the stretches, shape () int64. Each time the first one is taken
    is an epoch, with the rows in the order of the data set of features.

    Args:
        source: of the data set, with its features in memory.
    """

    def __init__(self, source: FeatureSource) -> None:
        self.source = source
        self.batches = -(-source.count // source.batch_size)
        options = tf.data.Options()
        options.autotune.enabled = False
        options.experimental_optimization.apply_default_optimizations = False
        self.dataset = tf.data.Dataset.range(-(-self.batches // AT_ONCE)).with_options(options)
        with tf.device("CPU:0"):
            self._order = tf.Variable(tf.range(source.count, dtype=tf.int64), trainable=False)

    def bounds(self, stretch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Its first batch, and the one after its last; the first stretch draws a new order."""
        if self.source.epoch is not None:
            tf.cond(tf.equal(stretch, 0), self._shuffle, lambda: tf.constant(0))
        first = stretch * AT_ONCE
        return first, tf.minimum(first + AT_ONCE, self.batches)

    def _shuffle(self) -> tf.Tensor:
        self._order.assign(self.source.next_order())
        return tf.constant(0)

    def batch(self, number: tf.Tensor) -> tuple[Any, Any]:
        """Features and labels of a batch of the epoch."""
        first = number * self.source.batch_size
        with tf.device("CPU:0"):
            return self.source.gather(self._order[first : first + self.source.batch_size])


class HeadAtOnce(keras.Model):
    """A head whose step is a stretch of an epoch; weights are as after one step per batch.

    Training ends early with the batch after which the loss is NaN or infinite. Only the last
    batch's logs come out, so that callbacks which want each batch need another model.

    Args:
        head: as `split_model` makes it; its layers and variables are shared.
        train, validation: what `fit` shall be given the `dataset` of.
    """

    @classmethod
    def of(
        cls, head: keras.Model, train: Stretches, validation: Stretches | None = None
    ) -> HeadAtOnce:
        made = cls(head.input, head.output, name=head.name)
        made._train, made._validation = train, validation
        made._within = False
        with tf.device("CPU:0"):
            made._done = tf.Variable(0, dtype=tf.int64, trainable=False)
        return made

    def build_metrics(self) -> None:
        """Make the metrics' variables: made in a step, they would have it traced twice."""
        x, y = self._train.source.gather(tf.range(1, dtype=tf.int64))
        none = tf.nest.map_structure(lambda o: tf.zeros((1, *o.shape[1:]), o.dtype), self.output)
        self.compute_metrics(x, y, none)
        self.reset_metrics()

    @property
    def last_batch(self) -> int:
        """The number in the epoch, from 0, of the batch that was begun last."""
        return int(self._done.numpy()) - 1

    def train_step(self, data: tf.Tensor) -> Logs:
        """Train on a stretch, by its number."""
        step = super().train_step
        return self._through(
            self._train, data, lambda batch: tf.math.is_finite(step(batch)["loss"])
        )

    def test_step(self, data: tf.Tensor) -> Logs:
        """Test on a stretch, by its number."""
        step = super().test_step

        def goes_on(batch: Any) -> tf.Tensor:
            step(batch)
            return tf.constant(True)

        return self._through(self._validation, data, goes_on)

    def _through(self, stretches: Any, number: tf.Tensor, step: Callable[[Any], Any]) -> Logs:
        """Take the batches of a stretch, up to the first whose step says False."""

        def one(batch: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # Noted first: an error of the loss leaves no time for it.
            with tf.control_dependencies([self._done.assign(batch + 1)]):
                return batch + 1, step(stretches.batch(batch))

        first, end = stretches.bounds(number)
        self._within = True
        try:
            tf.while_loop(
                lambda batch, goes_on: tf.logical_and(batch < end, goes_on),
                one,
                (first, tf.constant(True)),
            )
        finally:
            self._within = False
        return super().get_metrics_result()

    def get_metrics_result(self) -> Logs:
        """Within a stretch the loss alone; apart from one nothing: the step's own logs stand."""
        if not self._within:
            return {}
        return {metric.name: metric.result() for metric in self.metrics if metric.name == "loss"}
