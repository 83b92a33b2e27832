"""From the bytes of a picture to its pixels, by TensorFlow operations alone.

What a header says is looked at before anything is decoded: how large the picture is, which way up
it is shown, and how it can be decoded for less.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from kerasmtl.exif import orientation_of_jpeg, turned
from kerasmtl.picture_headers import (
    LONGEST_SIDE,
    bmp_layout,
    read_bmp,
    read_gif,
    read_png,
    read_webp,
)

if TYPE_CHECKING:
    import tensorflow as tf

RATIOS = (2, 4, 8)  # at which a JPEG can be decoded for less
# How far a JPEG decoded at a reduced size must exceed the wanted one. At 1.5, street photographs at
# 96 to 384 pixels differ from the full decode by 1/255 on average, and by 6/255 in one of a hundred
# values; at 2 by 1 and 4, at 1 by 2 and 12.
SPARE = 1.5
WORTH = 2**14  # bytes, below which a JPEG is decoded whole
MOST_PIXELS = 2 * (1024**3 // 4 // 3)  # where Pillow, too, speaks of a decompression bomb
PARALLEL = 32  # pictures of a batch at a time, as far as there are cores
HEAD = 2**18  # bytes that are searched for the orientation
SHORTEST_JPEG = 100  # bytes; its tables alone are longer
_WHOLE, _PALETTE, _WEBP = 0, len(RATIOS) + 1, len(RATIOS) + 2
_STARTS = (b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"RIFF")


class Look(NamedTuple):
    """What the headers of pictures say, of the shape of the data: () or (batch,).

    `reason`, string: why it cannot be decoded, "" if it can; `way`, int32: how to decode it;
    `orientation`, int32: that of EXIF, 1 to 8.
    """

    reason: tf.Tensor
    way: tf.Tensor
    orientation: tf.Tensor


def look_at(
    data: tf.Tensor,
    size: tuple[int, int] | None = None,
    most_pixels: int = MOST_PIXELS,
) -> Look:
    """What the headers of pictures say, before anything is decoded.

    Shapes: data () or (batch,) string. With the size (height, width) that they will be resized to,
    a large JPEG is to be decoded at 1/2, 1/4 or 1/8 of its height and width, the smallest that is
    still `SPARE` times as high and wide as wanted.
    """
    import tensorflow as tf

    jpeg, plain = _plain_jpegs(data)
    header = _header if data.shape.rank == 0 else _headers
    reason, way, orientation, sides = header((data, jpeg, plain))
    reason = tf.where(reason == "", _verdict(sides, most_pixels), reason)
    if size is not None:
        worth = jpeg & (tf.strings.length(data) > WORTH)
        way = tf.where(worth, reduction(sides, orientation, size), way)
    return Look(reason, way, orientation)


def decode(data: tf.Tensor, look: Look, common: bool = False) -> tf.Tensor:
    """The pixels of a picture whose `look.reason` is "": uint8 (height, width, 3), RGB.

    `common`: it is a JPEG, PNG or GIF; the smaller graph is ready sooner.
    """
    import tensorflow as tf

    def whole(channels: int = 3) -> tf.Tensor:
        found = tf.io.decode_image(data, channels=channels, expand_animations=False)
        return tf.ensure_shape(found, (None, None, None))[..., :3]

    ways = [whole]
    ways += [partial(tf.io.decode_jpeg, data, channels=3, ratio=ratio) for ratio in RATIOS]
    if not common:
        ways += [partial(_palette_bmp, data), partial(whole, 0)]
    pixels = tf.switch_case(look.way, ways)
    pixels = tf.cond(look.orientation > 1, lambda: turned(pixels, look.orientation), lambda: pixels)
    pixels.set_shape((None, None, 3))
    return pixels


def _plain_jpegs(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Which are JPEGs, and which of them end where they should and can have no EXIF.

    In most, the tables come first, or behind one JFIF segment of 16 bytes; to see that for a whole
    batch at once is cheap.
    """
    import tensorflow as tf

    head = tf.io.decode_raw(data, tf.uint8, fixed_length=24)
    last = tf.strings.substr(tf.strings.join([b"\0\0", data]), -2, 2)

    def are(at: int, *values: int) -> tf.Tensor:
        return tf.reduce_all(head[..., at : at + len(values)] == values, axis=-1)

    jpeg = are(0, 0xFF, 0xD8, 0xFF) & (tf.strings.length(data) >= SHORTEST_JPEG)
    jfif = are(3, 0xE0, 0, 16) & are(20, 0xFF, 0xDB)
    return jpeg, jpeg & (last == b"\xff\xd9") & (jfif | are(3, 0xDB))


