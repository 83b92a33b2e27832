"""The pixel range that a call expects, read from what it does to a picture before any layer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
CHOICES = {"If", "StatelessIf", "Case", "StatelessCase"}
LOOPS = {"While", "StatelessWhile"}


@dataclass
class Node:
    """An operation, and the numbers of the nodes whose values it takes."""

    op: str
    attr: Mapping[str, Any] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)


class FlatGraph:
    """A concrete function as one list of nodes, numbered in program order.

    A call is replaced by the nodes of its function, its arguments and results by "Identity" nodes.
    The results of an If, Case or While are nodes of that name, which take the results of every
    branch. A node stands for all outputs of its operation; control inputs are left out.

    Args:
        function: a concrete function, traced here or restored from a SavedModel.

    Attributes:
        nodes: the operations.
        arguments: the numbers of the nodes that take what the caller passes.
        captures: the numbers of the nodes that take `function.captured_inputs`.
        outputs: the numbers of the nodes that give the results.
    """

    def __init__(self, function: Any) -> None:
        definition = function.graph.as_graph_def()
        self._library = {entry.signature.name: entry for entry in definition.library.function}
        self.nodes: list[Node] = []
        found = self._expand(definition.node, {})
        inputs = [_pick(found, tensor.name) for tensor in function.inputs]
        passed = len(inputs) - len(function.captured_inputs)
        self.arguments, self.captures = inputs[:passed], inputs[passed:]
        self.outputs = [_pick(found, tensor.name) for tensor in function.outputs]

    def consumers(self) -> list[list[int]]:
        """Of every node, the nodes that take its value, in program order."""
        taken: list[list[int]] = [[] for _ in self.nodes]
        for number, node in enumerate(self.nodes):
            for source in dict.fromkeys(node.inputs):
                taken[source].append(number)
        return taken

    def from_input_to_output(self) -> list[int]:
        """The numbers of the nodes, each after all that it takes (program order need not be)."""
        nodes, consumers = self.nodes, self.consumers()
        # The loops of TF1 are cycles, closed by NextIteration.
        missing = [
            sum(nodes[source].op != "NextIteration" for source in set(node.inputs))
            for node in nodes
        ]
        order = [number for number, count in enumerate(missing) if count == 0]
        for number in order:  # grows while it is read
            if nodes[number].op == "NextIteration":
                continue
            for consumer in consumers[number]:
                missing[consumer] -= 1
                if missing[consumer] == 0:
                    order.append(consumer)
        return order

    def leading_to(self, ends: Iterable[int]) -> set[int]:
        """The numbers of the nodes that `ends` depend on, themselves included."""
        return _reachable(ends, [node.inputs for node in self.nodes])

    def reached_from(self, starts: Iterable[int]) -> set[int]:
        """The numbers of the nodes that depend on `starts`, themselves included."""
        return _reachable(starts, self.consumers())

    def _add(self, op: str, attr: Mapping[str, Any] | None = None) -> int:
        self.nodes.append(Node(op, attr or {}))
        return len(self.nodes) - 1

    def _expand(
        self, body: Iterable[tf.compat.v1.NodeDef], found: dict[str, list[int]]
    ) -> dict[str, list[int]]:
        """Add the nodes of a graph or function; the nodes of each name, one for each result."""
        waiting: list[tuple[int, list[str]]] = []  # inputs by name: they may be defined later
        for node in body:
            sources = [text for text in node.input if not text.startswith("^")]
            called = self._called(node)
            if called:
                found[node.name] = self._enter(node, called, sources, waiting)
            else:
                found[node.name] = [self._add(node.op, node.attr)]
                waiting.append((found[node.name][0], sources))
        for number, sources in waiting:
            self.nodes[number].inputs += [_pick(found, text) for text in sources]
        return found

    def _called(self, node: tf.compat.v1.NodeDef) -> list[Any]:
        names = [node.op]
        for value in node.attr.values():
            names += [value.func.name, *(entry.name for entry in value.list.func)]
        return [self._library[name] for name in names if name in self._library]

    def _enter(
        self,
        node: tf.compat.v1.NodeDef,
        called: list[Any],
        sources: list[str],
        waiting: list[tuple[int, list[str]]],
    ) -> list[int]:
        """Add the functions of a call, a choice or a loop; the numbers of its results."""
        plain = node.op in CALLS or node.op in self._library
        entrance = "Identity" if plain or node.op in CHOICES else node.op
        results = []
        for function in called:
            found = {}
            # From the last on: a choice begins with what it chooses by, a data set ends with what
            # its function captures.
            texts = [[text] for text in reversed(sources)]
            for argument in reversed(function.signature.input_arg):
                found[argument.name] = [self._add(entrance)]
                waiting.append((found[argument.name][0], texts.pop(0) if texts else []))
            inner = self._expand(function.node_def, found)
            names = [function.ret[result.name] for result in function.signature.output_arg]
            results.append([_pick(inner, name) for name in names])
        if not plain and node.op not in CHOICES | LOOPS:
            number = self._add(node.op, node.attr)
            self.nodes[number].inputs += [source for result in results for source in result]
            waiting.append((number, sources))
            return [number]
        chosen_by = sources[:1] if node.op in CHOICES else []
        return self._leave("Identity" if plain else node.op, results, chosen_by, waiting)

    def _leave(
        self,
        op: str,
        results: list[list[int]],
        chosen_by: list[str],
        waiting: list[tuple[int, list[str]]],
    ) -> list[int]:
        numbers = []
        for k in range(max(map(len, results))):
            numbers.append(self._add(op))
            self.nodes[numbers[-1]].inputs += [result[k] for result in results if k < len(result)]
            waiting.append((numbers[-1], chosen_by))
        return numbers


def _reachable(starts: Iterable[int], edges: list[list[int]]) -> set[int]:
    reached = set(starts)
    stack = list(reached)
    while stack:
        fresh = set(edges[stack.pop()]) - reached
        reached |= fresh
        stack += fresh
    return reached


def captured_as(variable: tf.Variable) -> Any:
    """What stands for a variable in the `captured_inputs` of a restored call: its very handle.

    In the scope of a `tf.distribute` strategy it is the variable: it has a handle on each device.
    """
    return variable if isinstance(variable, tf.distribute.DistributedValues) else variable.handle


def _pick(found: dict[str, list[int]], text: str) -> int:
    """The node of an input as graphs ("name:1") or functions ("name:result:1") write it."""
    name, *place = text.split(":")
    numbers = found[name]
    position = int(place[-1]) if place else 0
    return numbers[min(position, len(numbers) - 1)]


NEVER = (math.inf,)
OBSTACLES = {
    "it looks words up in a table": r"LookupTable\w*|\w*HashTable\w*",
    "it calls back into Python": r"\w*PyFunc\w*",
    "it reads or writes pictures as files": (
        r"Decode(AndCrop)?(Jpeg|Png|Gif|Bmp|Image|WebP)|Encode(Jpeg|Png)\w*|ExtractJpegShape"
    ),
    "it works on text": (
        r"(Static|Un)?(String|Regex|Unicode|Sentencepiece|Wordpiece)\w+|AsString|Substr|ReduceJoin"
        r"|\w+SegmentJoin|(Decode|Encode)(Base64|Raw|PaddedRaw|CSV|Proto\w*|Compressed)"
        r"|Parse\w+|SerializeTensor"
    ),
    "it reads data, writes or prints": (
        r"\w*Dataset\w*|\w*Iterator\w*|\w*Summary\w*|\w*(Reader|Queue)V2|(Read|Write)File|Print\w*"
        r"|MatchingFiles|(Save|Restore)(V2|Slices?)?|DecodeWav|EncodeWav|Timestamp"
    ),
    "the size of a result depends on the data": (
        r"UniqueWithCounts\w*|ListDiff|NonMaxSuppression(V2|V5|WithOverlaps)?"
        r"|CombinedNonMaxSuppression|Ragged\w+|SparseFillEmptyRows\w*"
    ),
    "XLA lacks an operation of it": (
        r"ResizeBicubic|ResizeArea|ScaleAndTranslate|CropAndResize|DrawBoundingBoxes\w*"
        r"|ImageProjectiveTransform\w*|ExtractGlimpse\w*|Dilation2D|Fractional(Max|Avg)Pool"
        r"|MaxPoolWithArgmax|AudioSpectrogram|Mfcc|SparseTensorDense\w+|SparseReshape"
    ),
}
# XLA lets these keep text: it is never computed with.
MAY_HOLD_TEXT = {"Const", "Assert"}


def variable_order(function: Any, variables: Sequence[tf.Variable]) -> list[int]:
    """The indices of `variables` in the order in which a call first uses them, input to output.

    A variable stands where its value, or what is computed from variables and constants alone,
    first meets data: at the operation whose longest path from the inputs is shortest, then in
    program order. Variables that never meet data come last, in the order given.

    Args:
        function: the concrete function of the call, for inference.
        variables: what to order; those of other modules count as never used.
    """
    flat = FlatGraph(function)
    order = flat.from_input_to_output()
    uses = _first_uses(flat, order, _depths(flat, order))
    places = {
        id(tensor): (*uses[number], number)
        for tensor, number in zip(function.captured_inputs, flat.captures, strict=True)
    }
    keys = [places.get(id(captured_as(variable)), NEVER) for variable in variables]
    keys = [NEVER if key[0] == math.inf else key for key in keys]
    return sorted(range(len(keys)), key=keys.__getitem__)


def input_range(function: Any) -> tuple[float, float] | None:
    """The (lowest, highest) pixel that an image call expects, as its first operations tell it.

    (0, 255), (0, 1) or (-1, 1): the one that these operations bring to a usual range, such as
    [-1, 1] or colours less their mean. Pixels of an integer type are 0 to 255. None if the call
    does not take one batch of images (batch, height, width, 3), starts with a layer, or leaves
    more than one reading.

    Args:
        function: the concrete function of the call, for inference.
    """
    passed = len(function.inputs) - len(function.captured_inputs)
    images = [k for k, x in enumerate(function.inputs[:passed]) if x.shape.rank == 4]
    if len(images) != 1 or function.inputs[images[0]].shape[-1] != 3:
        return None
    dtype = function.inputs[images[0]].dtype
    if dtype in (tf.uint8, tf.int32, tf.int64):
        return 0.0, 255.0
    if not dtype.is_floating:
        return None
    flat = FlatGraph(function)
    values = values_before_first_layer(flat, flat.arguments[images[0]], function.captured_inputs)
    return None if values is None else range_of(*values)


def xla_obstacle(function: Any) -> str | None:
    """Why XLA cannot compile a call, in a few words; None if no reason is in sight.

    None is no promise: XLA may still refuse, and says so only when it compiles.

    Args:
        function: the concrete function of the call.
    """
    if any(tensor.dtype == tf.string for tensor in (*function.inputs, *function.outputs)):
        return "it takes or returns text"
    seen = set()
    for node in FlatGraph(function).nodes:
        if node.op not in MAY_HOLD_TEXT and _holds_text(node.attr):
            return _phrase(node.op, "it works on text")
        seen.add(node.op)
    for op in sorted(seen):
        if _phrase(op):
            return _phrase(op)
    return None


def _phrase(op: str, otherwise: str | None = None) -> str | None:
    reasons = [text for text, pattern in OBSTACLES.items() if re.fullmatch(pattern, op)]
    reason = next(iter(reasons), otherwise)
    return f"{reason} ({op})" if reason else None


def _holds_text(attr: Any) -> bool:
    text = tf.string.as_datatype_enum
    return any(value.type == text or text in value.list.type for value in attr.values())


def _depths(flat: FlatGraph, order: Sequence[int]) -> list[int | None]:
    """The length of the longest path from an argument to each node; None where there is none."""
    depths: list[int | None] = [None] * len(flat.nodes)
    for number in flat.arguments:
        depths[number] = 0
    for number in order:
        node = flat.nodes[number]
        above = [depths[source] for source in node.inputs if depths[source] is not None]
        if above:
            depths[number] = max(above) + (node.op != "Identity")
    return depths


def _first_uses(
    flat: FlatGraph, order: Sequence[int], depths: Sequence[int | None]
) -> list[tuple[float, ...]]:
    """Where the value of each node first meets data: (depth, node, which of its inputs)."""
    uses: list[tuple[float, ...]] = [NEVER] * len(flat.nodes)
    for number in reversed(order):
        node = flat.nodes[number]
        for position, source in enumerate(node.inputs):
            if depths[number] is not None:
                use = (depths[number], number, position)
            else:
                use = uses[number]
            uses[source] = min(uses[source], use)
    return uses


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
