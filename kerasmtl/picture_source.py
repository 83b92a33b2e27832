"""The pictures of a manifest at one size: read, varied, hashed, and stored on disk."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasmtl.graphs import as_written
from kerasmtl.inputs import PREPROCESSING, read_image
from kerasmtl.manifest import Manifest
from kerasmtl.mending import mended
from kerasmtl.small_pictures import are_small, likely, prepare_files, read_files
from kerasmtl.sources import Source

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

BLOCK = 32  # pictures that are stored, or augmented for a view, at once
MOST_AT_ONCE = 256  # pictures of a batch that is read at once


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class PictureSource(Source):
    """The rows of a manifest at one size of pictures; `layer` augments them, if it is there."""

    manifest: Manifest
    size: tuple[int, int]
    layer: keras.layers.Layer | None = None
    hashed: dict[str, str] = field(default_factory=dict)

    def read(
        self, rows: tf.data.Dataset, batch_size: int, ordered: bool = False
    ) -> tf.data.Dataset:
        """Batches of epochs, images and row numbers, from a data set of epochs and row numbers.

        Their order is kept if `ordered`, or if the source is deterministic.
        """
        import tensorflow as tf

        names = self.manifest.paths
        paths = tf.constant(names)

        def where(path: str) -> str:
            return self.manifest.where(names.index(path))

        options = {
            "num_parallel_calls": tf.data.AUTOTUNE,
            "deterministic": ordered or self.deterministic,
        }
        if not are_small(names):

            def image(epoch: tf.Tensor, row: tf.Tensor) -> tuple[tf.Tensor, ...]:
                return epoch, read_image(tf.gather(paths, row), self.size, where), row

            return rows.map(as_written(image), **options).batch(batch_size)

        # In three steps, since a function that can call Python costs more, whether it does or not.
        def read(epochs: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, ...]:
            names = tf.gather(paths, rows)
            return epochs, rows, names, read_files(names)

        def mend(*given: tf.Tensor) -> tuple[Any, ...]:
            epochs, rows, names, data = given
            return epochs, rows, mended(data, names, where)

        def prepare(*given: Any) -> tuple[tf.Tensor, ...]:
            epochs, rows, files = given
            return epochs, prepare_files(files, self.size, fit), rows

        fit = likely(names[0], self.size)
        at_once = batch_size if batch_size <= MOST_AT_ONCE else BLOCK
        batches = rows.batch(at_once)
        for step in (read, mend, prepare):
            batches = batches.map(as_written(step), **options)
        return batches if at_once == batch_size else batches.unbatch().batch(batch_size)

    def augmenter(self) -> Callable[[tf.Tensor, Any, Any], tf.Tensor]:
        """From images, epoch and number of the batch to images; the same without a layer."""
        if self.layer is None:
            return lambda images, epoch, batch: images
        from kerasmtl.augmentation import augmenter

        return augmenter(self.layer, self.seed)

    def inputs(self, batch_size: int) -> tf.data.Dataset:
        """Images (batch, height, width, 3) float32 in [0, 1], in the order of the rows."""
        import tensorflow as tf

        numbers = tf.range(self.count, dtype=tf.int64)
        rows = tf.data.Dataset.from_tensor_slices((tf.zeros_like(numbers), numbers))
        batches = self.read(rows, batch_size, ordered=True)
        return batches.map(as_written(lambda _, images, __: images)).prefetch(tf.data.AUTOTUNE)

    def augmented_inputs(self, view: int, batch_size: int) -> tf.data.Dataset:
        """As `inputs`, augmented; a row's picture follows from seed, view and row alone.

        Raises:
            ValueError: `view` is negative.
        """
        import tensorflow as tf

        if view < 0:
            raise ValueError(f"`view` is negative. Expected 0 or more. Received: {view}")
        if self.layer is None:
            return self.inputs(batch_size)
        augment = self.augmenter()
        # In blocks of their own, so that the size of the batches changes nothing.
        blocks = self.inputs(BLOCK).enumerate()
        vary = as_written(lambda block, images: augment(images, view, block))
        views = blocks.map(vary, tf.data.AUTOTUNE)
        return views.unbatch().batch(batch_size).prefetch(tf.data.AUTOTUNE)

    def content_sha256(self) -> str:
        """A hash over the bytes of all picture files, in order, and what decodes and varies them.

        Raises:
            FileNotFoundError: a picture is absent.
        """
        whole = hashlib.sha256(self.pictures_sha256().encode())
        if self.layer is not None:
            from kerasmtl.augmentation import described

            whole.update(json.dumps([self.seed, described(self.layer)], sort_keys=True).encode())
        return whole.hexdigest()

    def pictures_sha256(self) -> str:
        """As `content_sha256`, without augmentation; read once while the files stay the same."""
        import tensorflow as tf

        state = _state_of(self.manifest.paths)
        if state not in self.hashed:
            self.hashed.clear()
            self.hashed[state] = self._read_sha256(tf.__version__)
        return self.hashed[state]

    def _read_sha256(self, version: str) -> str:
        head = repr(("pictures", PREPROCESSING, version, self.size, self.count))
        whole = hashlib.sha256(head.encode())
        with ThreadPoolExecutor() as threads:
            for digest in threads.map(_file_sha256, self.manifest.paths):
                whole.update(digest)
        return whole.hexdigest()

    def where(self, row: int) -> str:
        """File, line and picture."""
        return self.manifest.where(row)


def stored_pictures(source: PictureSource, folder: str | os.PathLike[str]) -> np.ndarray:
    """All pictures, (rows, height, width, 3) float32, mapped from a file in a folder.

    The file is named after the hash of the pictures. If it is not there it is written aside and
    renamed when whole, so that what is there is complete, and two runs do not disturb each other.

    Raises:
        OSError: the folder cannot hold them; what was written is removed.
        tf.errors.OpError: a picture is truncated or no picture; names its line.
    """
    base = Path(folder)
    target = base / f"pictures-{source.pictures_sha256()}.npy"
    if not target.exists():
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=base, prefix=".pictures-") as aside:
            written = Path(aside) / target.name
            _write(source, written, base)
            os.replace(written, target)
    return np.load(target, mmap_mode="r")


def _write(source: PictureSource, path: Path, folder: Path) -> None:
    shape = (source.count, *source.size, 3)
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    try:
        # Written, not mapped: a full disk is then an error instead of the end of the process.
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for images in source.inputs(BLOCK).as_numpy_iterator():
                file.write(images.astype("<f4", copy=False).tobytes())
    except OSError as error:
        needed = 4 * int(np.prod(shape, dtype=np.int64))
        raise OSError(
            error.errno,
            f"`cache` folder {folder} cannot hold the pictures. Expected {needed:,} bytes. "
            f"Received: {error.strerror}",
        ) from error


def _state_of(paths: Sequence[str]) -> str:
    """A hash over what changes with a file: where it is on disk, its size and its times."""
    whole = hashlib.sha256()
    for path in paths:
        found = os.stat(path)
        now = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        whole.update(repr(now).encode())
    return whole.hexdigest()


def _file_sha256(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()
