"""Intervals: a draw of rows scored by weights is that of the rows repeated."""

import tracemalloc

import numpy as np
import pytest
import reference
import reference_scores as truth
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from test_evaluation import MIXED, mixed_data, scored, scored_mixed

from kerasmtl.evaluation import bootstrap

NAN = float("nan")
few = settings(max_examples=15, deadline=None, derandomize=True)


def repeated(weight, *arrays):
    return [np.repeat(array, weight, axis=0) for array in arrays]


@few
@given(seed=st.integers(0, 9999), rows=st.integers(1, 30), ties=st.booleans())
def test_weighted_binary_scores_are_those_of_repeated_rows(seed, rows, ties):
    rng = np.random.default_rng(seed)
    y, p = rng.integers(0, 2, rows) * 1.0, rng.random(rows).astype("float32")
    p = np.round(p, 1) if ties else p
    weights = rng.integers(0, 3, (4, rows))
    found = bootstrap.binary(np.arange(rows), y, p, 0.5, 0.7)(weights * 1.0)
    for draw, weight in enumerate(weights):
        labels, predictions = repeated(weight, y, p)
        names = ("auc", "average_precision", "accuracy", "f1", "brier", "ece")
        for name in (*names, "precision_at_recall"):
            expected = getattr(truth, name)(labels, predictions)
            np.testing.assert_allclose(found[name][draw], expected, rtol=1e-5, atol=1e-7)


@few
@given(seed=st.integers(0, 9999), rows=st.integers(1, 30))
def test_weighted_scores_of_other_kinds_are_those_of_repeated_rows(seed, rows):
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 3, (4, rows))
    y, p = rng.integers(0, 3, rows) * 1.0, rng.dirichlet(np.ones(3), rows)
    found = bootstrap.multiclass(np.arange(rows), y, p)(weights * 1.0)
    y_number, p_number = rng.normal(1000, 1, rows), rng.normal(1000, 1, rows)
    numbers = bootstrap.regression(np.arange(rows), y_number, p_number)(weights * 1.0)
    for draw, weight in enumerate(weights):
        labels, predictions = repeated(weight, y, p)
        both = [c for c in range(3) if 0 < (labels == c).sum() < len(labels)]
        aucs = [metrics.roc_auc_score(labels == c, predictions[:, c]) for c in both]
        np.testing.assert_allclose(found["auc"][draw], np.mean(aucs) if aucs else NAN)
        expected = truth.categorical_accuracy(labels, predictions)
        np.testing.assert_allclose(found["accuracy"][draw], expected)
        loss = metrics.log_loss(labels, predictions, labels=range(3)) if len(labels) else NAN
        np.testing.assert_allclose(found["log_loss"][draw], loss)
        for name in ("mae", "rmse", "r2"):
            expected = getattr(truth, name)(*repeated(weight, y_number, p_number))
            np.testing.assert_allclose(numbers[name][draw], expected, rtol=1e-6)


def test_intervals_hold_the_score_and_narrow_with_the_rows():
    widths = []
    for rows in (60, 1500):
        y, p = reference.case(rows=rows, tasks=2)
        report = scored(y, p, bootstrap=200)
        assert report.bootstrap.draws == 200
        for name, scores in report.tasks.items():
            for score, interval in report.bootstrap.tasks[name].items():
                assert interval.low < interval.high and interval.undefined == 0
                # The mean of |noise| grows when rows repeat: a resampled ECE lies above its score.
                if score != "ece":
                    assert interval.low <= getattr(scores, score) <= interval.high
        macro, micro = report.bootstrap.macro["binary"], report.bootstrap.micro["binary"]
        assert macro["auc"].low <= report.macro_auc <= macro["auc"].high
        assert micro["auc"].low <= report.micro["binary"].auc <= micro["auc"].high
        widths.append(macro["auc"].high - macro["auc"].low)
    # As 1/sqrt(rows), which is a fifth here.
    assert 0.1 < widths[1] / widths[0] < 0.4


def test_the_interval_of_an_accuracy_is_that_of_a_share():
    y, p = reference.case(rows=1000, tasks=1, known=1.0)
    report = scored(y, p, bootstrap=1000)
    share = report.tasks["task 0"].accuracy
    reach = 1.96 * np.sqrt(share * (1 - share) / 1000)
    interval = report.bootstrap.tasks["task 0"]["accuracy"]
    np.testing.assert_allclose(
        (interval.low, interval.high), (share - reach, share + reach), atol=4e-3
    )


