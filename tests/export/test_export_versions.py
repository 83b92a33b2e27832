"""Versions count up, appear complete or not at all, and are never overwritten."""

import os
import threading
import time

import pytest

from kerasmtl.export.versions import check_target, missing, new_version, stamp, versions_in


def publish(base, version=None, name="file"):
    with new_version(base, version) as (number, folder):
        (folder / "model").mkdir()
        (folder / "model" / name).write_text(str(number))
    return number


def names(base):
    return sorted(path.name for path in base.iterdir())


def test_versions_count_up_and_are_never_overwritten(tmp_path):
    base = tmp_path / "street"
    assert [publish(base), publish(base), publish(base, 7), publish(base)] == [1, 2, 7, 8]
    with pytest.raises(FileExistsError, match="`version` must be new, got 7"):
        publish(base, 7)
    assert (base / "7" / "file").read_text() == "7"
    assert versions_in(base) == [8, 7, 2, 1] and names(base) == ["1", "2", "7", "8"]


def test_everything_named_like_a_version_counts(tmp_path):
    for name in ("007", "²", "x", "9"):  # 9: half copied, empty
        (tmp_path / name).mkdir()
    for version in (7, 9):
        with pytest.raises(FileExistsError, match=f"got {version}"):
            check_target(tmp_path, version)
    assert publish(tmp_path) == 10
    assert not list((tmp_path / "9").iterdir())
    assert versions_in(tmp_path) == [10, 9] and versions_in(tmp_path / "none") == []


def test_a_version_is_hidden_until_it_is_complete(tmp_path):
    with new_version(tmp_path) as (number, folder):
        assert versions_in(tmp_path) == [] and names(tmp_path) == [".export-1"]
        with new_version(tmp_path) as (other, second):  # another process, meanwhile
            assert (number, other) == (1, 2)
            (second / "model").mkdir()
        assert versions_in(tmp_path) == [2]
        with pytest.raises(FileExistsError, match="got 1"):
            publish(tmp_path, 1)
        (folder / "model").mkdir()
    assert names(tmp_path) == ["1", "2"]


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="disk full"), new_version(tmp_path) as (_, folder):
        (folder / "model").mkdir()
        raise OSError("disk full")
    assert names(tmp_path) == []


def test_a_version_that_appears_meanwhile_is_kept(tmp_path):
    with pytest.raises(FileExistsError, match="got 1"), new_version(tmp_path) as (_, folder):
        (folder / "model").mkdir()
        (tmp_path / "1").mkdir()  # copied by hand, and still empty
    assert names(tmp_path) == ["1"]


def test_exports_at_once_get_a_version_each(tmp_path):
    start, found = threading.Barrier(8), []

    def export():
        start.wait()
        found.append(publish(tmp_path))

    threads = [threading.Thread(target=export) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 9))
    assert all((tmp_path / str(n) / "file").read_text() == str(n) for n in found)


def test_the_folder_of_a_killed_export_is_removed_after_a_day(tmp_path):
    for name, age in ((".export-3", 90_000), (".export-5", 0)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    assert publish(tmp_path) == 6
    assert names(tmp_path) == [".export-5", "6"]


@pytest.mark.parametrize("path", ["file", "file/m", "link"])
def test_a_target_that_is_not_a_folder_is_refused(tmp_path, path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="`path`"):
        check_target(tmp_path / path, None)


def test_a_read_only_target_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *args: False)  # root may write everywhere
    with pytest.raises(PermissionError, match="`path`"):
        check_target(tmp_path / "new" / "m", None)


def test_a_folder_that_is_being_copied_is_told(tmp_path):
    assert missing(tmp_path) == "saved_model.pb is not there"
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    before = stamp(tmp_path)
    assert "variables.index" in missing(tmp_path)
    (tmp_path / "variables").mkdir()
    (tmp_path / "variables" / "variables.index").write_bytes(b"")
    assert missing(tmp_path) is None
    assert stamp(tmp_path) != before and stamp(tmp_path) == stamp(tmp_path)
