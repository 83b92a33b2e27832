"""The cache of modules: `TFHUB_CACHE_DIR` in the layout of tensorflow_hub, or ~/.cache/kerasmtl."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from kerasmtl.modules.folders import aside, filled, find_module, settle


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
