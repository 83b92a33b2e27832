"""`make_dataset` turns a manifest into a `tf.data.Dataset`, in an order that can be resumed.

    rows of an epoch (_order) -> inputs (in memory, on disk, or read) -> augmented, with labels

The order is not that of `Dataset.shuffle`, whose buffer cannot be restored and which never mixes
more rows than it holds: `permutation` computes it from seed and epoch, and a `tf.Variable` counts
the epochs. Row numbers travel with the inputs: labels are gathered last, and errors name the row.
`Source` describes a data set to those who need more than its batches: the feature cache, the
resuming of runs, and messages of bad images.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.data import augmentation
from kerasmtl.data.readers import place
from kerasmtl.tasks import Task, all_binary, output_columns
from kerasmtl.utils.files import atomic_file
from kerasmtl.utils.text import shortened
from kerasmtl.utils.tf import as_written
from kerasmtl.utils.validation import check_count

if TYPE_CHECKING:
    from kerasmtl.data.inputs import Input
    from kerasmtl.data.manifest import Manifest

CACHE_LIMIT = 2**30  # bytes of model input that are kept in memory by default
BLOCK = 32  # rows that are stored, or augmented for a view, at once


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Source(ABC):
    """The rows behind a data set.

    Attributes:
        count: how many rows.
        labels: (count, tasks) float32, or a dict of (count, columns), as the batches have them, in
            the order of the rows; NaN = missing.
        batch_size: rows per batch.
        training: whether each epoch has an order of its own.
        seed: of that order, and of augmentation.
        epoch: the number of the epoch that begins next, or None without training.
        random: why the inputs of a row differ from epoch to epoch, None if they do not.
        deterministic: False if batches may come in another order than `permutation` says.
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
        """Return the inputs alone, in batches, in the order of the rows, not augmented.

        Args:
            batch_size: rows per batch; the last may be smaller.
        """

    @abstractmethod
    def augmented_inputs(self, view: int, batch_size: int) -> tf.data.Dataset:
        """Return `inputs`, each row augmented: the same in every call with this view, from 0.

        Args:
            view: the number of the variation; views differ only in their draws.
            batch_size: rows per batch; changes nothing else.
        """

    @abstractmethod
    def content_sha256(self) -> str:
        """Hash the content of all rows' inputs, in order, and what prepares them."""

    @abstractmethod
    def where(self, row: int) -> str:
        """Return the place of a row, for messages."""


_SOURCES: weakref.WeakKeyDictionary[Any, Source] = weakref.WeakKeyDictionary()


def register(dataset: tf.data.Dataset, source: Source) -> tf.data.Dataset:
    """Register the source of a data set, for `source_of`, and return the data set.

    The entry lives as long as the object does: the keys are weak references.
    """
    _SOURCES[dataset] = source
    # `shuffle=True` is Keras' default in `fit`; here it is the data set that shuffles, or does not.
    warnings.filterwarnings("ignore", "`shuffle=True` was passed, but will be ignored")
    return dataset


def source_of(dataset: Any) -> Source | None:
    """Return what a data set was made from; None if that is not known.

    Only the very object that `make_dataset` returned has a source: what a `.map` of the user's own
    does is unknown. Other data sets train as well, but the features of a frozen backbone are not
    cached, a resumed run cannot check that the data are the same, and errors do not name rows.
    """
    try:
        return _SOURCES.get(dataset)
    except TypeError:  # not hashable, or nothing that a weak reference can point to
        return None


def new_epoch() -> tf.Variable:
    """Make the number of a data set's next epoch, shape (), int64, on the CPU, at first 0.

    An epoch that begins takes the number and adds 1; assign another to have that one next.
    """

    def make() -> tf.Variable:
        with tf.device("CPU:0"):
            return tf.Variable(0, dtype=tf.int64, trainable=False, name="epoch")

    # In another thread no distribution strategy is in scope that would make a copy per replica.
    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(make).result()


def next_epochs(epoch: tf.Variable) -> tf.data.Dataset:
    """Return a data set of one element, the number of the epoch, int64; adds 1 to it.

    As an operation of the data set, since `fit` makes an iterator per epoch and nothing else tells
    a data set that one begins.
    """
    return tf.data.Dataset.from_tensors(0).map(
        as_written(lambda _: epoch.assign_add(1, read_value=True) - 1)
    )


