"""A model in two: the frozen part, whose outputs never change, and the part that is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from kerasmtl.backbones.layer_tree import is_batch_normalization, is_hub, sublayers

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
        if is_hub(layer) and layer.trainable:
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
        operation.weights or any(is_hub(layer) for layer in [operation, *sublayers(operation)])
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
