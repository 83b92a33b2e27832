"""What a `HubLayer` is given, checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

Step = str | int


def as_output_key(key: Any) -> Step | tuple[Step, ...] | None:
    """A key, an index, or a tuple of them.

    Raises:
        ValueError: anything else.
    """
    steps = (key,) if isinstance(key, str | int) else key
    whole = isinstance(steps, list | tuple) and len(steps) > 0
    if key is None or (
        whole and all(isinstance(s, str | int) and not isinstance(s, bool) for s in steps)
    ):
        return tuple(key) if isinstance(key, list) else key
    raise ValueError(
        "`output_key` is no key. Expected a string, an index, or several for a nested output, such "
        f"as ('boxes', 0). Received: {key!r}"
    )


def as_arguments(arguments: Any) -> dict[str, Any]:
    """Values by name, which can be saved.

    Raises:
        ValueError: no mapping, or a value that JSON cannot hold.
    """
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping) or not all(isinstance(k, str) for k in arguments):
        raise ValueError(
            "`arguments` is no mapping of names. Expected such as {'return_sequence': True}. "
            f"Received: {arguments!r}"
        )
    try:
        json.dumps(dict(arguments))
    except TypeError as error:
        raise ValueError(
            "`arguments` has a value that cannot be saved. Expected numbers, strings, booleans, "
            f"None, or lists of them; call .numpy().tolist() on a tensor. Received: {error}"
        ) from None
    return dict(arguments)


def as_output_shape(shape: Any) -> tuple[int | None, ...] | None:
    """A shape without the batch.

    Raises:
        ValueError: no sequence of positive numbers and None.
    """
    if shape is None:
        return None
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else None
    if sizes is None or not all(
        n is None or (isinstance(n, int) and not isinstance(n, bool) and n > 0) for n in sizes
    ):
        raise ValueError(
            "`output_shape` is no shape. Expected the sizes without the batch, such as (1280,). "
            f"Received: {shape!r}"
        )
    return sizes


def as_range(pixels: Any) -> tuple[float, float] | None:
    """(low, high).

    Raises:
        ValueError: no two finite numbers, the lower one first.
    """
    if pixels is None:
        return None
    try:
        low, high = (float(value) for value in pixels)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            "`input_range` is no range. Expected (low, high) of the pixels, such as (0, 255). "
            f"Received: {pixels!r}"
        )
    return low, high
