"""Handles: what a user names becomes a local folder with a SavedModel."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import astuple, dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import requests

from kerasmtl.models.hub.cache import (
    cache_root,
    check_content,
    content_sha256,
    entry,
    holds,
    keep,
    valid_sha256,
)
from kerasmtl.models.hub.download import OFFLINE, SUFFIXES, download, max_bytes, unpack
from kerasmtl.models.hub.embedded import EXTRACTORS, extractor_folder
from kerasmtl.utils.files import aside, check_module, filled, find_module, settle

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


PREFIX = "kaggle:"
ENDPOINT = "https://www.kaggle.com"
_PAGE = re.compile(r"https?://(?:www\.)?kaggle\.com/models/([^?#]*)")
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# Pages had these words in their addresses once, and links to them live on.
_WORDS = {(2, "frameworks"), (4, "variations"), (6, "versions")}
_EXAMPLE = "kaggle:google/mobilenet-v2/tensorFlow2/100-224-feature-vector/2"


@dataclass(frozen=True)
class KaggleModel:
    """One version of one variation of a Kaggle model."""

    owner: str
    model: str
    framework: str
    variation: str
    version: str

    @property
    def path(self) -> str:
        """owner/model/framework/variation/version"""
        return "/".join(astuple(self))


class _Bearer(requests.auth.AuthBase):
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def is_kaggle(handle: str) -> bool:
    """Whether a handle is `kaggle:…` or the page of a Kaggle model."""
    return handle.startswith(PREFIX) or _PAGE.match(handle) is not None


def parse(handle: str) -> KaggleModel:
    """The model that a handle or a page's address names.

    Raises:
        ValueError: it has no version, or other parts than owner, model, framework, variation.
    """
    page = _PAGE.match(handle)
    parts = (page[1] if page else handle.removeprefix(PREFIX)).strip("/").split("/")
    parts = [part for i, part in enumerate(parts) if (i, part) not in _WORDS]
    if len(parts) == 4 and all(map(_SLUG.fullmatch, parts)):
        raise ValueError(
            f"`handle` {handle!r} has no version. Expected "
            "owner/model/framework/variation/version: a handle needs its version, as modules "
            f"change. See the model's page, and pass it: {PREFIX + '/'.join([*parts, '1'])!r}."
        )
    if len(parts) != 5 or not all(map(_SLUG.fullmatch, parts)) or not parts[4].isdecimal():
        raise ValueError(
            f"`handle` {handle!r} is no Kaggle model. Expected "
            f"kaggle:owner/model/framework/variation/version, for example {_EXAMPLE!r}. "
            f"Received: {'/'.join(parts)!r}"
        )
    return KaggleModel(*parts)


def fetch(handle: str) -> Path:
    """The folder of a Kaggle model: from a cache, or downloaded into one.

    Looked at are `TFHUB_CACHE_DIR` (or ~/.cache/kerasmtl), and `KAGGLEHUB_CACHE` (or
    ~/.cache/kagglehub). Downloads go to `KAGGLEHUB_CACHE` if that is set.

    Raises:
        ValueError: the handle is wrong, or the model cannot be had.
    """
    model = parse(handle)
    page = f"{ENDPOINT}/models/{model.path}"
    named = handle if _PAGE.match(handle) else page
    for place in (entry(named), entry(page)):
        if filled(place):
            return find_module(place, handle)
    cached = _cached(model)
    if cached is not None:
        return find_module(cached, handle)
    if os.environ.get("KAGGLEHUB_CACHE"):
        return _keep_as_kagglehub(model, handle)
    return keep(entry(named), handle, lambda made: _fetch(model, made, handle), named=named)


def _fetch(model: KaggleModel, made: Path, handle: str) -> None:
    endpoint = (os.environ.get("KAGGLE_API_ENDPOINT") or ENDPOINT).rstrip("/")
    archive = made.with_name("archive")
    url = f"{endpoint}/api/v1/models/{model.path}/download"
    download(url, archive, handle, auth=_credentials())
    unpack(archive, made, handle)


def kaggle_cache() -> Path:
    named = os.environ.get("KAGGLEHUB_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "kagglehub"


def _marker(folder: Path) -> Path:
    """kagglehub takes a folder for whole if this file is beside it."""
    return folder.with_name(f"{folder.name}.complete")


def _cached(model: KaggleModel) -> Path | None:
    """The folder in the cache of kagglehub, which writes the framework as its caller does."""
    above = kaggle_cache() / "models" / model.owner / model.model
    spellings = sorted(above.iterdir()) if above.is_dir() else []
    same = [p for p in spellings if p.name.lower() == model.framework.lower()]
    for framework in sorted(same, key=lambda p: p.name != model.framework):
        folder = framework / model.variation / model.version
        if folder.is_dir() and _marker(folder).is_file():
            return folder
    return None


def _keep_as_kagglehub(model: KaggleModel, handle: str) -> Path:
    target = kaggle_cache() / "models" / model.path
    with aside(target) as made:
        _fetch(model, made, handle)
        find_module(made, handle)
        digest = content_sha256(made)

        def good(there: Path) -> bool:
            # A folder without its marker: half a download, or a whole one about to be marked.
            return _marker(there).is_file() or holds(there, digest)

        settle(made, target, good)
    _marker(target).touch()
    return find_module(target, handle)


def _credentials() -> Any:
    """What kagglehub would log in with: a token, or a user's name and key. None for nobody."""
    home = Path.home() / ".kaggle"
    token = os.environ.get("KAGGLE_API_TOKEN", "").strip()
    for file in [token] if token else [home / "access_token", home / "access_token.txt"]:
        if os.path.isfile(file):
            token = Path(file).read_text(encoding="utf-8").strip()
            break
    if token:
        return _Bearer(token)
    name, key = os.environ.get("KAGGLE_USERNAME"), os.environ.get("KAGGLE_KEY")
    if name and key:
        return name, key
    file = Path(os.environ.get("KAGGLE_CONFIG_DIR") or home) / "kaggle.json"
    if not file.is_file():
        return None
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return known["username"], known["key"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"`{file}` holds no credentials. Expected JSON with a username and a key, as Kaggle's "
            "settings page makes it. Remove it, or make a new one."
        ) from None


_PREFIXES = (PREFIX, HF_PREFIX)
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
    folder = _fetch_handles(handle) if is_remote(handle) else _local(handle)
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
    elif is_kaggle(handle):
        parse(handle)
    elif handle.startswith(HF_PREFIX) and find_spec("huggingface_hub") is None:
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


def _fetch_handles(handle: str) -> Path:
    if is_kaggle(handle):
        return fetch(handle)
    if handle.startswith(HF_PREFIX):
        return fetch_hf(handle)
    scheme = urlsplit(handle).scheme.lower()
    if scheme == "file":
        return _local(unquote(urlsplit(handle).path))
    if scheme not in ("http", "https"):
        return fetch_gfile(handle)
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
