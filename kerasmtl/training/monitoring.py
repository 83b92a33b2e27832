"""Which epoch is the best: a number of its logs, and whether more or less of it is better."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
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
        ValueError: a direction that is neither or, of a name that does not say it, none; or a
            validation metric without validation data.
    """

    def __init__(self, name: str | tuple[str, str] | None, validated: bool) -> None:
        if name is not None and not isinstance(name, str) and not _is_pair(name):
            raise ValueError(
                "`monitor` is no name. Expected one such as 'val_auc', or ('val_mine', 'max'). "
                f"Received: {name!r}"
            )
        self.name, self.mode = (name, None) if name is None or isinstance(name, str) else name
        if self.mode not in (None, "max", "min"):
            raise ValueError(
                f"`monitor` has no direction. Expected ('{self.name}', 'max') or 'min'. "
                f"Received: {name!r}"
            )
        if self.name is not None and self.name.startswith("val_") and not validated:
            raise ValueError(f"`monitor` {self.name!r} needs validation data. Pass validation=….")
        self.validated = validated
        if self.name is not None and self.mode is None:
            self._direction()

    def check(self, names: Collection[str]) -> None:
        """Raise ValueError if the name is none of these, of the logs."""
        if self.name is not None and self.name not in names:
            raise ValueError(
                f"`monitor` {self.name!r} is not in the logs. Expected one of {sorted(names)}."
            )

    def rank(self, logs: Mapping[str, Any]) -> float | None:
        """How good an epoch is, the more the better; None if nothing is monitored, or it is NaN.

        Raises:
            ValueError: the name is not in the logs, or its direction is not known.
        """
        if self.name is None:
            if not self.validated:
                return None
            self.name = _default(logs)
        self.check(logs)
        value = float(logs[self.name])
        if math.isnan(value):
            return None
        return value if self._direction() == "max" else -value

    def _direction(self) -> str:
        mode = self.mode or direction(str(self.name))
        if mode is None:
            raise ValueError(
                f"`monitor` {self.name!r} may be better high or low. Expected a name that says it, "
                f"such as 'val_auc', or monitor=({self.name!r}, 'max') or 'min'."
            )
        return mode


def _is_pair(name: Any) -> bool:
    return isinstance(name, tuple | list) and len(name) == 2 and isinstance(name[0], str)


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
