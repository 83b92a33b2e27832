"""Features of the frozen part, computed once and kept, for training the head alone.

`split_model` cuts a model at the border between what is frozen and what is trained. The features
at that border are computed once per row (or once per augmented view of it), kept on disk in shards
under a hash of everything that decides them, and found again by any run that needs the same ones.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.data.dataset import Source, permutation, register, source_of
from kerasmtl.models.backbones import backbone_names
from kerasmtl.models.hub_layer import HubLayer
from kerasmtl.models.layer_groups import is_batch_normalization, sublayers
from kerasmtl.training.feature_store import FORMAT, Entry, entry_at, features_root
from kerasmtl.utils.progress import progress_bar
from kerasmtl.utils.tf import as_written
from kerasmtl.utils.validation import check_count

COMPUTED = 64  # rows that the frozen part is given at a time
TRIED = 8  # rows that are computed again, to see that they stay the same
MEMORY_LIMIT = 2**30  # bytes of features that are read into memory as a whole
MOST_CORES = 16  # that tf.data uses without tuning itself

# These draw from their seed generator only if one of the rates is not zero.
CELLS = (keras.layers.GRUCell, keras.layers.LSTMCell, keras.layers.SimpleRNNCell)
# Layers that compute the same in training; so does a `HubLayer` that is frozen.
SAME_IN_TRAINING = (keras.layers.InputLayer, keras.layers.Rescaling)

Rows = Mapping[str, np.ndarray]


# ---------------------------------------------------------------- a model in two


@dataclass(frozen=True, eq=False)
class Call:
    """One use of a layer or operation in a model, and the symbolic tensors that it returns."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[keras.KerasTensor]

    @property
    def inputs(self) -> list[keras.KerasTensor]:
        """The symbolic tensors that it is called with."""
        return _tensors((self.args, self.kwargs))


