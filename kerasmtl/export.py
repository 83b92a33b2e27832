"""A trained model as a SavedModel: named inputs in, one named output per task out."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kerasmtl.heads import by_task, check_outputs
from kerasmtl.inputs import prepare_image
from kerasmtl.tasks import Task, as_tasks

MOST_NAMED = 100  # columns; a table of more is served as a matrix
TABLE_FILE = os.path.join("assets.extra", "table.json")  # the folder that TensorFlow leaves to us

Endpoint = tuple[str, Callable[..., dict[str, Any]], list[Any]]


def export_saved_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    tasks: Iterable[Task | str],
    version: int | None = None,
    columns: Sequence[str] | None = None,
    packed_bits: bool = False,
) -> Path:
    """Write `path/<version>/`, a SavedModel that needs neither kerasmtl nor Keras.

    Outputs: a dict of task name → (batch,) float32 probability; (batch,) number of a regression
    task; (batch, classes) probabilities of a multiclass task.

    A model of pictures has the signature `serving_default`, which takes `image_bytes`, (batch,)
    strings, each the bytes of a JPEG, PNG or GIF. Decoding and resizing are those of
    `make_dataset`.

    A model of a table has `matrix`, which takes `features` (batch, columns) float32 in the order
    of `columns`, NaN = missing, and, up to 100 columns, `columns`, which takes one (batch,)
    float32 for each, named after it with "_" for whatever is no letter, digit or "_".
    `serving_default` is `columns` if it is there (order cannot be mistaken), else `matrix`.
    assets.extra/table.json lists the columns, their inputs and the tasks.

    Args:
        model: as `build_model` makes it.
        path: the folder of all versions of this model.
        tasks: the names of the outputs, in order.
        version: a positive number; by default one more than the highest there.
        columns: of a model of a table, the names of the inputs, in order.
        packed_bits: of a model of a table, its files hold the columns as packed bits, which
            `kerasmtl predict` then unpacks; the signatures take columns as ever.

    Returns:
        The folder of the version. It appears whole or not at all.

    Raises:
        FileExistsError: the version exists; nothing is changed.
        ValueError: the model takes neither pictures nor these columns, or tasks that differ from
            its outputs.
    """
    chosen = as_tasks(tasks)
    if columns is None:
        endpoints = _picture_endpoints(model, _checked_size(model), chosen)
    else:
        endpoints = _table_endpoints(model, _checked_columns(model, columns), chosen)
    check_outputs(model, chosen)
    base = Path(path)
    target = base / str(_next_version(base) if version is None else _checked_version(version))
    if target.exists():
        raise FileExistsError(
            f"`version` {target.name} of {base} exists, and is never overwritten. Leave version "
            "out for the next one."
        )
    base.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base, prefix=".export-") as aside:
        written = os.path.join(aside, "model")
        _write(model, written, endpoints)
        if columns is not None:
            _describe(written, columns, chosen, packed_bits)
        os.rename(written, target)
    return target


def column_inputs(columns: Sequence[str]) -> dict[str, str] | None:
    """Column → name of its input in the signature `columns`; None if there are too many.

    Names that TensorFlow would take for the same (`a b`, `a_b`) leave the matrix only, too.
    """
    names = {}
    for column in columns:
        plain = re.sub(r"\W", "_", column, flags=re.ASCII)
        names[column] = plain if plain[:1].isalpha() else f"column_{plain}"
    distinct = len({name.lower() for name in names.values()}) == len(columns)
    return names if distinct and len(columns) <= MOST_NAMED else None


def _picture_endpoints(
    model: keras.Model, size: tuple[int, int], tasks: tuple[Task, ...]
) -> list[Endpoint]:
    def prepare(data: tf.Tensor) -> tf.Tensor:
        return prepare_image(data, size)

    def serve(image_bytes: tf.Tensor) -> dict[str, Any]:
        images = tf.map_fn(
            prepare, image_bytes, fn_output_signature=tf.TensorSpec((*size, 3), tf.float32)
        )
        return by_task(model(images, training=False), tasks)

    return [("serving_default", serve, [tf.TensorSpec((None,), tf.string, name="image_bytes")])]


def _table_endpoints(
    model: keras.Model, columns: tuple[str, ...], tasks: tuple[Task, ...]
) -> list[Endpoint]:
    def serve(features: tf.Tensor) -> dict[str, Any]:
        return by_task(model(features, training=False), tasks)

    def serve_columns(values: dict[str, tf.Tensor]) -> dict[str, Any]:
        return serve(tf.stack([values[inputs[column]] for column in columns], axis=1))

    matrix = [tf.TensorSpec((None, len(columns)), tf.float32, name="features")]
    inputs = column_inputs(columns)
    if inputs is None:
        return [("serving_default", serve, matrix), ("matrix", serve, matrix)]
    named = [{name: tf.TensorSpec((None,), tf.float32, name=name) for name in inputs.values()}]
    return [
        ("serving_default", serve_columns, named),
        ("columns", serve_columns, named),
        ("matrix", serve, matrix),
    ]


def _write(model: keras.Model, folder: str, endpoints: list[Endpoint]) -> None:
    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, serve, signature in endpoints:
        archive.add_endpoint(name, serve, signature)
    archive.write_out(folder, verbose=False)


def _describe(
    folder: str, columns: Sequence[str], tasks: tuple[Task, ...], packed_bits: bool
) -> None:
    described = {
        "columns": list(columns),
        "inputs": column_inputs(columns),
        "packed_bits": packed_bits,
        "tasks": [
            {"name": task.name, "kind": task.kind, "classes": list(task.classes)} for task in tasks
        ],
    }
    file = Path(folder) / TABLE_FILE
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(described, indent=2, ensure_ascii=False), encoding="utf-8")


def _checked_size(model: keras.Model) -> tuple[int, int]:
    shape = model.input_shape
    if isinstance(shape, tuple) and len(shape) == 2:
        raise ValueError(
            "`model` takes no pictures but rows of numbers. Expected their names. Call with "
            "columns=table.columns."
        )
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:] or shape[3] != 3:
        raise ValueError(
            "`model` takes no pictures of a fixed size. Expected input (batch, height, width, 3). "
            f"Received: {shape}"
        )
    return shape[1:3]


def _checked_columns(model: keras.Model, columns: Sequence[str]) -> tuple[str, ...]:
    if isinstance(columns, str) or len(set(columns)) != len(columns):
        raise ValueError(
            f"`columns` is no list of distinct names. Received: {str(columns)[:200]!r}"
        )
    if model.input_shape != (None, len(columns)):
        raise ValueError(
            f"`columns` does not fit the model. Expected input (batch, {len(columns)}). "
            f"Received: {model.input_shape}"
        )
    return tuple(columns)


def _next_version(base: Path) -> int:
    found = [int(p.name) for p in base.glob("*") if p.name.isdigit()] if base.is_dir() else []
    return max(found, default=0) + 1


def _checked_version(version: int) -> int:
    if not isinstance(version, int) or version < 1:
        raise ValueError(
            f"`version` is no version. Expected a whole number from 1. Received: {version!r}"
        )
    return version
