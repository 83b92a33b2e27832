"""Folders with a SavedModel: found, kept in the cache, and known by the hash of their content.

A module's identity is its content hash, which `kerasmtl vendor` pins in project.toml and a .keras
file records: handles may move, content may not. Entries are written to a temporary folder and
renamed (`atomic_folder`), so that a process that is killed leaves either nothing or a whole module,
and two that fetch the same module do not disturb each other.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from kerasmtl.utils.files import atomic_folder, file_sha256, write_text

SAVED_MODELS = ("saved_model.pb", "saved_model.pbtxt")
SUMS = "SHA256SUMS"


# ---------------------------------------------------------------- folders


def is_module(folder: Path) -> bool:
    """Return whether a folder is a SavedModel.

    In its binary or its text form; without reading it.
    """
    return any((folder / name).is_file() for name in SAVED_MODELS)


def find_module(folder: Path, handle: str) -> Path:
    """Return a folder that is a SavedModel, or the only one below it that is.

    Only one level below is searched, as archives often have one folder around their content.

    Args:
        folder: unpacked, downloaded or the user's own.
        handle: as the user wrote it, for messages.

    Raises:
        ValueError: there is none, or more than one, such as several versions; names them.
    """
    if is_module(folder):
        return folder
    below = sorted(path for path in folder.iterdir() if is_module(path))
    if len(below) == 1:
        return below[0]
    found = [path.name for path in below] or sorted(path.name for path in folder.iterdir())[:5]
    raise ValueError(
        f"`handle` must have one saved_model.pb, at the top or one folder below, got {handle!r} "
        f"with {len(below)} in {found}. Pass the folder that you mean."
    )


# ---------------------------------------------------------------- the cache


def cache_root() -> Path:
    """Return the folder of everything that is kept: `TFHUB_CACHE_DIR`, or ~/.cache/kerasmtl.

    Raises:
        ValueError: `TFHUB_CACHE_DIR` is not a local folder.
    """
    named = os.environ.get("TFHUB_CACHE_DIR")
    if named and "://" in named:
        raise ValueError(f"`TFHUB_CACHE_DIR` must be a path on this machine, got {named!r}")
    return Path(named or "~/.cache/kerasmtl").expanduser()


def cache_entry(handle: str) -> Path:
    """Return where a handle's module is kept: tensorflow_hub names it by the handle's SHA-1."""
    return cache_root() / hashlib.sha1(handle.encode(), usedforsecurity=False).hexdigest()


def cached_module(target: Path, handle: str, fill: Callable[[Path], None]) -> Path:
    """Return the module in a cache entry; an absent entry is filled first.

    Beside the entry of a remote handle a note says which handle it is, as tensorflow_hub writes it.

    Args:
        target: the entry.
        handle: as the user wrote it.
        fill: writes the module into the empty folder that it is given.

    Returns:
        The folder of the module: the entry, or the one folder with a SavedModel in it.

    Raises:
        ValueError: what was filled in, or what is kept there, is not a SavedModel.
    """
    if not _is_filled(target):
        with atomic_folder(target, valid=_is_filled) as made:
            fill(made)
            find_module(made, handle)
        if target == cache_entry(handle):
            write_text(target.with_name(f"{target.name}.descriptor.txt"), f"Module: {handle}\n")
    try:
        return find_module(target, handle)
    except ValueError as error:
        raise ValueError(f"{error} To fetch it again, remove {target}.") from None


def _is_filled(folder: Path) -> bool:
    """Return whether there is anything in a folder."""
    return folder.is_dir() and any(folder.iterdir())


def keep_module(folder: Path, sha256: str) -> Path:
    """Copy a module into the cache under its content hash, unless it is kept already.

    Args:
        folder: of the module.
        sha256: what the content hash of the copy must be. It is hashed after copying, so that a
            change in between is noticed.

    Returns:
        The folder of the copy, or of the one that was there.

    Raises:
        ValueError: the content has another hash; nothing is kept.
    """
    target = cache_root() / "modules" / sha256
    if not holds(target, sha256):
        with atomic_folder(target, valid=lambda there: holds(there, sha256)) as made:
            copy_module(folder, made)
            check_content(made, sha256, str(folder))
    return target


def kept_module(sha256: str) -> Path | None:
    """Return the module kept under a content hash, or None.

    All of it is read and hashed: the only way to see that no file was changed since.
    """
    target = cache_root() / "modules" / sha256
    return target if holds(target, sha256) else None


def copy_module(folder: Path, into: Path) -> None:
    """Copy the files that make up a module, links followed, into an empty folder."""
    for relative, path in module_files(folder).items():
        target = into / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


# ---------------------------------------------------------------- content hashes


def valid_sha256(sha256: str) -> str:
    """Return the hash in lower case.

    Raises:
        ValueError: it is not a SHA-256.
    """
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9A-Fa-f]{64}", sha256):
        raise ValueError(f"`sha256` must be 64 hexadecimal digits, got {sha256!r}")
    return sha256.lower()


def module_files(folder: Path) -> dict[str, Path]:
    """Return the files that make up a module by relative path, sorted.

    Hidden files, `__pycache__` and SHA256SUMS at its top do not count, nor .DS_Store anywhere. A
    linked file counts if it stays in the folder, or in the store of the huggingface_hub cache whose
    snapshot the folder is.

    Raises:
        ValueError: a file or folder is a link to elsewhere, or a name would break the listing.
    """
    root = Path(folder).resolve()
    found = {}
    for place, folders, names in os.walk(root, onerror=_raise):
        top = Path(place) == root
        folders[:] = [name for name in folders if not _is_ignored(name, top)]
        for name in folders + [name for name in names if not _is_ignored(name, top)]:
            path = Path(place, name)
            relative = path.relative_to(root).as_posix()
            if re.search(r"[\n\r\\]", relative):
                raise ValueError(
                    f"`folder` must have no line breaks or backslashes in names, got {relative!r}"
                )
            if path.is_symlink():
                _check_link(path, root)
            if path.is_file():
                found[relative] = path
    return dict(sorted(found.items()))


def _is_ignored(name: str, top: bool) -> bool:
    """Whether other programs left it; below the top, hidden files may be assets of the module."""
    left = name.startswith(".") or name in ("__pycache__", SUMS)
    return name == ".DS_Store" or (top and left)


def _raise(error: OSError) -> None:
    """Raise: os.walk would leave out what it may not read."""
    raise error


def _check_link(path: Path, root: Path) -> None:
    """Raise ValueError for a link to anything but a file of the module.

    huggingface_hub keeps files as blobs/HASH, and links to them from snapshots/REVISION; all other
    links that lead out of the folder are refused, or a module could carry any file of this machine
    along.
    """
    real = path.resolve()
    stores = [parent.parent / "blobs" for parent in root.parents if parent.name == "snapshots"]
    if not real.is_file() or not any(real.is_relative_to(place) for place in [root, *stores]):
        raise ValueError(
            f"`folder` must have links to its own files only, got {path.relative_to(root)}, a link "
            f"to {os.readlink(path)}. Copy the module whole (cp -rL), and pass the copy."
        )


def listing(folder: Path) -> bytes:
    """Return the text that a module's hash is taken of: what `sha256sum` prints for its files.

    It has the format of SHA256SUMS, which `kerasmtl vendor` writes beside the module: `sha256sum
    --check` verifies a folder without Python.
    """
    sums = [f"{file_sha256(path)}  {name}\n" for name, path in module_files(folder).items()]
    return os.fsencode("".join(sums))


def content_sha256(folder: str | os.PathLike[str]) -> str:
    """Return the hash of a module: the SHA-256 of the sorted `<sha256>  <path>` lines of its files.

    Args:
        folder: of the module; see `module_files` for what counts.

    Raises:
        ValueError: a link leads out of the folder.
    """
    return hashlib.sha256(listing(Path(folder))).hexdigest()


def holds(folder: Path, sha256: str) -> bool:
    """Return whether a folder has that content hash."""
    try:
        return folder.is_dir() and content_sha256(folder) == sha256
    except (OSError, ValueError):  # a link out of it, or gone while it was read
        return False


def check_content(folder: Path, sha256: str, handle: str) -> None:
    """Raise ValueError if the content of a module is not what was expected.

    The message names the files that differ, if the folder has the SHA256SUMS of that hash.

    Args:
        folder: of the module.
        sha256: what `content_sha256` must be.
        handle: as the user wrote it, for the message.
    """
    lines = listing(folder)
    received = hashlib.sha256(lines).hexdigest()
    if received == sha256:
        return
    sums = folder / SUMS
    differing = ""
    if sums.is_file() and file_sha256(sums) == sha256:
        changed = set(sums.read_bytes().splitlines()) ^ set(lines.splitlines())
        names = sorted({os.fsdecode(line).partition("  ")[2] for line in changed})
        differing = f" Files that differ: {', '.join(names[:5])}{' …' if names[5:] else ''}."
    raise ValueError(
        f"`sha256` of {handle!r} must be {sha256}, got {received}, in {folder}.{differing} If the "
        "change is meant, pass the latter; otherwise remove that folder, and fetch it again."
    )
