"""Features of the frozen part, computed once and kept; training then runs on them."""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import json
import os
import re
import shutil
import sys
import sysconfig
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path, PurePath
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.data.dataset import Source, permutation, register, source_of
from kerasmtl.models.backbones import backbone_names
from kerasmtl.models.hub_layer import HubLayer
from kerasmtl.models.layer_groups import is_batch_normalization, sublayers
from kerasmtl.training.feature_store import (
    BLOCK,
    FORMAT,
    Array,
    Plan,
    features_root,
    is_intact,
    make_entry,
    open_entry,
)
from kerasmtl.utils.progress import progress_bar
from kerasmtl.utils.tf import as_written

# Names count up with every model that is built, and what is frozen was decided before.
LEFT_OUT = {"name", "trainable", "build_config", "registered_name"}
# What Keras writes into a layer when it is built, compiled or trained.
WRITTEN = {"_compile_config", "_compiled_trainable_state", "_eval_epoch_iterator", "history"}
WRITTEN |= {"optimizer", "stop_training", "_lock"}
LIBRARY = ("keras", "kerasmtl", "tensorflow", "builtins", "abc")
WITHOUT_EFFECT = ("logging", "threading", "_thread", "warnings")
MADE_IN_PYTHON = 1 << 9  # a flag of types: Py_TPFLAGS_HEAPTYPE
AS_WRITTEN = (tf.DType, tf.TensorShape, tf.TypeSpec, np.dtype, PurePath, re.Pattern, slice, range)
BUILT_IN = (types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType)


