"""Stages: what is trained, how fast and how long; `fine_tune` runs them one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras

from kerasmtl.backbones import backbone_layers
from kerasmtl.losses import MaskedBinaryCrossentropy
from kerasmtl.metrics import MaskedAUC, MaskedBinaryAccuracy
from kerasmtl.training.freezing import freeze, unfreeze


@dataclass(frozen=True)
class Stage:
    """A stretch of training: "head" trains the new layers alone, "all" the backbone as well.

    `patience`: stop the stage after that many epochs without a better validation loss.

    Raises:
        ValueError: unknown `train`, no epochs, or a learning rate that is not positive.
    """

    train: Literal["head", "all"]
    epochs: int
    learning_rate: float
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.train not in ("head", "all"):
            raise ValueError(
                f"`train` is unknown. Expected 'head' or 'all'. Received: {self.train!r}"
            )
        if self.epochs < 1:
            raise ValueError(f"`epochs` is too small. Expected at least 1. Received: {self.epochs}")
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` is not positive. Received: {self.learning_rate}")


DEFAULT_PLAN = (Stage("head", epochs=10, learning_rate=1e-3), Stage("all", 10, 1e-4))


def fine_tune(
    model: keras.Model,
    train: Any,
    validation: Any = None,
    plan: Sequence[Stage] = DEFAULT_PLAN,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: Any = "auto",
) -> keras.callbacks.History:
    """Train in stages: the head first, then the backbone at a lower rate.

    Each stage is `freeze` or `unfreeze`, `compile` and `fit`, since Keras fixes what is trainable
    when it compiles. Epoch numbers and the returned history run on over the stages. A compiled
    model keeps its optimizer's kind, loss and metrics; otherwise Adam, `MaskedBinaryCrossentropy`,
    `MaskedAUC` and `MaskedBinaryAccuracy` are taken.

    Args:
        model: as `build_model` makes it.
        train: batches of (image, labels), NaN = missing.
        validation: likewise; needed for a stage's `patience`.
        plan: the stages.
        callbacks: Keras callbacks, for all stages.
        verbose: as in `fit`.

    Raises:
        ValueError: an empty plan, patience without validation data, or no backbone to freeze.
    """
    if not plan:
        raise ValueError("`plan` is empty. Expected at least one Stage.")
    if validation is None and any(stage.patience is not None for stage in plan):
        raise ValueError("`plan` has patience, which needs validation data. Pass validation=….")
    backbone_layers(model)  # raises if there is none to freeze
    total = keras.callbacks.History()
    total.history, total.epoch = {}, []
    for stage in plan:
        freeze(model) if stage.train == "head" else unfreeze(model)
        _compile(model, stage.learning_rate)
        done = len(total.epoch)
        stopping = (
            [keras.callbacks.EarlyStopping(patience=stage.patience)]
            if stage.patience is not None
            else []
        )
        history = model.fit(
            train,
            validation_data=validation,
            initial_epoch=done,
            epochs=done + stage.epochs,
            callbacks=[*callbacks, *stopping],
            shuffle=False,  # a tf.data.Dataset shuffles itself, and Keras warns of True
            verbose=verbose,
        )
        total.epoch += history.epoch
        for name, values in history.history.items():
            total.history.setdefault(name, []).extend(values)
    return total


def _compile(model: keras.Model, learning_rate: float) -> None:
    """Compile as before, with a fresh optimizer at this rate."""
    if not model.compiled:
        model.compile(
            keras.optimizers.Adam(learning_rate),
            loss=MaskedBinaryCrossentropy(),
            metrics=[MaskedAUC(), MaskedBinaryAccuracy()],
        )
        return
    config = model.get_compile_config()
    optimizer = model.optimizer.get_config()
    config["optimizer"] = type(model.optimizer).from_config(
        {**optimizer, "learning_rate": learning_rate}
    )
    for key in ("loss", "metrics", "weighted_metrics"):
        if config.get(key):
            config[key] = keras.saving.deserialize_keras_object(config[key])
    model.compile(**config)