def test_the_seed_alone_decides(monkeypatch):
    y, p = reference.case(rows=50, tasks=2)
    report = scored(y, p, bootstrap=40, seed=1)
    assert report == scored(y, p, bootstrap=40, seed=1)
    assert report.bootstrap != scored(y, p, bootstrap=40, seed=2).bootstrap
    monkeypatch.setattr(bootstrap, "CELLS", 350)
    few_at_a_time = scored(y, p, bootstrap=40, seed=1).bootstrap
    assert few_at_a_time.macro["binary"]["auc"] == report.bootstrap.macro["binary"]["auc"]


def test_draws_that_define_no_score_are_counted():
    y, p = reference.case(rows=40, tasks=2, known=1.0)
    y[:, 0] = 0
    y[3, 0] = 1
    report = scored(y, p, bootstrap=500)
    rare = report.bootstrap.tasks["task 0"]["auc"]
    # One positive of 40 is not drawn in (39/40)^40 = 36 % of the draws.
    assert 130 < rare.undefined < 235 and np.isfinite([rare.low, rare.high]).all()
    assert report.bootstrap.tasks["task 0"]["accuracy"].undefined == 0
    assert report.bootstrap.macro["binary"]["auc"].undefined == 0
    y[:, 0] = NAN
    none = scored(y, p, bootstrap=20).bootstrap.tasks["task 0"]["auc"]
    assert none.undefined == 20 and np.isnan([none.low, none.high]).all()


def test_rows_are_drawn_not_cells():
    """A task twice has the interval of the mean that it has alone."""
    y, p = reference.case(rows=80, tasks=1)
    found = scored(np.repeat(y, 2, 1), np.repeat(p, 2, 1), bootstrap=50).bootstrap
    assert found.tasks["task 0"] == found.tasks["task 1"]
    for score, interval in found.macro["binary"].items():
        alone = found.tasks["task 0"][score]
        np.testing.assert_allclose((interval.low, interval.high), (alone.low, alone.high))


def test_a_precision_at_recall_has_an_interval_where_it_is_asked_for():
    y, p = reference.case(rows=200, tasks=2)
    report = scored(y, p, bootstrap=100, recall=0.8)
    interval = report.bootstrap.tasks["task 0"]["precision_at_recall"]
    assert interval.low <= report.tasks["task 0"].precision_at_recall <= interval.high
    assert "precision_at_recall" in report.bootstrap.macro["binary"]
    assert "precision_at_recall" not in scored(y, p, bootstrap=2).bootstrap.tasks["task 0"]


def test_no_more_than_some_numbers_a_cell_are_kept():
    cells = 200_000
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, cells).astype("float32"), rng.random(cells, "float32")
    rows = np.arange(cells) % 1000
    tracemalloc.start()
    try:
        weigh = bootstrap.binary(rows, y, p, 0.5)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < cells * 8 * 14
    assert np.isfinite(weigh(np.ones((1, 1000)))["ece"]).all()


def test_all_kinds_have_intervals():
    found = scored_mixed(*mixed_data(), bootstrap=30).bootstrap
    assert list(found.tasks) == [task if isinstance(task, str) else task.name for task in MIXED]
    assert set(found.tasks["colour"]) == {"accuracy", "auc", "log_loss"}
    assert set(found.tasks["size"]) == {"mae", "rmse", "r2"}
    assert set(found.micro["multiclass"]) == {"accuracy", "log_loss"}
    assert found.tasks["size"] == found.macro["regression"]


def test_rows_of_a_group_are_drawn_together():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, 60) * 1.0, rng.random(60).astype("float32")
    found, part = [], {"a": bootstrap.binary(np.arange(60), y, p, 0.5, None)}
    thrice = {"a": bootstrap.binary(np.arange(180), *repeated(3, y, p), 0.5, None)}
    for rows, scores, groups in ((60, part, None), (180, thrice, np.repeat(np.arange(60), 3))):
        found.append(bootstrap.intervals(rows, scores, {"binary": ["a"]}, {}, 50, 0, groups))
    one, three = (result.tasks["a"] for result in found)
    for name in ("auc", "accuracy", "brier"):
        assert (three[name].low, three[name].high) == pytest.approx((one[name].low, one[name].high))
    alone = bootstrap.intervals(180, thrice, {"binary": ["a"]}, {}, 50, 0).tasks["a"]["auc"]
    assert alone.high - alone.low < three["auc"].high - three["auc"].low


def test_groups_are_one_a_row():
    with pytest.raises(ValueError, match="`groups` does not fit. Expected one for each of 4 rows"):
        scored(np.ones((4, 1)), np.ones((4, 1)), bootstrap=5, groups=["a"])
