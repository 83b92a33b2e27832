"""Paired bootstrap intervals and power laws."""

import numpy as np
import pytest
from sklearn.metrics import r2_score, roc_auc_score

import kerasmtl as kt
from kerasmtl.advice.statistics import Bootstrap, Estimate, catch_up, curves, estimate, power_law
from kerasmtl.advice.statistics import weighted_score as weighted
from kerasmtl.evaluation.report import main_score

SIZES = np.array([50, 100, 200, 400, 800])
RNG = np.random.default_rng(0)
WEIGHTS = RNG.multinomial(80, np.full(80, 1 / 80), 30).astype(float)


def test_scores_of_draws_are_those_of_scikit_learn():
    y = RNG.integers(0, 2, 80).astype(float)
    p = np.round(RNG.random(80) + 0.3 * y, 1)  # with ties
    expected = [roc_auc_score(y, p, sample_weight=w) for w in WEIGHTS]
    assert np.allclose(weighted("binary", y, p, WEIGHTS), expected)
    number = y + RNG.normal(size=80)
    expected = [r2_score(number, p, sample_weight=w) for w in WEIGHTS]
    assert np.allclose(weighted("regression", number, p, WEIGHTS), expected)
    classes = RNG.random((80, 2))
    expected = [np.average(classes.argmax(1) == y, weights=w) for w in WEIGHTS]
    assert np.allclose(weighted("multiclass", y, classes, WEIGHTS), expected)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_the_weighted_score_is_the_main_score_of_rows_that_are_drawn(kind):
    y = RNG.integers(0, 3 if kind == "multiclass" else 2, 80).astype(float)
    p = RNG.random((80, 3)) if kind == "multiclass" else np.round(RNG.random(80), 1)
    expected = []
    for counts in WEIGHTS.astype(int):
        drawn = np.repeat(np.arange(80), counts)
        expected.append(main_score(kind, y[drawn], p[drawn]))
    assert np.allclose(weighted(kind, y, p, WEIGHTS), expected)


def test_a_label_that_is_uncertain_is_not_scored():
    tasks, y = [kt.Task("a", uncertain="u", uncertain_as=0.5)], np.array([[0.0], [1.0], [0.5]])
    bootstrap = Bootstrap(tasks, y, None, 1, draws=2)
    assert bootstrap.scores([{"a": np.array([0.2, 0.4, 0.3])}])[0, 0] == 1.0
    assert bootstrap.scores([{"a": np.array([0.2, 0.4, 0.9])}])[0, 0] == 1.0


def test_undefined_scores_are_nan():
    assert np.isnan(weighted("binary", np.ones(80), RNG.random(80), WEIGHTS)).all()
    assert np.isnan(weighted("regression", np.ones(80), RNG.random(80), WEIGHTS)).all()
    assert np.isnan(weighted("binary", np.ones(0), np.ones(0), WEIGHTS[:, :0])).all()


def sides(groups=None):
    """A bootstrap of three seeds, and the predictions of two models of different quality."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, (60, 2)).astype("float32")
    y[rng.random(y.shape) < 0.3] = np.nan
    tasks = (kt.Task("a"), kt.Task("b"))
    good, poor = (
        [
            {t.name: s * np.nan_to_num(y[:, i]) + rng.random(60) for i, t in enumerate(tasks)}
            for _ in range(3)
        ]
        for s in (0.8, 0.1)
    )
    return Bootstrap(tasks, y, groups, 3, draws=40), y, good, poor


def test_paired_differences_are_those_of_a_direct_computation():
    bootstrap, y, good, poor = sides()
    found = bootstrap.macro(bootstrap.scores(good)) - bootstrap.macro(bootstrap.scores(poor))
    expected = []
    for rows, seeds in zip(bootstrap.rows, bootstrap.seeds, strict=True):
        each = []
        for at, name in enumerate("ab"):
            known = ~np.isnan(y[:, at])
            for seed, share in enumerate(seeds):
                of = [
                    roc_auc_score(y[known, at], side[seed][name][known], sample_weight=rows[known])
                    for side in (good, poor)
                ]
                each.append(share * (of[0] - of[1]))
        expected.append(sum(each) / 2)
    assert np.allclose(found, expected)
    found = estimate(found)
    assert found.value == pytest.approx(expected[0]) and found.verdict == "yes"
    assert np.allclose(found[1:], np.percentile(expected[1:], [2.5, 97.5]))


def test_groups_are_drawn_whole():
    bootstrap, *_ = sides(groups=np.arange(60) // 6)
    by_group = bootstrap.rows.reshape(-1, 10, 6)
    assert (by_group == by_group[:, :, :1]).all() and (by_group.std(axis=1)[1:] > 0).any()


def test_a_task_that_nobody_predicts_is_left_out_of_the_mean():
    bootstrap, _, good, _ = sides()
    scores = bootstrap.scores([{"a": each["a"]} for each in good])
    assert np.isnan(scores[1]).all()
    assert np.allclose(bootstrap.macro(scores), scores[0])
    assert np.isnan(bootstrap.macro(scores[1:])).all()


@pytest.mark.parametrize(
    "low, high, verdict", [(1, 2, "yes"), (-2, -1, "no"), (-1, 1, "undecided")]
)
def test_an_interval_that_holds_0_decides_nothing(low, high, verdict):
    assert Estimate((low + high) / 2, low, high).verdict == verdict
    assert Estimate(np.nan, np.nan, np.nan).verdict == "undecided"


@pytest.mark.parametrize("c, a, b", [(0.1, 2.0, 0.5), (0.0, 0.9, 0.2), (0.2, 8.0, 1.0)])
def test_a_power_law_is_found_again(c, a, b):
    assert power_law(SIZES, c + a * SIZES**-b) == pytest.approx((c, a, b), abs=1e-3)


def test_no_power_law_is_claimed_of_few_sizes_or_rising_errors():
    assert power_law(SIZES[:3], 0.1 + SIZES[:3] ** -0.5) is None
    assert power_law(SIZES, 0.2 + 0.0001 * SIZES) is None
    assert power_law(SIZES, np.full(5, 0.3)) is None
    assert power_law(SIZES, np.full(5, np.nan)) is None


def test_catching_up_has_the_interval_of_its_draws():
    errors = 0.1 + 2 * SIZES**-0.5
    rng = np.random.default_rng(0)
    draws = np.vstack([errors, errors + rng.normal(0, 0.002, (100, 5))])
    found = catch_up(SIZES, draws, np.full(101, 0.15))
    assert found.value == pytest.approx(1600, rel=1e-3) and found.low < 1600 < found.high
    assert catch_up(SIZES, draws, np.full(101, 0.1)).value == np.inf  # that is the limit
    assert catch_up(SIZES, draws, np.full(101, 0.105)).value == np.inf  # 160,000: too far
    assert catch_up(SIZES[:3], draws[:, :3], np.full(101, 0.15)) is None


def test_curves_have_the_points_that_are_defined():
    draws, none = np.array([0.7, 0.6, 0.8]), np.full(3, np.nan)
    (found,) = curves({"a": {4: draws, 2: draws, 8: none}, "b": {}, "c": {4: none}})
    assert found["label"] == "a" and found["x"] == [2, 4] and found["y"] == [0.7, 0.7]
    assert found["low"][0] < 0.7 < found["high"][0]
