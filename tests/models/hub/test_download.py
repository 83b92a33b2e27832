"""Downloads and archives: whole and inside their folder, or refused."""

import gzip
import io
import tarfile
import threading

import pytest
import requests
import tensorflow as tf
from servers import cut_off, isolated, packed, serving

from kerasmtl.models.hub import download as downloads
from kerasmtl.models.hub.download import check_size, copy_from_bucket, download, unpack

FILES = {"saved_model.pb": b"graph" * 200, "variables/variables.index": bytes(range(256)) * 40}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    return isolated(tmp_path, monkeypatch)


@pytest.fixture
def folder(tmp_path):
    """An empty folder, alone in its own."""
    (tmp_path / "in" / "here").mkdir(parents=True)
    return tmp_path / "in" / "here"


# ---------------------------------------------------------------- archives


def member(name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar_bytes(*more, files=FILES):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, data in [*(member(name, data) for name, data in files.items()), *more]:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def unpacked(data, folder):
    """Unpack bytes into a folder, beside which nothing may appear."""
    archive = folder.parents[1] / "archive"
    archive.write_bytes(data)
    try:
        unpack(archive, folder, "the-handle")
    finally:
        assert [path.name for path in folder.parent.iterdir()] == ["here"]
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["tar", "tar.gz"])
def test_an_archive_is_unpacked(folder, pack):
    link = member("copy.pb", type=tarfile.SYMTYPE, linkname="saved_model.pb")
    found = unpacked(pack(tar_bytes(link)), folder)
    assert {name: found[name].read_bytes() for name in FILES} == FILES
    assert found["copy.pb"].read_bytes() == FILES["saved_model.pb"]


@pytest.mark.parametrize("share", [0.0, 0.97])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["tar", "tar.gz"])
def test_a_truncated_archive_is_refused(folder, pack, share):
    data = pack(tar_bytes()).rstrip(b"\0")  # the zeros at the end of a tar hold nothing
    with pytest.raises(ValueError, match="`handle` must be a whole .*'the-handle'"):
        unpacked(data[: int(share * len(data))], folder)
    for other in (b"<html>no</html>", b"PK\x03\x04" + bytes(600), b"\x1f\x8bno"):
        with pytest.raises(ValueError, match="`handle`.*'the-handle'"):
            unpacked(other, folder)


