"""The cells of a comparison, one training each: computed within a time budget, and kept.

A finished cell is a file in runs/compare/cells, written aside and renamed, under a hash of the data
and of all that decides its result. Whoever interrupts a comparison loses the cell under way.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kerasmtl.utils.files import write_text

FORMAT = 3  # of the files; and of the way in which cells are computed

Predictions = Mapping[str, np.ndarray]  # by task, (rows,) or (rows, classes)


@dataclass(frozen=True, eq=False)
class Cell:
    """One training of a comparison.

    Attributes:
        settings: plain values that decide its result, together with the data.
        cost: in any unit; cheaper cells come first.
        train: returns the predictions of the test rows, and scores of the rows it learned from, by
            task, where it has some.
    """

    settings: Mapping[str, Any]
    cost: float
    train: Callable[[], tuple[Predictions, Mapping[str, float]]]


@dataclass(frozen=True, eq=False)
class Result:
    """What a finished cell found: predictions of the test rows, and scores out of fold, by task."""

    predictions: Predictions
    held_out: Mapping[str, float]
    seconds: float


class Cells:
    """Trains cells until the time is over, the cheapest first; those that are kept are only read.

    Args:
        folder: where finished cells are kept.
        data: hash of the data.
        minutes: in which cells are begun.
        progress: whether to print a line per cell, to standard error.
    """

    def __init__(self, folder: Path, data: str, minutes: float, progress: bool) -> None:
        self.folder, self.data, self.progress = folder, data, progress
        self.begun, self.seconds = time.monotonic(), 60 * minutes
        self.left = 0  # cells that there was no time for

    def results(self, cells: Sequence[Cell]) -> list[Result | None]:
        """Return the result of each cell, None where there was no time for it.

        A cell is not begun if those of its kind let expect that it ends after the time.
        """
        found: list[Result | None] = [self._kept(cell) for cell in cells]
        count = sum(each is not None for each in found)
        pace: dict[Any, float] = {}  # seconds per cost, of the last cell of a method
        for at in sorted(range(len(cells)), key=lambda at: cells[at].cost):
            cell, began = cells[at], time.monotonic()
            if found[at] is not None:
                continue
            method = cell.settings.get("method")
            if began - self.begun + pace.get(method, 0) * cell.cost >= self.seconds:
                self.left += 1
                continue
            predictions, held_out = cell.train()
            if not all(np.isfinite(values).all() for values in predictions.values()):
                predictions = {}  # nothing is known of this seed
            seconds = time.monotonic() - began
            pace[method], count = seconds / cell.cost, count + 1
            # As they are kept, so that an answer does not depend on where it was interrupted.
            rounded = {name: _rounded(each) for name, each in predictions.items()}
            found[at] = Result(rounded, held_out, seconds)
            self._keep(cell, found[at])
            if self.progress:
                shown = {k: v for k, v in cell.settings.items() if not k.endswith("sha256")}
                said = ", ".join(f"{name} {_shown(value)}" for name, value in shown.items())
                total = f"{time.monotonic() - self.begun:.0f} s"
                line = f"[{count}/{len(cells)}, {total}] {said}: {seconds:.1f} s"
                print(line, file=sys.stderr, flush=True)
        return found

    def _file(self, cell: Cell) -> Path:
        """Return the file of a cell."""
        decides = json.dumps([FORMAT, self.data, cell.settings], sort_keys=True)
        return self.folder / f"{hashlib.sha256(decides.encode()).hexdigest()[:32]}.json"

    def _kept(self, cell: Cell) -> Result | None:
        """Return the result of a cell that was finished before; None without one, or damaged."""
        try:
            kept = json.loads(self._file(cell).read_text(encoding="utf-8"))
            arrays = {name: np.array(p, "float64") for name, p in kept["predictions"].items()}
            scores = {n: np.nan if s is None else s for n, s in kept["held_out"].items()}
            return Result(arrays, scores, kept["seconds"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _keep(self, cell: Cell, result: Result) -> None:
        """Write the result of a cell."""
        kept = {
            "settings": cell.settings,
            "seconds": round(result.seconds, 3),
            "held_out": {n: s if np.isfinite(s) else None for n, s in result.held_out.items()},
            "predictions": {name: p.tolist() for name, p in result.predictions.items()},
        }
        write_text(self._file(cell), json.dumps(kept))


def _rounded(values: np.ndarray) -> np.ndarray:
    """Return numbers to 6 digits of the largest: what differs by less is a tie."""
    largest = float(np.abs(values).max(initial=0)) or 1.0
    return np.round(np.asarray(values, "float64"), 6 - math.ceil(math.log10(largest)))


def _shown(value: Any) -> str:
    """Return a setting as people read it; of many names only how many there are."""
    if isinstance(value, list):
        return str(value[0]) if len(value) == 1 else f"{len(value)} tasks together"
    return str(value)
