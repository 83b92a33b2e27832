"""A trained or exported model as one function from a batch to named arrays."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasmtl.data.inputs import Image, Input
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

    `call`: from a batch of raw inputs, as `input.load` returns them (bytes of images, rows of
    numbers), to output name → array. `decided`: the binary tasks with a decision, 1 or 0, in the
    output "<task>_decision".
    """

    tasks: tuple[Task, ...]
    call: Callable[[Any], Mapping[str, np.ndarray]]
    sha256: str
    input: Input
    decided: frozenset[str] = frozenset()

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns of a table."""
        return getattr(self.input, "features", None)


def model_predictor(
    model: keras.Model,
    tasks: Iterable[Task | str],
    file: str | os.PathLike[str],
    input: Input | None = None,
    id_column: str | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Predictor:
    """Make a predictor of a trained model.

    Args:
        model: as `build_model` makes it.
        tasks: what its outputs predict, in order.
        file: the one that it was loaded from.
        input: what the model takes, such as `manifest.input`; by default images.
        id_column: of a table, the names of the rows.
        thresholds: by binary task, from which probability on the answer is yes; by default 0.5.

    Raises:
        ValueError: tasks that differ from the outputs, or an input that the model does not take.
    """
    import tensorflow as tf

    from kerasmtl.evaluation.calibration import DEFAULT
    from kerasmtl.evaluation.scores import decided_at
    from kerasmtl.models.build import check_outputs

    chosen = as_tasks(tasks)
    check_outputs(model, chosen)
    bound = _named((Image() if input is None else input).for_model(model), id_column)
    binary = [task.name for task in chosen if task.kind == "binary"]
    at = {name: (thresholds or {}).get(name, DEFAULT) for name in binary}

    @tf.function(reduce_retracing=True, autograph=False)
    def run(batch: tf.Tensor) -> dict[str, tf.Tensor]:
        return by_task(model(bound.prepare(batch), training=False), chosen)

    def call(batch: Any) -> Outputs:
        found = _arrays(run(tf.convert_to_tensor(batch)))
        decisions = {name: decided_at(at[name], found[name]).astype("int32") for name in at}
        return found | {name + _DECISION: values for name, values in decisions.items()}

    return Predictor(
        tasks=tuple(_with_classes(task) for task in chosen),
        call=call,
        sha256=_sha256([Path(file)], [task.name for task in chosen], bound.config(), at),
        input=bound,
        decided=frozenset(binary),
    )


def export_predictor(export: str | os.PathLike[str], id_column: str | None = None) -> Predictor:
    """Make a predictor of a version of an exported model, with the decisions that it makes.

    Raises:
        FileNotFoundError, ValueError: no such export.
    """
    import tensorflow as tf

    described = describe_export(export)
    input = Input.from_config(described["input"]) if described else Image()
    loaded = tf.saved_model.load(str(export))
    function = loaded.signatures[input.raw_signature]
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
        input=_named(input, id_column),
        decided=frozenset(
            task.name
            for task in tasks
            if task.kind == "binary" and task.name + _DECISION in outputs
        ),
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

    of = predictor.input
    read = [(file, *read_features(file, of.features, of.packed_bits)) for file in files]
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
        """The answers for rows of a manifest's values, by output as `evaluate` takes them."""
        found = self.predictor.call(self._input.load(inputs))
        return {
            key: np.stack([found[self.tasks[c].name] for c in columns], axis=1)
            if self.tasks[columns[0]].kind != "multiclass"
            else found[self.tasks[columns[0]].name]
            for key, columns in output_columns(self.tasks).items()
        }

    def batches(self, rows: Manifest) -> list[tuple[Any, dict[str, np.ndarray]]]:
        """Values and labels, in batches."""
        self._input = rows.input.like(self.predictor.input)
        inputs = rows.input.select(rows.values, self._input)
        size = ROWS if rows.input.in_memory else BATCH
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


def _named(input: Input, id_column: str | None) -> Input:
    """The input with another column of names."""
    return input if id_column is None else replace(input, id_column=id_column)


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
