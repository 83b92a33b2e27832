"""Kaggle models: handles, credentials, downloads, and the cache of kagglehub."""

from __future__ import annotations

import json
import os
import re
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import requests

from kerasmtl.modules.archives import unpack
from kerasmtl.modules.caches import entry, keep
from kerasmtl.modules.content import content_sha256, holds
from kerasmtl.modules.downloads import download
from kerasmtl.modules.folders import aside, filled, find_module, settle

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
