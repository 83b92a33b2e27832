"""Content hashes: what a module is, whatever its name; and modules kept by their hash."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from kerasmtl.utils.files import aside, filled, find_module, settle


def cache_root() -> Path:
    """The folder of everything that is kept: `TFHUB_CACHE_DIR`, or ~/.cache/kerasmtl.

    Raises:
        ValueError: `TFHUB_CACHE_DIR` is no local folder.
    """
    named = os.environ.get("TFHUB_CACHE_DIR")
    if named and "://" in named:
        raise ValueError(
            f"`TFHUB_CACHE_DIR` is no local folder. Expected a path. Received: {named!r}. Unset "
            "it to use ~/.cache/kerasmtl."
        )
    return Path(named).expanduser() if named else Path.home() / ".cache" / "kerasmtl"


def entry(handle: str) -> Path:
    """Where the module of a handle is kept: tensorflow_hub names it by the SHA-1 of the handle."""
    name = hashlib.sha1(handle.encode("utf-8"), usedforsecurity=False).hexdigest()
    return cache_root() / name


def keep(target: Path, handle: str, fill: Callable[[Path], None], named: str | None = None) -> Path:
    """The module in a cache entry; an absent entry is filled first.

    Args:
        target: the entry.
        handle: what the user named, for messages.
        fill: writes the module into the empty folder that it is given.
        named: the handle whose entry this is, to be noted beside it.

    Raises:
        ValueError: what was filled in, or what is kept there, is no SavedModel.
    """
    if not filled(target):
        with aside(target) as made:
            fill(made)
            find_module(made, handle)
            settle(made, target)
        if named:
            _describe(target, named)
    try:
        return find_module(target, handle)
    except ValueError as error:
        raise ValueError(f"{error} It is kept in {target}: remove that to fetch it anew.") from None


def _describe(target: Path, handle: str) -> None:
    """Write beside an entry which handle it belongs to, as tensorflow_hub does; for people only."""
    note = target.with_name(target.name + ".descriptor.txt")
    if note.exists():
        return
    with aside(note) as made:
        (made / "note").write_text(f"Module: {handle}\n", encoding="utf-8")
        os.replace(made / "note", note)


SUMS = "SHA256SUMS"
_SHOWN = 5


def valid_sha256(sha256: str) -> str:
    """The hash in lower case.

    Raises:
        ValueError: it is no SHA-256.
    """
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9A-Fa-f]{64}", sha256):
        raise ValueError(
            "`sha256` is no hash. Expected 64 hexadecimal digits, as `kerasmtl vendor` prints "
            f"them. Received: {sha256!r}"
        )
    return sha256.lower()


def module_files(folder: Path) -> dict[str, Path]:
    """The files that make up a module, by relative path, sorted.

    Hidden files and SHA256SUMS at its top do not count. A linked file counts if it stays in the
    folder, or in the store of the huggingface_hub cache whose snapshot the folder is.

    Raises:
        ValueError: a file or folder is a link to elsewhere, or a name would break the listing.
    """
    root = Path(folder).resolve()
    found = {}
    for place, folders, names in os.walk(root, onerror=_raise):
        top = Path(place) == root
        folders[:] = [name for name in folders if not _ignored(name, top)]
        for name in folders + names:
            path = Path(place, name)
            relative = path.relative_to(root).as_posix()
            if _ignored(name, top) or relative == SUMS:
                continue
            _check_name(relative, root)
            if path.is_symlink():
                _check_link(path, root)
            if path.is_file():
                found[relative] = path
    return dict(sorted(found.items()))


def listing(folder: Path) -> bytes:
    """The text that the hash of a module is taken of: what `sha256sum` prints for its files."""
    lines = []
    for relative, path in module_files(folder).items():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {relative}\n")
    return os.fsencode("".join(lines))


def content_sha256(folder: str | os.PathLike[str]) -> str:
    """The hash of a module: the SHA-256 of the sorted `<sha256>  <path>` lines of its files.

    Args:
        folder: the module's. Hidden files, `__pycache__` and a SHA256SUMS at its top are left out,
            and .DS_Store everywhere.

    Raises:
        ValueError: a link leads out of the folder.
    """
    return hashlib.sha256(listing(Path(folder))).hexdigest()


def check_content(folder: str | os.PathLike[str], sha256: str, handle: str) -> None:
    """Refuse a module whose content is not what was expected.

    Args:
        folder: the module's.
        sha256: what `content_sha256` must be.
        handle: what the user named, for the message.

    Raises:
        ValueError: it differs; names the files, if the folder has the SHA256SUMS of that hash.
    """
    expected = valid_sha256(sha256)
    lines = listing(Path(folder))
    received = hashlib.sha256(lines).hexdigest()
    if received == expected:
        return
    raise ValueError(
        f"`sha256` of {handle!r} is another one. Expected: {expected}. Received: {received}, in "
        f"{folder}.{_differences(Path(folder), expected, lines)} If the change is meant, pass "
        f"sha256={received!r}; otherwise remove that folder, and fetch the module again."
    )


def keep_module(folder: str | os.PathLike[str], sha256: str | None = None) -> Path:
    """Copy a module into the cache under its hash, unless it is kept already.

    Args:
        folder: the module's.
        sha256: its content hash, if known; the copy is checked against it.

    Raises:
        ValueError: the content has another hash; nothing is kept.
    """
    digest = content_sha256(folder) if sha256 is None else valid_sha256(sha256)
    kept = kept_module(digest)
    if kept is not None:
        return kept
    target = _place(digest)
    with aside(target) as made:
        copy_module(Path(folder), made)
        check_content(made, digest, str(folder))
        settle(made, target, good=lambda there: holds(there, digest))
    return target


def kept_module(sha256: str) -> Path | None:
    """The module kept under a content hash, or None.

    All of it is read and hashed: the one way to see that nobody changed a file since.

    Args:
        sha256: the content hash.
    """
    target = _place(valid_sha256(sha256))
    return target if target.is_dir() and holds(target, target.name) else None


def holds(folder: Path, sha256: str) -> bool:
    """Whether a folder has that content hash."""
    try:
        return content_sha256(folder) == sha256
    except (OSError, ValueError):  # a link out of it, or gone while it was read
        return False


def copy_module(folder: Path, into: Path) -> None:
    """Copy the files that make up a module, links followed, into an empty folder."""
    for relative, path in module_files(folder).items():
        target = into / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _place(sha256: str) -> Path:
    return cache_root() / "modules" / sha256


def _ignored(name: str, top: bool) -> bool:
    """What other programs leave; below the top hidden files may be assets of the module."""
    return name == ".DS_Store" or (top and (name.startswith(".") or name == "__pycache__"))


def _raise(error: OSError) -> None:
    raise error  # os.walk would leave out what it may not read


def _check_name(relative: str, root: Path) -> None:
    if re.search(r"[\n\r\\]", relative):
        raise ValueError(
            f"`folder` {root} has a file whose name breaks a listing. Expected no line breaks or "
            f"backslashes. Received: {relative!r}. Rename it."
        )


def _check_link(path: Path, root: Path) -> None:
    real = path.resolve()
    stores = [p.parent / "blobs" for p in root.parents if p.name == "snapshots"]
    inside = any(real.is_relative_to(place) for place in [root, *stores])
    if not (inside and real.is_file()):
        raise ValueError(
            f"`folder` {root} has a link that cannot be followed: {path.relative_to(root)}. "
            f"Expected links to files in the same folder. Received: a link to {os.readlink(path)}. "
            "Copy the module whole (cp -rL), and pass the copy."
        )


def _differences(folder: Path, expected: str, lines: bytes) -> str:
    """Which files differ from the SHA256SUMS of the folder, where that file is to be trusted."""
    sums = folder / SUMS
    if not sums.is_file() or hashlib.sha256(sums.read_bytes()).hexdigest() != expected:
        return ""
    before, now = _parsed(sums.read_bytes()), _parsed(lines)
    named = {
        "changed": [p for p in now if p in before and now[p] != before[p]],
        "added": [p for p in now if p not in before],
        "missing": [p for p in before if p not in now],
    }
    return "".join(
        f" Files {kind}: {', '.join(paths[:_SHOWN])}"
        + (f" and {len(paths) - _SHOWN} more." if len(paths) > _SHOWN else ".")
        for kind, paths in named.items()
        if paths
    )


def _parsed(lines: bytes) -> dict[str, str]:
    pairs = (line.split("  ", 1) for line in os.fsdecode(lines).split("\n") if line)
    return {path: digest for digest, path in pairs}
