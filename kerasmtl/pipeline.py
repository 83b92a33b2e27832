"""Manifest → tf.data.Dataset of (image, labels)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kerasmtl.inputs import as_size, read_image
from kerasmtl.manifest import Manifest
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
    cache: bool | None = None,
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
        seed: of the shuffling; the same seed gives the same order on every run, as long as
            TensorFlow's global seed is the same, too.
        cache: keep decoded pictures in memory; by default if they take 1 GiB or less.

    Raises:
        FileNotFoundError: pictures are absent; names their lines.
        ValueError: no rows, a batch size below 1, or (training) a task with no known label.
        tf.errors.OpError: during iteration, a picture is truncated or no picture; names its line.
    """
    import tensorflow as tf

    size = as_size(image_size)
    if batch_size < 1:
        raise ValueError(f"`batch_size` is too small. Expected at least 1. Received: {batch_size}")
    if not len(manifest):
        raise ValueError(f"`manifest` has no rows. Expected at least one. Received: {manifest!r}")
    if training:
        manifest.check_classes()
    _check_files(manifest)

    paths = manifest.paths
    rows = {path: row for row, path in enumerate(paths)}

    def load(path: tf.Tensor, labels: Any) -> tuple[tf.Tensor, Any]:
        return read_image(path, size, where=lambda p: manifest.where(rows[p])), labels

    if cache is None:
        cache = len(paths) * size[0] * size[1] * 3 * 4 <= CACHE_LIMIT
    dataset = tf.data.Dataset.from_tensor_slices((paths, _labels(manifest)))

    def shuffled(data: tf.data.Dataset) -> tf.data.Dataset:
        return data.shuffle(len(paths), seed=seed) if training else data

    if cache:
        dataset = shuffled(dataset.map(load, tf.data.AUTOTUNE).cache())
    else:
        dataset = shuffled(dataset).map(load, tf.data.AUTOTUNE)
    return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)


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
