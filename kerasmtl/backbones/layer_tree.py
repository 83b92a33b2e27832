"""The layers of a Keras model, whatever is nested in what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras

SCALING = (
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)


@dataclass
class Block:
    """A layer with weights, the scalings that go with it, and its batch normalization."""

    layer: keras.layers.Layer
    riders: list[keras.layers.Layer] = field(default_factory=list)
    normalization: list[keras.layers.Layer] = field(default_factory=list)


def leaves(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model; in the place of nested models their layers, of wrapped hub layers
    those alone."""
    found: list[keras.layers.Layer] = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += leaves(layer)
        else:
            found += [inner for inner in sublayers(layer) if is_hub(inner)] or [layer]
    return found


def nested_models(model: keras.Model) -> list[keras.Model]:
    """The models inside a model, at any depth."""
    inside = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    return inside + [deeper for layer in inside for deeper in nested_models(layer)]


def sublayers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers that a layer holds as attributes or in containers of its own, at any depth."""
    found: dict[int, keras.layers.Layer] = {}

    def visit(inside: keras.layers.Layer) -> None:
        for child in _layers_in(vars(inside).values()):
            if id(child) not in found and child is not layer:
                found[id(child)] = child
                visit(child)

    visit(layer)
    return list(found.values())


def is_hub(layer: Any) -> bool:
    """Whether a layer is a `HubLayer`, which is not imported here: it imports this."""
    return hasattr(layer, "variable_groups")


def is_batch_normalization(layer: keras.layers.Layer) -> bool:
    """Whether a layer has moving statistics of its own."""
    return isinstance(layer, keras.layers.BatchNormalization)


def blocks(layers: Iterable[keras.layers.Layer]) -> list[Block]:
    """Layers with weights, in order, each with what normalizes or scales it.

    That is found by what feeds it; where nothing with weights does, it goes with the layer before
    in the list, and at the start with the one after.
    """
    found: list[Block] = []
    makers: dict[int, Block] = {}
    waiting: list[keras.layers.Layer] = []
    for layer in layers:
        if not layer.weights or isinstance(layer, keras.layers.Normalization):
            continue
        if is_batch_normalization(layer) or _is_scaling(layer):
            home = makers.get(_fed_by(layer)) or (found[-1] if found else None)
            (waiting if home is None else _place(home, layer)).append(layer)
        else:
            home = Block(layer)
            found.append(home)
        if home is not None:
            makers[_output_of(layer)] = home
    if waiting and not found:
        found.append(Block(waiting.pop(0)))
    for layer in waiting:
        _place(found[0], layer).append(layer)
    return found


def _place(block: Block, layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    return block.normalization if is_batch_normalization(layer) else block.riders


def _is_scaling(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, SCALING) or type(layer).__name__ == "LayerScale"


def _fed_by(layer: keras.layers.Layer) -> int:
    """The identity of the symbolic tensor that a layer takes; 0 if it takes several or none."""
    try:
        return id(layer.input)
    except (AttributeError, ValueError):
        return 0


def _output_of(layer: keras.layers.Layer) -> int:
    try:
        return id(layer.output)
    except (AttributeError, ValueError):
        return -1


def _layers_in(values: Iterable[Any]) -> Iterator[keras.layers.Layer]:
    for value in values:
        if isinstance(value, keras.layers.Layer):
            yield value
        elif isinstance(value, dict):
            yield from _layers_in(value.values())
        elif isinstance(value, list | tuple):
            yield from _layers_in(value)
