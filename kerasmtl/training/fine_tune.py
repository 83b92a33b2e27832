"""`fine_tune`: a loop over the stages of a plan, each a `compile` and a `fit`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras

from kerasmtl.data.manifest import Manifest
from kerasmtl.losses import MaskedBinaryCrossentropy
from kerasmtl.metrics import MaskedAUC, MaskedBinaryAccuracy
from kerasmtl.training.callbacks import BestEpoch, EpochLines
from kerasmtl.training.plans import PATIENCE, Cache, Plan, Stage, as_plan, compile_like, plan_for
from kerasmtl.training.resume import Resume, configuration


def fine_tune(
    model: keras.Model,
    train: Any,
    validation: Any = None,
    plan: str | Plan | Sequence[Stage] = "auto",
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int | str = "auto",
    directory: str | os.PathLike[str] | None = None,
    monitor: str | tuple[str, str] | None = None,
    cache: Cache = "auto",
) -> keras.callbacks.History:
    """Train in stages, as one run: the head first, then, with more data, the backbone as well.

    Its code is the loop to copy for a training of your own. Each stage freezes and unfreezes,
    compiles the model with a new optimizer and fits it; epoch numbers, history and callbacks run
    on. At the end the model has the weights of the best epoch of all stages. A compiled model keeps
    its optimizer's kind and settings, its loss and its metrics; otherwise Adam,
    `MaskedBinaryCrossentropy`, `MaskedAUC` and `MaskedBinaryAccuracy` are taken.

    Missing labels are those of the model's loss. A moving average of the weights is that of Keras:
    compile with `keras.optimizers.Adam(use_ema=True)`, and pass
    `keras.callbacks.SwapEMAWeights(swap_on_epoch=True)`.

    Args:
        model: as `kt.build_model` makes it; one without a backbone has stages "all" only, in which
            its layers are trained that are trainable.
        train: batches of (inputs, labels), NaN = missing, as a tf.data.Dataset. The order of
            the epochs, and whether its content has changed since the run was interrupted, is known
            of what `kt.make_dataset` returns.
        validation: likewise; needed for patience and for the best epoch.
        plan: "auto" (`kt.plans.plan_for`, and prints why), a name as in `kt.plans.make_plan`, a
            Plan or stages.
        callbacks: Keras callbacks; their model is the whole one. One that stops the training ends
            the run. Stages of a cached head run up to 256 batches in one call of the graph, of
            which callbacks see the last: `cache=False` shows each.
        verbose: 0: silent; 1: a bar per epoch; 2: a line per epoch; "auto": a bar on a terminal,
            else lines. Unless it is 0, each stage is announced, why it ends early, the best epoch,
            and that a run is resumed.
        directory: where the state is kept after each epoch (`kt.callbacks.Resume`). The same call
            again resumes after the last finished epoch, and after the last one returns the history.
            Without it nothing is kept; `kt.plans.reset_run` removes what it holds.
        monitor: what makes an epoch the best, as in `kt.callbacks.BestEpoch`.
        cache: stages of the head run on features that are computed once (`kt.features`): "auto"
            where that is possible, True (an error where it is not), False.

    Returns:
        The history of all stages, as of one `fit`.

    Raises:
        ValueError: a wrong plan, model or data (before anything is trained), patience without
            validation data, or a `directory` that holds a run of other settings or data; names what
            has changed.
        RuntimeError: a callback changed what is trainable, or compiled the model.
        FloatingPointError: the loss is NaN or infinite; says epoch, batch and rows. The model has
            the weights of the end of the last good epoch.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import tensorflow as tf
        >>> import kerasmtl as kt
        >>> images, labels = np.ones((4, 8, 8, 3)), np.array([[1.0], [0.0], [np.nan], [1.0]])
        >>> data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(2)
        >>> backbone = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
        >>> model = kt.build_model(backbone, ["cat"])
        >>> plan = [kt.plans.Stage("head", 2, 1e-3), kt.plans.Stage("all", 1, 1e-4)]
        >>> kt.fine_tune(model, data, plan=plan, verbose=0).epoch
        [0, 1, 2]
    """
    verbose = (1 if sys.stdout.isatty() else 2) if verbose == "auto" else int(verbose)
    _check_model(model, train)
    steps = _check_data("train", train, model)
    if validation is not None:
        _check_data("validation", validation, model)
    patience = None if validation is None else PATIENCE
    auto = isinstance(plan, str) and plan == "auto"
    stages = plan_for(model, train, patience=patience) if auto else as_plan(plan)
    _check_patience(stages, validation, monitor)
    for stage in stages:  # a schedule has to know the number of batches
        stage.rate(steps)
    if auto and verbose:
        print(stages)
    if not model.compiled:
        metrics = [MaskedAUC(), MaskedBinaryAccuracy()]
        model.compile("adam", MaskedBinaryCrossentropy(), metrics=metrics)
    given = model.optimizer
    settings = {
        "optimizer": configuration(given),
        "loss": configuration(model.loss),
        "monitor": monitor,
        "cache": cache,
    }
    told = any(isinstance(each, EpochLines) for each in callbacks)
    lines = [EpochLines()] if verbose == 2 and not told else []
    best = BestEpoch(monitor, verbose=bool(verbose))
    resume = Resume(directory, model, [*callbacks, *lines, best], verbose=bool(verbose))
    for stage in resume.stages(stages, train, validation, **settings):
        stage.prepare(model)
        compile_like(model, model, stage.optimizer(model, steps, like=given))
        part, inputs, held = stage.data(model, train, validation, cache, verbose=bool(verbose))
        with resume.refusals():
            part.fit(
                inputs,
                validation_data=held,
                initial_epoch=resume.epoch,
                epochs=resume.until,
                callbacks=[resume],
                shuffle=False,  # a tf.data.Dataset shuffles itself, and Keras warns of True
                verbose=int(verbose == 1),
            )
    return resume.history


# ---------------------------------------------------------------- checks of the arguments


def _check_patience(plan: Plan, validation: Any, monitor: Any) -> None:
    name = monitor[0] if isinstance(monitor, tuple | list) and monitor else monitor
    waits = any(stage.patience is not None for stage in plan)
    needed = (waits and monitor is None) or str(name).startswith("val_")
    if validation is None and needed:
        what = f"`monitor` {name!r}" if monitor is not None else "the patience of `plan`"
        raise ValueError(f"`validation` must be given for {what}, got None")


def _check_model(model: Any, train: Any) -> None:
    """Raise ValueError if a model cannot be trained: not a model, not built, or no loss known."""
    if not isinstance(model, keras.Model):
        raise ValueError(
            "`model` must be a keras.Model, as kt.build_model(…) or kt.load_model(…) returns it, "
            f"got {type(model).__name__}"
        )
    if not model.built:
        raise ValueError(
            f"`model` must be built, got {model.name!r} without weights. Call it on one batch "
            "first: model(next(iter(train))[0])."
        )
    if model.compiled and model.optimizer is None:
        raise ValueError(
            "`model` must be compiled with an optimizer, as in model.compile('adam', "
            "loss=kt.losses.for_tasks(tasks)), got None"
        )
    outputs: Any = model.outputs if _is_functional(model) else None
    spec = getattr(train, "element_spec", None)
    if not outputs and isinstance(spec, tuple) and len(spec) > 1:
        outputs = spec[1]
    if not model.compiled and isinstance(outputs, Mapping | list | tuple) and len(outputs) > 1:
        raise ValueError(
            f"`model` must be compiled if it has several outputs, got {len(outputs)}. Call "
            "model.compile('adam', loss=kt.losses.for_tasks(tasks, train.labels), "
            "metrics=kt.metrics.for_tasks(tasks)) first."
        )


def _check_data(name: str, data: Any, model: keras.Model) -> int | None:
    """Return how many batches the data has, None if that is not known.

    Raises:
        ValueError: it does not consist of batches of (inputs, labels), has none, or has no end.
    """
    call = "tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(32)"
    if isinstance(data, Manifest):
        call = "kt.make_dataset(manifest, …)"
    lists = isinstance(data, Manifest | Iterator | str | bytes | Sequence | Mapping)
    if lists or hasattr(data, "__array__") or not _is_iterable(data):
        raise ValueError(
            f"`{name}` must be batches of (inputs, labels), got {type(data).__name__}. Pass "
            f"{name}={call}."
        )
    spec = getattr(data, "element_spec", None)
    if spec is not None and (not isinstance(spec, tuple) or len(spec) not in (2, 3)):
        raise ValueError(f"`{name}` must be batches of (inputs, labels), got batches of {spec}")
    shape = model.input_shape if _is_functional(model) else None
    rank = getattr(getattr(spec[0], "shape", None), "rank", None) if spec else None
    flat = isinstance(shape, tuple) and not any(isinstance(size, tuple) for size in shape)
    if rank is not None and flat and len(shape) == rank + 1:
        raise ValueError(
            f"`{name}` must be in batches, inputs {shape}, got inputs {spec[0].shape}. Pass "
            f"{name}={name}.batch(32)."
        )
    count = _count(data)
    if count == 0:
        raise ValueError(f"`{name}` must have at least one batch of (inputs, labels), got none")
    if count == float("inf"):
        raise ValueError(f"`{name}` must be a data set of one epoch: no repeat(), got no end")
    return None if count is None else int(count)


def _count(data: Any) -> float | None:
    """Return the number of batches, infinity without an end, None if it is not known."""
    if isinstance(data, keras.utils.PyDataset):
        return float("inf") if data.num_batches is None else data.num_batches
    if hasattr(data, "cardinality"):
        count = int(data.cardinality())
        return {-1: float("inf"), -2: None}.get(count, count)
    return len(data) if hasattr(data, "__len__") else None


def _is_iterable(data: Any) -> bool:
    return isinstance(data, Iterable) or hasattr(data, "__getitem__")


def _is_functional(model: keras.Model) -> bool:
    return isinstance(model, keras.Sequential) or hasattr(model, "operations")
