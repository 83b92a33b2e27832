"""One example: from the bytes of a picture to float32 RGB in [0, 1].

Training, prediction and the exported model all go through `decode_image` and `resize_image`, so
that a picture means the same everywhere.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from numbers import Integral
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf

PREPROCESSING = 1  # goes up whenever the same file gives other numbers
# What TensorFlow decodes; other formats that Pillow reads are turned into PNG first. So is BMP,
# of which TensorFlow takes a palette for grey.
TF_FORMATS = {"JPEG", "PNG", "GIF"}
_JPEG = (b"\xff\xd8\xff", b"\xff\xd9")
_PNG = (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82")


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


def decode_image(data: tf.Tensor) -> tf.Tensor:
    """Bytes of a JPEG, PNG, GIF or BMP, shape (), as float32 (height, width, 3) in [0, 1].

    Palettes become RGB (not those of a BMP), 16 bits become 8, an alpha channel is dropped, of an
    animation the first frame is taken, EXIF orientation is not applied.
    """
    import tensorflow as tf

    pixels = tf.io.decode_image(data, channels=3, expand_animations=False)
    pixels.set_shape((None, None, 3))
    return tf.cast(pixels, tf.float32) / 255.0


def resize_image(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Bilinear with antialiasing, to (height, width); the aspect ratio is not kept."""
    import tensorflow as tf

    return tf.ensure_shape(tf.image.resize(image, size, antialias=True), (*size, 3))


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

    data = tf.io.read_file(path)
    # Whole JPEGs and PNGs stay in the graph; only the doubtful rest costs a look by Pillow.
    data = tf.cond(
        _looks_whole(data),
        lambda: data,
        lambda: tf.ensure_shape(tf.py_function(examine, [data, path], tf.string), ()),
    )
    return resize_image(decode_image(data), size)


def _looks_whole(data: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    def ends(first: bytes, last: bytes) -> tf.Tensor:
        padding = b"\0" * max(len(first), len(last))
        padded = tf.strings.join([data, padding]), tf.strings.join([padding, data])
        return (tf.strings.substr(padded[0], 0, len(first)) == first) & (
            tf.strings.substr(padded[1], -len(last), len(last)) == last
        )

    return ends(*_JPEG) | ends(*_PNG)


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
