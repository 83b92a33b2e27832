"""From the bytes of a picture to its pixels, by TensorFlow operations alone.

What a header says is looked at before anything is decoded: how large the picture is, which way up
it is shown, and how it can be decoded for less.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from kerasmtl.exif import orientation_of_jpeg, turned
from kerasmtl.picture_headers import bmp_verdict, gif_verdict, png_verdict, webp_verdict

if TYPE_CHECKING:
    import tensorflow as tf

RATIOS = (2, 4, 8)  # at which a JPEG can be decoded for less
# How far a JPEG decoded at a reduced size must exceed the wanted one. At 1.5, street photographs at
# 96 to 384 pixels differ from the full decode by 1/255 on average, and by 6/255 in one of a hundred
# values; at 2 by 1 and 4, at 1 by 2 and 12.
SPARE = 1.5
WORTH = 2**14  # bytes, below which a JPEG is decoded whole
MOST_PIXELS = 2 * (1024**3 // 4 // 3)  # where Pillow, too, speaks of a decompression bomb
HEAD = 2**18  # bytes that are searched for the orientation
SHORTEST_JPEG = 100  # bytes; its tables alone are longer
_WHOLE, _PALETTE, _WEBP = 0, len(RATIOS) + 1, len(RATIOS) + 2
_STARTS = (b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"RIFF")


class Look(NamedTuple):
    """What the header of a picture says; each of shape ().

    `reason`, string: why it cannot be decoded, "" if it can; `way`, int32: how to decode it;
    `orientation`, int32: that of EXIF, 1 to 8.
    """

    reason: tf.Tensor
    way: tf.Tensor
    orientation: tf.Tensor


def look_at(
    data: tf.Tensor, size: tuple[int, int] | None = None, most_pixels: int = MOST_PIXELS
) -> Look:
    """What the header of a picture says, before anything is decoded.

    Shapes: data () string. With the size (height, width) that it will be resized to, a large JPEG
    is to be decoded at 1/2, 1/4 or 1/8 of its height and width, the smallest that is still `SPARE`
    times as high and wide as wanted.
    """
    import tensorflow as tf

    return Look(
        *tf.cond(
            tf.io.is_jpeg(data) & (tf.strings.length(data) >= SHORTEST_JPEG),
            lambda: _look_at_jpeg(data, size, most_pixels),
            lambda: _look_at_others(data, most_pixels),
        )
    )


def decode(data: tf.Tensor, look: Look) -> tf.Tensor:
    """The pixels of a picture whose `look.reason` is "": uint8 (height, width, 3), RGB."""
    import tensorflow as tf

    def whole(channels: int = 3) -> tf.Tensor:
        found = tf.io.decode_image(data, channels=channels, expand_animations=False)
        return tf.ensure_shape(found, (None, None, None))[..., :3]

    ways = [whole]
    ways += [partial(tf.io.decode_jpeg, data, channels=3, ratio=ratio) for ratio in RATIOS]
    ways += [partial(_palette_bmp, data), partial(whole, 0)]
    pixels = tf.switch_case(look.way, ways)
    pixels = tf.cond(look.orientation > 1, lambda: turned(pixels, look.orientation), lambda: pixels)
    pixels.set_shape((None, None, 3))
    return pixels


def _look_at_jpeg(data: tf.Tensor, size: tuple[int, int] | None, most: int) -> tuple:
    import tensorflow as tf

    head = tf.io.decode_raw(tf.strings.substr(data, 0, HEAD), tf.uint8)
    start, orientation = orientation_of_jpeg(head)
    shape = tf.io.extract_jpeg_shape(data, tf.int64)[:2]
    whole = tf.cond(
        tf.strings.substr(data, -2, 2) == b"\xff\xd9",
        lambda: tf.constant(True),
        lambda: _has_end(data, start),
    )
    reason = tf.cond(
        whole, lambda: verdict(shape[0], shape[1], most), lambda: tf.constant("truncated")
    )
    way = tf.constant(_WHOLE)
    if size is not None:
        shown = tf.cond(orientation > 4, lambda: shape[::-1], lambda: shape)
        worth = tf.strings.length(data) > WORTH
        way = tf.where(worth, _reduction(shown, size), _WHOLE)
    return reason, way, orientation


def _has_end(data: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Whether a JPEG's end stands anywhere behind its first segments: more bytes may follow."""
    import tensorflow as tf

    rest = tf.io.decode_raw(data, tf.uint8)[start:]
    return tf.reduce_any((rest[:-1] == 0xFF) & (rest[1:] == 0xD9))


