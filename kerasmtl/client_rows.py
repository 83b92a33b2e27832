"""Rows of a table for a server: its columns find the inputs that the server names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Inputs = Mapping[str, int | None]  # input name → numbers in a row, or None if it takes one number
Row = dict[str, Any]  # input name → number, or list of numbers; NaN = missing
ENDINGS = (".csv", ".parquet", ".npz")
_SHOWN = 20


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a file's ending is that of a table."""
    return Path(path).suffix.lower() in ENDINGS


def read_rows(path: str | os.PathLike[str], inputs: Inputs) -> tuple[list[str], list[Row]]:
    """Each row's name, FILE:LINE, and its numbers by input; columns of no input are left out.

    An input is called as its column, with `_` for what a name in TensorFlow cannot have. One that
    takes all numbers of a row as a matrix takes the file's columns as they stand.

    Raises:
        FileNotFoundError, ValueError: absent, malformed, without a column, or with text in one.
    """
    from kerasmtl.table_files import read_features

    source = Path(path)
    columns = _columns(source)
    chosen = _matched(source, columns, inputs)
    values, numbers = read_features(source, [name for names in chosen.values() for name in names])
    rows: list[Row] = []
    for row in values.tolist():
        at, found = 0, {}
        for name, names in chosen.items():
            part = row[at : at + len(names)]
            found[name] = part[0] if inputs[name] is None else part
            at += len(names)
        rows.append(found)
    return [f"{source}:{number}" for number in numbers], rows


def inputs_of_tfserving(metadata: Any, signature: str) -> dict[str, int | None]:
    """What a signature takes, as `…/metadata` says it.

    Raises:
        ValueError: no such signature, or one that takes other than numbers.
    """
    try:
        signatures = metadata["metadata"]["signature_def"]["signature_def"]
        if signature not in signatures:
            raise ValueError(
                f"`signature` is unknown to the server. Expected one of {sorted(signatures)}. "
                f"Received: {signature!r}"
            )
        found = {
            name: (
                tensor["dtype"],
                [int(dim["size"]) for dim in tensor["tensor_shape"].get("dim", [])],
            )
            for name, tensor in signatures[signature]["inputs"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"`url` gave no metadata of a model. Received: {error!r}") from None
    return {name: _width(name, kind, shape, "DT_FLOAT") for name, (kind, shape) in found.items()}


def inputs_of_kserve(metadata: Any) -> dict[str, int | None]:
    """What the default signature takes, as `GET …/v2/models/NAME` says it.

    Raises:
        ValueError: it takes other than numbers.
    """
    try:
        found = {one["name"]: (one["datatype"], one["shape"]) for one in metadata["inputs"]}
        return {name: _width(name, kind, shape, "FP32") for name, (kind, shape) in found.items()}
    except (KeyError, TypeError) as error:
        raise ValueError(f"`url` gave no metadata of a model. Received: {error!r}") from None


def _width(name: str, kind: str, shape: Sequence[int], expected: str) -> int | None:
    if kind != expected or len(shape) not in (1, 2):
        raise ValueError(
            f"`signature` takes no rows of a table. Expected inputs of {expected}. Received: "
            f"{name!r} of {kind} {list(shape)}"
        )
    return None if len(shape) == 1 else shape[1]


def _columns(source: Path) -> list[str]:
    from kerasmtl.csv_table import iter_lines
    from kerasmtl.table_files import file_format, read_frame, read_npz

    kind = file_format(source)
    if kind == ".csv":
        return next(iter_lines(source))[1]
    return list(read_npz(source).columns) if kind == ".npz" else list(read_frame(source).columns)


def _matched(source: Path, columns: Sequence[str], inputs: Inputs) -> dict[str, list[str]]:
    widths = [width for width in inputs.values() if width is not None]
    if widths:
        if len(inputs) > 1 or len(columns) != widths[0]:
            raise ValueError(
                f"`files` {source} does not fit. The server takes {widths[0]} numbers a row, and "
                f"does not say of which columns. Expected a file of these alone, in their order. "
                f"Received: {len(columns)} columns"
            )
        return {next(iter(inputs)): list(columns)}
    by_name: dict[str, list[str]] = {}
    for column in columns:
        plain = re.sub(r"\W", "_", column, flags=re.ASCII)
        name = column if column in inputs else plain if plain in inputs else f"column_{plain}"
        by_name.setdefault(name, []).append(column)
    lacking = sorted(set(inputs) - set(by_name))
    if lacking:
        raise ValueError(
            f"`files` {source} lacks columns that the server takes. Expected {lacking[:_SHOWN]}"
            f"{' and more' * (len(lacking) > _SHOWN)}. Received: {list(columns)[:_SHOWN]}"
        )
    twice = {name: by_name[name] for name in inputs if len(by_name[name]) > 1}
    if twice:
        raise ValueError(
            f"`files` {source} has several columns for one input. Expected one. Received: {twice}"
        )
    return {name: by_name[name] for name in inputs}


def tensor(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """Numbers of an input, one or a list by row, for KServe's V2."""
    data = np.asarray(values, "float64")
    return {
        "name": name,
        "shape": list(data.shape),
        "datatype": "FP32",
        "data": data.ravel().tolist(),
    }
