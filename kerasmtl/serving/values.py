"""From JSON to arrays and back, and pictures looked at before anything decodes them."""

from __future__ import annotations

import base64
import binascii
import io
import json
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from kerasmtl.serving.problems import BadRows, Refused
from kerasmtl.serving.served import Tensor

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")  # Pillow knows dozens more, which nobody needs here
SHOWN = 80


def parsed(body: bytes) -> dict[str, Any]:
    """A request's JSON object.

    Raises:
        Refused: no JSON, or no object.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(
            f"The body is no JSON: {str(error)[:SHOWN]}. Expected an object, pictures in base64"
        ) from None
    if not isinstance(found, dict):
        raise Refused(f"The body is no JSON object. Received: {_shown(found)}")
    return found


def array(value: Any, tensor: Tensor, where: str) -> np.ndarray:
    """Nested lists as an array of the tensor's type: (batch, …).

    Of decimals, null and NaN both are "missing". Strings are UTF-8, or {"b64": …}.

    Raises:
        Refused: another type, range or shape, or lists of unequal lengths.
    """
    if tensor.dtype == "string":
        found = strings(value, where)
    else:
        found = numbers(value, np.dtype(tensor.dtype), where)
    fits = found.ndim == 1 + len(tensor.shape) and all(
        wanted in (None, length)
        for wanted, length in zip(tensor.shape, found.shape[1:], strict=True)
    )
    if not fits:
        wanted = ["batch", *("any" if length is None else length for length in tensor.shape)]
        raise Refused(
            f"{where} has another shape. Expected [{', '.join(map(str, wanted))}]. "
            f"Received: {list(found.shape)}"
        )
    return found


def from_base64(text: Any, where: str) -> bytes:
    """The bytes that base64 text stands for, standard alphabet.

    Raises:
        Refused: no such text.
    """
    if not isinstance(text, str):
        raise Refused(f"{where} is no base64 text. Received: {_shown(text)}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(f"{where} is no base64 text. Received: {_shown(text)}") from None


def picture_sizes(pictures: Sequence[bytes], most: int) -> tuple[int, ...]:
    """How many pixels each picture has, as its header says: nothing is decoded.

    Raises:
        BadRows: those that are no pictures, or have more than `most` pixels.
    """
    sizes, reasons = [], {}
    for row, data in enumerate(pictures):
        size = _header(data)
        if isinstance(size, str):
            reasons[row] = size
        elif size[0] * size[1] > most:
            reasons[row] = (
                f"too large: {size[0]} × {size[1]} pixels, more than the {most:,} allowed"
            )
        else:
            sizes.append(size[0] * size[1])
    if reasons:
        raise BadRows(reasons)
    return tuple(sizes)


def plain(name: str, values: np.ndarray, mark_bytes: bool = True) -> list[Any]:
    """An output as JSON takes it; bytes as UTF-8 text, or, if the name says so, as {"b64": …}."""
    if values.dtype != object:
        return values.tolist()

    def text(value: Any) -> Any:
        if isinstance(value, list):
            return [text(item) for item in value]
        if mark_bytes and name.endswith("_bytes"):
            return {"b64": base64.b64encode(value).decode()}
        return value.decode("utf-8", "replace")

    return text(values.tolist())


def strings(value: Any, where: str) -> np.ndarray:
    """Text, or {"b64": …}, as an array (batch,) of bytes.

    Raises:
        Refused: anything else.
    """
    if isinstance(value, list) and not any(isinstance(item, list) for item in value):
        found = np.empty(len(value), object)  # NumPy's own strings would lose trailing zeros
        for number, item in enumerate(value):
            found[number] = _string(item, f"{where}[{number}]")
        return found
    raise Refused(f"{where} is no list of strings. Received: {_shown(value)}")


def numbers(value: Any, dtype: np.dtype, where: str) -> np.ndarray:
    """Nested lists of numbers as an array of that type; null, for decimals, is "missing".

    Raises:
        Refused: anything else, or numbers out of the type's range.
    """
    try:
        found = np.asarray(value)
    except (ValueError, OverflowError):
        raise Refused(f"{where} has lists of unequal lengths, or no numbers.") from None
    if dtype.kind == "f" and found.dtype == object:
        found = _with_missing(found)
    kinds = {"f": "fiu", "b": "b"}.get(dtype.kind, "iu")
    if found.size and found.dtype.kind not in kinds:
        raise Refused(f"{where} has another type. Expected {dtype}. Received: {_shown(value)}")
    if found.size and dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        if found.min() < bounds.min or found.max() > bounds.max:
            raise Refused(
                f"{where} is out of range. Expected {dtype}. "
                f"Received: {found.min()} to {found.max()}"
            )
    with np.errstate(over="ignore"):
        cast = found.astype(dtype)
    if dtype.kind == "f" and not np.array_equal(np.isinf(cast), np.isinf(found.astype(float))):
        raise Refused(f"{where} is out of range. Expected {dtype}. Received: {_shown(value)}")
    return cast


def _header(data: bytes) -> tuple[int, int] | str:
    from PIL import Image

    if not data:
        return "empty"
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return picture.size
    except Image.DecompressionBombError:
        return "more pixels than any image may have"
    except Exception:  # whatever a parser of hostile headers comes upon
        return f"not an image: no {', '.join(FORMATS[:-1])} or WebP"


def _string(item: Any, where: str) -> bytes:
    if isinstance(item, str):
        try:
            return item.encode()
        except UnicodeEncodeError:
            raise Refused(f"{where} is no valid text. Received: {item[:SHOWN]!a}") from None
    if isinstance(item, dict) and set(item) == {"b64"}:
        return from_base64(item["b64"], where)
    raise Refused(
        f'{where} is no string. Expected text or {{"b64": "…"}}. Received: {_shown(item)}'
    )


def _with_missing(found: np.ndarray) -> np.ndarray:
    """Numbers among which some are null; anything else is left as it is."""
    flat = found.ravel().tolist()
    if all(item is None or type(item) in (int, float) for item in flat):
        try:
            numbers = [np.nan if item is None else float(item) for item in flat]
        except OverflowError:
            return found
        return np.array(numbers).reshape(found.shape)
    return found


def _shown(value: Any) -> str:
    return reprlib.repr(value)