def _reduction(shape: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """How many of `RATIOS` leave enough of a JPEG, ()."""
    import tensorflow as tf

    left = tf.cast(shape[:, None] // tf.constant(RATIOS, tf.int64), tf.float32)
    enough = tf.reduce_all(left >= tf.constant(size, tf.float32)[:, None] * SPARE, axis=0)
    return tf.reduce_sum(tf.cast(enough, tf.int32))


def _look_at_others(data: tf.Tensor, most: int) -> tuple:
    import tensorflow as tf

    first = tf.strings.substr(data, 0, 8)
    kinds = [tf.strings.substr(first, 0, len(start)) == start for start in _STARTS]
    kind = tf.where(tf.reduce_any(kinds), tf.argmax(kinds, output_type=tf.int32), len(kinds))
    verdicts = (png_verdict, gif_verdict, bmp_verdict, webp_verdict)
    branches = [partial(look, data, partial(verdict, most=most)) for look in verdicts]
    branches.append(lambda: (_no_picture(data), tf.constant(False)))
    reason, special = tf.switch_case(kind, branches)
    way = tf.where(special, tf.constant((_WHOLE, _WHOLE, _PALETTE, _WEBP, _WHOLE))[kind], _WHOLE)
    return reason, way, tf.constant(1)


def _no_picture(data: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    return tf.where(
        tf.strings.length(data) == 0, "empty", "not a picture: no JPEG, PNG, GIF, BMP or WebP"
    )


def verdict(height: tf.Tensor, width: tf.Tensor, most: int) -> tf.Tensor:
    """Why a picture of this size, int64 (), is not decoded; "" if it is."""
    import tensorflow as tf

    def too_large() -> tf.Tensor:
        shown = [tf.strings.as_string(number) for number in (height, width)]
        return tf.strings.join(["of ", *shown[:1], " x ", *shown[1:], f" pixels, more than {most}"])

    none = (height < 1) | (width < 1)
    large = ~none & (height * width > most)
    return tf.cond(large, too_large, lambda: tf.where(none, "damaged: it has no size", ""))


def _palette_bmp(data: tf.Tensor) -> tf.Tensor:
    """A BMP of 1, 2, 4 or 8 bits a pixel, of which TensorFlow takes the palette's places for grey.

    Source: https://learn.microsoft.com/windows/win32/gdi/bitmap-storage
    """
    import tensorflow as tf

    from kerasmtl.picture_headers import bmp_layout

    raw = tf.io.decode_raw(data, tf.uint8)
    at = bmp_layout(raw)
    first = 14 + at.header
    colours = tf.reshape(raw[first : first + 4 * at.colours], (-1, 4))[:, 2::-1]
    # A place beyond the palette is black.
    palette = tf.pad(colours, [[0, 256 - tf.shape(colours)[0]], [0, 0]])
    rows = tf.reshape(
        raw[at.offset : at.offset + at.stride * at.height], tf.stack([at.height, at.stride])
    )
    shifts = tf.cast(tf.range(8 - at.bits, -1, -at.bits), tf.int32)
    places = tf.bitwise.right_shift(tf.cast(rows, tf.int32)[..., None], shifts)
    places = tf.bitwise.bitwise_and(places, tf.cast(2**at.bits - 1, tf.int32))
    places = tf.reshape(places, tf.stack([at.height, -1]))[:, : at.width]
    pixels = tf.gather(palette, places)
    return tf.cond(at.upwards, lambda: pixels[::-1], lambda: pixels)
