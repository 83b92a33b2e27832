"""The pixel range that a call expects, read from what it does to a picture before any layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kerasmtl.backbones.flat_graph import FlatGraph, Node

CHANNELS = 3
LAST = (-1, 3)  # the axis of the channels
RANGES = ((0.0, 255.0), (0.0, 1.0), (-1.0, 1.0))

ABOUT_SHAPE = {"Shape", "ShapeN", "Rank", "Size", "ZerosLike", "OnesLike"}
KEEPS_VALUES = {
    *("Identity", "Cast", "StopGradient", "PreventGradient", "CheckNumerics", "EnsureShape"),
    *("Snapshot", "ResizeBilinear", "ResizeBicubic", "ResizeNearestNeighbor", "ResizeArea"),
    *("ScaleAndTranslate", "Pad", "PadV2", "MirrorPad", "Transpose"),
}
SAME_NUMBERS = {"Identity", "Cast", "Reshape", "ExpandDims", "Squeeze", "StopGradient"}
NUMPY: dict[str, Callable[..., np.ndarray]] = {
    "Add": np.add, "AddV2": np.add, "BiasAdd": np.add, "Sub": np.subtract, "Mul": np.multiply,
    "RealDiv": np.divide, "Div": np.divide, "Maximum": np.maximum, "Minimum": np.minimum,
    "Pow": np.power, "Neg": np.negative, "Sqrt": np.sqrt, "Square": np.square,
    "Rsqrt": lambda x: 1 / np.sqrt(x), "Reciprocal": lambda x: 1 / x, "Inv": lambda x: 1 / x,
    "Pack": lambda *x: np.concatenate(x), "ConcatV2": lambda *x: np.concatenate(x[:-1]),
}  # fmt: skip

Affine = tuple[np.ndarray, np.ndarray]


def range_of(scale: np.ndarray, offset: np.ndarray) -> tuple[float, float] | None:
    """The one range of pixels x that scale * x + offset brings to a usual range.

    Usual are [0, 1] and [-1, 1], and colours less their mean: in units of 1, of 255 or of their
    standard deviation. None if no range or more than one fits.

    Args:
        scale: a number for each channel.
        offset: a number for each channel.
    """
    scale, offset = np.asarray(scale, float), np.asarray(offset, float)
    if np.allclose(offset, 0) and np.allclose(np.abs(scale), 1):
        return None
    fits = []
    for low, high in RANGES:
        if low < 0 and np.allclose(offset, 0):
            continue  # without a shift nothing tells that zero is the middle
        ends = np.sort([scale * low + offset, scale * high + offset], axis=0)
        if _is_usual(*ends):
            fits.append((low, high))
    return fits[0] if len(fits) == 1 else None


def _is_usual(low: np.ndarray, high: np.ndarray) -> bool:
    span = high - low
    if (span <= 0).any():
        return False
    zero = -low / span  # where zero lies between the ends: the mean that was taken away

    def about(value: float) -> bool:
        return bool((np.abs(span / value - 1) < 0.03).all())

    from_zero = (np.abs(zero) < 0.02).all()
    centred = ((zero > 0.3) & (zero < 0.7)).all()
    deviations = ((span > 3) & (span < 6)).all()  # deviations of 0.17 to 0.33
    unit_or_byte = about(1) or about(255)
    return bool(from_zero and unit_or_byte or centred and (unit_or_byte or about(2) or deviations))


def values_before_first_layer(
    flat: FlatGraph, image: int, captured: Sequence[tf.Tensor]
) -> Affine | None:
    """What the first layers receive of a pixel x: (scale, offset) with scale * x + offset.

    Shapes: (3,) each, for the channels. None if the first layers receive different values.

    Args:
        flat: the call.
        image: the number of the node that takes the images.
        captured: the `captured_inputs` of the call.
    """
    constants = _Constants(flat, captured)
    live = flat.leading_to(flat.outputs)
    known = {image: (np.ones(CHANNELS), np.zeros(CHANNELS))}
    received: list[Affine] = []
    for number in flat.from_input_to_output():
        node = flat.nodes[number]
        given = [known[source] for source in node.inputs if source in known]
        if not given or number not in live or node.op in ABOUT_SHAPE:
            continue
        after = _step(node, known, constants)
        if after is None:
            received += given
        else:
            known[number] = after
    received += [known[number] for number in flat.outputs if number in known]
    if not received or any(scale.size != CHANNELS for scale, _ in received):
        return None
    same = all(np.allclose(affine, received[0], rtol=1e-4) for affine in received)
    return received[0] if same else None


def _step(node: Node, known: dict[int, Affine], constants: _Constants) -> Affine | None:
    """The scale and offset after an operation on the image; None if it is no elementwise step."""
    if node.op in ("Pack", "ConcatV2"):
        return _join(node, known, constants)
    places = [place for place, source in enumerate(node.inputs) if source in known]
    if len(places) != 1:
        return None
    place = places[0]
    scale, offset = affine = known[node.inputs[place]]
    if node.op in KEEPS_VALUES:
        return affine if place == 0 else None
    if node.op == "Neg":
        return -scale, -offset
    if node.op in ("StridedSlice", "ReverseV2", "GatherV2"):
        picked = _picked_channels(node, constants) if scale.size == CHANNELS else None
        return None if picked is None else (scale[picked], offset[picked])
    if len(node.inputs) != 2 or node.op not in NUMPY:
        return None
    number = constants.numbers(node.inputs[1 - place])
    if number is None or number.size not in (1, scale.size):
        return None
    return _combine(node.op, affine, number, place == 0)


def _combine(op: str, affine: Affine, number: np.ndarray, first: bool) -> Affine | None:
    scale, offset = affine
    if op in ("Minimum", "Maximum"):  # clipping leaves proper pixels as they are
        return affine
    if op in ("Add", "AddV2", "BiasAdd"):
        return scale, offset + number
    if op == "Sub":
        return (scale, offset - number) if first else (-scale, number - offset)
    if op == "Mul":
        return scale * number, offset * number
    if op in ("RealDiv", "Div") and first and number.all():
        return scale / number, offset / number
    return None


def _join(node: Node, known: dict[int, Affine], constants: _Constants) -> Affine | None:
    """The scale and offset after channels are put side by side."""
    if node.op == "Pack":
        parts, axis = node.inputs, [node.attr["axis"].i]
    else:
        parts, axis = node.inputs[:-1], constants.numbers(node.inputs[-1])
    if axis is None or axis[0] not in LAST or any(part not in known for part in parts):
        return None
    return tuple(np.concatenate([known[part][k] for part in parts]) for k in (0, 1))


def _picked_channels(node: Node, constants: _Constants) -> np.ndarray | None:
    """The channels that an operation picks, in its order; None if it does not pick channels."""
    given = [constants.numbers(number) for number in node.inputs[1:]]
    if any(numbers is None for numbers in given):
        return None
    channels = np.arange(CHANNELS)
    if node.op == "StridedSlice":
        return _sliced(channels, node, *(numbers.astype(int) for numbers in given))
    if node.op == "ReverseV2":
        return channels[::-1] if given[0].size == 1 and given[0][0] in LAST else None
    picked = given[0].astype(int)
    return picked if given[1][0] in LAST and np.isin(picked, channels).all() else None


def _sliced(
    channels: np.ndarray, node: Node, begin: np.ndarray, end: np.ndarray, strides: np.ndarray
) -> np.ndarray | None:
    """The channels of `images[..., a:b:c]` or `images[..., k]`; rows and columns may be cut."""
    masks = ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    from_start, to_end, ellipsis, new, shrunk = (node.attr[f"{name}_mask"].i for name in masks)
    last = 1 << (strides.size - 1)
    if new or shrunk & ~last or not (ellipsis or strides.size == 4):
        return None
    if (strides[:-1] < 0).any() or ellipsis & last:
        return None
    if shrunk:
        return channels[begin[-1:]]
    first, stop = None if from_start & last else begin[-1], None if to_end & last else end[-1]
    return channels[first : stop : strides[-1]]


class _Constants:
    """The few numbers, as a flat array, that a node gives whatever the input."""

    LARGEST = 16

    def __init__(self, flat: FlatGraph, captured: Sequence[tf.Tensor]) -> None:
        self._nodes = flat.nodes
        self._captured = dict(zip(flat.captures, captured, strict=True))
        self._data = flat.reached_from(flat.arguments)

    def numbers(self, number: int) -> np.ndarray | None:
        """The numbers of a node; None if they are many, depend on the input or are no numbers."""
        node = self._nodes[number]
        if number in self._data:
            return None
        if number in self._captured:
            return self._flat(self._captured[number])
        if node.op == "Const":
            return self._flat(tf.make_ndarray(node.attr["value"].tensor))
        if node.op == "ReadVariableOp":
            return self._variable(node)
        if node.op in SAME_NUMBERS:
            return self.numbers(node.inputs[0])
        if node.op not in NUMPY:
            return None
        given = [self.numbers(source) for source in node.inputs]
        if any(numbers is None for numbers in given):
            return None
        try:
            return NUMPY[node.op](*given)
        except ValueError:  # shapes that matter after all
            return None

    def _variable(self, node: Node) -> np.ndarray | None:
        number = node.inputs[0]
        while self._nodes[number].op == "Identity":
            number = self._nodes[number].inputs[0]
        if number not in self._captured:
            return None
        dtype = tf.as_dtype(node.attr["dtype"].type)
        handle = self._captured[number]
        try:
            if isinstance(handle, tf.Variable):  # on several devices
                return self._flat(tf.convert_to_tensor(handle))
            return self._flat(tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype))
        except tf.errors.OpError:  # not initialised
            return None

    def _flat(self, value: Any) -> np.ndarray | None:
        dtype = tf.as_dtype(value.dtype)
        if not (dtype.is_floating or dtype.is_integer) or np.prod(value.shape) > self.LARGEST:
            return None
        return np.asarray(value, float).ravel()
