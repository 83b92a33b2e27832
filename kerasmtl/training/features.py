"""A model in two parts: the frozen one, which computes features, and the head that is trained.

`split_model` walks over the graph of a functional model, and cuts where training begins to matter:
`feature_cache` computes what lies before the cut once, and what lies after it is fitted on the
result. `check_code`, `structure_of` and `features_sha256` decide when two frozen parts count as the
same, which the cache's key and `resume` rely on. Nodes of the graph are private to Keras, and are
used here alone (`nodes_of`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kerasmtl.models.hub_layer import HubLayer
from kerasmtl.models.layer_groups import is_batch_normalization, sublayers

# These draw from their seed generator only if one of the rates is not zero.
CELLS = (keras.layers.GRUCell, keras.layers.LSTMCell, keras.layers.SimpleRNNCell)


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
    calls = nodes_of(model)
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
    trained = [call for call in calls if call not in frozen]
    border = _border(model, calls, frozen)
    # The `input` of a sequential model is not known until it is called.
    inputs, outputs = (
        (model.inputs[0], model.outputs[0])
        if isinstance(model, keras.Sequential)
        else (model.input, model.output)
    )
    features = keras.Model(inputs, _named(border), name=f"{model.name}_features")
    return features, _head(trained, border, outputs, f"{model.name}_head")


def nodes_of(model: keras.Model) -> list[Any]:
    """Return the calls of a model's graph, each after those it depends on, without the inputs.

    Each is one use of a layer or operation, with `operation`, `arguments`, and the symbolic tensors
    `input_tensors` and `outputs`.

    Args:
        model: functional, or sequential and built.

    Raises:
        ValueError: the model is not a graph: it is subclassed, or not built.
    """
    graph = getattr(model, "_functional", model)  # of a sequential model
    depths = getattr(graph, "_nodes_by_depth", None)  # Keras has no public name for it
    if depths is None:
        raise ValueError(
            "`model` must be a functional or a built sequential model, got "
            f"{getattr(model, 'name', model)!r}, a {type(model).__name__}"
        )
    nodes = [node for depth in sorted(depths, reverse=True) for node in depths[depth]]
    return [node for node in nodes if not node.is_input]


def randomness(operation: Any) -> str | None:
    """Return why an operation computes something else in training; None if it does not.

    Layers inside a layer are looked at as well, such as dropout in a nested model.

    Args:
        operation: a layer, or an operation of `keras.ops`, which has no mode.
    """
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
        idle = isinstance(layer, CELLS) and not (layer.dropout or layer.recurrent_dropout)
        own = _seeds(layer) - {seed for inner in sublayers(layer) for seed in _seeds(inner)}
        if own and not idle:
            return f"{layer.name!r}{inside} is random in training"
    return None


def _seeds(layer: keras.layers.Layer) -> set[int]:
    """Return the states of random generators: variables that do not count as weights.

    Keras counts a `SeedGenerator`'s state among `variables`, but not among `weights`.
    """
    return {id(v) for v in layer.variables} - {id(v) for v in layer.weights}


def _frozen_calls(model: keras.Model, calls: list[Any]) -> tuple[list[Any], list[str]]:
    """Return the calls of the frozen part; and why the calls that end it do not belong to it.

    It is repeated where a mask crosses the border: the call that passes it is then kept out, which
    moves the border towards the input, until no mask crosses.

    Args:
        model: whose inputs are known from the start.
        calls: as `nodes_of` returns them.
    """
    kept_out: dict[int, str] = {}
    while True:
        obstacles: list[str] = []
        frozen: list[Any] = []
        known = {id(tensor) for tensor in model.inputs}
        for call in calls:
            if id(call) in kept_out or any(id(t) not in known for t in call.input_tensors):
                continue
            reason = randomness(call.operation)
            if getattr(call.operation, "trainable_weights", None):
                reason = f"{call.operation.name!r} is trainable"
            if reason is None:
                frozen.append(call)
                known |= {id(tensor) for tensor in call.outputs}
            else:
                obstacles.append(reason)
        # A mask travels with a tensor inside a model, and would be lost between two models.
        masked = {
            id(tensor)
            for tensor in _border(model, calls, frozen)
            if getattr(tensor, "_keras_mask", None) is not None
        }
        passing = [call for call in frozen if masked & {id(t) for t in call.outputs}]
        if not passing:
            return frozen, [*kept_out.values(), *obstacles]
        kept_out |= {id(c): f"{c.operation.name!r} passes a mask on" for c in passing}


def _has_weights(operation: Any) -> bool:
    """Return whether a layer has weights; a `HubLayer` counts even if its module has none."""
    if not isinstance(operation, keras.layers.Layer):
        return False
    inside = [operation, *sublayers(operation)]
    return bool(operation.weights) or any(isinstance(layer, HubLayer) for layer in inside)


def _border(model: keras.Model, calls: list[Any], frozen: list[Any]) -> list[keras.KerasTensor]:
    """Return the tensors of the frozen part that the rest takes, or that the model returns."""
    known = {id(t) for t in model.inputs} | {id(t) for call in frozen for t in call.outputs}
    used = [t for call in calls if call not in frozen for t in call.input_tensors]
    return list({id(t): t for t in [*used, *model.outputs] if id(t) in known}.values())


def _named(tensors: list[keras.KerasTensor]) -> Any:
    """Return the one tensor, or several as a dict "features_0", "features_1", …."""
    if len(tensors) == 1:
        return tensors[0]
    return {f"features_{number}": tensor for number, tensor in enumerate(tensors)}


def _head(
    calls: list[Any], border: list[keras.KerasTensor], outputs: Any, name: str
) -> keras.Model:
    """Return the model of these calls, repeated from new inputs in place of the border.

    Args:
        calls: those that are not frozen, in order.
        border: the symbolic tensors that become inputs.
        outputs: of the model, nested.
        name: of the new model.
    """
    names = ["features"] if len(border) == 1 else _named(border)
    inputs = [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=each)
        for each, tensor in zip(names, border, strict=True)
    ]
    made = {id(tensor): symbol for tensor, symbol in zip(border, inputs, strict=True)}

    def swap(value: Any) -> Any:
        return made[id(value)] if isinstance(value, keras.KerasTensor) else value

    for call in calls:
        args, kwargs = keras.tree.map_structure(swap, (call.arguments.args, call.arguments.kwargs))
        given = call.operation(*args, **kwargs)
        made |= {id(t): new for t, new in zip(call.outputs, _tensors(given), strict=True)}
    return keras.Model(_named(inputs), keras.tree.map_structure(swap, outputs), name=name)


def _tensors(structure: Any) -> list[keras.KerasTensor]:
    """Return the symbolic tensors of a nest, in order."""
    return [t for t in keras.tree.flatten(structure) if isinstance(t, keras.KerasTensor)]


# ---------------------------------------------------------------- what decides the features


def check_code(model: keras.Model) -> None:
    """Raise ValueError if the config of a model does not say what one of its layers computes.

    Of a `Lambda`, and of layers and functions that are not registered with Keras, the code may
    change while the config stays the same.
    """
    for layer in [model, *sublayers(model)]:
        parts = {"layer": layer, "the activation of layer": getattr(layer, "activation", None)}
        for what, part in parts.items():
            known = part is None or _is_known(part)
            if not known or isinstance(part, keras.layers.Lambda):
                raise ValueError(
                    "`model` must have a frozen part of Keras' own or registered layers "
                    f"(keras.saving.register_keras_serializable), got {what} {layer.name!r}, a "
                    f"{type(layer).__name__}: its features would be found again after its code was "
                    "changed. If it stays the same, pass cache=True."
                )


def _is_known(part: Any) -> bool:
    """Return whether a layer or a function is Keras' own, of this package, or registered."""
    kind = part if hasattr(part, "__name__") else type(part)
    own = str(kind.__module__).startswith(("keras.", "kerasmtl."))
    return own or keras.saving.get_registered_name(kind) != kind.__name__


