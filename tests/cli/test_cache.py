"""`kerasmtl cache`: what it lists, and what it removes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from kerasmtl.cli.cache import cache
from kerasmtl.training.feature_store import entries, entry_at

ROWS = np.zeros(100, np.dtype([("features", "<f4", (250,))]))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The default folder, with two entries and an unfinished one."""
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    folder = tmp_path / "features"
    for letter, views in (("a", 1), ("b", 3), ("c", 1)):
        about = {"backbone": f"model_{letter}", "first": "labels.csv line 2"}
        entry = entry_at(folder / (letter * 64), 100, views, 64, about)
        for number in range(views):
            entry.write(number, ROWS)
    entry.shards.path(0).unlink()
    return folder


def run(*arguments, **settings):
    return CliRunner().invoke(cache, arguments, env={"COLUMNS": "120"}, **settings)


def test_the_list_shows_what_rows_size_and_date(root):
    shown = run().output
    lines = {line.split()[1]: line for line in shown.splitlines() if "model_" in line}
    cells = [cell.strip() for cell in lines["a" * 12].split("│")[1:-1]]
    assert cells[1:5] == ["model_a", "labels.csv line 2", "100", "0.1"]
    assert entries(root)[0].made[:10] in lines["a" * 12]
    assert "3 views" in lines["b" * 12] and "unfinished" in lines["c" * 12]
    assert str(root) in shown and "3 entries, 0.4 MB" in shown


def test_one_entry_as_json(root):
    (only,) = json.loads(run("b", "--json").output)
    assert only["key"] == "b" * 64 and only["rows"] == 300 and only["views"] == 3
    assert only["of_backbone"] == "model_b" and only["finished"]
    assert only["bytes"] >= 300_000 and only["path"] == str(root / only["key"])
    assert not json.loads(run("c", "--json").output)[0]["finished"]


def test_nothing_kept(tmp_path):
    for more in ((), ("--clear",)):
        shown = run("--folder", str(tmp_path / "no"), *more).output
        assert f"Nothing is kept in {tmp_path / 'no'}" in shown
    assert not (tmp_path / "no").exists()


def test_clearing_asks_first(root):
    refused = run("--clear", input="n\n")
    assert refused.exit_code == 1 and "Remove 3 entries, 0.4 MB" in refused.output
    assert "Removed 1" in run("a", "--clear", "--yes").output
    assert [entry.key[0] for entry in entries(root)] == ["b", "c"]
    with entries(root)[1].lock():
        shown = run("--clear", input="y\n").output
    assert "Removed 1, 0.3 MB" in shown and "cccccccccccc stays: another process" in shown
    assert os.listdir(root) == ["c" * 64]


@pytest.mark.parametrize("key", ["", "d", "aaab"])
def test_a_key_without_an_entry_is_refused(root, key):
    refused = run(key, "--clear", "--yes")
    assert refused.exit_code == 1 and "KEY" in refused.output or "`key`" in refused.output
    assert "aaaaaaaaaaaa, bbbbbbbbbbbb" in refused.output and len(entries(root)) == 3


def test_tensorflow_is_not_imported():
    code = (
        "import sys; from kerasmtl.cli.cache import cache; "
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