def split_model(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Split a model into its frozen part, from inputs to features, and the head that is trained.

    head(features(x)) equals model(x). Both share layers and variables with the model, so training
    the head trains the model. A layer belongs to the frozen part if all its inputs do, it has
    nothing to train, and it computes the same in training and in inference: no dropout, noise or
    random augmentation, and no batch normalization that updates its statistics. A model nested in
    the model counts as one layer.

    Args:
        model: a functional or sequential model, such as `build_model` makes.

    Returns:
        features: takes what the model takes, and returns one tensor, or a dict "features_0", … of
            tensors if the head needs several.
        head: takes that, and returns the model's outputs.

    Raises:
        ValueError: the model is not a graph of layers, all of it is frozen, or no frozen layer has
            weights; names the layer that is in the way, and says why.

    Example:
        >>> import keras
        >>> import kerasmtl as kt
        >>> frozen = keras.layers.Dense(4, trainable=False)
        >>> model = keras.Sequential([keras.Input((8,)), frozen, keras.layers.Dense(2)])
        >>> features, head = kt.features.split_model(model)
        >>> features.output.shape, head.output.shape
        ((None, 4), (None, 2))
    """
    calls = calls_of(model)
    frozen, obstacles = _frozen_calls(model, calls)
    if not any(_has_weights(call.operation) for call in frozen):
        reason = obstacles[0] if obstacles else "no layer has weights"
        raise ValueError(
            f"`model` must have a frozen backbone, with nothing random in it or before it, got "
            f"{model.name!r}: {reason}. Call kt.freeze(model)."
        )
    if len(frozen) == len(calls):
        raise ValueError(
            f"`model` must have a layer that is trainable, got {model.name!r}, all of it frozen"
        )
    frontier = _frontier(model, calls, frozen)
    features = keras.Model(_ends(model)[0], _named(frontier), name=f"{model.name}_features")
    return features, _head(model, calls, frozen, frontier)


def calls_of(model: keras.Model) -> list[Call]:
    """Return the calls of a model's graph, each after those it depends on, without the inputs.

    Raises:
        ValueError: the model is not a graph: it is subclassed, or not built.
    """
    outputs = getattr(model, "outputs", None)
    if not outputs:
        raise ValueError(
            "`model` must be a functional or a built sequential model, got "
            f"{getattr(model, 'name', model)!r}, a {type(model).__name__}"
        )
    reached = {id(tensor) for tensor in model.inputs}
    found: list[Call] = []
    waiting = list(outputs)[::-1]
    while waiting:
        if id(waiting[-1]) in reached:
            waiting.pop()
            continue
        call = _call_of(waiting[-1])
        needed = [tensor for tensor in call.inputs if id(tensor) not in reached]
        if needed:
            waiting += needed[::-1]
        else:
            found.append(call)
            reached |= {id(tensor) for tensor in call.outputs}
    return found


def _call_of(tensor: keras.KerasTensor) -> Call:
    # Keras has no public way from a symbolic tensor to the call it comes from.
    history = tensor._keras_history
    node = history.operation._inbound_nodes[history.node_index]
    return Call(history.operation, node.arguments.args, node.arguments.kwargs, node.outputs)


def randomness(operation: Any) -> str | None:
    """Return why an operation computes something else in training; None if it does not."""
    if not isinstance(operation, keras.layers.Layer):
        return None
    for layer in [operation, *sublayers(operation)]:
        inside = "" if layer is operation else f" in {operation.name!r}"
        if is_batch_normalization(layer) and layer.trainable:
            return f"{layer.name!r}{inside} updates its statistics in training"
        if isinstance(layer, keras.layers.SpectralNormalization):
            return f"{layer.name!r}{inside} updates its weights in training"
        if isinstance(layer, HubLayer) and layer.trainable:
            return f"{layer.name!r}{inside} is trainable"
        own = _seeds(layer) - {seed for inner in sublayers(layer) for seed in _seeds(inner)}
        if own and not _without_dropout(layer):
            return f"{layer.name!r}{inside} is random in training"
    return None


def _seeds(layer: keras.layers.Layer) -> set[int]:
    """The states of random generators: variables that do not count as weights."""
    return {id(v) for v in layer.variables} - {id(v) for v in layer.weights}


def _without_dropout(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, CELLS) and not (layer.dropout or layer.recurrent_dropout)


def _obstacle(operation: Any) -> str | None:
    """Why a layer cannot be in the frozen part."""
    if isinstance(operation, keras.layers.Layer) and operation.trainable_weights:
        return f"{operation.name!r} is trainable"
    return randomness(operation)


def _frozen_calls(model: keras.Model, calls: list[Call]) -> tuple[list[Call], list[str]]:
    """The calls of the frozen part; and why the calls that end it do not belong to it."""
    kept_out: dict[int, str] = {}
    while True:
        obstacles: list[str] = []
        frozen: list[Call] = []
        known = {id(tensor) for tensor in model.inputs}
        for call in calls:
            if id(call) in kept_out or any(id(t) not in known for t in call.inputs):
                continue
            reason = _obstacle(call.operation)
            if reason is None:
                frozen.append(call)
                known |= {id(tensor) for tensor in call.outputs}
            else:
                obstacles.append(reason)
        # A mask travels with a tensor inside a model, and would be lost between two models.
        border = {id(tensor) for tensor in _frontier(model, calls, frozen)}
        masked = [c for c in frozen if any(id(t) in border and _is_masked(t) for t in c.outputs)]
        if not masked:
            return frozen, [*kept_out.values(), *obstacles]
        kept_out |= {id(c): f"{c.operation.name!r} passes a mask on" for c in masked}


def _is_masked(tensor: keras.KerasTensor) -> bool:
    return getattr(tensor, "_keras_mask", None) is not None


def _has_weights(operation: Any) -> bool:
    return isinstance(operation, keras.layers.Layer) and bool(
        operation.weights
        or any(isinstance(layer, HubLayer) for layer in [operation, *sublayers(operation)])
    )


def _frontier(model: keras.Model, calls: list[Call], frozen: list[Call]) -> list[keras.KerasTensor]:
    """The tensors of the frozen part that the rest takes, or that the model returns."""
    inside = {id(call) for call in frozen}
    known = {id(t) for t in model.inputs} | {id(t) for call in frozen for t in call.outputs}
    used = [t for call in calls if id(call) not in inside for t in call.inputs]
    return list({id(t): t for t in [*used, *model.outputs] if id(t) in known}.values())


def _named(tensors: list[keras.KerasTensor]) -> Any:
    if len(tensors) == 1:
        return tensors[0]
    return {f"features_{number}": tensor for number, tensor in enumerate(tensors)}


def _head(
    model: keras.Model,
    calls: list[Call],
    frozen: list[Call],
    frontier: list[keras.KerasTensor],
) -> keras.Model:
    """The calls that are not frozen, called again from new inputs in place of the frontier."""
    names = ["features"] if len(frontier) == 1 else _named(frontier)
    symbols = [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)
        for name, tensor in zip(names, frontier, strict=True)
    ]
    made = {id(tensor): symbol for tensor, symbol in zip(frontier, symbols, strict=True)}
    inside = {id(call) for call in frozen}

    def swap(value: Any) -> Any:
        return made[id(value)] if isinstance(value, keras.KerasTensor) else value

    for call in calls:
        if id(call) in inside:
            continue
        args, kwargs = keras.tree.map_structure(swap, (call.args, call.kwargs))
        given = call.operation(*args, **kwargs)
        made |= {id(t): new for t, new in zip(call.outputs, _tensors(given), strict=True)}
    outputs = keras.tree.map_structure(swap, _ends(model)[1])
    return keras.Model(_named(symbols), outputs, name=f"{model.name}_head")


def _ends(model: keras.Model) -> tuple[Any, Any]:
    """The model's inputs and outputs, nested as its callers nest them."""
    if isinstance(model, keras.Sequential):  # whose `input` is unknown until it is called
        return model.inputs[0], model.outputs[0]
    return model.input, model.output


def _tensors(structure: Any) -> list[keras.KerasTensor]:
    return [t for t in keras.tree.flatten(structure) if isinstance(t, keras.KerasTensor)]


# ---------------------------------------------------------------- what decides the features


def check_code(features: keras.Model) -> None:
    """Raise ValueError if the config of a model does not say what one of its layers computes.

    Of a `Lambda`, and of layers and functions that are not registered with Keras, the code may
    change while the config stays the same.
    """
    for layer in [features, *sublayers(features)]:
        kind = type(layer)
        known = kind.__module__.startswith(("keras.", "kerasmtl."))
        if isinstance(layer, keras.layers.Lambda) or not (
            known or keras.saving.get_registered_name(kind) != kind.__name__
        ):
            what = f"layer {layer.name!r}, a {kind.__name__}"
            break
        function = getattr(layer, "activation", None)
        module = getattr(function, "__module__", None) or "keras."
        if not (
            module.startswith("keras.")
            or keras.saving.get_registered_name(function) != getattr(function, "__name__", "")
        ):
            what = f"the activation of layer {layer.name!r}"
            break
    else:
        return
    raise ValueError(
        "`model` must have a frozen part of Keras' own or registered layers (keras.saving."
        f"register_keras_serializable), got {what}: its features would be found again after its "
        "code was changed. If it stays the same, pass cache=True."
    )


def identity_of(features: keras.Model) -> dict[str, Any]:
    """Return what decides the features of given inputs: structure, weights, Keras' version.

    Names of layers, which count up with each model that is built, and what is trainable are left
    out.

    Args:
        features: the frozen part, as `split_model` makes it.
    """
    names = {layer.name: f"#{n}" for n, layer in enumerate([features, *sublayers(features)])}
    layers = sublayers(features)
    words = [layer.get_vocabulary() for layer in layers if hasattr(layer, "get_vocabulary")]
    return {
        "format": FORMAT,
        "keras": keras.__version__,
        "structure": _canonical(json.loads(features.to_json()), names),
        "vocabularies": words,  # which a layer that was adapted has in neither config nor weights
        "weights": weights_sha256(features),
    }


def _canonical(value: Any, names: Mapping[str, str]) -> Any:
    """A config with numbers for the names of layers, without what does not change the outputs."""
    if isinstance(value, Mapping):
        if isinstance(value.get("module"), Mapping):  # of a HubLayer: its content counts
            value = {**value, "module": value["module"].get("sha256"), "handle": None}
        left_out = ("trainable", "build_config", "registered_name", "compile_config")
        return {
            key: names.get(each, each) if key == "name" and isinstance(each, str)
            else _canonical(each, names)
            for key, each in value.items()
            if key not in left_out
        }  # fmt: skip
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) == 3 and isinstance(value[0], str) and value[0] in names:
            return [names[value[0]], *value[1:]]  # where a tensor comes from: layer, node, position
        return [_canonical(each, names) for each in value]
    return value