def structure_of(model: keras.Model) -> Any:
    """Return a model's config, as values that JSON knows, without what does not change its outputs.

    Names of layers, which count up with each model that is built, become numbers; what is trainable
    is left out; a `HubLayer` is known by the SHA-256 of its module.
    """
    layers = [model, *sublayers(model)]
    names = {layer.name: f"#{number}" for number, layer in enumerate(layers)}

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            if isinstance(value.get("module"), Mapping):
                value = {**value, "module": value["module"].get("sha256"), "handle": None}
            left_out = ("trainable", "build_config", "compile_config")
            found = {key: plain(each) for key, each in value.items() if key not in left_out}
            name = found.get("name")
            return {**found, "name": names.get(name, name)} if isinstance(name, str) else found
        if isinstance(value, list):
            # Where a tensor comes from: layer, node, position.
            first = value[0] if len(value) == 3 and isinstance(value[0], str) else None
            return [names.get(first, first), *value[1:]] if first else [plain(v) for v in value]
        return value

    return plain(json.loads(model.to_json())["config"])


def features_sha256(features: keras.Model) -> str:
    """Return a hash of what decides the features of given inputs: structure, weights, Keras.

    Args:
        features: the frozen part, as `split_model` makes it.

    Returns:
        64 hexadecimal digits. Keras' version is part of it, since a layer may compute something
        else in another one; TensorFlow's is not: `FrozenPart` computes the first rows again, and
        tolerates rounding alone.
    """
    # An adapted layer has its vocabulary in neither config nor weights.
    words = [
        each.get_vocabulary() for each in sublayers(features) if hasattr(each, "get_vocabulary")
    ]
    about = [keras.__version__, structure_of(features), words]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for value in features.get_weights():
        digest.update(f"{value.dtype} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
