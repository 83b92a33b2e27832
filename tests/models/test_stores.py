"""gs:// and its like through TensorFlow, hf: through huggingface_hub."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import tensorflow as tf
from servers import isolated, packed, serving

from kerasmtl.models.hub.cache import content_sha256
from kerasmtl.models.hub.handles import resolve_handle

FILES = {"saved_model.pb": b"graph", "variables/variables.index": b"\x00\xff" * 50}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    return isolated(tmp_path, monkeypatch)


@pytest.fixture
def module(tmp_path):
    for name, data in FILES.items():
        (tmp_path / "module" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "module" / name).write_bytes(data)
    return tmp_path / "module"


@pytest.fixture
def bucket(request):
    """A folder in memory, as tf.io.gfile sees a bucket."""
    root = f"ram://{request.node.name.replace('[', '-').strip(']')}"
    tf.io.gfile.makedirs(root)
    yield root
    tf.io.gfile.rmtree(root)


def put(path, data):
    tf.io.gfile.makedirs(path.rpartition("/")[0])
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(data)


@pytest.mark.parametrize("end", ["", "/"])
def test_a_folder_in_a_bucket_is_copied_once(bucket, module, cache, end):
    for name, data in FILES.items():
        put(f"{bucket}/m/{name}", data)
    found = resolve_handle(f"{bucket}/m{end}", sha256=content_sha256(module))
    assert found.parent == cache
    tf.io.gfile.rmtree(f"{bucket}/m")
    assert resolve_handle(f"{bucket}/m{end}") == found


def test_an_archive_in_a_bucket_is_unpacked(bucket, module, cache):
    put(f"{bucket}/m.tar.gz", packed(module))
    found = resolve_handle(f"{bucket}/m.tar.gz")
    assert content_sha256(found) == content_sha256(module)
    assert found.name == hashlib.sha1(f"{bucket}/m.tar.gz".encode()).hexdigest()


def test_what_is_absent_or_no_module_leaves_nothing(bucket, cache):
    with pytest.raises(ValueError, match="ram://.*cannot be read.*NotFoundError.*Offline"):
        resolve_handle(f"{bucket}/nothing")
    with pytest.raises(ValueError, match="cannot be read.*NotFoundError"):
        resolve_handle(f"{bucket}/nothing.tar.gz")
    put(f"{bucket}/plain/README", b"text")
    with pytest.raises(ValueError, match="is no SavedModel"):
        resolve_handle(f"{bucket}/plain")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("name", ["folder", "m.tar.gz"])
def test_a_bucket_over_the_bound_is_refused(bucket, module, cache, monkeypatch, name):
    put(f"{bucket}/folder/saved_model.pb", b"0" * 600)
    put(f"{bucket}/folder/more", b"0" * 600)
    put(f"{bucket}/m.tar.gz", os.urandom(1200))
    monkeypatch.setenv("KERASMTL_MAX_BYTES", "1000")
    with pytest.raises(ValueError, match="too big. Expected at most 1000 bytes"):
        resolve_handle(f"{bucket}/{name}")
    assert list(cache.iterdir()) == []


def test_an_unknown_scheme_is_named():
    with pytest.raises(ValueError, match="'nope://a/b' cannot be read.*'nope' not implemented"):
        resolve_handle("nope://a/b")


@pytest.mark.parametrize(
    "handle", ["hf:", "hf:repo", "hf:a/b@", "hf:a/../b", "hf:a/b/../c", "hf:a/b c", "hf:/a/b"]
)
def test_a_wrong_hf_handle_shows_the_right_form(handle):
    with pytest.raises(ValueError, match="is no Hugging Face module.*hf:owner/repo/sub/folder@"):
        resolve_handle(handle)


def test_without_huggingface_hub_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'kerasmtl\[hf\]'"):
        resolve_handle("hf:owner/repo")


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


def resolve_apart(handle, tmp_path, **variables):
    """Resolve in a process of its own: huggingface_hub reads its environment when imported."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    code = (
        "import sys; from kerasmtl.models.hub.handles import resolve_handle\n"
        f"try: print(resolve_handle({handle!r}))\n"
        "except ValueError as error: print('ValueError', error)\n"
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
    return done.stdout.strip()


@pytest.mark.parametrize(
    "handle, inside",
    [
        ("hf:owner/repo", ""),
        ("hf:owner/repo@v1", ""),
        (f"hf:owner/repo@{COMMIT}", ""),
        ("hf:owner/repo/sub/folder@v1", "sub/folder/"),
    ],
)
def test_a_repository_is_fetched_and_then_found_offline(tmp_path, module, handle, inside):
    files = {f"{inside}{name}": data for name, data in FILES.items()}
    files |= {".gitattributes": b"hidden"} | ({"big.bin": b"not wanted"} if inside else {})
    with serving(hub_routes(files)) as server:
        found = resolve_apart(handle, tmp_path, HF_ENDPOINT=server.url)
    assert found.endswith(f"snapshots/{COMMIT}/{inside}".rstrip("/"))
    assert content_sha256(found) == content_sha256(module)
    assert not any("big.bin" in path for _, path, _ in server.seen)
    assert resolve_apart(handle, tmp_path, HF_HUB_OFFLINE="1") == found


def test_a_repository_that_is_absent_or_no_module_is_explained(tmp_path):
    with serving(hub_routes({"README.md": b"text"})) as server:
        said = resolve_apart("hf:owner/other", tmp_path, HF_ENDPOINT=server.url)
        assert said.startswith("ValueError `handle` 'hf:owner/other' cannot be reached")
        assert "HF_TOKEN" in said
        said = resolve_apart("hf:owner/repo", tmp_path, HF_ENDPOINT=server.url)
        assert "'hf:owner/repo' is no SavedModel" in said
        said = resolve_apart("hf:owner/repo/sub", tmp_path, HF_ENDPOINT=server.url)
        assert "`handle` 'hf:owner/repo/sub'" in said and "Traceback" not in said
