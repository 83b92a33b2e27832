"""Features of the frozen part, computed once and kept, for training the head alone.

They are computed once per row (or once per augmented view of it), kept on disk in shards under a
hash of everything that decides them, and found again by any run that needs the same ones.

`FrozenPart` has the model in two, and computes; `feature_store.Entry` keeps; `FeatureSource` is a
data set's `Source` with features in place of inputs, so that order, epochs and messages stay those
of the data. `Stage.data` calls `cached_head`; `kt.features.cache_features` is for custom loops.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.data.dataset import Source, permutation, register, source_of
from kerasmtl.models.backbones import backbone_names
from kerasmtl.models.hub_layer import HubLayer
from kerasmtl.training.feature_store import FORMAT, Entry, entry_at, features_root
from kerasmtl.training.features import check_code, features_sha256, split_model
from kerasmtl.utils.progress import progress_bar
from kerasmtl.utils.tf import as_written
from kerasmtl.utils.validation import check_count

COMPUTED = 64  # rows that the frozen part is given at a time
TRIED = 8  # rows of what is found that are computed again, to see that they stay the same
CHUNK = 2**26  # bytes of features that are read at a time
MOST_CORES = 16  # that tf.data uses without tuning itself
# Layers that compute the same in training; so does a `HubLayer` that is frozen.
SAME_IN_TRAINING = (keras.layers.InputLayer, keras.layers.Rescaling)


def cache_features(
    model: keras.Model,
    data: tf.data.Dataset,
    folder: str | os.PathLike[str] | None = None,
    views: int = 1,
    progress: bool = True,
) -> tf.data.Dataset:
    """Return batches of features and labels, for `fit` of the head of `split_model`.

    The features of the frozen part are computed once and kept on disk, under a hash of the inputs'
    content, of what prepares them, and of the frozen part's config and weights: any run that needs
    the same finds them, and one changed pixel computes them again. The first rows of what is found
    are recomputed; if they differ, everything is. They are kept in shards, of which an interrupted
    run computes those that are missing, and read from there in parts.

    The code of `Lambda` and of custom layers does not count: clear the cache (`kerasmtl cache
    --clear`) after changing it.

    Args:
        model: with a frozen part; see `split_model`.
        data: what `make_dataset` returned.
        folder: where features are kept; by default "features" in the cache of modules.
        views: with augmentation, how many augmented views of each row are kept; epoch e trains on
            view e modulo `views`. Without augmentation one is kept.
        progress: show a progress bar while features are computed.

    Returns:
        (features, labels): features (batch, …) as `split_model(model)[0]` returns them, labels as
        in `data`, NaN = missing. Each epoch has the rows in the order in which `data` has them, and
        counts as one of its epochs.

    Raises:
        ValueError: the model has no frozen part, or one that computes something else from call to
            call or in training; the data set does not come from `make_dataset`; or its inputs are
            augmented and `views` is 1.
        OSError: the folder cannot be written to, or is full; says how much is needed.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import tempfile
        >>> import kerasmtl as kt
        >>> frozen = keras.layers.Dense(3, trainable=False)
        >>> model = keras.Sequential([keras.Input((4,)), frozen, keras.layers.Dense(1)])
        >>> rows = kt.Manifest.from_arrays(
        ...     np.eye(4), np.array([[1], [0], [np.nan], [1]]), ["car"], kt.data.Table())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = kt.features.cache_features(
        ...         model, kt.make_dataset(rows, batch_size=2), folder, progress=False)
        ...     [features.shape for features, labels in data]
        [TensorShape([2, 3]), TensorShape([2, 3])]
    """
    part = FrozenPart(model, any_code=True)
    return feature_dataset(part.cached(data, folder, views, progress))


def cached_head(
    model: keras.Model,
    train: Any,
    validation: Any = None,
    progress: bool = True,
    any_code: bool = False,
) -> tuple[keras.Model, dict[str, Any]]:
    """Return the head of a model, and what to fit it on: features that are computed once.

    Args:
        model: with a frozen part.
        train, validation: what `make_dataset` returned; no validation data if None.
        progress: as in `cache_features`.
        any_code: whether layers are accepted whose code the config does not hold.

    Returns:
        The head; and arguments of `fit`, "x", "validation_data" and "steps_per_epoch".

    Raises:
        ValueError, OSError: as `cache_features`; or the code of a layer is not in its config.
    """
    with model.distribute_strategy.scope():
        part = FrozenPart(model, any_code)
        alone = not tf.distribute.has_strategy()
    rows = part.cached(train, progress=progress, name="train")
    held = None
    if validation is not None:
        held = feature_dataset(part.cached(validation, progress=progress, name="validation"))
    # A strategy, also one of a single device, fetches batches ahead: an epoch would begin before
    # `Resume` has set its number.
    endless = rows.epoch is not None and alone
    return part.head, {
        "x": feature_dataset(rows, endless),
        "validation_data": held,
        "steps_per_epoch": -(-rows.count // rows.batch_size) if endless else None,
    }


class FrozenPart:
    """A model in two, as `split_model` makes it, with the features of the frozen part.

    Args:
        model: with a frozen part, whose weights do not change while this is used.
        any_code: whether layers are accepted whose code the config does not hold, see
            `check_code`.

    Raises:
        ValueError: as in `split_model` and `check_code`; or a feature has no fixed shape, or is
            text.
    """

    def __init__(self, model: keras.Model, any_code: bool = False) -> None:
        self.features, self.head = split_model(model)
        if not any_code:
            check_code(self.features)
        self._identity = features_sha256(self.features)
        self._call = tf.function(partial(self.features, training=False), autograph=False)
        self._is_checked = False
        self.dtype = np.dtype([_field(*each) for each in named(self.features.output).items()])

    def cached(
        self,
        data: tf.data.Dataset,
        folder: str | os.PathLike[str] | None = None,
        views: int = 1,
        progress: bool = True,
        name: str = "data",
    ) -> FeatureSource:
        """Return the rows of a data set by their features, which are computed if need be.

        Args:
            data, folder, views, progress: as in `cache_features`.
            name: what messages call the data set.

        Returns:
            The source, whose shards are memory-mapped: features need not fit into memory.

        Raises:
            ValueError, OSError: as in `cache_features`.
        """
        check_count("views", views)
        source = source_of(data)
        if source is None:
            raise ValueError(
                f"`{name}` must be what make_dataset returned, with nothing like .map, .take or "
                f".shuffle after it, got {data!r}"
            )
        if source.random and views == 1:
            raise ValueError(
                f"`{name}` must have the same inputs in each epoch for features to be computed "
                f"once, got {source.random}. Leave augmentation out, or keep several augmented "
                "views of each row: cache_features(views=4)."
            )
        views = views if source.random else 1
        key = feature_key(self._identity, source, views)
        names = ", ".join(backbone_names(self.features))
        about = {
            "backbone": names or self.features.name.removesuffix("_features"),
            "first": source.where(0),
        }
        entry = entry_at(features_root(folder) / key, source.count, views, COMPUTED, about)
        with entry.lock():
            shards = self._shards(source, entry, progress)
        shared = {field.name: getattr(source, field.name) for field in fields(Source)}
        shared |= {"random": f"views={views}" if views > 1 else None, "deterministic": True}
        output = self.features.output
        return FeatureSource(of=source, entry=entry, shards=shards, output=output, **shared)

    def _shards(self, source: Source, entry: Entry, progress: bool) -> list[np.ndarray]:
        """Return the shards of an entry, of which those that are absent are computed.

        The first shard decides whether the entry is of this model: its first rows are computed
        again. A key cannot see everything, such as the code of a custom layer.
        """
        shards = entry.read(self.dtype)
        if shards[0] is not None:
            inputs = next(iter(_inputs(source, 0, TRIED)))
            rows = self._rows(self.features(inputs, training=False))
            if not self._alike(shards[0][:TRIED], rows):
                if progress:
                    print(f"{entry.path} has features of another model: all are computed again.")
                shards[0] = None
        if shards[0] is None:  # without the first one, the others cannot be checked
            shutil.rmtree(entry.path, ignore_errors=True)
            shards = [None] * len(shards)
        missing = [number for number, shard in enumerate(shards) if shard is None]
        if missing:
            self._compute(source, entry, missing, progress)
            shards = entry.read(self.dtype)
        if any(shard is None for shard in shards):
            raise OSError(f"{entry.path} was changed while features were computed. Try again.")
        return shards  # type: ignore[return-value]

    def _compute(self, source: Source, entry: Entry, missing: list[int], progress: bool) -> None:
        """Compute shards of an entry, by their numbers.

        A row is computed in the same batch whichever shards are missing, so that its bits are the
        same in a run that was interrupted.

        Args:
            source: of the data set.
            entry: gets the shards; its `shard_rows` is a multiple of `COMPUTED`, so that no batch
                crosses the end of a shard.
            missing: the numbers of the shards, in order.
            progress: whether to print, and to show a bar.
        """
        rows = min(len(missing) * entry.shard_rows, entry.rows)
        if progress:
            print(f"Computing the features of the frozen backbone, once: {rows} rows.")
        with progress_bar("features", rows, progress) as advance:
            for view in range(entry.views):
                first = view * entry.per_view
                wanted = [n for n in missing if first <= n < first + entry.per_view]
                if not wanted:
                    continue
                inputs = _inputs(source, view, COMPUTED)
                # One trace for batches of any size: it can take longer than an epoch.
                step = self._call.get_concrete_function(inputs.element_spec)
                batches = iter(inputs)
                for number in range(first, wanted[-1] + 1):
                    computed = []
                    for batch in islice(batches, entry.shard_rows // COMPUTED):
                        if number in wanted:
                            self._check(step, batch)
                            computed.append(self._rows(step(batch)))
                            advance(len(computed[-1]))
                    if number in wanted:
                        entry.write(number, np.concatenate(computed))

    def _check(self, step: Callable[[Any], Any], inputs: Any) -> None:
        """Raise ValueError if the same inputs do not always give the same features.

        Runs once per frozen part: of other data, it is as constant.
        """
        if self._is_checked:
            return
        inputs = tf.nest.map_structure(lambda each: each[:TRIED], inputs)
        # What a call has changed is put back, so that a model that is refused is left as it was.
        variables = self.features.variables
        before = [np.array(variable.numpy()) for variable in variables]
        rows = self._rows(step(inputs))
        others = {"when they are computed twice": step(inputs)}
        if any(map(_heeds_training, self.features.layers)):
            others["in training"] = self.features(inputs, training=True)
        alike = {when: self._alike(rows, self._rows(other)) for when, other in others.items()}
        got = [f"other features {when}" for when, same in alike.items() if not same]
        for variable, value in zip(variables, before, strict=True):
            if not np.array_equal(variable.numpy(), value, equal_nan=True):
                variable.assign(value)
                got.append(f"one that changes {variable.path!r} when it is called")
        if got:
            raise ValueError(
                f"`model` must have a frozen part that always computes the same, got {got[0]}. "
                "Train without the feature cache."
            )
        self._is_checked = True

    def _alike(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Return whether rows are equal but for rounding, which an optimized graph does its way.

        Args:
            a, b: structured rows (rows,).

        Returns:
            Whether they differ by at most 0.1 % (2 % in half precision) of each number plus the
            same share of the largest.
        """
        for name, tensor in named(self.features.output).items():
            share = 2e-2 if tensor.dtype in ("float16", "bfloat16") else 1e-3
            scale = np.nan_to_num(np.abs(a[name].astype("float64"))).max(initial=0.0)
            if not np.allclose(a[name], b[name], share, share * scale, equal_nan=True):
                return False
        return True

    def _rows(self, outputs: Any) -> np.ndarray:
        """Return a batch of features as a structured array, (batch,)."""
        outputs = named(outputs)
        rows = np.empty(len(next(iter(outputs.values()))), self.dtype)
        for name, values in outputs.items():
            rows[name] = tf.cast(values, self.dtype[name].base).numpy()
        return rows


