"""Image decoding: the bytes of a file become float32 RGB in [0, 1].

This is the only decoder: training reads images with it, and it is part of the graph of an exported
model, which therefore sees exactly what the model was trained on. Everything is TensorFlow
operations on one image; batches go through `tf.map_fn`. `kerasmtl.data.image_files` checks files
by the same rules, without TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import tensorflow as tf

from kerasmtl.data.image_files import (
    ANIMATED_WEBP,
    BMP_BITS,
    BMP_HEADER,
    EMPTY,
    INDEXED_BMP,
    JPEG_END,
    MAX_PIXELS,
    NO_SIZE,
    PNG_END,
    STARTS,
    TRUNCATED,
    UNKNOWN,
)
from kerasmtl.utils.tf import as_written, traced

PREPROCESSING = 7  # goes up whenever the same file gives other numbers; part of cache keys
RATIOS = (2, 4, 8)  # the fractions 1/2, 1/4, 1/8 at which libjpeg decodes in less time
# How much larger than the wanted size a JPEG decoded at a fraction must be. At 1.5, street
# photographs at 96 to 384 pixels differ from the full decode by 1/255 on average, and by 6/255 in
# one of a hundred values; at 2 by 1 and 4, at 1 by 2 and 12.
SPARE = 1.5
WORTH = 2**14  # bytes; smaller JPEGs are decoded at their full size
PARALLEL = 32  # images of a batch that are decoded at a time, as far as there are cores
HEAD = 2**18  # bytes of a JPEG that are searched for its orientation
LONGEST_SIDE = 2**28  # pixels; the product of two such sides still fits into int64
# How most JPEGs begin: a JFIF segment of 16 bytes, of which `ANY` differ, and a quantization table.
# No EXIF can follow, so that there is no need to look for it.
PLAIN = b"\xff\xd8\xff\xe0\x00\x10JFIF\0" + b"?" * 9 + b"\xff\xdb"
ANY = [byte == ord("?") for byte in PLAIN]

# A function that is called in a graph, not copied into it: as a branch that is rarely taken it
# costs one operation, and not all of its own. Calls in a loop run one after the other, though: what
# decodes JPEGs is copied.
_called = partial(traced, on_call=True)


def as_size(size: Any, argument: str = "image_size") -> tuple[int, int]:
    """Return an image size as (height, width); one number stands for both.

    Raises:
        ValueError: not one or two positive integers.
    """
    pair = tuple(size) if isinstance(size, Iterable) else (size, size)
    if len(pair) != 2 or not all(isinstance(n, Integral) and n > 0 for n in pair):
        raise ValueError(
            f"`{argument}` must be (height, width) in pixels, for example (224, 224), or one "
            f"number for both, got {size!r}"
        )
    return int(pair[0]), int(pair[1])


def prepare_image(
    data: tf.Tensor,
    size: tuple[int, int],
    max_pixels: int = MAX_PIXELS,
    name: tf.Tensor | str = "the image",
) -> tf.Tensor:
    """Decode and resize an image: what every model of images is given.

    Args:
        data: () string, the bytes of the file.
        size: (height, width) of the result.
        max_pixels: see `decode_image`.
        name: see `decode_image`.

    Returns:
        (height, width, 3) float32, RGB in [0, 1].
    """
    return resize_image(decode_image(data, size, max_pixels, name), size)


def prepare_images(
    data: tf.Tensor, size: tuple[int, int], max_pixels: int = MAX_PIXELS
) -> tf.Tensor:
    """Decode and resize a batch of images, each as `prepare_image` does.

    Args:
        data: (batch,) string, the bytes of the files.
        size: (height, width) of the result.
        max_pixels: see `decode_image`.

    Returns:
        (batch, height, width, 3) float32, RGB in [0, 1].

    Raises:
        tf.errors.InvalidArgumentError: as `decode_image`; "image_bytes[3] is truncated".
    """

    def prepare(item: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        number, one = item
        name = tf.strings.join(["image_bytes[", tf.strings.as_string(number), "]"])
        return prepare_image(one, size, max_pixels, name)

    return tf.map_fn(
        as_written(prepare),
        (tf.range(tf.size(data)), data),
        fn_output_signature=tf.TensorSpec((*size, 3), tf.float32),
        parallel_iterations=PARALLEL,
    )


def decode_image(
    data: tf.Tensor,
    size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    name: tf.Tensor | str = "the image",
) -> tf.Tensor:
    """Decode a JPEG, PNG, GIF, BMP or WebP.

    Palettes become RGB, 16 bits become 8, an alpha channel is dropped, the first frame of an
    animation is taken, and the EXIF orientation of a JPEG is applied.

    Args:
        data: () string, the bytes of the file.
        size: (height, width) that the image will be resized to. A JPEG of more than `WORTH` bytes
            is then decoded at 1/2, 1/4 or 1/8 of its size, the smallest of them that is at least
            `SPARE` times as high and wide as wanted.
        max_pixels: the largest size that is decoded. It is read from the header before memory is
            allocated. (Of a GIF, it bounds the canvas; its frames may claim more.)
        name: () string, what the image is called in error messages.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        tf.errors.InvalidArgumentError: another format, truncated, or of more than `max_pixels`;
            the message is "NAME is REASON". If it is damaged inside, TensorFlow's own message.
    """
    data, name = tf.convert_to_tensor(data), tf.convert_to_tensor(name)
    head = tf.io.decode_raw(data, tf.uint8, fixed_length=len(PLAIN))
    plain = tf.reduce_all((head == list(PLAIN)) | ANY)
    if size is not None:
        plain &= tf.strings.length(data) <= WORTH

    def decode_plain() -> tf.Tensor:
        """Decode a JPEG without EXIF that is known to be whole, without looking for more."""
        sides = tf.io.extract_jpeg_shape(data, tf.int64)[:2]
        checked = _checked(data, _size_fault(sides, max_pixels), name)
        return tf.io.decode_jpeg(checked, channels=3)

    # Most small files need nothing else, and each operation that they pass idly would cost them as
    # much as decoding some hundred pixels.
    plain &= _ends_with(data, JPEG_END)
    pixels = tf.cond(plain, decode_plain, lambda: _decode_any(data, size, max_pixels, name))
    return tf.ensure_shape(pixels, (None, None, 3))


def _decode_any(
    data: tf.Tensor, size: tuple[int, int] | None, max_pixels: int, name: tf.Tensor
) -> tf.Tensor:
    """Decode an image as `decode_image` says, whatever it is."""
    return tf.cond(
        tf.strings.substr(data, 0, 3) == STARTS["JPEG"],
        lambda: _decode_jpeg(data, size, max_pixels, name),
        lambda: _decode_other(data, max_pixels, name),
    )


def _decode_jpeg(
    data: tf.Tensor, size: tuple[int, int] | None, max_pixels: int, name: tf.Tensor
) -> tf.Tensor:
    """Decode a JPEG of any size and orientation, or refuses it."""
    head = tf.io.decode_raw(tf.strings.substr(data, 0, HEAD), tf.uint8)
    start, orientation = _jpeg_orientation(head)
    # Behind the segments, since the thumbnail in EXIF has an end of its own. TensorFlow refuses a
    # truncated JPEG anyway, but cannot say which one it is.
    whole = _contains(data, JPEG_END, start)
    sides = tf.cond(
        whole,
        lambda: tf.io.extract_jpeg_shape(data, tf.int64)[:2],
        lambda: tf.zeros((2,), tf.int64),
    )
    data = _checked(data, tf.where(whole, _size_fault(sides, max_pixels), TRUNCATED), name)
    ratio = tf.constant(0)
    if size is not None:
        worth = tf.strings.length(data) > WORTH
        ratio = tf.where(worth, _reduction(sides, orientation, size), 0)
    ways = [partial(tf.io.decode_jpeg, data, channels=3, ratio=ratio) for ratio in (1, *RATIOS)]
    # A branch per ratio, which is an attribute of the operation and cannot be a tensor.
    pixels = tf.switch_case(ratio, ways)
    return tf.cond(
        orientation > 1, lambda: _upright(pixels, orientation), lambda: tf.identity(pixels)
    )


@_called
def _decode_other(data: tf.Tensor, max_pixels: int, name: tf.Tensor) -> tf.Tensor:
    """Decode a PNG, GIF, BMP or WebP, or refuses the file."""
    readers = {"PNG": _png_header, "GIF": _gif_header, "BMP": _bmp_header, "WebP": _webp_header}
    starts = [STARTS[name] for name in readers]
    lengths = [len(start) for start in starts]
    matches = tf.strings.substr([data] * len(starts), [0] * len(starts), lengths) == starts
    kind = tf.where(tf.reduce_any(matches), tf.argmax(matches, output_type=tf.int32), len(readers))
    headers, numbers = [*readers.values(), _no_header], _header_numbers(data)
    reason, sides = tf.switch_case(kind, [partial(read, data, numbers) for read in headers])
    reason = tf.where(reason == "", _size_fault(sides, max_pixels), reason)
    data = _checked(data, reason, name)
    return tf.cond(
        kind == list(readers).index("WebP"),
        # The decoder of WebP refuses to drop the alpha channel.
        lambda: tf.ensure_shape(
            tf.io.decode_image(data, expand_animations=False), (None, None, None)
        )[..., :3],
        lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
    )


def resize_image(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Resize an image, bilinear with antialiasing; the aspect ratio is not kept.

    Args:
        image: (height, width, 3), uint8 in [0, 255], or float32 in [0, 1].
        size: (height, width) of the result.

    Returns:
        (height, width, 3) float32 in [0, 1].
    """
    image = tf.convert_to_tensor(image)
    # Antialiasing costs double, and changes only what becomes smaller.
    pixels = tf.cond(
        tf.reduce_all(tf.shape(image)[:2] <= size),
        lambda: tf.image.resize(image, size),
        lambda: tf.image.resize(image, size, antialias=True),
    )
    if image.dtype == tf.uint8:
        # The weights of the kernel sum to 1 except for rounding: white became 1.0000003.
        # A product, since TensorFlow turns divisions into one in some graphs but not in others.
        pixels = tf.minimum(pixels * (1.0 / 255.0), 1.0)
    return tf.ensure_shape(pixels, (*size, 3))


