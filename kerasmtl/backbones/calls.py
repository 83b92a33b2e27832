"""The calls of a module: what each takes, and inputs made to fit it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf


@dataclass(frozen=True)
class Call:
    """One traced way to call a module.

    `inputs` has one entry by tensor argument; `training` is None where there is no such switch;
    `arguments` are the other arguments, by name, with the values they were traced with.
    """

    inputs: dict[str, Any]
    training: bool | tf.TensorSpec | None
    arguments: dict[str, Any]
    outputs: Any
    function: Any
    layout: tuple[str, ...]  # the names of the positional arguments
    by_name: tuple[str, ...]

    @property
    def takes(self) -> str:
        """Its inputs, for a person."""
        single = len(self.inputs) == 1
        return describe(next(iter(self.inputs.values())) if single else self.inputs)

    def trains(self, training: bool) -> bool:
        """Whether this call serves that mode."""
        return self.training is training or isinstance(self.training, tf.TensorSpec)


def describe(specs: Any) -> str:
    """Shapes and types for a person: float32 (None, 224, 224, 3)."""
    if isinstance(specs, Mapping):
        # Sorted: a SavedModel keeps no order, and gives another in each process.
        parts = [f"{name!r}: {describe(specs[name])}" for name in sorted(specs, key=str)]
        return "{" + ", ".join(parts) + "}"
    if isinstance(specs, list | tuple):
        return "[" + ", ".join(describe(s) for s in specs) + "]"
    shape, dtype = getattr(specs, "shape", None), getattr(specs, "dtype", None)
    if dtype is None:
        return type(specs).__name__
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", str(dtype))
    rank = getattr(shape, "rank", len(shape) if isinstance(shape, tuple) else None)
    return f"{name} {tuple(shape) if rank is not None else 'of any shape'}"


def calls_of(run: Any, is_signature: bool, arguments: Mapping[str, Any]) -> list[Call]:
    if is_signature:
        inputs = dict(run.structured_input_signature[1])
        return [Call(inputs, None, {}, run.structured_outputs, run, (), tuple(inputs))]
    names = inspect.getfullargspec(run).args
    return [_call(function, names, arguments) for function in run.concrete_functions]


def _call(function: Any, names: Sequence[str], arguments: Mapping[str, Any]) -> Call:
    positional, by_name = function.structured_input_signature
    layout = tuple(names[i] if i < len(names) else f"argument_{i}" for i in range(len(positional)))
    values = {**dict(zip(layout, positional, strict=True)), **by_name}
    training = values.pop("training", None)
    inputs = {
        name: spec for name, spec in values.items() if is_tensors(spec) and name not in arguments
    }
    others = {name: value for name, value in values.items() if name not in inputs}
    outputs = function.structured_outputs
    return Call(inputs, training, others, outputs, function, layout, tuple(by_name))


def is_tensors(spec: Any) -> bool:
    leaves = tf.nest.flatten(spec)
    return bool(leaves) and all(isinstance(leaf, tf.TypeSpec) for leaf in leaves)


def bind(call: Call, inputs: Any) -> dict[str, Any] | None:
    """The inputs by argument, packed and cast as they were traced; None if they do not fit."""
    names = list(call.inputs)
    if len(names) == 1:
        parts = {names[0]: inputs}
        if isinstance(inputs, Mapping) and set(inputs) == set(names):
            parts = dict(inputs)
    elif isinstance(inputs, Mapping):
        parts = dict(inputs)
    elif isinstance(inputs, list | tuple) and len(inputs) == len(names):
        parts = dict(zip(names, inputs, strict=True))
    else:
        return None
    if set(parts) != set(names):
        return None
    fitted = {name: _fit(call.inputs[name], part) for name, part in parts.items()}
    return None if any(part is None for part in fitted.values()) else fitted


def _fit(specs: Any, values: Any) -> Any | None:
    if isinstance(specs, Mapping) and (
        not isinstance(values, Mapping) or set(values) != set(specs)
    ):
        return None
    leaves, wanted = tf.nest.flatten(values), tf.nest.flatten(specs)
    if len(leaves) != len(wanted):
        return None
    cast = [_cast(leaf, spec) for leaf, spec in zip(leaves, wanted, strict=True)]
    return None if any(leaf is None for leaf in cast) else tf.nest.pack_sequence_as(specs, cast)


def _cast(tensor: Any, spec: tf.TensorSpec) -> Any | None:
    """The tensor in the traced type: among floats or among integers; nothing else is converted."""
    tensor = tf.convert_to_tensor(tensor) if not tf.is_tensor(tensor) else tensor
    have, want = tensor.dtype, spec.dtype
    alike = (have.is_floating and want.is_floating) or (have.is_integer and want.is_integer)
    if have != want and not alike:
        return None
    if not spec.shape.is_compatible_with(tensor.shape):
        return None
    return tensor if have == want else tf.cast(tensor, want)
