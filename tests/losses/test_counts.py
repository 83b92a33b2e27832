"""Constants of a loss against counts by hand."""

import numpy as np
import pytest

import kerasmtl as kt

NAN = float("nan")
LABELS = np.array(
    [[1, 0, NAN, 1, NAN], [0, 0, NAN, 1, 1], [0, NAN, NAN, NAN, NAN], [0, 0, NAN, 1, 0]], "float32"
)


def test_pos_weight_is_zeros_by_ones_of_the_known_and_1_with_one_class():
    np.testing.assert_allclose(kt.losses.pos_weight(LABELS), [3, 1, 1, 1, 1])


def test_pos_weight_is_clipped_at_both_ends():
    labels = np.zeros((400, 2))
    labels[0, 0] = 1
    labels[1:, 1] = 1
    np.testing.assert_allclose(kt.losses.pos_weight(labels), [100, 0.01])
    np.testing.assert_allclose(kt.losses.pos_weight(labels, limit=5), [5, 0.2])


def test_mean_known_counts_known_labels_a_row():
    assert kt.losses.mean_known(LABELS) == (3 + 4 + 1 + 4) / 4


def test_inverse_counts_average_one_over_tasks_that_have_a_label():
    weights = kt.losses.inverse_known_count(LABELS)
    known = np.array([4, 3, 3, 2])
    np.testing.assert_allclose(weights[[0, 1, 3, 4]] * known, weights[0] * 4)
    assert weights[2] == 0
    np.testing.assert_allclose(weights.sum(), 4)


def test_the_effective_number_lies_between_equal_weights_and_inverse_counts():
    equal = kt.losses.effective_number(LABELS, beta=0.0)
    np.testing.assert_allclose(equal, [1, 1, 0, 1, 1])
    near = kt.losses.effective_number(LABELS, beta=1 - 1e-9)
    np.testing.assert_allclose(near, kt.losses.inverse_known_count(LABELS), rtol=1e-5)
    half = 1 / (1 - 0.5 ** np.array([4, 3, 3, 2]))
    np.testing.assert_allclose(
        kt.losses.effective_number(LABELS, 0.5)[[0, 1, 3, 4]], half * 4 / half.sum()
    )


@pytest.mark.parametrize(
    "count",
    [
        kt.losses.pos_weight,
        kt.losses.mean_known,
        kt.losses.inverse_known_count,
        kt.losses.effective_number,
    ],
)
def test_a_code_is_missing_as_nan_is(count):
    coded = np.where(np.isnan(LABELS), -1, LABELS).astype("int32")
    np.testing.assert_array_equal(count(coded, missing=-1), count(LABELS))


@pytest.mark.parametrize(
    "count", [kt.losses.mean_known, kt.losses.inverse_known_count, kt.losses.effective_number]
)
def test_labels_of_which_none_is_known_are_refused(count):
    with pytest.raises(ValueError, match="no known label"):
        count(np.full((3, 2), NAN))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kt.losses.pos_weight(np.array([[2.0, NAN]])), "row 0, task 0"),
        (lambda: kt.losses.pos_weight(np.zeros(3)), "`labels` are no table"),
        (lambda: kt.losses.pos_weight(LABELS, limit=0.5), "`limit`"),
        (lambda: kt.losses.effective_number(LABELS, beta=1.0), "`beta`"),
    ],
)
def test_what_cannot_be_counted_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("code", [-99.9, -9999.9])
def test_a_code_that_float32_rounds_is_missing_in_any_labels(dtype, code):
    coded = np.where(np.isnan(LABELS), code, LABELS).astype(dtype)
    for count in (kt.losses.mean_known, kt.losses.inverse_known_count, kt.losses.pos_weight):
        np.testing.assert_array_equal(count(coded, missing=code), count(LABELS))


def test_a_code_that_is_a_label_or_no_number_is_refused():
    with pytest.raises(ValueError, match="`missing` is a label"):
        kt.losses.pos_weight(LABELS, missing=0)
    with pytest.raises(ValueError, match="`missing` is no code"):
        kt.losses.mean_known(LABELS, missing="?")
    assert kt.losses.mean_known(np.zeros((2, 2)) + [[0, 1]], missing=0) == 1.0
