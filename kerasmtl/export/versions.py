"""What stands on disk: the versions of a model, and what each says of itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf

_ASIDE = ".export-"
_STALE = 24 * 3600  # seconds, after which what a killed export left behind is removed


def check_folder(base: Path) -> None:
    """Raise OSError if versions cannot be written there, before anything takes time.

    Raises:
        NotADirectoryError: a file is in the way.
        PermissionError: the folder, or the one that it would be made in, is read-only.
    """
    there = next(folder for folder in (base, *base.absolute().parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise NotADirectoryError(
            f"`path` {base} is no folder. Expected the folder of all versions. Received: "
            f"{there}, which is a file or a broken link"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(
            f"`path` {base} cannot be written. Expected a folder with the right to write. "
            f"Received: {there}"
        )


def first_version(base: Path, version: int | None) -> int:
    """The number that an export is to get: `version`, or one more than the highest there.

    Raises:
        ValueError: `version` is no whole number from 1.
        FileExistsError: it is there.
    """
    if version is None:
        return max(_numbers(base), default=0) + 1
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(
            f"`version` is no version. Expected a whole number from 1. Received: {version!r}"
        )
    if version in _numbers(base):
        raise _exists(base / str(version))
    return version


@contextmanager
def aside(base: Path) -> Iterator[Path]:
    """A folder beside the versions that no server looks at, removed in the end."""
    base.mkdir(parents=True, exist_ok=True)
    _sweep(base)
    with tempfile.TemporaryDirectory(dir=base, prefix=_ASIDE) as folder:
        yield Path(folder)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise OSError where TensorFlow cannot write into a folder aside: a full disk, above all."""
    try:
        yield
    except tf.errors.OpError as error:
        said = re.sub(r"\{\{[^}]*\}\}\s*", "", error.message).strip()
        raise OSError(
            f"`path` {folder.parent.parent} cannot take the export, and no version was published. "
            f"Received: {said.splitlines()[0] if said else type(error).__name__}"
        ) from error


def publish(written: Path, base: Path, first: int, renumber: Callable[[int], None] | None) -> Path:
    """Rename a finished version into its place, whole.

    If another export has taken the number meanwhile, `renumber` is called with the next one; where
    there is no `renumber`, the number was asked for, and FileExistsError is raised.
    """
    number = first
    while True:
        target = base / str(number)
        try:
            if os.path.lexists(target):  # an empty folder would be replaced
                raise FileExistsError
            os.rename(written, target)
        except OSError as error:
            if not os.path.lexists(target):
                raise
            if renumber is None:
                raise _exists(target) from error
            number = first_version(base, None)
            renumber(number)
        else:
            return target


def _numbers(base: Path) -> set[int]:
    """Of all that is called as a version, "007" too: half copied or not, it is taken."""
    if not base.is_dir():
        return set()
    names = [path.name for path in base.iterdir()]
    return {int(name) for name in names if name.isascii() and name.isdigit()}


def _sweep(base: Path) -> None:
    """Remove what killed exports left behind."""
    for left in base.glob(f"{_ASIDE}*"):
        try:
            if time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue  # another export has just removed it


def _exists(target: Path) -> FileExistsError:
    return FileExistsError(
        f"`version` {target.name} of {target.parent} exists, and is never overwritten. Leave "
        "version out for the next one."
    )


EXTRA = "assets.extra"  # the folder that TensorFlow leaves to us
DESCRIPTION = os.path.join(EXTRA, "model.json")
WARM_UP = os.path.join(EXTRA, "tf_serving_warmup_requests")
GOLDEN = os.path.join(EXTRA, "golden")
FORMAT = 1

Stamp = tuple[tuple[str, int, int], ...]


def versions_in(base: Path) -> list[int]:
    """The numbers of the folders in `base`, the newest first."""
    try:
        found = [entry.name for entry in os.scandir(base) if entry.is_dir()]
    except OSError:
        return []
    return sorted((int(name) for name in found if _is_number(name)), reverse=True)


def stamp(folder: Path) -> Stamp:
    """Name, size and time of each file: the same twice means that nobody is writing there."""
    found = []
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            try:
                status = os.stat(path)
            except OSError:  # taken away meanwhile
                continue
            found.append((os.path.relpath(path, folder), status.st_size, status.st_mtime_ns))
    return tuple(sorted(found))


def description(folder: Path) -> dict[str, Any] | None:
    """What assets.extra/model.json says; None if there is none.

    Raises:
        ValueError: a file that is no such description, or of another format.
    """
    file = folder / DESCRIPTION
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"`{file}` is no JSON. Received: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        shown = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise ValueError(
            f"`{file}` has another format. Expected format {FORMAT}. Received: {shown!r}"
        )
    tasks = found.get("tasks")
    if not isinstance(tasks, list) or not all(
        isinstance(task, dict) and isinstance(task.get("name"), str) for task in tasks
    ):
        raise ValueError(f"`{file}` lacks its tasks. Expected a list of objects with a name.")
    pixels = found.get("max_pixels")
    if pixels is not None and not (type(pixels) is int and pixels > 0):
        raise ValueError(
            f"`{file}` has a wrong max_pixels. Expected a number of pixels. Received: {pixels!r}"
        )
    return found


def missing(folder: Path) -> str | None:
    """What keeps a version's folder from being whole; None if nothing does."""
    for name in ("saved_model.pb", os.path.join("variables", "variables.index")):
        if not (folder / name).is_file():
            return f"{name} is not there"
    return None


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and name == str(int(name)) and int(name) > 0
