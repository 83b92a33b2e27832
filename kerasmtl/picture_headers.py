"""What the headers of PNG, GIF, BMP and WebP say, by TensorFlow operations alone.

Each reader takes the bytes, () string, and gives what is wrong with them ("" if nothing is seen),
whether TensorFlow's common decoder is not enough for them, and height and width, int64 (2,).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import tensorflow as tf

    Read = tuple[tf.Tensor, tf.Tensor, tf.Tensor]

LONGEST = 64  # bytes of a header
LONGEST_SIDE = 2**28  # pixels; products of two such sides still fit into int64
# TensorFlow 2.21 writes beyond its memory when it is asked for the first frame of one.
MOVING = "an animated WebP, which is not decoded. Make it a GIF"
_PNG_END = b"IEND\xaeB`\x82"


class Bmp(NamedTuple):
    """Where what is in a BMP; int64 (), lengths in bytes, and `upwards`, bool ()."""

    offset: tf.Tensor
    header: tf.Tensor
    width: tf.Tensor
    height: tf.Tensor
    bits: tf.Tensor
    compression: tf.Tensor
    colours: tf.Tensor
    stride: tf.Tensor
    upwards: tf.Tensor


def read_png(data: tf.Tensor) -> Read:
    """Source: https://www.w3.org/TR/png-3/#11IHDR"""
    import tensorflow as tf

    head = _head(data)
    length = len(_PNG_END)
    whole = tf.cond(
        tf.strings.substr(data, -length, length) == _PNG_END,  # a header is longer than that
        lambda: tf.constant(True),
        lambda: _ends_early(data),
    )
    sides = tf.stack([_number(head, 20, 4, big=True), _number(head, 16, 4, big=True)])
    return tf.where(whole, "", "truncated"), tf.constant(False), sides


def read_gif(data: tf.Tensor) -> Read:
    """Source: https://www.w3.org/Graphics/GIF/spec-gif89a.txt, section 18."""
    import tensorflow as tf

    head = _head(data)
    sides = tf.stack([_number(head, 8, 2), _number(head, 6, 2)])
    return tf.constant(""), tf.constant(False), sides


def read_bmp(data: tf.Tensor) -> Read:
    """Source: https://learn.microsoft.com/windows/win32/gdi/bitmap-storage"""
    import tensorflow as tf

    at = bmp_layout(_head(data))
    palette = at.bits <= 8
    length = tf.cast(tf.strings.length(data), tf.int64)
    kinds = tf.constant((1, 2, 4, 8, 24, 32), tf.int64)
    unusual = (
        (at.header < 40)
        | ~tf.reduce_any(kinds == at.bits)
        | (palette & (at.compression != 0))
        | ~tf.reduce_any(tf.constant((0, 3), tf.int64) == at.compression)
    )
    cut = length < at.offset + at.stride * at.height
    kind = "a BMP of a kind that is not decoded, compressed or of 16 bits. Make it a PNG"
    reason = tf.where(unusual, kind, tf.where(cut, "truncated", ""))
    return reason, palette, tf.stack([at.height, at.width])


def read_webp(data: tf.Tensor) -> Read:
    """Source: https://www.rfc-editor.org/rfc/rfc9649"""
    import tensorflow as tf

    head = _head(data)
    name = tf.strings.substr(tf.strings.join([data, b"\0" * 16]), 8, 8)
    lossless = _number(head, 21, 4)
    sides = tf.stack(
        [
            [_number(head, 28, 2) % 2**14, _number(head, 26, 2) % 2**14],
            [lossless // 2**14 % 2**14 + 1, lossless % 2**14 + 1],
            [_number(head, 27, 3) + 1, _number(head, 24, 3) + 1],
        ]
    )
    kinds = name == tf.constant([b"WEBPVP8 ", b"WEBPVP8L", b"WEBPVP8X"])
    whole = tf.cast(tf.strings.length(data), tf.int64) >= _number(head, 4, 4) + 8
    animated = kinds[2] & (head[20] // 2 % 2 == 1)
    reason = tf.where(whole, tf.where(animated, MOVING, ""), "truncated")
    reason = tf.where(tf.reduce_any(kinds), reason, "not a picture: RIFF, but no WebP")
    return reason, tf.constant(True), sides[tf.argmax(kinds)]


def bmp_layout(raw: tf.Tensor) -> Bmp:
    """Where what is in a BMP, from its bytes, (length,) uint8, of which the first 64 are enough."""
    import tensorflow as tf

    rows = _number(raw, 22, 4)
    upwards = rows < 2**31
    height = tf.minimum(tf.where(upwards, rows, 2**32 - rows), LONGEST_SIDE)
    width = tf.minimum(_number(raw, 18, 4), LONGEST_SIDE)
    bits, colours = _number(raw, 28, 2), _number(raw, 46, 4)
    return Bmp(
        offset=_number(raw, 10, 4),
        header=_number(raw, 14, 4),
        width=width,
        height=height,
        bits=bits,
        compression=_number(raw, 30, 4),
        colours=tf.where((colours < 1) | (colours > 256), 2 ** tf.minimum(bits, 8), colours),
        stride=(width * bits + 31) // 32 * 4,
        upwards=upwards,
    )


def _ends_early(data: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    raw = tf.io.decode_raw(data, tf.uint8)
    length = tf.size(raw) - len(_PNG_END) + 1
    hits = [raw[at : length + at] == byte for at, byte in enumerate(_PNG_END)]
    return tf.reduce_any(tf.reduce_all(hits, axis=0))


def _head(data: tf.Tensor) -> tf.Tensor:
    """The first bytes, (64,) uint8, zeros behind the end."""
    import tensorflow as tf

    return tf.io.decode_raw(data, tf.uint8, fixed_length=LONGEST)


def _number(raw: tf.Tensor, at: int, length: int, big: bool = False) -> tf.Tensor:
    """The unsigned number in these bytes, int64 ()."""
    import tensorflow as tf

    powers = [256**place for place in range(length)]
    weights = tf.constant(powers[::-1] if big else powers, tf.int64)
    return tf.reduce_sum(tf.cast(raw[at : at + length], tf.int64) * weights)
