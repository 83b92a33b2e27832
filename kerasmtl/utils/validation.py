"""Checks of arguments, with messages in one form: "`x` must be …, got …"."""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Return a whole number as an int.

    Args:
        name: of the argument.
        value: what was passed; NumPy's integers pass, booleans do not.
        least, most: the bounds, included; None for no upper bound.

    Raises:
        ValueError: it is not a whole number, or out of bounds.

    Example:
        >>> check_count("steps", 0)
        Traceback (most recent call last):
        ValueError: `steps` must be an integer of 1 or more, got 0
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        bounds = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise ValueError(f"`{name}` must be an integer {bounds}, got {value!r}")
    return int(value)


def check_number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return a finite number as a float.

    Args:
        name: of the argument.
        value: what was passed; NumPy's numbers pass, booleans do not.
        low, high: the bounds.
        open_low, open_high: whether the bound itself is excluded.

    Raises:
        ValueError: it is not a finite number, or out of bounds.

    Example:
        >>> check_number("rate", 1.0, 0.0, 1.0, open_high=True)
        Traceback (most recent call last):
        ValueError: `rate` must be a finite number, at least 0 and below 1, got 1.0
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    inside = math.isfinite(number) and low <= number <= high
    if not inside or (open_low and number == low) or (open_high and number == high):
        bounds = [
            f"{'above' if open_low else 'at least'} {low:g}" if math.isfinite(low) else "",
            f"{'below' if open_high else 'at most'} {high:g}" if math.isfinite(high) else "",
        ]
        said = " and ".join(filter(None, bounds))
        expected = f"a finite number{', ' if said else ''}{said}"
        raise ValueError(f"`{name}` must be {expected}, got {value!r}")
    return number


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> Any:
    """Return a value that is one of several.

    Args:
        name: of the argument.
        value: what was passed.
        choices: what it may be.

    Raises:
        ValueError: it is none of them; names them, and the nearest one.

    Example:
        >>> check_choice("to", "onx", ["litert", "onnx"])
        Traceback (most recent call last):
        ValueError: `to` must be one of 'litert', 'onnx', got 'onx'. Did you mean 'onnx'?
    """
    known = list(choices)
    if any(type(value) is type(choice) and value == choice for choice in known):
        return value
    names = [choice for choice in known if isinstance(choice, str)]
    near = get_close_matches(value, names, 1, 0.7) if isinstance(value, str) else []
    hint = f". Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"`{name}` must be one of {', '.join(map(repr, known))}, got {value!r}{hint}")
