"""Scores as numbers, as JSON and as a table."""

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from kerasmtl.evaluation.report import (
    BinaryScores,
    Bootstrap,
    Interval,
    MulticlassScores,
    RegressionScores,
    Report,
    main_score,
)
from kerasmtl.utils.tables import print_whole

NAN = float("nan")


@pytest.fixture
def report():
    return Report(
        rows=12,
        tasks={
            "cat": BinaryScores(10, 4, 0.75, 0.5, 0.8, 0.7, 0.1),
            "dog": BinaryScores(6, 6, NAN, 1.0, 0.5, 0.9),
            "bird": BinaryScores(0, 0, NAN, NAN, NAN),
            "fox": BinaryScores(8, 3, 0.25, 0.3, 0.2),
        },
    )


def cells(report):
    lines = [line for line in str(report).splitlines() if "│" in line]
    return {
        row[0]: row[1:] for row in ([c.strip() for c in line.split("│")[1:-1]] for line in lines)
    }


@pytest.mark.parametrize(
    "kind, y, p, expected",
    [
        ("binary", [0, 1, 1, 0], [0.1, 0.9, 0.3, 0.5], 0.75),
        ("binary", [0, 1, 0.5, NAN], [0.1, 0.9, 0.0, 0.0], 1.0),  # half a label is not scored
        ("binary", [1, 1, 0.5], [0.1, 0.9, 0.3], NAN),
        ("multiclass", [0, 2, 1, NAN], np.eye(3)[[0, 2, 2, 1]], 2 / 3),
        ("multiclass", [NAN], np.eye(3)[:1], NAN),
        ("regression", [1, 3, NAN], [1, 2, 9], 0.5),
        ("regression", [2, 2, NAN], [1, 2, 9], NAN),
    ],
)
def test_the_main_score_is_that_of_the_labels_that_count(kind, y, p, expected):
    found = main_score(kind, np.array(y, "float32"), np.array(p, "float32"))
    assert found == pytest.approx(expected, nan_ok=True)


def test_undefined_scores_are_null_in_json(report):
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert again["macro_auc"] == 0.5 and again["rows"] == 12
    assert again["tasks"]["dog"] == {
        "kind": "binary",
        "known": 6,
        "positive": 6,
        "auc": None,
        "average_precision": 1.0,
        "accuracy": 0.5,
        "f1": 0.9,
        "brier": None,
        "ece": None,
    }
    assert set(again["tasks"]["bird"].values()) == {"binary", 0, None}
    assert again["macro"]["binary"]["auc"] == {"mean": 0.5, "defined": 2}
    assert again["macro"]["binary"]["ece"] == {"mean": None, "defined": 0}
    assert list(again["tasks"]) == list(report.tasks)


def test_the_table_has_a_line_for_every_task_and_a_dash_for_undefined_scores(report):
    rows = cells(report)
    assert rows["cat"] == ["10", "4", "0.750", "0.500", "0.800", "0.700", "0.100", "–"]
    assert rows["dog"] == ["6", "6", "–", "1.000", "0.500", "0.900", "–", "–"]
    assert rows["bird"] == ["0", "0", *"––––––"]


def test_the_table_ends_with_the_means_of_the_defined_scores_and_their_number(report):
    rows = cells(report)
    assert list(rows)[-2:] == ["mean", "defined"]
    assert rows["mean"] == ["", "", "0.500", "0.600", "0.500", "0.800", "0.100", "–"]
    assert rows["defined"][2:] == ["2/4", "3/4", "3/4", "2/4", "1/4", "0/4"]


def test_pooled_scores_and_intervals_stand_in_the_table_and_in_json(report):
    found = Bootstrap(
        20,
        tasks={"cat": {"auc": Interval(0.7, 0.8, 3), "f1": Interval(NAN, NAN, 20)}, "dog": {}}
        | {"bird": {}, "fox": {}},
        macro={"binary": {"auc": Interval(0.4, 0.6, 0)}},
        micro={"binary": {}},
    )
    pooled = {"binary": BinaryScores(24, 13, 0.65, 0.5, 0.4)}
    full = Report(12, report.tasks, pooled, found)
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in str(full).splitlines()]
    at = next(number for number, line in enumerate(lines) if line[:1] == ["cat"])
    assert [line[0] for line in lines[at + 1 : at + 3]] == ["2.5 %", "97.5 %"]
    assert [line[3] for line in lines[at : at + 3]] == ["0.750", "0.700", "0.800"]
    at = next(number for number, line in enumerate(lines) if line[:1] == ["mean"])
    assert [line[3] for line in lines[at : at + 3]] == ["0.500", "0.400", "0.600"]
    assert cells(full)["cat"][5] == "0.700"
    assert cells(full)["pooled"][:3] == ["24", "13", "0.650"]
    again = json.loads(json.dumps(full.to_dict(), allow_nan=False))
    assert again["micro"]["binary"]["auc"] == 0.65
    assert again["bootstrap"]["draws"] == 20
    assert again["bootstrap"]["tasks"]["cat"] == {
        "auc": {"low": 0.7, "high": 0.8, "undefined": 3},
        "f1": {"low": None, "high": None, "undefined": 20},
    }


