"""`kerasmtl cache`: what it lists, and what it removes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from kerasmtl.cli.cache import cache
from kerasmtl.training.feature_store import Array, Plan, entries, locked, make_entry

ARRAYS = (Array("features", (250,), "float32"),)


def plan(letter, rows=100, views=1):
    first = "labels.csv line 2"
    about = {"backbone": f"model_{letter}", "rows": rows, "views": views, "first": first}
    return Plan(letter * 64, rows, ARRAYS, about)


def stop(first):
    raise KeyboardInterrupt


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The default folder, with two entries and an unfinished one."""
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    folder = tmp_path / "features"
    for made in (plan("a"), plan("b", views=3)):
        make_entry(folder, made, lambda first: [{"features": np.zeros((100, 250), "float32")}])
    with pytest.raises(KeyboardInterrupt):
        make_entry(folder, plan("c"), stop)
    return folder


def run(*arguments, **settings):
    return CliRunner().invoke(cache, arguments, env={"COLUMNS": "120"}, **settings)


def test_the_list_shows_what_rows_size_and_date(root):
    shown = run().output
    lines = {line.split()[1]: line for line in shown.splitlines() if "model_" in line}
    cells = [cell.strip() for cell in lines["a" * 12].split("│")[1:-1]]
    assert cells[1:3] == ["model_a", "labels.csv line 2"]
    assert "100" in lines["a" * 12] and "0.1" in lines["a" * 12]
    made = entries(root)[0].made
    assert made[:10] in lines["a" * 12]
    assert "3 views" in lines["b" * 12] and "unfinished" in lines["c" * 12]
    assert str(root) in shown and "3 entries, 0.2 MB" in shown


def test_entries_of_older_versions_have_the_model_for_the_backbone(tmp_path):
    about = {"model": "older", "rows": 9, "views": 1, "first": "x"}
    made = Plan("d" * 64, 9, ARRAYS, about)
    make_entry(tmp_path, made, lambda first: [{"features": np.zeros((9, 250), "float32")}])
    assert "older" in run("--folder", str(tmp_path)).output


def test_one_entry_and_json(root):
    (only,) = json.loads(run("b", "--json").output)
    assert only["key"] == "b" * 64 and only["rows"] == 100 and only["of_views"] == 3
    assert only["of_backbone"] == "model_b"
    assert only["bytes"] >= 100_000 and only["path"] == str(root / only["key"])
    assert len(json.loads(run("--json").output)) == 3


def test_nothing_kept(tmp_path):
    assert f"Nothing is kept in {tmp_path / 'no'}" in run("--folder", str(tmp_path / "no")).output
    assert "Nothing is kept" in run("--clear", "--folder", str(tmp_path / "no")).output
    assert not (tmp_path / "no").exists()


def test_clearing_asks_first(root):
    refused = run("--clear", input="n\n")
    assert refused.exit_code == 1 and "Remove 3 entries, 0.2 MB" in refused.output
    assert len(entries(root)) == 3
    assert "Removed 3, 0.2 MB" in run("--clear", input="y\n").output
    assert os.listdir(root) == []


def test_one_key_is_cleared(root):
    assert "Removed 1" in run("a", "--clear", "--yes").output
    assert [entry.key[0] for entry in entries(root)] == ["b", "c"]


@pytest.mark.parametrize("key", ["", "d", "aaab"])
def test_a_key_of_no_one_entry_is_refused(root, key):
    refused = run(key, "--clear", "--yes")
    assert refused.exit_code == 1 and "`key` is that of" in refused.output
    assert "Expected the first characters of one key: aaaaaaaaaaaa, bbbbbbbbbbbb" in refused.output
    assert len(entries(root)) == 3


def test_what_a_process_is_computing_stays(root):
    with locked(root / f".making-{'c' * 64}.lock"):
        shown = run("--clear", "--yes").output
    assert "Removed 2" in shown and "cccccccccccc stays: another process" in shown
    assert [entry.key[0] for entry in entries(root)] == ["c"]


def test_a_cache_that_is_no_folder_is_told(monkeypatch):
    monkeypatch.setenv("TFHUB_CACHE_DIR", "gs://somewhere")
    refused = run()
    assert refused.exit_code == 1 and "`TFHUB_CACHE_DIR` is no local folder" in refused.output


def test_tensorflow_is_not_imported():
    code = (
        "import sys; from kerasmtl.cli.cache import cache; "
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
