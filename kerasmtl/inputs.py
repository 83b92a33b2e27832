"""One example: from the bytes of a picture to float32 RGB in [0, 1].

Training, prediction and the exported model all go through `prepare_image`, so that a picture means
the same everywhere.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any

from kerasmtl.decoding import (  # noqa: F401
    MOST_PIXELS,
    PARALLEL,
    SHORTEST_JPEG,
    SPARE,
    WORTH,
    Look,
    decode,
    look_at,
)

if TYPE_CHECKING:
    import tensorflow as tf

PREPROCESSING = 3  # goes up whenever the same file gives other numbers
# What training decodes in the graph; other formats that Pillow reads are turned into PNG first.
TF_FORMATS = {"JPEG", "PNG", "GIF"}
_JPEG_END = b"\xff\xd9"
_JFIF = b"\xff\xd8\xff\xe0\x00\x10"
_PNG = (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82")

# A JPEG of one pixel, whose size is looked up in place of that of other data.
_DOT = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAP//////////////////////////////////////////////////"
    "////////////////////////////////////wAALCAABAAEBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAA//E"
    "ABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAIAQEAAD8AN//Z"
)


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
    name: tf.Tensor | str = "the picture",
) -> tf.Tensor:
    """Bytes of a JPEG, PNG, GIF, BMP or WebP, shape (), as uint8 (height, width, 3), RGB.

    Palettes become RGB, 16 bits become 8, an alpha channel is dropped, of an animation the first
    frame is taken, the EXIF orientation of a JPEG is applied.

    With the size that it will be resized to, a large JPEG (of more than `WORTH` bytes) is decoded
    at 1/2, 1/4 or 1/8 of its height and width, the smallest that is still `SPARE` times as high
    and wide as wanted.

    Raises:
        tf.errors.InvalidArgumentError: none of these, truncated, or of more than `most_pixels`:
            the message begins with `name`; damaged inside: it is TensorFlow's own.
    """
    import tensorflow as tf

    look = look_at(data, size, most_pixels)
    fine = tf.debugging.Assert(look.reason == "", [tf.strings.join([name, " is ", look.reason])])
    with tf.control_dependencies([] if fine is None else [fine]):
        return decode(tf.identity(data), look)


def resize_image(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Bilinear with antialiasing, to (height, width), float32; the aspect ratio is not kept.

    Pixels of uint8 become numbers in [0, 1]; others keep their range.
    """
    import tensorflow as tf

    image = tf.convert_to_tensor(image)
    sides = tf.shape(image)[:2]

    def reduced() -> tf.Tensor:
        # Columns as rows: TensorFlow's inner loop then runs over a whole row instead of three
        # channels. The numbers are those of tf.image.resize on the picture, bit for bit.
        narrow = tf.transpose(_resize_rows(image, size[0]), (1, 0, 2))
        return tf.transpose(_resize_rows(narrow, size[1]), (1, 0, 2))

    def enlarged() -> tf.Tensor:  # where antialiasing changes nothing, and costs twice as much
        return tf.image.resize(image, size)

    values = tf.cond(tf.reduce_all(sides <= size), enlarged, reduced)
    # Times, not divided by: TensorFlow makes it so in some graphs, an ulp apart from the others.
    scale = 1.0 / 255.0 if image.dtype == tf.uint8 else 1.0
    return tf.ensure_shape(tf.cast(values, tf.float32) * scale, (*size, 3))


def _resize_rows(image: tf.Tensor, rows: int) -> tf.Tensor:
    import tensorflow as tf

    height, width = tf.unstack(tf.shape(image)[:2])
    flat = tf.reshape(image, (1, height, 1, width * 3))
    return tf.reshape(tf.image.resize(flat, (rows, 1), antialias=True), (rows, width, 3))


def prepare_image(
    data: tf.Tensor, size: tuple[int, int], name: tf.Tensor | str = "the picture"
) -> tf.Tensor:
    """Bytes of a picture, shape (), as float32 (*size, 3) in [0, 1]: what every model is given."""
    return resize_image(decode_image(data, size, name=name), size)


