"""README and docs: their examples run as they are printed, their links and names exist."""

import re
from functools import cache, reduce
from pathlib import Path

import click
import keras
import numpy as np
import pytest
from loss_table import CASES

import kerasmtl as kt
from kerasmtl.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = re.compile(r"```python\n(.*?)```", flags=re.S)


def run_examples(page, folder, monkeypatch):
    """Run a page's Python blocks one after the other; returns their names and what they print."""
    printed, names = [], {}
    monkeypatch.chdir(folder)
    monkeypatch.setattr("builtins.print", lambda *args, **kwargs: printed.append(str(args[0])))
    blocks = PYTHON.findall(page.read_text(encoding="utf-8"))
    assert blocks
    for code in blocks:
        exec(compile(code, page.name, "exec"), names)
    return names, "\n".join(printed)


@cache
def options_of(command):
    """The options of `kerasmtl COMMAND`."""
    params = main.get_command(click.Context(main), command).params
    return {"--help", *(option for param in params for option in param.opts)}


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150
    (example,) = PYTHON.findall(README)
    assert len([line for line in example.splitlines() if line.strip()]) <= 25


def test_the_library_example_trains_reports_and_exports(tmp_path, monkeypatch):
    _, printed = run_examples(ROOT / "README.md", tmp_path, monkeypatch)
    assert "traffic_light" in printed and "saved_models/street/1" in printed
    assert (tmp_path / "saved_models" / "street" / "1" / "saved_model.pb").is_file()


@pytest.mark.parametrize("name", ["data", "losses-and-metrics"])
def test_the_examples_of_a_page_run(name, tmp_path, monkeypatch):
    run_examples(ROOT / "docs" / f"{name}.md", tmp_path, monkeypatch)


def test_migrated_models_train_with_adam_and_travel(tmp_path, monkeypatch):
    names, _ = run_examples(ROOT / "docs" / "backbones.md", tmp_path, monkeypatch)
    x = np.random.default_rng(0).random((4, 128, 128, 3), dtype="float32")
    y = np.array([[0, 1, np.nan, 0]] * 4, "float32")
    for model in (names["model"], names["tuned"]):
        layer = next(part for part in model.layers if isinstance(part, kt.HubLayer))
        before = [v.numpy().copy() for v in layer.trainable_variables]
        assert isinstance(model.optimizer, keras.optimizers.Adam)
        model.train_on_batch(x, y)
        after = [v.numpy() for v in layer.trainable_variables]
        assert before and all((a != b).any() for a, b in zip(before, after, strict=True))
    (tmp_path / "exported").rename(tmp_path / "moved")
    assert kt.load_model(tmp_path / "tuned.keras", safe_mode=False).output_shape == (None, 4)


@pytest.mark.slow
def test_the_examples_of_fine_tuning_run(tmp_path, monkeypatch):
    run_examples(ROOT / "docs" / "fine-tuning.md", tmp_path, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_commands_and_options_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\bkt((?:\.[A-Za-z]\w*)+)", text):  # getattr raises if there is none
        reduce(getattr, name[1:].split("."), kt)
    for number, part in enumerate(PYTHON.sub("", text).split("```")):  # odd parts are blocks
        command = r"^kerasmtl ([a-z]+)" if number % 2 else r"`kerasmtl ([a-z]+)"
        for line in part.splitlines():
            named = re.findall(command, line) or COMMANDS
            known = set().union(*(options_of(name) for name in named))
            foreign = "pip " in line or "docker " in line
            assert foreign or set(re.findall(r"(?<![\w-])--[a-z][\w-]*", line)) <= known, line


def test_the_losses_and_metrics_of_the_page_are_all_there_are():
    page = (ROOT / "docs" / "losses-and-metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:kt\.\w+\.)?(\w+)(?:\([^`]*\))?`", page))
    assert set(kt.losses.__all__) - named - {"Balancer"} == set()
    assert set(kt.metrics.__all__) - named - {"MaskedMetric"} == set()


def test_what_the_guarantee_leaves_out_is_what_the_tests_leave_out():
    guarantee = README[README.index("## The guarantee") : README.index("## Your own data")]
    assert "drop_remainder=True" in guarantee
    assert [name for name, case in CASES.items() if case.by_batch] == ["epr-batch"]
    assert '`ExpectedPositives(level="batch")`' in guarantee


def test_the_handles_of_the_table_are_understood():
    from kerasmtl.models.applications import parse_application
    from kerasmtl.models.hub.handles import PRESET, is_remote

    page = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    table = page[page.index("| handle |") : page.index("`build_model` takes any")]
    handles = re.findall(
        r"`([^`]+)`", "\n".join(row.split("|")[1] for row in table.splitlines() if row)
    )
    assert len(handles) >= 10
    for handle in handles:
        local = handle in ("tiny", "path/to/folder", "module.tar.gz")
        known = is_remote(handle) or handle.startswith(PRESET) or parse_application(handle)
        assert local or known, handle
