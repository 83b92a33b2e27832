"""Handles: the names, paths and addresses of SavedModels, which become local folders.

| handle | where the folder is |
| --- | --- |
| "tiny" | in this package |
| a folder | there; or one folder below, if only one of these is a SavedModel |
| a .tar, .tar.gz or .tgz file | in the cache, under the file's SHA-256 |
| http(s)://…, gs://… | in the cache, under the SHA-1 of the handle, as tensorflow_hub does |
| kaggle:…, https://www.kaggle.com/models/… | in the cache of kagglehub |
| hf:owner/repo | in the cache of huggingface_hub |

`resolve_handle` is what `HubLayer`, projects and `kerasmtl vendor` call. Around it are checks that
need neither the network nor Keras: `check_backbone` and `trained_backbones` for `kerasmtl new`,
which must judge and suggest handles at once. Caches come first, so that what was fetched once works
offline.
"""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

from kerasmtl.models.hub.cache import (
    cache_entry,
    cache_root,
    cached_module,
    check_content,
    find_module,
    is_module,
    valid_sha256,
)
from kerasmtl.models.hub.download import SUFFIXES, copy_from_bucket, download, unpack
from kerasmtl.models.hub.embedded import EXTRACTORS, extractor_folder
from kerasmtl.utils.files import file_sha256

HF = "hf:"
KAGGLE = "kaggle:"
PRESET = "keras_hub:"
# Packages that handles need, and the extras of kerasmtl that install them.
CLIENTS = {"keras_hub": "keras-hub", "kagglehub": "kaggle", "huggingface_hub": "hf"}
PUBLISHERS = ("https://tfhub.dev/", "https://www.kaggle.com/", KAGGLE)
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_HF = re.compile(rf"hf:({_PART}/{_PART})((?:/{_PART})*)(?:@([A-Za-z0-9_][A-Za-z0-9_./-]*))?")
_KAGGLE = re.compile(rf"({_PART}/{_PART}/{_PART}/{_PART})(/\d+)?")
_KAGGLE_PAGE = re.compile(r"https?://(?:www\.)?kaggle\.com/models/([^?#]*)")
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


# Of keras.applications, what Keras calls the weights without the last layer; in the order in which
# a network is preferred: accurate for its size, and quick on a CPU.
WEIGHTS = {
    "EfficientNetV2B0": "efficientnetv2-b0_notop.h5",
    "EfficientNetB0": "efficientnetb0_notop.h5",
    "MobileNetV3Large": "weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
    "MobileNetV2": "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
    "MobileNetV3Small": "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
    "MobileNet": "mobilenet_1_0_224_tf_no_top.h5",
    "ConvNeXtTiny": "convnext_tiny_notop.h5",
    "DenseNet121": "densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "ResNet50V2": "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "ResNet50": "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "InceptionV3": "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "Xception": "xception_weights_tf_dim_ordering_tf_kernels_notop.h5",
}
# Of modules, whose names say what they give: image feature vectors.
_VECTORS = re.compile(r"feature[-_]vector", re.IGNORECASE)
_FAMILIES = ("efficientnet", "mobilenet", "resnet", "inception")


def resolve_handle(handle: str | os.PathLike[str], sha256: str | None = None) -> Path:
    """Return the local folder of the SavedModel that a handle names.

    Args:
        handle: one of "tiny" (embedded), a folder, a .tar.gz archive, a URL of an archive or of
            TF-Hub, "kaggle:owner/model/framework/variation/version" or the page of that model,
            "hf:owner/repo/folder@revision", or a folder or archive behind gs://. Caches are looked
            at first: `TFHUB_CACHE_DIR` (or ~/.cache/kerasmtl), where downloads and unpacked
            archives are kept, and those of kagglehub and huggingface_hub.
        sha256: what the module's content hash must be, as `kerasmtl vendor` prints it.

    Returns:
        The folder of a SavedModel. It may be in another program's cache: do not write there.

    Raises:
        ValueError: the handle names nothing, cannot be reached, has no SavedModel, or has another
            content than `sha256`.
        ImportError: a kaggle: or hf: handle, whose package is not installed.
    """
    handle = os.fspath(handle)
    pin = None if sha256 is None else valid_sha256(sha256)
    folder = _fetch(handle) if is_remote(handle) else _local(handle)
    if pin:
        check_content(folder, pin, handle)
    return folder


def is_remote(handle: str) -> bool:
    """Return whether a handle is more than a name or a path: a URL, "kaggle:…" or "hf:…"."""
    return "://" in handle or handle.startswith((KAGGLE, HF))


def is_published(handle: str) -> bool:
    """Return whether a handle is of TF-Hub or Kaggle, whose image modules take pixels in [0, 1].

    Source: https://www.tensorflow.org/hub/common_signatures/images#input

    Args:
        handle: as the user wrote it; a local copy of such a module is not recognized.
    """
    return handle.startswith(PUBLISHERS)


