"""One example: from the bytes of a picture to float32 RGB in [0, 1].

`prepare_image` and `prepare_images` are what exported models do, by operations alone; `read_image`
and `small_pictures` what training does, whose headers may be read in Python. A picture that both
take means the same in both, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from numbers import Integral
from typing import TYPE_CHECKING, Any

from kerasmtl.decoding import MOST_PIXELS, PARALLEL, WORTH, Look, decode, look_at, reduction
from kerasmtl.graphs import traced
from kerasmtl.mending import JPEG, Examined, mended

if TYPE_CHECKING:
    import tensorflow as tf

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

    files = mended(tf.io.read_file(path)[None], path[None], where)
    return _prepared(size)(*files)


@lru_cache(maxsize=16)
def _prepared(size: tuple[int, int]) -> Callable[..., tf.Tensor]:
    """From `Examined`, of one file, to `picture_of` it."""

    def prepare(*given: tf.Tensor) -> tf.Tensor:
        files = Examined(*given)
        return picture_of(files.data[0], way_of(files, size)[0], files.orientation[0], size)

    return traced(prepare)


def way_of(files: Examined, size: tuple[int, int]) -> tf.Tensor:
    """How to decode files that will be resized to this size, (batch,) int32: as in `look_at`."""
    import tensorflow as tf

    none = tf.zeros_like(files.orientation)
    start = tf.strings.substr(files.data, none, none + len(JPEG))
    worth = (start == JPEG) & (tf.strings.length(files.data) > WORTH)
    return tf.where(worth, reduction(files.sides, files.orientation, size), 0)


def picture_of(
    data: tf.Tensor, way: tf.Tensor, orientation: tf.Tensor, size: tuple[int, int]
) -> tf.Tensor:
    """One picture that was `mended`, as float32 (*size, 3) in [0, 1]."""
    import tensorflow as tf

    look = Look(tf.constant(""), way, orientation)
    return resize_image(decode(data, look, common=True), size)
