"""Ranking metrics: how near the histogram comes to exact scores."""

import keras
import numpy as np
import pytest
import reference
import reference_scores

import kerasmtl as kt

NAN = float("nan")


def updated(metric, y, p, batch=None, weight=None):
    for start in range(0, len(y), batch or len(y)):
        rows = slice(start, start + (batch or len(y)))
        metric.update_state(y[rows], p[rows], None if weight is None else weight[rows])
    return metric


def in_bins(y, p, bins):
    """By bin, from the highest down: known positives and negatives of one task."""
    label, q = reference.cells(y, p)
    logit = np.log(q) - np.log1p(-q)
    chosen = np.minimum(((0.5 - logit / 32) * bins).astype(int), bins - 1)
    return (np.bincount(chosen, label == wanted, bins) for wanted in (1, 0))


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("known", [0.1, 1.0])
def test_auc_is_that_of_the_known_labels_up_to_the_bins(known, logits):
    y, p = reference.case(rows=4000, tasks=6, known=known, logits=logits)
    metric = updated(kt.metrics.MaskedAUC(from_logits=logits), y, p, batch=1024)
    np.testing.assert_allclose(metric.per_task(), reference.auc_per_task(y, p), atol=2e-3)


@pytest.mark.parametrize("bins", [16, 100, 1024])
def test_scores_are_those_of_rounded_predictions_and_the_auc_within_its_bound(bins):
    y, p = reference.case(rows=2000, tasks=3)
    auc = updated(kt.metrics.MaskedAUC(num_bins=bins), y, p).per_task()
    average = updated(kt.metrics.MaskedAveragePrecision(num_bins=bins), y, p).per_task()
    at_recall = updated(kt.metrics.MaskedPrecisionAtRecall(0.8, num_bins=bins), y, p).per_task()
    for column, exact in enumerate(reference.auc_per_task(y, p)):
        positives, negatives = in_bins(y[:, column], p[:, column], bins)
        bound = (positives * negatives).sum() / (2 * positives.sum() * negatives.sum())
        # A logit at an edge may fall to either side in float32.
        assert abs(auc[column] - exact) <= bound + 1e-5
        hits, seen = positives.cumsum(), (positives + negatives).cumsum()
        precision = hits / np.maximum(seen, 1)
        expected = (precision * positives).sum() / positives.sum()
        np.testing.assert_allclose(average[column], expected, atol=1e-4)
        best = precision[hits / positives.sum() >= 0.8].max()
        np.testing.assert_allclose(at_recall[column], best, atol=1e-3)
        if bins == 1024:
            label, q = reference.cells(y[:, column], p[:, column])
            exact = reference_scores.average_precision(label, q)
            np.testing.assert_allclose(average[column], exact, atol=5e-3)


@pytest.mark.parametrize("recall", [1.0, 0.7])
def test_a_recall_counts_as_reached_when_it_is_met_exactly_or_by_fractional_weights(recall):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 2, (30, 1)).astype("float32")
        # A bin of its own for each.
        p = rng.permutation(reference.sigmoid(np.linspace(-8, 8, 30)))[:, None].astype("float32")
        weight = rng.random(30) if seed else np.ones(30)
        found = updated(kt.metrics.MaskedPrecisionAtRecall(recall), y, p, weight=weight).result()
        order = np.argsort(-p[:, 0])
        hits = np.cumsum((y[:, 0] * weight)[order])
        precision = hits / np.cumsum(weight[order])
        expected = precision[hits >= recall * hits[-1] * (1 - 1e-12)].max()
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("code", [NAN, -1.0])
def test_the_auc_of_keras_is_wrong_where_labels_are_missing(code):
    """The reason for this class: if this fails, Keras has learned to mask."""
    y, anything = reference.case(rows=400, tasks=4, known=0.5)
    perfect = np.where(np.isnan(y), anything, 0.45 + 0.1 * y)
    assert updated(kt.metrics.MaskedAUC(missing=-1), y, perfect).result() == 1.0
    stock = keras.metrics.AUC(multi_label=True, num_labels=4)
    stock.update_state(np.where(np.isnan(y), np.float32(code), y), perfect)
    assert not stock.result() > 0.9


def test_saturated_and_infinite_predictions_are_counted():
    y = np.array([[1], [0], [1], [0]], "float32")
    z = np.array([[np.inf], [-np.inf], [1e30], [-40]], "float32")
    p = np.array([[1], [0], [1], [0]], "float32")
    for values, logits in ((z, True), (p, False)):
        assert updated(kt.metrics.MaskedAUC(from_logits=logits), y, values).result() == 1.0


def test_f1_without_a_known_positive_is_undefined_whatever_is_predicted():
    y = np.array([[0, 1], [0, 0], [NAN, 1]], "float32")
    for p in (0.1, 0.9):
        assert np.isnan(updated(kt.metrics.MaskedF1(), y, np.full_like(y, p)).per_task()[0])


@pytest.mark.parametrize("threshold", [0.3, 0.5])
@pytest.mark.parametrize(
    ("kind", "expected"), [(kt.metrics.MaskedBinaryAccuracy, 0.25), (kt.metrics.MaskedF1, 0.4)]
)
def test_a_probability_at_the_threshold_is_a_one(kind, expected, threshold):
    y = np.array([[0.0], [1.0], [0.0], [0.0]], "float32")
    metric = updated(kind(threshold=threshold), y, np.full((4, 1), threshold, "float32"))
    assert float(metric.result()) == pytest.approx(expected)


def test_logits_and_their_probabilities_have_the_same_scores():
    y, z = reference.case(rows=200, tasks=3, logits=True)
    p = reference.sigmoid(z).astype("float32")
    for name in ("MaskedBinaryAccuracy", "MaskedF1", "MaskedBrier", "MaskedECE"):
        kind = getattr(kt.metrics, name)
        logits = updated(kind(from_logits=True), y, z).per_task()
        np.testing.assert_allclose(logits, updated(kind(), y, p).per_task(), atol=1e-3)


def test_r2_keeps_its_digits_far_from_zero_and_needs_labels_that_differ():
    rng = np.random.default_rng(0)
    y = 1e5 + rng.normal(size=(400, 1))
    p = y + rng.normal(scale=0.5, size=y.shape)
    metric = updated(kt.metrics.MaskedR2(), y, p, batch=64)
    expected = reference_scores.r2(y[:, 0], p[:, 0])
    np.testing.assert_allclose(metric.per_task(), [expected], rtol=1e-3)
    for level in (0.1, 1e6):
        y = np.full((1000, 1), level)
        assert np.isnan(updated(kt.metrics.MaskedR2(), y, y + 1).result())


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_classes_come_with_or_without_a_dimension(shape):
    y = np.array([2, NAN, 0, 1], "float32").reshape(shape)
    p = np.array([[0, 0, 1], [NAN] * 3, [0, 1, 0], [0, 1, 0]], "float32")
    metric = updated(kt.metrics.MaskedCategoricalAccuracy(), y, p)
    np.testing.assert_allclose(metric.per_task(), [2 / 3], rtol=1e-6)