def from_folder(handle: str, folder: Path) -> str:
    """Return the handle with a path in it made absolute, starting from a folder.

    A path may be all of it, or follow the colon of "MobileNetV2:file" and "keras_hub:folder".
    """
    if handle in EXTRACTORS or is_remote(handle):
        return handle
    name, colon, path = handle.partition(":")
    for before, local in (("", handle), (name + colon, path)):
        found = folder / Path(local).expanduser()
        if local and found.exists():
            return before + os.path.abspath(found)
    return handle


def check_backbone(handle: str) -> None:
    """Check that a backbone may exist, without loading or downloading it.

    Args:
        handle: what `kerasmtl.load_backbone` takes, paths from the working folder.

    Raises:
        ValueError: an unknown name, an absent folder or file, a folder without a SavedModel, or a
            handle whose package is not installed.
    """
    name, colon, rest = handle.partition(":")
    client = None
    if is_kaggle(handle):
        client = None if is_whole(kaggle_cache() / parse_kaggle(handle)) else "kagglehub"
    elif handle.startswith((PRESET, HF)):
        client = "keras_hub" if handle.startswith(PRESET) else "huggingface_hub"
    elif name in APPLICATIONS:
        if colon and not Path(rest).expanduser().is_file():
            raise ValueError(f"`backbone` {handle!r} must name a weight file, got no such file.")
    elif not is_remote(handle):
        path = Path(handle).expanduser()
        if path.is_dir():
            find_module(path, handle)
        elif handle not in EXTRACTORS and not path.is_file():
            near = get_close_matches(handle, [*APPLICATIONS, *EXTRACTORS], 1, 0.7)
            raise ValueError(
                f"`backbone` must be {', '.join(EXTRACTORS)}, a model of keras.applications, a "
                f"SavedModel's folder, archive or URL, got {handle!r}, which is none of them"
                + (f". Did you mean {near[0]}?" if near else ".")
            )
    if client and find_spec(client) is None:
        raise ValueError(f"`backbone` {handle!r} needs {client}: {_install(client)}.")


def _install(client: str) -> str:
    """Return the command that installs a package."""
    return f"pip install 'kerasmtl[{CLIENTS[client]}]'"


def _imported(client: str, handle: str) -> ModuleType:
    """Import a package that a handle needs; raise ImportError with what to install."""
    try:
        return import_module(client)
    except ImportError as error:
        raise ImportError(f"{handle!r} needs {client}: {_install(client)}") from error


# ---------------------------------------------------------------- on this machine


def _local(handle: str) -> Path:
    """Return the folder of an embedded module, a folder or an unpacked archive.

    Raises:
        ValueError: there is nothing of that name, or a file that is not an archive.
    """
    if handle in EXTRACTORS:
        return extractor_folder(handle)
    path = Path(handle).expanduser()
    if path.is_dir():
        return find_module(path, handle)
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise ValueError(f"`handle` must be a folder or an archive {SUFFIXES}, got {handle!r}")
        # Under the hash of the archive: a changed file of the same name is another module.
        kept = cache_root() / file_sha256(path)
        return cached_module(kept, handle, lambda made: unpack(path, made, handle))
    raise ValueError(
        f"`handle` must be one of {sorted(EXTRACTORS)}, a keras.applications name, a folder with a "
        f"saved_model.pb, an archive, a URL, kaggle:… or hf:…, got {handle!r}: no such folder"
    )


# ---------------------------------------------------------------- elsewhere


def _fetch(handle: str) -> Path:
    """Return the folder of a module that is kept in a cache, after its download.

    Archives and folders of buckets go to this package's cache; the clients of Kaggle and Hugging
    Face have caches of their own, which other programs share.
    """
    if is_kaggle(handle):
        return _fetch_kaggle(handle)
    if handle.startswith(HF):
        return _fetch_hf(handle)
    scheme = urlsplit(handle).scheme.lower()
    if scheme == "file":
        return _local(unquote(urlsplit(handle).path))
    fill = _download if scheme in ("http", "https") else copy_from_bucket
    return cached_module(cache_entry(handle), handle, lambda made: fill(handle, made))


def _download(handle: str, made: Path) -> None:
    """Download an archive beside a folder, and unpack it there."""
    archive = made.with_name("archive")
    download(_address(handle), archive, handle)
    unpack(archive, made, handle)


def _address(url: str) -> str:
    """Return where the archive is: servers of the TF-Hub protocol want to be asked for it.

    "?tf-hub-format=compressed" is the protocol of TF-Hub: without it servers answer with a web
    page. Source: https://www.tensorflow.org/hub/hosting
    """
    parts = urlsplit(url)
    archive = parts.path.endswith(SUFFIXES) or (parts.query and parts.hostname != "tfhub.dev")
    if archive or "tf-hub-format=" in parts.query:
        return url
    query = "&".join(filter(None, (parts.query, "tf-hub-format=compressed")))
    return parts._replace(query=query).geturl()


def is_kaggle(handle: str) -> bool:
    """Return whether a handle is kaggle:… or the page of a Kaggle model."""
    return handle.startswith(KAGGLE) or _KAGGLE_PAGE.match(handle) is not None


