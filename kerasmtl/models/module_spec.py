"""ModuleSpec: the description of a SavedModel inside a `.keras` file.

Keras builds a loaded model before it hands out the files that travel with it. From the description
a `HubLayer` is built, with its variables and the shapes of its outputs, before its module is there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kerasmtl._version import __version__
from kerasmtl.models.graph import variable_order
from kerasmtl.models.hub.cache import holds, is_module, kept_module
from kerasmtl.models.hub.handles import is_remote, resolve_handle
from kerasmtl.models.saved_model import Module, over_replicas

FORMAT = 1
MOST_CALLS = 32  # how many calls are remembered, by shapes

_loaded: dict[str, Path] = {}  # in this process: SHA-256 → folder


@dataclass
class ModuleSpec:
    """A module without its graph: content hash, variables, inputs and outputs.

    Attributes:
        sha256: the hash of the module's content.
        paths: the names of the variables, as the publisher wrote them.
        shapes, dtypes: of the variables.
        trainable: which variables the publisher lists as trainable.
        order: which of the variables that loading creates each one is.
        depths: the rank of each variable in the order of first use, from input to output.
        inputs: a `keras.KerasTensor` for each input, nested as the module takes them.
        takes_images: whether the one input is a batch of RGB images, or undeclared.
        image_size: the (height, width) that the module insists on, if any.
        input_range: the (low, high) of the pixels where the module itself tells it.
        why_not_trainable: the reason why the module cannot be trained, or None.
        calls: inputs and outputs met so far, as pairs of nested `keras.KerasTensor`s.
    """

    sha256: str
    paths: list[str]
    shapes: list[list[int]]
    dtypes: list[str]
    trainable: list[bool]
    order: list[int]
    depths: list[int]
    inputs: Any
    takes_images: bool
    image_size: tuple[int, int] | None
    input_range: tuple[float, float] | None
    why_not_trainable: str | None
    calls: list[tuple[Any, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, module: Module, sha256: str) -> ModuleSpec:
        """Describes a loaded module."""
        _loaded[sha256] = module.folder
        held = module.variables
        depths = [0] * len(held)
        for depth, index in enumerate(variable_order(module.inference_call.function, held)):
            depths[index] = depth
        inputs = tf.nest.map_structure(_symbol, module.inference_call.inputs)
        image = module.image
        return cls(
            sha256=sha256,
            paths=[v.name.removesuffix(":0") for v in held],
            shapes=[list(v.shape) for v in held],
            dtypes=[v.dtype.name for v in held],
            trainable=list(module.trainable),
            order=[next((i for i, c in enumerate(module.created) if c is v), -1) for v in held],
            depths=depths,
            inputs=next(iter(inputs.values())) if len(inputs) == 1 else inputs,
            takes_images=module.takes_images,
            image_size=module.image_size,
            input_range=(0.0, 255.0) if image is not None and image.dtype.is_integer else None,
            why_not_trainable=module.why_not_trainable,
        )

    @property
    def names(self) -> list[str]:
        """The variables' paths, in letters that every optimizer accepts."""
        return [re.sub(r"[^0-9A-Za-z_.-]", "_", path) for path in self.paths]

    def empty_variables(self) -> list[tf.Variable]:
        """Makes variables of zeros, to be filled when the module is there."""
        return [
            tf.Variable(
                tf.zeros(shape, dtype),
                trainable=trained,
                name=name,
                **({} if trained else over_replicas(dtype)),
            )
            for shape, dtype, trained, name in zip(
                self.shapes, self.dtypes, self.trainable, self.names, strict=True
            )
        ]

    def remember(self, inputs: Any, outputs: Any) -> None:
        """Keeps the shapes of a call, for a loaded model whose module is not there yet."""
        if len(self.calls) == MOST_CALLS or any(_same(inputs, known) for known, _ in self.calls):
            return
        bare = (tf.nest.map_structure(_bare, inputs), tf.nest.map_structure(_bare, outputs))
        self.calls.append(bare)

    def outputs_of(self, inputs: Any, name: str) -> Any:
        """Returns the outputs that a call with inputs of these shapes gave.

        Raises:
            ValueError: there was no such call.
        """
        batch = tf.nest.flatten(inputs)[0].shape[0]
        for known, outputs in self.calls:
            if _same(inputs, known):
                return tf.nest.map_structure(
                    lambda o: keras.KerasTensor(_with_batch(o.shape, batch), dtype=o.dtype), outputs
                )
        raise ValueError(
            f"`inputs` must have shapes that `HubLayer` {name!r} was called with before it was "
            "saved: its module is not loaded yet. Load the file with the module's folder in place."
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the description for JSON."""
        plain = {key: value for key, value in vars(self).items() if key not in ("inputs", "calls")}
        return {
            "format": FORMAT,
            "version": __version__,
            **plain,
            "inputs": keras.saving.serialize_keras_object(self.inputs),
            "calls": [keras.saving.serialize_keras_object(list(pair)) for pair in self.calls],
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> ModuleSpec:
        """Reads what `to_dict` wrote; keys of later versions are ignored."""
        known = {key: saved[key] for key in cls.__dataclass_fields__ if key in saved}
        if "takes_pictures" in saved:  # its name in files of kerasmtl 0.1
            known["takes_images"] = saved["takes_pictures"]
        known["inputs"] = keras.saving.deserialize_keras_object(saved["inputs"])
        known["calls"] = [
            tuple(keras.saving.deserialize_keras_object(pair)) for pair in saved["calls"]
        ]
        for key in ("image_size", "input_range"):
            known[key] = known[key] and tuple(known[key])
        return cls(**known)


def runs_already(sha256: str) -> bool:
    """Whether this process has loaded a module with that content before."""
    return sha256 in _loaded


def module_at_hand(handle: str, sha256: str) -> Path | None:
    """Finds the folder of a module with that content, or None; nothing is downloaded."""
    candidates = [_loaded.get(sha256), None if is_remote(handle) else Path(handle)]
    try:
        if not is_remote(handle):
            candidates.append(resolve_handle(handle))
    except ValueError:
        pass  # the folder is gone: the copy in the file is for that
    for folder in candidates:
        if folder is not None and is_module(folder) and holds(folder, sha256):
            return folder
    return kept_module(sha256)


def _symbol(spec: Any) -> keras.KerasTensor | None:
    shape = getattr(spec, "shape", None)
    if shape is None or shape.rank is None:
        return keras.KerasTensor((None,), dtype=spec.dtype.name)
    return keras.KerasTensor(tuple(shape), dtype=spec.dtype.name)


def _bare(tensor: Any) -> keras.KerasTensor:
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return keras.KerasTensor(_with_batch(tuple(tensor.shape), None), dtype=dtype)


def _with_batch(shape: tuple[int | None, ...], batch: int | None) -> tuple[int | None, ...]:
    return (batch, *shape[1:]) if shape else shape


def _same(inputs: Any, known: Any) -> bool:
    a, b = tf.nest.flatten(inputs), tf.nest.flatten(known)
    return len(a) == len(b) and all(
        tuple(x.shape)[1:] == tuple(y.shape)[1:]
        and keras.backend.standardize_dtype(x.dtype) == y.dtype
        for x, y in zip(a, b, strict=True)
    )
