"""Files and folders that appear whole or not at all."""

import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from kerasmtl.utils.files import (
    Shards,
    atomic_file,
    atomic_folder,
    file_lock,
    file_sha256,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_and_keeps_its_permissions(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_text(path, "one\r\n")
    assert path.read_bytes() == b"one\r\n"
    path.chmod(0o640)
    with atomic_file(path) as written:
        written.write_text("two")
        assert path.read_bytes() == b"one\r\n"
    assert path.read_text() == "two" and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names(path.parent) == ["b.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_changes_nothing(tmp_path, error):
    write_text(tmp_path / "a.txt", "one")
    with pytest.raises(error), atomic_file(tmp_path / "a.txt") as written:
        written.write_text("half")
        raise error
    with pytest.raises(error), atomic_folder(tmp_path / "folder") as made:
        (made / "half").write_text("half")
        raise error
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "one"


def test_a_folder_is_never_replaced_unless_it_is_invalid(tmp_path):
    def write(text, **options):
        with atomic_folder(tmp_path / "folder", **options) as made:
            (made / text).write_text(text)
        return names(tmp_path / "folder")

    assert write("first") == ["first"]
    with pytest.raises(FileExistsError, match="folder exists"):
        write("second")
    assert write("third", valid=lambda there: True) == ["first"]
    assert write("fourth", valid=lambda there: False) == ["fourth"]
    assert names(tmp_path) == ["folder"]


def test_shards_know_which_are_missing(tmp_path):
    shards = Shards(tmp_path / "shards", 3, ".txt")
    assert shards.missing() == [0, 1, 2]
    with shards.write(1) as file:
        file.write_text("b")
    with pytest.raises(ValueError), shards.write(2) as file:
        file.write_text("half")
        raise ValueError
    assert shards.missing() == [0, 2] and shards.path(1).read_text() == "b"
    assert [path.name for path in shards.paths()] == ["00000.txt", "00001.txt", "00002.txt"]


def test_a_lock_is_held_once_and_removed(tmp_path):
    path = tmp_path / "lock"
    with file_lock(path):
        with pytest.raises(BlockingIOError), file_lock(path, wait=False):
            pass
    with file_lock(path, wait=False):
        assert path.exists()
    assert not path.exists()


def test_where_there_are_no_locks_the_block_runs_all_the_same(tmp_path, monkeypatch):
    with file_lock(tmp_path / "no" / "folder" / "lock") as held:
        assert held is None
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    with file_lock(tmp_path / "lock"), file_lock(tmp_path / "lock", wait=False):
        pass


def test_the_lock_of_a_killed_process_is_free_and_waited_for(tmp_path, capsys):
    code = (
        "import sys, time\nfrom kerasmtl.utils.files import file_lock\n"
        f"with file_lock({str(tmp_path / 'lock')!r}): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError), file_lock(tmp_path / "lock", wait=False):
            pass
        os.kill(process.pid, signal.SIGKILL)
        began = time.monotonic()
        with file_lock(tmp_path / "lock", message="Waiting."):
            assert time.monotonic() - began < 30


def test_the_hash_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "a") == digest