# The numbers in headers: first byte, how many bytes, and whether the high byte comes first.
# Sources: PNG https://www.w3.org/TR/png-3/#11IHDR, GIF https://www.w3.org/Graphics/GIF/spec-gif89a.txt
# (section 18), BMP https://learn.microsoft.com/windows/win32/gdi/bitmap-storage, WebP
# https://www.rfc-editor.org/rfc/rfc9649 (a header for each of its kinds, VP8, VP8L and VP8X).
_NUMBERS = {
    "png_height": (20, 4, True),
    "png_width": (16, 4, True),
    "gif_height": (8, 2, False),
    "gif_width": (6, 2, False),
    "bmp_pixels": (10, 4, False),  # where they start
    "bmp_header": (14, 4, False),  # its size
    "bmp_height": (22, 4, False),  # signed; negative: rows from the top
    "bmp_width": (18, 4, False),
    "bmp_bits": (28, 2, False),  # per pixel
    "webp_bytes": (4, 4, False),  # of the file, but for 8
    "vp8_height": (28, 2, False),  # of which 14 bits
    "vp8_width": (26, 2, False),
    "vp8l_sides": (21, 4, False),  # 14 bits each, less 1
    "vp8x_flags": (20, 1, False),
    "vp8x_height": (27, 3, False),  # less 1
    "vp8x_width": (24, 3, False),
}
_HEAD = 32  # bytes in which all of them are


