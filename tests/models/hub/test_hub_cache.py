"""Content hashes: what changes them, and modules kept by them."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from kerasmtl.models.hub.cache import (
    check_content,
    content_sha256,
    keep_module,
    kept_module,
    listing,
)

FILES = {"saved_model.pb": b"graph", "variables/variables.index": b"1", "assets/a b.txt": b"words"}


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "module")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(folder, files=FILES):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def sha(data):
    return hashlib.sha256(data).hexdigest()


def test_the_hash_is_that_of_the_sorted_listing(folder):
    text = "".join(f"{sha(FILES[name])}  {name}\n" for name in sorted(FILES))
    assert listing(folder) == text.encode()
    assert content_sha256(folder) == sha(text.encode())


def test_place_time_and_what_is_no_part_of_the_module_do_not_count(folder, tmp_path):
    before = content_sha256(folder)
    write(folder, {".hidden": b"x", ".git/config": b"x", "SHA256SUMS": b"x"})
    write(folder, {"__pycache__/a.pyc": b"x", "assets/.DS_Store": b"x"})
    os.utime(folder / "saved_model.pb", (0, 0))
    os.rename(folder, tmp_path / "moved")
    assert content_sha256(tmp_path / "moved") == before


@pytest.mark.parametrize(
    "change",
    [
        {"saved_model.pb": b"Graph"},
        {"variables/more": b""},
        {"assets/.vocab": b"hidden, and an asset all the same"},
        {"variables/SHA256SUMS": b"only the one at the top is left out"},
    ],
)
def test_a_changed_or_added_file_counts(folder, change):
    before = content_sha256(folder)
    write(folder, change)
    assert content_sha256(folder) != before


def test_links_inside_and_into_the_store_of_a_snapshot_count_as_their_files(folder, tmp_path):
    repo = tmp_path / "models--owner--repo"
    snapshot = repo / "snapshots" / "0123" / "sub"
    (repo / "blobs").mkdir(parents=True)
    for name, data in FILES.items():
        (repo / "blobs" / sha(data)).write_bytes(data)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(repo / "blobs" / sha(data))
    assert content_sha256(snapshot) == content_sha256(folder)
    (tmp_path / "linked").symlink_to(folder)
    assert content_sha256(tmp_path / "linked") == content_sha256(folder)
    write(folder, {"twice": b"graph"})
    copied = content_sha256(folder)
    os.remove(folder / "twice")
    (folder / "twice").symlink_to("saved_model.pb")
    assert content_sha256(folder) == copied


@pytest.mark.parametrize("target", ["../secret", "../other", "nowhere"])
def test_links_that_lead_out_or_to_folders_are_refused(folder, tmp_path, target):
    (tmp_path / "secret").write_bytes(b"x")
    write(tmp_path / "other")
    (folder / "link").symlink_to(target)
    with pytest.raises(
        ValueError, match="`folder` must have links to its own files only, got link.*cp -rL"
    ):
        content_sha256(folder)


def test_a_name_that_breaks_the_listing_is_refused(folder):
    write(folder, {"a\nb": b"x"})
    with pytest.raises(ValueError, match="`folder` must have no line breaks"):
        content_sha256(folder)


def test_a_trusted_listing_names_the_files_that_differ(folder):
    pin = content_sha256(folder)
    (folder / "SHA256SUMS").write_bytes(listing(folder))
    write(folder, {"saved_model.pb": b"tampered", "extra": b"x"})
    os.remove(folder / "assets" / "a b.txt")
    with pytest.raises(ValueError) as error:
        check_content(folder, pin, "m")
    message = str(error.value)
    assert "Files that differ: assets/a b.txt, extra, saved_model.pb." in (message)
    (folder / "SHA256SUMS").write_bytes(listing(folder))  # not the listing that the pin is of
    with pytest.raises(ValueError) as error:
        check_content(folder, pin, "m")
    assert "Files" not in str(error.value)


def test_a_module_is_kept_once_and_found_by_its_hash(folder, cache):
    digest = content_sha256(folder)
    assert kept_module(digest) is None
    write(folder, {".hidden": b"left out"})
    kept = keep_module(folder, digest)
    assert kept == kept_module(digest) == cache / "modules" / digest
    assert {p.relative_to(kept).as_posix() for p in kept.rglob("*") if p.is_file()} == set(FILES)
    before = kept.stat().st_ino
    assert keep_module(folder, digest) == kept and kept.stat().st_ino == before
    assert [p.name for p in (cache / "modules").iterdir()] == [digest]


@pytest.mark.parametrize("harm", ["change", "add", "link"])
def test_a_harmed_entry_is_not_found_and_is_made_again(folder, cache, harm):
    digest = content_sha256(folder)
    kept = keep_module(folder, digest)
    if harm == "change":
        (kept / "saved_model.pb").write_bytes(b"tampered")
    elif harm == "add":
        write(kept, {"more": b"x"})
    else:
        (kept / "link").symlink_to("/etc/passwd")
    assert kept_module(digest) is None
    assert keep_module(folder, digest) == kept == kept_module(digest)
    assert [p.name for p in (cache / "modules").iterdir()] == [digest]


def test_nothing_is_kept_under_a_hash_that_is_not_its_own(folder, cache):
    with pytest.raises(ValueError, match="`sha256`"):
        keep_module(folder, "0" * 64)
    assert list((cache / "modules").iterdir()) == []


def test_several_at_once_all_keep_it(folder, cache):
    digest = content_sha256(folder)
    with ThreadPoolExecutor(8) as pool:
        kept = set(pool.map(lambda _: keep_module(folder, digest), range(24)))
    assert kept == {kept_module(digest)}
    assert len(list((cache / "modules").iterdir())) == 1
