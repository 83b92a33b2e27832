"""Layer groups of a backbone: listed from input to output, frozen and unfrozen.

A group is a layer with weights, together with the scalings and the batch normalization that follow
it. Groups are the unit of partial fine-tuning (`unfreeze(last=2)`) and of layer-wise learning
rates. They are found in Keras models by the layers, in a `HubLayer` by the names of its variables
and the graph of its call.

`layer_groups`, `freeze` and `unfreeze` are public; a stage of a plan calls the latter two, and
`optimizers.layerwise_factors` reads the groups. Two traps of Keras shape the code: an assignment of
`trainable` that changes nothing is dropped, although layers or variables inside may differ
(`_set_trainable`), and a model whose own `trainable` is False lists no trainable variables at all,
whatever its layers say (`_open_outer_model`).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import keras

from kerasmtl.models.backbones import backbones_in
from kerasmtl.models.hub_layer import HubLayer
from kerasmtl.utils.validation import check_count, check_number

Target = keras.Model | HubLayer

# Layers that scale what the layer before gives: no group of their own.
SCALING = (
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)
STATISTICS = re.compile(r"moving_(mean|variance|avg|var|stddev)", re.IGNORECASE)
SCALES = re.compile(r"gamma|beta|scale|offset|renorm_\w+", re.IGNORECASE)


@dataclass(frozen=True, eq=False, repr=False)
class LayerGroup:
    """A layer with weights, together with its scalings and its batch normalization.

    Attributes:
        name: of the layer; inside a `HubLayer` the common scope of its variables' names.
        depth: position in the backbone, counted from 1 at the input.
        layers: the Keras layers that hold the variables; inside a `HubLayer`, that layer.
        weights: the variables, those of batch normalization excepted.
        normalization: the variables of its batch normalization.
        names: what `match` of `unfreeze` is looked for in: names of the group, its layers and its
            variables.
        fixed: the ids of variables that are never trained: moving statistics, or what the publisher
            of a module does not list.
    """

    name: str
    depth: int
    layers: tuple[keras.layers.Layer, ...]
    weights: tuple[keras.Variable, ...]
    normalization: tuple[keras.Variable, ...]
    names: tuple[str, ...]
    fixed: frozenset[int]

    @property
    def variables(self) -> tuple[keras.Variable, ...]:
        """All variables of the group."""
        return self.weights + self.normalization

    @property
    def parameters(self) -> int:
        """The number of parameters, trained or not."""
        return sum(math.prod(variable.shape) for variable in self.variables)

    @property
    def trainable(self) -> int:
        """The number of parameters that fitting changes now.

        Each layer is asked, not the model around it.
        """
        trained = {id(v) for layer in self.layers for v in layer.trainable_variables}
        return sum(math.prod(v.shape) for v in self.variables if id(v) in trained)

    def learnable(self, normalization: bool = True) -> list[keras.Variable]:
        """Return the variables that can be trained, whatever is trained now.

        Args:
            normalization: whether those of batch normalization are among them.
        """
        found = self.variables if normalization else self.weights
        return [variable for variable in found if id(variable) not in self.fixed]

    def __repr__(self) -> str:
        return (
            f"LayerGroup({self.name!r}, depth={self.depth}, parameters={self.parameters}, "
            f"trainable={self.trainable})"
        )


def layer_groups(target: Target) -> list[LayerGroup]:
    """List the layer groups of a backbone, from input to output.

    Batch normalization and scalings have no groups of their own, so that `last=2` means two layers
    that compute something.

    Args:
        target: a `HubLayer`; a model with a backbone in it, as `build_model` makes it (its hub
            layers, or else the one model nested in it that has weights); or a Keras model that is
            itself the backbone.

    Returns:
        The groups; with several hub layers those of each in turn.

    Raises:
        ValueError: the target has no weights, or several nested models that could be the backbone.

    Example:
        >>> import kerasmtl as kt
        >>> model = kt.build_model("tiny", ["car", "person"])
        >>> kt.backbones.layer_groups(model)[-1]
        LayerGroup('block_8/conv', depth=8, parameters=221952, trainable=0)
    """
    return [group for part in backbones_of(target) for group in _some_groups(part)]


def freeze(target: Target) -> None:
    """Freeze a backbone: fitting leaves all its weights as they are, in inference mode.

    Layers outside of the backbone, such as the head, are left alone. Compile the model afterwards:
    Keras decides at `compile` what a training step changes.

    Args:
        target: as for `layer_groups`.

    Raises:
        ValueError: the target is neither a `HubLayer` nor a model, or several nested models could
            be the backbone.

    Example:
        >>> import kerasmtl as kt
        >>> model = kt.build_model("tiny", ["car", "person"], trainable=True)
        >>> len(model.trainable_variables)
        26
        >>> kt.freeze(model)
        >>> len(model.trainable_variables)  # kernel and bias of the head
        2
    """
    for part in backbones_of(target):
        for layer in leaves(part) if isinstance(part, keras.Model) else ():
            _set_trainable(layer, False)
        part.trainable = False


def unfreeze(
    target: Target,
    last: int | float | None = None,
    match: str | None = None,
    normalization: bool = False,
) -> list[LayerGroup]:
    """Train chosen groups of a backbone, and freeze its other groups.

    Compile the model afterwards. Batch normalization stays frozen, in inference mode, which
    fine-tuning on little data needs. A SavedModel has one switch for training mode: without
    `normalization` its dropout is off too, and with it all its moving statistics change, those of
    frozen groups as well. Heads and other layers outside of the backbone are left as they are; with
    several backbones the choice applies to each.

    Args:
        target: as for `layer_groups`.
        last: how many groups nearest the output (2), or which share of all groups (0.3, rounded
            up). By default all.
        match: a regular expression that is found in a group's name or in the name of one of its
            variables, such as r"block_1[3-6]".
        normalization: train batch normalization in the chosen groups as well, in training mode.

    Returns:
        The chosen groups.

    Raises:
        ValueError: nothing matches (the message lists the groups), a wrong number, both `last` and
            `match`, or a module that cannot be trained. Nothing is changed then.

    Example:
        >>> import kerasmtl as kt
        >>> model = kt.build_model("tiny", ["car", "person"])
        >>> [group.name for group in kt.unfreeze(model, last=2)]
        ['block_7/conv', 'block_8/conv']
        >>> [group.name for group in kt.unfreeze(model, match="block_[12]/")]
        ['block_1/conv', 'block_2/conv']
    """
    parts, groups, chosen = backbones_of(target), [], []
    for part in parts:  # all are checked before anything is changed
        if isinstance(part, HubLayer):
            part.check_trainable()
        found = _some_groups(part)
        groups += found
        chosen += _choose(found, last, match, normalization, part.name)
    _open_outer_model(target, parts)
    for part in parts:
        for model in (part, *sublayers(part)):
            if isinstance(model, keras.Model):
                model.trainable = True
    _train(groups, chosen, normalization)
    return chosen


def backbones_of(target: Target) -> list[Target]:
    """Return the backbones inside a model, or the target itself if there is none inside.

    Raises:
        ValueError: neither a `HubLayer` nor a model, or several nested models could be the
            backbone.
    """
    if isinstance(target, HubLayer):
        return [target]
    if not isinstance(target, keras.Model):
        raise ValueError(f"`target` must be a HubLayer or a keras.Model, got {target!r}")
    return backbones_in(target) or [target]


def groups_of(part: Target) -> list[LayerGroup]:
    """List the groups of one backbone, also those of other backbones nested in it.

    Depths count on through nested backbones, 1 at the input. An empty list means that there are no
    weights.
    """
    found: list[LayerGroup] = []
    plain: list[keras.layers.Layer] = []
    for layer in [part] if isinstance(part, HubLayer) else leaves(part):
        if isinstance(layer, HubLayer):
            found += [*_groups_of_layers(plain), *_groups_of_hub(layer)]
            plain = []
        else:
            plain.append(layer)
    found += _groups_of_layers(plain)
    return [replace(group, depth=depth) for depth, group in enumerate(found, start=1)]


def _some_groups(part: Target) -> list[LayerGroup]:
    """Return the groups of a backbone; raise ValueError if there are none."""
    found = groups_of(part)
    if not found:
        hint = "" if getattr(part, "built", True) else " Build the model first."
        raise ValueError(f"`target` must have weights to train, got {part.name!r} without.{hint}")
    return found


def leaves(model: keras.Model) -> list[keras.layers.Layer]:
    """List the layers of a model, those of nested models in their place.

    A layer that wraps hub layers, such as `TimeDistributed`, is replaced by these.

    The order is that of `model.layers`, which for a functional model is by depth, inputs first.
    """
    found: list[keras.layers.Layer] = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += leaves(layer)
        else:
            hubs = [inner for inner in sublayers(layer) if isinstance(inner, HubLayer)]
            found += hubs or [layer]
    return found


def sublayers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """List the layers inside a layer, at any depth."""
    return list(layer._flatten_layers(include_self=False))  # Keras has no public name for it


def is_batch_normalization(layer: keras.layers.Layer) -> bool:
    """Return whether a layer has moving statistics of its own."""
    return isinstance(layer, keras.layers.BatchNormalization)


def scopes(paths: Sequence[str], order: Sequence[int]) -> dict[str, tuple[list[int], list[int]]]:
    """Group the variables of a SavedModel by layers, from input to output.

    Variables with one scope in their names belong together; where names have none, a layer ends
    where a name is repeated. Batch normalization (moving statistics and what shares their scope)
    and scopes that hold only scales and offsets belong to the layer before: the last of those that
    share most of the beginning of their names.

    Args:
        paths: the variables' names, such as "block_1/conv/kernel".
        order: indices of the variables to group, in the order of first use.

    Returns:
        By name of the layer, the indices of its weights and those of its batch normalization.
    """
    placed = _placed(paths, order)
    names: dict[str, set[str]] = {}
    for _, scope, own in placed:
        names.setdefault(scope, set()).add(own)
    found: dict[str, tuple[list[int], list[int]]] = {}
    waiting: list[tuple[int, bool]] = []  # normalization and scales before the first weights
    for index, scope, own in placed:
        beside_statistics = any(map(STATISTICS.search, names[scope]))
        # "gamma" and "beta" alone may be those of layer normalization, which is trained with its
        # layer; beside moving statistics they are those of batch normalization, which stays frozen
        # by default.
        norm = bool(STATISTICS.search(own) or SCALES.fullmatch(own) and beside_statistics)
        if scope not in found and (norm or all(map(SCALES.fullmatch, names[scope]))):
            if not found:
                waiting.append((index, norm))
                continue
            scope = _most_alike(scope, found)
        found.setdefault(scope, ([], []))[norm].append(index)
    if waiting and not found:
        found["normalization"] = ([], [])
    for index, norm in waiting:
        next(iter(found.values()))[norm].append(index)
    return found


def _placed(paths: Sequence[str], order: Sequence[int]) -> list[tuple[int, str, str]]:
    """Return each variable's index, scope and own name, in the order of first use.

    Without scopes, "kernel", "bias", "kernel", … a name that comes again begins the next layer, and
    the layers are called "layer_1", "layer_2", ….
    """
    placed = []
    seen: set[str] = set()
    number = 1
    for index in order:
        scope, _, own = paths[index].rpartition("/")
        above, _, parent = scope.rpartition("/")
        if STATISTICS.fullmatch(parent):  # Sonnet: moving_mean/hidden, moving_mean/average, …
            scope, own = above, parent
        if not scope:
            if own in seen:
                seen, number = set(), number + 1
            seen.add(own)
            scope = f"layer_{number}"
        placed.append((index, scope, own))
    return placed


def _most_alike(scope: str, found: Iterable[str]) -> str:
    """Return the last of the scopes that share most of the beginning of their names.

    Names are compared part by part, split at "/" and "_", so that "block_1/bn" is nearer to
    "block_1/conv" than to "block_2/conv".
    """

    def shared(other: str) -> int:
        return len(os.path.commonprefix([re.split(r"[/_]", name) for name in (scope, other)]))

    return max(reversed(list(found)), key=shared)


def _groups_of_hub(layer: HubLayer) -> list[LayerGroup]:
    """Group the variables of a SavedModel.

    Integer variables, such as step counters, are in no group.
    """
    variables, spec = layer.module_variables, layer.spec
    floating = [index for index, variable in enumerate(variables) if "float" in variable.dtype]
    order = sorted(floating, key=spec.depths.__getitem__)
    pairs = zip(variables, spec.trainable, strict=True)
    fixed = frozenset(id(variable) for variable, listed in pairs if not listed)
    groups = []
    for name, parts in scopes(spec.paths, order).items():
        weights, norm = (tuple(variables[index] for index in held) for held in parts)
        names = (name, *(spec.paths[index] for held in parts for index in held))
        groups.append(LayerGroup(name, 0, (layer,), weights, norm, names, fixed))
    return groups


def _groups_of_layers(layers: Iterable[keras.layers.Layer]) -> list[LayerGroup]:
    """Group Keras layers, each with what normalizes or scales it.

    That is found by what feeds it; where nothing with weights does, it goes with the layer before
    in the list, and at the start with the one after.
    """
    found: list[list[keras.layers.Layer]] = []
    makers: dict[int, list[keras.layers.Layer]] = {}  # by the identity of a symbolic tensor
    waiting: list[keras.layers.Layer] = []
    for layer in layers:
        if not layer.weights or isinstance(layer, keras.layers.Normalization):
            continue
        # LayerScale is a private class of ConvNeXt in keras.applications.
        scales = isinstance(layer, SCALING) or type(layer).__name__ == "LayerScale"
        if is_batch_normalization(layer) or scales:
            home = makers.get(_tensor_id(layer, "input")) or (found[-1] if found else waiting)
            home.append(layer)
        else:
            home = [layer]
            found.append(home)
        given = _tensor_id(layer, "output")
        if given and home is not waiting:
            makers[given] = home
    if found:
        found[0] += waiting
    groups = []
    for held in found or [waiting] * bool(waiting):
        weights = tuple(w for x in held if not is_batch_normalization(x) for w in x.weights)
        norm = tuple(w for x in held if is_batch_normalization(x) for w in x.weights)
        names = (*(layer.name for layer in held), *(w.path for w in weights + norm))
        fixed = frozenset(id(w) for w in weights + norm if STATISTICS.search(w.name))
        groups.append(LayerGroup(held[0].name, 0, tuple(held), weights, norm, names, fixed))
    return groups


def _tensor_id(layer: keras.layers.Layer, side: str) -> int:
    """Return the identity of the one tensor that a layer takes or gives; 0 for several or none.

    Keras raises where a layer was called several times, or never.
    """
    try:
        return id(getattr(layer, side))
    except (AttributeError, ValueError):
        return 0


def _choose(
    groups: Sequence[LayerGroup],
    last: int | float | None,
    match: str | None,
    normalization: bool,
    owner: str,
) -> list[LayerGroup]:
    """Return the groups that `unfreeze` means, of those that can be trained.

    Raises:
        ValueError: as in `unfreeze`.
    """
    groups = [group for group in groups if group.learnable(normalization)]
    if last is not None and match is not None:
        raise ValueError(f"`last` or `match` must be None, got last={last!r}, match={match!r}")
    if not groups:
        raise ValueError(
            f"`normalization` must be True for {owner!r}, which has no other weights, got False"
        )
    if match is None:
        if isinstance(last, float):  # rounded first: 0.3 * 10 is a little more than 3
            share = check_number("last", last, 0.0, 1.0, open_low=True)
            last = math.ceil(round(share * len(groups), 9))
        count = len(groups) if last is None else check_count("last", last)
        return groups[-count:]
    try:
        chosen = [group for group in groups if any(re.search(match, n) for n in group.names)]
    except (re.error, TypeError) as error:
        raise ValueError(f"`match` must be a regular expression, got {match!r}: {error}") from None
    if not chosen:
        names = ", ".join(group.name for group in groups)
        raise ValueError(
            f"`match` must be found in a group of {owner!r}, got {match!r}. Its groups: {names}."
        )
    return chosen


def _train(groups: Sequence[LayerGroup], chosen: Sequence[LayerGroup], normalization: bool) -> None:
    """Train the chosen groups, and freeze the others.

    A Keras layer is trained or frozen as a whole, its batch normalization apart; of a `HubLayer`
    single variables are, since all of its groups are one layer.
    """
    trained = {id(v) for group in chosen for v in group.learnable(normalization)}
    for group in groups:
        for layer in group.layers:
            if isinstance(layer, HubLayer):  # the same one for all of its groups
                held = [id(variable) in trained for variable in layer.module_variables]
                layer.select_variables(held, normalization)
                continue
            _set_trainable(layer, group in chosen)
            # A wrapper, such as TimeDistributed, may hold batch normalization of its own.
            for inner in () if normalization else (layer, *sublayers(layer)):
                if is_batch_normalization(inner):
                    _set_trainable(inner, False)


def _open_outer_model(target: Target, parts: Sequence[Target]) -> None:
    """Make a frozen model show what is unfrozen in it; its other layers stay frozen.

    Keras lists no trainable variable of a model whose own `trainable` is False.
    """
    if target in parts or target.trainable:
        return
    others = [(layer, layer.trainable) for layer in target.layers if layer not in parts]
    target.trainable = True
    for layer, value in others:
        layer.trainable = value


def _set_trainable(layer: keras.layers.Layer, value: bool) -> None:
    """Set `trainable` of a layer and of all its variables.

    Keras drops an assignment of the value that the layer has already, though its variables or the
    layers inside may have another; so the opposite is set first.
    """
    if not isinstance(layer, HubLayer):  # which does without, and may refuse to be trained
        layer.trainable = not value
    layer.trainable = value
