"""Groups of weights from input to output, and which of them are trained.

A group is a layer with weights, together with the batch normalization that follows it. The same
calls serve a `HubLayer`, whose SavedModel hides its layers, and any Keras model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    from kerasmtl.backbones.hub import HubLayer

STATISTICS = re.compile(r"moving_(mean|variance|avg|var|stddev)", re.IGNORECASE)
NORMALIZATION = re.compile(rf"({STATISTICS.pattern})|gamma|beta|scale|offset", re.IGNORECASE)


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
    """A group inside a hub layer: indices of its weights, and of its normalization's."""

    layer: HubLayer
    name: str
    depth: int = 0
    weights: list[int] = field(default_factory=list)
    normalization: list[int] = field(default_factory=list)

    def group(self) -> VariableGroup:
        held = [self.layer.module_variables[i] for i in (*self.weights, *self.normalization)]
        trained = [v for v in held if v.trainable and self.layer.trainable]
        return VariableGroup(self.name, self.depth, _numbers(held), _numbers(trained))

    def potential(self) -> int:
        """How many parameters the publisher lets be trained."""
        held, declared = self.layer.module_variables, self.layer.variable_declared
        return _numbers(held[i] for i in (*self.weights, *self.normalization) if declared[i])

    def can_train(self) -> bool:
        return any(self.layer.variable_declared[i] for i in self.weights)

    def matches(self, pattern: re.Pattern[str]) -> bool:
        paths = self.layer.variable_paths
        held = (*self.weights, *self.normalization)
        return any(pattern.search(text) for text in (self.name, *(paths[i] for i in held)))


@dataclass
class LayerUnit:
    """A Keras layer with weights, and the batch normalization layers that follow it."""

    layer: keras.layers.Layer
    depth: int = 0
    normalization: list[keras.layers.Layer] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.layer.name

    def group(self) -> VariableGroup:
        layers = [self.layer, *self.normalization]
        held = [v for layer in layers for v in layer.variables]
        trained = [v for layer in layers for v in layer.trainable_variables]
        return VariableGroup(self.name, self.depth, _numbers(held), _numbers(trained))

    def potential(self) -> int:
        """How many parameters could be trained."""
        total = 0
        for layer in (self.layer, *self.normalization):
            was = layer.trainable
            if not was:
                layer.trainable = True
            total += _numbers(layer.trainable_variables)
            if not was:
                layer.trainable = False
        return total

    def can_train(self) -> bool:
        return True

    def matches(self, pattern: re.Pattern[str]) -> bool:
        layers = (self.layer, *self.normalization)
        paths = [v.path for layer in layers for v in layer.variables]
        return any(pattern.search(text) for text in (*(a.name for a in layers), *paths))


Unit = HubUnit | LayerUnit


def hub_units(layer: HubLayer) -> list[HubUnit]:
    """The groups of a hub layer, from input to output.

    Variables belong together by the scope in their names. Where names have none, as in a
    `keras.Model.export`, a group ends where a name comes again.
    """
    units: dict[str, HubUnit] = {}
    normalizing = _normalizing(layer.variable_paths)
    waiting: list[int] = []  # normalization before the first weights
    last: HubUnit | None = None
    for index, scope in _by_use(layer):
        if index in normalizing:
            (waiting if last is None else last.normalization).append(index)
            continue
        last = units.setdefault(scope, HubUnit(layer, scope))
        last.weights.append(index)
    found = list(units.values())
    if found:
        found[0].normalization[:0] = waiting
    elif waiting:
        found = [HubUnit(layer, "normalization", normalization=waiting)]
    for depth, unit in enumerate(found, start=1):
        unit.depth = depth
    return found


def _by_use(layer: HubLayer) -> Iterable[tuple[int, str]]:
    """Each variable's index and scope, in the order of first use."""
    paths, depths = layer.variable_paths, layer.variable_depths
    seen: set[str] = set()
    number = 1
    for index in sorted(range(len(paths)), key=lambda i: depths[i]):
        scope, _, own = paths[index].rpartition("/")
        if not scope:
            if own in seen:
                seen, number = set(), number + 1
            seen.add(own)
            scope = f"layer_{number}"
        yield index, scope


