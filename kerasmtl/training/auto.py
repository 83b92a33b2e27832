"""What `plan="auto"` does: a head chosen by folds, and fine-tuning where labels can judge it.

`head_for` fits the head on the features of a model's frozen part. Where the validation part has too
few labels to tell one epoch from another, it takes part in the folds, and nothing is fine-tuned;
elsewhere the head starts the fine-tuning, which `keep_better` keeps only where it is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from kerasmtl.data.manifest import Manifest
from kerasmtl.data.splits import units
from kerasmtl.evaluation.evaluate import collected
from kerasmtl.models.layer_groups import sublayers
from kerasmtl.tasks import BINARY, Task, all_binary, output_columns
from kerasmtl.training.depth import after_the_head
from kerasmtl.training.feature_cache import FrozenPart, named
from kerasmtl.training.features import split_model
from kerasmtl.training.heads import FittedHead, Linear, Target, fit_head
from kerasmtl.training.plans import backbone_parameters

BATCH = 4096  # rows of a table that are encoded at a time


def head_for(
    model: keras.Model,
    train: tuple[Manifest, Any],
    validation: tuple[Manifest, Any],
    seed: int = 0,
    plan: str = "auto",
) -> FittedHead:
    """Choose and fit the head of a model by folds, on the features of its frozen part.

    Args:
        model: with a frozen part.
        train, validation: rows, and their data set without augmentation; validation may have none.
        seed: of the folds.
        plan: "head" has nothing after the head, "auto" what the labels allow (`after_the_head`),
            and any other name something.

    Returns:
        The head. With `tune` it has seen the training rows alone.

    Raises:
        ValueError: the model has no frozen part, or one whose features cannot be cached.
    """
    rows, held = train[0], validation[0]
    weights = backbone_parameters(model)
    name, why = plan, ""
    if not weights:  # a table, or nothing in the backbone that could be trained
        name = "head"
    elif plan == "auto":
        name, why = after_the_head(rows.labels, held.labels, rows.tasks, weights)
    tune = name != "head"
    # Without a validation part nothing is held back, and nothing judges.
    parts = [train] if tune or not len(held) else [train, validation]
    features = np.concatenate([features_of(model, *part) for part in parts])
    labels = np.concatenate([part.labels for part, _ in parts])
    groups = None
    if rows.groups is not None:
        groups = np.concatenate([np.asarray(part.groups, object) for part, _ in parts])
    views = encoded_views(model)
    # A hidden layer that has fitted the rows leaves nothing to learn: fine-tuning starts linear.
    kinds = [Linear()] if tune else None
    head = fit_head(features, labels, rows.tasks, groups, kinds, seed=seed, views=views)
    return replace(head, tune=tune, next=why)


def features_of(model: keras.Model, rows: Manifest, data: Any) -> np.ndarray:
    """Return the features of rows, (rows, features): cached, but for tables, which are fast.

    Args:
        model: with a frozen part that has one output, a vector.
        rows: of the manifest.
        data: their data set, not augmented.
    """
    if not rows.input.has_backbone:
        features, _ = split_model(model)
        parts = range(0, len(rows), BATCH)
        return np.concatenate([np.asarray(features(rows.values[i : i + BATCH])) for i in parts])
    with model.distribute_strategy.scope():
        part = FrozenPart(model)
    names = list(named(part.features.output))
    if len(names) > 1:
        raise ValueError(f"`model` must have one frozen output, got {len(names)}")
    found = part.cached(data)
    return np.concatenate([shard[names[0]] for shard in found.shards]).astype("float32")


def encoded_views(model: keras.Model) -> dict[str, slice] | None:
    """Return the views of the `ColumnEncoding` of a model; None of one without."""
    return next((each.views for each in sublayers(model) if hasattr(each, "views")), None)


def keep_better(
    model: keras.Model,
    before: Sequence[np.ndarray],
    validation: Any,
    tasks: Sequence[Task],
    verbose: bool = True,
    groups: Sequence[Any] | np.ndarray | None = None,
) -> str:
    """Keep fine-tuned weights only where they are better by more than the error of that.

    Compared are the model as it is now, as it was before, and with the mean of both weights
    (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903), by the losses of the same validation
    rows in pairs: the better of the two new ones stays if its loss is lower than before by more
    than a standard error. Otherwise the model gets its former weights back. Where `BestEpoch` chose
    the epoch by the same rows, the comparison is a little too kind to the new weights.

    Args:
        model: fine-tuned; its weights are changed.
        before: `model.get_weights()` before the fine-tuning.
        validation: batches of (inputs, labels), NaN = missing.
        tasks: what the model predicts.
        verbose: whether to print what was kept.
        groups: (rows,) of what belongs together, whose losses are added before their spread is
            taken.

    Returns:
        "frozen", "average" or "fine-tuned".

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import kerasmtl as kt
        >>> inputs = keras.Input((1,))
        >>> model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(inputs))
        >>> model.set_weights([np.array([[0.0]]), np.array([0.0])])
        >>> before = model.get_weights()
        >>> model.set_weights([np.array([[-9.0]]), np.array([0.0])])
        >>> x = np.linspace(-1, 1, 20)[:, None]
        >>> kt.plans.keep_better(model, before, [(x, x > 0)], [kt.Task("up")], verbose=False)
        'frozen'
    """
    columns, after = output_columns(tasks), model.get_weights()
    # Batch normalization and seeds are weights as well, and are averaged or kept alike.
    mean = [
        (a + b) / 2 if np.issubdtype(a.dtype, np.floating) else b
        for a, b in zip(before, after, strict=True)
    ]
    losses: dict[str, np.ndarray] = {}
    tried = {"frozen": list(before), "average": mean, "fine-tuned": after}
    for name, weights in tried.items():
        model.set_weights(weights)
        labels, outputs = collected(model, validation, columns, progress=False)
        flat = np.concatenate([labels[key] for key in columns], axis=1)
        order = np.argsort([column for key in columns for column in columns[key]])
        target = Target(flat[:, order].astype("float64"), tasks)
        z = target.logits(outputs[BINARY] if all_binary(tasks) else outputs)
        # As for the head: at its best scale, since a network that is too sure can be made less so.
        z = target.prior + target.scaled(z)[0] * (z - target.prior)
        losses[name] = (target.losses(z) * target.weight).sum(axis=1)
    best = min(("average", "fine-tuned"), key=lambda name: losses[name].sum())
    gain = losses["frozen"] - losses[best]
    if groups is not None:
        gain = np.bincount(units(np.asarray(groups)), gain)
    error = float(gain.std() * math.sqrt(len(gain)))
    kept = best if gain.sum() > error else "frozen"
    model.set_weights(tried[kept])
    if verbose:
        what = {
            "frozen": "is not kept: the model is the frozen backbone with its head",
            "average": "is kept half: the weights are the mean of before and after",
            "fine-tuned": "is kept",
        }[kept]
        print(
            f"Fine-tuning {what}. Validation loss {losses['frozen'].sum():.4f} before, better by "
            f"{gain.sum():.4f} ± {error:.4f}.",
            flush=True,
        )
    return kept
