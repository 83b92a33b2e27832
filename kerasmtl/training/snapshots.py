"""The weights of a model in memory: only what has changed since the start of the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Changes = dict[int, np.ndarray]


class Snapshots:
    """Reads and writes variables, as their values now or as changes from the values at first.

    What is frozen stays bit for bit what it was, and so costs no copy, and no place in a file.

    Args:
        variables: of the model or the optimizer, in an order that does not change.
        base: their first values; by default those of now.
    """

    def __init__(self, variables: Iterable[Any], base: list[np.ndarray] | None = None) -> None:
        self.variables = list(variables)
        self.base = base if base is not None else [_copy(v.numpy()) for v in self.variables]

    def changes(self, among: Iterable[Any] | None = None, others: Changes | None = None) -> Changes:
        """By position, the values that differ from the first.

        Args:
            among: the only variables that can have changed since `others` was read; by default any.
            others: the changes of the rest.
        """
        chosen = None if among is None else {id(variable) for variable in among}
        found = {}
        for position, variable in enumerate(self.variables):
            if chosen is not None and id(variable) not in chosen:
                if others and position in others:
                    found[position] = others[position]
                continue
            value = variable.numpy()
            if not same_bits(value, self.base[position]):
                found[position] = _copy(value)
        return found

    def restore(self, changes: Mapping[int, np.ndarray]) -> None:
        """Give all variables the values of a moment."""
        for position, variable in enumerate(self.variables):
            value = changes.get(position, self.base[position])
            if not same_bits(variable.numpy(), value):
                variable.assign(value)


def _copy(value: Any) -> np.ndarray:
    # TensorFlow may hand out the memory of the variable itself.
    return np.array(value, copy=True)


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Bit by bit: -0.0 is not 0.0 here, and a NaN is itself."""
    return np.array_equal(_bytes(one), _bytes(other))


def _bytes(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
