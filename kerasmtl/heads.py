"""From pooled features to outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from kerasmtl.tasks import BINARY, Task, all_binary, output_columns


def pool(features: Any) -> Any:
    """Features as (batch, features): a map (batch, height, width, features) is averaged.

    Raises:
        ValueError: several outputs, or an output that is neither a vector nor a map.
    """
    rank = len(features.shape) if hasattr(features, "shape") else None
    if rank == 4:
        return keras.layers.GlobalAveragePooling2D(name="head_pool")(features)
    if rank != 2:
        received = features.shape if rank else type(features).__name__
        raise ValueError(
            "`backbone` gives no feature vector. Expected one output, (batch, features) or (batch, "
            f"height, width, features). Received: {received}. For a module with named outputs call "
            "HubLayer(…, output_key=…)."
        )
    return features


def task_head(
    features: Any,
    tasks: Sequence[Task],
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    scales: Mapping[str, tuple[float, float]] | None = None,
) -> Any:
    """Dense layers with ReLU and dropout, then the outputs of all tasks.

    Shapes: features (batch, features) in. Binary tasks only: probabilities (batch, tasks) out, in
    the order of `tasks`. Other kinds among them: a dict as `output_columns` names it, "binary"
    (batch, binary tasks) probabilities, each multiclass task (batch, classes) probabilities that
    sum to 1, each regression task (batch, 1). float32 under any global policy.

    `scales`: by regression task, mean and standard deviation of its labels (`target_scales`): the
    network then learns the standardised label, and a last layer brings it to the label's unit.

    Raises:
        ValueError: a hidden width below 1, dropout outside [0, 1), or a multiclass task whose
            classes are not known yet.
    """
    check_widths(hidden)
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"`dropout` is no share. Expected 0 <= dropout < 1. Received: {dropout}")
    for number, width in enumerate(hidden, start=1):
        features = keras.layers.Dense(width, activation="relu", name=f"head_dense_{number}")(
            features
        )
        features = keras.layers.Dropout(dropout, name=f"head_dropout_{number}")(features)
    if not hidden and dropout:
        features = keras.layers.Dropout(dropout, name="head_dropout")(features)
    if all_binary(tasks):
        return _output(features, len(tasks), "sigmoid", "head")
    return {
        key: _output_of(
            features, [tasks[column] for column in columns], columns[0], (scales or {}).get(key)
        )
        for key, columns in output_columns(tasks).items()
    }


def check_widths(hidden: Sequence[int]) -> None:
    """Raise ValueError unless all widths of dense layers are positive whole numbers."""
    if not all(isinstance(width, int) and width > 0 for width in hidden):
        raise ValueError(
            f"`hidden` is no list of widths. Expected positive integers. Received: {list(hidden)}"
        )


def _output_of(
    features: Any, tasks: list[Task], position: int, scale: tuple[float, float] | None
) -> Any:
    # Layers are numbered: a task's name may have characters that a layer's must not have.
    if tasks[0].kind == "binary":
        return _output(features, len(tasks), "sigmoid", f"head_{BINARY}")
    if tasks[0].kind == "multiclass":
        return _output(features, tasks[0].outputs, "softmax", f"head_{position}")
    plain = _output(features, 1, "linear", f"head_{position}")
    if scale is None:
        return plain
    mean, std = scale
    name = f"head_{position}_scale"
    return keras.layers.Rescaling(std, mean, dtype="float32", name=name)(plain)


def _output(features: Any, units: int, activation: str, name: str) -> Any:
    return keras.layers.Dense(units, activation=activation, dtype="float32", name=name)(features)


def by_task(outputs: Any, tasks: Sequence[Task]) -> dict[str, Any]:
    """A model's outputs by task name.

    Shapes: outputs as `task_head` makes them; returns (batch,) probabilities of a binary task,
    (batch,) numbers of a regression task, (batch, classes) probabilities of a multiclass task.
    """
    if not isinstance(outputs, dict):
        return {task.name: outputs[:, column] for column, task in enumerate(tasks)}
    named = {}
    for key, columns in output_columns(tasks).items():
        for position, column in enumerate(columns):
            whole = tasks[column].kind == "multiclass"
            named[tasks[column].name] = outputs[key] if whole else outputs[key][:, position]
    return {task.name: named[task.name] for task in tasks}


def check_outputs(model: keras.Model, tasks: Sequence[Task]) -> None:
    """Raise ValueError unless the model has the outputs that `task_head` makes for these tasks."""
    if all_binary(tasks):
        expected, shown = (None, len(tasks)), f"output (batch, {len(tasks)})"
    else:
        expected = {
            key: (None, sum(tasks[column].outputs for column in columns))
            for key, columns in output_columns(tasks).items()
        }
        shown = f"outputs {expected}"
    received = output_shapes(model)
    if received != expected:
        raise ValueError(
            f"`tasks` does not fit the model. Expected {shown} for {[t.name for t in tasks]}. "
            f"Received: {received}{_without_task(received, expected)}"
        )


def _without_task(received: Any, expected: Any) -> str:
    if isinstance(received, dict):
        known = expected if isinstance(expected, dict) else {BINARY: expected}
        beyond: list[Any] = [key for key in received if key not in known]
        return f". Outputs without a task: {beyond}" if beyond else ""
    if isinstance(expected, dict) or not isinstance(received, tuple) or len(received) != 2:
        return ""
    beyond = list(range(expected[1], received[1] or 0))
    return f". Columns without a task: {beyond}" if beyond else ""


def output_shapes(model: keras.Model) -> Any:
    """The shape of the output, or a dict of them, which `model.output_shape` would flatten."""
    if isinstance(model.output, dict):
        return {key: tuple(output.shape) for key, output in model.output.items()}
    return model.output_shape