def feature_key(identity: str, source: Source, views: int) -> str:
    """Return the SHA-256 of all that decides the features of a data set's rows.

    Besides the identity of the frozen part these are the content of the inputs, what prepares and
    augments them, and how many augmented views of each row there are. Labels and paths do not
    count.

    Args:
        identity: `features_sha256` of the frozen part.
        source: of the data set.
        views: 1 without augmentation.
    """
    content = f"{FORMAT} {identity} {source.content_sha256()} {views}"
    return hashlib.sha256(content.encode()).hexdigest()


def named(outputs: Any) -> dict[str, Any]:
    """Return the outputs of the frozen part by name."""
    return dict(outputs) if isinstance(outputs, Mapping) else {"features": outputs}


def _field(name: str, tensor: keras.KerasTensor) -> tuple[str, str, tuple[int, ...]]:
    """Return a feature's name, type and shape as kept; NumPy lacks bfloat16: float32."""
    if tensor.dtype == "string" or None in tensor.shape[1:]:
        raise ValueError(
            "`model` must have a frozen part that returns numbers in a fixed shape, got "
            f"{tensor.dtype} {tensor.shape}. Train without the feature cache."
        )
    return name, "float32" if tensor.dtype == "bfloat16" else tensor.dtype, tensor.shape[1:]


