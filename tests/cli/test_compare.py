"""`kerasmtl advise` and `kerasmtl compare`."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from kerasmtl.cli import main


@pytest.fixture
def folder(tmp_path):
    """A project of numbers that say something of two tasks."""
    x = np.random.default_rng(0).normal(size=(90, 3))
    lines = ["x0,x1,x2,a,b"]
    lines += [f"{r[0]:.3f},{r[1]:.3f},{r[2]:.3f},{int(r[0] > 0)},{int(r[1] > r[2])}" for r in x]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    toml = (
        'name = "p"\n[data]\nlabels = "labels.csv"\ntasks = ["a", "b"]\n[input]\nkind = "table"\n'
    )
    (tmp_path / "project.toml").write_text(toml)
    return tmp_path


def run(folder, *arguments):
    return CliRunner().invoke(main, [*arguments, "--project", str(folder)])


@pytest.mark.slow
def test_advise_prints_counts_probes_and_the_plan(folder):
    shown = run(folder, "advise")
    assert shown.exit_code == 0, shown.output
    assert "AUC" in shown.stdout and "Plan 'auto'" in shown.stdout
    told = json.loads(run(folder, "advise", "--json").stdout)
    assert [task["task"] for task in told["tasks"]] == ["a", "b"]


@pytest.mark.slow
def test_compare_answers_and_goes_on(folder):
    shown = run(folder, "compare", "size", "--json")
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    assert told["kind"] == "size" and len(told["sentences"]) == 2 and "[36/36" in shown.stderr
    again = run(folder, "compare", "size", "--json")
    assert json.loads(again.stdout) == told and "[" not in again.stderr


def test_compare_without_time_says_how_to_go_on(folder):
    shown = run(folder, "compare", "tasks", "--minutes", "0")
    assert shown.exit_code == 0 and "the same command continues" in shown.stdout


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["compare", "transfer"], "WHAT"),
        (["compare", "size", "--shares", "half"], "--shares"),
        (["compare", "size", "--seeds", "1"], "--seeds"),
        (["advise", "--backbone", "tiny"], "--backbone"),
    ],
)
def test_wrong_options_are_named(folder, arguments, named):
    shown = run(folder, *arguments)
    assert shown.exit_code == 1 and f"{named} must be" in shown.stderr
