"""The state of a run on disk: whole after each finished epoch, whatever interrupts it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kerasmtl.training.fingerprint import differences
from kerasmtl.training.progress import Progress
from kerasmtl.training.snapshots import Changes

SETTINGS, BASE, STATE = "settings.json", "base.npz", "state.npz"
ASIDE = ".writing-"


@dataclass
class Saved:
    """What a run needs to go on: `weights`, `shown` and `best` are changes from `base`.

    `weights` are those that training goes on from, `shown` those that callbacks saw: an average,
    or else the same ones.

    `parts` holds everything else that changes: of the optimizer, the loss and the callbacks, by
    their names, each a dict of arrays.
    """

    progress: Progress
    base: list[np.ndarray]
    weights: Changes
    shown: Changes
    best: Changes | None
    parts: dict[str, dict[str, np.ndarray]]


class RunFolder:
    """A folder that a run is kept in: its settings, its first weights, and its latest state.

    Each file is written aside and renamed. The state names the files of weights that belong to it,
    which are written before it, and others are removed after it: at every moment the folder holds
    one whole state.

    Args:
        path: the folder; made if it is not there.

    Raises:
        ValueError: it is a file, or holds something else than a run.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"`directory` is a file. Expected a folder. Received: {path}")
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.glob(f"{ASIDE}*"):
            shutil.rmtree(left, ignore_errors=True)

    def load(self, settings: Mapping[str, Any]) -> Saved | None:
        """The latest state, None if there is none yet.

        Raises:
            ValueError: the run had other settings or data; names what has changed.
        """
        if not (self.path / STATE).exists():
            return None
        before = json.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
        changed = differences(before, settings)
        if changed:
            raise ValueError(
                f"`directory` {str(self.path)!r} holds a run of other settings or data. Changed: "
                f"{'; '.join(changed)}. Expected the same ones, to go on with it. To start anew, "
                "give another directory or empty this one."
            )
        arrays = self._read(STATE)
        progress = Progress.from_json(str(arrays.pop("progress")))
        names = json.loads(str(arrays.pop("files")))
        parts: dict[str, dict[str, np.ndarray]] = json.loads(str(arrays.pop("parts")))
        for name, value in arrays.items():
            part, _, key = name.partition("/")
            parts[part][key] = value
        files = {name: _by_position(self._read(name)) for name in set(names.values()) if name}
        weights, shown = files[names["weights"]], files[names["shown"]]
        best = files.get(names["best"])
        first = self._read(BASE)
        base = [first[str(position)] for position in range(len(first))]
        return Saved(progress, base, weights, shown, best, parts)

    def begin(self, settings: Mapping[str, Any], base: list[np.ndarray]) -> None:
        """Start a run: its settings, and all weights as they are at first."""
        text = json.dumps(settings, indent=1, sort_keys=True)
        self._aside(SETTINGS, lambda file: file.write(text.encode()))
        self._write(BASE, {str(position): value for position, value in enumerate(base)})

    def save(self, saved: Saved) -> None:
        """Keep a state; the one before is there until this one is whole."""
        progress = saved.progress
        names = {"weights": f"weights-{progress.epoch:06d}.npz", "best": None}
        names["shown"] = names["weights"]
        self._write(names["weights"], {str(k): v for k, v in saved.weights.items()})
        kind = "weights"
        if saved.shown is not saved.weights:
            kind = "shown"
            names["shown"] = f"shown-{progress.epoch:06d}.npz"
            self._write(names["shown"], {str(k): v for k, v in saved.shown.items()})
        if progress.best_epoch is not None:
            names["best"] = f"{kind}-{progress.best_epoch:06d}.npz"
        arrays = {
            f"{part}/{key}": value
            for part, values in saved.parts.items()
            for key, value in values.items()
        }
        self._write(
            STATE,
            {
                "progress": np.array(progress.to_json()),
                "files": np.array(json.dumps(names)),
                "parts": np.array(json.dumps({part: {} for part in saved.parts})),
                **arrays,
            },
        )
        for old in (*self.path.glob("weights-*.npz"), *self.path.glob("shown-*.npz")):
            if old.name not in names.values():
                old.unlink(missing_ok=True)

    def _write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        self._aside(name, lambda file: _save(file, arrays))

    def _aside(self, name: str, write: Any) -> None:
        with tempfile.TemporaryDirectory(dir=self.path, prefix=ASIDE) as aside:
            written = Path(aside) / name
            with written.open("wb") as file:
                write(file)
            os.replace(written, self.path / name)

    def _read(self, name: str) -> dict[str, np.ndarray]:
        try:
            with np.load(self.path / name) as arrays:
                return dict(arrays)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"`directory` {str(self.path)!r} has no sound {name!r} ({error}). Expected what "
                "fine_tune wrote there. To start anew, give another directory or empty this one."
            ) from error


def _by_position(arrays: Mapping[str, np.ndarray]) -> Changes:
    return {int(key): value for key, value in arrays.items()}


def _save(file: Any, arrays: Mapping[str, np.ndarray]) -> None:
    # NumPy's files know no bfloat16; each of its numbers is one of float32.
    np.savez(
        file, **{k: v.astype("float32") if v.dtype.kind == "V" else v for k, v in arrays.items()}
    )
