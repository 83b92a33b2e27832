"""Kaggle models: handles, credentials, and the cache that is shared with kagglehub."""

import json
import os

import pytest
from servers import isolated, packed, serving

from kerasmtl.models.hub.cache import content_sha256
from kerasmtl.models.hub.handles import parse, resolve_handle

NAME = "google/mobilenet-v2/tensorFlow2/100-224-feature-vector/2"
HANDLE = f"kaggle:{NAME}"
PAGE = f"https://www.kaggle.com/models/{NAME}"
DOWNLOAD = f"/api/v1/models/{NAME}/download"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    return isolated(tmp_path, monkeypatch)


@pytest.fixture
def module(tmp_path):
    """A folder that is a SavedModel by its files."""
    (tmp_path / "module" / "variables").mkdir(parents=True)
    (tmp_path / "module" / "saved_model.pb").write_bytes(b"graph")
    (tmp_path / "module" / "variables" / "variables.index").write_bytes(b"1")
    return tmp_path / "module"


@pytest.fixture
def kaggle(module, monkeypatch):
    """A server in place of Kaggle, that has one model."""
    with serving({DOWNLOAD: (200, {}, packed(module))}) as server:
        monkeypatch.setenv("KAGGLE_API_ENDPOINT", server.url)
        yield server


def in_hub(root, name=NAME, marked=True, files=("saved_model.pb",)):
    """A model as kagglehub 1.0 keeps it: the folder, and beside it the mark of a whole one."""
    folder = root / "models" / name
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_bytes(b"kept")
    if marked:
        folder.with_name(f"{folder.name}.complete").touch()
    return folder


@pytest.mark.parametrize(
    "handle",
    [
        HANDLE,
        PAGE,
        PAGE + "/",
        PAGE.replace("www.", ""),
        PAGE + "?tfhub-redirect=true#files",
        "https://www.kaggle.com/models/google/mobilenet-v2/frameworks/tensorFlow2/variations/"
        "100-224-feature-vector/versions/2",
    ],
)
def test_a_model_is_downloaded_by_handle_or_page(kaggle, module, cache, handle):
    found = resolve_handle(handle)
    assert content_sha256(found) == content_sha256(module) and found.parent == cache
    assert resolve_handle(handle) == found
    assert [path for _, path, _ in kaggle.seen] == [DOWNLOAD]


def test_handle_and_page_share_one_entry(kaggle):
    assert resolve_handle(HANDLE) == resolve_handle(PAGE)
    assert len(kaggle.seen) == 1


def test_the_framework_is_asked_for_as_it_is_written():
    assert parse(HANDLE.replace("tensorFlow2", "TensorFlow2")).framework == "TensorFlow2"


@pytest.mark.parametrize(
    "handle", [HANDLE.rpartition("/")[0], PAGE.rpartition("/")[0], PAGE[:-1] + "?x=1"]
)
def test_a_missing_version_is_asked_for(handle):
    with pytest.raises(ValueError, match="has no version.*needs its version.*vector/1'"):
        resolve_handle(handle)


@pytest.mark.parametrize(
    "name", ["", "a", "a/b/c", "a/b/c/d/latest", "a/b/c/d/1/e", "a/../c/d/1", "a/b/c/d e/1"]
)
def test_a_wrong_handle_shows_a_right_one(name):
    with pytest.raises(ValueError, match="is no Kaggle model.*'kaggle:google/mobilenet-v2/"):
        resolve_handle(f"kaggle:{name}")


@pytest.mark.parametrize("spelled", ["tensorFlow2", "TensorFlow2"])
def test_what_kagglehub_has_is_used(tmp_path, monkeypatch, spelled):
    root = tmp_path / "hub"
    folder = in_hub(root, NAME.replace("tensorFlow2", spelled))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(root))
    assert resolve_handle(HANDLE) == resolve_handle(PAGE) == folder


def test_what_kagglehub_has_in_its_default_folder_is_used(tmp_path):
    folder = in_hub(tmp_path / "home" / ".cache" / "kagglehub")
    assert resolve_handle(HANDLE) == folder


def test_downloads_are_kept_for_kagglehub_too(kaggle, module, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "hub"))
    found = resolve_handle(HANDLE)
    assert found == tmp_path / "hub" / "models" / NAME
    assert content_sha256(found) == content_sha256(module)
    assert sorted(p.name for p in found.parent.iterdir()) == ["2", "2.complete"]
    assert resolve_handle(PAGE) == found
    assert len(kaggle.seen) == 1 and not cache.exists()