def permutation(count: int, seed: int, epoch: Any) -> tf.Tensor:
    """Return the order of the rows in an epoch.

    The stable order of `count` draws of 64 bits from the counter-based generator Philox (Salmon et
    al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by seed and epoch.
    `tf.random.shuffle` has a state, which a resumed run would have to restore.

    Args:
        count: of the rows.
        seed: of the run.
        epoch: its number, from 0; an int or a tensor, () int64.

    Returns:
        (count,) int64, each of 0 … count - 1 once.
    """
    key = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
    with tf.device("CPU:0"):
        draws = tf.random.stateless_uniform(
            [count], key, minval=None, maxval=None, dtype=tf.int64, alg="philox"
        )
        # Stable: where two draws are equal, the order would otherwise be the machine's.
        return tf.cast(tf.argsort(draws, stable=True), tf.int64)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ManifestSource(Source):
    """The rows of a manifest, as its input prepares them; `layer` augments them, if given."""

    manifest: Manifest
    input: Input
    layer: keras.layers.Layer | None = None

    def read(
        self, rows: tf.data.Dataset, batch_size: int, deterministic: bool = True
    ) -> tf.data.Dataset:
        """Return batches of epochs, inputs and row numbers; see `Input.batches`.

        Args:
            rows: batches of epochs and row numbers, (batch,) int64 each.
            batch_size: rows per batch.
            deterministic: whether the order must be kept.
        """
        lines, names = (tf.constant(x.tolist()) for x in (self.manifest.lines, self.manifest.names))
        file = f"{self.manifest.source}, {place(self.manifest.source)} "

        def where(row: tf.Tensor) -> tf.Tensor:
            """Return the place of a row, () string, in the graph, which finds damaged images."""
            line = tf.strings.as_string(tf.gather(lines, row))
            return tf.strings.join([file, line, ": ", tf.gather(names, row)])

        return self.input.batches(self.manifest.values, rows, batch_size, deterministic, where)

    def inputs(self, batch_size: int) -> tf.data.Dataset:
        """See `Source.inputs`."""
        rows = _rows(self.count, batch_size, lambda epoch: tf.range(self.count, dtype=tf.int64))
        batches = self.read(rows, batch_size)
        return batches.map(as_written(lambda _, inputs, __: inputs)).prefetch(tf.data.AUTOTUNE)

    def augmented_inputs(self, view: int, batch_size: int) -> tf.data.Dataset:
        """See `Source.augmented_inputs`; a row's view follows from seed, view and row alone."""
        if self.layer is None:
            return self.inputs(batch_size)
        augment = self.augmenter()
        # In blocks of their own, so that the size of the batches changes nothing.
        blocks = self.inputs(BLOCK).enumerate()
        vary = as_written(lambda block, inputs: augment(inputs, view, block))
        views = blocks.map(vary, tf.data.AUTOTUNE)
        return views.unbatch().batch(batch_size).prefetch(tf.data.AUTOTUNE)

    def augmenter(self) -> Callable[[tf.Tensor, Any, Any], tf.Tensor]:
        """Return a function of inputs, epoch and number of the batch that augments inputs."""
        if self.layer is None:
            return lambda inputs, epoch, batch: inputs
        return augmentation.augmenter(self.layer, self.seed)

    def content_sha256(self) -> str:
        """See `Source.content_sha256`; raises FileNotFoundError for an absent file."""
        whole = hashlib.sha256(self.input.content_sha256(self.manifest.values).encode())
        if self.layer is not None:
            varied = [self.seed, augmentation.described(self.layer)]
            whole.update(json.dumps(varied, sort_keys=True).encode())
        return whole.hexdigest()

    def where(self, row: int) -> str:
        """See `Manifest.where`."""
        return self.manifest.where(row)


