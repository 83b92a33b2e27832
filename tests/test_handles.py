"""Handles: folders, archives and URLs become a local SavedModel, or say why not."""

import http.server
import io
import tarfile
import threading

import numpy as np
import pytest
from modules import save_reusable, shared

from kerasmtl.backbones import HubLayer
from kerasmtl.backbones.handles import resolve_handle


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_reusable(tmp_path_factory.mktemp("module") / "reusable")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pack(folder, path):
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname=".")
    return path


@pytest.fixture
def server(folder, tmp_path):
    """A local server with /module.tar.gz, and 404 for everything else."""
    root = tmp_path / "served"
    root.mkdir()
    pack(folder, root / "module.tar.gz")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(root))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_a_folder_is_itself(folder):
    assert resolve_handle(folder) == folder


def test_an_archive_is_unpacked_once(folder, tmp_path, cache):
    archive = pack(folder, tmp_path / "module.tar.gz")
    first = resolve_handle(archive)
    assert (first / "saved_model.pb").is_file() and first.parent == cache
    assert resolve_handle(archive) == first
    assert [p.name for p in cache.iterdir()] == [first.name]
    x = np.random.default_rng(0).random((2, 8, 8, 3), dtype="float32")
    np.testing.assert_array_equal(HubLayer(archive)(x), HubLayer(folder)(x))


def test_a_real_archive_of_tf_hub(cache):
    layer = HubLayer(shared("models", "half_plus_two_v1.tar.gz"))
    np.testing.assert_allclose(layer(np.array([[2.0], [5.0]], "float32")), [[3.0], [4.5]])


def test_a_url_is_downloaded_by_tensorflow_hub(server, cache):
    found = resolve_handle(f"{server}/module.tar.gz")
    assert (found / "saved_model.pb").is_file()
    assert HubLayer(f"{server}/module.tar.gz")(np.zeros((1, 8, 8, 3), "float32")).shape == (1, 4)


def test_an_unknown_url_says_what_was_tried_and_what_to_do_offline(server, cache):
    with pytest.raises(ValueError, match="cannot be reached") as error:
        resolve_handle(f"{server}/nothing.tar.gz")
    message = str(error.value)
    assert "404" in message and "tensorflow_hub.resolve" in message and "Offline:" in message
    assert not list(cache.glob("**/saved_model.pb"))


def test_an_unreachable_server_says_so(cache):
    with pytest.raises(ValueError, match="cannot be reached.*Offline"):
        resolve_handle("http://127.0.0.1:9/module.tar.gz")


def test_a_name_of_nothing_lists_what_was_tried():
    with pytest.raises(ValueError, match="names nothing.*'tiny'.*no such folder"):
        resolve_handle("no/such/module")


def test_a_folder_without_saved_model_is_refused_and_versions_are_hinted_at(folder, tmp_path):
    (tmp_path / "plain").mkdir()
    with pytest.raises(ValueError, match="is no SavedModel"):
        resolve_handle(tmp_path / "plain")
    for version in ("2", "10"):
        save_reusable(tmp_path / "versions" / version)
    with pytest.raises(ValueError, match="versions/10"):
        resolve_handle(tmp_path / "versions")


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="Expected a folder, or an archive"):
        resolve_handle(tmp_path / "weights.h5")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_broken_archive_leaves_nothing_in_the_cache(folder, tmp_path, cache, share):
    archive = pack(folder, tmp_path / "module.tar.gz")
    data = archive.read_bytes()
    archive.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match="cannot be unpacked"):
        resolve_handle(archive)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped-absolute"])
def test_an_archive_that_leaves_its_folder_is_refused(tmp_path, cache, name):
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(ValueError):
        resolve_handle(archive)
    assert not list(tmp_path.glob("**/escaped*"))


def test_an_archive_without_saved_model_is_refused(tmp_path, cache):
    (tmp_path / "readme").mkdir()
    (tmp_path / "readme" / "README").write_text("nothing else")
    with pytest.raises(ValueError, match="is no SavedModel"):
        resolve_handle(pack(tmp_path / "readme", tmp_path / "readme.tar.gz"))
    assert list(cache.iterdir()) == []
