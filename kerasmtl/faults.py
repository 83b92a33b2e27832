"""Images that cannot be used, and why."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fault:
    """A picture that cannot be used: its line in the CSV, its name there, and why."""

    line: int
    image: str
    reason: str


def absent_pictures(paths: Sequence[str], images: np.ndarray, lines: np.ndarray) -> list[Fault]:
    """The rows whose picture does not exist."""
    return [
        Fault(int(lines[row]), images[row], "absent")
        for row, path in enumerate(paths)
        if not os.path.isfile(path)
    ]


def broken_pictures(
    paths: Sequence[str],
    images: np.ndarray,
    lines: np.ndarray,
    progress: Callable[[], None] | None = None,
) -> list[Fault]:
    """The rows whose picture cannot be decoded; `progress` is called once a row."""
    from kerasmtl.mending import picture_fault

    def check(rows: range) -> list[Fault]:
        faults = []
        for row in rows:
            reason = picture_fault(paths[row])
            if reason:
                faults.append(Fault(int(lines[row]), images[row], reason))
            if progress is not None:
                progress()
        return faults

    # Blocks, since every call that waits in the pool takes memory.
    blocks = [range(at, min(at + 64, len(paths))) for at in range(0, len(paths), 64)]
    with ThreadPoolExecutor() as pool:
        return [fault for faults in pool.map(check, blocks) for fault in faults]


def graph_fault(error: BaseException | None) -> str | None:
    """Say what TensorFlow found wrong with data that it was given; None of any other error."""
    tensorflow = sys.modules.get("tensorflow")  # which is not loaded for this alone
    if tensorflow is None or not isinstance(error, tensorflow.errors.OpError):
        return None
    lines = [re.sub(r"\{\{[^}]*\}\}\s*", "", line).strip() for line in error.message.splitlines()]
    own = [line.removeprefix("ValueError: ") for line in lines if line.startswith("ValueError: ")]
    if own:
        return own[0]
    what = next((line for line in lines if line), type(error).__name__)
    return f"{what}. If it is an image: `kerasmtl check` lists those that cannot be used."
