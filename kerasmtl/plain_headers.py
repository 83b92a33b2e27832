"""Which picture files start and end as most do, and how large those pictures are.

By few TensorFlow operations, for a whole batch at once: what a header says is then known for less
than it takes to decode a small picture.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from kerasmtl.decoding import MOST_PIXELS, SHORTEST_JPEG
from kerasmtl.graphs import traced
from kerasmtl.jpeg_header import JPEG_END

if TYPE_CHECKING:
    import tensorflow as tf

_JFIF, _TABLE, _TABLES = b"\xff\xd8\xff\xe0\0\x10", b"\xff\xdb\0\x43", b"\xff\xdb\0\x84"
_PNG_END = b"IEND\xaeB`\x82"
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0"
_TAIL = len(_PNG_END)  # bytes that are compared at the end of a file


def plain_sides(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Which files, (batch,), are plain, and their height and width, int64 (batch, 2).

    Plain is a whole JPEG that starts with a JFIF segment, its tables and its frame, or a whole PNG,
    of a size that is decoded: it needs no turning. The sides of others mean nothing.
    """
    return _looked()(data)


@lru_cache(maxsize=1)
def _looked() -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    return traced(_look)


def _look(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    import tensorflow as tf

    length = tf.strings.length(data)
    tail = tf.strings.substr(data, tf.maximum(length - _TAIL, 0), tf.fill(tf.shape(data), _TAIL))
    parts = [
        tf.io.decode_raw(data, tf.uint8, fixed_length=_HEAD),
        tf.io.decode_raw(tail, tf.uint8, fixed_length=_TAIL),
    ]
    ends = tf.concat(parts, axis=-1)
    matches = tf.reduce_all((ends[:, None] == _VALUES) | ~_KNOWN, axis=-1)
    places = tf.gather(_PLACES, tf.argmax(matches, axis=-1))
    digits = tf.cast(tf.gather(ends, places, batch_dims=1), tf.int64)
    sides = digits[..., 0] * 256 + digits[..., 1]
    fine = tf.reduce_all(sides > 0, axis=-1) & (tf.reduce_prod(sides, axis=-1) <= MOST_PIXELS)
    return tf.reduce_any(matches, axis=-1) & fine & (length >= SHORTEST_JPEG), sides


Layout = tuple[dict[int, bytes], tuple[tuple[int, int], tuple[int, int]]]


def _layouts() -> list[Layout]:
    """Known bytes by their place, and where the two bytes of height and of width are.

    Places below 0 count from the end. The frame of a JPEG follows one table (grey), two, or two in
    one segment; it is that of a baseline or of a progressive one.
    """
    found: list[Layout] = []
    for tables in ({20: _TABLE}, {20: _TABLE, 89: _TABLE}, {20: _TABLES}):
        frame = max(tables) + (134 if _TABLES in tables.values() else 69)
        for kind in (b"\xff\xc0", b"\xff\xc2"):
            known = {0: _JFIF, **tables, frame: kind, -2: JPEG_END}
            found.append((known, ((frame + 5, frame + 6), (frame + 7, frame + 8))))
    found.append(({0: _PNG, 20: b"\0\0", -_TAIL: _PNG_END}, ((22, 23), (18, 19))))
    return found


def _arrays(layouts: list[Layout]) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    head = 1 + max(place for _, places in layouts for pair in places for place in pair)
    values = np.zeros((len(layouts), head + _TAIL), "uint8")
    known = np.zeros(values.shape, bool)
    for row, (parts, _) in enumerate(layouts):
        for at, part in parts.items():
            first = at if at >= 0 else head + _TAIL + at
            values[row, first : first + len(part)] = list(part)
            known[row, first : first + len(part)] = True
    return head, values, known, np.array([places for _, places in layouts])


_HEAD, _VALUES, _KNOWN, _PLACES = _arrays(_layouts())
