"""A trained or exported model as one function from a batch to named arrays, and its identity."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.batch import Predictor
from kerasmtl.heads import by_task, check_outputs
from kerasmtl.inputs import PREPROCESSING
from kerasmtl.prediction import exported_table
from kerasmtl.serving.folders import description
from kerasmtl.tasks import Task, as_tasks

_DECISION = "_decision"


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

    @tf.function(reduce_retracing=True, autograph=False)
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
    described = _described(folder)
    columns = described.get("columns") or None
    loaded = tf.saved_model.load(str(folder))
    function = loaded.signatures["serving_default" if columns is None else "matrix"]
    ((argument, spec),) = function.structured_input_signature[1].items()
    outputs = function.structured_outputs
    tasks = _exported_tasks(described, outputs)

    def call(batch: Any) -> Mapping[str, np.ndarray]:
        loaded.signatures  # noqa: B018 – the functions live as long as what was loaded
        return _arrays(function(**{argument: tf.convert_to_tensor(batch, spec.dtype)}))

    return Predictor(
        tasks=tasks,
        call=call,
        sha256=_sha256(_files(Path(folder)), argument),
        decided=frozenset(
            task.name
            for task in tasks
            if task.kind == "binary" and task.name + _DECISION in outputs
        ),
        columns=None if columns is None else tuple(columns),
        packed_bits=bool(described.get("packed_bits", False)),
        id_column=id_column,
    )


def _described(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What an export says of itself; an old one only does of a table."""
    found = description(Path(folder))
    return found if found is not None else exported_table(folder) or {}


def _exported_tasks(described: Mapping[str, Any], outputs: Mapping[str, Any]) -> tuple[Task, ...]:
    """As the export describes them; of one that does not, as its outputs look."""
    if described.get("tasks"):
        tasks = [
            Task(task["name"], task["kind"], tuple(task.get("classes") or ()))
            for task in described["tasks"]
        ]
    else:
        # Sorted: TensorFlow gives them in another order in each process.
        names = sorted(
            name for name in outputs if name.removesuffix(_DECISION) not in {*outputs} - {name}
        )
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