def _heeds_training(layer: keras.layers.Layer) -> bool:
    """Return whether a layer may compute something else in training."""
    return type(layer) not in SAME_IN_TRAINING and (type(layer) is not HubLayer or layer.trainable)


def _inputs(source: Source, view: int, batch_size: int) -> tf.data.Dataset:
    """Return the inputs of a view, in the order of the rows.

    Without augmentation `view` has no effect.
    """
    found = (
        source.augmented_inputs(view, batch_size) if source.random else source.inputs(batch_size)
    )
    options = tf.data.Options()
    # Tuning gains nothing in one pass, at whose end it holds up the process for most of a second.
    options.autotune.enabled = (os.cpu_count() or 1) > MOST_CORES
    return found.with_options(options)


# ---------------------------------------------------------------- data sets of features


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FeatureSource(Source):
    """The rows of another source, by their features.

    Rows are numbered over all views: those of one view after those of the view before. Each epoch
    counts as one of the other source's own, and epoch e has view e modulo the number of views.

    Attributes:
        of: the other source.
        entry: where the features are kept.
        shards: of the entry, memory-mapped.
        output: of the frozen part: a symbolic tensor, or several by name.
    """

    of: Source
    entry: Entry
    shards: list[np.ndarray]
    output: Any

    def lookup(self, rows: tf.Tensor, labels: Any = None) -> Any:
        """Return features and labels of rows, (n,) int64; only features if `labels` is None.

        One NumPy function does it all: every operation of a pipeline is prepared in each epoch.

        Args:
            rows: (n,) int64, numbered over all views.
            labels: (count, tasks), or a dict of (count, columns), NaN = missing.

        Returns:
            Features (n, …), one tensor or several by name; with labels a pair, labels of the same n
            rows.
        """
        outputs, dtype = named(self.output), self.shards[0].dtype
        known = [np.asarray(each) for each in tf.nest.flatten(labels) if each is not None]

        def pick(rows: np.ndarray) -> list[np.ndarray]:
            number, place = self.entry.places(rows)
            found = np.empty(len(rows), dtype)
            for each in np.unique(number):
                found[number == each] = self.shards[each][place[number == each]]
            rows = rows % self.count
            return [np.ascontiguousarray(found[name]) for name in outputs] + [
                k[rows] for k in known
            ]

        kinds = [dtype[name].base for name in outputs] + [each.dtype for each in known]
        arrays = tf.nest.flatten(tf.numpy_function(pick, [rows], kinds, stateful=False))
        found = {}
        for name, tensor in outputs.items():
            array = tf.ensure_shape(arrays.pop(0), (None, *tensor.shape[1:]))
            found[name] = array if array.dtype == tensor.dtype else tf.cast(array, tensor.dtype)
        features = found if isinstance(self.output, Mapping) else found["features"]
        if labels is None:
            return features
        for array, values in zip(arrays, known, strict=True):
            array.set_shape((None, *values.shape[1:]))
        return features, tf.nest.pack_sequence_as(labels, arrays)

    def inputs(self, batch_size: int) -> tf.data.Dataset:
        """Return the features of the first view, in the order of the rows."""
        return self.augmented_inputs(0, batch_size)

    def augmented_inputs(self, view: int, batch_size: int) -> tf.data.Dataset:
        """Return the features of a view, counted modulo the number of views."""
        first = view % self.entry.views * self.count
        rows = tf.data.Dataset.range(first, first + self.count).batch(batch_size)
        return rows.map(as_written(self.lookup))

    def content_sha256(self) -> str:
        """Return the key that the features are kept under."""
        return self.entry.key

    def where(self, row: int) -> str:
        """Return the place of a row, for messages."""
        return self.of.where(row)


