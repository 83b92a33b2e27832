"""Manifest → tf.data.Dataset of (image, labels)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasmtl.inputs import PREPROCESSING, as_size, read_image
from kerasmtl.manifest import Manifest
from kerasmtl.sources import Source, epoch_indices, new_epoch, register
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
        seed: of the shuffling; the order of an epoch depends on it, the number of the epoch and
            the number of rows alone.
        cache: keep decoded pictures in memory; by default if they take 1 GiB or less.
        deterministic: False lets a picture that is ready overtake one that is not: faster on
            uneven pictures, and never the same order twice.

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

    source = PictureSource(
        count=len(manifest),
        labels=_labels(manifest),
        batch_size=batch_size,
        training=training,
        seed=seed,
        epoch=new_epoch() if training else None,
        deterministic=deterministic,
        manifest=manifest,
        size=size,
    )
    if cache is None:
        cache = len(manifest) * size[0] * size[1] * 3 * 4 <= CACHE_LIMIT
    batches = _cached(source) if cache else _uncached(source)
    labels = tf.nest.map_structure(tf.constant, source.labels)

    def with_labels(images: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, Any]:
        return images, tf.nest.map_structure(lambda values: tf.gather(values, rows), labels)

    return register(batches.map(with_labels).prefetch(tf.data.AUTOTUNE), source)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class PictureSource(Source):
    """The rows of a manifest, at one size of pictures."""

    manifest: Manifest
    size: tuple[int, int]

    def reader(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """From the number of a row, shape (), to its picture, (height, width, 3)."""
        import tensorflow as tf

        names = self.manifest.paths
        paths = tf.constant(names)

        def where(path: str) -> str:
            return self.manifest.where(names.index(path))

        return lambda row: read_image(tf.gather(paths, row), self.size, where)

    def inputs(self, batch_size: int) -> tf.data.Dataset:
        """Images (batch, height, width, 3) float32 in [0, 1], in the order of the rows."""
        import tensorflow as tf

        rows = tf.data.Dataset.range(self.count)
        pictures = rows.map(self.reader(), tf.data.AUTOTUNE, deterministic=True)
        return pictures.batch(batch_size).prefetch(tf.data.AUTOTUNE)

    def augmented_inputs(self, view: int, batch_size: int) -> tf.data.Dataset:
        """As `inputs`: nothing is augmented."""
        return self.inputs(batch_size)

    def content_sha256(self) -> str:
        """A hash over the bytes of all picture files, in order, and what decodes them."""
        import tensorflow as tf

        head = repr(("pictures", PREPROCESSING, tf.__version__, self.size, self.count))
        whole = hashlib.sha256(head.encode())
        with ThreadPoolExecutor() as threads:
            for digest in threads.map(_file_sha256, self.manifest.paths):
                whole.update(digest)
        return whole.hexdigest()

    def where(self, row: int) -> str:
        """File, line and picture."""
        return self.manifest.where(row)


def _uncached(source: PictureSource) -> tf.data.Dataset:
    """Batches of pictures and row numbers, each picture decoded when its turn comes."""
    import tensorflow as tf

    read = source.reader()
    rows = _rows(source).map(
        lambda row: (read(row), row), tf.data.AUTOTUNE, deterministic=source.deterministic
    )
    return rows.batch(source.batch_size)


def _cached(source: PictureSource) -> tf.data.Dataset:
    """The same batches; all pictures are decoded in the first epoch and kept in one tensor."""
    import tensorflow as tf

    def gathered(images: tf.Tensor) -> tf.data.Dataset:
        batches = _rows(source).batch(source.batch_size)
        return batches.map(lambda rows: (tf.gather(images, rows), rows), tf.data.AUTOTUNE)

    batches = -(-source.count // source.batch_size)
    # Read ahead to its end, or an iterator that stops early would leave nothing in the cache.
    whole = source.inputs(source.count).cache().prefetch(1)
    return whole.flat_map(gathered).apply(tf.data.experimental.assert_cardinality(batches))


def _rows(source: PictureSource) -> tf.data.Dataset:
    import tensorflow as tf

    if source.epoch is None:
        return tf.data.Dataset.range(source.count)
    return epoch_indices(source.count, source.seed, source.epoch)


def _file_sha256(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()


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