def feature_key(identity: Mapping[str, Any], source: Source, views: int) -> str:
    """Return the SHA-256 of all that decides the features of a data set's rows.

    Besides the identity of the frozen part these are the content of the inputs, what prepares and
    augments them, and how many augmented views of each row there are. Labels and paths do not
    count.
    """
    parts = {**identity, "inputs": source.content_sha256(), "views": views}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def weights_sha256(model: keras.Model) -> str:
    """Return the hash of all weights of a model: their types, shapes and bytes, in order."""
    digest = hashlib.sha256()
    for variable in model.weights:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
        digest.update(f"{value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- computing


class FrozenPart:
    """A model in two, as `split_model` makes it, with the features of the frozen part.

    Args:
        model: with a frozen part, whose weights do not change while this is used.
        any_code: whether layers are accepted whose code the config does not hold, see
            `check_code`.

    Raises:
        ValueError: as in `split_model` and `check_code`.
    """

    def __init__(self, model: keras.Model, any_code: bool = False) -> None:
        self.features, self.head = split_model(model)
        if not any_code:
            check_code(self.features)
        self._steps: dict[str, Step] = {}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the features, see `identity_of`."""
        return identity_of(self.features)

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

        Raises:
            ValueError, OSError: as in `cache_features`.
        """
        source = _source(data, views, name)
        views = views if source.random else 1
        path = features_root(folder) / feature_key(self.identity, source, views)
        spec = inputs_of(source, 0, TRIED).element_spec
        alike = tf.nest.map_structure(lambda each: (each.dtype.name, *each.shape[1:]), spec)
        step = self._steps.setdefault(str(alike), Step(self.features, spec))
        about = {
            "backbone": ", ".join(backbone_names(self.features))
            or self.features.name.removesuffix("_features"),
            "first": source.where(0),
        }
        entry = entry_at(path, source.count, views, COMPUTED, about)
        with entry.lock():
            shards = _computed(step, source, entry, progress)
        return _feature_source(self.features, source, entry, shards)


def _source(data: Any, views: int, name: str) -> Source:
    source = source_of(data)
    if source is None:
        raise ValueError(
            f"`{name}` must be what make_dataset returned, with nothing like .map, .take or "
            f".shuffle after it, got {data!r}"
        )
    check_count("views", views)
    if source.random and views == 1:
        raise ValueError(
            f"`{name}` must have the same inputs in each epoch for features to be computed once, "
            f"got {source.random}. Leave augmentation out, or keep several augmented views of "
            "each row: cache_features(views=4)."
        )
    return source


def _computed(step: Step, source: Source, entry: Entry, progress: bool) -> list[np.ndarray]:
    """The shards of an entry, of which those that are absent are computed."""

    def found() -> list[np.ndarray | None]:
        return [entry.read(number, step.dtype) for number in range(entry.shards.count)]

    shards = found()
    # A new iterator takes its time to start: the one that was tried is used to compute.
    begun = inputs_of(source, 0, COMPUTED if shards[0] is None else TRIED)
    batches = iter(begun)
    first = next(batches)
    if shards[0] is None:
        shards = [None] * len(shards)  # without the first one, the others cannot be checked
    elif not step.agrees(first, shards[0]):
        if progress:
            print(f"{entry.path} has features of another model: all are computed again.")
        shutil.rmtree(entry.path, ignore_errors=True)
        shards = [None] * len(shards)
        batches = iter(inputs_of(source, 0, COMPUTED))
        first = next(batches)
    missing = [number for number, shard in enumerate(shards) if shard is None]
    if missing:
        step.check(_head_rows(first))
        entry.save()
        _compute(step, source, entry, missing, chain([first], batches), progress)
        shards = found()
    if any(shard is None for shard in shards):
        raise OSError(f"{entry.path} was changed while features were computed. Try again.")
    return shards  # type: ignore[return-value]


def _head_rows(inputs: Any) -> Any:
    return tf.nest.map_structure(lambda each: each[:TRIED], inputs)


def _compute(
    step: Step,
    source: Source,
    entry: Entry,
    missing: list[int],
    begun: Iterator[Any],
    progress: bool,
) -> None:
    """Compute shards of an entry.

    A row is computed in the same batch whichever shards are missing, so that its bits are the same
    in a run that was interrupted. `begun`: the inputs of the first view, from the first row on.
    """
    rows = min(len(missing) * entry.shard_rows, entry.rows)
    if progress:
        print(f"Computing the features of the frozen backbone, once: {rows} rows.")
    length = entry.shard_rows // COMPUTED  # of a shard, in batches
    with progress_bar("features", rows, progress) as advance:
        for view in range(entry.views):
            wanted = [n % entry.per_view for n in missing if n // entry.per_view == view]
            if not wanted:
                continue
            if view == wanted[0] == 0:
                batches = begun
            else:
                batches = iter(inputs_of(source, view, COMPUTED).skip(wanted[0] * length))
            for part in range(wanted[0], wanted[-1] + 1):
                taken = islice(batches, length)
                if part not in wanted:
                    list(taken)
                    continue
                computed = []
                for batch in taken:
                    computed.append(step(batch))
                    advance(len(computed[-1]))
                entry.write(view * entry.per_view + part, np.concatenate(computed))


def inputs_of(source: Source, view: int, batch_size: int) -> tf.data.Dataset:
    """Return the inputs of a view, in the order of the rows."""
    found = (
        source.augmented_inputs(view, batch_size) if source.random else source.inputs(batch_size)
    )
    options = tf.data.Options()
    # Tuning gains nothing in one pass, at whose end it holds up the process for most of a second.
    options.autotune.enabled = (os.cpu_count() or 1) > MOST_CORES
    return found.with_options(options)


class Step:
    """The frozen part as a function from a batch of inputs to a structured array of features.

    Args:
        features: the frozen part.
        inputs: the specs of a batch of inputs.

    Raises:
        ValueError: a feature has no fixed shape, or is text.
    """

    def __init__(self, features: keras.Model, inputs: Any) -> None:
        self.features = features
        # One trace for batches of any size: for some backbones it takes longer than an epoch.
        spec = tf.nest.map_structure(
            lambda each: tf.TensorSpec((None, *each.shape[1:]), each.dtype), inputs
        )
        self._run = tf.function(
            functools.partial(features, training=False), input_signature=[spec], autograph=False
        )
        self._is_checked = False
        self.kinds = named(features.output)
        self.dtype = np.dtype([_field(name, tensor) for name, tensor in self.kinds.items()])

    def __call__(self, inputs: Any) -> np.ndarray:
        return self._rows(self._run(inputs))

    def _rows(self, outputs: Any) -> np.ndarray:
        arrays = {name: _as_numpy(tensor) for name, tensor in named(outputs).items()}
        rows = np.empty(len(next(iter(arrays.values()))), self.dtype)
        for name, values in arrays.items():
            rows[name] = values
        return rows

    def agrees(self, inputs: Any, kept: np.ndarray) -> bool:
        """Return whether kept rows are the features of these inputs; runs without a trace."""
        rows = self._rows(self.features(inputs, training=False))
        return len(kept) >= len(rows) and self._alike(kept[: len(rows)], rows)

    def check(self, inputs: Any) -> None:
        """Raise ValueError if the same inputs do not always give the same features.

        Runs once per frozen part: of other data, it is as constant.
        """
        if self._is_checked:
            return
        before = [keras.ops.convert_to_numpy(v) for v in self.features.variables]
        first = self(inputs)
        again = {"when they are computed twice": self(inputs)}
        if any(map(_heeds_training, self.features.layers)):
            again["in training"] = self._rows(self.features(inputs, training=True))
        changed = []
        for variable, value in zip(self.features.variables, before, strict=True):
            if not np.array_equal(keras.ops.convert_to_numpy(variable), value, equal_nan=True):
                variable.assign(value)
                changed.append(variable.path)
        for when, rows in again.items():
            if not self._alike(first, rows):
                raise ValueError(
                    "`model` must have a frozen part that always computes the same, got other "
                    f"features {when} for the same rows: something in {self.features.name!r} is "
                    "random. Train without the feature cache."
                )
        if changed:
            raise ValueError(
                "`model` must have a frozen part that stays as it is, got one that changes its "
                f"variables when it is called: {changed[:3]}. Train without the feature cache."
            )
        self._is_checked = True

    def _alike(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Equal but for rounding: one of them may come from a graph that was optimized."""
        for name, tensor in self.kinds.items():
            scale = np.nan_to_num(np.abs(a[name].astype(np.float64))).max(initial=0.0)
            share = 2e-2 if tensor.dtype in ("float16", "bfloat16") else 1e-3
            if not np.allclose(a[name], b[name], share, share * scale, equal_nan=True):
                return False
        return True


def _heeds_training(layer: keras.layers.Layer) -> bool:
    """Whether a layer may compute something else in training."""
    return type(layer) not in SAME_IN_TRAINING and (type(layer) is not HubLayer or layer.trainable)


def named(outputs: Any) -> dict[str, Any]:
    """Return the outputs of the frozen part by name."""
    return dict(outputs) if isinstance(outputs, Mapping) else {"features": outputs}


def _field(name: str, tensor: keras.KerasTensor) -> tuple[str, str, tuple[int, ...]]:
    """A feature's name, type and shape as kept; bfloat16, which NumPy lacks, becomes float32."""
    if tensor.dtype == "string" or None in tensor.shape[1:]:
        raise ValueError(
            "`model` must have a frozen part that returns numbers in a fixed shape, got "
            f"{tensor.dtype} {tensor.shape}. Train without the feature cache."
        )
    return name, "float32" if tensor.dtype == "bfloat16" else tensor.dtype, tensor.shape[1:]


def _as_numpy(tensor: tf.Tensor) -> np.ndarray:
    return (tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor).numpy()


# ---------------------------------------------------------------- data sets of features

Lookup = Callable[[tf.Tensor], Any]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FeatureSource(Source):
    """The rows of another source, by their features.

    Rows are numbered over all views: those of one view after those of the view before. Each epoch
    counts as one of the other source's own, and epoch e has view e modulo `views`.

    `lookup` goes from numbers of rows, (n,) int64, to features; `gather` to features and labels.
    `in_memory` says whether the features are in memory; otherwise they are read by batch.
    """

    of: Source
    views: int
    key: str
    lookup: Lookup
    gather: Lookup
    in_memory: bool

    def next_order(self) -> tf.Tensor:
        """Return the rows of the next epoch, (count,) int64, and move on to the epoch after it."""
        number = self.epoch.assign_add(1, read_value=True) - 1
        return permutation(self.count, self.seed, number) + number % self.views * self.count

    def inputs(self, batch_size: int) -> tf.data.Dataset:
        """Return the features of the first view, in the order of the rows."""
        return self.augmented_inputs(0, batch_size)

    def augmented_inputs(self, view: int, batch_size: int) -> tf.data.Dataset:
        """Return the features of a view, counted modulo the number of views."""
        first = view % self.views * self.count
        rows = tf.data.Dataset.range(first, first + self.count).batch(batch_size)
        return rows.map(as_written(self.lookup))

    def content_sha256(self) -> str:
        """Return the key that the features are kept under."""
        return self.key

    def where(self, row: int) -> str:
        """Return the place of a row, for messages."""
        return self.of.where(row)


def _feature_source(
    features: keras.Model, of: Source, entry: Entry, shards: list[np.ndarray]
) -> FeatureSource:
    in_memory = sum(shard.nbytes for shard in shards) <= MEMORY_LIMIT
    outputs = named(features.output)
    read = _from_memory(shards) if in_memory else _from_disk(shards, entry)
    single = not isinstance(features.output, Mapping)
    labels = _constants(of.labels)

    def lookup(rows: tf.Tensor) -> Any:
        arrays = read(rows)
        found = {name: tf.cast(arrays[name], out.dtype) for name, out in outputs.items()}
        return found["features"] if single else found

    def gather(rows: tf.Tensor) -> tuple[Any, Any]:
        chosen = rows % of.count
        return lookup(rows), tf.nest.map_structure(lambda values: tf.gather(values, chosen), labels)

    return FeatureSource(
        count=of.count,
        labels=of.labels,
        batch_size=of.batch_size,
        training=of.training,
        seed=of.seed,
        epoch=of.epoch,
        random=f"views={entry.views}" if entry.views > 1 else None,
        of=of,
        views=entry.views,
        key=entry.key,
        lookup=lookup,
        gather=gather,
        in_memory=in_memory,
    )


def _from_memory(shards: list[np.ndarray]) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    names = shards[0].dtype.names or ()
    kept = _constants({name: np.concatenate([shard[name] for shard in shards]) for name in names})
    return lambda rows: {name: tf.gather(values, rows) for name, values in kept.items()}


def _from_disk(
    shards: list[np.ndarray], entry: Entry
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    dtype = shards[0].dtype
    names = list(dtype.names or ())
    kinds = [dtype[name].base for name in names]

    def pick(rows: np.ndarray) -> list[np.ndarray]:
        view, row = np.divmod(rows, entry.count)
        part, offset = np.divmod(row, entry.shard_rows)
        number = view * entry.per_view + part
        found = np.empty(len(rows), dtype)
        for each in np.unique(number):
            found[number == each] = shards[each][offset[number == each]]
        return [np.ascontiguousarray(found[name]) for name in names]

    def read(rows: tf.Tensor) -> dict[str, tf.Tensor]:
        arrays = tf.numpy_function(pick, [rows], kinds, stateful=False)
        return {
            name: tf.ensure_shape(array, (None, *dtype[name].shape))
            for name, array in zip(names, arrays, strict=True)
        }

    return read


def _constants(structure: Any) -> Any:
    with tf.device("CPU:0"):
        return tf.nest.map_structure(tf.constant, structure)


def feature_dataset(source: FeatureSource) -> tf.data.Dataset:
    """Return batches of features and labels, in the order of the source; NaN = missing label."""
    if source.epoch is None:
        rows = tf.data.Dataset.range(source.count).batch(source.batch_size)
    else:
        # Each function costs milliseconds in every epoch, more than small batches do: hence one,
        # and rows set apart and put together again, instead of `epoch_indices`.
        order = tf.data.Dataset.from_tensors(0).map(as_written(lambda _: source.next_order()))
        batches = -(-source.count // source.batch_size)
        rows = order.unbatch().batch(source.batch_size)
        rows = rows.apply(tf.data.experimental.assert_cardinality(batches))
    # To optimize and tune so short a pipeline takes longer than to run it, in each epoch again.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    batches = rows.map(as_written(source.gather)).prefetch(2).with_options(options)
    return register(batches, source)


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
    run computes those that are missing. Up to 1 GiB is read into memory, more is read by batch.

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
        >>> from pathlib import Path
        >>> import kerasmtl as kt
        >>> frozen = keras.layers.Conv2D(4, 3, trainable=False)
        >>> layers = [frozen, keras.layers.GlobalMaxPooling2D(), keras.layers.Dense(1)]
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("a.png", "b.png"):
        ...         keras.utils.save_img(Path(folder, name), np.zeros((8, 8, 3)), scale=False)
        ...     _ = Path(folder, "labels.csv").write_text("image,car\\na.png,1\\nb.png,0\\n")
        ...     data = kt.make_dataset(kt.Manifest.from_csv(Path(folder, "labels.csv")), 8)
        ...     cached = kt.features.cache_features(model, data, folder, progress=False)
        ...     [features.shape for features, labels in cached]
        [TensorShape([2, 4])]
    """
    source = FrozenPart(model, any_code=True).cached(data, folder, views, progress)
    return feature_dataset(source)


def cached_head(
    model: keras.Model,
    train: Any,
    validation: Any = None,
    progress: bool = True,
    any_code: bool = False,
) -> tuple[keras.Model, tf.data.Dataset, tf.data.Dataset | None]:
    """Return the head of a model, and its data sets as features that are computed once.

    Raises:
        ValueError, OSError: as `cache_features`.
    """
    with model.distribute_strategy.scope():
        part = FrozenPart(model, any_code)
    sets = [
        feature_dataset(part.cached(data, progress=progress, name=name))
        for name, data in {"train": train, "validation": validation}.items()
        if data is not None
    ]
    return part.head, sets[0], sets[1] if len(sets) > 1 else None
