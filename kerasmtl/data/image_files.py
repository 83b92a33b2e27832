"""Images that cannot be used, and why."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from kerasmtl.data.images import (
    EXIF,
    HEAD,
    JPEG_END,
    LONG,
    MOST_PIXELS,
    ORIENTATION,
    ROOM,
    SHORTEST_JPEG,
    plain_sides,
)

if TYPE_CHECKING:
    import tensorflow as tf

_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_NO_LENGTH = {0x00, 0x01, *range(0xD0, 0xDB), 0xFF}  # or, 0xDA, data behind it
_ROOM = b"\0" * ROOM


class JpegHeader(NamedTuple):
    """`whole`: whether the end is there; `orientation` of EXIF, 1 to 8; `sides`: height, width."""

    whole: bool
    orientation: int
    sides: tuple[int, int] | None


def jpeg_header(data: bytes) -> JpegHeader:
    """What the header of a JPEG says; its sides are None where its segments make no sense."""
    head = data[:HEAD] + _ROOM
    start, exif = _segments(head)
    orientation = 1 if exif is None else _orientation(head[exif : exif + 2**16])
    return JpegHeader(data.rfind(JPEG_END, start) >= 0, orientation, _sides(data))


def _segments(head: bytes) -> tuple[int, int | None]:
    """Where the APP and comment segments end, and where the first EXIF begins."""
    at, exif, end = 2, None, len(head) - len(_ROOM)
    while at < end and head[at] == 0xFF and (0xE0 <= head[at + 1] < 0xF0 or head[at + 1] == 0xFE):
        if exif is None and head[at + 1] == 0xE1 and head[at + 4 : at + 10] == EXIF:
            exif = at + 10
        at = min(at + 2 + max(_number(head[at + 2 : at + 4]), 2), end)
    return at, exif


def _orientation(tiff: bytes) -> int:
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"
    if tiff[:2] not in (b"II", b"MM"):
        return 1

    def number(raw: bytes) -> int:
        return int.from_bytes(raw, order)

    first = number(tiff[4:8])
    count = number(tiff[first : first + 2])
    for at in range(first + 2, min(first + 2 + 12 * count, len(tiff)) - 11, 12):
        entry = tiff[at : at + 12]
        if number(entry[:2]) == ORIENTATION:
            value = number(entry[8:12] if number(entry[2:4]) == LONG else entry[8:10])
            return value if 1 <= value <= 8 else 1
    return 1


def _sides(data: bytes) -> tuple[int, int] | None:
    """Height and width, from the first frame; None if no frame is found."""
    at = 2
    while len(data) - at > 9 and data[at] == 0xFF and data[at + 1] not in _NO_LENGTH:
        if data[at + 1] in _FRAMES:
            return _number(data[at + 5 : at + 7]), _number(data[at + 7 : at + 9])
        at += 2 + max(_number(data[at + 2 : at + 4]), 2)
    return None


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


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


@dataclass(frozen=True)
class Fault:
    """A picture that cannot be used: its line in the CSV, its name there, and why."""

    line: int
    image: str
    reason: str


def absent_pictures(paths: Sequence[str], images: np.ndarray, lines: np.ndarray) -> list[Fault]:
    """The rows whose picture does not exist."""
    return [
        Fault(int(lines[row]), images[row], "absent")
        for row, path in enumerate(paths)
        if not os.path.isfile(path)
    ]


def broken_pictures(
    paths: Sequence[str],
    images: np.ndarray,
    lines: np.ndarray,
    progress: Callable[[], None] | None = None,
) -> list[Fault]:
    """The rows whose picture cannot be decoded; `progress` is called once a row."""

    def check(rows: range) -> list[Fault]:
        faults = []
        for row in rows:
            reason = picture_fault(paths[row])
            if reason:
                faults.append(Fault(int(lines[row]), images[row], reason))
            if progress is not None:
                progress()
        return faults

    # Blocks, since every call that waits in the pool takes memory.
    blocks = [range(at, min(at + 64, len(paths))) for at in range(0, len(paths), 64)]
    with ThreadPoolExecutor() as pool:
        return [fault for faults in pool.map(check, blocks) for fault in faults]


def graph_fault(error: BaseException | None) -> str | None:
    """Say what TensorFlow found wrong with data that it was given; None of any other error."""
    tensorflow = sys.modules.get("tensorflow")  # which is not loaded for this alone
    if tensorflow is None or not isinstance(error, tensorflow.errors.OpError):
        return None
    lines = [re.sub(r"\{\{[^}]*\}\}\s*", "", line).strip() for line in error.message.splitlines()]
    own = [line.removeprefix("ValueError: ") for line in lines if line.startswith("ValueError: ")]
    if own:
        return own[0]
    what = next((line for line in lines if line), type(error).__name__)
    return f"{what}. If it is an image: `kerasmtl check` lists those that cannot be used."