def make_dataset(
    manifest: Manifest,
    size: Any = None,
    batch_size: int = 32,
    training: bool = False,
    seed: int = 0,
    cache: bool | str | os.PathLike[str] | None = None,
    augment: Any = None,
    deterministic: bool = True,
) -> tf.data.Dataset:
    """Make batches of inputs and labels, for `model.fit`, `model.predict` and `kt.evaluate`.

    Inputs are those of `manifest.input`: images (batch, height, width, 3) float32 RGB in [0, 1],
    resized without keeping the aspect ratio; of a table (batch, columns) float32, NaN = missing.
    Labels are (batch, tasks) float32, 1, 0 or NaN = missing; with tasks of several kinds a dict,
    as the model's outputs: "binary" (batch, binary tasks), and each other task under its name,
    (batch, 1), the position of a class or a number.

    Args:
        manifest: the rows.
        size: of images, (height, width) in pixels, or one number for both; None of other kinds.
        batch_size: rows per batch; the last batch may be smaller.
        training: give every epoch its own order, and check that every task has known labels, and
            different ones. Otherwise the order is that of the manifest.
        seed: of order and augmentation. The order of an epoch depends on the seed, the number of
            the epoch and the number of rows alone.
        cache: keep prepared inputs, before augmentation: True in memory, a folder on disk, where
            they are prepared before this function returns and later runs on the same inputs find
            them. By default in memory if they are read from files and take 1 GiB or less.
        augment: of images, with `training`: what varies them in each epoch, "default"
            (`kerasmtl.data.default_augmentation`), a Keras layer or a list of layers.
        deterministic: False lets an image that is ready overtake one that is not: faster on
            uneven images, and never the same order twice.

    Returns:
        A `tf.data.Dataset`. What `.map` and the like make of it trains as any other data set, but
        without cached features and without the check of a resumed run that its data are the same.

    Raises:
        FileNotFoundError: files are absent; names their lines.
        OSError: the folder of the cache cannot hold the inputs.
        TypeError: `augment` is none of the above.
        ValueError: no rows, a batch size below 1, an augmentation that changes the size, or
            (training) a task with no known label.
        tf.errors.OpError: during iteration, an image is truncated or damaged; names its line.

    Example:
        >>> import numpy as np
        >>> import kerasmtl as kt
        >>> values, labels = np.eye(4), np.array([[1], [0], [np.nan], [1]])
        >>> manifest = kt.Manifest.from_arrays(values, labels, ["car"], kt.data.Table())
        >>> for x, y in kt.make_dataset(manifest, batch_size=3):
        ...     print(x.shape, y.numpy().ravel())
        (3, 4) [ 1.  0. nan]
        (1, 4) [1.]
    """
    check_count("batch_size", batch_size)
    if not len(manifest):
        raise ValueError(f"`manifest` must have rows, got {manifest!r}")
    if training:
        manifest.check_classes()
    absent = [f"line {fault.line}: {fault.name!r}" for fault in manifest.missing_files()]
    if absent:
        raise FileNotFoundError(
            f"`manifest` must name {manifest.input.noun} that exist, got {len(absent)} absent ones "
            f"in {manifest.source}: {shortened(absent)}. `kerasmtl check` lists all of them."
        )
    input = manifest.input.sized(size)
    layer = input.augmentation(augment) if training else None
    source = ManifestSource(
        count=len(manifest),
        labels=_labels(manifest.labels, manifest.tasks),
        batch_size=batch_size,
        training=training,
        seed=seed,
        epoch=new_epoch() if training else None,
        random=None if layer is None else f"augment={layer.name!r}",
        deterministic=deterministic,
        manifest=manifest,
        input=input,
        layer=layer,
    )
    # A cache of rows of a table would only be a second copy of them.
    if cache is None:
        cache = not input.in_memory and _bytes(source) <= CACHE_LIMIT
    if cache is True:
        batches = _in_memory(source)
    elif cache is False:
        batches = source.read(_order(source), batch_size, deterministic)
    else:
        batches = _on_disk(source, cache)
    return register(_finished(batches, source), source)


