"""The state of a run on disk: whole after each finished epoch, whatever interrupts it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kerasmtl.feature_store import locked
from kerasmtl.training.fingerprint import differences
from kerasmtl.training.progress import Progress
from kerasmtl.training.snapshots import Changes

SETTINGS, BASE, STATE = "settings.json", "base.npz", "state.npz"
ASIDE, LOCK = ".writing-", ".lock"
KEPT = ("weights-*.npz", "shown-*.npz")


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
        ValueError: it is a file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = _folder(path)
        for left in self.path.glob(f"{ASIDE}*"):
            shutil.rmtree(left, ignore_errors=True)

    def load(self, settings: Mapping[str, Any]) -> Saved | None:
        """The latest state, None if there is none yet.

        Raises:
            ValueError: the run had other settings or data; names what has changed.
        """
        if not (self.path / STATE).exists():
            return None
        changed = differences(self._settings(), settings)
        if changed:
            raise ValueError(
                f"`directory` {str(self.path)!r} holds a run of other settings or data. Changed: "
                f"{'; '.join(changed)}. Expected the same ones, to go on with it. "
                f"{anew(self.path)}"
            )
        arrays = self._read(STATE)
        try:
            progress = Progress.from_json(str(arrays.pop("progress")))
            names = json.loads(str(arrays.pop("files")))
            parts: dict[str, dict[str, np.ndarray]] = json.loads(str(arrays.pop("parts")))
        except (KeyError, ValueError, TypeError) as error:
            raise self._unsound(STATE, error) from error
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
        """Start a run: its settings, and all weights as they are at first.

        Raises:
            ValueError: the folder has settings that are none of a run.
        """
        if (self.path / SETTINGS).exists() and "plan" not in self._settings():
            raise ValueError(
                f"`directory` {str(self.path)!r} holds another {SETTINGS}, which is none of a run. "
                f"Expected a folder of its own, such as {str(self.path / 'state')!r}."
            )
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
        for old in _weights_in(self.path):
            if old.name not in names.values():
                old.unlink(missing_ok=True)

    def _settings(self) -> dict[str, Any]:
        try:
            settings = json.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._unsound(SETTINGS, error) from error
        if not isinstance(settings, dict):
            raise self._unsound(SETTINGS, "no settings")
        return settings

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
            raise self._unsound(name, error) from error

    def _unsound(self, name: str, error: Any) -> ValueError:
        return ValueError(
            f"`directory` {str(self.path)!r} has no sound {name!r} ({error}). Expected what "
            f"fine_tune wrote there. {anew(self.path)}"
        )


def forget_run(directory: str | os.PathLike[str]) -> None:
    """Remove the state of a run, so that `fine_tune(directory=…)` starts anew.

    The state goes first: however this is interrupted, what is left is no run, and a new one takes
    its place. Other files stay, and so does their folder. Without a run nothing happens.

    Args:
        directory: as of `fine_tune`.

    Raises:
        ValueError: it is a file, or a run in it is under way.
    """
    path = Path(directory)
    if not path.is_dir():
        _refuse_file(path)
        return
    with held(path):
        if (path / STATE).exists() or (path / BASE).exists():
            (path / STATE).unlink(missing_ok=True)
            for file in (*_weights_in(path), path / SETTINGS, path / BASE):
                file.unlink(missing_ok=True)
        for left in path.glob(f"{ASIDE}*"):
            shutil.rmtree(left, ignore_errors=True)
    with contextlib.suppress(OSError):  # it holds other files
        path.rmdir()


@contextlib.contextmanager
def held(directory: str | os.PathLike[str] | None) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if it is not there.

    Raises:
        ValueError: it is a file, or another run is under way in it.
    """
    with contextlib.ExitStack() as stack:
        if directory is not None:
            path = _folder(directory)
            try:
                lock = stack.enter_context(locked(path / LOCK, wait=False))
                stack.callback(lock.unlink, missing_ok=True)
            except BlockingIOError as error:
                raise ValueError(
                    f"`directory` {str(path)!r} is in use: another run is under way in it. "
                    "Expected a folder of one run at a time. Wait for the other one to end, or "
                    f"give another folder: directory={str(path) + '-2'!r}."
                ) from error
            except (ImportError, OSError):  # no locks here, or the folder cannot be written to
                pass
        yield


def anew(path: Path) -> str:
    """How to start anew, for messages."""
    return f"To start anew, give another directory or remove it: kt.forget_run({str(path)!r})."


def _folder(path: str | os.PathLike[str]) -> Path:
    _refuse_file(Path(path))
    Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def _refuse_file(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"`directory` is a file. Expected a folder. Received: {path}")


def _weights_in(path: Path) -> list[Path]:
    return [file for pattern in KEPT for file in path.glob(pattern)]


def _by_position(arrays: Mapping[str, np.ndarray]) -> Changes:
    return {int(key): value for key, value in arrays.items()}


def _save(file: Any, arrays: Mapping[str, np.ndarray]) -> None:
    # NumPy's files know no bfloat16; each of its numbers is one of float32.
    np.savez(
        file, **{k: v.astype("float32") if v.dtype.kind == "V" else v for k, v in arrays.items()}
    )
