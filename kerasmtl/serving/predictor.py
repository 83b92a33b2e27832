"""A trained or exported model as one function from a batch to named arrays."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasmtl.export.description import check_version_folder, read_description
from kerasmtl.tasks import Task, as_tasks, by_task, output_columns

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from kerasmtl.data.manifest import Manifest

_DECISION = "_decision"
BATCH = 32
ROWS = 1024  # of numbers, in a batch

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Predictor:
    """What predicts: a trained model or an export.

    `call`: from a batch to output name → array; the batch is images, (batch, height, width, 3)
    float32 in [0, 1], where `image_size` is known, else their bytes, (batch,) strings; of a table,
    where `columns` is known, (batch, columns) float32. `decided`: the binary tasks with a decision,
    1 or 0, in the output "<task>_decision".
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
    thresholds: Mapping[str, float] | None = None,
) -> Predictor:
    """Make a predictor of a trained model.

    Args:
        model: as `build_model` makes it.
        tasks: what its outputs predict, in order.
        file: the one that it was loaded from.
        columns: of a model of a table.
        packed_bits: as of `export_saved_model`.
        id_column: of a table, the names of the rows.
        thresholds: by binary task, from which probability on the answer is yes; by default 0.5.

    Raises:
        ValueError: tasks that differ from the outputs, or columns from the inputs.
    """
    import tensorflow as tf

    from kerasmtl.evaluation.calibration import DEFAULT
    from kerasmtl.evaluation.scores import decided_at
    from kerasmtl.models.build import check_outputs

    chosen = as_tasks(tasks)
    check_outputs(model, chosen)
    if columns is not None and model.input_shape != (None, len(columns)):
        raise ValueError(
            f"`columns` does not fit the model. Expected input (batch, {len(columns)}). "
            f"Received: {model.input_shape}"
        )
    binary = [task.name for task in chosen if task.kind == "binary"]
    at = {name: (thresholds or {}).get(name, DEFAULT) for name in binary}

    @tf.function(reduce_retracing=True, autograph=False)
    def run(batch: tf.Tensor) -> dict[str, tf.Tensor]:
        return by_task(model(batch, training=False), chosen)

    def call(batch: Any) -> Outputs:
        found = _arrays(run(tf.convert_to_tensor(batch)))
        decisions = {name: decided_at(at[name], found[name]).astype("int32") for name in at}
        return found | {name + _DECISION: values for name, values in decisions.items()}

    return Predictor(
        tasks=tuple(_with_classes(task) for task in chosen),
        call=call,
        sha256=_sha256([Path(file)], [task.name for task in chosen], columns, at),
        decided=frozenset(binary),
        columns=None if columns is None else tuple(columns),
        image_size=model.input_shape[1:3] if columns is None else None,
        packed_bits=packed_bits,
        id_column=id_column,
    )


def export_predictor(export: str | os.PathLike[str], id_column: str | None = None) -> Predictor:
    """Make a predictor of a version of an exported model, with the decisions that it makes.

    Raises:
        FileNotFoundError, ValueError: no such export.
    """
    import tensorflow as tf

    described = describe_export(export)
    columns = described.get("columns") or None
    loaded = tf.saved_model.load(str(export))
    function = loaded.signatures["serving_default" if columns is None else "matrix"]
    ((argument, spec),) = function.structured_input_signature[1].items()
    outputs = function.structured_outputs
    tasks = _exported_tasks(described, outputs)

    def call(batch: Any) -> Outputs:
        loaded.signatures  # noqa: B018 – the functions live as long as what was loaded
        return _arrays(function(**{argument: tf.convert_to_tensor(batch, spec.dtype)}))

    return Predictor(
        tasks=tasks,
        call=call,
        sha256=_sha256(_files(Path(export)), argument),
        decided=frozenset(
            task.name
            for task in tasks
            if task.kind == "binary" and task.name + _DECISION in outputs
        ),
        columns=None if columns is None else tuple(columns),
        packed_bits=bool(described.get("packed_bits", False)),
        id_column=id_column,
    )


