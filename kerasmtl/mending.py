"""Why a picture cannot be used, and other formats as PNG, by Pillow."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

# What training decodes in the graph; other formats that Pillow reads are turned into PNG first.
TF_FORMATS = {"JPEG", "PNG", "GIF"}
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG = (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82")


def mended(data: tf.Tensor, paths: tf.Tensor, where: Callable[[str], str]) -> tf.Tensor:
    """Bytes of pictures, shape (batch,), in formats that the graph decodes.

    What looks like no whole JPEG or PNG costs a look by Pillow: if it is a picture of another
    format it becomes a PNG; if it is none, or cut short, an error names `where(path)`.
    """
    import numpy as np
    import tensorflow as tf

    def examine(data: tf.Tensor, paths: tf.Tensor, whole: tf.Tensor) -> np.ndarray:
        found = [
            one if fine else _examine(one, lambda path=path: where(path.decode()))
            for one, path, fine in zip(data.numpy(), paths.numpy(), whole.numpy(), strict=True)
        ]
        return np.array(found, object)

    whole = _look_whole(data)
    return tf.cond(
        tf.reduce_all(whole),
        lambda: data,
        lambda: tf.ensure_shape(
            tf.py_function(examine, [data, paths, whole], tf.string), data.shape
        ),
    )


def _look_whole(data: tf.Tensor) -> tf.Tensor:
    """Which are JPEGs or PNGs that end where they should: (batch,) bool."""
    import tensorflow as tf

    length = tf.strings.length(data)

    def part(start: tf.Tensor, count: int) -> tf.Tensor:
        return tf.strings.substr(data, start, tf.fill(tf.shape(data), count))

    def last(count: int) -> tf.Tensor:
        return part(tf.maximum(length - count, 0), count)

    jpeg = (part(tf.zeros_like(length), 3) == _JPEG) & (last(2) == _JPEG_END)
    start, end = _PNG
    return jpeg | (part(tf.zeros_like(length), len(start)) == start) & (last(len(end)) == end)


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
