"""Features on disk: whole or not at all, gone on with when interrupted, one writer at a time."""

import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from modules import HELPERS

from kerasmtl.training import feature_store
from kerasmtl.training import feature_store as feature_blocks
from kerasmtl.training.feature_store import (
    BLOCK,
    Array,
    Plan,
    entries,
    is_intact,
    locked,
    make_entry,
    open_entry,
    remove,
)

KEY = "ab" * 32
ROWS = 3 * BLOCK + 10
VALUES = {
    "features_0": np.random.default_rng(0).normal(size=(ROWS, 5)).astype("float32"),
    "features_1": np.random.default_rng(1).integers(0, 9, (ROWS, 2, 3)).astype("int16"),
}
PLAN = Plan(
    KEY,
    ROWS,
    (Array("features_0", (5,), "float32"), Array("features_1", (2, 3), "int16")),
    {"model": "m", "rows": ROWS, "views": 1, "first": "labels.csv line 2"},
)


def blocks(first, asked=None, until=ROWS):
    for start in range(first, until, BLOCK):
        if asked is not None:
            asked.append(start)
        yield {name: values[start : start + BLOCK] for name, values in VALUES.items()}


def check(arrays):
    assert set(arrays) == set(VALUES)
    for name, values in VALUES.items():
        np.testing.assert_array_equal(arrays[name], values)
        assert arrays[name].dtype == values.dtype and not arrays[name].flags.writeable


def interrupted(first, after):
    for number, values in enumerate(blocks(first)):
        if number == after:
            raise KeyboardInterrupt
        yield values


def test_what_is_made_is_there_and_nothing_else(tmp_path):
    assert open_entry(tmp_path, KEY) is None
    check(make_entry(tmp_path / "new", PLAN, blocks))
    check(open_entry(tmp_path / "new", KEY))
    assert is_intact(tmp_path / "new", KEY)
    assert os.listdir(tmp_path / "new") == [KEY]
    assert PLAN.bytes == sum(values.nbytes for values in VALUES.values())


def test_what_is_there_is_not_computed(tmp_path):
    make_entry(tmp_path, PLAN, blocks)
    check(make_entry(tmp_path, PLAN, lambda first: pytest.fail("computed")))


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_run_goes_on_after_the_last_finished_block(tmp_path, after):
    with pytest.raises(KeyboardInterrupt):
        make_entry(tmp_path, PLAN, lambda first: interrupted(first, after))
    assert open_entry(tmp_path, KEY) is None
    asked = []
    check(make_entry(tmp_path, PLAN, lambda first: blocks(first, asked)))
    assert asked == list(range(after * BLOCK, ROWS, BLOCK))
    assert os.listdir(tmp_path) == [KEY]


def test_rows_that_moved_go_on_and_other_arrays_do_not(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make_entry(tmp_path, PLAN, lambda first: interrupted(first, 2))
    moved = Plan(KEY, ROWS, PLAN.arrays, {"first": "elsewhere"})
    asked = []
    with pytest.raises(KeyboardInterrupt):
        make_entry(tmp_path, moved, lambda first: (asked.append(first), *interrupted(first, 0)))
    assert asked == [2 * BLOCK]
    other = Plan(KEY, ROWS, (Array("features_0", (5,), "float32"),))
    make_entry(tmp_path, other, lambda first: blocks(asked.append(first) or first))
    assert asked[-1] == 0


def damage(path, at, new=b"\xff"):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(new)


def test_a_block_that_is_not_as_it_was_logged_is_computed_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make_entry(tmp_path, PLAN, lambda first: interrupted(first, 3))
    made = tmp_path / f".making-{KEY}" / "made"
    damage(made / "features_0.npy", 128 + BLOCK * 20 + 3)  # in the second block
    asked = []
    check(make_entry(tmp_path, PLAN, lambda first: blocks(first, asked)))
    assert asked[0] == BLOCK


@pytest.mark.parametrize("kept", ["{", '{"features_0": 1', "[]", ""])
def test_a_log_that_was_cut_short_counts_as_far_as_it_goes(tmp_path, kept):
    with pytest.raises(KeyboardInterrupt):
        make_entry(tmp_path, PLAN, lambda first: interrupted(first, 2))
    log = tmp_path / f".making-{KEY}" / "made" / feature_blocks.LOG
    log.write_text(log.read_text().splitlines()[0] + "\n" + kept)
    asked = []
    check(make_entry(tmp_path, PLAN, lambda first: blocks(first, asked)))
    assert asked[0] == BLOCK


def test_an_entry_that_is_damaged_is_seen(tmp_path):
    make_entry(tmp_path, PLAN, blocks)
    damage(tmp_path / KEY / "features_1.npy", 128 + 5)
    assert open_entry(tmp_path, KEY) is not None and not is_intact(tmp_path, KEY)
    os.truncate(tmp_path / KEY / "features_1.npy", 1000)
    assert open_entry(tmp_path, KEY) is None and not is_intact(tmp_path, KEY)
    check(make_entry(tmp_path, PLAN, blocks))  # which gives way


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 0}'])
def test_an_entry_that_is_not_ours_is_none(tmp_path, text):
    make_entry(tmp_path, PLAN, blocks)
    (tmp_path / KEY / feature_blocks.ENTRY).write_text(text)
    assert open_entry(tmp_path, KEY) is None


def test_too_few_rows_or_other_shapes_are_refused_and_nothing_is_there(tmp_path):
    with pytest.raises(ValueError, match=f"ended too early. Expected {ROWS} rows. Received: 512"):
        make_entry(tmp_path, PLAN, lambda first: blocks(first, until=2 * BLOCK))
    with pytest.raises(ValueError, match="have another shape"):
        make_entry(tmp_path, PLAN, lambda first: blocks(first + 1))
    assert open_entry(tmp_path, KEY) is None