class Description:
    """Describes what decides the outputs of layers, with values that JSON can hold.

    Args:
        variables: those whose values are hashed elsewhere; of them the shapes count here.
    """

    def __init__(self, variables: Iterable[Any] = ()) -> None:
        self._elsewhere = {id(variable) for variable in variables}
        self._done: dict[int, tuple[Any, str]] = {}  # with the object, so that no other has its id
        self._begun: list[int] = []

    def graph(self, model: keras.Model) -> Any:
        """A functional model: each layer by what it does, each tensor by its place."""
        places = {id(tensor): ["input", number] for number, tensor in enumerate(model.inputs)}

        def place(value: Any) -> Any:
            return places[id(value)] if isinstance(value, keras.KerasTensor) else value

        described = [[str(tensor.dtype), list(tensor.shape)] for tensor in model.inputs]
        for number, call in enumerate(calls_of(model)):
            where = f"what {call.operation.name!r} is called with"
            given = self.of(keras.tree.map_structure(place, (call.args, call.kwargs)), where)
            described.append([self.of(call.operation, f"layer {call.operation.name!r}"), given])
            places |= {id(t): [number, position] for position, t in enumerate(call.outputs)}
        return [described, [places[id(tensor)] for tensor in model.outputs]]

    def of(self, value: Any, where: str) -> Any:
        """Any value.

        Args:
            value: of a layer's attribute, a closure, ….
            where: says in messages what it is.

        Raises:
            ValueError: it cannot be seen into; says what, and where.
        """
        if value is None or type(value) in (bool, int, str):
            return value
        if isinstance(value, np.ndarray | np.generic):
            return self._array(value, where)
        if isinstance(value, float | complex | int | str):
            return [type(value).__name__, repr(value)]
        if isinstance(value, bytes | bytearray):
            return ["bytes", hashlib.sha256(value).hexdigest()]
        if isinstance(value, AS_WRITTEN) or value is Ellipsis:
            return [type(value).__name__, str(value)]
        if id(value) in self._done:
            return self._done[id(value)][1]
        if id(value) in self._begun:
            return ["around it", len(self._begun) - self._begun.index(id(value))]
        self._begun.append(id(value))
        try:
            text = json.dumps(self._compound(value, where), sort_keys=True)
        finally:
            self._begun.pop()
        found = hashlib.sha256(text.encode()).hexdigest()
        self._done[id(value)] = value, found
        return found

    def _compound(self, value: Any, where: str) -> Any:
        if isinstance(value, keras.Variable) and id(value) in self._elsewhere:
            return ["variable", str(value.dtype), list(value.shape)]
        if isinstance(value, keras.KerasTensor):
            return ["symbol", str(value.dtype), list(value.shape)]
        if isinstance(value, tf.Tensor | tf.Variable | keras.Variable):
            return self._tensor(value, where)
        if isinstance(value, tf.__internal__.CompositeTensor):
            return [type(value).__name__, *self._each(_components(value), where)]
        if isinstance(value, Mapping):
            pairs = [[self.of(k, where), self.of(v, f"{where}, {k!r}")] for k, v in value.items()]
            return ["mapping", *pairs]
        if isinstance(value, list | tuple):
            return ["tuple" if isinstance(value, tuple) else "list", *self._each(value, where)]
        if isinstance(value, set | frozenset):
            return ["set", *sorted(json.dumps(each) for each in self._each(value, where))]
        if isinstance(value, keras.Model) and getattr(value, "outputs", None):
            return ["graph", self.graph(value)]
        if isinstance(value, HubLayer):
            settings = [value.signature, value.output_key, value.arguments, value.declared_shape]
            return ["HubLayer", value.sha256, self.of(settings, where)]
        if isinstance(value, type):
            return self._class(value, where)
        if isinstance(value, enum.Enum):
            return [type(value).__qualname__, value.name]
        return self._callable(value, where) or self._object(value, where)

    def _each(self, values: Iterable[Any], where: str) -> list[Any]:
        return [self.of(value, where) for value in values]

    def _array(self, value: Any, where: str) -> Any:
        kind = [str(value.dtype), list(value.shape)]
        if value.dtype.hasobject:
            return ["objects", kind, self.of(value.tolist(), where)]
        content = np.ascontiguousarray(value).tobytes()
        return ["array", kind, hashlib.sha256(content).hexdigest()]

    def _tensor(self, value: Any, where: str) -> Any:
        try:
            return ["tensor", str(value.dtype), self._array(np.asarray(value), where)]
        except (TypeError, ValueError, NotImplementedError, tf.errors.OpError):
            raise _unknown(value, where) from None

    def _callable(self, value: Any, where: str) -> Any:
        """A function of any kind; None for anything else."""
        if isinstance(value, types.FunctionType):
            return self._function(value, where)
        if isinstance(value, types.CodeType):
            consts = self.of(value.co_consts, where)
            return ["code", value.co_code.hex(), list(value.co_names), consts]
        if isinstance(value, types.MethodType):
            return ["method", *self._each((value.__func__, value.__self__), where)]
        if isinstance(value, functools.partial):
            return ["partial", *self._each((value.func, value.args, value.keywords), where)]
        if isinstance(value, staticmethod | classmethod):
            return [type(value).__name__, self.of(value.__func__, where)]
        if isinstance(value, property):
            return ["property", *self._each((value.fget, value.fset), where)]
        inner = getattr(value, "python_function", None) or getattr(value, "__wrapped__", None)
        if callable(value) and inner is not None:  # of tf.function, or of a cache
            return ["wrapped", type(value).__qualname__, self.of(inner, where)]
        if isinstance(value, BUILT_IN) and isinstance(value.__self__, types.ModuleType | None):
            return ["built in", value.__module__, value.__qualname__]
        return None

    def _function(self, function: Any, where: str) -> Any:
        code = function.__code__
        described: list[Any] = []
        if not _is_library(function.__module__):
            described.append(self.of(code, where))
        if _is_installed(function.__module__):
            described += [function.__module__, function.__qualname__]
            if "<locals>" not in function.__qualname__:  # what decorates it is the library's
                return ["function", described]
        else:
            names = sorted(_names(code) & set(function.__globals__))
            held = [(name, function.__globals__[name]) for name in names]
            described.append(self._used(held, where))
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        inner = [(name, cell.cell_contents) for name, cell in cells if _is_full(cell)]
        described.append(self._used(inner, where))
        given = [function.__defaults__, function.__kwdefaults__]
        defaults = self.of(given, f"{where}, a default")
        return ["function", described, defaults]

    def _used(self, held: Iterable[tuple[str, Any]], where: str) -> Any:
        """What a function uses of what is around it, by name."""
        return [[name, self.of(value, f"{where}, {name!r}")] for name, value in held]

    def _class(self, kind: type, where: str) -> Any:
        if _is_library(kind.__module__):
            return ["class", kind.__module__, kind.__qualname__]
        described: list[Any] = ["class", kind.__qualname__, self._each(kind.__bases__, where)]
        text = _source_of(kind)
        described.append(text)
        if _is_installed(kind.__module__):
            return described
        for name, value in vars(kind).items():
            is_code = isinstance(value, types.FunctionType | staticmethod | classmethod | property)
            if is_code:
                described.append([name, self.of(value, f"{where}, {name!r}")])
            # Numbers and words are in the text; a counter in a class must not change the hash.
            elif isinstance(value, np.ndarray | tf.Tensor) or not (text or name.startswith("__")):
                described.append([name, self.of(value, f"{where}, {name!r}")])
        return described

    def _object(self, value: Any, where: str) -> Any:
        kind = type(value)
        if isinstance(value, keras.random.SeedGenerator) or kind.__module__ in WITHOUT_EFFECT:
            return kind.__qualname__
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__]
        described: list[Any] = [kind.__qualname__, self.of(kind, where)]
        described.append(str(getattr(value, "compute_dtype", None)))
        if _is_installed(kind.__module__) and hasattr(value, "get_config"):
            config = _config(value)
            if config is not None:
                own = vars(value).items() if hasattr(value, "__dict__") else ()
                given = [(name, each) for name, each in own if _is_given(name, each)]
                inner = sublayers(value) if isinstance(value, keras.layers.Layer) else []
                described.append(self.of(config, where))
                return [*described, self._used(given, where), self._each(inner, where)]
        return [*described, self._used(_attributes(value, where), where)]


