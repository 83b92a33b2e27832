"""Layers, functions and values as hashes: what may compute something else has another.

The hashes are the same in every process. What cannot be seen into, such as a file or a lookup
table, is refused rather than taken for something that it may not be.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import json
import os
import re
import sys
import sysconfig
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.backbones.hub import HubLayer
from kerasmtl.backbones.layer_tree import sublayers
from kerasmtl.training.features import calls_of

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
