"""`Predictor`: a trained or an exported model as one function from raw inputs to named arrays.

`kerasmtl predict` and `batch_predict` use it for files, `kerasmtl evaluate` for exports by way of
`ExportScorer`. Both kinds of model answer alike, with the same names, so that what comes after need
not know which of them it has.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from kerasmtl.data.images import PREPROCESSING
from kerasmtl.data.inputs import Image, Input
from kerasmtl.evaluation.calibration import DEFAULT
from kerasmtl.evaluation.report import decided_at
from kerasmtl.export.description import DECISION, check_version_folder, read_description
from kerasmtl.models.build import check_outputs
from kerasmtl.tasks import Task, as_tasks, by_task, output_columns
from kerasmtl.utils.files import file_sha256

if TYPE_CHECKING:
    import keras

    from kerasmtl.data.manifest import Manifest

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Predictor:
    """A model that predicts; made by `model_predictor` or `export_predictor`.

    Attributes:
        tasks: the tasks, those of several classes with the names of all of them.
        call: from a batch of raw inputs, as `input.load` returns them (bytes of images, rows of
            numbers), to output name → array, as an export answers: "<task>" (batch,) or
            (batch, classes), and "<task>_decision" of the tasks in `decided`.
        sha256: of all that determines a prediction.
        input: the kind of input.
        decided: names of the binary tasks that have a decision, 1 or 0.
    """

    tasks: tuple[Task, ...]
    call: Callable[[Any], Mapping[str, np.ndarray]]
    sha256: str
    input: Input
    decided: frozenset[str] = frozenset()

    @property
    def batch_size(self) -> int:
        """The number of inputs that are predicted in one call by default."""
        return 1024 if self.input.in_memory else 32


def model_predictor(
    model: keras.Model,
    tasks: Iterable[Task | str],
    file: str | os.PathLike[str],
    input: Input | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Predictor:
    """Make a predictor of a trained model.

    Args:
        model: such as `build_model` makes it.
        tasks: what its outputs predict, in order.
        file: the file that the model was loaded from.
        input: what the model takes, such as `manifest.input`; by default images.
        thresholds: by binary task, the probability from which the decision is 1; by default 0.5.

    Raises:
        ValueError: tasks that differ from the outputs, or an input that the model does not take.
    """
    chosen = as_tasks(tasks)
    check_outputs(model, chosen)
    bound = (Image() if input is None else input).for_model(model)
    binary = [task.name for task in chosen if task.kind == "binary"]
    at = {name: (thresholds or {}).get(name, DEFAULT) for name in binary}

    # The last batch is smaller: without `reduce_retracing` each new size would trace the model
    # again.
    @tf.function(reduce_retracing=True, autograph=False)
    def run(raw: tf.Tensor) -> dict[str, tf.Tensor]:
        """Preprocess and predict in one graph; by task (batch,) or (batch, classes)."""
        return by_task(model(bound.prepare(raw), training=False), chosen)

    def call(raw: Any) -> Outputs:
        found = _arrays(run(tf.convert_to_tensor(raw)))
        decisions = {name: decided_at(at[name], found[name]).astype("int32") for name in at}
        return found | {name + DECISION: values for name, values in decisions.items()}

    return Predictor(
        tasks=chosen,
        call=call,
        sha256=_sha256([Path(file)], [task.name for task in chosen], bound.config(), at),
        input=bound,
        decided=frozenset(binary),
    )


def export_predictor(export: str | os.PathLike[str]) -> Predictor:
    """Make a predictor of a version of an exported model, with the decisions that it makes.

    Args:
        export: the folder, such as saved_models/NAME/1. A SavedModel without a model.json is taken
            for one of images, whose tasks follow from its outputs.

    Returns:
        The predictor; its hash is that of the graph and of the variables, so that a copy of the
        version has the same.

    Raises:
        FileNotFoundError, ValueError: the export does not exist, or has no signature that takes
            raw inputs.
    """
    folder = check_version_folder(export)
    described = read_description(folder) or {}
    input = Input.from_config(described["input"]) if described.get("input") else Image()
    loaded = tf.saved_model.load(str(folder))
    function = loaded.signatures.get(input.raw_signature)
    given = function.structured_input_signature[1] if function else {}
    if len(given) != 1:
        got = f"arguments {sorted(given)} of it" if given else f"{sorted(loaded.signatures)}"
        raise ValueError(
            f"`export` must have a signature {input.raw_signature!r} with one argument, got {got} "
            f"in {folder}. Export with kt.export_saved_model, or call the SavedModel itself."
        )
    ((argument, spec),) = given.items()
    outputs = function.structured_outputs
    tasks = _exported_tasks(described, outputs)

    def call(raw: Any) -> Outputs:
        loaded.signatures  # noqa: B018 – keeps what was loaded, and with it the function, alive
        return _arrays(function(**{argument: tf.convert_to_tensor(raw, spec.dtype)}))

    binary = [task.name for task in tasks if task.kind == "binary"]
    return Predictor(
        tasks=tasks,
        call=call,
        sha256=_sha256(
            [folder / "saved_model.pb", *sorted((folder / "variables").glob("*"))], argument
        ),
        input=input,
        decided=frozenset(name for name in binary if name + DECISION in outputs),
    )


class Prediction(dict[str, Any]):
    """What is predicted for one input: by task a probability, a number, or class → probability.

    Attributes:
        decisions: by task 1 or 0, or the likeliest class; regression tasks have none.

    Example:
        >>> found = Prediction({"night": 0.7}, {"night": 1})
        >>> found["night"], found.decisions
        (0.7, {'night': 1})
    """

    def __init__(self, values: Mapping[str, Any], decisions: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.decisions = dict(decisions)


def predictions(predictor: Predictor, outputs: Mapping[str, np.ndarray]) -> list[Prediction]:
    """Split the outputs of a batch by its rows.

    Args:
        predictor: of the model.
        outputs: as `predictor.call` returns them, (batch, …) by name.

    Returns:
        One prediction per row.
    """
    found = []
    for row in range(len(next(iter(outputs.values()), ()))):
        values: dict[str, Any] = {}
        decisions: dict[str, Any] = {}
        for task in predictor.tasks:
            value = outputs[task.name][row]
            if task.kind == "multiclass":
                values[task.name] = dict(zip(task.classes, map(float, value), strict=True))
                decisions[task.name] = task.classes[int(np.argmax(value))]
            else:
                values[task.name] = float(value)
            if task.name in predictor.decided:
                decisions[task.name] = int(outputs[task.name + DECISION][row])
        found.append(Prediction(values, decisions))
    return found


class ExportScorer:
    """An export in place of a model, for `evaluate`.

    Args:
        predictor: of the export.
        rows: what it is scored on.

    Raises:
        ValueError: the tasks of the rows are not those of the export.
    """

    def __init__(self, predictor: Predictor, rows: Manifest) -> None:
        names, own = ([task.name for task in some] for some in (rows.tasks, predictor.tasks))
        if set(names) != set(own):
            raise ValueError(f"`model` must predict the tasks {names}, got {own}")
        self.predictor, self.rows = predictor, rows
        self._input = rows.input.like(predictor.input)
        self._outputs = output_columns(rows.tasks)

    def predict_on_batch(self, values: Any) -> Outputs:
        """Return the export's outputs for a manifest's values, (batch, …), in a model's layout."""
        tasks = self.rows.tasks
        found = self.predictor.call(self._input.load(values))
        return {
            key: found[key]
            if tasks[columns[0]].kind == "multiclass"
            else np.stack([found[tasks[column].name] for column in columns], axis=1)
            for key, columns in self._outputs.items()
        }

    def batches(self) -> list[tuple[Any, Outputs]]:
        """Return values and labels of all rows, in batches."""
        size = self.predictor.batch_size
        values = self.rows.input.select(self.rows.values, self._input)
        return [
            (values[rows], {k: self.rows.labels[rows, at] for k, at in self._outputs.items()})
            for rows in (slice(at, at + size) for at in range(0, len(values), size))
        ]


