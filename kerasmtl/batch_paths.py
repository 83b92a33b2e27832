"""The paths of a batch prediction: folders, links, addresses, and names that are no text."""

from __future__ import annotations

import os
from collections.abc import Iterator

PICTURES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")


def shown(path: str) -> str:
    """A path as text that can be written anywhere."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_address(path: str) -> bool:
    """Whether a path is one on the network: a letter or more, and "://"."""
    scheme, sign, _ = path.partition("://")
    return bool(sign) and scheme.isalnum()


def walk(folder: str, around: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Pictures in a folder, then those of its folders; of one within that is shut, its own path."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        status = os.stat(folder)
    except OSError:
        if not around:
            raise
        yield folder
        return
    around = (*around, (status.st_dev, status.st_ino))
    for entry in entries:
        if entry.name.lower().endswith(PICTURES) and not _is_folder(entry):
            yield entry.path
    for entry in entries:
        if _is_folder(entry) and not _leads_back(entry, around):
            yield from walk(entry.path, around)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _leads_back(entry: os.DirEntry[str], around: tuple[tuple[int, int], ...]) -> bool:
    if not entry.is_symlink():
        return False
    status = entry.stat()
    return (status.st_dev, status.st_ino) in around
