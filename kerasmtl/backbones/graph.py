"""Facts read from the graph of a module's call, which is not run."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from kerasmtl.backbones.flat_graph import FlatGraph, captured_as
from kerasmtl.backbones.pixels import range_of, values_before_first_layer

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