@pytest.mark.parametrize(
    "evil",
    [
        [member("../escaped", b"evil")],
        [member("sub/../../escaped", b"evil")],
        [member("link", type=tarfile.SYMTYPE, linkname="../escaped")],
        [member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
        [member("hard", type=tarfile.LNKTYPE, linkname="../archive")],
        [member("device", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    ],
    ids=["above", "above later", "link above", "link absolute", "hard link", "device"],
)
def test_what_leaves_its_folder_is_refused(folder, evil):
    with pytest.raises(ValueError, match="stays inside its folder"):
        unpacked(tar_bytes(*evil), folder)


def test_too_many_bytes_are_refused_before_they_are_written(folder, monkeypatch):
    data = gzip.compress(tar_bytes(files={"bomb": bytes(10**6)}))
    monkeypatch.setenv("KERASMTL_MAX_BYTES", "999999")
    with pytest.raises(ValueError, match="at most 999999 bytes, got .* 1000000 or more.*MAX_BYTES"):
        unpacked(data, folder)
    assert not list(folder.iterdir())
    monkeypatch.setenv("KERASMTL_MAX_BYTES", "1000000")
    assert unpacked(data, folder)


def test_the_bound_comes_from_the_environment(monkeypatch):
    check_size(20 * 10**9, "the-handle")
    with pytest.raises(ValueError, match="`handle`"):
        check_size(20 * 10**9 + 1, "the-handle")
    for wrong in ("20GB", "-1", "0"):
        monkeypatch.setenv("KERASMTL_MAX_BYTES", wrong)
        with pytest.raises(ValueError, match="`KERASMTL_MAX_BYTES`"):
            check_size(1, "the-handle")


# ---------------------------------------------------------------- downloads


def downloaded(answer, tmp_path, path="/m", **routes):
    """Download what a server answers."""
    with serving({path: answer, **routes}) as server:
        download(f"{server.url}{path}", tmp_path / "file", "the-handle")
    return (tmp_path / "file").read_bytes()


def test_redirects_are_followed_and_bytes_kept_as_they_are(tmp_path):
    data = gzip.compress(b"content")
    answer = (200, {"Content-Type": "application/x-tar", "Content-Encoding": "gzip"}, data)
    moved = (302, {"Location": "/elsewhere"}, b"")
    assert downloaded(moved, tmp_path, **{"/elsewhere": answer}) == data


@pytest.mark.parametrize("status", [403, 500])
def test_what_a_server_refuses_is_told_without_secrets(tmp_path, status):
    moved = (302, {"Location": "/signed?token=s3cret"}, b"")
    with pytest.raises(ValueError, match=f"`handle`.*HTTP {status}.*/signed.*Offline") as error:
        downloaded(moved, tmp_path, **{"/signed": (status, {}, b"secret page")})
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("headers", [{"Content-Type": "text/html; charset=utf-8"}, {}])
def test_a_web_page_is_refused(tmp_path, headers):
    page = b"\n <!DOCTYPE html><html><body>Log in</body></html>"
    with pytest.raises(ValueError, match="a web page"):
        downloaded((200, headers, page), tmp_path)


def test_a_redirect_from_https_to_http_is_refused(tmp_path, monkeypatch):
    def get(url, **options):
        answer = plain(url.replace("https:", "http:"), **options)
        answer.history = [requests.Response()]
        answer.history[0].url = url
        return answer

    plain = requests.get
    monkeypatch.setattr(requests, "get", get)
    with serving({"/m": (200, {}, b"data")}) as server:
        with pytest.raises(ValueError, match="a redirect from https to http"):
            download(f"{server.url}/m".replace("http:", "https:"), tmp_path / "file", "h")


def test_a_server_that_stalls_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", (5, 0.2))
    done = threading.Event()

    def stall(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"\x1f\x8b")
        handler.wfile.flush()
        done.wait(20)

    with pytest.raises(ValueError, match="Timeout"):
        try:
            downloaded(stall, tmp_path)
        finally:
            done.set()


def test_an_unreachable_server_is_told(tmp_path):
    with pytest.raises(ValueError, match="ConnectionError.*Offline"):
        download("http://127.0.0.1:9/m.tar.gz", tmp_path / "file", "the-handle")


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_download_that_breaks_off_is_refused(tmp_path, share):
    with pytest.raises(ValueError, match="`handle`"):
        downloaded(lambda handler: cut_off(handler, bytes(5000), share), tmp_path)


@pytest.mark.parametrize("announced", [True, False])
def test_a_download_over_the_bound_is_refused(tmp_path, monkeypatch, announced):
    monkeypatch.setenv("KERASMTL_MAX_BYTES", "1000")

    def unannounced(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(bytes(5000))

    answer = (lambda handler: cut_off(handler, bytes(5000), 0.0)) if announced else unannounced
    with pytest.raises(ValueError, match="at most 1000 bytes"):
        downloaded(answer, tmp_path)


# ---------------------------------------------------------------- buckets


@pytest.fixture
def bucket(request, tmp_path):
    """A folder in memory, as tf.io.gfile sees a bucket: a module as folder and as archive."""
    root = f"ram://{request.node.name}"
    tf.io.gfile.makedirs(root)
    for name, data in FILES.items():
        for path in (f"{root}/m/{name}", str(tmp_path / "m" / name)):
            tf.io.gfile.makedirs(path.rpartition("/")[0])
            with tf.io.gfile.GFile(path, "wb") as file:
                file.write(data)
    with tf.io.gfile.GFile(f"{root}/whole.tar.gz", "wb") as file:
        file.write(packed(tmp_path / "m"))
    yield root
    tf.io.gfile.rmtree(root)


def test_folders_and_archives_of_a_bucket_are_copied(bucket, tmp_path, monkeypatch):
    for number, name in enumerate(["m", "m/", "whole.tar.gz"]):
        folder = tmp_path / str(number) / "module"
        folder.mkdir(parents=True)
        copy_from_bucket(f"{bucket}/{name}", folder)
        assert {name: (folder / name).read_bytes() for name in FILES} == FILES
        monkeypatch.setenv("KERASMTL_MAX_BYTES", "200")
        with pytest.raises(ValueError, match="at most 200 bytes"):
            copy_from_bucket(f"{bucket}/{name}", folder)
        monkeypatch.delenv("KERASMTL_MAX_BYTES")


def test_what_is_absent_or_of_an_unknown_scheme_is_named(bucket, folder):
    with pytest.raises(ValueError, match="`handle`.*ram://.*NotFoundError.*Offline"):
        copy_from_bucket(f"{bucket}/nothing", folder)
    with pytest.raises(ValueError, match="'nope://a/b'.*'nope' not implemented"):
        copy_from_bucket("nope://a/b", folder)
