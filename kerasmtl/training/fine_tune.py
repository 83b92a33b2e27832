"""`fine_tune`: a loop over the stages of a plan, each a `compile` and a `fit`.

The checks come first, since a mistake in the last stage should not show after hours of training.
`Resume` does the bookkeeping; train.py of a project has the same loop without the checks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from kerasmtl.data.manifest import Manifest
from kerasmtl.losses import MaskedBinaryCrossentropy
from kerasmtl.metrics import MaskedAUC, MaskedBinaryAccuracy
from kerasmtl.training.callbacks import BestEpoch
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
        train: a tf.data.Dataset or keras.utils.PyDataset of batches (inputs, labels), NaN =
            missing. The order of the epochs, and whether its content has changed since the run was
            interrupted, is known of what `kt.make_dataset` returns.
        validation: likewise; needed for patience and for the best epoch.
        plan: "auto" (`kt.plans.plan_for`, and prints why), a name as in `kt.plans.make_plan`, a
            Plan or stages.
        callbacks: Keras callbacks; their model is the whole one. One that stops the training ends
            the run. A head on cached features may run several batches in one call of the graph, of
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
        FloatingPointError: the loss is NaN or infinite; names the epoch and the batches and, if it
            is one, its rows. The model has the weights of the end of the last good epoch.
        tf.errors.InvalidArgumentError: labels or predictions that the loss does not take.

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
    _check_model(model)
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
    best = BestEpoch(monitor, verbose=bool(verbose))
    resume = Resume(directory, model, [*callbacks, best], verbose=bool(verbose))
    for stage in resume.stages(stages, train, validation, **settings):
        # In this order: Keras fixes at `compile` what is trained, and the head of a cached stage is
        # compiled as the model is.
        stage.prepare(model)
        compile_like(model, model, stage.optimizer(model, steps, like=given))
        part, data = stage.data(model, train, validation, cache, verbose=bool(verbose))
        part.fit(
            **data,
            initial_epoch=resume.epoch,
            epochs=resume.until,
            callbacks=[resume],
            shuffle=False,  # a tf.data.Dataset shuffles itself, and Keras warns of True
            verbose=verbose,
        )
    return resume.history


# ---------------------------------------------------------------- checks of the arguments


def _check_patience(plan: Plan, validation: Any, monitor: Any) -> None:
    """Raise ValueError if something waits for validation data that is not given."""
    waits = any(stage.patience is not None for stage in plan)
    named = "val_" in str(monitor)
    if validation is None and (named or (waits and monitor is None)):
        what = f"`monitor` {monitor!r}" if named else "the patience of `plan`"
        raise ValueError(f"`validation` must be given for {what}, got None")


def _check_model(model: Any) -> None:
    """Raise ValueError if a model cannot be trained: not a model, not built, or no loss known.

    Args:
        model: one that is not compiled gets a binary loss and metrics, so it must have one output.
    """
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            "`model` must be a keras.Model with weights, as kt.build_model(…) or kt.load_model(…) "
            f"returns it, got {model!r}. Call another one on a batch first."
        )
    if not model.compiled and len(getattr(model, "outputs", None) or [0]) > 1:
        raise ValueError(
            f"`model` must be compiled if it has several outputs, got {model.output_names}. Call "
            "model.compile('adam', loss=kt.losses.for_tasks(tasks, train.labels), "
            "metrics=kt.metrics.for_tasks(tasks)) first."
        )


def _check_data(name: str, data: Any, model: keras.Model) -> int | None:
    """Return how many batches the data has, None if that is not known.

    Args:
        name: of the argument, for messages.
        data: a `tf.data.Dataset` or `PyDataset`; anything else is refused, with a hint.
        model: whose input tells rows from batches.

    Raises:
        ValueError: it does not consist of batches of (inputs, labels), has none, or has no end.
    """
    if not isinstance(data, tf.data.Dataset | keras.utils.PyDataset):
        manifest = isinstance(data, Manifest)
        made = "kt" if manifest else "tf.data.Dataset"
        call = "make_dataset(manifest, …)" if manifest else "from_tensor_slices((x, y)).batch(32)"
        raise ValueError(
            f"`{name}` must be a tf.data.Dataset, batches of (inputs, labels), got "
            f"{type(data).__name__}. Pass {name}={made}.{call}."
        )
    spec = getattr(data, "element_spec", (None, None))
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise ValueError(f"`{name}` must be batches of (inputs, labels), got batches of {spec}")
    inputs, shape = getattr(model, "inputs", None) or (), getattr(spec[0], "shape", None)
    if len(inputs) == 1 and getattr(shape, "rank", None) == len(inputs[0].shape) - 1:
        raise ValueError(
            f"`{name}` must be in batches, inputs {inputs[0].shape}, got inputs {shape}. Pass "
            f"{name}={name}.batch(32)."
        )
    count = data.num_batches if hasattr(data, "num_batches") else int(data.cardinality())
    if count in (None, tf.data.INFINITE_CARDINALITY):
        raise ValueError(f"`{name}` must be a data set of one epoch: no repeat(), got no end")
    if count == 0:
        raise ValueError(f"`{name}` must have at least one batch of (inputs, labels), got none")
    return None if count == tf.data.UNKNOWN_CARDINALITY else count