def _rows(count: int, batch_size: int, order: Callable[[Any], tf.Tensor], epoch: Any = None) -> Any:
    """Return batches of the number of the epoch and of rows, (batch,) int64 each, in an order."""

    def numbered(epoch: tf.Tensor) -> tf.data.Dataset:
        rows = order(epoch)
        # The number travels with the rows to augmentation, since the variable is one ahead by then.
        epochs = tf.fill([count], epoch)

        # By slices: rows one by one would cost more than the batches of a small table.
        def batch(first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return epochs[first : first + batch_size], rows[first : first + batch_size]

        return tf.data.Dataset.range(0, count, batch_size).map(as_written(batch))

    if epoch is None:
        return numbered(tf.constant(0, tf.int64))
    return next_epochs(epoch).flat_map(as_written(numbered))


def _order(source: Source) -> tf.data.Dataset:
    """Return the batches of row numbers of the next epoch."""

    def order(epoch: tf.Tensor) -> tf.Tensor:
        if source.epoch is None:
            return tf.range(source.count, dtype=tf.int64)
        return permutation(source.count, source.seed, epoch)

    return _rows(source.count, source.batch_size, order, source.epoch)


def _in_memory(source: ManifestSource) -> tf.data.Dataset:
    """Return the batches; all rows are prepared in the first epoch and kept in one tensor.

    One element for all rows: `Dataset.cache` keeps elements in their order, and each epoch needs
    another.
    """

    def gathered(inputs: tf.Tensor) -> tf.data.Dataset:
        pick = as_written(lambda epochs, rows: (epochs, tf.gather(inputs, rows), rows))
        return _order(source).map(pick)

    # Read ahead to its end, or an iterator that stops early would leave nothing in the cache.
    return source.inputs(source.count).cache().prefetch(2).flat_map(as_written(gathered))


def _on_disk(source: ManifestSource, folder: str | os.PathLike[str]) -> tf.data.Dataset:
    """Return the batches, from a file of prepared inputs."""
    stored, spec = _stored(source, Path(folder)), source.input.spec

    def read(epochs: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # By NumPy's memory map, which reads only the rows of a batch; the system may drop the pages
        # again when it needs memory.
        inputs = tf.numpy_function(lambda at: stored[at], [rows], spec.dtype, stateful=False)
        return epochs, tf.ensure_shape(inputs, spec.shape), rows

    return _order(source).map(as_written(read), tf.data.AUTOTUNE)


def _stored(source: ManifestSource, folder: Path) -> np.ndarray:
    """Return all prepared inputs, (rows, …), mapped from a file in a folder.

    The file is named after the hash of the content, and written atomically if it is absent.

    Raises:
        OSError: the folder cannot hold them.
        tf.errors.OpError: an input cannot be prepared; names its line.
    """
    target = folder / f"inputs-{source.input.content_sha256(source.manifest.values)}.npy"
    spec = source.input.spec
    shape, dtype = (source.count, *spec.shape[1:]), np.dtype(spec.dtype.as_numpy_dtype)
    # NumPy's own format, written by the block: `np.save` would need all of it in memory.
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    if not target.exists():
        try:
            # Written, not mapped: a full disk is then an error instead of the end of the process.
            with atomic_file(target) as written, written.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for inputs in source.inputs(BLOCK).as_numpy_iterator():
                    file.write(np.ascontiguousarray(inputs).tobytes())
        except OSError as error:
            raise OSError(
                error.errno,
                f"`cache` must be a folder with room for {_bytes(source):,} bytes, got {folder}: "
                f"{error.strerror}",
            ) from error
    return np.load(target, mmap_mode="r")


def _bytes(source: ManifestSource) -> int:
    """Return the size of all prepared inputs, in bytes."""
    spec = source.input.spec
    return source.count * spec.dtype.size * int(np.prod(spec.shape[1:], dtype=np.int64))


def _finished(batches: tf.data.Dataset, source: ManifestSource) -> tf.data.Dataset:
    """Augment the batches if asked for, add the labels, and prefetch."""
    labels = tf.nest.map_structure(tf.constant, source.labels)
    augment = source.augmenter()

    def finish(number: tf.Tensor, batch: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, Any]:
        epochs, inputs, rows = batch
        inputs = augment(inputs, epochs[0], number)
        return inputs, tf.nest.map_structure(lambda values: tf.gather(values, rows), labels)

    count = -(-source.count // source.batch_size)
    # `flat_map` hides the length, without which Keras shows no progress in the first epoch and
    # schedules cannot count their steps.
    batches = batches.apply(tf.data.experimental.assert_cardinality(count))
    return batches.enumerate().map(as_written(finish), tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _labels(labels: np.ndarray, tasks: Sequence[Task]) -> Any:
    """Return (rows, tasks), or a dict of (rows, columns) if the model gives a dict."""
    if all_binary(tasks):
        return labels
    return {key: labels[:, list(at)] for key, at in output_columns(tasks).items()}
