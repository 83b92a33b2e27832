"""Which epoch is the best: a number of its logs, and whether more or less of it is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MORE = ("auc", "accuracy", "precision", "recall", "f1", "r2", "average_precision")
LESS = ("loss", "error", "mae", "mse", "rmse", "brier", "ece", "huber", "crossentropy")


class Monitor:
    """A name in the logs and its better direction.

    By default the first validation AUC, or else the first validation metric whose direction is
    known, or else the validation loss; None without validation data.

    Args:
        name: such as "val_auc"; or a pair, ("val_mine", "max") or "min".
        validated: whether there is validation data.

    Raises:
        ValueError: a direction that is neither, or a validation metric without validation data.
    """

    def __init__(self, name: str | tuple[str, str] | None, validated: bool) -> None:
        self.name, self.mode = (name, None) if name is None or isinstance(name, str) else name
        if self.mode not in (None, "max", "min"):
            raise ValueError(
                f"`monitor` has no direction. Expected ('{self.name}', 'max') or 'min'. "
                f"Received: {name!r}"
            )
        if self.name is not None and self.name.startswith("val_") and not validated:
            raise ValueError(f"`monitor` {self.name!r} needs validation data. Pass validation=….")
        self.validated = validated

    def rank(self, logs: Mapping[str, Any]) -> float | None:
        """How good an epoch is, the more the better; None if nothing is monitored, or it is NaN.

        Raises:
            ValueError: the name is not in the logs, or its direction is not known.
        """
        if self.name is None:
            if not self.validated:
                return None
            self.name = _default(logs)
        if self.name not in logs:
            raise ValueError(
                f"`monitor` {self.name!r} is not in the logs. Expected one of {sorted(logs)}."
            )
        if self.mode is None:
            self.mode = direction(self.name)
        if self.mode is None:
            raise ValueError(
                f"`monitor` {self.name!r} may be better high or low. Expected "
                f"monitor=({self.name!r}, 'max') or 'min'."
            )
        value = float(logs[self.name])
        if math.isnan(value):
            return None
        return value if self.mode == "max" else -value


def direction(name: str) -> str | None:
    """ "max" if more of a metric is better, "min" if less is, None if its name does not say."""
    plain = name.removeprefix("val_")
    for mode, endings in (("max", MORE), ("min", LESS)):
        if any(plain == end or plain.endswith(f"_{end}") for end in endings):
            return mode
    return None


def _default(logs: Mapping[str, Any]) -> str:
    names = [name for name in logs if name.startswith("val_")]
    areas = [name for name in names if name == "val_auc" or name.endswith("_auc")]
    others = [n for n in names if not n.endswith("loss") and direction(n) is not None]
    return (areas + others + ["val_loss"])[0]
