"""What of a backbone is trained: nothing, its last layers, chosen ones, or all of it."""

from __future__ import annotations

import keras

from kerasmtl.backbones import HubLayer, backbones_in
from kerasmtl.backbones.groups import (
    Unit,
    VariableGroup,
    choose_units,
    hub_units,
    model_units,
    set_trainable,
    unfreeze_units,
)
from kerasmtl.backbones.layer_tree import leaves, nested_models

Target = keras.Model | HubLayer


def variable_groups(target: Target) -> list[VariableGroup]:
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
) -> list[VariableGroup]:
    """Train a part of the backbone and freeze the rest; compile the model afterwards.

    Batch normalization stays frozen, in inference mode, which fine-tuning on little data needs.
    A SavedModel has one switch for training mode: without `normalization` its dropout is off too,
    and with it all its moving statistics change, those of frozen groups as well. Heads and other
    layers outside of the backbone are left as they are; with several backbones the choice holds
    for each.

    Args:
        target: as for `variable_groups`.
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
    chosen: list[VariableGroup] = []
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
        target: as for `variable_groups`.
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
