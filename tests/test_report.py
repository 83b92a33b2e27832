"""Scores as numbers, as JSON and as a table."""

import json
import math

import pytest

from kerasmtl.report import Report, TaskScores

NAN = float("nan")


@pytest.fixture
def report():
    return Report(
        rows=12,
        tasks={
            "cat": TaskScores(10, 4, 0.75, 0.5, 0.8),
            "dog": TaskScores(6, 6, NAN, 1.0, 0.5),
            "bird": TaskScores(0, 0, NAN, NAN, NAN),
            "fox": TaskScores(8, 3, 0.25, 0.3, 0.2),
        },
    )


def cells(report):
    lines = [line for line in str(report).splitlines() if "│" in line]
    return {
        row[0]: row[1:] for row in ([c.strip() for c in line.split("│")[1:-1]] for line in lines)
    }


def test_the_mean_is_over_the_tasks_that_define_it(report):
    assert report.macro_auc == 0.5


def test_without_such_a_task_the_mean_is_nan():
    assert math.isnan(Report(1, {"a": TaskScores(0, 0, NAN, NAN, NAN)}).macro_auc)


def test_undefined_scores_are_null_in_json(report):
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert again["macro_auc"] == 0.5 and again["rows"] == 12
    assert again["tasks"]["dog"] == {
        "known": 6,
        "positive": 6,
        "auc": None,
        "average_precision": 1.0,
        "accuracy": 0.5,
    }
    assert set(again["tasks"]["bird"].values()) == {0, None}
    assert list(again["tasks"]) == list(report.tasks)


def test_an_undefined_mean_is_null_in_json():
    report = Report(1, {"a": TaskScores(0, 0, NAN, NAN, NAN)})
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["macro_auc"] is None


def test_the_table_has_a_line_for_every_task_and_a_dash_for_undefined_scores(report):
    rows = cells(report)
    assert rows["cat"] == ["10", "4", "0.750", "0.500", "0.800"]
    assert rows["dog"] == ["6", "6", "–", "1.000", "0.500"]
    assert rows["bird"] == ["0", "0", "–", "–", "–"]


def test_the_table_ends_with_the_means_of_the_defined_scores(report):
    rows = cells(report)
    assert list(rows)[-1] == "mean"
    assert rows["mean"] == ["", "", "0.500", "0.600", "0.500"]


@pytest.mark.parametrize("name", ["a[b]", "[red]light", "[/x]", "12", "信号", ":car:"])
def test_a_name_stands_in_the_table_as_it_is(name):
    report = Report(1, {name: TaskScores(2, 1, 1.0, 1.0, 1.0)})
    assert cells(report)[name] == ["2", "1", "1.000", "1.000", "1.000"]
