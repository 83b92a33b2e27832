"""LogME and the ridge probe."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

import kerasmtl as kt
from kerasmtl.advice.transferability import mean_score, ridge_probe


def drawn(rows=60, columns=5, tasks=2, seed=0):
    """Features, and labels that they say something of."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, columns))
    labels = features[:, :tasks] + rng.normal(size=(rows, tasks)) > 0
    return features, labels.astype("float32")


def brute_evidence(features, y):
    """The best log evidence per label: the marginal density of y, maximized numerically."""

    def loss(logs):
        a, b = np.exp(logs)
        covariance = np.eye(len(y)) / b + features @ features.T / a
        return -multivariate_normal.logpdf(y, np.zeros(len(y)), covariance)

    options = {"xatol": 1e-9, "fatol": 1e-10, "maxiter": 4000}
    return -minimize(loss, [0.0, 0.0], method="Nelder-Mead", options=options).fun / len(y)


@pytest.mark.parametrize("rows, columns", [(60, 5), (20, 30)])
def test_logme_is_the_largest_evidence(rows, columns):
    features, labels = drawn(rows, columns)
    features = features + 0.5
    labels[:7, 1] = np.nan
    expected = [
        brute_evidence(features[known], labels[known, task])
        for task in range(2)
        for known in [~np.isnan(labels[:, task])]
    ]
    assert kt.advice.logme(features, labels) == pytest.approx(np.mean(expected), abs=1e-5)


def test_logme_takes_classes_one_by_one():
    features, _ = drawn()
    labels = np.digitize(features[:, :1], [-0.5, 0.5]).astype("float32")
    task = kt.Task("grade", "multiclass", classes=["a", "b", "c"])
    each = [kt.advice.logme(features, (labels == c).astype("float32")) for c in range(3)]
    assert kt.advice.logme(features, labels, [task]) == pytest.approx(np.mean(each))


def test_features_that_say_more_have_the_higher_score():
    features, labels = drawn(200)
    noise = np.random.default_rng(1).normal(size=features.shape)
    assert kt.advice.logme(features, labels) > kt.advice.logme(noise, labels)
    told, untold = (mean_score(ridge_probe(x, labels, ["a", "b"])) for x in (features, noise))
    assert told > 0.75 and abs(untold - 0.5) < 0.12


def test_labels_that_are_uncertain_are_left_out_of_the_probe():
    features, labels = drawn(200)
    expected = ridge_probe(features[20:], labels[20:], ["a", "b"])
    labels[:20, 0], labels[:20, 1] = 0.5, np.nan
    assert ridge_probe(features, labels, ["a", "b"]) == expected


@pytest.mark.parametrize("columns", [0.0, 1.0])
def test_constant_features_say_nothing_and_break_nothing(columns):
    _, labels = drawn()
    features = np.full((len(labels), 3), columns)
    assert np.isfinite(kt.advice.logme(features, labels))
    assert kt.advice.ridge_probe(features, labels, ["a", "b"])["a"].score == pytest.approx(0.5)


def test_one_answer_no_answer_and_few_answers_have_no_score():
    features, labels = drawn(tasks=3)
    labels[:, 0], labels[:, 1], labels[3:, 2] = 1, np.nan, np.nan
    labels[:3, 2] = [0, 0, 1]
    found = kt.advice.ridge_probe(features, labels, ["one", "none", "few"])
    assert [each.folds for each in found.values()] == [0, 0, 0]
    assert "0 known" in found["none"].note and np.isnan(mean_score(found))
    assert np.isnan(kt.advice.logme(features, labels[:, :2]))


def test_folds_keep_groups_whole():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    features = rng.normal(size=(20, 4))[groups]  # which only say whose row it is
    labels = rng.permutation(np.arange(20) % 2)[groups, None].astype("float32")
    alone = kt.advice.ridge_probe(features, labels, ["a"])["a"]
    whole = kt.advice.ridge_probe(features, labels, ["a"], groups)["a"]
    assert whole.folds >= 2 and whole.score < alone.score
    both = kt.advice.ridge_probe(features, labels, ["a"], np.arange(200) % 2)["a"]
    assert both.folds == 2
    apart = kt.advice.ridge_probe(features, labels, ["a"], labels[:, 0])["a"]
    assert apart.folds == 0  # each class is one group


def test_a_probe_of_numbers_and_of_classes():
    features, _ = drawn(200)
    number = features @ [3, 1, 0, 0, 0]
    labels = np.stack([number, number > 0], axis=1)
    tasks = [kt.Task("x", "regression"), kt.Task("c", "multiclass", classes=["no", "yes"])]
    found = kt.advice.ridge_probe(features, labels, tasks)
    assert found["x"].score > 0.99 and found["x"].unit == "R2"
    assert found["c"].score > 0.9 and found["c"].unit == "accuracy"


@pytest.mark.parametrize(
    "features, labels, named",
    [
        (np.zeros((3, 2)), np.zeros((4, 1)), "features"),
        (np.full((3, 2), np.nan), np.zeros((3, 1)), "features"),
        (np.zeros((3, 2)), np.zeros((3, 2)), "tasks"),
    ],
)
def test_wrong_shapes_are_named(features, labels, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        kt.advice.ridge_probe(features, labels, ["a"])
