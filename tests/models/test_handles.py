"""Handles: names, folders, archives and URLs become a local SavedModel, or say why not."""

import hashlib
import multiprocessing
import os
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
from modules import save_reusable, shared
from servers import cut_off, isolated, packed, serving

from kerasmtl.models.backbones import HubLayer
from kerasmtl.models.hub import download as downloads
from kerasmtl.models.hub import handles
from kerasmtl.models.hub.cache import content_sha256
from kerasmtl.models.hub.handles import from_folder, is_remote, resolve_handle

X = np.random.default_rng(0).random((2, 8, 8, 3), dtype="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_reusable(tmp_path_factory.mktemp("module") / "reusable")


@pytest.fixture(scope="module")
def archived(folder):
    """The bytes of the module's .tar.gz."""
    return packed(folder)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    return isolated(tmp_path, monkeypatch)


def pack(folder, path):
    path.write_bytes(packed(folder))
    return path


def sha1(text):
    return hashlib.sha1(text.encode()).hexdigest()


def entries(cache):
    return sorted(p.name for p in cache.iterdir()) if cache.exists() else []


def test_a_folder_is_itself(folder):
    assert resolve_handle(folder) == folder
    assert resolve_handle(f"file://{folder}") == folder


def test_an_archive_is_unpacked_once(folder, tmp_path, cache):
    archive = pack(folder, tmp_path / "module.tar.gz")
    first = resolve_handle(archive)
    assert (first / "saved_model.pb").is_file() and first.parent == cache
    assert resolve_handle(archive) == first
    assert entries(cache) == [first.name]
    np.testing.assert_array_equal(HubLayer(archive)(X), HubLayer(folder)(X))


def test_a_real_archive_of_tf_hub():
    layer = HubLayer(shared("models", "half_plus_two_v1.tar.gz"))
    np.testing.assert_allclose(layer(np.array([[2.0], [5.0]], "float32")), [[3.0], [4.5]])


def test_without_a_cache_of_its_own_home_is_used(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("TFHUB_CACHE_DIR")
    found = resolve_handle(pack(folder, tmp_path / "module.tgz"))
    assert found.parent == tmp_path / "home" / ".cache" / "kerasmtl"


def test_a_cache_that_is_no_local_folder_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TFHUB_CACHE_DIR", "gs://bucket/cache")
    with pytest.raises(ValueError, match="`TFHUB_CACHE_DIR` is no local folder"):
        resolve_handle(pack(folder, tmp_path / "module.tgz"))


@pytest.mark.parametrize("top", ["module", "./module-1.0"])
def test_an_archive_whose_single_top_folder_is_the_module(folder, tmp_path, top):
    (tmp_path / "m.tar.gz").write_bytes(packed(folder, top))
    found = resolve_handle(tmp_path / "m.tar.gz")
    assert found.name == top.removeprefix("./")
    assert content_sha256(found) == content_sha256(folder)


def test_an_archive_of_several_modules_is_refused(folder, tmp_path, cache):
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as tar:
        tar.add(folder, "first")
        tar.add(folder, "second")
    with pytest.raises(ValueError, match="is no SavedModel.*'first', 'second'"):
        resolve_handle(tmp_path / "m.tar.gz")
    assert entries(cache) == []


def test_a_url_is_downloaded_once(folder, archived, cache):
    with serving({"/module.tar.gz": (200, {}, archived)}) as server:
        url = f"{server.url}/module.tar.gz"
        found = resolve_handle(url)
        assert resolve_handle(url) == found
    assert [path for _, path, _ in server.seen] == ["/module.tar.gz"]
    assert resolve_handle(url) == found  # the server is gone
    assert content_sha256(found) == content_sha256(folder)
    assert entries(cache) == [sha1(url), f"{sha1(url)}.descriptor.txt"]
    np.testing.assert_array_equal(HubLayer(url)(X), HubLayer(folder)(X))


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


def test_tensorflow_hub_finds_our_entries_and_we_find_its(archived):
    hub = pytest.importorskip("tensorflow_hub", reason="tensorflow_hub is not installed")
    with serving({f"/{name}.tar.gz": (200, {}, archived) for name in "ab"}) as server:
        ours = resolve_handle(f"{server.url}/a.tar.gz")
        theirs = hub.resolve(f"{server.url}/b.tar.gz")
    assert hub.resolve(f"{server.url}/a.tar.gz") == str(ours)
    assert str(resolve_handle(f"{server.url}/b.tar.gz")) == theirs
    assert len(server.seen) == 2


def test_a_cache_entry_without_a_module_says_what_to_remove(cache):
    url = "http://127.0.0.1:9/module.tar.gz"
    (cache / sha1(url)).mkdir(parents=True)
    with pytest.raises(ValueError, match="cannot be reached"):  # empty: as good as none
        resolve_handle(url)
    (cache / sha1(url) / "README").write_text("no module")
    with pytest.raises(ValueError, match=f"is no SavedModel.*{sha1(url)}: remove that"):
        resolve_handle(url)


@pytest.mark.parametrize(
    "handle, asked",
    [
        ("https://tfhub.dev/a/b/1", "https://tfhub.dev/a/b/1?tf-hub-format=compressed"),
        ("https://tfhub.dev/a/1?x=1", "https://tfhub.dev/a/1?x=1&tf-hub-format=compressed"),
        ("https://a.org/modules/b/1", "https://a.org/modules/b/1?tf-hub-format=compressed"),
        ("https://a.org/b.tar.gz", "https://a.org/b.tar.gz"),
        ("https://a.org/get?file=b", "https://a.org/get?file=b"),
        ("https://tfhub.dev/a/1?tf-hub-format=compressed",) * 2,
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


def test_redirects_are_followed(archived):
    routes = {
        "/module/1": (302, {"Location": "/elsewhere"}, b""),
        "/elsewhere": (200, {"Content-Type": "application/x-tar"}, archived),
    }
    with serving(routes) as server:
        assert (resolve_handle(f"{server.url}/module/1") / "saved_model.pb").is_file()
    assert server.seen[0][1] == "/module/1?tf-hub-format=compressed"


def test_a_redirect_from_https_to_http_is_refused(archived, cache, monkeypatch):
    def get(url, **options):
        answer = plain(url.replace("https:", "http:"), **options)
        answer.history = [requests.Response()]
        answer.history[0].url = url
        return answer

    plain = requests.get
    monkeypatch.setattr(requests, "get", get)
    with serving({"/m.tar.gz": (200, {}, archived)}) as server:
        with pytest.raises(ValueError, match="cannot be reached.*redirect from https to http"):
            resolve_handle(f"{server.url}/m.tar.gz".replace("http:", "https:"))
    assert entries(cache) == []


def test_an_archive_sent_as_compressed_transfer_is_kept_as_it_is(folder, archived):
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/x-tar"}
    with serving({"/m.tar": (200, headers, archived)}) as server:
        assert content_sha256(resolve_handle(f"{server.url}/m.tar")) == content_sha256(folder)


REFUSALS = {
    401: "HTTP 401.*credentials",
    403: "HTTP 403.*publisher or the host refuses.*browser and pass the file",
    404: "HTTP 404.*no such module",
    410: "HTTP 410",
    429: "HTTP 429.*too many requests",
    500: "HTTP 500.*trouble. Try again later",
}


@pytest.mark.parametrize("status", REFUSALS)
def test_what_a_server_refuses_is_explained(cache, status):
    with serving({"/m.tar.gz": (status, {}, b"secret page")}) as server:
        with pytest.raises(ValueError, match=f"cannot be reached.*{REFUSALS[status]}") as error:
            resolve_handle(f"{server.url}/m.tar.gz")
    assert repr(f"{server.url}/m.tar.gz") in str(error.value) and "Offline:" in str(error.value)
    assert entries(cache) == []


@pytest.mark.parametrize("headers", [{"Content-Type": "text/html; charset=utf-8"}, {}])
def test_a_web_page_instead_of_an_archive_is_refused(cache, headers):
    page = b"\n <!DOCTYPE html><html><body>Log in</body></html>"
    with serving({"/m": (200, headers, page)}) as server:
        with pytest.raises(ValueError, match="cannot be reached.*a web page.*not of an archive"):
            resolve_handle(f"{server.url}/m")
    assert entries(cache) == []


def test_a_loop_of_redirects_ends(cache):
    routes = {"/a": (302, {"Location": "/b"}, b""), "/b": (302, {"Location": "/a"}, b"")}
    with serving(routes) as server:
        with pytest.raises(ValueError, match="redirects without an end"):
            resolve_handle(f"{server.url}/a")
    assert entries(cache) == []


@pytest.mark.parametrize("begun", [False, True], ids=["no answer", "stalled"])
def test_a_server_that_does_not_answer_is_given_up(cache, monkeypatch, begun):
    monkeypatch.setattr(downloads, "READ_TIMEOUT", 0.2)
    done = threading.Event()

    def stall(handler):
        if begun:
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b"\x1f\x8b")
            handler.wfile.flush()
        done.wait(20)

    with serving({"/m.tar.gz": stall}) as server:
        with pytest.raises(ValueError, match="no answer within 0.2 seconds"):
            resolve_handle(f"{server.url}/m.tar.gz")
        done.set()
    assert entries(cache) == []


def test_an_unreachable_server_says_so(cache):
    with pytest.raises(ValueError, match="cannot be reached.*no connection.*Offline"):
        resolve_handle("http://127.0.0.1:9/module.tar.gz")
    assert entries(cache) == []


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_download_that_breaks_off_leaves_nothing(cache, archived, share):
    with serving({"/m.tar.gz": lambda handler: cut_off(handler, archived, share)}) as server:
        with pytest.raises(ValueError, match="cannot be reached.*broke off|of the .* bytes"):
            resolve_handle(f"{server.url}/m.tar.gz")
    assert entries(cache) == []


def test_a_tampered_download_leaves_nothing(cache, archived):
    changed = bytearray(archived)
    changed[len(changed) // 2] ^= 0xFF
    with serving({"/m.tar.gz": (200, {}, bytes(changed))}) as server:
        with pytest.raises(ValueError, match="m.tar.gz' cannot be unpacked"):
            resolve_handle(f"{server.url}/m.tar.gz")
    assert entries(cache) == []


@pytest.mark.parametrize("announced", [True, False])
def test_a_download_over_the_bound_is_refused(cache, archived, monkeypatch, announced):
    monkeypatch.setenv("KERASMTL_MAX_BYTES", "1000")

    def unannounced(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(archived)

    def empty(handler):
        cut_off(handler, archived, 0.0)  # refused for what is announced, before it comes

    with serving({"/m.tar.gz": empty if announced else unannounced}) as server:
        with pytest.raises(ValueError, match="too big. Expected at most 1000 bytes.*MAX_BYTES"):
            resolve_handle(f"{server.url}/m.tar.gz")
    assert entries(cache) == []


def test_an_interrupted_download_leaves_nothing(cache, archived, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(handles, "unpack", interrupt)
    with serving({"/m.tar.gz": (200, {}, archived)}) as server:
        with pytest.raises(KeyboardInterrupt):
            resolve_handle(f"{server.url}/m.tar.gz")
    assert entries(cache) == []


def test_threads_at_once_all_get_the_module(cache, archived, folder):
    with serving({"/m.tar.gz": (200, {}, archived)}) as server:
        with ThreadPoolExecutor(4) as pool:
            found = set(pool.map(resolve_handle, [f"{server.url}/m.tar.gz"] * 8))
    assert len(found) == 1 and content_sha256(found.pop()) == content_sha256(folder)
    assert len(entries(cache)) == 2


def test_two_processes_that_download_at_once_both_succeed(cache, archived):
    both = threading.Barrier(2, timeout=60)

    def answer(handler):
        both.wait()  # both have seen an empty cache
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(archived)))
        handler.end_headers()
        handler.wfile.write(archived)

    with serving({"/m.tar.gz": answer}) as server:
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            found = pool.map(handles.resolve_handle, [f"{server.url}/m.tar.gz"] * 2, chunksize=1)
    assert len(server.seen) == 2 and found[0] == found[1]
    assert len(entries(cache)) == 2


def test_the_secrets_of_addresses_are_not_shown(archived):
    routes = {"/m": (302, {"Location": "/signed?token=s3cret"}, b""), "/signed": (403, {}, b"")}
    with serving(routes) as server:
        with pytest.raises(ValueError, match="HTTP 403") as error:
            resolve_handle(f"{server.url}/m")
    assert "s3cret" not in str(error.value) and "/signed" in str(error.value)


def test_a_name_of_nothing_lists_what_was_tried():
    with pytest.raises(ValueError, match="names nothing.*'tiny'.*no such folder"):
        resolve_handle("no/such/module")


def test_a_folder_without_saved_model_is_refused_and_versions_are_hinted_at(folder, tmp_path):
    (tmp_path / "plain").mkdir()
    with pytest.raises(ValueError, match="is no SavedModel"):
        resolve_handle(tmp_path / "plain")
    for version in ("2", "10"):
        (tmp_path / "versions" / version).mkdir(parents=True)
        (tmp_path / "versions" / version / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ValueError, match="versions/10"):
        resolve_handle(tmp_path / "versions")


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="Expected a folder, or an archive"):
        resolve_handle(tmp_path / "weights.h5")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_broken_archive_leaves_nothing_in_the_cache(archived, tmp_path, cache, share):
    archive = tmp_path / "module.tar.gz"
    archive.write_bytes(archived[: int(share * len(archived))])
    with pytest.raises(ValueError, match="cannot be unpacked"):
        resolve_handle(archive)
    assert entries(cache) == []


def test_an_archive_without_saved_model_is_refused(tmp_path, cache):
    (tmp_path / "readme").mkdir()
    (tmp_path / "readme" / "README").write_text("nothing else")
    with pytest.raises(ValueError, match="is no SavedModel"):
        resolve_handle(pack(tmp_path / "readme", tmp_path / "readme.tar.gz"))
    assert entries(cache) == []


def test_a_pin_is_checked_for_every_kind_of_handle(folder, archived, tmp_path):
    right, wrong = content_sha256(folder), "0" * 64
    with serving({"/m.tar.gz": (200, {}, archived)}) as server:
        for handle in (folder, pack(folder, tmp_path / "m.tgz"), f"{server.url}/m.tar.gz"):
            assert content_sha256(resolve_handle(handle, right)) == right
            with pytest.raises(ValueError, match="is another one") as error:
                resolve_handle(handle, sha256=wrong)
            assert repr(str(handle)) in str(error.value) and right in str(error.value)
    with pytest.raises(ValueError, match="is another one"):
        resolve_handle("tiny", sha256=wrong)
    with pytest.raises(ValueError, match="`sha256` is no hash"):
        resolve_handle("tiny", sha256="abc")


@pytest.mark.parametrize(
    "handle, remote",
    [
        ("https://a/b", True),
        ("gs://a/b", True),
        ("kaggle:a/b/c/d/1", True),
        ("hf:a/b", True),
        ("tiny", False),
        ("a/b", False),
        ("C:\\module", False),
    ],
)
def test_remote_handles_are_told_from_paths(handle, remote):
    assert is_remote(handle) is remote


@pytest.mark.parametrize("before", ["", "MobileNetV2:", "keras_hub:"])
def test_a_path_in_a_handle_starts_from_a_folder(tmp_path, before):
    (tmp_path / "there").mkdir()
    assert from_folder(f"{before}there", tmp_path) == f"{before}{tmp_path / 'there'}"
    assert from_folder(f"{before}{tmp_path / 'there'}", tmp_path) == f"{before}{tmp_path / 'there'}"


@pytest.mark.parametrize(
    "handle",
    ["tiny", "MobileNetV2", "no/such", "kaggle:a/b/c/d/1", "keras_hub:resnet_50", "hf:a/b"],
)
def test_what_is_no_path_is_left_as_it_is(tmp_path, handle):
    (tmp_path / "tiny").mkdir()
    assert from_folder(handle, tmp_path) == handle
