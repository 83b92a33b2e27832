"""What a model takes, as far as it can be exported: pictures, or rows of named numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras


def kind_of_input(
    model: keras.Model, columns: Iterable[str] | None, packed_bits: bool, max_pixels: int
) -> dict[str, Any]:
    """What the model takes, as model.json has it.

    Raises:
        ValueError: no model, one without an input shape, or one that takes something else.
    """
    shape = _input_shape(model)
    if columns is not None:
        return {
            "kind": "table",
            "image_size": None,
            "columns": _checked_columns(shape, columns),
            "packed_bits": packed_bits,
            "max_pixels": None,
        }
    if isinstance(max_pixels, bool) or not isinstance(max_pixels, int) or max_pixels < 1:
        raise ValueError(
            f"`max_pixels` is no number of pixels. Expected 1 or more. Received: {max_pixels!r}"
        )
    return {
        "kind": "pictures",
        "image_size": list(_checked_size(shape)),
        "columns": None,
        "packed_bits": False,
        "max_pixels": max_pixels,
    }


def _input_shape(model: Any) -> Any:
    if not isinstance(model, keras.Model):
        raise ValueError(
            "`model` is no keras.Model. Expected one, such as build_model makes. Received: "
            f"{type(model).__name__}"
        )
    try:
        model.output_shape  # noqa: B018
        return model.input_shape
    except (AttributeError, ValueError) as error:
        raise ValueError(
            "`model` has no input and output shape yet: it was neither built with an Input nor "
            f"called. Expected a functional or sequential model with one. Received: {error}"
        ) from None


def _checked_size(shape: Any) -> tuple[int, int]:
    if isinstance(shape, tuple) and len(shape) == 2:
        raise ValueError(
            "`model` takes no pictures but rows of numbers. Expected their names. Call with "
            "columns=table.columns."
        )
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:] or shape[3] != 3:
        raise ValueError(
            "`model` takes no pictures of a fixed size. Expected input (batch, height, width, 3), "
            "or (batch, columns) of a table. Models of text, of several inputs and of other shapes "
            "have no signatures here: use keras.Model.export for them. "
            f"Received: {shape}"
        )
    return shape[1:3]


def _checked_columns(shape: Any, columns: Iterable[str]) -> tuple[str, ...]:
    names = () if isinstance(columns, str) else tuple(columns)
    if not all(isinstance(n, str) for n in names) or not names or len(set(names)) != len(names):
        raise ValueError(
            f"`columns` is no list of distinct names. Received: {str(columns)[:200]!r}"
        )
    if shape != (None, len(names)):
        raise ValueError(
            f"`columns` does not fit the model. Expected input (batch, {len(names)}). "
            f"Received: {shape}"
        )
    return names
