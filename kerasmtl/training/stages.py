"""Stages: what of a model is trained, how fast and how long."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras

from kerasmtl.backbones import backbone_layers, backbones_in
from kerasmtl.training.freezing import freeze, unfreeze
from kerasmtl.training.schedules import WarmupCosine

SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class Stage:
    """A stretch of training: the head alone, the last groups of the backbone as well, or all.

    A stage is two plain lines of Keras, `kt.freeze(model)` or `kt.unfreeze(model, …)` and
    `model.compile(…)`, and a `model.fit` of its own; `fine_tune` carries over what those lose.

    Args:
        train: "head" (what is outside of the backbone), "all", or the last groups of the backbone
            as in `unfreeze(last=…)`: a number of them (2) or a share (0.3).
        epochs: at most that many.
        learning_rate: of the head, and of the backbone if `backbone_decay` is 1.
        patience: stop the stage after that many epochs without a better value of the monitor.
        match: with "all", only groups that match, as in `unfreeze(match=…)`.
        normalization: train batch normalization as well, as in `unfreeze`.
        backbone_decay: the update of the group nearest the head is multiplied by it, that of the
            next by its square, and so on towards the input.
        warmup: epochs in which the rate rises linearly from 0.
        schedule: "constant", or "cosine", which falls to 0 at the end of the stage.

    Raises:
        ValueError: an argument out of range, or two that contradict each other.
    """

    train: Literal["head", "all"] | int | float
    epochs: int
    learning_rate: float
    patience: int | None = None
    match: str | None = None
    normalization: bool = False
    backbone_decay: float = 1.0
    warmup: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"

    def __post_init__(self) -> None:
        _check_train(self.train)
        check_count("epochs", self.epochs)
        if not _is_number(self.learning_rate) or not 0.0 < self.learning_rate < math.inf:
            raise ValueError(
                "`learning_rate` is not positive. Expected a finite number above 0, such as "
                f"Stage({self.train!r}, {self.epochs}, 0.001). Received: {self.learning_rate!r}"
            )
        if self.patience is not None:
            check_count("patience", self.patience, ", or None")
        if self.match is not None:
            _check_match(self.match)
        if self.match is not None and self.train != "all":
            raise ValueError(
                f"`match` chooses among all groups. Expected train='all'. Received: {self.train!r}"
            )
        if not isinstance(self.normalization, bool):
            raise ValueError(
                "`normalization` is no switch. Expected True or False. Received: "
                f"{self.normalization!r}"
            )
        if not _is_number(self.backbone_decay) or not 0.0 < self.backbone_decay <= 1.0:
            raise ValueError(
                "`backbone_decay` is no factor. Expected a number above 0 and up to 1. Received: "
                f"{self.backbone_decay!r}"
            )
        if not _is_number(self.warmup) or not 0.0 <= self.warmup <= self.epochs:
            raise ValueError(
                f"`warmup` is out of range. Expected 0 to {self.epochs} epochs, those of the "
                f"stage. Received: {self.warmup!r}"
            )
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"`schedule` is unknown. Expected one of {SCHEDULES}. Received: {self.schedule!r}"
            )

    def apply(self, model: keras.Model) -> None:
        """Freeze and unfreeze as the stage wants it; compile the model afterwards.

        Raises:
            ValueError: a backbone is needed and there is none, no group matches, or nothing is
                left to train.
        """
        if self.train == "head":
            backbone_layers(model)  # raises if there is none to freeze
            freeze(model)
        elif self.train != "all" or self.match is not None or backbones_in(model):
            backbone_layers(model)
            last = None if self.train == "all" else self.train
            unfreeze(model, last, self.match, self.normalization)  # type: ignore[arg-type]
        if not model.trainable_variables:
            raise ValueError(
                f"`plan` has a stage that trains nothing: {self}. Expected weights outside of the "
                "backbone, or a stage that trains some of it."
            )

    def steady(self) -> bool:
        """Whether the rate stays the same over all of the stage."""
        return self.schedule == "constant" and not self.warmup

    def rate(self, steps_per_epoch: int, begin: int = 0) -> WarmupCosine:
        """The schedule of the stage, whose first step is the optimizer's step `begin`."""
        warm = round(self.warmup * steps_per_epoch)
        rest = max(self.epochs * steps_per_epoch - warm, 1)
        decay = rest if self.schedule == "cosine" else None
        return WarmupCosine(self.learning_rate, warm, decay, begin=begin)


def check_count(name: str, value: Any, other: str = "") -> None:
    """Raise ValueError if this is no whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(
            f"`{name}` is too small, or no whole number. Expected a whole number from 1{other}. "
            f"Received: {value!r}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check_match(match: Any) -> None:
    if not isinstance(match, str):
        raise ValueError(
            f"`match` is no text. Expected a regular expression, such as match='block5'. "
            f"Received: {match!r}"
        )
    try:
        re.compile(match)
    except re.error as error:
        raise ValueError(
            f"`match` is no regular expression ({error}). Expected one, such as "
            f"match={re.escape(match)!r} for this very text. Received: {match!r}"
        ) from error


def _check_train(train: Any) -> None:
    if train in ("head", "all") and isinstance(train, str):
        return
    if isinstance(train, bool) or not isinstance(train, numbers.Real):
        raise ValueError(
            "`train` is unknown. Expected 'head' or 'all', a number of groups or a share of them. "
            f"Received: {train!r}"
        )
    whole = isinstance(train, numbers.Integral)
    if not train > 0 or (not whole and train > 1):
        raise ValueError(
            "`train` is no number of groups. Expected a whole number from 1, or a share such as "
            f"0.3. Received: {train!r}"
        )


def trained_by(model: keras.Model, stages: Sequence[Stage]) -> list[Any]:
    """The variables that any of the stages trains; the model is left as in the first stage.

    Those of the last stage come first, in the order of `model.trainable_variables`: where it trains
    them all, a saved model finds its optimizer's state again.

    Raises:
        ValueError: as in `Stage.apply`, before anything is trained.
    """
    found: dict[int, Any] = {}
    for stage in reversed(stages):
        stage.apply(model)
        for variable in model.trainable_variables:
            found.setdefault(id(variable), variable)
    return list(found.values())
