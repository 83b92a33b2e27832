"""Handles: names, folders, archives and addresses become a local SavedModel, or say why not."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from modules import shared
from servers import isolated, packed, serving

from kerasmtl.models.backbones import HubLayer
from kerasmtl.models.hub import handles
from kerasmtl.models.hub.cache import content_sha256
from kerasmtl.models.hub.handles import check_backbone, from_folder, resolve_handle

FILES = {"saved_model.pb": b"graph", "variables/variables.index": b"\x00\xff" * 50}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "google/mobilenet-v2/tensorFlow2/100-224-feature-vector/2"
PAGE = f"https://www.kaggle.com/models/{NAME}"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    return isolated(tmp_path, monkeypatch)


@pytest.fixture
def folder(tmp_path):
    """A folder that is a SavedModel by its files."""
    return write(tmp_path / "module")


def write(folder, files=FILES):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def sha1(text):
    return hashlib.sha1(text.encode()).hexdigest()


def entries(cache):
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


# ---------------------------------------------------------------- on this machine


def test_a_real_archive_of_tf_hub():
    layer = HubLayer(shared("models", "half_plus_two_v1.tar.gz"))
    np.testing.assert_allclose(layer(np.array([[2.0], [5.0]], "float32")), [[3.0], [4.5]])


@pytest.mark.parametrize("top", [".", "./module-1.0"])
def test_an_archive_is_unpacked_once(folder, tmp_path, cache, top):
    (tmp_path / "m.tar.gz").write_bytes(packed(folder, top))
    found = resolve_handle(tmp_path / "m.tar.gz")
    assert content_sha256(found) == content_sha256(folder)
    assert found.is_relative_to(cache) and resolve_handle(tmp_path / "m.tar.gz") == found
    assert len(entries(cache)) == 1


def test_without_a_cache_of_its_own_home_is_used(folder, tmp_path, monkeypatch):
    (tmp_path / "m.tgz").write_bytes(packed(folder))
    monkeypatch.delenv("TFHUB_CACHE_DIR")
    found = resolve_handle(tmp_path / "m.tgz")
    assert found.parent == tmp_path / "home" / ".cache" / "kerasmtl"
    monkeypatch.setenv("TFHUB_CACHE_DIR", "gs://bucket/cache")
    with pytest.raises(ValueError, match="`TFHUB_CACHE_DIR`"):
        resolve_handle(tmp_path / "m.tgz")


def test_archives_of_no_or_several_modules_leave_nothing(folder, tmp_path, cache):
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as tar:
        tar.add(folder, "first")
        tar.add(folder, "second")
    with pytest.raises(ValueError, match="one saved_model.pb.*'first', 'second'"):
        resolve_handle(tmp_path / "m.tar.gz")
    (tmp_path / "n.tgz").write_bytes(packed(write(tmp_path / "readme", {"README": b"none"})))
    with pytest.raises(ValueError, match="one saved_model.pb.*with 0 in .'README'"):
        resolve_handle(tmp_path / "n.tgz")
    (tmp_path / "o.tar").write_bytes(packed(folder)[:-40])
    with pytest.raises(ValueError, match="`handle` must be a whole"):
        resolve_handle(tmp_path / "o.tar")
    assert entries(cache) == []


def test_what_is_not_a_module_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match="`handle` must be one of .'tiny'.*no such folder"):
        resolve_handle("no/such/module")
    (tmp_path / "weights.h5").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="a folder or an archive"):
        resolve_handle(tmp_path / "weights.h5")
    for version in ("2", "10"):
        write(tmp_path / "versions" / version)
    with pytest.raises(ValueError, match="with 2 in .'10', '2'"):
        resolve_handle(tmp_path / "versions")


@pytest.mark.parametrize("before", ["", "MobileNetV2:", "keras_hub:"])
def test_a_path_in_a_handle_starts_from_a_folder(tmp_path, before):
    (tmp_path / "there").mkdir()
    for path in ("there", tmp_path / "there"):
        assert from_folder(f"{before}{path}", tmp_path) == f"{before}{tmp_path / 'there'}"
    (tmp_path / "tiny").mkdir()
    for handle in ("tiny", "MobileNetV2", "hf:a/b"):  # not paths
        assert from_folder(handle, tmp_path) == handle


@pytest.mark.parametrize(
    ("handle", "reason"),
    [
        ("MobileNetV22", "Did you mean MobileNetV2"),
        ("MobileNetV2:no.h5", "no such file"),
        ("kaggle:a/b", "kaggle:owner"),
        ("hf:a/b", r"kerasmtl\[hf\]"),
        ("keras_hub:a", r"kerasmtl\[keras-hub\]"),
        (f"kaggle:{NAME}", r"kerasmtl\[kaggle\]"),
    ],
)
def test_backbones_that_cannot_be_are_named(handle, reason, monkeypatch):
    monkeypatch.setattr(handles, "find_spec", lambda name: None)
    for possible in ("tiny", "https://a.org/m.tar.gz"):
        check_backbone(possible)
    with pytest.raises(ValueError, match=reason):
        check_backbone(handle)


# ---------------------------------------------------------------- by HTTP


def test_a_url_is_downloaded_once(folder, cache):
    with serving({"/module.tar.gz": (200, {}, packed(folder))}) as server:
        url = f"{server.url}/module.tar.gz"
        found = resolve_handle(url)
    assert resolve_handle(url) == found  # the server is gone
    assert len(server.seen) == 1 and content_sha256(found) == content_sha256(folder)
    assert entries(cache) == [sha1(url), f"{sha1(url)}.descriptor.txt"]
    assert "Authorization" not in server.seen[0][2]


def test_an_entry_in_the_layout_of_tensorflow_hub_is_used(folder, cache):
    url = "https://tfhub.dev/google/imagenet/mobilenet_v2_100_224/feature_vector/5"
    kept = cache / "5a2fc00b609485c742fba2c65fadaca6c99a835c"  # tensorflow_hub 0.16.1
    os.makedirs(cache)
    os.symlink(folder, kept)
    os.chmod(cache, 0o555)  # a cache that is only lent
    try:
        assert resolve_handle(url) == kept
    finally:
        os.chmod(cache, 0o755)
    assert entries(cache) == [kept.name]


def test_a_cache_entry_without_a_module_says_what_to_remove(cache):
    url = "http://127.0.0.1:9/module.tar.gz"
    (cache / sha1(url)).mkdir(parents=True)
    with pytest.raises(ValueError, match="ConnectionError"):  # empty: as good as none
        resolve_handle(url)
    (cache / sha1(url) / "README").write_text("no module")
    with pytest.raises(ValueError, match=f"remove .*{sha1(url)}"):
        resolve_handle(url)


@pytest.mark.parametrize(
    ("handle", "asked"),
    [
        ("https://tfhub.dev/a/b/1", "https://tfhub.dev/a/b/1?tf-hub-format=compressed"),
        ("https://tfhub.dev/a/1?x=1", "https://tfhub.dev/a/1?x=1&tf-hub-format=compressed"),
        ("https://a.org/b.tar.gz", "https://a.org/b.tar.gz"),
        ("https://a.org/get?file=b", "https://a.org/get?file=b"),
    ],
)
def test_servers_of_the_tf_hub_protocol_are_asked_for_the_archive(handle, asked, monkeypatch):
    seen = []

    def refuse(url, *args):
        seen.append(url)
        raise ValueError("stop")

    monkeypatch.setattr(handles, "download", refuse)
    with pytest.raises(ValueError, match="stop"):
        resolve_handle(handle)
    assert seen == [asked]


def test_a_download_that_fails_or_is_interrupted_leaves_nothing(folder, cache, monkeypatch):
    data = bytearray(packed(folder))
    data[len(data) // 2] ^= 0xFF
    with serving({"/m.tar.gz": (200, {}, bytes(data))}) as server:
        with pytest.raises(ValueError, match="`handle` must be a whole"):
            resolve_handle(f"{server.url}/m.tar.gz")
        assert entries(cache) == []

        def interrupt(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(handles, "unpack", interrupt)
        with pytest.raises(KeyboardInterrupt):
            resolve_handle(f"{server.url}/m.tar.gz")
    assert entries(cache) == []


def test_a_pin_is_checked_for_every_kind_of_handle(folder, tmp_path):
    right, wrong = content_sha256(folder), "0" * 64
    (tmp_path / "m.tgz").write_bytes(packed(folder))
    with serving({"/m.tar.gz": (200, {}, packed(folder))}) as server:
        for handle in (folder, tmp_path / "m.tgz", f"{server.url}/m.tar.gz"):
            assert content_sha256(resolve_handle(handle, right)) == right
            with pytest.raises(ValueError, match=f"`sha256` of .* must be {wrong}, got {right}"):
                resolve_handle(handle, sha256=wrong)
    with pytest.raises(ValueError, match="`sha256` must be 64"):
        resolve_handle("tiny", sha256="abc")


# ---------------------------------------------------------------- Kaggle


def fake_kagglehub(monkeypatch, answer):
    seen = []

    def model_download(name):
        seen.append(name)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(model_download=model_download))
    return seen


@pytest.mark.parametrize("handle", [f"kaggle:{NAME}", PAGE, f"{PAGE}/?tfhub-redirect=true#files"])
def test_a_kaggle_model_is_downloaded_by_kagglehub(folder, monkeypatch, handle):
    seen = fake_kagglehub(monkeypatch, folder)
    assert resolve_handle(handle) == folder and seen == [NAME]


def test_what_kagglehub_has_needs_no_kagglehub(tmp_path, monkeypatch):
    kept = write(tmp_path / "hub" / "models" / NAME)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(ImportError, match=r"needs kagglehub: pip install 'kerasmtl\[kaggle\]'"):
        resolve_handle(f"kaggle:{NAME}")  # not marked as whole
    kept.with_name("2.complete").touch()
    assert resolve_handle(f"kaggle:{NAME}") == kept
    check_backbone(f"kaggle:{NAME}")


def test_what_kagglehub_refuses_is_explained(monkeypatch):
    fake_kagglehub(monkeypatch, RuntimeError("consent first"))
    with pytest.raises(ValueError, match="`handle`.*RuntimeError: consent first.*conditions"):
        resolve_handle(PAGE)


@pytest.mark.parametrize(
    ("handle", "right"),
    [
        (f"kaggle:{NAME[:-2]}", "feature-vector/1'"),
        (PAGE[:-2], "feature-vector/1'"),
        ("kaggle:a/b/c/d/latest", "google/mobilenet-v2"),
        ("kaggle:a/../c/d/1", "google/mobilenet-v2"),
    ],
)
def test_a_wrong_kaggle_handle_shows_a_right_one(handle, right):
    with pytest.raises(ValueError, match=f"`handle` must be kaggle:.*{right}"):
        resolve_handle(handle)


# ---------------------------------------------------------------- Hugging Face


@pytest.mark.parametrize("handle", ["hf:repo", "hf:a/b@", "hf:a/../b"])
def test_a_wrong_hf_handle_shows_the_right_form(handle):
    with pytest.raises(ValueError, match="`handle` must be hf:owner/repo"):
        resolve_handle(handle)


def hub_routes(files):
    """What huggingface_hub asks a server for: the commit, the files in it, and each of them."""
    blob = {name: hashlib.sha1(data).hexdigest() for name, data in files.items()}
    info = {"_id": "1", "id": "owner/repo", "sha": COMMIT, "private": False, "tags": []}
    info["siblings"] = [{"rfilename": name} for name in files]
    tree = [
        {"type": "file", "path": name, "size": len(data), "oid": blob[name]}
        for name, data in files.items()
    ]
    kind = {"Content-Type": "application/json"}
    routes = {
        f"/api/models/owner/repo/revision/{revision}": (200, kind, json.dumps(info).encode())
        for revision in ("main", "v1", COMMIT)
    }
    routes[f"/api/models/owner/repo/tree/{COMMIT}"] = (200, kind, json.dumps(tree).encode())
    for name, data in files.items():
        headers = {"ETag": f'"{blob[name]}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        routes[f"/owner/repo/resolve/{COMMIT}/{name}"] = (200, headers, data)
    return routes


def resolve_apart(handles, tmp_path, **variables):
    """Resolve in a process of its own: huggingface_hub reads its environment when imported."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    code = (
        "import sys; from kerasmtl.models.hub.handles import resolve_handle\n"
        f"for handle in {handles!r}:\n"
        "    try: print(resolve_handle(handle))\n"
        "    except ValueError as error: print('ValueError', str(error).replace(chr(10), ' '))\n"
        "assert 'tensorflow' not in sys.modules"
    )
    variables = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_repository_is_fetched_and_then_found_offline(tmp_path, folder):
    files = {f"{inside}{name}": data for inside in ("", "sub/") for name, data in FILES.items()}
    asked = ["hf:owner/repo/sub@v1", "hf:owner/repo", f"hf:owner/repo@{COMMIT}"]
    with serving(hub_routes({**files, "plain/README": b"text"})) as server:
        wrong = ["hf:owner/other", "hf:owner/repo/no", "hf:owner/repo/plain"]
        found = resolve_apart([*asked, *wrong], tmp_path, HF_ENDPOINT=server.url)
    found, said = found[:3], found[3:]
    assert found[0].endswith(f"snapshots/{COMMIT}/sub")
    assert found[1] == found[2] and found[1].endswith(f"snapshots/{COMMIT}")
    assert content_sha256(found[0]) == content_sha256(folder)
    assert resolve_apart(asked, tmp_path, HF_HUB_OFFLINE="1") == found
    assert "'hf:owner/other'" in said[0] and "HF_TOKEN" in said[0]
    assert "must name a folder of the repository" in said[1]
    assert "must have one saved_model.pb" in said[2]
