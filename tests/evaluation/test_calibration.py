"""Thresholds against a search over all of them, temperatures against scikit-learn."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

from kerasmtl.evaluation.calibration import (
    Decision,
    calibrated,
    decide,
    fit_class_temperature,
    fit_temperatures,
    fit_thresholds,
    parse_rule,
)
from kerasmtl.export.signatures import answers
from kerasmtl.tasks import Task

NAN = float("nan")


def cells(seed=0, rows=60, tasks=2, missing=0.3):
    """Labels, some missing, and probabilities that know something of them."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, tasks))
    labels = (rng.random((rows, tasks)) < expit(1.5 * scores)).astype("float32")
    labels[rng.random(labels.shape) < missing] = np.nan
    return labels, expit(scores + rng.normal(0, 0.5, scores.shape)).astype("float32")


def known_column(labels, p, column):
    known = ~np.isnan(labels[:, column])
    return labels[known, column], p[known, column]


def every_cut(y, p):
    """Precision, recall and F1 at every threshold that decides something else."""
    cuts = np.unique(p)
    decided = [p >= cut for cut in cuts]
    precision = np.array([metrics.precision_score(y, d, zero_division=0) for d in decided])
    recall = np.array([metrics.recall_score(y, d) for d in decided])
    return precision, recall, 2 * precision * recall / np.maximum(precision + recall, 1e-9)


def test_f1_is_the_best_of_all_thresholds():
    labels, p = cells(1)
    for column, found in enumerate(fit_thresholds(labels, p)):
        y, q = known_column(labels, p, column)
        best = every_cut(y, q)[2].max()
        assert metrics.f1_score(y, q >= found.value) == pytest.approx(best, abs=1e-12)
        assert (found.rule, found.known, found.note) == ("f1", len(y), None)


@pytest.mark.parametrize("wanted", [0.7, 1.0])
def test_a_demanded_precision_comes_with_the_best_recall(wanted):
    labels, p = cells(1)
    for column, found in enumerate(fit_thresholds(labels, p, ("precision", wanted))):
        y, q = known_column(labels, p, column)
        precision, recall, _ = every_cut(y, q)
        decided = q >= found.value
        if (precision >= wanted).any():
            assert metrics.precision_score(y, decided) >= wanted and found.note is None
            assert metrics.recall_score(y, decided) == recall[precision >= wanted].max()
        else:
            assert metrics.precision_score(y, decided) == precision.max()
            assert "no threshold has a precision" in found.note


@pytest.mark.parametrize("wanted", [0.5, 0.9])
def test_a_demanded_recall_comes_with_the_best_precision(wanted):
    labels, p = cells(2)
    for column, found in enumerate(fit_thresholds(labels, p, f"recall>={wanted}")):
        y, q = known_column(labels, p, column)
        precision, recall, _ = every_cut(y, q)
        decided = q >= found.value
        assert metrics.recall_score(y, decided) >= wanted
        assert metrics.precision_score(y, decided) == precision[recall >= wanted].max()


def test_predictions_for_missing_labels_change_nothing():
    labels, p = cells(3)
    other = np.where(np.isnan(labels), np.random.default_rng(9).random(p.shape), p)
    assert fit_thresholds(labels, p) == fit_thresholds(labels, other)
    assert fit_temperatures(labels, p) == fit_temperatures(labels, other)


def test_few_known_labels_give_the_default_and_say_so():
    y = np.array([1, 1, 1, 1, *[0] * 50, *[np.nan] * 9])
    p = np.linspace(0.1, 0.9, len(y))
    (threshold,), (temperature,) = fit_thresholds(y, p), fit_temperatures(y, p)
    assert threshold.value == 0.5 and "4 known labels of one class are too few" in threshold.note
    assert temperature.value == 1.0 and "too few" in temperature.note
    (none,) = fit_thresholds(y * np.nan, p)
    assert (none.value, none.known) == (0.5, 0)


def test_a_threshold_lies_between_the_probabilities_that_it_divides():
    y, p = np.repeat([0.0, 1.0], 10), np.repeat([0.2, 0.6], 10)
    assert fit_thresholds(y, p)[0].value == pytest.approx(0.4)
    assert fit_thresholds(y, np.full(20, 0.3))[0].value == pytest.approx(0.299)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_a_temperature_is_that_of_a_logistic_regression_of_the_logit(factor):
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, 4000)
    y = (rng.random(4000) < expit(scores)).astype("float32")
    y[::5] = np.nan
    p = expit(scores * factor)
    (found,) = fit_temperatures(y, p)
    known = ~np.isnan(y)
    slope = LogisticRegression(C=1e9, fit_intercept=False, tol=1e-8).fit(
        scores[known, None] * factor, y[known]
    )
    assert found.value == pytest.approx(1 / slope.coef_[0, 0], rel=1e-3)
    assert found.known == 3200 and found.value == pytest.approx(factor, rel=0.1)


