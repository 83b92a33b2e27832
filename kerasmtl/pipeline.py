"""Manifest → tf.data.Dataset of (image, labels)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from kerasmtl.graphs import as_written
from kerasmtl.inputs import as_size
from kerasmtl.manifest import Manifest
from kerasmtl.picture_source import PictureSource, stored_pictures
from kerasmtl.sources import new_epoch, next_epochs, permutation, register
from kerasmtl.tasks import all_binary, output_columns

if TYPE_CHECKING:
    import tensorflow as tf

CACHE_LIMIT = 2**30  # bytes of decoded pictures kept in memory by default


def make_dataset(
    manifest: Manifest,
    image_size: Any,
    batch_size: int = 32,
    training: bool = False,
    seed: int = 0,
    cache: bool | str | os.PathLike[str] | None = None,
    augment: Any = None,
    deterministic: bool = True,
) -> tf.data.Dataset:
    """Batches of pictures and labels, for `model.fit`, `model.predict` and `kerasmtl.evaluate`.

    Shapes: images (batch, height, width, 3) float32 RGB in [0, 1], resized without keeping the
    aspect ratio; labels (batch, tasks) float32, 1, 0 or NaN = missing. With tasks of several kinds
    a dict, as the model's outputs: "binary" (batch, binary tasks), and each other task under its
    name, (batch, 1), a class's position or a number.

    Args:
        manifest: the rows.
        image_size: (height, width) in pixels, or one number for both.
        batch_size: pictures a batch; the last batch may be smaller.
        training: shuffle anew in every epoch, and check that every task has known labels,
            and different ones. Otherwise the order is that of the manifest.
        seed: of shuffling and augmentation; the order of an epoch depends on it, the number of
            the epoch and the number of rows alone.
        cache: keep decoded pictures, before augmentation: True in memory, a folder on disk, where
            they are decoded before this function returns and later runs on the same pictures find
            them. By default in memory if they take 1 GiB or less.
        augment: with `training`, what varies the pictures in each epoch: "default"
            (`default_augmentation`), a Keras layer or a list of layers. Left out without
            `training`.
        deterministic: False lets a picture that is ready overtake one that is not: faster on
            uneven pictures, and never the same order twice.

    Raises:
        FileNotFoundError: pictures are absent; names their lines.
        OSError: the folder of the cache cannot hold the pictures.
        TypeError: `augment` is none of the above.
        ValueError: no rows, a batch size below 1, an augmentation that changes the size, or
            (training) a task with no known label.
        tf.errors.OpError: during iteration, a picture is truncated or no picture; names its line.
    """
    size = as_size(image_size)
    if batch_size < 1:
        raise ValueError(f"`batch_size` is too small. Expected at least 1. Received: {batch_size}")
    if not len(manifest):
        raise ValueError(f"`manifest` has no rows. Expected at least one. Received: {manifest!r}")
    if training:
        manifest.check_classes()
    _check_files(manifest)
    source = _source(manifest, size, batch_size, training, seed, augment, deterministic)
    if cache is None:
        cache = len(manifest) * size[0] * size[1] * 3 * 4 <= CACHE_LIMIT
    if cache is True:
        batches = _in_memory(source)
    elif cache is False:
        batches = source.read(_rows(source), source.batch_size)
    else:
        batches = _on_disk(source, cache)
    return register(_finished(batches, source), source)


def _source(
    manifest: Manifest,
    size: tuple[int, int],
    batch_size: int,
    training: bool,
    seed: int,
    augment: Any,
    deterministic: bool,
) -> PictureSource:
    layer = None
    if training and augment is not None:
        from kerasmtl.augmentation import as_layer

        layer = as_layer(augment, size)
    return PictureSource(
        count=len(manifest),
        labels=_labels(manifest),
        batch_size=batch_size,
        training=training,
        seed=seed,
        epoch=new_epoch() if training else None,
        random=None if layer is None else f"augment={layer.name!r}",
        deterministic=deterministic,
        manifest=manifest,
        size=size,
        layer=layer,
    )


def _rows(source: PictureSource) -> tf.data.Dataset:
    """The number of the epoch and of each row, in the order of the epoch."""
    import tensorflow as tf

    def numbered(epoch: tf.Tensor) -> tf.data.Dataset:
        if source.epoch is None:
            rows = tf.range(source.count, dtype=tf.int64)
        else:
            rows = permutation(source.count, source.seed, epoch)
        return tf.data.Dataset.from_tensor_slices((tf.fill([source.count], epoch), rows))

    if source.epoch is None:
        return numbered(tf.constant(0, tf.int64))
    return next_epochs(source.epoch).flat_map(as_written(numbered))


def _in_memory(source: PictureSource) -> tf.data.Dataset:
    """The same batches; all pictures are decoded in the first epoch and kept in one tensor."""
    import tensorflow as tf

    def gathered(images: tf.Tensor) -> tf.data.Dataset:
        batches = _rows(source).batch(source.batch_size)
        pick = as_written(lambda epoch, rows: (epoch, tf.gather(images, rows), rows))
        return batches.map(pick)

    # Read ahead to its end, or an iterator that stops early would leave nothing in the cache.
    return source.inputs(source.count).cache().prefetch(2).flat_map(as_written(gathered))


def _on_disk(source: PictureSource, folder: str | os.PathLike[str]) -> tf.data.Dataset:
    """The same batches, from a file of decoded pictures."""
    import tensorflow as tf

    stored = stored_pictures(source, folder)

    def read(epoch: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        images = tf.numpy_function(lambda at: stored[at], [rows], tf.float32, stateful=False)
        return epoch, tf.ensure_shape(images, (None, *source.size, 3)), rows

    return _rows(source).batch(source.batch_size).map(as_written(read), tf.data.AUTOTUNE)


def _finished(batches: tf.data.Dataset, source: PictureSource) -> tf.data.Dataset:
    """Augmented if asked for, with the labels, and prefetched."""
    import tensorflow as tf

    labels = tf.nest.map_structure(tf.constant, source.labels)
    augment = source.augmenter()

    def finish(number: tf.Tensor, batch: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, Any]:
        epochs, images, rows = batch
        images = augment(images, epochs[0], number)
        return images, tf.nest.map_structure(lambda values: tf.gather(values, rows), labels)

    count = -(-source.count // source.batch_size)
    batches = batches.apply(tf.data.experimental.assert_cardinality(count))
    return batches.enumerate().map(as_written(finish), tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _labels(manifest: Manifest) -> Any:
    if all_binary(manifest.tasks):
        return manifest.labels
    columns = output_columns(manifest.tasks)
    return {key: manifest.labels[:, list(at)] for key, at in columns.items()}


def _check_files(manifest: Manifest) -> None:
    absent = manifest.missing_files()
    if absent:
        shown = "; ".join(f"line {fault.line}: {fault.image!r}" for fault in absent[:5])
        raise FileNotFoundError(
            f"`manifest` {manifest.source} names {len(absent)} pictures that do not exist below "
            f"{manifest.root}. Received: {shown}{'; …' if len(absent) > 5 else ''}. "
            "`kerasmtl check` lists all of them."
        )
