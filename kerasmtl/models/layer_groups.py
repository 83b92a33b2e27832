"""What of a backbone is trained: nothing, its last layers, chosen ones, or all of it."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from kerasmtl.models.backbones import backbones_in
from kerasmtl.models.hub_layer import HubLayer

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
    return hasattr(layer, "layer_groups")


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


STATISTICS = re.compile(r"moving_(mean|variance|avg|var|stddev)", re.IGNORECASE)
SCALES = re.compile(r"gamma|beta|scale|offset|renorm_\w+", re.IGNORECASE)


@dataclass
class Scope:
    """Indices of the variables of one layer: its weights, and its batch normalization."""

    name: str
    weights: list[int] = field(default_factory=list)
    normalization: list[int] = field(default_factory=list)


def scopes(paths: Sequence[str], order: Sequence[int]) -> list[Scope]:
    """The layers with weights, from input to output.

    Variables belong together by the scope in their names; where names have none, a layer ends
    where a name comes again. Batch normalization (moving statistics and what is beside them) and
    scopes of scales and offsets alone belong to the layer before, by the longest common beginning
    of their names, then by the order of use.

    Args:
        paths: the variables' names.
        order: their indices in the order of first use.
    """
    placed = _placed(paths, order)
    names: dict[str, set[str]] = {}
    for _, scope, own in placed:
        names.setdefault(scope, set()).add(own)
    found: list[Scope] = []
    waiting: list[tuple[int, bool]] = []  # before the first weights
    for index, scope, own in placed:
        norm = _is_statistics(own) or (
            SCALES.fullmatch(own) is not None and any(map(_is_statistics, names[scope]))
        )
        rider = norm or all(SCALES.fullmatch(other) for other in names[scope])
        if rider and not any(s.name == scope for s in found):
            if not found:
                waiting.append((index, norm))
                continue
            home = _home(scope, found)
        else:
            home = next((s for s in found if s.name == scope), None) or Scope(scope)
            if home not in found:
                found.append(home)
        (home.normalization if norm else home.weights).append(index)
    return _with_waiting(found, waiting)


def _with_waiting(found: list[Scope], waiting: list[tuple[int, bool]]) -> list[Scope]:
    if waiting and not found:
        found = [Scope("normalization")]
    for index, norm in waiting:
        (found[0].normalization if norm else found[0].weights).append(index)
    return found


def _placed(paths: Sequence[str], order: Sequence[int]) -> list[tuple[int, str, str]]:
    """Each variable's index, scope and own name, in the order of first use."""
    placed = []
    seen: set[str] = set()
    number = 1
    for index in order:
        scope, _, own = paths[index].rpartition("/")
        above, _, parent = scope.rpartition("/")
        if STATISTICS.fullmatch(parent):  # moving_mean/hidden, moving_mean/average, …
            scope, own = above, parent
        if not scope:
            if own in seen:
                seen, number = set(), number + 1
            seen.add(own)
            scope = f"layer_{number}"
        placed.append((index, scope, own))
    return placed


def _is_statistics(own: str) -> bool:
    return STATISTICS.search(own) is not None


def _home(scope: str, found: Sequence[Scope]) -> Scope:
    """The layer that a normalization belongs to: the last of those that share most of its name."""
    tokens = re.split(r"[/_]", scope)

    def shared(other: Scope) -> int:
        pairs = zip(tokens, re.split(r"[/_]", other.name), strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), len(tokens))

    return max(reversed(found), key=shared)


@dataclass(frozen=True)
class LayerGroup:
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

    def group(self) -> LayerGroup:
        held = [self.layer.module_variables[i] for i in self._held]
        trained = [v for v in held if v.trainable and self.layer.trainable]
        return LayerGroup(self.name, self.depth, _numbers(held), _numbers(trained))

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

    def group(self) -> LayerGroup:
        held = [v for layer in self._held for v in layer.weights]
        trained = [v for layer in self._held for v in layer.trainable_weights]
        return LayerGroup(self.name, self.depth, _numbers(held), _numbers(trained))

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
) -> list[LayerGroup]:
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


Target = keras.Model | HubLayer


def layer_groups(target: Target) -> list[LayerGroup]:
    """The groups of a backbone's weights, from input to output.

    A group is a layer with weights, together with its batch normalization.

    Args:
        target: a `HubLayer`; a model with a backbone in it, as `build_model` makes it (its hub
            layers, or else the one model nested in it that has weights); or a Keras model that is
            itself the backbone.

    Raises:
        ValueError: it has no weights, or several nested models that could be the backbone.
    """
    return [unit.group() for part in _parts(target) for unit in _units(part)]


def unfreeze(
    target: Target,
    last: int | float | None = None,
    match: str | None = None,
    normalization: bool = False,
) -> list[LayerGroup]:
    """Train a part of the backbone and freeze the rest; compile the model afterwards.

    Batch normalization stays frozen, in inference mode, which fine-tuning on little data needs.
    A SavedModel has one switch for training mode: without `normalization` its dropout is off too,
    and with it all its moving statistics change, those of frozen groups as well. Heads and other
    layers outside of the backbone are left as they are; with several backbones the choice holds
    for each.

    Args:
        target: as for `layer_groups`.
        last: that many groups nearest the output (2), or that share of the groups (0.3, rounded
            up). By default all.
        match: a regular expression that is found in a group's name or in the name of one of its
            variables, such as r"block_1[3-6]".
        normalization: train batch normalization in the chosen groups as well, in training mode.

    Returns:
        The chosen groups.

    Raises:
        ValueError: nothing matches (lists the groups), a wrong number, both `last` and `match`,
            or a module that cannot be trained.
    """
    parts = [(part, _units(part, to_train=True)) for part in _parts(target)]
    for part, units in parts:  # before anything is changed
        choose_units(units, last, match, normalization, part.name)
    _show(target, [part for part, _ in parts])
    chosen: list[LayerGroup] = []
    for part, units in parts:
        if isinstance(part, keras.Model):
            part.trainable = True
            for nested in nested_models(part):
                nested.trainable = True
        chosen += unfreeze_units(units, last, match, normalization, part.name)
    return chosen


def freeze(target: Target) -> None:
    """Train nothing of the backbone; compile the model afterwards.

    Args:
        target: as for `layer_groups`.
    """
    for part in _parts(target):
        if isinstance(part, keras.Model):
            for layer in leaves(part):
                set_trainable(layer, False) if not isinstance(layer, HubLayer) else layer.freeze()
        part.trainable = False


def _parts(target: Target) -> list[Target]:
    """The backbones inside a model; a model without any is one."""
    if isinstance(target, HubLayer):
        return [target]
    if not isinstance(target, keras.Model):
        raise ValueError(
            f"`target` is no backbone. Expected a HubLayer or a keras.Model. Received: {target!r}"
        )
    return backbones_in(target) or [target]


def _show(target: Target, parts: list[Target]) -> None:
    """A frozen model hides what is unfrozen in it; its layers outside of the parts stay frozen."""
    if target in parts or target.trainable:
        return
    others = {layer: layer.trainable for layer in target.layers if layer not in parts}
    target.trainable = True
    for layer, value in others.items():
        layer.trainable = value


def _units(part: Target, to_train: bool = False) -> list[Unit]:
    if to_train and isinstance(part, HubLayer):
        part.check_trainable()
    units: list[Unit] = [*hub_units(part)] if isinstance(part, HubLayer) else model_units(part)
    if not units:
        raise ValueError(
            f"`target` {part.name!r} has no weights to train. Expected a backbone with weights"
            + (": build the model first." if not getattr(part, "built", True) else ".")
        )
    return units
