"""Groups of weights from input to output, and which of them are trained.

A group is a layer with weights, together with its batch normalization. The same calls serve a
`HubLayer`, whose SavedModel hides its layers, and any Keras model.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from kerasmtl.backbones.layer_tree import (
    Block,
    blocks,
    is_batch_normalization,
    is_hub,
    leaves,
    sublayers,
)
from kerasmtl.backbones.scopes import STATISTICS, Scope, scopes

if TYPE_CHECKING:
    from kerasmtl.backbones.hub import HubLayer


@dataclass(frozen=True)
class VariableGroup:
    """A layer with weights: `depth` counts from 1 at the input, `parameters` all its numbers.

    `trainable` is how many of the parameters are trained now.
    """

    name: str
    depth: int
    parameters: int
    trainable: int


@dataclass
class HubUnit:
    """A group inside a hub layer."""

    layer: HubLayer
    scope: Scope
    depth: int

    @property
    def name(self) -> str:
        return self.scope.name

    @property
    def _held(self) -> list[int]:
        return [*self.scope.weights, *self.scope.normalization]

    def group(self) -> VariableGroup:
        held = [self.layer.module_variables[i] for i in self._held]
        trained = [v for v in held if v.trainable and self.layer.trainable]
        return VariableGroup(self.name, self.depth, _numbers(held), _numbers(trained))

    def potential(self) -> int:
        """How many parameters the publisher lets be trained."""
        held, declared = self.layer.module_variables, self.layer.variable_declared
        return _numbers(held[i] for i in self._held if declared[i])

    def can_train(self, normalization: bool) -> bool:
        held = self._held if normalization else self.scope.weights
        return any(self.layer.variable_declared[i] for i in held)

    def matches(self, pattern: re.Pattern[str]) -> bool:
        paths = self.layer.variable_paths
        return any(pattern.search(text) for text in (self.name, *(paths[i] for i in self._held)))


@dataclass
class LayerUnit:
    """A group of a Keras model."""

    block: Block
    depth: int

    @property
    def name(self) -> str:
        return self.block.layer.name

    @property
    def _held(self) -> list[keras.layers.Layer]:
        return [self.block.layer, *self.block.riders, *self.block.normalization]

    def group(self) -> VariableGroup:
        held = [v for layer in self._held for v in layer.weights]
        trained = [v for layer in self._held for v in layer.trainable_weights]
        return VariableGroup(self.name, self.depth, _numbers(held), _numbers(trained))

    def potential(self) -> int:
        """How many parameters could be trained."""
        held = [v for layer in self._held for v in layer.weights]
        return _numbers(v for v in held if not STATISTICS.search(v.path.rpartition("/")[2]))

    def can_train(self, normalization: bool) -> bool:
        return normalization or not is_batch_normalization(self.block.layer)

    def matches(self, pattern: re.Pattern[str]) -> bool:
        paths = [v.path for layer in self._held for v in layer.weights]
        return any(pattern.search(text) for text in (*(a.name for a in self._held), *paths))

    def train(self, value: bool, normalization: bool) -> None:
        """Train the group or freeze it; its batch normalization only if that is wanted."""
        for layer in self._held:
            mode = value and (normalization or not is_batch_normalization(layer))
            set_trainable(layer, mode)
            for inner in sublayers(layer) if mode and not normalization else ():
                if is_batch_normalization(inner):
                    set_trainable(inner, False)


Unit = HubUnit | LayerUnit


def hub_units(layer: HubLayer) -> list[HubUnit]:
    """The groups of a hub layer, from input to output."""
    depths = layer.variable_depths
    floating = [i for i, v in enumerate(layer.module_variables) if "float" in v.dtype]
    order = sorted(floating, key=lambda i: depths[i])
    found = scopes(layer.variable_paths, order)
    return [HubUnit(layer, scope, depth) for depth, scope in enumerate(found, start=1)]


def model_units(model: keras.Model) -> list[Unit]:
    """The groups of a Keras model, nested models and hub layers included."""
    parts: list[Any] = []
    plain: list[keras.layers.Layer] = []
    for layer in leaves(model):
        if is_hub(layer):
            parts += [*blocks(plain), *hub_units(layer)]
            plain = []
        else:
            plain.append(layer)
    parts += blocks(plain)
    units: list[Unit] = []
    for depth, part in enumerate(parts, start=1):
        if isinstance(part, HubUnit):
            part.depth = depth
        units.append(LayerUnit(part, depth) if isinstance(part, Block) else part)
    return units


def unfreeze_units(
    units: Sequence[Unit],
    last: int | float | None,
    match: str | None,
    normalization: bool,
    owner: str,
) -> list[VariableGroup]:
    """Train the chosen groups and no others; return them."""
    chosen = choose_units(units, last, match, normalization, owner)
    _apply(units, {id(unit) for unit in chosen}, normalization)
    return [unit.group() for unit in chosen]


def choose_units(
    units: Sequence[Unit],
    last: int | float | None,
    match: str | None,
    normalization: bool,
    owner: str,
) -> list[Unit]:
    """The groups that are meant, of those that can be trained; nothing is changed.

    Raises:
        ValueError: a wrong choice, or one that no group fits.
    """
    units = [unit for unit in units if unit.can_train(normalization)]
    if last is not None and match is not None:
        raise ValueError("`last` and `match` are both given. Expected one of them, or none: all.")
    if match is not None:
        try:
            pattern = re.compile(match)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"`match` {match!r} is no regular expression. Received: {error}"
            ) from None
        chosen = [unit for unit in units if unit.matches(pattern)]
    else:
        chosen = list(units[len(units) - _count(last, len(units)) :])
    if not chosen:
        if not units:
            raise ValueError(
                f"`unfreeze` finds nothing to train in {owner!r}: it has no weights but those of "
                "normalization. Call with normalization=True."
            )
        names = ", ".join(unit.name for unit in units)
        raise ValueError(
            f"`match` {match!r} matches nothing in {owner!r}. Expected a regular expression that "
            f"is found in one of its groups: {names}."
        )
    return chosen


def _count(last: int | float | None, total: int) -> int:
    if last is None:
        return total
    if isinstance(last, bool) or not isinstance(last, numbers.Real) or not last > 0:
        raise ValueError(
            f"`last` is no number of groups. Expected a whole number from 1, or a share such as "
            f"0.3. Received: {last!r}"
        )
    if not isinstance(last, numbers.Integral):
        if last > 1:
            raise ValueError(
                f"`last` is no share. Expected 0 < last <= 1, or a whole number. Received: {last}"
            )
        return math.ceil(round(float(last) * total, 9))
    return min(int(last), total)


def _apply(units: Sequence[Unit], chosen: set[int], normalization: bool) -> None:
    by_hub: dict[int, list[HubUnit]] = {}
    for unit in units:
        if isinstance(unit, HubUnit):
            by_hub.setdefault(id(unit.layer), []).append(unit)
        else:
            unit.train(id(unit) in chosen, normalization)
    for of_layer in by_hub.values():
        layer = of_layer[0].layer
        picked = [unit for unit in of_layer if id(unit) in chosen]
        indices = {i for unit in picked for i in unit.scope.weights}
        if normalization:
            indices |= {i for unit in picked for i in unit.scope.normalization}
        declared = layer.variable_declared
        layer.select_variables(
            [i in indices and declared[i] for i in range(len(declared))], normalization
        )


def set_trainable(layer: keras.layers.Layer, value: bool) -> None:
    """Set it for the layer and all its variables, also where the layer seems to have it already."""
    layer.trainable = not value  # Keras' attribute tracking skips a value that is there already
    layer.trainable = value


def _numbers(variables: Iterable[Any]) -> int:
    return sum(math.prod(v.shape) for v in variables)
