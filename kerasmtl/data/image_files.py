"""Validation of image files: which ones cannot be used, and why. Needs Pillow, not TensorFlow.

`kerasmtl.data.images` decodes images in the TensorFlow graph of training and of exported models.
The checks here say of a file what that graph would say of it: both use the constants below.
`Image.faults` calls `image_fault` for `kerasmtl check`, `kerasmtl new`, and for rows that a project
skips.
"""

from __future__ import annotations

import io
import os

MAX_PIXELS = 2 * (1024**3 // 4 // 3)  # 178,956,970, where Pillow raises DecompressionBombError
# The first bytes of the formats that can be decoded; WebP has its name at byte 8 as well.
STARTS = {
    "JPEG": b"\xff\xd8\xff",
    "PNG": b"\x89PNG\r\n\x1a\n",
    "GIF": b"GIF8",
    "BMP": b"BM",
    "WebP": b"RIFF",
}
JPEG_END, PNG_END = b"\xff\xd9", b"IEND\xaeB`\x82"
BMP_HEADER = 40  # bytes, at least; older headers have other fields
BMP_BITS = (24, 32)  # per pixel

EMPTY = "empty"
TRUNCATED = "truncated"
UNKNOWN = "not an image in JPEG, PNG, GIF, BMP or WebP format"
NO_SIZE = "damaged (width or height is 0)"
# TensorFlow reads palette indices as gray values.
INDEXED_BMP = "a BMP with a palette or of 16 bits per pixel. Convert it to PNG"
# TensorFlow 2.21 aborts the process when it decodes the first frame of one.
ANIMATED_WEBP = "an animated WebP. Convert it to GIF, or save one frame"


def image_fault(image: str | os.PathLike[str] | bytes) -> str | None:
    """Return why an image cannot be used, or None if it can.

    The whole image is decoded, so truncated and damaged files are found.

    Args:
        image: a path, or the bytes of a file.

    Returns:
        A reason that completes "the file is …", such as "missing", "empty" or "truncated".
    """
    from PIL import Image, UnidentifiedImageError

    try:
        # Read whole, not by Pillow: end markers are searched for in the bytes.
        data = image if isinstance(image, bytes) else _read(image)
        if not data:
            return EMPTY
        # Before Pillow, which opens dozens of formats that the graph does not decode, TIFF for
        # instance.
        if not data.startswith(tuple(STARTS.values())):
            return UNKNOWN
        with Image.open(io.BytesIO(data)) as opened:
            reason = _header_fault(opened.format, opened.size, data)
            if reason is None:
                opened.load()
            return reason
    except FileNotFoundError:
        return "missing"
    except UnidentifiedImageError:
        # Pillow cannot identify a file that is cut within its header either.
        return TRUNCATED if data.startswith((STARTS["JPEG"], STARTS["PNG"])) else UNKNOWN
    except Image.DecompressionBombError:
        return f"of more than {MAX_PIXELS} pixels"
    except OSError as error:
        # Pillow has one class for both; its message is the only difference.
        cut = "truncated" in str(error).lower()
        return TRUNCATED if cut else f"unreadable ({error})"
    except (ValueError, SyntaxError, EOFError) as error:
        return f"damaged ({error})"


def _read(path: str | os.PathLike[str]) -> bytes:
    """Read a file whole."""
    with open(path, "rb") as file:
        return file.read()


def _header_fault(kind: str | None, size: tuple[int, int], data: bytes) -> str | None:
    """Return why an image of this format and size, (width, height), is not even decoded."""
    width, height = size
    if kind == "GIF" and b"\0\0" in (data[6:8], data[8:10]):  # Pillow takes the frame's size
        return NO_SIZE
    if width * height > MAX_PIXELS:  # whatever limit of its own Pillow is set to
        return f"of {height} x {width} pixels, more than {MAX_PIXELS}"
    if kind == "PNG" and PNG_END not in data:  # Pillow ignores what follows the pixels
        return TRUNCATED
    if kind == "BMP":
        header, bits = (int.from_bytes(data[at : at + 2], "little") for at in (14, 28))
        if header < BMP_HEADER or bits not in BMP_BITS:
            return INDEXED_BMP
    animated = kind == "WEBP" and data[12:16] == b"VP8X" and data[20] & 2
    return ANIMATED_WEBP if animated else None