def describe_export(export: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what an export says of itself, its model.json; empty if it says nothing.

    Raises:
        FileNotFoundError, ValueError: the folder is absent, or no SavedModel.
    """
    return read_description(check_version_folder(export)) or {}


class Predicted(dict[str, Any]):
    """What is predicted of one example: by task a probability, a number, or class → probability.

    `decisions`: by task 1 or 0, or the likeliest class; none of a regression task.
    """

    def __init__(self, values: Mapping[str, Any], decisions: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.decisions = dict(decisions)


def predict_images(
    predictor: Predictor, files: Sequence[str]
) -> tuple[dict[str, Predicted], dict[str, str]]:
    """Predict for image files: by file what is predicted, and why the others cannot be used."""
    from kerasmtl.serving.batch_predict import Piece, predict_pieces

    piece = Piece(list(files), [None] * len(files), list(files))
    ((_, outputs, bad),) = predict_pieces(predictor, iter([piece]), BATCH, lambda count: None)
    good = [file for row, file in enumerate(files) if row not in bad]
    found = dict(zip(good, predicted_rows(predictor, outputs, len(good)), strict=True))
    return found, {files[row]: why for row, why in bad.items()}


def predict_rows(predictor: Predictor, files: Sequence[str]) -> dict[str, Predicted]:
    """Predict for the rows of tables, by "file:line".

    Raises:
        FileNotFoundError, ValueError: a file is absent or malformed, or lacks a column.
    """
    from kerasmtl.data.readers import read_features

    read = [
        (file, *read_features(file, predictor.columns, predictor.packed_bits)) for file in files
    ]
    names = [f"{file}:{line}" for file, _, lines in read for line in lines]
    features = np.concatenate([features for _, features, _ in read])
    parts = [
        predictor.call(features[start : start + ROWS]) for start in range(0, len(features), ROWS)
    ]
    rows = predicted_rows(predictor, joined(parts), len(features))
    return dict(zip(names, rows, strict=True))


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The outputs of several batches as those of one; of no batch, none."""
    names = parts[0] if parts else ()
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def predicted_rows(predictor: Predictor, outputs: Outputs, count: int) -> list[Predicted]:
    """The outputs of a batch, example by example."""
    rows = []
    for row in range(count):
        values: dict[str, Any] = {}
        decisions: dict[str, Any] = {}
        for task in predictor.tasks:
            found = outputs[task.name][row]
            if task.kind == "multiclass":
                values[task.name] = dict(zip(task.classes, map(float, found), strict=True))
                decisions[task.name] = task.classes[int(np.argmax(found))]
            else:
                values[task.name] = float(found)
            if task.name in predictor.decided:
                decisions[task.name] = int(outputs[task.name + _DECISION][row])
        rows.append(Predicted(values, decisions))
    return rows


class ExportScorer:
    """An export in the place of a model, for `evaluate`: its own graph answers.

    Args:
        predictor: as `export_predictor` makes it.
        tasks: those of the labels, in order.
    """

    def __init__(self, predictor: Predictor, tasks: Sequence[Task]) -> None:
        self.predictor, self.tasks = predictor, list(tasks)
        lacking = {task.name for task in tasks} ^ {task.name for task in predictor.tasks}
        if lacking:
            raise ValueError(
                f"`model` must predict the tasks {[task.name for task in tasks]}, got "
                f"{[task.name for task in predictor.tasks]}"
            )

    def predict_on_batch(self, inputs: Any) -> dict[str, np.ndarray]:
        """The answers for files or rows, by output as `evaluate` takes them."""
        if self.predictor.columns is None:
            inputs = [Path(file).read_bytes() for file in inputs]
        found = self.predictor.call(inputs)
        return {
            key: np.stack([found[self.tasks[c].name] for c in columns], axis=1)
            if self.tasks[columns[0]].kind != "multiclass"
            else found[self.tasks[columns[0]].name]
            for key, columns in output_columns(self.tasks).items()
        }

    def batches(self, rows: Manifest) -> list[tuple[Any, dict[str, np.ndarray]]]:
        """Files or features, and labels, in batches."""
        table = self.predictor.columns is not None
        inputs = rows.features if table else np.array(rows.paths, object)
        size = ROWS if table else BATCH
        outputs = output_columns(self.tasks)
        return [
            (
                inputs[start : start + size],
                {key: rows.labels[start : start + size, cols] for key, cols in outputs.items()},
            )
            for start in range(0, len(rows), size)
        ]


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
    import tensorflow as tf

    from kerasmtl.data.images import PREPROCESSING

    whole = hashlib.sha256(repr((more, PREPROCESSING, tf.__version__)).encode())
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.name} {digest}\n".encode())
    return whole.hexdigest()
