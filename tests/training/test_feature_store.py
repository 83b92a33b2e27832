"""Entries of features on disk."""

import json

import numpy as np
import pytest

from kerasmtl.training import feature_store
from kerasmtl.training.feature_store import entries, entry_at, remove

DTYPE = np.dtype([("features", "<f4", (3,)), ("more", "<f2", ())])


@pytest.fixture
def entry(tmp_path, monkeypatch):
    """An entry of two views of 150 rows, in shards of 64, 64 and 22 rows, of which one is there."""
    monkeypatch.setattr(feature_store, "SHARD_ROWS", 50)
    made = entry_at(tmp_path / "root" / "key", 150, 2, 64, {"backbone": "tiny"})
    made.write(2, rows(22))
    return made


def rows(count):
    found = np.zeros(count, DTYPE)
    found["features"] = np.arange(3 * count).reshape(-1, 3)
    return found


def test_shards_are_read_as_they_were_written(entry):
    assert (entry.shard_rows, entry.per_view, entry.shards.count, entry.rows) == (64, 3, 6, 300)
    assert entry.shards.missing() == [0, 1, 3, 4, 5] and not entry.finished
    np.testing.assert_array_equal(entry.read(DTYPE)[2], rows(22))
    assert entry.read(DTYPE)[0] is None  # absent
    assert entry.read(np.dtype([("features", "<f4", (4,))]))[2] is None  # of other features
    number, place = entry.places(np.array([0, 149, 150, 299]))
    assert (number.tolist(), place.tolist()) == ([0, 2, 3, 5], [0, 21, 0, 21])
    entry.write(3, rows(22))
    assert entry.read(DTYPE)[3] is None  # too short
    path = entry.shards.path(2)
    path.write_bytes(path.read_bytes()[:-1])
    assert entry.read(DTYPE)[2] is None  # damaged


def test_an_entry_is_found_again_unless_its_rows_are_others(entry):
    assert entry_at(entry.path, 150, 2, 64, {}) == entry
    assert entry_at(entry.path, 151, 2, 64, {}).about == {}


def test_large_entries_have_a_bounded_number_of_shards(tmp_path):
    large = entry_at(tmp_path / "key", 1_000_003, 2, 64, {})
    assert large.shards.count <= feature_store.MOST_SHARDS + 2 and not large.shard_rows % 64


def test_entries_are_listed_and_what_is_none_is_left_out(entry):
    root = entry.path.parent
    (root / "other").mkdir()
    (root / "old").mkdir()
    (root / "old" / "entry.json").write_text(json.dumps({"format": 1, "key": "old"}))
    assert entries(root) == [entry] and entries(root / "absent") == []
    assert entry.bytes > 22 * DTYPE.itemsize


def test_an_entry_is_removed_unless_a_process_computes_it(entry):
    with entry.lock():
        assert not remove(entry) and entry.path.is_dir()
    assert remove(entry) and list(entry.path.parent.iterdir()) == []


def test_a_full_disk_says_how_much_is_needed(entry, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match=r"`folder`.*4,200 bytes.*No space left.*kerasmtl cache"):
        entry.write(0, rows(64))
    assert entry.shards.missing() == [0, 1, 3, 4, 5]
