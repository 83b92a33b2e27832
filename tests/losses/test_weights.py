"""Constants of a loss against counts by hand."""

import numpy as np
import pytest

import kerasmtl as kt

NAN = float("nan")
LABELS = np.array(
    [[1, 0, NAN, 1, NAN], [0, 0, NAN, 1, 1], [0, NAN, NAN, NAN, NAN], [0, 0, NAN, 1, 0]], "float32"
)
KNOWN = np.array([4, 3, 3, 2])  # of the tasks that have a label
HAVE = [0, 1, 3, 4]


def test_pos_weight_is_zeros_by_ones_of_the_known_and_1_with_one_class():
    np.testing.assert_allclose(kt.losses.pos_weight(LABELS), [3, 1, 1, 1, 1])


def test_pos_weight_is_clipped_at_both_ends():
    labels = np.zeros((400, 2))
    labels[0, 0] = 1
    labels[1:, 1] = 1
    np.testing.assert_allclose(kt.losses.pos_weight(labels), [100, 0.01])
    np.testing.assert_allclose(kt.losses.pos_weight(labels, limit=5), [5, 0.2])


def test_mean_known_counts_known_labels_per_row():
    assert kt.losses.mean_known(LABELS) == (3 + 4 + 1 + 4) / 4


def test_inverse_counts_average_one_over_tasks_that_have_a_label():
    weights = kt.losses.inverse_known_count(LABELS)
    np.testing.assert_allclose(weights[HAVE] * KNOWN, weights[0] * 4)
    assert weights[2] == 0
    np.testing.assert_allclose(weights.sum(), 4)


def test_the_effective_number_lies_between_equal_weights_and_inverse_counts():
    weights = kt.losses.effective_number
    np.testing.assert_allclose(weights(LABELS, beta=0.0), [1, 1, 0, 1, 1])
    np.testing.assert_allclose(
        weights(LABELS, beta=1 - 1e-9), kt.losses.inverse_known_count(LABELS), rtol=1e-5
    )
    half = 1 / (1 - 0.5**KNOWN)
    np.testing.assert_allclose(weights(LABELS, 0.5)[HAVE], half * 4 / half.sum())


@pytest.mark.parametrize("code", [-1, -99.9])
def test_a_code_is_missing_as_nan_is(code):
    coded = np.where(np.isnan(LABELS), code, LABELS)
    for name in ("pos_weight", "mean_known", "inverse_known_count", "effective_number"):
        count = getattr(kt.losses, name)
        np.testing.assert_array_equal(count(coded, missing=code), count(LABELS))


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: kt.losses.pos_weight(np.array([[2.0, NAN]])), "labels"),
        (lambda: kt.losses.pos_weight(np.zeros(3)), "labels"),
        (lambda: kt.losses.pos_weight(LABELS, limit=0.5), "limit"),
        (lambda: kt.losses.pos_weight(LABELS, missing=0), "missing"),
        (lambda: kt.losses.effective_number(LABELS, beta=1.0), "beta"),
        (lambda: kt.losses.effective_number(LABELS * NAN), "labels"),
        (lambda: kt.losses.inverse_known_count(LABELS * NAN), "labels"),
        (lambda: kt.losses.mean_known(LABELS * NAN), "labels"),
    ],
)
def test_what_cannot_be_counted_is_refused(call, argument):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        call()
