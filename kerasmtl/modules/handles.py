"""Handles: what a user names becomes a local folder with a SavedModel."""

from __future__ import annotations

import hashlib
import os
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kerasmtl.embedded import EXTRACTORS, extractor_folder
from kerasmtl.modules import kaggle, stores
from kerasmtl.modules.archives import SUFFIXES, unpack
from kerasmtl.modules.caches import cache_root, entry, keep
from kerasmtl.modules.content import check_content, valid_sha256
from kerasmtl.modules.downloads import download
from kerasmtl.modules.folders import check_module

_PREFIXES = (kaggle.PREFIX, stores.HF_PREFIX)
PRESET = "keras_hub:"
# The models of keras.applications, so that a name can be checked without importing Keras.
APPLICATIONS = (
    *(f"ConvNeXt{size}" for size in ("Base", "Large", "Small", "Tiny", "XLarge")),
    *(f"DenseNet{depth}" for depth in (121, 169, 201)),
    *(f"EfficientNetB{number}" for number in range(8)),
    *(f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "L", "M", "S")),
    *("InceptionResNetV2", "InceptionV3"),
    *("MobileNet", "MobileNetV2", "MobileNetV3Large", "MobileNetV3Small"),
    *("NASNetLarge", "NASNetMobile"),
    *(f"ResNet{depth}{version}" for depth in (50, 101, 152) for version in ("", "V2")),
    *("VGG16", "VGG19", "Xception"),
)


def resolve_handle(handle: str | os.PathLike[str], sha256: str | None = None) -> Path:
    """The local folder of the SavedModel that a handle names.

    Args:
        handle: one of "tiny" (embedded), a folder, a .tar.gz archive, a URL of an archive or of
            TF-Hub, "kaggle:owner/model/framework/variation/version" or the page of that model,
            "hf:owner/repo/folder@revision", or a folder or archive behind gs://. Caches are looked
            at first: `TFHUB_CACHE_DIR` (or ~/.cache/kerasmtl), where downloads and unpacked
            archives are kept, and for Kaggle `KAGGLEHUB_CACHE`.
        sha256: what the module's content hash must be, as `kerasmtl vendor` prints it.

    Raises:
        ValueError: the handle names nothing, cannot be reached, holds no SavedModel, or has
            another content than `sha256`.
    """
    handle = os.fspath(handle)
    pin = None if sha256 is None else valid_sha256(sha256)
    folder = _fetch(handle) if is_remote(handle) else _local(handle)
    if pin is not None:
        check_content(folder, pin, handle)
    return folder


def check_backbone(handle: str) -> None:
    """Refuse a backbone that cannot be one, without loading or downloading it.

    Args:
        handle: what `kerasmtl.load_backbone` takes, paths from the working folder.

    Raises:
        ValueError: an unknown name, an absent folder or file, a folder without a SavedModel, or a
            handle whose package is not installed.
    """
    name, colon, rest = handle.partition(":")
    if handle.startswith(PRESET):
        if find_spec("keras_hub") is None:
            raise ValueError(
                f"`backbone` {handle!r} needs keras-hub: pip install 'kerasmtl[keras-hub]'."
            )
    elif name in APPLICATIONS:
        if colon and not Path(rest).expanduser().is_file():
            raise ValueError(f"`backbone` {handle!r} must name a weight file, got no such file.")
    elif kaggle.is_kaggle(handle):
        kaggle.parse(handle)
    elif handle.startswith(stores.HF_PREFIX) and find_spec("huggingface_hub") is None:
        raise ValueError(
            f"`backbone` {handle!r} needs huggingface_hub: pip install 'kerasmtl[hf]'."
        )
    elif not is_remote(handle):
        path = Path(handle).expanduser()
        if path.is_dir():
            check_module(path, handle)
        elif handle not in EXTRACTORS and not path.is_file():
            near = get_close_matches(handle, [*APPLICATIONS, *EXTRACTORS], 1, 0.7)
            raise ValueError(
                f"`backbone` must be {', '.join(EXTRACTORS)}, a model of keras.applications, a "
                f"SavedModel's folder, archive or URL, got {handle!r}, which is none of them"
                + (f". Did you mean {near[0]}?" if near else ".")
            )


def from_folder(handle: str, folder: Path) -> str:
    """The handle with a path in it made absolute, starting from a folder.

    A path may stand alone, or after the colon of "MobileNetV2:file" and "keras_hub:folder".
    """
    if handle in EXTRACTORS or is_remote(handle):
        return handle
    name, colon, path = handle.partition(":")
    for before, local in (("", handle), (name + colon, path)):
        found = folder / Path(local).expanduser()
        if local and found.exists():
            return before + os.path.abspath(found)
    return handle


def is_remote(handle: str) -> bool:
    """Whether a handle is more than a name or a path: a URL, kaggle:… or hf:…"""
    return "://" in handle or handle.startswith(_PREFIXES)


def _local(handle: str) -> Path:
    if handle in EXTRACTORS:
        return extractor_folder(handle)
    path = Path(handle).expanduser()
    if path.is_dir():
        return check_module(path, handle)
    if path.is_file():
        return _unpacked(path, handle)
    raise ValueError(
        f"`handle` {handle!r} names nothing. Expected one of the embedded {sorted(EXTRACTORS)}, a "
        "keras.applications name, a folder with a saved_model.pb, a .tar.gz archive, a URL, "
        "kaggle:owner/model/framework/variation/version or hf:owner/repo. Tried: embedded (no), "
        f"keras.applications (no), {os.path.abspath(path)} (no such folder or file)."
    )


def _unpacked(archive: Path, handle: str) -> Path:
    """Kept under the hash of the archive: a changed file of the same name is another module."""
    if not archive.name.endswith(SUFFIXES):
        raise ValueError(
            f"`handle` {handle!r} is a file. Expected a folder, or an archive {SUFFIXES}."
        )
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return keep(cache_root() / digest, handle, lambda made: unpack(archive, made, handle))


def _fetch(handle: str) -> Path:
    if kaggle.is_kaggle(handle):
        return kaggle.fetch(handle)
    if handle.startswith(stores.HF_PREFIX):
        return stores.fetch_hf(handle)
    scheme = urlsplit(handle).scheme.lower()
    if scheme == "file":
        return _local(unquote(urlsplit(handle).path))
    if scheme not in ("http", "https"):
        return stores.fetch_gfile(handle)
    return keep(entry(handle), handle, lambda made: _download(handle, made), named=handle)


def _download(handle: str, made: Path) -> None:
    archive = made.with_name("archive")
    download(_address(handle), archive, handle)
    unpack(archive, made, handle)


def _address(url: str) -> str:
    """Where the archive is: servers that speak the protocol of TF-Hub want to be asked for it."""
    parts = urlsplit(url)
    archive = parts.path.endswith(SUFFIXES) or (parts.query and parts.hostname != "tfhub.dev")
    if archive or "tf-hub-format=" in parts.query:
        return url
    query = "&".join(filter(None, (parts.query, "tf-hub-format=compressed")))
    return parts._replace(query=query).geturl()