def parse_kaggle(handle: str) -> str:
    """Return owner/model/framework/variation/version of a Kaggle handle or page.

    The version is required: without one, the same handle could mean another model tomorrow.

    Raises:
        ValueError: it has no version, or other parts.
    """
    page = _KAGGLE_PAGE.match(handle)
    name = (page[1] if page else handle.removeprefix(KAGGLE)).strip("/")
    parts = _KAGGLE.fullmatch(name)
    if parts is None or parts[2] is None:
        example = f"{name}/1" if parts else "google/mobilenet-v2/tensorFlow2/100-224/2"
        raise ValueError(
            "`handle` must be kaggle:owner/model/framework/variation/version, such as "
            f"{KAGGLE + example!r}, got {handle!r}"
        )
    return name


def kaggle_cache() -> Path:
    """Return the folder of models in kagglehub's cache."""
    return Path(os.environ.get("KAGGLEHUB_CACHE") or "~/.cache/kagglehub").expanduser() / "models"


def is_whole(folder: Path) -> bool:
    """Return whether kagglehub marked a folder of its cache as completely downloaded."""
    return folder.is_dir() and folder.with_name(f"{folder.name}.complete").is_file()


def _fetch_kaggle(handle: str) -> Path:
    """Return the folder in the cache of kagglehub, which downloads it if it is absent."""
    name = parse_kaggle(handle)
    kept = kaggle_cache() / name
    if is_whole(kept):  # which needs neither the package nor a connection
        return find_module(kept, handle)
    kagglehub = _imported("kagglehub", handle)
    try:
        folder = Path(kagglehub.model_download(name))
    except Exception as error:  # the client raises its own errors, and those of requests
        raise ValueError(
            f"`handle` must be a Kaggle model that you may download, got {handle!r}: "
            f"{type(error).__name__}: {error}. Accept its conditions on its page, and log in "
            "(KAGGLE_API_TOKEN)."
        ) from error
    return find_module(folder, handle)


def _fetch_hf(handle: str) -> Path:
    """Return the folder in the cache of huggingface_hub, which downloads it if absent.

    Without a revision huggingface_hub takes the main branch, and asks for its newest commit;
    offline it takes what is in its cache.
    """
    parts = _HF.fullmatch(handle)
    if parts is None or ".." in handle:
        raise ValueError(
            f"`handle` must be hf:owner/repo or hf:owner/repo/sub/folder@revision, got {handle!r}"
        )
    repo, inside, revision = parts[1], parts[2].strip("/"), parts[3]
    hub = _imported("huggingface_hub", handle)
    try:
        inner = [f"{inside}/*"] if inside else None
        snapshot = hub.snapshot_download(repo, revision=revision, allow_patterns=inner)
    except Exception as error:  # the client raises its own errors, those of HTTP, and OSError
        raise ValueError(
            f"`handle` must be a repository that you may read, got {handle!r}: "
            f"{type(error).__name__}: {error}. Set HF_TOKEN for one that is not public."
        ) from error
    folder = Path(os.path.abspath(snapshot)) / inside
    if not folder.is_dir():
        there = sorted(path.name for path in Path(snapshot).iterdir())[:5]
        raise ValueError(f"`handle` {handle!r} must name a folder of the repository, got {there}")
    return find_module(folder, handle)


# ---------------------------------------------------------------- what is on this machine


def trained_backbones() -> list[tuple[str, Path]]:
    """Find trained image backbones that need no network, the preferred one first.

    Weights that Keras has downloaded are in ~/.keras/models, TF-Hub modules in `TFHUB_CACHE_DIR`,
    with a note beside each that names its handle, and Kaggle models in `KAGGLEHUB_CACHE`.

    Returns:
        The handle of each, as project.toml takes it, and where it is.

    Example:
        >>> for handle, place in trained_backbones():
        ...     assert place.exists()
    """
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models"
    weights = [(name, home / file) for name, file in WEIGHTS.items()]
    modules = [
        (KAGGLE + "/".join(folder.parts[-5:]), folder)
        for folder in kaggle_cache().glob("*/*/*/*/*")
        if is_whole(folder)
    ]
    for note in cache_root().glob("*.descriptor.txt"):
        named = re.search(r"^Module: (\S+)", note.read_text("utf-8", "replace"), re.MULTILINE)
        modules.append((named[1] if named else "", note.with_name(note.name.partition(".")[0])))
    vectors = [(name, at) for name, at in modules if _VECTORS.search(name) and is_module(at)]
    # What is smaller is an interrupted download.
    whole = [(name, at) for name, at in weights if at.is_file() and at.stat().st_size > 1e6]

    def rank(found: tuple[str, Path]) -> tuple[int, str]:
        ranks = [number for number, family in enumerate(_FAMILIES) if family in found[0].lower()]
        return min(ranks, default=len(_FAMILIES)), found[0]

    return whole + sorted(vectors, key=rank)