def test_half_a_download_of_kagglehub_is_replaced(kaggle, module, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "hub"))
    half = in_hub(tmp_path / "hub", marked=False)
    found = resolve_handle(HANDLE)
    assert found == half and content_sha256(found) == content_sha256(module)
    assert sorted(p.name for p in found.parent.iterdir()) == ["2", "2.complete"]


def test_a_refused_download_leaves_nothing_in_the_cache_of_kagglehub(tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "hub"))
    with serving({DOWNLOAD: (403, {}, b"consent first")}) as server:
        monkeypatch.setenv("KAGGLE_API_ENDPOINT", server.url)
        with pytest.raises(ValueError, match="HTTP 403.*conditions on the module's page"):
            resolve_handle(HANDLE)
    assert not [p for p in (tmp_path / "hub").rglob("*") if p.name.startswith((".", "2"))]


def write_home(tmp_path, name, text):
    (tmp_path / "home" / ".kaggle").mkdir(parents=True, exist_ok=True)
    (tmp_path / "home" / ".kaggle" / name).write_text(text)


BASIC = "Basic YW5uOmsxMjM="  # ann:k123


@pytest.mark.parametrize("kind", ["names", "json", "folder", "token", "token file", "access_token"])
def test_credentials_are_sent(kaggle, tmp_path, monkeypatch, kind):
    known = json.dumps({"username": "ann", "key": "k123"})
    if kind == "names":
        monkeypatch.setenv("KAGGLE_USERNAME", "ann")
        monkeypatch.setenv("KAGGLE_KEY", "k123")
    elif kind == "json":
        write_home(tmp_path, "kaggle.json", known)
    elif kind == "folder":
        (tmp_path / "kaggle.json").write_text(known)
        monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    elif kind == "token":
        monkeypatch.setenv("KAGGLE_API_TOKEN", "t" * 400)
        monkeypatch.setenv("KAGGLE_USERNAME", "ann")
    elif kind == "token file":
        (tmp_path / "token").write_text("t" * 400 + "\n")
        monkeypatch.setenv("KAGGLE_API_TOKEN", str(tmp_path / "token"))
    else:
        write_home(tmp_path, "access_token", "t" * 400)
    resolve_handle(HANDLE)
    sent = kaggle.seen[0][2]["Authorization"]
    assert sent == (BASIC if kind in ("names", "json", "folder") else "Bearer " + "t" * 400)


def test_without_credentials_none_are_sent(kaggle):
    resolve_handle(HANDLE)
    assert "Authorization" not in kaggle.seen[0][2]


@pytest.mark.parametrize("text", ["{", "[]", '{"username": "ann"}'])
def test_broken_credentials_are_named(kaggle, tmp_path, text):
    write_home(tmp_path, "kaggle.json", text)
    with pytest.raises(ValueError, match="kaggle.json` holds no credentials"):
        resolve_handle(HANDLE)


@pytest.mark.parametrize("token", [None, "t0ken"])
def test_credentials_do_not_cross_to_another_host(module, monkeypatch, token):
    monkeypatch.setenv("KAGGLE_USERNAME", "ann")
    monkeypatch.setenv("KAGGLE_KEY", "k123")
    if token:
        monkeypatch.setenv("KAGGLE_API_TOKEN", token)
    with serving({"/signed": (200, {}, packed(module))}) as store:
        elsewhere = store.url.replace("127.0.0.1", "localhost") + "/signed"
        with serving({DOWNLOAD: (302, {"Location": elsewhere}, b"")}) as server:
            monkeypatch.setenv("KAGGLE_API_ENDPOINT", server.url)
            resolve_handle(HANDLE)
    assert "Authorization" in server.seen[0][2]
    assert [path for _, path, _ in store.seen] == ["/signed"]
    assert "Authorization" not in store.seen[0][2]


def test_credentials_do_not_go_to_other_handles(module, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "t0ken")
    with serving({"/m.tar.gz": (200, {}, packed(module))}) as server:
        resolve_handle(f"{server.url}/m.tar.gz")
    assert "Authorization" not in server.seen[0][2]


def test_kagglehub_finds_what_was_kept(kaggle, tmp_path, monkeypatch):
    cache = pytest.importorskip("kagglehub.cache", reason="kagglehub is not installed")
    from kagglehub.handle import parse_model_handle

    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "hub"))
    found = resolve_handle(HANDLE)
    assert cache.Cache().load_from_cache(parse_model_handle(NAME)) == os.fspath(found)
