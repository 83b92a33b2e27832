"""`fine_tune`: training in stages, as one run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kerasmtl.sources import source_of
from kerasmtl.training.announcements import as_verbose
from kerasmtl.training.arguments import check_data, check_length, check_model
from kerasmtl.training.monitoring import Monitor
from kerasmtl.training.plans import (
    PATIENCE,
    Plan,
    as_plan,
    backbone_parameters,
    choose_plan,
    make_plan,
)
from kerasmtl.training.run import Run
from kerasmtl.training.stage_data import Cache, StageData
from kerasmtl.training.stages import Stage
from kerasmtl.training.state import held


def fine_tune(
    model: keras.Model,
    train: Any,
    validation: Any = None,
    plan: str | Plan | Sequence[Stage] = "auto",
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: Any = "auto",
    directory: str | os.PathLike[str] | None = None,
    monitor: str | tuple[str, str] | None = None,
    cache: Cache = "auto",
    ema: float | None = None,
) -> keras.callbacks.History:
    """Train in stages, as one run: the head first, then, with more data, the backbone as well.

    Each stage is `freeze` or `unfreeze`, `compile` and `fit`, since Keras fixes what is trainable
    when it compiles. One optimizer lasts through all of them, and keeps its slots; epoch numbers,
    history, callbacks and patience of callbacks run on. At the end the model has the weights of the
    best epoch of all stages. A compiled model keeps its optimizer's kind and settings, loss and
    metrics; otherwise Adam, `MaskedBinaryCrossentropy`, `MaskedAUC` and `MaskedBinaryAccuracy` are
    taken.

    Shapes and missing labels: as in the model's loss.

    Args:
        model: as `build_model` makes it; one without a backbone has stages "all" only, in which its
            layers are trained that are trainable.
        train: batches of (inputs, labels), NaN = missing, as a tf.data.Dataset. The order of
            the epochs, and whether its content has changed since the run was interrupted, is known
            of what `make_dataset` and `make_table_dataset` return.
        validation: likewise; needed for patience and for the best epoch.
        plan: "auto" (`choose_plan`, which prints why), a name as in `make_plan`, a Plan or stages.
        callbacks: Keras callbacks; their model is the full one. One that stops the training ends
            the run, and one with `state()` and `restore(state)`, dicts of arrays, is kept with it.
        verbose: 0: silent; 1: a bar per epoch; 2: a line per epoch; "auto": a bar on a terminal,
            else lines. Unless it is 0, each stage is announced, why it ends early, the best epoch,
            and that a run is resumed.
        directory: where the state is kept after each epoch. The same call again goes on after the
            last finished epoch, and after the last one returns the history. Without it nothing is
            kept. One run at a time may have it; `forget_run` removes what it holds.
        monitor: what makes an epoch the best, such as "val_auc", or ("val_mine", "max"); by default
            the first AUC of the validation, or else its first metric, or else its loss. An epoch in
            which it is NaN is never the best.
        cache: stages of the head run on features that are computed once, see `cache_features`:
            "auto" where that is possible, True (an error where it is not), False. Up to 256 batches
            then run in one call of the graph, with the same weights, unless a callback sees batches
            or weights are averaged.
        ema: validate, keep and end with a moving average of the weights of this decay, see
            `WeightAverage`; 0.999 is usual.

    Returns:
        The history of all stages, as of one `fit`.

    Raises:
        ValueError: a wrong plan, model or data (before anything is trained), patience without
            validation data, or a `directory` that holds a run of other settings or data; names what
            has changed.
        RuntimeError: a callback changed what is trainable, or compiled the model.
        FloatingPointError: the loss is NaN or infinite; says epoch, batch and rows. The model has
            the weights of the end of the last good epoch.
    """
    verbose = as_verbose(verbose)
    check_model(model, train)
    batches = check_data("train", train, model)
    if validation is not None:
        check_data("validation", validation, model)
    data = StageData(train, validation, cache, verbose)
    data.steps = batches
    chosen = _chosen(model, train, validation, plan)
    if validation is None and monitor is None and any(s.patience is not None for s in chosen):
        raise ValueError("`plan` has patience, which needs validation data. Pass validation=….")
    check_length(chosen, batches)
    if _is_auto(plan) and verbose:
        print(chosen)
    watched = Monitor(monitor, validation is not None)
    with held(directory):
        return Run(model, chosen, data, callbacks, verbose, watched, directory, ema).go()


def _chosen(model: keras.Model, train: Any, validation: Any, plan: Any) -> Plan:
    if not _is_auto(plan):
        return as_plan(plan)
    return plan_for(model, train, patience=None if validation is None else PATIENCE)


def _is_auto(plan: Any) -> bool:
    return isinstance(plan, str) and plan == "auto"


def plan_for(model: keras.Model, train: Any, name: str = "auto", **settings: Any) -> Plan:
    """The plan of a name; "auto" chooses one by the labels and the backbone, and says why.

    Args:
        model: as `build_model` makes it.
        train: batches of (inputs, labels), NaN = missing, of which the labels are counted.
        name: "auto", or as in `make_plan`.
        settings: as in `make_plan`.

    Raises:
        ValueError: an unknown name, or data without labels.
    """
    if not _is_auto(name):
        return make_plan(name, **settings)
    examples, known = count_labels(train)
    return choose_plan(examples, known, backbone_parameters(model), **settings)


def count_labels(data: Any) -> tuple[int, list[int]]:
    """How many rows a data set has, and how many of them have a label, by task.

    Raises:
        ValueError: it is none, or has no labels.
    """
    source = source_of(data)
    if source is not None:
        return source.count, _known(source.labels)
    if not hasattr(data, "element_spec") or not isinstance(data.element_spec, tuple):
        raise ValueError(
            "`train` cannot be counted, which plan='auto' needs. Expected a tf.data.Dataset of "
            f"(inputs, labels), or another plan. Received: {type(data).__name__}"
        )
    examples, known = 0, np.zeros(0, int)
    for labels in data.map(lambda *batch: batch[1]).as_numpy_iterator():
        counts = np.array(_known(labels))
        known = counts if not examples else known + counts
        examples += len(next(iter(labels.values())) if isinstance(labels, dict) else labels)
    return examples, [int(count) for count in known]


def _known(labels: Any) -> list[int]:
    arrays = labels.values() if isinstance(labels, dict) else [labels]
    counts: list[int] = []
    for array in arrays:
        known = ~np.isnan(np.asarray(array, "float64"))
        counts += np.atleast_1d(known.reshape(len(known), -1).sum(axis=0)).tolist()
    return counts
