"""What stands on disk: the versions of a model, and what each says of itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

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
