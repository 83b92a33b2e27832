"""Folders with a SavedModel: found, made aside, and put in place whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

SAVED_MODELS = ("saved_model.pb", "saved_model.pbtxt")


def is_module(folder: Path) -> bool:
    """Whether a folder is a SavedModel."""
    return any((folder / name).is_file() for name in SAVED_MODELS)


def check_module(folder: Path, handle: str) -> Path:
    """The folder, if it is a SavedModel.

    Raises:
        ValueError: it is none; names the newest of the versions below it, if there are any.
    """
    if is_module(folder):
        return folder
    versions = [p for p in folder.iterdir() if p.name.isdigit() and is_module(p)]
    newest = max(versions, key=lambda p: int(p.name), default=None)
    hint = f" It has versions below it: pass {str(newest)!r}." if newest else ""
    raise ValueError(
        f"`handle` {handle!r} is no SavedModel. Expected a saved_model.pb in {folder}.{hint}"
    )


def find_module(folder: Path, handle: str) -> Path:
    """The SavedModel of something unpacked: the folder, or the one folder in it that is one.

    Raises:
        ValueError: there is none, or more than one.
    """
    if is_module(folder):
        return folder
    below = sorted(p for p in folder.iterdir() if p.is_dir() and is_module(p))
    if len(below) == 1:
        return below[0]
    found = f"{[p.name for p in below]} one level below" if below else "none there or one below"
    raise ValueError(
        f"`handle` {handle!r} is no SavedModel. Expected one saved_model.pb, at the top or one "
        f"folder below. Received: {found}, among {sorted(p.name for p in folder.iterdir())[:5]}. "
        "Unpack it, and pass the folder that you mean."
    )


@contextlib.contextmanager
def aside(target: Path) -> Iterator[Path]:
    """An empty folder to fill, on the file system of `target`; gone when the block ends."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Only its owner may enter what mkdtemp makes; the folder inside has the usual rights.
    holder = Path(tempfile.mkdtemp(dir=target.parent, prefix=".aside-"))
    try:
        (holder / "made").mkdir()
        yield holder / "made"
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def write_aside(path: Path, text: str) -> None:
    """Write a text file aside, then rename it into place: it is the former one or this one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".aside-") as folder:
        written = Path(folder) / path.name
        written.write_text(text, encoding="utf-8")
        os.replace(written, path)


def filled(folder: Path) -> bool:
    """Whether a folder exists and holds something."""
    return folder.is_dir() and any(folder.iterdir())


def settle(made: Path, target: Path, good: Callable[[Path], bool] = filled) -> None:
    """Rename what was made by `aside` to `target`.

    Args:
        made: the folder that `aside` gave.
        target: where it goes. What another process put there stays if it is good, and gives way
            if not.
        good: judges what is at `target`.
    """
    for _ in range(5):
        try:
            os.rename(made, target)
            return
        except OSError:
            if not target.exists():
                raise
            if good(target):
                return
        with contextlib.suppress(FileNotFoundError):  # another process may have moved it first
            os.rename(target, made.parent / uuid.uuid4().hex)
    raise OSError(f"{target} is changed by other processes again and again. Try once more.")
