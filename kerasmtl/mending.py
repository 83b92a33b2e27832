"""Picture files that the graph decodes: why one cannot be used, and other formats as PNG."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from kerasmtl.decoding import MOST_PIXELS, SHORTEST_JPEG
from kerasmtl.jpeg_header import JPEG_END, JpegHeader, jpeg_header
from kerasmtl.plain_headers import plain_sides

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

JPEG = b"\xff\xd8\xff"
GIF = b"GIF8"
_DECODED = (JPEG, b"\x89PNG\r\n\x1a\n", GIF)  # others are turned into PNG first


class Examined(NamedTuple):
    """Picture files that the graph decodes, and what their headers say.

    Shapes: data (batch,) string, JPEG, PNG or GIF; sides (batch, 2) int64, height and width as they
    are stored, 0 where that is not known; orientation (batch,) int32, that of EXIF, 1 to 8.
    """

    data: tf.Tensor
    sides: tf.Tensor
    orientation: tf.Tensor


def mended(data: tf.Tensor, paths: tf.Tensor, where: Callable[[str], str]) -> Examined:
    """Bytes of pictures, shape (batch,), in formats that the graph decodes.

    Most are seen to be whole JPEGs or PNGs by operations on the whole batch. Others are looked at
    in Python: if one is a picture of another format it becomes a PNG; if it is none, or cut short,
    an error names `where(path)`.
    """
    import numpy as np
    import tensorflow as tf

    def examine(
        data: np.ndarray, paths: np.ndarray, plain: np.ndarray, sides: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found, orientation = np.array(data, object), np.ones(len(data), "int32")
        sides = np.array(sides)
        for row in np.flatnonzero(~plain):
            facts = _examine(data[row], lambda row=row: where(paths[row].decode()))
            found[row], sides[row], orientation[row] = facts
        return found, sides, orientation

    plain, sides = plain_sides(data)
    given = [data, paths, plain, sides]
    kinds = [tf.string, tf.int64, tf.int32]
    parts = tf.cond(
        tf.reduce_all(plain),
        lambda: [data, sides, tf.ones_like(plain, tf.int32)],
        lambda: tf.numpy_function(examine, given, kinds, stateful=False),
    )
    shapes = [data.shape, sides.shape, data.shape]
    return Examined(*(tf.ensure_shape(*each) for each in zip(parts, shapes, strict=True)))


def _examine(data: bytes, where: Callable[[], str]) -> tuple[bytes, tuple[int, int], int]:
    """A picture that the graph decodes, its sides and orientation; ValueError if it is cut."""
    header = jpeg_header(data) if data.startswith(JPEG) else None
    if header and header.sides and data.endswith(JPEG_END) and len(data) >= SHORTEST_JPEG:
        pixels = header.sides[0] * header.sides[1]
        if header.whole and 0 < pixels <= MOST_PIXELS:
            return data, header.sides, header.orientation
    return _by_pillow(data, header, where)


def _by_pillow(
    data: bytes, header: JpegHeader | None, where: Callable[[], str]
) -> tuple[bytes, tuple[int, int], int]:
    """What is not known by its start and end."""
    import numpy as np
    from PIL import Image

    reason = picture_fault(data)
    if reason:
        raise ValueError(
            f"{where()} is {reason}. `kerasmtl check` lists all such images; in a project, "
            'on_invalid_image = "skip" leaves them out.'
        )
    with Image.open(io.BytesIO(data)) as picture:
        # A GIF's frames may be smaller than the GIF.
        sides = (0, 0) if picture.format == "GIF" else (picture.height, picture.width)
        if data.startswith(_DECODED):
            return data, sides, header.orientation if header else 1
        buffer = io.BytesIO()
        if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
            picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype("uint8"))
        picture.convert("RGB").save(buffer, "PNG")
        return buffer.getvalue(), sides, 1


def decodable(data: bytes) -> bytes:
    """The bytes of an image in a format that the graph decodes; what is no image stays as it is.

    Example:
        >>> decodable(b"no image")
        b'no image'
    """
    try:
        return _examine(data, str)[0]
    except ValueError:
        return data


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
            if image.width * image.height > MOST_PIXELS:  # whatever Pillow's own limit is
                return "too large to decode safely"
            if data.startswith(GIF) and b"\0\0" in (data[6:8], data[8:10]):
                return "damaged (it has no size)"
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
    if data.startswith(JPEG) and len(data) < SHORTEST_JPEG:
        return "not a picture"
    return "truncated" if data.startswith(JPEG) and not jpeg_header(data).whole else None