def test_each_kind_has_a_table_and_a_mean_of_its_own():
    report = Report(
        5,
        {
            "cat": BinaryScores(5, 2, 0.5, 0.5, 0.5),
            "colour": MulticlassScores(4, 3, 0.25, 0.75, 1.5),
            "size": RegressionScores(3, 1.25, 2.5, -math.inf),
        },
    )
    rows = cells(report)
    assert rows["colour"] == ["4", "3", "0.250", "0.750", "1.500"]
    assert rows["size"][:3] == ["3", "1.250", "2.500"]
    assert report.macro("mae", "regression") == 1.25
    assert report.defined("auc", "multiclass") == 1
    assert report.macro_auc == 0.625
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["tasks"]["size"]["r2"] is None


@pytest.mark.parametrize("name", ["a[b]", "[red]light", "[/x]", "12", "信号", ":car:"])
def test_a_name_is_shown_as_it_is(name):
    report = Report(1, {name: BinaryScores(2, 1, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0)})
    assert cells(report)[name] == ["2", "1", *["1.000"] * 4, *["0.000"] * 2]


def drawn(names, width, recall=None):
    """The first column's lines, on a terminal."""
    scores = BinaryScores(36, 12, 0.912, 0.8, 0.7, 0.5, 0.1, 0.2, 0.3)
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    print_whole(Report(36, dict.fromkeys(names, scores), recall=recall).table(), console)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return [line.split("│")[1].strip() for line in lines if line.startswith("│")][:-2]


def test_names_are_folded_between_their_words():
    names = ["traffic_light_is_red", "NR-PPAR-gamma", "traffic light ahead", "unbreakable_"]
    assert drawn(names, 80, recall=0.9) == [
        *("traffic_", "light_is_", "red"),
        *("NR-PPAR-", "gamma"),
        *("traffic", "light", "ahead"),
        *("unbreakabl", "e_"),  # 11 letters, and there is room for 10
    ]


@pytest.mark.parametrize("terminal, width", [(True, 80), (False, 40)])
def test_no_number_is_cut_off(report, terminal, width):
    name = "a_task_of_a_very_long_name_" * 2
    scores = BinaryScores(1234, 1000, 0.111, 0.222, 0.333, 0.444, 0.555, 0.666, 0.777)
    ends = {score: Interval(0.101, 0.999, 0) for score in ("auc", "ece", "precision_at_recall")}
    found = Bootstrap(9, {name: ends}, {"binary": ends}, {"binary": {}})
    full = Report(5, {name: scores}, {}, found, recall=0.9)
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    print_whole(full.table(), console)
    text = file.getvalue()
    assert "…" not in text
    for number in ("1234", "0.111", "0.222", "0.333", "0.444", "0.555", "0.666", "0.777"):
        assert number in text
    assert text.count("0.101") == text.count("0.999") == 3
    assert max(map(len, text.splitlines())) <= (width if terminal else 200)


def test_thresholds_that_are_not_one_half_stand_in_the_table():
    scores = BinaryScores(4, 2, 0.75, 0.8, 0.5)
    tasks = {"car": scores, "bus": scores}
    plain = Report(rows=4, tasks=tasks, thresholds={"car": 0.5, "bus": 0.5})
    assert "from" not in str(plain)
    lines = str(replace(plain, thresholds={"car": 0.5, "bus": 0.417})).splitlines()
    assert any("yes" in line for line in lines) and any("from" in line for line in lines)
    assert [line.split("│")[-2].strip() for line in lines if "car" in line or "bus" in line] == [
        "0.500",
        "0.417",
    ]
    assert plain.to_dict()["thresholds"] == {"car": 0.5, "bus": 0.5}
