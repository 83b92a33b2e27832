"""One version of a model in memory: named arrays in, named arrays out.

`Versions` makes a `ServedModel` per folder, `batching` calls it, and `protocols` and `page` read
its signatures. It is the one place of the server that touches TensorFlow: what it raises is either
`InvalidExamples`, an error of the client's, or an error of the server's.
"""

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
from kerasmtl.utils.tf import error_text

_KNOWN = ("name", "kind", "classes", "threshold")
# "image_bytes[3] is truncated; image_bytes[7] is empty": how exports name invalid examples.
_NAMED = re.compile(r"\w+\[(\d+)\] is (.*?)(?:; (?=\w+\[\d+\] is )|$)")


@dataclass(frozen=True)
class Tensor:
    """An input or output of a signature.

    Attributes:
        name: in the signature.
        dtype: TensorFlow's name for it, such as "float32" or "string".
        shape: without the batch; None = any length.
        graph_name: in the graph.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    graph_name: str


@dataclass(frozen=True)
class Signature:
    """One of a model's functions: its inputs and outputs by name."""

    name: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


class ServedModel:
    """A SavedModel in memory, its signatures and its model.json, if it has one.

    Args:
        folder: the folder of the version, named by its number.

    Attributes:
        folder: the same.
        version: the number.
        description: the content of model.json; empty without one.
        signatures: by name; outputs in the order of the tasks, each before its decision.

    Raises:
        ValueError: the folder is incomplete, or TensorFlow cannot load it.
    """

    def __init__(self, folder: Path) -> None:
        if lacking := missing(folder):
            raise ValueError(f"the folder is incomplete: {lacking}")
        self.folder, self.version = folder, int(folder.name)
        self.description = read_description(folder) or {}
        try:
            # Kept in an attribute: signatures hold only weak references to the variables of what
            # was loaded.
            self._loaded = tf.saved_model.load(str(folder))
        except Exception as error:  # TensorFlow has no common type for what can be wrong in there
            raise ValueError(f"{folder} cannot be loaded: {error_text(error)}") from error
        self._functions = dict(self._loaded.signatures)
        order = [task["name"] for task in self.description.get("tasks", [])]
        self.signatures = {
            name: _signature(name, function, order)
            for name, function in sorted(self._functions.items())
        }
        if DEFAULT_SIGNATURE not in self.signatures:
            raise ValueError(
                f"{folder} must have the signature {DEFAULT_SIGNATURE!r}, got "
                f"{list(self.signatures)}"
            )

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """Name, kind, classes and threshold of each task.

        Without model.json the tasks are the outputs, and everything but their names is None.
        """
        found = self.description.get("tasks")
        if found is None:
            outputs = self.signatures[DEFAULT_SIGNATURE].outputs
            tasks = [n for n in outputs if n.removesuffix(DECISION) not in {*outputs} - {n}]
            found = [{"name": name} for name in tasks]
        return [{key: task.get(key) for key in _KNOWN} for task in found]

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
        called = self.signatures[signature]
        tensors = {
            name: tf.constant(inputs[name], tf.as_dtype(tensor.dtype))
            for name, tensor in called.inputs.items()
        }
        try:
            outputs = self._functions[signature](**tensors)
        except tf.errors.OpError as error:
            alone = len(next(iter(inputs.values()))) == 1
            if alone and not isinstance(error, tf.errors.InvalidArgumentError):
                raise
            why = error_text(error)
            named = {int(number): reason for number, reason in _NAMED.findall(why)}
            raise InvalidExamples(named or {0 if alone else -1: why}) from None
        return {name: outputs[name].numpy() for name in called.outputs}

    def warm_up(self) -> None:
        """Call each signature once with zeros and empty strings, which it may refuse.

        The first call of a graph is slow, since TensorFlow optimizes it then; no request should
        wait for it.
        """
        for name, signature in self.signatures.items():
            with suppress(InvalidExamples):
                self.call(name, {key: _zeros(tensor) for key, tensor in signature.inputs.items()})


def _signature(name: str, function: Any, order: list[str]) -> Signature:
    """Describe a function; its outputs are sorted by `order`, each task before its decision."""

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
    """Describe an input or output; the first length of its shape is the batch, and left out."""
    shape = tuple(spec.shape.as_list()[1:]) if spec.shape.rank else ()
    return Tensor(name, spec.dtype.name, shape, spec.name or name)


def _zeros(tensor: Tensor) -> np.ndarray:
    """Return a batch of one example, (1, …), with 8 for lengths that may be anything."""
    shape = (1, *(length or 8 for length in tensor.shape))
    return np.full(
        shape, b"" if tensor.dtype == "string" else 0, tf.as_dtype(tensor.dtype).as_numpy_dtype
    )
