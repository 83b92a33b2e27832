"""Small picture files by the batch: what their headers say is seen for all of them at once.

To decode a small picture takes less time than to look at it by operations of its own, so these look
at a whole batch, and only what is not plain goes the long way of `prepare_image`. Either way gives
the same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasmtl.decoding import MOST_PIXELS, PARALLEL, SHORTEST_JPEG, WORTH, reduction
from kerasmtl.inputs import enlarged, own_function, reduced, resize_image, scaled, with_care

if TYPE_CHECKING:
    import tensorflow as tf

SMALL = 2**16  # bytes of a file, on average, up to which reading by the batch pays
_SAMPLE = 64  # files whose length is looked up
_JFIF, _TABLE, _TABLES = b"\xff\xd8\xff\xe0\0\x10", b"\xff\xdb\0\x43", b"\xff\xdb\0\x84"
_JPEG_END, _PNG_END = b"\xff\xd9", b"IEND\xaeB`\x82"
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0"
_TAIL = len(_PNG_END)  # bytes that are compared at the end of a file


def are_small(paths: Sequence[str]) -> bool:
    """Whether files are small enough that it pays to read them by the batch."""
    chosen = [paths[at] for at in range(0, len(paths), -(-len(paths) // _SAMPLE))]
    return sum(os.path.getsize(path) for path in chosen) <= SMALL * len(chosen)


def read_files(paths: tf.Tensor) -> tf.Tensor:
    """The bytes of files, (batch,) string."""
    import tensorflow as tf

    return _each(tf.io.read_file, paths, tf.TensorSpec((), tf.string))


def prepare_files(data: tf.Tensor, paths: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Bytes of pictures, (batch,), `mended`, as float32 (batch, *size, 3): as `read_image`."""
    import tensorflow as tf

    pixels = tf.TensorSpec((*size, 3), tf.float32)
    plain, sides = plain_sides(data, size)

    def same() -> tf.Tensor:  # scaled all at once
        spec = tf.TensorSpec((*size, 3), tf.uint8)
        return scaled(_each(lambda one: tf.ensure_shape(_decode(one), spec.shape), data, spec))

    def resized(resize: Callable[[tf.Tensor, tuple[int, int]], tf.Tensor]) -> tf.Tensor:
        return _each(
            lambda one: tf.ensure_shape(resize(_decode(one), size), pixels.shape), data, pixels
        )

    ways = [
        lambda: _one_by_one(size)(data, paths, plain),
        same,
        partial(resized, enlarged),
        partial(resized, reduced),
    ]
    smaller = tf.reduce_all(sides <= size, axis=-1)
    fit = [tf.reduce_all(sides == size), tf.reduce_all(smaller), tf.reduce_all(~smaller)]
    way = tf.where(tf.reduce_any(fit) & tf.reduce_all(plain), tf.argmax(fit) + 1, 0)
    images = tf.switch_case(tf.cast(way, tf.int32), ways)
    return tf.ensure_shape(images, (None, *size, 3))


@lru_cache(maxsize=16)
def _one_by_one(size: tuple[int, int]) -> Callable[..., tf.Tensor]:
    """From bytes, (batch,), their names and which are plain to images, traced once."""
    import tensorflow as tf

    plainly, careful = own_function(lambda data: resize_image(_decode(data), size)), with_care(size)

    def one(given: tuple[tf.Tensor, ...]) -> tf.Tensor:
        data, path, plain = given
        return tf.cond(plain, lambda: plainly(data), lambda: careful(data, path))

    pixels = tf.TensorSpec((*size, 3), tf.float32)
    return own_function(lambda *given: _each(one, given, pixels))


def plain_sides(data: tf.Tensor, size: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Which files, (batch,), are plain, and their height and width, int64 (batch, 2).

    Plain is a whole JPEG that starts with a JFIF segment, its tables and its frame, as most do, or
    a whole PNG: it needs no turning, and is decoded at its own size. Others have wrong sizes.
    """
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
    whole = (length <= WORTH) | (reduction(sides, size) == 0)
    return tf.reduce_any(matches, axis=-1) & fine & whole & (length >= SHORTEST_JPEG), sides


def _each(function: Callable[..., tf.Tensor], items: Any, spec: tf.TensorSpec) -> tf.Tensor:
    import tensorflow as tf

    return tf.map_fn(function, items, fn_output_signature=spec, parallel_iterations=PARALLEL)


def _decode(data: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    return tf.io.decode_image(data, channels=3, expand_animations=False)


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
            known = {0: _JFIF, **tables, frame: kind, -2: _JPEG_END}
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
