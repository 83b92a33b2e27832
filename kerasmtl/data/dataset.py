"""Table → tf.data.Dataset of (features, labels)."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasmtl.data.images import PREPROCESSING, as_size, prepare_image
from kerasmtl.data.manifest import Manifest
from kerasmtl.data.table import Table
from kerasmtl.tasks import Task, all_binary, output_columns
from kerasmtl.utils.tf import as_written

if TYPE_CHECKING:
    import keras
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


BLOCK = 32  # pictures that are stored, or augmented for a view, at once


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

        manifest = self.manifest
        paths, lines = tf.constant(manifest.paths), tf.constant(manifest.lines)
        images = tf.constant(manifest.images.tolist())

        def read(epoch: tf.Tensor, row: tf.Tensor) -> tuple[tf.Tensor, ...]:
            line, image = tf.strings.as_string(tf.gather(lines, row)), tf.gather(images, row)
            name = tf.strings.join([f"{manifest.source}, line ", line, ": image ", image])
            data = tf.io.read_file(tf.gather(paths, row))
            return epoch, prepare_image(data, self.size, name=name), row

        return rows.map(
            as_written(read),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=ordered or self.deterministic,
        ).batch(batch_size)

    def augmenter(self) -> Callable[[tf.Tensor, Any, Any], tf.Tensor]:
        """From images, epoch and number of the batch to images; the same without a layer."""
        if self.layer is None:
            return lambda images, epoch, batch: images
        from kerasmtl.data.augmentation import augmenter

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
            from kerasmtl.data.augmentation import described

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
        from kerasmtl.data.augmentation import as_layer

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