def _normalizing(paths: Sequence[str]) -> set[int]:
    """The indices of batch normalization variables: moving statistics and what is beside them."""
    statistics = {p.rpartition("/")[0] for p in paths if STATISTICS.search(p.rpartition("/")[2])}
    return {
        index
        for index, path in enumerate(paths)
        if path.rpartition("/")[0] in statistics and NORMALIZATION.search(path.rpartition("/")[2])
    }


def model_units(model: keras.Model) -> list[Unit]:
    """The groups of a Keras model, nested models and hub layers included."""
    units: list[Unit] = []
    for layer in leaves(model):
        if hasattr(layer, "variable_groups"):
            units += hub_units(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            if units and isinstance(units[-1], LayerUnit):
                units[-1].normalization.append(layer)
            else:
                units.append(LayerUnit(layer))
        elif layer.variables and not isinstance(layer, keras.layers.Normalization):
            units.append(LayerUnit(layer))
    for depth, unit in enumerate(units, start=1):
        unit.depth = depth
    return units


def leaves(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model, those of nested models in their place."""
    found: list[keras.layers.Layer] = []
    for layer in model.layers:
        found += leaves(layer) if isinstance(layer, keras.Model) else [layer]
    return found


def unfreeze_units(
    units: Sequence[Unit],
    last: int | float | None,
    match: str | None,
    normalization: bool,
    owner: str,
) -> list[VariableGroup]:
    """Train the chosen groups and no others; return them."""
    chosen = _choose([unit for unit in units if unit.can_train()], last, match, owner)
    _apply(units, {id(unit) for unit in chosen}, normalization)
    return [unit.group() for unit in chosen]


def _choose(
    units: Sequence[Unit], last: int | float | None, match: str | None, owner: str
) -> list[Unit]:
    if last is not None and match is not None:
        raise ValueError("`last` and `match` are both given. Expected one of them, or none: all.")
    if match is not None:
        try:
            pattern = re.compile(match)
        except re.error as error:
            raise ValueError(
                f"`match` {match!r} is no regular expression. Received: {error}"
            ) from None
        chosen = [unit for unit in units if unit.matches(pattern)]
    else:
        chosen = list(units[len(units) - _count(last, len(units)) :])
    if not chosen:
        names = ", ".join(unit.name for unit in units) or "none"
        raise ValueError(
            f"`match` {match!r} matches nothing in {owner!r}. Expected a regular expression that "
            f"is found in one of its groups: {names}."
        )
    return chosen


def _count(last: int | float | None, total: int) -> int:
    if last is None:
        return total
    if isinstance(last, bool) or not isinstance(last, int | float) or not last > 0:
        raise ValueError(
            f"`last` is no number of groups. Expected a whole number from 1, or a share such as "
            f"0.3. Received: {last!r}"
        )
    if isinstance(last, float):
        if last > 1:
            raise ValueError(
                f"`last` is no share. Expected 0 < last <= 1, or a whole number. Received: {last}"
            )
        return math.ceil(round(last * total, 9))
    return min(last, total)


def _apply(units: Sequence[Unit], chosen: set[int], normalization: bool) -> None:
    by_hub: dict[int, list[HubUnit]] = {}
    for unit in units:
        if isinstance(unit, HubUnit):
            by_hub.setdefault(id(unit.layer), []).append(unit)
            continue
        set_trainable(unit.layer, id(unit) in chosen and (normalization or not _is_bn(unit.layer)))
        for layer in unit.normalization:
            set_trainable(layer, id(unit) in chosen and normalization)
    for of_layer in by_hub.values():
        layer = of_layer[0].layer
        picked = [unit for unit in of_layer if id(unit) in chosen]
        indices = {i for unit in picked for i in unit.weights}
        if normalization:
            indices |= {i for unit in picked for i in unit.normalization}
        declared = layer.variable_declared
        layer.select_variables(
            [i in indices and declared[i] for i in range(len(declared))], normalization
        )


def set_trainable(layer: keras.layers.Layer, value: bool) -> None:
    """Set it for the layer and all its variables, also where the layer seems to have it already."""
    layer.trainable = not value  # Keras' attribute tracking skips a value that is there already
    layer.trainable = value


def _is_bn(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)


def _numbers(variables: Iterable[Any]) -> int:
    return sum(math.prod(v.shape) for v in variables)