def _exported_tasks(described: Mapping[str, Any], outputs: Mapping[str, Any]) -> tuple[Task, ...]:
    """Return the tasks that an export describes, or else those that its outputs look like."""
    found = described.get("tasks")
    if not found:
        # Sorted, since TensorFlow's order differs from process to process.
        names = sorted(n for n in outputs if n.removesuffix(DECISION) not in {*outputs} - {n})
        kinds = {2: "multiclass"}
        found = [{"name": n, "kind": kinds.get(outputs[n].shape.rank, "binary")} for n in names]
    tasks = [Task(task["name"], task["kind"], tuple(task.get("classes") or ())) for task in found]
    return tuple(
        replace(task, classes=tuple(map(str, range(outputs[task.name].shape[-1]))))
        if task.kind == "multiclass" and not task.classes
        else task
        for task in tasks
    )


def _arrays(outputs: Mapping[str, tf.Tensor]) -> Outputs:
    """Return tensors as NumPy arrays, of the same names."""
    return {name: np.asarray(values) for name, values in outputs.items()}


def _sha256(files: Sequence[Path], *more: Any) -> str:
    """Hash files with all else that changes predictions: settings, preprocessing, TensorFlow."""
    whole = hashlib.sha256(repr((more, PREPROCESSING, tf.__version__)).encode())
    for path in files:
        whole.update(f"{path.name} {file_sha256(path)}\n".encode())
    return whole.hexdigest()