def _is_simple(data: tf.Tensor) -> tf.Tensor:
    """Whether this is a whole, small JPEG that starts as most do: nothing has to be looked up.

    Its tables follow the 16 bytes of JFIF, so it has no EXIF, and it is decoded as it is: what
    `decode_image` would do, for a third of the time.
    """
    import tensorflow as tf

    length = tf.strings.length(data)
    last = tf.strings.substr(data, tf.maximum(length - 2, 0), 2)
    start = tf.strings.substr(data, 0, len(_JFIF))
    next_one = tf.strings.substr(data, tf.minimum(length, 20), 2)
    small = (length <= WORTH) & (length >= SHORTEST_JPEG)
    simple = small & (start == _JFIF) & (next_one == b"\xff\xdb") & (last == _JPEG_END)
    sides = tf.io.extract_jpeg_shape(tf.where(simple, data, _DOT), tf.int64)[:2]
    return simple & (sides[0] * sides[1] <= MOST_PIXELS)


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

    def examine(data: tf.Tensor, path: tf.Tensor) -> bytes:
        return _examine(data.numpy(), lambda: where(path.numpy().decode()))

    # As a function of its own: as a branch, all its operations would be passed through, idle, for
    # each picture that does not need it.
    @partial(tf.function, experimental_attributes={"_noinline": True})
    def examined(data: tf.Tensor, path: tf.Tensor) -> tf.Tensor:
        # Whole JPEGs and PNGs stay in the graph; only the doubtful rest costs a look by Pillow.
        whole = tf.cond(
            _looks_whole(data),
            lambda: data,
            lambda: tf.ensure_shape(tf.py_function(examine, [data, path], tf.string), ()),
        )
        return resize_image(decode_image(whole, size, name=path), size)

    data = tf.io.read_file(path)
    return tf.cond(
        _is_simple(data),
        lambda: resize_image(tf.io.decode_jpeg(data, channels=3), size),
        lambda: tf.ensure_shape(examined(data, path), (*size, 3)),
    )


def _looks_whole(data: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    def ends(last: bytes) -> tf.Tensor:
        return tf.strings.substr(data, -len(last), len(last)) == last

    def png() -> tf.Tensor:
        first, last = _PNG
        return tf.cond(
            tf.strings.length(data) >= len(first) + len(last),
            lambda: (tf.strings.substr(data, 0, len(first)) == first) & ends(last),
            lambda: tf.constant(False),
        )

    return tf.cond(tf.io.is_jpeg(data), lambda: ends(_JPEG_END), png)


def _examine(data: bytes, where: Callable[[], str]) -> bytes:
    """The bytes, in a format that TensorFlow decodes; ValueError if they are no whole picture."""
    import numpy as np
    from PIL import Image

    reason = picture_fault(data)
    if reason:
        raise ValueError(f"{where()} is {reason}. `kerasmtl check` lists all such pictures.")
    with Image.open(io.BytesIO(data)) as picture:
        if picture.format in TF_FORMATS:
            return data
        buffer = io.BytesIO()
        if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
            picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype("uint8"))
        picture.convert("RGB").save(buffer, "PNG")
        return buffer.getvalue()


def picture_fault(picture: str | bytes) -> str | None:
    """Why a picture, a path or its bytes, cannot be used: "absent", "empty", …; None if it can."""
    from PIL import Image, UnidentifiedImageError

    try:
        if isinstance(picture, bytes):
            data = picture
        else:
            with open(picture, "rb") as file:
                data = file.read()
        if not data:
            return "empty"
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode == "F":
                return "of 32-bit floats, whose range is unknown"
    except FileNotFoundError:
        return "absent"
    except UnidentifiedImageError:
        return "not a picture"
    except Image.DecompressionBombError:
        return "too large to decode safely"
    except OSError as error:
        return "truncated" if "truncated" in str(error).lower() else f"unreadable ({error})"
    except (ValueError, SyntaxError, EOFError) as error:
        return f"damaged ({error})"
    return None
