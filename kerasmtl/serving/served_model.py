"""One version of a model in memory: named arrays in, named arrays out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kerasmtl.export.description import DECISION, DEFAULT_SIGNATURE, read_description
from kerasmtl.export.versions import missing
from kerasmtl.serving.errors import InvalidExamples

_KNOWN = ("name", "kind", "classes", "threshold")
# Where in the graph an error occurred, which clients cannot use.
_NODE = re.compile(r"\{\{.*?\}\}|\[\[?\{.*|\[Op:.*", re.DOTALL)
_PLACES = ("Graph execution error:", "Detected at node", "<stack traces", "File ", "node Assert")
_ASSERTED = re.compile(r"assertion failed: \[(.*)\]")
# "image_bytes[3] is truncated; image_bytes[7] is empty": how exports name invalid examples.
_NAMED = re.compile(r"\w+\[(\d+)\] is (.*?)(?:; (?=\w+\[\d+\] is )|$)")


@dataclass(frozen=True)
class Tensor:
    """An input or output of a signature; its shape without the batch, None = any length."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    graph_name: str


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of one of a model's functions, by name."""

    name: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


class ServedModel:
    """A SavedModel in memory, its signatures and its model.json, if it has one.

    Args:
        folder: the folder of the version, named by its number.

    Raises:
        ValueError: the folder is incomplete, or TensorFlow cannot load it.
    """

    def __init__(self, folder: Path) -> None:
        lacking = missing(folder)
        if lacking:
            raise ValueError(f"the folder is incomplete: {lacking}")
        self.folder = folder
        self.version = int(folder.name)
        self.description = read_description(folder) or {}
        try:
            self._loaded = tf.saved_model.load(str(folder))
        except Exception as error:  # TensorFlow has no common type for what can be wrong in there
            raise ValueError(f"{folder} cannot be loaded: {_short(error)}") from error
        self._functions = dict(self._loaded.signatures)
        order = [task["name"] for task in self.description.get("tasks", [])]
        self.signatures = {
            name: _signature(name, function, order)
            for name, function in sorted(self._functions.items())
        }
        if DEFAULT_SIGNATURE not in self.signatures:
            raise ValueError(
                f"{folder} must have the signature {DEFAULT_SIGNATURE!r}, "
                f"got {list(self.signatures)}"
            )

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """Name, kind, classes, threshold and the rule of the threshold of each task.

        Without model.json the tasks are the outputs, and everything but their names is None.
        """
        if self.description:
            return [_task(task) for task in self.description["tasks"]]
        outputs = self.signatures[DEFAULT_SIGNATURE].outputs
        names = [
            name for name in outputs if name.removesuffix(DECISION) not in set(outputs) - {name}
        ]
        return [_task({"name": name}) for name in names]

    def call(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the outputs for a batch.

        Args:
            signature: the name of the function to call.
            inputs: by name, arrays (batch, ...); strings as bytes in arrays of objects.

        Returns:
            By name, arrays (batch, ...).

        Raises:
            InvalidExamples: the model refuses the batch: with the numbers that its message names;
                else number 0 for a batch of one, and -1 for a larger one, since TensorFlow does
                not say which example is invalid.
            tensorflow.errors.OpError: a batch of one fails, for a reason other than its values.
        """
        specs = self.signatures[signature].inputs
        tensors = {
            name: tf.constant(inputs[name], tf.as_dtype(spec.dtype)) for name, spec in specs.items()
        }
        try:
            outputs = self._functions[signature](**tensors)
        except tf.errors.OpError as error:
            alone = len(next(iter(inputs.values()))) == 1
            if alone and not isinstance(error, tf.errors.InvalidArgumentError):
                raise
            why = _short(error)
            named = {int(number): reason for number, reason in _NAMED.findall(why)}
            raise InvalidExamples(named or {0 if alone else -1: why}) from None
        return {name: outputs[name].numpy() for name in self.signatures[signature].outputs}

    def warm_up(self) -> None:
        """Call each signature once with zeros and empty strings, which it may refuse."""
        for name, signature in self.signatures.items():
            with suppress(InvalidExamples):
                self.call(name, {key: _zeros(tensor) for key, tensor in signature.inputs.items()})


def _task(given: Mapping[str, Any]) -> dict[str, Any]:
    decision = given.get("decision")  # how the threshold was chosen
    rule = decision.get("rule") if isinstance(decision, dict) else None
    return {key: given.get(key) for key in _KNOWN} | {"rule": rule}


def _signature(name: str, function: Any, order: list[str]) -> Signature:
    """Read a signature: outputs in the order of the tasks, each before its decision."""

    def place(output: str) -> tuple[int, str]:
        task = output if output in order else output.removesuffix(DECISION)
        return (order.index(task) if task in order else len(order), output)

    specs = function.structured_input_signature[1]
    outputs = function.structured_outputs
    return Signature(
        name,
        {key: _tensor(key, specs[key]) for key in sorted(specs)},
        {key: _tensor(key, outputs[key]) for key in sorted(outputs, key=place)},
    )


def _tensor(name: str, spec: tf.TensorSpec) -> Tensor:
    shape = tuple(spec.shape.as_list()[1:]) if spec.shape.rank else ()
    return Tensor(name, spec.dtype.name, shape, spec.name or name)


def _zeros(tensor: Tensor) -> np.ndarray:
    shape = (1, *(length or 8 for length in tensor.shape))
    return (
        np.full(shape, b"", object) if tensor.dtype == "string" else np.zeros(shape, tensor.dtype)
    )


def _short(error: Exception) -> str:
    """Return the first sentence of an error of TensorFlow, without the places in the graph."""
    text = _NODE.sub("", str(getattr(error, "message", error)))
    lines = [line.strip() for line in text.splitlines()]
    said = [line for line in lines if line and not line.startswith(_PLACES)]
    if not said:
        return type(error).__name__
    asserted = _ASSERTED.fullmatch(said[0])
    return asserted[1] if asserted else said[0][:300]