def test_a_full_disk_is_told_before_anything_is_computed(tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=PLAN.bytes - 1)
    monkeypatch.setattr(feature_blocks.shutil, "disk_usage", lambda path: full)
    with pytest.raises(OSError) as caught:
        make_entry(tmp_path, PLAN, lambda first: pytest.fail("computed"))
    for said in (str(tmp_path), f"{PLAN.bytes:,} bytes", f"{PLAN.bytes - 1:,} bytes are free"):
        assert said in str(caught.value)


def test_a_disk_that_fills_up_leaves_blocks_to_go_on_with(tmp_path):
    def filling(first):
        for number, values in enumerate(blocks(first)):
            if number == 2:  # from here on no file may be written beyond its first bytes
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
            yield values

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match=f"cannot hold the features.*{PLAN.bytes:,} bytes"):
            make_entry(tmp_path, PLAN, filling)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert open_entry(tmp_path, KEY) is None
    asked = []
    check(make_entry(tmp_path, PLAN, lambda first: blocks(first, asked)))
    assert asked[0] == 2 * BLOCK


def test_a_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot hold the features"):
        make_entry(tmp_path / "file", PLAN, blocks)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_told_and_still_read(tmp_path):
    make_entry(tmp_path, PLAN, blocks)
    tmp_path.chmod(0o500)
    try:
        check(open_entry(tmp_path, KEY))
        with pytest.raises(OSError, match="cannot hold the features: Permission denied"):
            make_entry(tmp_path, Plan("cd" * 32, ROWS, PLAN.arrays), blocks)
    finally:
        tmp_path.chmod(0o700)


SLOWLY = """
    import sys
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from test_feature_store import PLAN, blocks, check
    from kerasmtl.training.feature_store import make_entry

    def told(first):
        print("first", first, flush=True)
        for values in blocks(first):
            yield values
            print("block", flush=True)
            if {waits}:
                sys.stdin.readline()

    check(make_entry(Path({root!r}), PLAN, told))
    print("done", flush=True)
"""


def started(root, waits):
    code = SLOWLY.format(tests=str(HELPERS), root=str(root), waits=waits)
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process, expected):
    line = process.stdout.readline().strip()
    assert line == expected


def test_a_killed_process_is_gone_on_with(tmp_path):
    with started(tmp_path, waits=True) as process:
        said(process, "first 0")
        said(process, "block")
        process.stdin.write("\n")
        process.stdin.flush()
        said(process, "block")
        process.send_signal(signal.SIGKILL)
    asked = []
    check(make_entry(tmp_path, PLAN, lambda first: blocks(first, asked)))
    assert asked[0] == 2 * BLOCK


def test_a_second_process_waits_and_then_takes_what_the_first_made(tmp_path):
    with started(tmp_path, waits=True) as first:
        said(first, "first 0")
        with started(tmp_path, waits=False) as second:
            said(second, "Waiting for another process that makes the same features.")
            for _ in PLAN.blocks:
                said(first, "block")
                first.stdin.write("\n")
                first.stdin.flush()
            said(first, "done")
            said(second, "done")


def test_a_process_that_waits_goes_on_where_the_first_was_killed(tmp_path):
    with started(tmp_path, waits=True) as first:
        said(first, "first 0")
        said(first, "block")
        with started(tmp_path, waits=False) as second:
            said(second, "Waiting for another process that makes the same features.")
            first.send_signal(signal.SIGKILL)
            said(second, f"first {BLOCK}")
            for _ in PLAN.blocks[1:]:
                said(second, "block")
            said(second, "done")


def test_without_locks_each_process_has_its_own_folder(tmp_path, monkeypatch):
    def none(path, wait=True):
        raise OSError("no locks here")

    monkeypatch.setattr(feature_store, "locked", none)

    def another(first):
        for number, values in enumerate(blocks(first)):
            if number == 1:
                check(make_entry(tmp_path, PLAN, blocks))  # overtakes the one that is at work
            yield values

    check(make_entry(tmp_path, PLAN, another))
    assert os.listdir(tmp_path) == [KEY]


def test_a_lock_is_held_by_one_at_a_time(tmp_path):
    path = tmp_path / "lock"
    with locked(path):
        with pytest.raises(BlockingIOError), locked(path, wait=False):
            pytest.fail("held twice")
    with locked(path, wait=False) as held:
        assert held == path


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    path, take, taken = tmp_path / "lock", fcntl.flock, []

    def flock(file, how):
        take(file, how)
        taken.append(how)
        if len(taken) == 1:  # as by the process that held it, when it was done
            path.unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(path):
        assert len(taken) == 2 and path.exists()


def test_entries_are_listed_and_removed(tmp_path):
    assert entries(tmp_path / "none") == []
    make_entry(tmp_path, PLAN, blocks)
    unfinished = Plan("cd" * 32, ROWS, PLAN.arrays, PLAN.about)
    with pytest.raises(KeyboardInterrupt):
        make_entry(tmp_path, unfinished, lambda first: interrupted(first, 1))
    (tmp_path / "somebody's").mkdir()
    whole, begun = entries(tmp_path)
    assert (whole.key, whole.rows, whole.about) == (KEY, ROWS, PLAN.about)
    assert whole.bytes >= PLAN.bytes and whole.made and not begun.made
    assert begun.key == unfinished.key and begun.bytes < whole.bytes
    with locked(tmp_path / f".making-{begun.key}.lock"):
        assert not remove(begun)
    assert remove(begun) and remove(whole)
    assert os.listdir(tmp_path) == ["somebody's"]
