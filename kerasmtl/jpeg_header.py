"""What a JPEG's header says, in Python: for the files that training looks at one by one.

The orientation is that of `exif.orientation_of_jpeg`, which exported models use, for any bytes.
Sources: CIPA DC-008 (Exif 2.32), sections 4.5 and 4.6.4; ITU-T T.81, annex B.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from kerasmtl.decoding import HEAD
from kerasmtl.exif import EXIF, LONG, ORIENTATION, ROOM

JPEG_END = b"\xff\xd9"
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