def feature_dataset(source: FeatureSource, endless: bool = False) -> tf.data.Dataset:
    """Return batches of features and labels, in the order of the source; NaN = missing label.

    Args:
        source: with labels; its `epoch`, if it has one, counts up with each epoch.
        endless: whether another epoch follows each, for `fit` with `steps_per_epoch`: to make an
            iterator takes as long as ten batches, and `fit` makes two per epoch of a data set that
            ends.

    Returns:
        Features (batch, …) and labels as in the source, in batches of its `batch_size`.
    """
    # Many batches at once: a call of Python for each would wait for the training's own.
    count, batch = source.count, source.batch_size
    chunk = max(CHUNK // (batch * source.shards[0].dtype.itemsize), 1) * batch
    look_up = as_written(partial(source.lookup, labels=source.labels))

    def next_order() -> np.ndarray:
        # Counted when an epoch begins, so that `fit` gets the next one's order without being told.
        number = source.epoch.assign_add(1, read_value=True) - 1  # type: ignore[union-attr]
        first = number % source.entry.views * count
        return (permutation(count, source.seed, number) + first).numpy()

    def ordered(_: Any) -> tf.data.Dataset:
        order = tf.ensure_shape(tf.numpy_function(next_order, [], tf.int64), (count,))
        return tf.data.Dataset.from_tensor_slices(order).batch(chunk)

    def in_batches(*rows: Any) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(rows).batch(batch)

    if source.epoch is not None:
        epochs = tf.data.Dataset.from_tensors(0).repeat(None if endless else 1)
        found = epochs.flat_map(as_written(ordered)).map(look_up).flat_map(as_written(in_batches))
    elif count <= chunk:
        found = in_batches(*look_up(tf.range(count, dtype=tf.int64)))
    else:
        rows = tf.data.Dataset.range(count).batch(chunk)
        found = rows.map(look_up).flat_map(as_written(in_batches))
    if not endless:
        found = found.apply(tf.data.experimental.assert_cardinality(-(-count // batch)))
    # To optimize and tune so short a pipeline takes longer than to run it, in each epoch again.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return register(found.with_options(options), source)
