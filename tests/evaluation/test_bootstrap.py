"""Percentile intervals: which rows are drawn, and what becomes of undefined scores."""

import numpy as np
import pytest
import reference
from test_evaluate import MIXED, mixed_data, scored, scored_mixed

from kerasmtl.evaluation.bootstrap import intervals
from kerasmtl.evaluation.report import BinaryScores, Report

NAN = float("nan")


def report_of_counts(score):
    """A report whose accuracy is a score of how often each row was drawn."""
    return lambda counts: Report(
        len(counts), {"a": BinaryScores(len(counts), 1, NAN, NAN, score(counts))}
    )


def test_each_draw_has_as_many_rows_as_the_data_and_whole_groups():
    drawn = []

    def score(counts):
        drawn.append(counts)
        return float(counts[0])

    found = intervals(report_of_counts(score), 8, 20, seed=1)
    assert found.draws == 20 and all(counts.sum() == 8 for counts in drawn)
    values = [float(counts[0]) for counts in drawn]
    expected = np.percentile(values, (2.5, 97.5))
    interval = found.tasks["a"]["accuracy"]
    np.testing.assert_allclose((interval.low, interval.high), expected)
    drawn.clear()
    groups = np.array(["x", "y", "x", "z", "y", "x"])
    intervals(report_of_counts(score), 6, 20, seed=1, groups=groups)
    for counts in drawn:
        assert all(len(set(counts[groups == group])) == 1 for group in "xyz")
        assert sum(counts[groups == group][0] for group in "xyz") == 3


def test_a_draw_is_scored_as_its_rows_repeated():
    y, p = reference.case(rows=40, tasks=2)
    report = scored(y, p, bootstrap=1, seed=5)
    counts = np.bincount(np.random.default_rng(5).integers(0, 40, 40), minlength=40)
    again = scored(np.repeat(y, counts, axis=0), np.repeat(p, counts, axis=0))
    for name, scores in again.tasks.items():
        for score, interval in report.bootstrap.tasks[name].items():
            np.testing.assert_equal(interval.low, getattr(scores, score))
    np.testing.assert_equal(report.bootstrap.macro["binary"]["auc"].low, again.macro_auc)
    np.testing.assert_equal(report.bootstrap.micro["binary"]["f1"].low, again.micro["binary"].f1)


def test_the_interval_of_an_accuracy_is_that_of_a_share():
    y, p = reference.case(rows=1000, tasks=1, known=1.0)
    right = (p[:, 0] >= 0.5) == (y[:, 0] == 1)
    found = intervals(report_of_counts(lambda counts: counts @ right / 1000), 1000, 1000)
    reach = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 1000)
    interval = found.tasks["a"]["accuracy"]
    expected = (right.mean() - reach, right.mean() + reach)
    np.testing.assert_allclose((interval.low, interval.high), expected, atol=4e-3)


def test_the_seed_alone_decides():
    y, p = reference.case(rows=50, tasks=2)
    report = scored(y, p, bootstrap=10, seed=1)
    assert report == scored(y, p, bootstrap=10, seed=1)
    assert report.bootstrap != scored(y, p, bootstrap=10, seed=2).bootstrap


def test_draws_that_define_no_score_are_counted():
    y, p = reference.case(rows=40, tasks=2, known=1.0)
    y[:, 0] = 0
    y[3, 0] = 1
    report = scored(y, p, bootstrap=100)
    rare = report.bootstrap.tasks["task 0"]["auc"]
    # One positive of 40 is not drawn in (39/40)^40 = 36 % of the draws.
    assert 20 < rare.undefined < 55 and np.isfinite([rare.low, rare.high]).all()
    assert report.bootstrap.tasks["task 0"]["accuracy"].undefined == 0
    assert report.bootstrap.macro["binary"]["auc"].undefined == 0
    y[:, 0] = NAN
    none = scored(y, p, bootstrap=5).bootstrap.tasks["task 0"]["auc"]
    assert none.undefined == 5 and np.isnan([none.low, none.high]).all()


def test_all_kinds_have_intervals_and_a_recall_only_where_it_is_asked_for():
    found = scored_mixed(*mixed_data(), bootstrap=5).bootstrap
    assert list(found.tasks) == [task if isinstance(task, str) else task.name for task in MIXED]
    assert set(found.tasks["colour"]) == {"accuracy", "auc", "log_loss"}
    assert set(found.tasks["size"]) == {"mae", "rmse", "r2"}
    assert set(found.micro["multiclass"]) == {"accuracy", "log_loss"}
    assert found.tasks["size"] == found.macro["regression"]
    assert "precision_at_recall" not in found.tasks["cat"]
    y, p = reference.case(rows=100, tasks=2)
    report = scored(y, p, bootstrap=40, recall=0.8)
    interval = report.bootstrap.tasks["task 0"]["precision_at_recall"]
    assert interval.low <= report.tasks["task 0"].precision_at_recall <= interval.high


@pytest.mark.parametrize("rows", [60, 600])
def test_intervals_contain_the_score(rows):
    y, p = reference.case(rows=rows, tasks=2)
    report = scored(y, p, bootstrap=60)
    for name, scores in report.tasks.items():
        for score, interval in report.bootstrap.tasks[name].items():
            # The mean of |noise| grows when rows repeat: a resampled ECE is above its score.
            if score != "ece":
                assert interval.low <= getattr(scores, score) <= interval.high
