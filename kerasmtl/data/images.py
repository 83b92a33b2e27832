"""Which picture files start and end as most do, and how large those pictures are.

By few TensorFlow operations, for a whole batch at once: what a header says is then known for less
than it takes to decode a small picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from kerasmtl.utils.tf import traced

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


ORIENTATION = 0x0112
LONG = 4  # the type of a number of four bytes
EXIF = b"Exif\0\0"
ROOM = 16  # zeros behind the end, so that a place just behind it can be looked at


def orientation_of_jpeg(head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Where a JPEG's APP and comment segments end, and its orientation, 1 to 8; int32 ().

    Shapes: head (bytes,) uint8, the beginning of the file. Where EXIF is absent or makes no sense
    it is 1, as it stands.
    """
    import tensorflow as tf

    head = tf.pad(head, [[0, ROOM]])
    start, exif = _segments(head)
    orientation = tf.cond(
        exif > 0, lambda: _orientation(head[exif : exif + 2**16]), lambda: tf.constant(1)
    )
    return start, orientation


def turned(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Pixels (height, width, 3) as they are shown; 5 to 8 swap height and width."""
    import tensorflow as tf

    def among(*orientations: int) -> tf.Tensor:
        return tf.reduce_any(orientation == tf.constant(orientations))

    pixels = tf.cond(
        orientation > 4, lambda: tf.transpose(pixels, (1, 0, 2)), lambda: tf.identity(pixels)
    )
    down = tf.where(among(3, 4, 7, 8), -1, 1)
    right = tf.where(among(2, 3, 6, 7), -1, 1)
    return pixels[::down, ::right]


def _segments(head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Where the APP and comment segments end, and where the first EXIF begins, -1 if none does."""
    import tensorflow as tf

    length = tf.size(head) - ROOM
    mark = tf.io.decode_raw(tf.constant(EXIF), tf.uint8)

    def more(at: tf.Tensor, exif: tf.Tensor) -> tf.Tensor:
        kind = head[at + 1]
        return (at < length) & (head[at] == 0xFF) & ((kind >= 0xE0) & (kind < 0xF0) | (kind == 254))

    def step(at: tf.Tensor, exif: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        ours = (head[at + 1] == 0xE1) & tf.reduce_all(head[at + 4 : at + 10] == mark)
        exif = tf.where(ours & (exif < 0), at + 10, exif)
        return tf.minimum(at + 2 + tf.maximum(_big(head, at + 2), 2), length), exif

    return tf.while_loop(more, step, (tf.constant(2), tf.constant(-1)))


def _orientation(tiff: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    little = tf.reduce_all(tiff[:2] == ord("I"))
    big = tf.reduce_all(tiff[:2] == ord("M"))

    def number(raw: tf.Tensor) -> tf.Tensor:
        """Bytes (…, 2 or 4) as numbers (…)."""
        powers = 256 ** tf.range(tf.shape(raw, tf.int64)[-1])
        powers = tf.where(little, powers, powers[::-1])
        return tf.reduce_sum(tf.cast(raw, tf.int64) * powers, axis=-1)

    first = number(tiff[4:8])
    count = number(tiff[first : first + 2])
    entries = tiff[first + 2 : first + 2 + 12 * count]
    entries = tf.reshape(entries[: tf.size(entries) // 12 * 12], (-1, 12))
    ours = tf.boolean_mask(entries, number(entries[:, :2]) == ORIENTATION)[:1]
    long = number(ours[:, 2:4]) == LONG
    values = tf.where(long, number(ours[:, 8:12]), number(ours[:, 8:10]))
    value = tf.cast(tf.reduce_sum(values), tf.int32)
    known = (little | big) & (value >= 1) & (value <= 8)
    return tf.where(known, value, 1)


def _big(head: tf.Tensor, at: tf.Tensor | int) -> tf.Tensor:
    """The number in two bytes, the high one first, int32 ()."""
    import tensorflow as tf

    high, low = tf.unstack(tf.cast(head[at : at + 2], tf.int32), num=2)
    return high * 256 + low


RATIOS = (2, 4, 8)  # at which a JPEG can be decoded for less
# How far a JPEG decoded at a reduced size must exceed the wanted one. At 1.5, street photographs at
# 96 to 384 pixels differ from the full decode by 1/255 on average, and by 6/255 in one of a hundred
# values; at 2 by 1 and 4, at 1 by 2 and 12.
SPARE = 1.5
WORTH = 2**14  # bytes, below which a JPEG is decoded whole
MOST_PIXELS = 2 * (1024**3 // 4 // 3)  # where Pillow, too, speaks of a decompression bomb
PARALLEL = 32  # pictures of a batch at a time, as far as there are cores
HEAD = 2**18  # bytes that are searched for the orientation
JPEG_END = b"\xff\xd9"
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


PREPROCESSING = 6  # goes up whenever the same file gives other numbers


def as_size(size: Any) -> tuple[int, int]:
    """A picture size as (height, width); one number stands for both.

    Raises:
        ValueError: not one or two positive whole numbers.
    """
    pair = tuple(size) if isinstance(size, Iterable) else (size, size)
    if len(pair) != 2 or not all(isinstance(n, Integral) and n > 0 for n in pair):
        raise ValueError(
            "`image_size` is no size. Expected (height, width) in pixels, for example (224, 224). "
            f"Received: {size!r}"
        )
    return int(pair[0]), int(pair[1])


def decode_image(
    data: tf.Tensor,
    size: tuple[int, int] | None = None,
    most_pixels: int = MOST_PIXELS,
) -> tf.Tensor:
    """Bytes of a JPEG, PNG, GIF, BMP or WebP, shape (), as uint8 (height, width, 3), RGB.

    Palettes become RGB, 16 bits become 8, an alpha channel is dropped, of an animation the first
    frame is taken, the EXIF orientation of a JPEG is applied.

    With the size that it will be resized to, a large JPEG (of more than `WORTH` bytes) is decoded
    at 1/2, 1/4 or 1/8 of its height and width, the smallest that is still `decoding.SPARE` times as
    high and wide as wanted.

    Raises:
        tf.errors.InvalidArgumentError: none of these, truncated, or of more than `most_pixels`:
            the message begins with "the picture"; damaged inside: it is TensorFlow's own.
    """
    import tensorflow as tf

    look = look_at(data, size, most_pixels)
    fine = tf.debugging.Assert(
        look.reason == "", [tf.strings.join(["the picture is ", look.reason])]
    )
    with tf.control_dependencies([] if fine is None else [fine]):
        return decode(tf.identity(data), look)


def resize_image(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Bilinear with antialiasing, to (height, width), float32; the aspect ratio is not kept.

    Pixels of uint8 become numbers in [0, 1]; others keep their range.
    """
    import tensorflow as tf

    image = tf.convert_to_tensor(image)
    smaller = tf.reduce_all(tf.shape(image)[:2] <= size)
    values = tf.cond(smaller, lambda: enlarged(image, size), lambda: reduced(image, size))
    return tf.ensure_shape(values, (*size, 3))


def enlarged(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """`resize_image` of what is no larger, where antialiasing changes nothing and costs double."""
    import tensorflow as tf

    # Scaled first, which is less work, and TensorFlow resizes float32 faster than uint8.
    return _bounded(tf.image.resize(scaled(image), size), image.dtype)


def reduced(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """`resize_image` of any picture: tf.image.resize bit for bit, but that 1 is the most."""
    import tensorflow as tf

    # Columns as rows: TensorFlow's inner loop then runs over a whole row instead of three channels.
    narrow = tf.transpose(_resize_rows(image, size[0]), (1, 0, 2))
    wanted = tf.transpose(_resize_rows(narrow, size[1]), (1, 0, 2))
    return _bounded(_times(wanted, image.dtype), image.dtype)


def scaled(image: tf.Tensor) -> tf.Tensor:
    """As float32; from uint8 in [0, 1]."""
    import tensorflow as tf

    return _times(tf.cast(image, tf.float32), image.dtype)


def _times(values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    import tensorflow as tf

    # Times, not divided by: TensorFlow makes it so in some graphs, an ulp apart from the others.
    return values * (1.0 / 255.0) if dtype == tf.uint8 else tf.cast(values, tf.float32)


def _bounded(values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    import tensorflow as tf

    # The weights of a bilinear kernel sum to 1 but for rounding: white became 1.0000003.
    return tf.minimum(values, 1.0) if dtype == tf.uint8 else values


def _resize_rows(image: tf.Tensor, rows: int) -> tf.Tensor:
    import tensorflow as tf

    height, width = tf.unstack(tf.shape(image)[:2])
    flat = tf.reshape(image, (1, height, 1, width * 3))
    return tf.reshape(tf.image.resize(flat, (rows, 1), antialias=True), (rows, width, 3))


def prepare_image(data: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Bytes of a picture, shape (), as float32 (*size, 3) in [0, 1]: what every model is given."""
    return resize_image(decode_image(data, size), size)


def prepare_images(
    data: tf.Tensor, size: tuple[int, int], most_pixels: int = MOST_PIXELS
) -> tf.Tensor:
    """Bytes of pictures, shape (batch,), as float32 (batch, *size, 3) in [0, 1].

    All headers are looked at before the first picture is decoded.

    Raises:
        tf.errors.InvalidArgumentError: as `decode_image`; the message names all of them by number,
            "image_bytes[3] is truncated".
    """
    import tensorflow as tf

    looks = look_at(data, size, most_pixels)
    fine = tf.debugging.Assert(tf.reduce_all(looks.reason == ""), [_named(looks.reason)])
    with tf.control_dependencies([] if fine is None else [fine]):
        pictures = (tf.identity(data), looks.way, looks.orientation)
    return tf.map_fn(
        lambda one: resize_image(decode(one[0], Look(tf.constant(""), *one[1:])), size),
        pictures,
        fn_output_signature=tf.TensorSpec((*size, 3), tf.float32),
        parallel_iterations=PARALLEL,
    )


def _named(reasons: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    wrong = tf.where(reasons != "")[:, 0]
    shown = [tf.strings.as_string(wrong), tf.gather(reasons, wrong)]
    each = tf.strings.join(["image_bytes[", shown[0], "] is ", shown[1]])
    return tf.strings.reduce_join(each, separator="; ")


def read_image(
    path: tf.Tensor, size: tuple[int, int], where: Callable[[str], str] = str
) -> tf.Tensor:
    """The picture at a path, shape (), as float32 (*size, 3) in [0, 1].

    A picture that is cut short, or that is none, raises an error that names `where(path)`; one
    that is damaged inside raises TensorFlow's own, if its decoder minds at all.
    """
    import tensorflow as tf

    files = image_files.mended(tf.io.read_file(path)[None], path[None], where)
    return _prepared(size)(*files)


@lru_cache(maxsize=16)
def _prepared(size: tuple[int, int]) -> Callable[..., tf.Tensor]:
    """From `Examined`, of one file, to `picture_of` it."""

    def prepare(*given: tf.Tensor) -> tf.Tensor:
        files = image_files.Examined(*given)
        return picture_of(files.data[0], way_of(files, size)[0], files.orientation[0], size)

    return traced(prepare)


def way_of(files: image_files.Examined, size: tuple[int, int]) -> tf.Tensor:
    """How to decode files that will be resized to this size, (batch,) int32: as in `look_at`."""
    import tensorflow as tf

    none = tf.zeros_like(files.orientation)
    start = tf.strings.substr(files.data, none, none + len(image_files.JPEG))
    worth = (start == image_files.JPEG) & (tf.strings.length(files.data) > WORTH)
    return tf.where(worth, reduction(files.sides, files.orientation, size), 0)


def picture_of(
    data: tf.Tensor, way: tf.Tensor, orientation: tf.Tensor, size: tuple[int, int]
) -> tf.Tensor:
    """One picture that was `mended`, as float32 (*size, 3) in [0, 1]."""
    import tensorflow as tf

    look = Look(tf.constant(""), way, orientation)
    return resize_image(decode(data, look, common=True), size)


Fit = Literal["same", "smaller", "larger"]

SMALL = 2**16  # bytes of a file, on average, up to which reading by the batch pays
_SAMPLE = 64  # files whose length is looked up


def are_small(paths: Sequence[str]) -> bool:
    """Whether files are small enough that it pays to read them by the batch."""
    chosen = [paths[at] for at in range(0, len(paths), -(-len(paths) // _SAMPLE))]
    return sum(os.path.getsize(path) for path in chosen) <= SMALL * len(chosen)


def read_files(paths: tf.Tensor) -> tf.Tensor:
    """The bytes of files, (batch,) string."""
    import tensorflow as tf

    return _each(tf.io.read_file, paths, tf.TensorSpec((), tf.string))


def likely(path: str, size: tuple[int, int]) -> Fit:
    """How the pictures of a data set fit the wanted size, if all are as large as this one."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            sides = picture.height, picture.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "larger"  # what is wrong with it is said when it is read
    if sides == size:
        return "same"
    return "smaller" if sides[0] <= size[0] and sides[1] <= size[1] else "larger"


def prepare_files(files: image_files.Examined, size: tuple[int, int], fit: Fit) -> tf.Tensor:
    """Pictures, `mended`, as float32 (batch, *size, 3) in [0, 1].

    A batch of which all pictures fit as `fit` says takes less time; it changes nothing else. Only
    one fit is provided for, since each takes its time to be made ready, in every epoch.
    """
    return _prepared_small_pictures(size, fit)(*files)


@lru_cache(maxsize=16)
def _prepared_small_pictures(size: tuple[int, int], fit: Fit) -> Callable[..., tf.Tensor]:
    return traced(lambda *files: _prepare(image_files.Examined(*files), size, fit))


def _prepare(files: image_files.Examined, size: tuple[int, int], fit: Fit) -> tf.Tensor:
    import tensorflow as tf

    pixels = tf.TensorSpec((*size, 3), tf.float32)
    ways = way_of(files, size)
    smaller = tf.reduce_all(files.sides <= size, axis=-1)
    fits = {
        "same": tf.reduce_all(files.sides == size, axis=-1),
        "smaller": smaller & tf.reduce_all(files.sides > 0, axis=-1),
        "larger": ~smaller,
    }
    as_they_are = (ways == 0) & (files.orientation == 1)

    def same() -> tf.Tensor:  # scaled all at once
        spec = tf.TensorSpec((*size, 3), tf.uint8)
        return scaled(
            _each(lambda one: tf.ensure_shape(_decode(one), spec.shape), files.data, spec)
        )

    def resized() -> tf.Tensor:
        resize = enlarged if fit == "smaller" else reduced
        return _each(
            lambda one: tf.ensure_shape(resize(_decode(one), size), pixels.shape),
            files.data,
            pixels,
        )

    def one_by_one(*given: tf.Tensor) -> tf.Tensor:
        return _each(lambda one: picture_of(*one, size), given, pixels)

    each = traced(one_by_one, on_call=True)
    images = tf.cond(
        tf.reduce_all(fits[fit] & as_they_are),
        same if fit == "same" else resized,
        lambda: each(files.data, ways, files.orientation),
    )
    return tf.ensure_shape(images, (None, *size, 3))


def _each(function: Callable[..., tf.Tensor], items: Any, spec: tf.TensorSpec) -> tf.Tensor:
    import tensorflow as tf

    return tf.map_fn(function, items, fn_output_signature=spec, parallel_iterations=PARALLEL)


def _decode(data: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    return tf.io.decode_image(data, channels=3, expand_animations=False)


_JFIF, _TABLE, _TABLES = b"\xff\xd8\xff\xe0\0\x10", b"\xff\xdb\0\x43", b"\xff\xdb\0\x84"
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


from kerasmtl.data import image_files  # noqa: E402