def _header_numbers(data: tf.Tensor) -> dict[str, tf.Tensor]:
    """Return what each of `_NUMBERS` is, () int64 each; zeros are read behind the end."""
    weights = np.zeros((len(_NUMBERS), _HEAD), np.int64)
    for row, (at, length, big) in zip(weights, _NUMBERS.values(), strict=True):
        powers = 256 ** np.arange(length)
        row[at : at + length] = powers[::-1] if big else powers
    head = tf.cast(tf.io.decode_raw(data, tf.uint8, fixed_length=_HEAD), tf.int64)
    numbers = tf.unstack(tf.linalg.matvec(tf.constant(weights), head))
    return dict(zip(_NUMBERS, numbers, strict=True))


# What the header of an image says: why it cannot be decoded, () string, "" if it can; and height
# and width as stored, (2,) int64.
_Header = tuple[tf.Tensor, tf.Tensor]


def _png_header(data: tf.Tensor, numbers: dict[str, tf.Tensor]) -> _Header:
    """Read a PNG's size; it is whole if its end chunk is there."""
    sides = tf.stack([numbers["png_height"], numbers["png_width"]])
    return tf.where(_contains(data, PNG_END, 0), "", TRUNCATED), sides


def _gif_header(data: tf.Tensor, numbers: dict[str, tf.Tensor]) -> _Header:
    """Read the size of a GIF's canvas; the decoder itself finds out whether it is whole."""
    return tf.constant(""), tf.stack([numbers["gif_height"], numbers["gif_width"]])


