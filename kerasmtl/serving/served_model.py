"""One version of a model in memory: named arrays in, named arrays out."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kerasmtl.data.image_files import picture_fault
from kerasmtl.export.description import read_description
from kerasmtl.export.versions import missing
from kerasmtl.serving.errors import BadRows

PICTURES = "image_bytes"  # the input that takes the bytes of pictures
DEFAULT = "serving_default"
DECISION = "_decision"
PIXELS = 50_000_000  # of one picture, where neither the model nor its user says
_NODE = re.compile(r"\{\{.*?\}\}|\[\[?\{.*|\[Op:.*", re.DOTALL)  # where in the graph: not for users

_PLACES = ("Graph execution error:", "Detected at node", "<stack traces", "File ", "node Assert")
_NAMED = re.compile(r"assertion failed: \[image_bytes\[(\d+)\] is ")
_ASSERTED = re.compile(r"assertion failed: \[(?:image_bytes\[\d+\] is )?(.*)\]")


@dataclass(frozen=True)
class Tensor:
    """An input or output; its shape without the batch, None = any length."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    in_graph: str


@dataclass(frozen=True)
class Signature:
    """What one of a model's functions takes and gives."""

    name: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    @property
    def takes_pictures(self) -> bool:
        return set(self.inputs) == {PICTURES} and self.inputs[PICTURES].dtype == "string"


class Served:
    """A SavedModel that has been loaded, its signatures and what it says of itself.

    Raises:
        ValueError: a folder that is not whole, or a model that cannot be loaded.
    """

    def __init__(self, folder: Path) -> None:
        import tensorflow as tf

        lacking = missing(folder)
        if lacking:
            raise ValueError(f"`folder` {folder} is no whole SavedModel: {lacking}.")
        self.folder = folder
        self.version = int(folder.name)
        self.description = read_description(folder) or {}
        try:
            self._loaded = tf.saved_model.load(str(folder))
        except Exception as error:  # TensorFlow has no common type for what can be wrong in there
            raise ValueError(
                f"`folder` {folder} cannot be loaded. Received: {_plain(error)}"
            ) from error
        self._functions = dict(self._loaded.signatures)
        order = [task["name"] for task in self.description.get("tasks", [])]
        self.signatures = {
            name: _signature(name, function, order)
            for name, function in sorted(self._functions.items())
        }
        if DEFAULT not in self.signatures:
            raise ValueError(
                f"`folder` {folder} has no signature {DEFAULT!r}. Received: {list(self.signatures)}"
            )

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """Each task's name, kind, classes, threshold and the rule that the threshold follows.

        What is not known is None.
        """
        known = ("name", "kind", "classes", "threshold", "rule")
        if self.description:
            return [_task(task, known) for task in self.description["tasks"]]
        outputs = self.signatures[DEFAULT].outputs
        names = [
            name for name in outputs if name.removesuffix(DECISION) not in set(outputs) - {name}
        ]
        return [dict.fromkeys(known) | {"name": name} for name in names]

    def most_pixels(self, limit: int | None = None) -> int:
        """How many pixels a picture may have: what model.json says, or `limit` if that is lower."""
        own = self.description.get("max_pixels")
        if own is None:
            return limit or PIXELS
        return min(own, limit or own)

    def call(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs for a batch.

        Shapes: inputs (batch, …), strings as arrays of objects; outputs (batch, …).

        Raises:
            BadRows: of one example, if the model itself refuses it, under number 0; of more, under
                the number that an export's graph says, or -1, since TensorFlow does not say which.
            tensorflow.errors.OpError: one example that is right, and fails nevertheless.
        """
        import tensorflow as tf

        given = self.signatures[signature].inputs
        tensors = {
            name: tf.constant(inputs[name], tf.as_dtype(tensor.dtype))
            for name, tensor in given.items()
        }
        try:
            outputs = self._functions[signature](**tensors)
        except tf.errors.OpError as error:
            rows = len(next(iter(inputs.values())))
            if rows > 1:
                named = _NAMED.search(str(error))
                raise BadRows({int(named[1]) if named else -1: _plain(error)}) from None
            why = self._why(signature, inputs, error)
            if why is None:
                raise
            raise BadRows({0: why}) from None
        return {name: np.asarray(outputs[name]) for name in self.signatures[signature].outputs}

    def warm_up(self) -> None:
        """Call each signature once with an example of no meaning, which it may refuse."""
        for name, signature in self.signatures.items():
            with suppress(BadRows):
                self.call(name, {key: _dummy(tensor) for key, tensor in signature.inputs.items()})

    def _why(
        self, signature: str, inputs: Mapping[str, np.ndarray], error: Exception
    ) -> str | None:
        """What is wrong with one example; None if the fault is the model's or the machine's."""
        import tensorflow as tf

        if self.signatures[signature].takes_pictures:
            fault = picture_fault(inputs[PICTURES][0])
            if fault:
                return fault
        return _plain(error) if isinstance(error, tf.errors.InvalidArgumentError) else None


def _task(said: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    decision = said.get("decision")  # of format 1: how the threshold was chosen
    rule = decision.get("rule") if isinstance(decision, dict) else None
    return {key: said.get(key) for key in known} | {"rule": rule}


def _signature(name: str, function: Any, order: list[str]) -> Signature:
    """Outputs in the order of the tasks, each before its decision; others by their names."""

    def place(output: str) -> tuple[int, str]:
        task = output if output in order else output.removesuffix(DECISION)
        return (order.index(task) if task in order else len(order), output)

    inputs = {
        key: _tensor(key, spec) for key, spec in function.structured_input_signature[1].items()
    }
    outputs = {key: _tensor(key, spec) for key, spec in function.structured_outputs.items()}
    outputs = {key: outputs[key] for key in sorted(outputs, key=place)}
    return Signature(name, inputs, outputs)


def _tensor(name: str, spec: Any) -> Tensor:
    shape = tuple(spec.shape.as_list()[1:]) if spec.shape.rank else ()
    return Tensor(name, spec.dtype.name, shape, spec.name or name)


def _dummy(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == "string":
        from PIL import Image

        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "PNG")
        return np.array([buffer.getvalue()], object)
    return np.zeros((1, *(length or 8 for length in tensor.shape)), tensor.dtype)


def _plain(error: Exception) -> str:
    """What a graph says of one example, without where in the graph it says so."""
    text = _NODE.sub("", str(getattr(error, "message", error)))
    lines = [line.strip() for line in text.splitlines()]
    told = [line for line in lines if line and not line.startswith(_PLACES)]
    if not told:
        return type(error).__name__
    said = _ASSERTED.fullmatch(told[0])
    return (said[1] if said else told[0])[:300]
