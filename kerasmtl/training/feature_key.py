"""What features depend on, as one hash: the key that they are kept under."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kerasmtl.backbones.hub import HubLayer
from kerasmtl.backbones.layer_tree import sublayers
from kerasmtl.feature_blocks import FORMAT
from kerasmtl.sources import Source
from kerasmtl.training.features import calls_of

# Names count up with every model that is built, and what is frozen was decided before.
LEFT_OUT = {"name", "trainable", "build_config", "registered_name"}


def feature_key(features: keras.Model, source: Source, views: int) -> str:
    """The SHA-256 of all that decides the features of a data set's rows.

    These are the content of the inputs, what prepares and augments them, how many views there
    are, the frozen part's structure and weights, and the versions of Keras and of the format.
    Neither labels, names of layers, nor paths count.

    Args:
        features: the frozen part, as `split_model` makes it.
        source: of the data set.
        views: how many augmented views of each row.
    """
    parts = {
        "format": FORMAT,
        "keras": keras.__version__,
        "inputs": source.content_sha256(),
        "structure": _structure(features),
        "weights": weights_sha256(features),
        "views": views,
    }
    return hashlib.sha256(_text(parts).encode()).hexdigest()


def weights_sha256(model: keras.Model) -> str:
    """The hash of all variables of a model: their types, shapes and bytes, in order."""
    digest = hashlib.sha256()
    for variable in model.variables:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
        digest.update(f"{value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _structure(model: keras.Model) -> Any:
    """The graph of a model: each layer by its kind and settings, each tensor by its place."""
    places = {id(tensor): ["input", number] for number, tensor in enumerate(model.inputs)}

    def place(value: Any) -> Any:
        return places[id(value)] if isinstance(value, keras.KerasTensor) else value

    described = [[str(tensor.dtype), list(tensor.shape)] for tensor in model.inputs]
    for number, call in enumerate(calls_of(model)):
        given = keras.tree.map_structure(place, (call.args, call.kwargs))
        described.append([_identity(call.operation), given])
        places |= {id(t): [number, position] for position, t in enumerate(call.outputs)}
    return [described, [places[id(tensor)] for tensor in model.outputs]]


def _identity(operation: Any) -> Any:
    if isinstance(operation, keras.Model) and getattr(operation, "outputs", None):
        return _structure(operation)
    if isinstance(operation, HubLayer):
        layer = operation
        settings = [layer.signature, layer.output_key, layer.arguments, layer.declared_shape]
        return ["HubLayer", layer.sha256, *settings]
    inner = sublayers(operation) if isinstance(operation, keras.layers.Layer) else []
    codes = [_code(layer) for layer in [operation, *inner]]
    modules = [layer.sha256 for layer in inner if isinstance(layer, HubLayer)]
    return [type(operation).__qualname__, _config(operation), codes, modules]


def _config(operation: Any) -> Any:
    """The settings of a layer, those that do not matter left out."""
    try:
        return _without_names(operation.get_config())
    except NotImplementedError:  # arguments that Keras cannot write down
        return repr(sorted(vars(operation)))


def _without_names(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _without_names(v) for k, v in value.items() if k not in LEFT_OUT}
    if isinstance(value, list | tuple):
        return [_without_names(item) for item in value]
    return value


def _code(layer: Any) -> str | None:
    """The source of a layer that is not of Keras: if it is edited, features are another's."""
    function = getattr(layer, "function", None)  # of a Lambda
    made_of = [kind for kind in type(layer).__mro__ if not _is_library(kind.__module__)]
    if callable(function):
        made_of.append(function)
    return "".join(_source_of(part) for part in made_of) or None


def _is_library(module: str) -> bool:
    return module.partition(".")[0] in ("keras", "kerasmtl", "tensorflow", "builtins", "abc")


def _source_of(part: Any) -> str:
    try:
        return inspect.getsource(part)
    except (OSError, TypeError):  # typed in at a prompt, or built in
        code = getattr(part, "__code__", None)
        return repr((code.co_code, code.co_consts)) if code else repr(part)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    config = getattr(value, "get_config", None)
    return [type(value).__qualname__, _without_names(config())] if config else repr(value)
