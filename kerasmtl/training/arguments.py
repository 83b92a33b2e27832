"""What a training is given, looked at before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from kerasmtl.manifest import Manifest
from kerasmtl.table import Table
from kerasmtl.training.stages import Stage

# By what was received: what makes batches of it.
CORRECTED = "tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(32)"


def check_model(model: Any, train: Any) -> None:
    """Raise ValueError if a model cannot be trained: no model, not built, or no loss known."""
    if not isinstance(model, keras.Model):
        raise ValueError(
            "`model` is no Keras model. Expected a keras.Model, as kt.build_model(…) or "
            f"kt.load_model(…) returns it. Received: {type(model).__name__}"
        )
    if not model.built:
        raise ValueError(
            f"`model` {model.name!r} is not built: it has no weights yet. Expected a built model. "
            "Call it on one batch first: model(next(iter(train))[0])."
        )
    if model.compiled and model.optimizer is None:
        raise ValueError(
            "`model` is compiled without an optimizer. Expected one, as in "
            "model.compile('adam', loss=kt.default_losses(tasks))."
        )
    if model.compiled:
        return
    names = _several(getattr(model, "output", None) if _is_functional(model) else None)
    spec = getattr(train, "element_spec", None)
    if not names and isinstance(spec, tuple) and len(spec) > 1:
        names = _several(spec[1])
    if names:
        raise ValueError(
            f"`model` is not compiled, and has several outputs: {names}. Expected a loss for each, "
            "as in model.compile('adam', loss=kt.default_losses(tasks, train.labels), "
            "metrics=kt.default_metrics(tasks))."
        )


def check_data(name: str, data: Any, model: keras.Model) -> int | None:
    """How many batches the data has, None if that is not known.

    Raises:
        ValueError: it is no batches of (inputs, labels), or has none, or no end.
    """
    how = _corrected(data)
    if how is not None:
        raise ValueError(
            f"`{name}` is no data set in batches. Expected a tf.data.Dataset of (inputs, labels). "
            f"Pass {name}={how}. Received: {type(data).__name__}"
        )
    spec = getattr(data, "element_spec", None)
    if spec is not None:
        _check_spec(name, spec, model)
    batches = batches_of(data)
    if batches == 0:
        raise ValueError(
            f"`{name}` is empty. Expected at least one batch of (inputs, labels). Received: 0 "
            "batches"
        )
    if batches == float("inf"):
        raise ValueError(f"`{name}` has no end. Expected a data set of one epoch: no repeat().")
    return None if batches is None else int(batches)


def batches_of(data: Any) -> float | None:
    """The number of batches, infinity without an end, None if it is not known."""
    if isinstance(data, keras.utils.PyDataset):
        return float("inf") if data.num_batches is None else data.num_batches
    if hasattr(data, "cardinality"):
        count = int(data.cardinality())
        return {-1: float("inf"), -2: None}.get(count, count)
    return len(data) if hasattr(data, "__len__") else None


def check_length(stages: Sequence[Stage], batches: int | None) -> None:
    """Raise ValueError if a stage has a schedule and the number of batches is not known."""
    for number, stage in enumerate(stages, start=1):
        if batches is None and not stage.steady():
            raise ValueError(
                "`train` has an unknown number of batches, on which the warm-up and the cosine of "
                f"stage {number} depend. Expected "
                "train.apply(tf.data.experimental.assert_cardinality(…)), or stages with warmup=0 "
                f"and schedule='constant'. Received: {stage}"
            )


def _corrected(data: Any) -> str | None:
    """What to pass in place of data that is no batches; None if it may be."""
    if isinstance(data, Table):
        return "kt.make_table_dataset(table, training=True)"
    if isinstance(data, Manifest):
        return "kt.make_dataset(manifest, size, training=True)"
    one_use = isinstance(data, Iterator)
    if one_use or isinstance(data, str | bytes | Sequence | Mapping) or hasattr(data, "__array__"):
        return CORRECTED
    return None if hasattr(data, "__iter__") or hasattr(data, "__getitem__") else CORRECTED


def _check_spec(name: str, spec: Any, model: keras.Model) -> None:
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise ValueError(
            f"`{name}` gives no labels. Expected batches of (inputs, labels), as of {CORRECTED}. "
            f"Received: batches of {spec}"
        )
    rank = getattr(getattr(spec[0], "shape", None), "rank", None)
    shape = getattr(model, "input_shape", None) if _is_functional(model) else None
    if rank is not None and isinstance(shape, tuple) and len(shape) == rank + 1:
        if not any(isinstance(size, tuple) for size in shape):
            raise ValueError(
                f"`{name}` is not in batches. Expected inputs {shape}. Pass {name}="
                f"{name}.batch(32). Received: inputs {spec[0].shape}"
            )


def _is_functional(model: keras.Model) -> bool:
    return isinstance(model, keras.Sequential) or hasattr(model, "operations")


def _several(outputs: Any) -> list[Any]:
    if isinstance(outputs, Mapping):
        return sorted(outputs)
    if isinstance(outputs, Sequence) and len(outputs) > 1:
        return [getattr(output, "name", str(output)) for output in outputs]
    return []