def _bmp_header(data: tf.Tensor, numbers: dict[str, tf.Tensor]) -> _Header:
    """Read a BMP's size; it is whole if there are as many bytes as its pixels take."""
    width, height, bits = numbers["bmp_width"], numbers["bmp_height"], numbers["bmp_bits"]
    # Unsigned, so that the negative height of an image from the top is 2**32 less its size.
    height = tf.minimum(height, 2**32 - height)
    plain = (numbers["bmp_header"] >= BMP_HEADER) & tf.reduce_any(bits == BMP_BITS)
    # Rows are padded to four bytes. A hostile size is bounded first, or the product would overflow
    # and a short file would seem to be whole.
    row = (tf.minimum(width, LONGEST_SIDE) * bits + 31) // 32 * 4
    end = numbers["bmp_pixels"] + row * tf.minimum(height, LONGEST_SIDE)
    reason = tf.where(_length(data) >= end, "", TRUNCATED)
    reason = tf.where(plain, reason, INDEXED_BMP)
    return reason, tf.stack([height, width])


def _webp_header(data: tf.Tensor, numbers: dict[str, tf.Tensor]) -> _Header:
    """Read a WebP's size, as its kind stores it; it is whole if it is as long as it claims."""
    lossless, bits = numbers["vp8l_sides"], 2**14
    sides = tf.stack(
        [
            [numbers["vp8_height"] % bits, numbers["vp8_width"] % bits],
            [lossless // bits % bits + 1, lossless % bits + 1],
            [numbers["vp8x_height"] + 1, numbers["vp8x_width"] + 1],
        ]
    )
    name = tf.strings.substr(tf.strings.join([data, b"\0" * 16]), 8, 8)
    kinds = name == tf.constant([b"WEBPVP8 ", b"WEBPVP8L", b"WEBPVP8X"])
    animated = kinds[2] & (numbers["vp8x_flags"] // 2 % 2 == 1)
    whole = _length(data) >= numbers["webp_bytes"] + 8
    reason = tf.where(whole, tf.where(animated, ANIMATED_WEBP, ""), TRUNCATED)
    reason = tf.where(tf.reduce_any(kinds), reason, UNKNOWN)
    return reason, sides[tf.argmax(kinds)]


def _no_header(data: tf.Tensor, numbers: dict[str, tf.Tensor]) -> _Header:
    """Refuse what is in none of the formats; its sides of 1 are not found wrong as well."""
    reason = tf.where(tf.strings.length(data) == 0, EMPTY, UNKNOWN)
    return reason, tf.ones((2,), tf.int64)


def _size_fault(sides: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """Return why an image of this height and width is not decoded; "" if it is."""
    shown = tf.strings.reduce_join(tf.strings.as_string(sides), separator=" x ")
    shown = tf.strings.join(["of ", shown, f" pixels, more than {max_pixels}"])
    # Before the decoder allocates: a few bytes of header can claim gigabytes.
    large = tf.reduce_prod(tf.minimum(sides, LONGEST_SIDE)) > max_pixels
    return tf.where(tf.reduce_any(sides < 1), NO_SIZE, tf.where(large, shown, ""))


def _checked(data: tf.Tensor, reason: tf.Tensor, name: tf.Tensor) -> tf.Tensor:
    """Return the data; raises InvalidArgumentError, "NAME is REASON", unless the reason is ""."""
    # The bare operation: tf.debugging.Assert makes a branch of it, which takes longer.
    said = tf.strings.join([name, " is ", reason])
    check = tf.raw_ops.Assert(condition=reason == "", data=[said])
    with tf.control_dependencies([check]):
        return tf.identity(data)


def _reduction(sides: tf.Tensor, orientation: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Return how many of `RATIOS` leave enough of a JPEG, () int32."""
    # The wanted size is that of the upright image.
    shown = tf.where(orientation > 4, sides[::-1], sides)
    left = tf.cast(shown // tf.constant(RATIOS, tf.int64)[:, None], tf.float32)
    enough = tf.reduce_all(left >= tf.constant(size, tf.float32) * SPARE, axis=1)
    return tf.reduce_sum(tf.cast(enough, tf.int32))


def _upright(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turn pixels (height, width, 3) as they are meant to be seen; 5 to 8 swap height and width.

    Source: https://www.cipa.jp/std/documents/download_e.html?DC-008-Translation-2023-E, 4.6.5
    """

    def among(*orientations: int) -> tf.Tensor:
        return tf.reduce_any(orientation == tf.constant(orientations))

    pixels = tf.cond(
        orientation > 4, lambda: tf.transpose(pixels, (1, 0, 2)), lambda: tf.identity(pixels)
    )
    down = tf.where(among(3, 4, 7, 8), -1, 1)
    right = tf.where(among(2, 3, 6, 7), -1, 1)
    return pixels[::down, ::right]


_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112  # the tag
_LONG = 4  # the type of a number of four bytes
_ROOM = 16  # zeros behind the end, so that the bytes just behind it can be looked at


def _jpeg_orientation(head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return where a JPEG's APP and comment segments end, and its orientation; both () int32.

    Args:
        head: (bytes,) uint8, the beginning of the file. If EXIF is missing or damaged, the
            orientation is 1: as stored.
    """
    length = tf.size(head)
    head = tf.pad(head, [[0, _ROOM]])
    mark = tf.io.decode_raw(tf.constant(_EXIF), tf.uint8)

    def more(at: tf.Tensor, exif: tf.Tensor) -> tf.Tensor:
        kind = head[at + 1]
        return (at < length) & (head[at] == 0xFF) & ((kind >= 0xE0) & (kind < 0xF0) | (kind == 254))

    def step(at: tf.Tensor, exif: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        found = (head[at + 1] == 0xE1) & tf.reduce_all(head[at + 4 : at + 10] == mark)
        exif = tf.where(found & (exif < 0), at + 10, exif)  # the first one counts
        high, low = tf.unstack(tf.cast(head[at + 2 : at + 4], tf.int32), num=2)
        # The length counts its own two bytes; less is damaged, and moves on by these.
        return tf.minimum(at + 2 + tf.maximum(256 * high + low, 2), length), exif

    start, exif = tf.while_loop(more, step, (tf.constant(2), tf.constant(-1)))
    orientation = tf.cond(
        exif > 0, lambda: _tiff_orientation(head[exif : exif + 2**16]), lambda: tf.constant(1)
    )
    return start, orientation


def _tiff_orientation(tiff: tf.Tensor) -> tf.Tensor:
    """Return the orientation in an EXIF block, () int32, 1 to 8.

    Args:
        tiff: (bytes,) uint8: byte order, offset of the first directory, its entries of 12 bytes.
    """
    size = tf.size(tiff, tf.int64)
    tiff = tf.cast(tf.pad(tiff, [[0, _ROOM]]), tf.int64)
    little = tf.reduce_all(tiff[:2] == ord("I"))
    big = tf.reduce_all(tiff[:2] == ord("M"))
    bytes_of = tf.where(little, *np.array([[1, 256], [256, 1]]))
    pairs_of = tf.where(little, *np.array([[1, 65536], [65536, 1]]))
    short = tiff[:-1] * bytes_of[0] + tiff[1:] * bytes_of[1]  # the number in two bytes, at each

    def long(at: tf.Tensor | int) -> tf.Tensor:
        return tf.gather(short, at) * pairs_of[0] + tf.gather(short, at + 2) * pairs_of[1]

    first = tf.minimum(long(4), size)
    # The offset and the number of entries are the file's claims: what lies beyond its end is not
    # read.
    whole = tf.maximum((size - first - 2) // 12, 0)  # entries that fit into what there is
    starts = first + 2 + 12 * tf.range(tf.minimum(tf.gather(short, first), whole))
    ours = tf.boolean_mask(starts, tf.gather(short, starts) == _ORIENTATION)[:1]
    is_long = tf.gather(short, ours + 2) == _LONG
    values = tf.where(is_long, long(ours + 8), tf.gather(short, ours + 8))
    value = tf.cast(tf.reduce_sum(values), tf.int32)
    known = (little | big) & (value >= 1) & (value <= 8)
    return tf.where(known, value, 1)


def _contains(data: tf.Tensor, end: bytes, start: tf.Tensor | int) -> tf.Tensor:
    """Return whether bytes have an end marker behind `start`, () bool; most often at their end."""

    def search() -> tf.Tensor:
        raw = tf.io.decode_raw(data, tf.uint8)[start:]
        places = tf.maximum(tf.size(raw) - len(end) + 1, 0)
        hits = [raw[at : places + at] == byte for at, byte in enumerate(end)]
        return tf.reduce_any(tf.reduce_all(hits, axis=0))

    return tf.cond(_ends_with(data, end), lambda: tf.constant(True), search)


def _length(data: tf.Tensor) -> tf.Tensor:
    """Return the number of bytes, () int64, as the sizes in headers are."""
    return tf.cast(tf.strings.length(data), tf.int64)


def _ends_with(data: tf.Tensor, end: bytes) -> tf.Tensor:
    """Return whether bytes end in a marker, () bool; fewer bytes than the marker has do not."""
    start = tf.maximum(tf.strings.length(data) - len(end), 0)
    return tf.strings.substr(data, start, len(end)) == end