def _headers(given: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, ...]:
    """Of a batch, what `_header` says of each."""
    import tensorflow as tf

    data, _, plain = given
    side = tf.TensorSpec((2,), tf.int64)

    def upright() -> tuple[tf.Tensor, ...]:
        sides = tf.map_fn(_jpeg_sides, data, fn_output_signature=side, parallel_iterations=PARALLEL)
        none = tf.zeros_like(plain, tf.int32)
        return tf.fill(tf.shape(data), ""), none + _WHOLE, none + 1, sides

    def mixed() -> tuple[tf.Tensor, ...]:
        kinds = (tf.string, tf.int32, tf.int32, side)
        return tf.map_fn(_header, given, fn_output_signature=kinds, parallel_iterations=PARALLEL)

    return tf.cond(tf.reduce_all(plain), upright, mixed)


def _jpeg_sides(data: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    return tf.io.extract_jpeg_shape(data, tf.int64)[:2]


def _header(given: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, ...]:
    """Of one picture: what is wrong, the way to decode it whole, orientation, height and width."""
    import tensorflow as tf

    data, jpeg, plain = given

    def upright() -> tuple[tf.Tensor, ...]:
        return tf.constant(""), tf.constant(_WHOLE), tf.constant(1), _jpeg_sides(data)

    return tf.cond(
        plain, upright, lambda: tf.cond(jpeg, partial(_any_jpeg, data), partial(_others, data))
    )


def _any_jpeg(data: tf.Tensor) -> tuple[tf.Tensor, ...]:
    import tensorflow as tf

    head = tf.io.decode_raw(tf.strings.substr(data, 0, HEAD), tf.uint8)
    start, orientation = orientation_of_jpeg(head)
    rest = tf.io.decode_raw(data, tf.uint8)[start:]
    # More bytes may follow the end; a thumbnail's end, which stands in EXIF, does not count.
    whole = tf.reduce_any((rest[:-1] == 0xFF) & (rest[1:] == 0xD9))
    reason = tf.where(whole, "", "truncated")
    return reason, tf.constant(_WHOLE), orientation, _jpeg_sides(data)


def _others(data: tf.Tensor) -> tuple[tf.Tensor, ...]:
    import tensorflow as tf

    first = tf.strings.substr(data, 0, 8)
    kinds = [tf.strings.substr(first, 0, len(start)) == start for start in _STARTS]
    kind = tf.where(tf.reduce_any(kinds), tf.argmax(kinds, output_type=tf.int32), len(kinds))
    readers = (read_png, read_gif, read_bmp, read_webp, _read_nothing)
    reason, special, sides = tf.switch_case(kind, [partial(read, data) for read in readers])
    way = tf.where(special, tf.constant((_WHOLE, _WHOLE, _PALETTE, _WEBP, _WHOLE))[kind], _WHOLE)
    return reason, way, tf.constant(1), sides


def _read_nothing(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    import tensorflow as tf

    what = "not a picture: no JPEG, PNG, GIF, BMP or WebP"
    reason = tf.where(tf.strings.length(data) == 0, "empty", what)
    return reason, tf.constant(False), tf.zeros((2,), tf.int64)


def _verdict(sides: tf.Tensor, most: int) -> tf.Tensor:
    """Why pictures of these sizes, int64 (…, 2), are not decoded; "" if they are."""
    import tensorflow as tf

    shown = tf.strings.reduce_join(tf.strings.as_string(sides), axis=-1, separator=" x ")
    shown = tf.strings.join(["of ", shown, f" pixels, more than {most}"])
    none = tf.reduce_any(sides < 1, axis=-1)
    large = tf.reduce_prod(tf.minimum(sides, LONGEST_SIDE), axis=-1) > most
    return tf.where(none, "damaged: it has no size", tf.where(large, shown, ""))


def reduction(sides: tf.Tensor, orientation: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """How many of `RATIOS` leave enough of JPEGs of these sizes, (…, 2), and orientations, (…)."""
    import tensorflow as tf

    shown = tf.where((orientation > 4)[..., None], sides[..., ::-1], sides)
    ratios = tf.constant(RATIOS, tf.int64)[:, None]
    left = tf.cast(shown[..., None, :] // ratios, tf.float32)
    enough = tf.reduce_all(left >= tf.constant(size, tf.float32) * SPARE, axis=-1)
    return tf.reduce_sum(tf.cast(enough, tf.int32), axis=-1)


def _palette_bmp(data: tf.Tensor) -> tf.Tensor:
    """A BMP of 1, 2, 4 or 8 bits a pixel, of which TensorFlow takes the palette's places for grey.

    Source: https://learn.microsoft.com/windows/win32/gdi/bitmap-storage
    """
    import tensorflow as tf

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
