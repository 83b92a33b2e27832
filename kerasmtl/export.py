"""A trained model as a SavedModel: image bytes in, one named probability per task out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kerasmtl.inputs import decode_image, resize_image
from kerasmtl.tasks import Task, as_tasks


def export_saved_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    tasks: Iterable[Task | str],
    version: int | None = None,
) -> Path:
    """Write `path/<version>/`, a SavedModel that needs neither kerasmtl nor Keras.

    Its signature `serving_default` takes `image_bytes`, (batch,) strings, each the bytes of a
    JPEG, PNG or GIF, and returns a dict of task name → (batch,) float32 probability.
    Decoding and resizing are those of `make_dataset`.

    Args:
        model: pictures in, (batch, tasks) probabilities out, as `build_model` makes it.
        path: the folder of all versions of this model.
        tasks: the names of the outputs, in order.
        version: a positive number; by default one more than the highest there.

    Returns:
        The folder of the version. It appears whole or not at all.

    Raises:
        FileExistsError: the version exists; nothing is changed.
        ValueError: the model is no picture model, or the number of tasks differs from its outputs.
    """
    chosen = as_tasks(tasks)
    size = _checked_size(model, chosen)
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
        _write(model, written, chosen, size)
        os.rename(written, target)
    return target


def _write(model: keras.Model, folder: str, tasks: tuple[Task, ...], size: tuple[int, int]) -> None:
    def prepare(data: tf.Tensor) -> tf.Tensor:
        return resize_image(decode_image(data), size)

    def serve(image_bytes: tf.Tensor) -> dict[str, Any]:
        images = tf.map_fn(
            prepare, image_bytes, fn_output_signature=tf.TensorSpec((*size, 3), tf.float32)
        )
        probabilities = model(images, training=False)
        return {task.name: probabilities[:, column] for column, task in enumerate(tasks)}

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default", serve, [tf.TensorSpec((None,), tf.string, name="image_bytes")]
    )
    archive.write_out(folder, verbose=False)


def _checked_size(model: keras.Model, tasks: tuple[Task, ...]) -> tuple[int, int]:
    shape, outputs = model.input_shape, model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:] or shape[3] != 3:
        raise ValueError(
            "`model` takes no pictures of a fixed size. Expected input (batch, height, width, 3). "
            f"Received: {shape}"
        )
    if outputs != (None, len(tasks)):
        raise ValueError(
            f"`tasks` does not fit the model. Expected output (batch, {len(tasks)}). "
            f"Received: {outputs}"
        )
    return shape[1:3]


def _next_version(base: Path) -> int:
    found = [int(p.name) for p in base.glob("*") if p.name.isdigit()] if base.is_dir() else []
    return max(found, default=0) + 1


def _checked_version(version: int) -> int:
    if not isinstance(version, int) or version < 1:
        raise ValueError(
            f"`version` is no version. Expected a whole number from 1. Received: {version!r}"
        )
    return version
