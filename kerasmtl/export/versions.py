"""Version folders on disk: numbered, complete or absent, never overwritten.

Below the folder of a model are `1`, `2`, … as TensorFlow Serving expects them, and while a version
is being written `.export-3`, whose subfolder "model" is renamed to `3` at the end. A rename is
atomic, so that a server sees a version as a whole, also if the exporting process is killed.

`export_saved_model` writes through `new_version`; the server and `deploy` read through
`versions_in`, `missing` and `stamp`. This module needs neither TensorFlow nor Keras.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

_HIDDEN = ".export-"
_STALE = 24 * 3600  # seconds after which the folder of a killed export is deleted

Stamp = tuple[tuple[str, int, int], ...]


def check_target(base: Path, version: int | None) -> None:
    """Check that a version can be written below `base`, before anything takes time.

    It only looks, and creates nothing; `new_version` checks again when it reserves the number.

    Args:
        base: the folder of all versions, which need not exist.
        version: the number asked for; None takes the next one.

    Raises:
        NotADirectoryError: a file is in the way.
        PermissionError: the folder, or the one that it would be created in, is read-only.
        ValueError: `version` is not a positive integer.
        FileExistsError: the version exists.
    """
    if version is not None and (type(version) is not int or version < 1):
        raise ValueError(f"`version` must be a positive integer, got {version!r}")
    there = next(folder for folder in (base, *base.absolute().parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise NotADirectoryError(
            f"`path` must be the folder of all versions, got {base}: {there} is not a folder"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"`path` must be writable, got {base}: {there} is read-only")
    if version in _taken(base):
        raise _exists(base, version)


@contextlib.contextmanager
def new_version(base: Path, version: int | None = None) -> Iterator[tuple[int, Path]]:
    """Reserve a version number, give a folder to write to, and rename it into place at the end.

    The folder is hidden from servers (`.export-7` for version 7), and creating it reserves the
    number: `mkdir` succeeds for one process only. If the block raises, it is removed.

    Args:
        base: the folder of all versions.
        version: the number; by default one more than the highest that exists or is being written.

    Yields:
        The number, and the folder whose subfolder "model" becomes the version.

    Raises:
        FileExistsError: `version` exists or is being written, or appeared meanwhile.
    """
    base.mkdir(parents=True, exist_ok=True)
    number, folder = _reserve(base, version)
    target = base / str(number)
    try:
        yield number, folder
        if os.path.lexists(target):  # `rename` would replace an empty folder
            raise _exists(base, number)
        os.rename(folder / "model", target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def versions_in(base: Path) -> list[int]:
    """Return the numbers of the version folders in `base`, the newest first.

    Args:
        base: the folder of all versions; one that is absent or unreadable has none.
    """
    try:
        found = [entry.name for entry in os.scandir(base) if entry.is_dir()]
    except OSError:
        return []
    numbers = {int(name) for name in found if name.isascii() and name.isdigit()} - {0}
    return sorted((number for number in numbers if str(number) in found), reverse=True)


def missing(folder: Path) -> str | None:
    """Say which file a version folder lacks; None if it is complete.

    A SavedModel is copied or synchronized file by file, so that a folder may be there before its
    content.

    Args:
        folder: of the version.
    """
    for name in ("saved_model.pb", os.path.join("variables", "variables.index")):
        if not (folder / name).is_file():
            return f"{name} is not there"
    return None


def stamp(folder: Path) -> Stamp:
    """Return name, size and time of each file: equal stamps mean that nobody is writing there.

    Args:
        folder: of the version.

    Returns:
        Sorted (path in the folder, bytes, nanoseconds) of each file.
    """
    found = []
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            with contextlib.suppress(OSError):  # removed meanwhile
                status = os.stat(path)
                found.append((os.path.relpath(path, folder), status.st_size, status.st_mtime_ns))
    return tuple(sorted(found))


def _reserve(base: Path, version: int | None) -> tuple[int, Path]:
    """Make the hidden folder of a version, which no other process has.

    Raises:
        FileExistsError: the number that was asked for is taken.
    """
    while True:
        _remove_stale(base)
        taken = _taken(base)
        number = version or max(taken, default=0) + 1
        if number in taken:
            raise _exists(base, number)
        folder = base / f"{_HIDDEN}{number}"
        try:
            folder.mkdir()
        except FileExistsError:  # another process was faster
            continue
        if os.path.lexists(base / str(number)):  # and has finished since we looked
            folder.rmdir()
            continue
        return number, folder


def _taken(base: Path) -> set[int]:
    """Return the numbers of all that is named like a version, also "007" and what is unfinished."""
    if not base.is_dir():
        return set()
    names = [path.name.removeprefix(_HIDDEN) for path in base.iterdir()]
    return {int(name) for name in names if name.isascii() and name.isdigit()}


def _remove_stale(base: Path) -> None:
    """Remove the hidden folders of exports that were killed long ago.

    A folder younger than a day may belong to an export that is still running.
    """
    for left in base.glob(f"{_HIDDEN}*"):
        with contextlib.suppress(OSError):  # another export has just removed it
            if time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left, ignore_errors=True)


def _exists(base: Path, number: int) -> FileExistsError:
    """Return the error for a version that is taken."""
    return FileExistsError(
        f"`version` must be new, got {number}: {base / str(number)} exists or is being written, "
        "and versions are never overwritten. Leave `version` out for the next number."
    )
