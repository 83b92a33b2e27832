"""The frozen part of a model, traced and tried once for all data sets that it is run over."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import keras
import tensorflow as tf

from kerasmtl.training.feature_computing import Step
from kerasmtl.training.feature_key import identity_of
from kerasmtl.training.features import split_model


class FrozenPart:
    """A model in two, as `split_model` makes it: `features` and `head`.

    Args:
        model: with a frozen part, whose weights do not change while this is used.

    Raises:
        ValueError: as in `split_model`.
    """

    def __init__(self, model: keras.Model) -> None:
        self.features, self.head = split_model(model)
        self._steps: dict[str, Step] = {}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """As `identity_of` it."""
        return identity_of(self.features)

    def step(self, spec: Any) -> Step:
        """The function from inputs to features; the same one for all inputs that are alike."""
        alike = tf.nest.map_structure(lambda each: (each.dtype.name, *each.shape[1:]), spec)
        return self._steps.setdefault(str(alike), Step(self.features, spec))