def test_the_temperature_of_classes_is_found_again():
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, (4000, 3))
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    y = np.array([rng.choice(3, p=row) for row in p], "float32")
    y[::4] = np.nan
    sharp = p**2 / (p**2).sum(axis=1, keepdims=True)
    found = fit_class_temperature(y, sharp)
    assert found.value == pytest.approx(2.0, rel=0.08) and found.known == 3000
    np.testing.assert_allclose(calibrated(sharp, 2.0, classes=True), p, atol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_graph_calibrates_and_decides_as_numpy_does(temperature):
    rng = np.random.default_rng(0)
    binary, several = rng.random((20, 1), "float32"), rng.random((20, 3), "float32")
    several /= several.sum(axis=1, keepdims=True)
    binary[:3, 0] = 0, 1, 0.5
    tasks = [Task("a"), Task("kind", "multiclass", ("x", "y", "größe")), Task("n", "regression")]
    decisions = {
        "a": Decision(0.4, temperature),
        "kind": Decision(None, temperature),
        "n": Decision(),
    }
    outputs = {"binary": tf.constant(binary), "kind": tf.constant(several), "n": tf.ones((20, 1))}
    found = answers(outputs, tasks, decisions)
    assert list(found) == ["a", "a_decision", "kind", "kind_decision", "n"]
    expected = calibrated(binary[:, 0], temperature)
    np.testing.assert_allclose(found["a"], expected, atol=2e-6)
    np.testing.assert_array_equal(found["a_decision"], expected >= np.float32(0.4))
    np.testing.assert_allclose(found["kind"], calibrated(several, temperature, True), atol=2e-6)
    names = np.array(["x", "y", "größe"])[several.argmax(axis=1)]
    assert [name.decode() for name in found["kind_decision"].numpy()] == names.tolist()
    if temperature == 1.0:
        np.testing.assert_array_equal(found["a"], binary[:, 0])


def test_thresholds_are_those_of_calibrated_probabilities():
    labels, p = cells(5, rows=300, tasks=1, missing=0)
    y, q = labels[:, 0], calibrated(p[:, 0], 0.25)  # too sure
    found = decide([Task("a")], {"a": (y, q)}, None, calibrate=True)["a"]
    assert found.temperature > 2 and found.rule == "f1"
    best = every_cut(y, q.round(3))[2].max()
    score = metrics.f1_score(y, calibrated(q, found.temperature) >= found.threshold)
    assert score == pytest.approx(best, abs=0.005)


def test_rules_by_task_and_what_has_no_decision():
    labels, p = cells(0)
    tasks = [Task("a"), Task("b"), Task("n", "regression")]
    given = {"a": known_column(labels, p, 0), "b": known_column(labels, p, 1)}
    found = decide(tasks, given, {"a": 0.25, "b": ("recall", 0.9)}, calibrate=False)
    assert (found["a"].threshold, found["a"].rule, found["a"].temperature) == (0.25, "fixed", 1.0)
    assert found["b"].rule == "recall>=0.9" and found["n"] == Decision()
    assert decide(tasks, None, None, False)["b"].threshold == 0.5
    several = Task("k", "multiclass", ("x", "y"))
    assert decide([several], None, None, False)["k"] == Decision(None, 1.0, "argmax")


@pytest.mark.parametrize("rule", ["best", ("precision", 1.5), ("f1", 0.5), 2, True, None, "recall"])
def test_an_unknown_rule_is_named(rule):
    with pytest.raises(ValueError, match="`thresholds`"):
        parse_rule(rule)


def test_wrong_arguments_are_named():
    labels, p = cells()
    with pytest.raises(ValueError, match="`p`"):
        fit_thresholds(labels, p[:, :1])
    with pytest.raises(ValueError, match="`y_true`"):
        fit_thresholds(labels + 1, p)
    with pytest.raises(ValueError, match="`p`"):
        fit_temperatures(labels, p + 1)
    with pytest.raises(ValueError, match="`validation`"):
        decide([Task("a")], None, "f1", False)
    with pytest.raises(ValueError, match="`validation`"):
        decide([Task("a")], None, None, calibrate=True)
    with pytest.raises(ValueError, match="`thresholds`"):
        decide([Task("a")], None, {"b": 0.5}, False)
