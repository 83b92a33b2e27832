"""A trained or exported model as one function from a batch to named arrays, and its identity."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.heads import by_task, check_outputs
from kerasmtl.inputs import PREPROCESSING
from kerasmtl.prediction import exported_table
from kerasmtl.serving.folders import description
from kerasmtl.tasks import Task, as_tasks

_DECISION = "_decision"


@dataclass(frozen=True, eq=False)
class Predictor:
    """What predicts, for `predict_to_file`.

    `call`: from a batch to output name → array; the batch is pictures, (batch, height, width, 3)
    float32 in [0, 1], where `image_size` is known, else their bytes, (batch,) strings; of a table,
    where `columns` is known, (batch, columns) float32. `decided`: the tasks with a decision.
    """

    tasks: tuple[Task, ...]
    call: Callable[[Any], Mapping[str, np.ndarray]]
    sha256: str
    decided: frozenset[str] = frozenset()
    columns: tuple[str, ...] | None = None
    image_size: tuple[int, int] | None = None
    packed_bits: bool = False
    id_column: str | None = None


def model_predictor(
    model: keras.Model,
    tasks: Iterable[Task | str],
    file: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    packed_bits: bool = False,
    id_column: str | None = None,
) -> Predictor:
    """What predicts with a trained model; `file` is the one that it was loaded from.

    Raises:
        ValueError: tasks that differ from the outputs, or columns from the inputs.
    """
    chosen = as_tasks(tasks)
    check_outputs(model, chosen)
    if columns is not None and model.input_shape != (None, len(columns)):
        raise ValueError(
            f"`columns` does not fit the model. Expected input (batch, {len(columns)}). "
            f"Received: {model.input_shape}"
        )

    @tf.function(reduce_retracing=True)
    def run(batch: tf.Tensor) -> dict[str, tf.Tensor]:
        return by_task(model(batch, training=False), chosen)

    return Predictor(
        tasks=tuple(_with_classes(task) for task in chosen),
        call=lambda batch: _arrays(run(tf.convert_to_tensor(batch))),
        sha256=_sha256([Path(file)], [task.name for task in chosen], columns),
        columns=None if columns is None else tuple(columns),
        image_size=model.input_shape[1:3] if columns is None else None,
        packed_bits=packed_bits,
        id_column=id_column,
    )


def export_predictor(folder: str | os.PathLike[str], id_column: str | None = None) -> Predictor:
    """What predicts with a version of an exported model.

    Raises:
        FileNotFoundError, ValueError: no such export.
    """
    table = exported_table(folder)
    loaded = tf.saved_model.load(str(folder))
    function = loaded.signatures["serving_default" if table is None else "matrix"]
    (argument,) = function.structured_input_signature[1]
    dtype = function.structured_input_signature[1][argument].dtype
    outputs = function.structured_outputs
    tasks = _exported_tasks(Path(folder), table, outputs)

    def call(batch: Any) -> Mapping[str, np.ndarray]:
        loaded.signatures  # noqa: B018 – the functions live as long as what was loaded
        return _arrays(function(**{argument: tf.convert_to_tensor(batch, dtype)}))

    described = table or {}
    return Predictor(
        tasks=tasks,
        call=call,
        sha256=_sha256(_files(Path(folder)), argument),
        decided=frozenset(
            task.name
            for task in tasks
            if task.kind == "binary" and task.name + _DECISION in outputs
        ),
        columns=None if table is None else tuple(described["columns"]),
        packed_bits=bool(described.get("packed_bits", False)),
        id_column=id_column,
    )


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The outputs of several batches as those of one; of no batch, none."""
    names = parts[0] if parts else ()
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _exported_tasks(
    folder: Path, table: Mapping[str, Any] | None, outputs: Mapping[str, Any]
) -> tuple[Task, ...]:
    """As the export describes them; of one that does not, as its outputs look."""
    described = (description(folder) or table or {}).get("tasks")
    if described:
        tasks = [
            Task(task["name"], task["kind"], tuple(task.get("classes") or ())) for task in described
        ]
    else:
        names = [
            name for name in outputs if name.removesuffix(_DECISION) not in {*outputs} - {name}
        ]
        tasks = [
            Task(name, "multiclass" if outputs[name].shape.rank == 2 else "binary")
            for name in names
        ]
    return tuple(
        _with_classes(task, outputs[task.name].shape[-1] if task.kind == "multiclass" else 0)
        for task in tasks
    )


def _with_classes(task: Task, count: int = 0) -> Task:
    if task.kind != "multiclass" or task.classes:
        return task
    return Task(task.name, task.kind, tuple(str(number) for number in range(count)))


def _arrays(outputs: Mapping[str, tf.Tensor]) -> dict[str, np.ndarray]:
    return {name: np.asarray(values) for name, values in outputs.items()}


def _files(folder: Path) -> list[Path]:
    return [folder / "saved_model.pb", *sorted((folder / "variables").glob("*"))]


def _sha256(files: Iterable[Path], *more: Any) -> str:
    """A hash over whatever decides a prediction."""
    whole = hashlib.sha256(repr((more, PREPROCESSING, tf.__version__)).encode())
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.name} {digest}\n".encode())
    return whole.hexdigest()
