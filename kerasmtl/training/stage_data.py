"""What a stage is fitted on: the pictures, or features that are computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import keras

from kerasmtl.training.compilation import Compilation
from kerasmtl.training.feature_cache import planned_features
from kerasmtl.training.features import split_model
from kerasmtl.training.stages import Stage

Cache = Literal["auto"] | bool


class StageData:
    """Training and validation data, and whether head stages run on cached features.

    Args:
        train, validation: batches of inputs and labels.
        cache: "auto" (where it is possible; else says why not), True (an error if it is not) or
            False.
        verbose: 0 says nothing and shows no progress.

    Raises:
        ValueError: another `cache`, or data without an end.
    """

    def __init__(self, train: Any, validation: Any, cache: Cache, verbose: Any) -> None:
        if cache not in ("auto", True, False):
            raise ValueError(
                f"`cache` is unknown. Expected 'auto', True or False. Received: {cache!r}"
            )
        self.train, self.validation, self.cache, self.verbose = train, validation, cache, verbose
        batches = int(train.cardinality()) if hasattr(train, "cardinality") else -2
        if batches == -1:
            raise ValueError("`train` has no end. Expected a data set of one epoch: no repeat().")
        self.steps = batches if batches > 0 else None
        self._cached: tuple[keras.Model, Any, Any] | None = None
        self._refused = False

    def of(
        self, stage: Stage, model: keras.Model, compilation: Compilation
    ) -> tuple[keras.Model, Any, Any]:
        """The model to fit in a stage, the full one or its head, and what to fit it on."""
        if stage.train != "head" or self.cache is False or self._refused:
            return model, self.train, self.validation
        if self._cached is None:
            try:
                self._cached = self._features(model)
            except (ValueError, OSError) as error:  # not possible, or the disk is full
                if self.cache is True:
                    raise
                self._refused = True
                if self.verbose:
                    print(f"Features are not cached: {error}")
                return model, self.train, self.validation
        # XLA would take longer to compile so small a model than the model to train.
        compilation.compile(self._cached[0], jit_compile=False)
        return self._cached

    def _features(self, model: keras.Model) -> tuple[keras.Model, Any, Any]:
        with model.distribute_strategy.scope():
            _, head = split_model(model)
        sets = {"train": self.train, "validation": self.validation}
        planned = {
            name: _planned(name, model, data) for name, data in sets.items() if data is not None
        }
        found = {name: compute(bool(self.verbose)) for name, compute in planned.items()}
        return head, found["train"], found.get("validation")


def _planned(name: str, model: keras.Model, data: Any) -> Callable[[bool], Any]:
    """As `planned_features`, whose messages on data say `data`."""
    try:
        return planned_features(model, data)
    except ValueError as error:
        raise ValueError(str(error).replace("`data`", f"`{name}`")) from error
