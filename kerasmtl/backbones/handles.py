"""Handles: what a user names becomes a local folder with a SavedModel."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tarfile
import tempfile
from pathlib import Path

from kerasmtl.embedded import EXTRACTORS, extractor_folder

ARCHIVES = (".tar.gz", ".tgz", ".tar")
TIMEOUT = 30  # seconds without an answer
SAVED_MODELS = ("saved_model.pb", "saved_model.pbtxt")


def resolve_handle(handle: str | os.PathLike[str]) -> Path:
    """The local folder of the SavedModel that a handle names.

    Args:
        handle: "tiny" (embedded), a folder, a .tar.gz archive, or a URL of TF-Hub, Kaggle or any
            server that has the archive. Downloads and unpacked archives are kept in
            `TFHUB_CACHE_DIR` (archives otherwise in ~/.cache/kerasmtl).

    Raises:
        ValueError: the handle names nothing, cannot be reached, or holds no SavedModel.
    """
    handle = os.fspath(handle)
    if handle in EXTRACTORS:
        return extractor_folder(handle)
    path = Path(handle).expanduser()
    if path.is_dir():
        return _checked(path, handle)
    if path.is_file():
        return _unpack(path, handle)
    if "://" in handle:
        return _checked(_download(handle), handle)
    raise ValueError(
        f"`handle` {handle!r} names nothing. Expected one of the embedded {sorted(EXTRACTORS)}, a "
        "keras.applications name, a folder with a saved_model.pb, a .tar.gz archive, or a URL. "
        f"Tried: embedded (no), keras.applications (no), {os.path.abspath(path)} (no such folder "
        "or file)."
    )


def is_remote(handle: str) -> bool:
    """Whether a handle is a URL."""
    return "://" in handle


def _checked(folder: Path, handle: str) -> Path:
    if not any((folder / name).is_file() for name in SAVED_MODELS):
        versions = [
            p for p in folder.iterdir() if p.name.isdigit() and (p / SAVED_MODELS[0]).is_file()
        ]
        newest = max(versions, key=lambda p: int(p.name), default=None)
        hint = f" It has versions below it: pass {str(newest)!r}." if newest else ""
        raise ValueError(
            f"`handle` {handle!r} is no SavedModel. Expected a saved_model.pb in {folder}.{hint}"
        )
    return folder


def _cache() -> Path:
    return Path(os.environ.get("TFHUB_CACHE_DIR") or Path.home() / ".cache" / "kerasmtl")


def _unpack(archive: Path, handle: str) -> Path:
    """Unpack aside and rename, so that a broken archive never stays in the cache."""
    if not archive.name.endswith(ARCHIVES):
        raise ValueError(
            f"`handle` {handle!r} is a file. Expected a folder, or an archive {ARCHIVES}."
        )
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = _cache() / digest
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = tempfile.mkdtemp(dir=target.parent, prefix=".unpack-")
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(aside, filter="data")
        _checked(Path(aside), handle)
        os.rename(aside, target)
    except (tarfile.TarError, EOFError, OSError) as error:
        if not target.is_dir():  # otherwise another process was first, with the same content
            raise ValueError(
                f"`handle` {handle!r} cannot be unpacked. Expected a whole archive that stays "
                f"inside its folder. Received: {error}"
            ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _download(handle: str) -> Path:
    try:
        # Heavy, and of use for nothing but this.
        import tensorflow_hub
    except ImportError as error:
        raise ValueError(
            f"`handle` {handle!r} needs tensorflow-hub, which does not import: {error}. Its "
            "pkg_resources was removed from setuptools 82: pip install 'setuptools<82'."
        ) from error
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        return Path(tensorflow_hub.resolve(handle))
    except Exception as error:
        # The resolvers raise whatever their clients do: URLError, RuntimeError, OpError, …
        raise ValueError(
            f"`handle` {handle!r} cannot be reached. Tried: download by tensorflow_hub.resolve "
            f"({type(error).__name__}: {error}). Expected a URL of a TF2 SavedModel, with its "
            "version. Offline: download the module's .tar.gz on a connected machine, and pass the "
            "file or its unpacked folder as the handle."
        ) from error
    finally:
        socket.setdefaulttimeout(before)
