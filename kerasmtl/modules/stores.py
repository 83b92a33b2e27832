"""Stores that have a client of their own: gs:// through TensorFlow, hf: through huggingface_hub."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from kerasmtl.modules.archives import SUFFIXES, max_bytes, unpack
from kerasmtl.modules.caches import entry, keep
from kerasmtl.modules.downloads import OFFLINE
from kerasmtl.modules.folders import check_module

HF_PREFIX = "hf:"
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_HF = re.compile(rf"hf:({_PART}/{_PART})((?:/{_PART})*)(?:@([A-Za-z0-9_][A-Za-z0-9_./-]*))?")


def fetch_gfile(handle: str) -> Path:
    """The module behind gs:// or another scheme that tf.io.gfile knows, copied to the cache.

    It is copied once: what changes there under the same name is not seen.

    Args:
        handle: a folder, or a .tar.gz archive.

    Raises:
        ValueError: the scheme is unknown, or there is no such module.
    """
    return keep(entry(handle), handle, lambda made: _copy(handle, made), named=handle)


def _copy(handle: str, made: Path) -> None:
    # Heavy, and of use for nothing but this.
    import tensorflow as tf

    try:
        if handle.endswith(SUFFIXES):
            archive = made.with_name("archive")
            _copy_file(tf.io.gfile, handle, archive, max_bytes(), handle)
            unpack(archive, made, handle)
        elif tf.io.gfile.isdir(handle):
            _copy_folder(tf.io.gfile, handle.rstrip("/"), made, handle)
        else:
            tf.io.gfile.stat(handle)  # says more where the scheme is unknown or access denied
            raise tf.errors.NotFoundError(None, None, "no such folder or archive")
    except tf.errors.OpError as error:
        raise ValueError(
            f"`handle` {handle!r} cannot be read. Expected a folder with a saved_model.pb or a "
            ".tar.gz archive, behind http, https, kaggle:, hf: or a scheme that tf.io.gfile knows. "
            f"Received: {type(error).__name__}: {error.message}. {OFFLINE}"
        ) from error


def _copy_folder(gfile: Any, source: str, made: Path, handle: str) -> None:
    left = max_bytes()
    for place, _, names in gfile.walk(source):
        inside = place.rstrip("/").removeprefix(source).strip("/")
        if ".." in inside.split("/"):
            raise ValueError(f"`handle` {handle!r} has a folder outside of itself: {place!r}.")
        (made / inside).mkdir(parents=True, exist_ok=True)
        for name in names:
            target = made / inside / Path(name).name
            left -= _copy_file(gfile, f"{place.rstrip('/')}/{name}", target, left, handle)


def _copy_file(gfile: Any, source: str, target: Path, limit: int, handle: str) -> int:
    size = gfile.stat(source).length
    if size > limit:
        raise ValueError(
            f"`handle` {handle!r} is too big. Expected at most {max_bytes()} bytes in all. If you "
            "trust it, set the environment variable KERASMTL_MAX_BYTES."
        )
    with gfile.GFile(source, "rb") as stream, target.open("wb") as out:
        shutil.copyfileobj(stream, out, 2**20)
    return size


def fetch_hf(handle: str) -> Path:
    """The module in a Hugging Face repository, from the cache of huggingface_hub.

    Args:
        handle: hf:owner/repo, hf:owner/repo@revision, or hf:owner/repo/sub/folder@revision.

    Raises:
        ValueError: the handle is wrong, huggingface_hub is absent, or the module cannot be had.
    """
    parts = _HF.fullmatch(handle)
    if parts is None or ".." in handle:
        raise ValueError(
            f"`handle` {handle!r} is no Hugging Face module. Expected hf:owner/repo, with a folder "
            "and a revision if need be: hf:owner/repo/sub/folder@revision. Received: "
            f"{handle.removeprefix(HF_PREFIX)!r}"
        )
    repo, inside, revision = parts[1], parts[2].strip("/"), parts[3]
    try:
        # An extra: most modules come from elsewhere.
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(
            f"`handle` {handle!r} needs huggingface_hub, which does not import: {error}. Install "
            "it: pip install 'kerasmtl[hf]'"
        ) from error
    try:
        snapshot = snapshot_download(
            repo, revision=revision, allow_patterns=[f"{inside}/*"] if inside else None
        )
    except Exception as error:
        # The client raises its own errors, those of its HTTP library, and OSError.
        raise ValueError(
            f"`handle` {handle!r} cannot be reached. Expected a public repository, or HF_TOKEN set "
            f"to a token that may read it. Received: {type(error).__name__}: {error} Offline: "
            "download the repository on a connected machine, and pass its folder as the handle."
        ) from error
    folder = Path(os.path.abspath(snapshot)) / inside
    if not folder.is_dir():
        raise ValueError(
            f"`handle` {handle!r} has no folder {inside!r}. Expected one of the repository's. "
            f"Received: {sorted(p.name for p in Path(snapshot).iterdir())[:5]} at its top."
        )
    return check_module(folder, handle)