def _config(value: Any) -> Any:
    """The settings of a layer or the like, those that do not matter left out."""
    try:
        with warnings.catch_warnings(action="ignore"):  # a lambda is hard to load again
            return _without_names(value.get_config())
    except (NotImplementedError, TypeError):  # arguments that Keras cannot write down
        return None


def _components(value: Any) -> list[Any]:
    return tf.nest.flatten(value, expand_composites=True)


def _attributes(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """What an object holds, without what Keras keeps in it for itself."""
    kind = type(value)
    slots = [name for each in kind.__mro__ for name in _slots(each)]
    top = kind.__module__.partition(".")[0]
    closed = [each for each in kind.__mro__ if not each.__flags__ & MADE_IN_PYTHON]
    if set(closed) - {object, types.SimpleNamespace} or top == "tensorflow":
        raise _unknown(value, where)
    own: Mapping[str, Any] = getattr(value, "__dict__", {})
    for name in sorted({*own, *(name for name in slots if hasattr(value, name))}):
        if name not in _kept_by_keras(value) and not name.startswith("_self_"):
            yield name, own[name] if name in own else getattr(value, name)


def _slots(kind: type) -> list[str]:
    found = vars(kind).get("__slots__", ())
    names = [found] if isinstance(found, str) else list(found)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _kept_by_keras(value: Any) -> frozenset[str]:
    if isinstance(value, keras.Model):
        return _names_in(keras.Model)
    return _names_in(keras.layers.Layer) if isinstance(value, keras.Operation) else frozenset()


@functools.cache
def _names_in(kind: Callable[[], Any]) -> frozenset[str]:
    return frozenset(vars(kind())) | WRITTEN


def _is_given(name: str, value: Any) -> bool:
    """Whether a layer of a library holds a function or the like that its user wrote."""
    if not callable(value) or isinstance(value, keras.layers.Layer) or name == "build":
        return False
    function = value.__func__ if isinstance(value, types.MethodType) else value
    home = function if isinstance(function, types.FunctionType | type) else type(function)
    if isinstance(value, functools.partial):
        return True
    return not _is_library(home.__module__) or "<locals>" in home.__qualname__


def _without_names(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.get("class_name") == "__lambda__":  # with lines and paths; see `_is_given`
            return "__lambda__"
        return {str(k): _without_names(v) for k, v in value.items() if k not in LEFT_OUT}
    if isinstance(value, list | tuple):
        return [_without_names(item) for item in value]
    return value


def _is_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in LIBRARY


@functools.cache
def _is_installed(module: str | None) -> bool:
    """Whether a module is of a library, which has versions, and not of whoever trains."""
    top = (module or "").partition(".")[0]
    if _is_library(module) or top in sys.stdlib_module_names - {"__main__"}:
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    folders = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    return bool(file) and any(Path(os.path.abspath(file)).is_relative_to(f) for f in folders)


def _names(code: types.CodeType) -> set[str]:
    inner = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return set(code.co_names).union(*(_names(each) for each in inner))


def _is_full(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # not assigned yet
        return False
    return True


def _source_of(kind: type) -> str | None:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed in at a prompt
        return None


def _unknown(value: Any, where: str) -> ValueError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return ValueError(
        f"`model` has something in its frozen part that cannot be hashed, so that its features "
        f"could not be told from another's: {where}. Expected numbers, text, arrays, functions, or "
        f"objects that hold these. Received: {kind}. Train without the feature cache."
    )


def identity_of(features: keras.Model) -> dict[str, Any]:
    """What decides the features of given inputs: the frozen part's structure and weights, and the
    versions of Keras and of the format. Names of layers do not count.

    Args:
        features: the frozen part, as `split_model` makes it.

    Raises:
        ValueError: a layer holds something that cannot be hashed; says what, and where.
    """
    return {
        "format": FORMAT,
        "keras": keras.__version__,
        "structure": Description(features.variables).graph(features),
        "weights": weights_sha256(features),
    }


def feature_key(identity: Mapping[str, Any], source: Source, views: int) -> str:
    """The SHA-256 of all that decides the features of a data set's rows.

    Beside the identity of the frozen part these are the content of the inputs, what prepares and
    augments them, and how many augmented views of each row there are. Neither labels nor paths
    count.
    """
    parts = {**identity, "inputs": source.content_sha256(), "views": views}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def weights_sha256(model: keras.Model) -> str:
    """The hash of all variables of a model: their types, shapes and bytes, in order."""
    digest = hashlib.sha256()
    for variable in model.variables:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
        digest.update(f"{value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


# They draw from a seed generator only if one of these rates is not zero.
CELLS = (keras.layers.GRUCell, keras.layers.LSTMCell, keras.layers.SimpleRNNCell)


@dataclass(frozen=True, eq=False)
class Call:
    """One use of a layer or operation in a model, and the symbolic tensors that it gives."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[keras.KerasTensor]

    @property
    def inputs(self) -> list[keras.KerasTensor]:
        return _tensors((self.args, self.kwargs))


def split_model(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """The frozen part of a model, from its inputs to features, and the head that is trained.

    head(features(x)) is model(x). Both share layers and variables with the model: training the
    head trains the model. A layer belongs to the frozen part if all its inputs do, it has nothing
    to train, and it does the same in training as in inference: no dropout, noise or random
    augmentation, and no batch normalization that updates its statistics. A model nested in the
    model counts as one layer.

    Shapes: `features` takes what the model takes and gives one tensor, or a dict "features_0", …
    of tensors if the head needs several; `head` takes that and gives the model's outputs.

    Args:
        model: a functional or sequential model, such as `build_model` makes.

    Raises:
        ValueError: the model is no graph of layers, all of it is frozen, or nothing worth
            computing once is; says which layer is in the way, and why.
    """
    calls = calls_of(model)
    frozen, obstacles = _frozen_calls(model, calls)
    if not any(_is_costly(call.operation) for call in frozen):
        reason = obstacles[0] if obstacles else "no layer has weights"
        raise ValueError(
            f"`model` {model.name!r} has no frozen part to compute once: {reason}. Expected a "
            "backbone that is frozen, with nothing random in or before it. Call "
            "kerasmtl.freeze(model)."
        )
    if len(frozen) == len(calls):
        raise ValueError(
            f"`model` {model.name!r} has no head to train: all of it is frozen. Expected a layer "
            "that is trainable."
        )
    frontier = _frontier(model, calls, frozen)
    features = keras.Model(_ends(model)[0], _named(frontier), name=f"{model.name}_features")
    return features, _head(model, calls, frozen, frontier)


def calls_of(model: keras.Model) -> list[Call]:
    """The calls of a model's graph, each after those that it depends on; without the inputs.

    Raises:
        ValueError: the model is no graph: subclassed, or not built.
    """
    outputs = getattr(model, "outputs", None)
    if not outputs:
        raise ValueError(
            f"`model` {getattr(model, 'name', model)!r} is no graph of layers. Expected a "
            f"functional or a built sequential model. Received: {type(model).__name__}"
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
    """Why an operation gives something else in training than in inference; None if it does not."""
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
    """The states of random generators: variables that are no weights."""
    return {id(v) for v in layer.variables} - {id(v) for v in layer.weights}


def _without_dropout(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, CELLS) and not (layer.dropout or layer.recurrent_dropout)


def _obstacle(operation: Any) -> str | None:
    """Why a layer cannot be in the frozen part."""
    if not isinstance(operation, keras.layers.Layer):
        return None
    if operation.trainable_weights:
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
        # A mask goes with a tensor inside of a model, and would be lost between two.
        border = {id(tensor) for tensor in _frontier(model, calls, frozen)}
        masked = [c for c in frozen if any(id(t) in border and _is_masked(t) for t in c.outputs)]
        if not masked:
            return frozen, [*kept_out.values(), *obstacles]
        kept_out |= {id(c): f"{c.operation.name!r} hands a mask on" for c in masked}


def _is_masked(tensor: keras.KerasTensor) -> bool:
    return getattr(tensor, "_keras_mask", None) is not None


def _is_costly(operation: Any) -> bool:
    return isinstance(operation, keras.layers.Layer) and bool(
        operation.weights
        or any(isinstance(layer, HubLayer) for layer in [operation, *sublayers(operation)])
    )


def _frontier(model: keras.Model, calls: list[Call], frozen: list[Call]) -> list[keras.KerasTensor]:
    """The tensors of the frozen part that the rest takes, or that the model gives."""
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
    """What the model takes and gives, nested as its callers nest it."""
    if isinstance(model, keras.Sequential):  # whose `input` is unknown until it is called
        return model.inputs[0], model.outputs[0]
    return model.input, model.output


def _tensors(structure: Any) -> list[keras.KerasTensor]:
    return [t for t in keras.tree.flatten(structure) if isinstance(t, keras.KerasTensor)]


class FrozenPart:
    """A model in two, as `split_model` makes it: `features` and `head`.

    Args:
        model: with a frozen part, whose weights do not change while this is used.

    Raises:
        ValueError: as in `split_model`.
    """

    def __init__(self, model: keras.Model) -> None:
        self.features, self.head = split_model(model)
        self._steps: dict[str, Step] = {}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """As `identity_of` it."""
        return identity_of(self.features)

    def step(self, spec: Any) -> Step:
        """The function from inputs to features; the same one for all inputs that are alike."""
        alike = tf.nest.map_structure(lambda each: (each.dtype.name, *each.shape[1:]), spec)
        return self._steps.setdefault(str(alike), Step(self.features, spec))


COMPUTED = 64  # rows that the frozen part is given at a time
TRIED = 8  # rows that are computed more than once, to see that they stay the same; divides COMPUTED
# Layers that give the same in training; so does a `HubLayer` that is frozen.
SAME_IN_TRAINING = (keras.layers.InputLayer, keras.layers.Rescaling)
MOST_CORES = 16  # that are used without tuning

Rows = Mapping[str, np.ndarray]


def batches_from(
    step: Step, source: Source, views: int, first: int, begun: Iterator[Any] | None = None
) -> Iterator[Rows]:
    """Features from a row on, of one view after the other.

    A row is computed in the same batch wherever this starts, so that its bits are the same.
    `begun`: the inputs of one view, from the first row on, in batches of `TRIED`, where an iterator
    is at hand: a new one takes its time to start.
    """
    for view in range(first // source.count, views):
        begin = max(0, first - view * source.count)
        if begun is not None and not first:
            batches = _joined(begun)
        else:
            batches = inputs_of(source, view, COMPUTED).skip(begin // COMPUTED)
        surplus = begin % COMPUTED
        for batch in batches:
            yield {name: values[surplus:] for name, values in step(batch).items()}
            surplus = 0


def inputs_of(source: Source, view: int, batch_size: int) -> tf.data.Dataset:
    """The inputs of a view, in the order of the rows."""
    found = (
        source.augmented_inputs(view, batch_size) if source.random else source.inputs(batch_size)
    )
    options = tf.data.Options()
    # Tuning gains nothing in one pass, at whose end it holds up the process for most of a second.
    options.autotune.enabled = (os.cpu_count() or 1) > MOST_CORES
    return found.with_options(options)


def _joined(batches: Iterator[Any]) -> Iterator[Any]:
    """Batches of `COMPUTED` rows, put together from those of `TRIED`."""
    while held := list(islice(batches, COMPUTED // TRIED)):
        yield _concatenated(held)


def _concatenated(batches: list[Any]) -> Any:
    return tf.nest.map_structure(lambda *parts: tf.concat(parts, axis=0), *batches)


def in_blocks(batches: Iterator[Rows], sizes: list[int]) -> Iterator[Rows]:
    """Rows in blocks of these sizes."""
    held: list[Rows] = []
    count = 0
    for size in sizes:
        while count < size:
            batch = next(batches, None)
            if batch is None:
                return
            held.append(batch)
            count += len(next(iter(batch.values())))
        whole = {name: np.concatenate([part[name] for part in held]) for name in held[0]}
        yield {name: values[:size] for name, values in whole.items()}
        held = [{name: values[size:] for name, values in whole.items()}]
        count -= size


class Step:
    """The frozen part as a function from a batch of inputs to arrays by name."""

    def __init__(self, features: keras.Model, inputs: Any) -> None:
        self.features = features
        # One trace for batches of any size: for some backbones it takes longer than an epoch.
        spec = tf.nest.map_structure(
            lambda each: tf.TensorSpec((None, *each.shape[1:]), each.dtype), inputs
        )
        self._run = tf.function(
            lambda batch: features(batch, training=False), input_signature=[spec], autograph=False
        )
        self._is_checked = False
        self.rows = {name: _row(tensor) for name, tensor in named(features.output).items()}

    def __call__(self, inputs: Any) -> Rows:
        return _arrays(self._run(inputs))

    def agrees(self, inputs: Any, kept: Rows) -> bool:
        """Whether kept rows are the features of these inputs; runs without a trace."""
        found = _arrays(self.features(inputs, training=False))
        kinds = named(self.features.output)
        count = len(next(iter(found.values())))
        return all(_alike(kept[n][:count], found[n], kind.dtype) for n, kind in kinds.items())

    def check(self, inputs: Any) -> None:
        """Raise ValueError if the same inputs do not always give the same features.

        Once: what else it is given, the frozen part does the same.
        """
        if self._is_checked:
            return
        before = [keras.ops.convert_to_numpy(v) for v in self.features.variables]
        first = self(inputs)
        again = {"when they are computed twice": self(inputs)}
        if any(map(_heeds_training, self.features.layers)):
            again["in training"] = _arrays(self.features(inputs, training=True))
        changed = []
        for variable, value in zip(self.features.variables, before, strict=True):
            if not np.array_equal(keras.ops.convert_to_numpy(variable), value, equal_nan=True):
                variable.assign(value)
                changed.append(variable.path)
        kinds = named(self.features.output)
        for when, values in again.items():
            if not all(_alike(first[n], values[n], kind.dtype) for n, kind in kinds.items()):
                raise ValueError(
                    f"`model` gives other features {when} for the same first rows: something "
                    f"random in {self.features.name!r}. Expected a frozen part that always gives "
                    "the same. Train without the feature cache."
                )
        if changed:
            raise ValueError(
                f"`model` changes its variables when it is called: {changed[:3]}. Expected a "
                "frozen part that stays as it is. Train without the feature cache."
            )
        self._is_checked = True


def _heeds_training(layer: keras.layers.Layer) -> bool:
    """Whether a layer may do something else in training."""
    return type(layer) not in SAME_IN_TRAINING and (type(layer) is not HubLayer or layer.trainable)


def named(outputs: Any) -> dict[str, Any]:
    """What the frozen part gives, by name."""
    return dict(outputs) if isinstance(outputs, Mapping) else {"features": outputs}


def _row(tensor: keras.KerasTensor) -> np.ndarray:
    """An empty row as it is kept; a type that NumPy lacks is kept as float32."""
    if tensor.dtype == "string" or None in tensor.shape[1:]:
        raise ValueError(
            "`model` has a frozen part that gives what cannot be kept. Expected numbers in a fixed "
            f"shape. Received: {tensor.dtype} {tensor.shape}. Train without the feature cache."
        )
    dtype = "float32" if tensor.dtype == "bfloat16" else tensor.dtype
    return np.empty(tensor.shape[1:], dtype)


def _arrays(outputs: Any) -> Rows:
    return {name: _stored(tensor) for name, tensor in named(outputs).items()}


def _stored(tensor: tf.Tensor) -> np.ndarray:
    return (tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor).numpy()


def _alike(a: np.ndarray, b: np.ndarray, dtype: str) -> bool:
    """Equal but for rounding: one of them may come from a graph that was optimized."""
    scale = np.nan_to_num(np.abs(a.astype(np.float64))).max(initial=0.0)
    share = 2e-2 if dtype in ("float16", "bfloat16") else 1e-3
    return np.allclose(a, b, rtol=share, atol=share * scale, equal_nan=True)


MEMORY_LIMIT = 2**30  # bytes of features that are read into memory as a whole

Lookup = Callable[[tf.Tensor], Any]


def feature_source(
    features: keras.Model, of: Source, views: int, key: str, arrays: Mapping[str, np.ndarray]
) -> FeatureSource:
    """The rows of a source by their features; each epoch counts as one of the source's own.

    Shapes: arrays (views * rows, …), the rows of one view after those of the other.

    Args:
        features: the frozen part, which says how features are nested and typed.
        of: what they were computed from.
        views: how many views of each row there are; epoch e has view e modulo `views`.
        key: of the entry.
        arrays: by name; up to 1 GiB is read into memory.
    """
    in_memory = sum(array.nbytes for array in arrays.values()) <= MEMORY_LIMIT
    lookup, labels = _lookup(features, arrays, in_memory), _constants(of.labels)

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
        random=f"views={views}" if views > 1 else None,
        of=of,
        views=views,
        key=key,
        lookup=lookup,
        gather=gather,
        in_memory=in_memory,
    )


def feature_dataset(source: FeatureSource) -> tf.data.Dataset:
    """Batches of features and labels.

    Shapes: features (batch, …), labels as the source has them, NaN = missing.
    """
    batches = _batches(source).map(as_written(source.gather)).prefetch(tf.data.AUTOTUNE)
    return register(batches, source)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FeatureSource(Source):
    """The rows of another source, by their features.

    `lookup` goes from numbers of rows, among those of all views, to features; `gather` to features
    and labels.
    """

    of: Source
    views: int
    key: str
    lookup: Lookup
    gather: Lookup
    in_memory: bool

    def next_order(self) -> tf.Tensor:
        """The rows of the next epoch, among those of all views; the epoch after it is next then."""
        number = self.epoch.assign_add(1, read_value=True) - 1
        return permutation(self.count, self.seed, number) + number % self.views * self.count

    def inputs(self, batch_size: int) -> tf.data.Dataset:
        """Features of the first view, in the order of the rows."""
        return self.augmented_inputs(0, batch_size)

    def augmented_inputs(self, view: int, batch_size: int) -> tf.data.Dataset:
        """Features of a view, counted modulo the number of views."""
        first = view % self.views * self.count
        return (
            tf.data.Dataset.range(first, first + self.count)
            .batch(batch_size)
            .map(as_written(self.lookup))
        )

    def content_sha256(self) -> str:
        """The key that the features are kept under."""
        return self.key

    def where(self, row: int) -> str:
        """The place of a row, for messages."""
        return self.of.where(row)


def _batches(source: FeatureSource) -> tf.data.Dataset:
    """The numbers of a batch's rows among those of all views, in the order of the source."""
    if source.epoch is None:
        return tf.data.Dataset.range(source.count).batch(source.batch_size)
    # Each function costs milliseconds in every epoch, more than small batches do: hence one, and
    # rows set apart and put together again, instead of `epoch_indices`.
    rows = tf.data.Dataset.from_tensors(0).map(as_written(lambda _: source.next_order())).unbatch()
    batches = -(-source.count // source.batch_size)
    return rows.batch(source.batch_size).apply(tf.data.experimental.assert_cardinality(batches))


def _lookup(features: keras.Model, arrays: Mapping[str, np.ndarray], in_memory: bool) -> Lookup:
    """From row numbers to features, nested and typed as the frozen part gives them."""
    outputs = named(features.output)
    if in_memory:
        kept = _constants(dict(arrays))
        picked = {name: _in_memory(kept[name]) for name in outputs}
    else:
        picked = {name: _on_disk(arrays[name]) for name in outputs}
    single = not isinstance(features.output, Mapping)

    def lookup(rows: tf.Tensor) -> Any:
        found = {name: tf.cast(picked[name](rows), out.dtype) for name, out in outputs.items()}
        return found["features"] if single else found

    return lookup


def _in_memory(kept: tf.Tensor) -> Lookup:
    return lambda rows: tf.gather(kept, rows)


def _on_disk(array: np.ndarray) -> Lookup:
    def lookup(rows: tf.Tensor) -> tf.Tensor:
        read = tf.numpy_function(lambda at: array[at], [rows], array.dtype, stateful=False)
        return tf.ensure_shape(read, (None, *array.shape[1:]))

    return lookup


def _constants(structure: Any) -> Any:
    with tf.device("CPU:0"):
        return tf.nest.map_structure(tf.constant, structure)


def cache_features(
    model: keras.Model,
    data: tf.data.Dataset,
    folder: str | os.PathLike[str] | None = None,
    views: int = 1,
    progress: bool = True,
) -> tf.data.Dataset:
    """Batches of features and labels, for `fit` of the head of `split_model`.

    The features of the frozen part are computed once and kept on disk, under a hash of the
    inputs' content, of what prepares them, and of the frozen part's structure and weights, with
    what its layers and their functions hold: any run that needs the same finds them, and a change
    of one pixel computes them anew. The first rows of what is found are computed again; if they
    differ, all are. An interrupted run goes on after the last finished block of 256 rows. Up to
    1 GiB is read into memory; more is read by batch.

    Shapes: (features, labels); features (batch, …) as `split_model(model)[0]` gives them, labels
    as in `data`, NaN = missing. Each epoch has the rows in the order in which `data` has them, and
    counts as one of its epochs.

    Args:
        model: with a frozen part; see `split_model`.
        data: what `make_dataset` or `make_table_dataset` returned.
        folder: where features are kept; by default "features" in the cache of modules.
        views: with augmentation, how many augmented views of each row are kept; epoch e trains on
            view e modulo `views`. Without augmentation one is kept.
        progress: show a progress bar while features are computed.

    Raises:
        ValueError: the model has no frozen part, or what it gives differs from call to call or in
            training, or depends on something that cannot be hashed; the data set is another one;
            or its inputs are augmented and `views` is 1.
        OSError: the folder cannot be written to, or is full; says what is needed.
    """
    _source(data, views)  # what is wrong with it is said first
    return feature_dataset(planned_features(FrozenPart(model), data, folder, views)(progress))


def planned_features(
    part: FrozenPart,
    data: tf.data.Dataset,
    folder: str | os.PathLike[str] | None = None,
    views: int = 1,
) -> Callable[[bool], FeatureSource]:
    """`cache_features` in two steps: this raises what it raises for the data, at once.

    What is returned computes the features, of which it returns the source; it takes `progress`.
    """
    source = _source(data, views)
    count = views if source.random else 1
    key = feature_key(part.identity, source, count)
    root = features_root(folder)
    tried = inputs_of(source, 0, TRIED)
    step = part.step(tried.element_spec)

    def computed(progress: bool) -> FeatureSource:
        batches = iter(tried)
        first = next(batches)
        begun = None if source.random else chain([first], batches)
        arrays, own = _whole(root, key), False
        # What is whole may be another model's, and so may the blocks of what was interrupted.
        for _ in range(3):
            if own or (arrays is not None and step.agrees(first, arrays)):
                break
            if arrays is not None:
                _remove(root / key, progress)
            step.check(first)
            arrays, own = _computed(step, source, count, root, key, progress, begun)
            begun = None
        return feature_source(part.features, source, count, key, arrays)

    return computed


def _whole(root: Path, key: str) -> Rows | None:
    """The entry, if it is there; one that is read into memory anyway is checked byte by byte."""
    arrays = open_entry(root, key)
    if arrays is None or sum(array.nbytes for array in arrays.values()) > MEMORY_LIMIT:
        return arrays
    if is_intact(root, key):
        return arrays
    shutil.rmtree(root / key, ignore_errors=True)
    return None


def _source(data: Any, views: int) -> Source:
    source = source_of(data)
    if source is None:
        raise ValueError(
            "`data` does not say what it was made from. Expected what kerasmtl.make_dataset or "
            "make_table_dataset returned, with nothing like .map, .take or .shuffle after it. "
            f"Received: {data!r}"
        )
    if isinstance(views, bool) or not isinstance(views, int) or views < 1:
        raise ValueError(f"`views` is no count. Expected 1 or more. Received: {views!r}")
    if source.random and views == 1:
        raise ValueError(
            f"`data` gives other inputs in each epoch ({source.random}), so that features cannot "
            "be computed once. Expected no augmentation, or views=K for K augmented views of "
            "each row, kept."
        )
    return source


def _remove(entry: Path, say: bool) -> None:
    if say:
        print(f"{entry} has features of another model: all are computed anew.")
    shutil.rmtree(entry, ignore_errors=True)


def _computed(
    step: Step,
    source: Source,
    views: int,
    root: Path,
    key: str,
    progress: bool,
    begun: Iterator[Any] | None,
) -> tuple[Rows, bool]:
    """The entry, computed and kept; and whether all of it was computed here and now."""
    arrays = tuple(Array(name, tuple(row.shape), row.dtype.name) for name, row in step.rows.items())
    about = {
        "backbone": ", ".join(backbone_names(step.features))
        or step.features.name.removesuffix("_features"),
        "rows": source.count,
        "views": views,
        "first": source.where(0),
    }
    plan = Plan(key, views * source.count, arrays, about)

    starts = []

    def compute(first: int) -> Iterator[Rows]:
        starts.append(first)
        sizes = [stop - start for start, stop in plan.blocks[first // BLOCK :]]
        if progress:
            print(f"Computing the features of the frozen backbone, once: {plan.rows} rows.")
        with progress_bar("features", plan.rows, progress) as advance:
            advance(first)
            for values in in_blocks(batches_from(step, source, views, first, begun), sizes):
                yield values
                advance(len(next(iter(values.values()))))

    return make_entry(root, plan, compute), starts == [0]
