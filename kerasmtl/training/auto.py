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
from kerasmtl.evaluation.evaluate import collected
from kerasmtl.models.layer_groups import sublayers
from kerasmtl.tasks import Task, output_columns
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
    name = plan if rows.input.has_backbone else "head"
    if name == "auto":
        name, _ = after_the_head(rows.labels, held.labels, rows.tasks, backbone_parameters(model))
    tune = name != "head"
    # Without a validation part nothing is held back, and nothing judges.
    parts = [train] if tune or not len(held) else [train, validation]
    features = np.concatenate([features_of(model, *part) for part in parts])
    labels = np.concatenate([part.labels for part, _ in parts])
    groups = None
    if rows.groups is not None:
        named_groups = [each for part, _ in parts for each in part.groups]
        # A row without a group is alone.
        groups = np.array(
            [f"row {i}" if g is None else f"group {g}" for i, g in enumerate(named_groups)]
        )
    views = encoded_views(model)
    # A hidden layer that has fitted the rows leaves nothing to learn: fine-tuning starts linear.
    kinds = [Linear()] if tune else None
    head = fit_head(features, labels, rows.tasks, groups, kinds, seed=seed, views=views)
    return replace(head, tune=tune)


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
    part = FrozenPart(model)
    found = part.cached(data)
    shards = np.concatenate([np.asarray(shard) for shard in found.shards])
    (name,) = named(part.features.output)
    return shards[name].astype("float32")


def encoded_views(model: keras.Model) -> dict[str, slice] | None:
    """Return the views of the `ColumnEncoding` of a model; None of one without."""
    return next((each.views for each in sublayers(model) if hasattr(each, "views")), None)


def keep_better(
    model: keras.Model,
    before: Sequence[np.ndarray],
    validation: Any,
    tasks: Sequence[Task],
    verbose: bool = True,
) -> str:
    """Keep fine-tuned weights only where they are better by more than the error of that.

    Compared are the model as it is now, as it was before, and with the mean of both weights
    (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903), by the losses of the same validation
    rows in pairs: the better of the two new ones stays if its loss is lower than before by more
    than a standard error. Otherwise the model gets its former weights back.

    Args:
        model: fine-tuned; its weights are changed.
        before: `model.get_weights()` before the fine-tuning.
        validation: batches of (inputs, labels), NaN = missing.
        tasks: what the model predicts.
        verbose: whether to print what was kept.

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
        found = outputs if len(outputs) > 1 or None in outputs else next(iter(outputs.values()))
        z = target.logits(found)
        # As for the head: at its best scale, since a network that is too sure can be made less so.
        z = target.prior + target.scaled(z)[0] * (z - target.prior)
        losses[name] = (target.losses(z) * target.weight).sum(axis=1)
    best = min(("average", "fine-tuned"), key=lambda name: losses[name].sum())
    gain = losses["frozen"] - losses[best]
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
