"""What a stage is fitted on: the pictures, or features that are computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import keras
import tensorflow as tf

from kerasmtl.training.compilation import Compilation
from kerasmtl.training.epochs_at_once import HeadAtOnce, Stretches
from kerasmtl.training.feature_cache import planned_features
from kerasmtl.training.feature_dataset import FeatureSource, feature_dataset
from kerasmtl.training.frozen_part import FrozenPart
from kerasmtl.training.stages import Stage

Cache = Literal["auto"] | bool
Fitted = tuple[keras.Model, Any, Any]


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
        self._cached: tuple[keras.Model, list[FeatureSource]] | None = None
        self._refused = False

    def of(
        self, stage: Stage, model: keras.Model, compilation: Compilation, by_batch: bool = True
    ) -> Fitted:
        """The model to fit in a stage, the full one or its head, and what to fit it on.

        Args:
            by_batch: something has to see each batch; otherwise a head may run through many in one
                call of its graph.
        """
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
        head, sources = self._cached
        at_once = all(source.in_memory for source in sources) and not (
            by_batch or model.run_eagerly or _is_distributed(model)
        )
        if at_once:
            stretches = [Stretches(source) for source in sources]
            head, sets = HeadAtOnce.of(head, *stretches), [each.dataset for each in stretches]
        else:
            sets = [feature_dataset(source) for source in sources]
        # XLA would take longer to compile so small a model than the model to train.
        compilation.compile(head, jit_compile=False)
        if at_once:
            head.build_metrics()
        return head, sets[0], sets[1] if len(sets) > 1 else None

    def _features(self, model: keras.Model) -> tuple[keras.Model, list[FeatureSource]]:
        with model.distribute_strategy.scope():
            part = FrozenPart(model)
        sets = {"train": self.train, "validation": self.validation}
        planned = {
            name: _planned(name, part, data) for name, data in sets.items() if data is not None
        }
        return part.head, [compute(bool(self.verbose)) for compute in planned.values()]


def _planned(name: str, part: FrozenPart, data: Any) -> Callable[[bool], Any]:
    """As `planned_features`, whose messages on data say `data`."""
    try:
        return planned_features(part, data)
    except ValueError as error:
        raise ValueError(str(error).replace("`data`", f"`{name}`")) from error


def _is_distributed(model: keras.Model) -> bool:
    return tf.distribute.has_strategy() or (
        model.distribute_strategy is not tf.distribute.get_strategy()
    )
