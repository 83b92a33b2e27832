"""Archives: unpacked whole and inside their folder, or refused."""

import gzip
import io
import os
import tarfile

import pytest

from kerasmtl.models.hub.download import MAX_BYTES, max_bytes, unpack

FILES = {"saved_model.pb": b"graph" * 200, "variables/variables.index": bytes(range(256)) * 40}


def member(name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar_bytes(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def good(files=FILES):
    return [member(name, data) for name, data in files.items()]


@pytest.fixture
def try_unpack(tmp_path):
    """Unpack bytes into tmp_path/in/here, next to which nothing may appear."""
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)

    def run(data, **limits):
        (tmp_path / "archive").write_bytes(data)
        try:
            unpack(tmp_path / "archive", folder, "the-handle", **limits)
        finally:
            assert [p.name for p in (tmp_path / "in").iterdir()] == ["here"]
        return folder

    return run


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["tar", "tar.gz"])
def test_an_archive_is_unpacked(try_unpack, pack):
    folder = try_unpack(pack(tar_bytes(good())))
    assert {n: (folder / n).read_bytes() for n in FILES} == FILES


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.97])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["tar", "tar.gz"])
def test_a_truncated_archive_is_refused(try_unpack, pack, share):
    data = pack(tar_bytes(good())).rstrip(b"\0")  # the zeros at the end of a tar hold nothing
    with pytest.raises(ValueError, match="`handle` 'the-handle' cannot be unpacked"):
        try_unpack(data[: int(share * len(data))])


def test_a_tar_cut_between_two_members_is_refused(try_unpack):
    data = tar_bytes(good())
    second = data.index(b"variables/variables.index")
    with pytest.raises(ValueError, match="without its end"):
        try_unpack(data[:second])


def test_every_tampered_byte_of_the_compressed_data_is_noticed(try_unpack):
    data = bytearray(gzip.compress(tar_bytes(good({"saved_model.pb": os.urandom(3000)})), mtime=0))
    for place in range(20, len(data), 97):
        changed = bytearray(data)
        changed[place] ^= 0xFF
        with pytest.raises(ValueError, match="cannot be unpacked"):
            try_unpack(bytes(changed))


@pytest.mark.parametrize(
    "evil",
    [
        [member("../escaped", b"evil")],
        [member("sub/../../escaped", b"evil")],
        [member("/tmp/kerasmtl-escaped", b"evil")],
        [member("link", type=tarfile.SYMTYPE, linkname="../escaped")],
        [member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
        [member("hard", type=tarfile.LNKTYPE, linkname="../archive")],
        [member("link", type=tarfile.SYMTYPE, linkname="."), member("link/file", b"evil")],
        [member("a", b"x"), member("l", type=tarfile.SYMTYPE, linkname="a"), member("l", b"evil")],
        [member("device", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
        [member("pipe", type=tarfile.FIFOTYPE)],
    ],
    ids=[
        "above", "above later", "absolute", "link above", "link absolute", "hard link",
        "through a link", "over a link", "device", "pipe",
    ],
)  # fmt: skip
def test_what_leaves_its_folder_is_refused(try_unpack, evil):
    with pytest.raises(ValueError, match="stays inside its folder"):
        try_unpack(tar_bytes(good() + evil))


def test_a_link_inside_is_kept(try_unpack):
    link = member("copy.pb", type=tarfile.SYMTYPE, linkname="saved_model.pb")
    folder = try_unpack(tar_bytes([*good(), link]))
    assert (folder / "copy.pb").read_bytes() == FILES["saved_model.pb"]


def test_too_many_declared_bytes_are_refused_before_they_are_written(try_unpack):
    data = gzip.compress(tar_bytes([member("bomb", bytes(10**6))]))
    with pytest.raises(ValueError, match="1000000 bytes, and 999999 are allowed.*MAX_BYTES"):
        try_unpack(data, limit=999_999)
    assert list(try_unpack(data, limit=10**6).iterdir())


def test_bytes_that_no_member_declares_are_counted_too(try_unpack):
    behind = gzip.compress(tar_bytes(good()) + bytes(10**6))
    with pytest.raises(ValueError, match="more bytes than"):
        try_unpack(behind, limit=20_000, members=10)
    notes = {"comment": "x" * 300_000}
    members = [member(name, b"x", pax_headers=notes) for name in "ab"]
    with pytest.raises(ValueError, match="more bytes than"):
        try_unpack(tar_bytes(members), limit=20_000, members=10)
    name = gzip.compress(tar_bytes([member("n" * (2 * 2**20), b"")]))
    with pytest.raises(ValueError, match="more bytes than"):
        try_unpack(name)


def test_too_many_members_are_refused(try_unpack):
    with pytest.raises(ValueError, match="more than 1 files"):
        try_unpack(tar_bytes(good()), members=1)


@pytest.mark.parametrize("data", [b"<html>no</html>", b"PK\x03\x04" + bytes(600), b"\x1f\x8bno"])
def test_what_is_no_archive_is_refused(try_unpack, data):
    with pytest.raises(ValueError, match="'the-handle' cannot be unpacked"):
        try_unpack(data)


def test_the_bound_comes_from_the_environment(try_unpack, monkeypatch):
    monkeypatch.delenv("KERASMTL_MAX_BYTES", raising=False)
    assert max_bytes() == MAX_BYTES == 20 * 10**9
    monkeypatch.setenv("KERASMTL_MAX_BYTES", "2000")
    with pytest.raises(ValueError, match="2000 are allowed"):
        try_unpack(tar_bytes(good()))
    for wrong in ("20GB", "-1", "0"):
        monkeypatch.setenv("KERASMTL_MAX_BYTES", wrong)
        with pytest.raises(ValueError, match="`KERASMTL_MAX_BYTES` is no size"):
            max_bytes()
