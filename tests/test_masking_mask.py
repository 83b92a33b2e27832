"""Labels that come with a mask of their own."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

import kerasmtl as kt

NAN = float("nan")
LABELS = np.array([[1, NAN, 1e30], [0, -1, 7]])
KNOWN = np.array([[True, False, False], [True, False, True]])
EXPECTED = np.array([[1, NAN, NAN], [0, NAN, 7]], "float32")


@pytest.mark.parametrize("kind", [bool, int, float])
def test_what_lies_under_unknown_becomes_nan(kind):
    coded = kt.data.with_known(LABELS, KNOWN.astype(kind))
    assert coded.dtype == np.float32
    np.testing.assert_array_equal(coded, EXPECTED)
    np.testing.assert_array_equal(kt.data.with_known(LABELS.tolist(), KNOWN.tolist()), EXPECTED)


def test_integer_labels_and_one_dimension_work():
    coded = kt.data.with_known(np.array([2, -1, 0]), np.array([True, False, True]))
    np.testing.assert_array_equal(coded, np.array([2, NAN, 0], "float32"))


def test_it_works_in_a_data_set():
    data = tf.data.Dataset.from_tensor_slices((LABELS, KNOWN)).map(kt.data.with_known)
    np.testing.assert_array_equal(list(data.as_numpy_iterator()), EXPECTED)


def test_nan_that_claims_to_be_known_is_refused_at_once_or_by_the_loss():
    known = np.array([[True, True, False], [True, False, True]])
    with pytest.raises(ValueError, match=r"NaN at \(0, 1\), 1 in all"):
        kt.data.with_known(LABELS, known)
    coded = kt.data.with_known(tf.constant(LABELS), tf.constant(known))
    assert np.isinf(coded[0, 1])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`y_true` must be finite.*\[inf\]"):
        kt.losses.MaskedMeanSquaredError()(coded, np.zeros((2, 3), "float32"))


@pytest.mark.parametrize(
    ("known", "message"), [(np.ones((2, 2)), "differ in shape"), (KNOWN * 2, "no mask")]
)
def test_what_is_no_mask_is_refused(known, message):
    with pytest.raises(ValueError, match=message):
        kt.data.with_known(LABELS, known)


def test_a_hidden_number_beyond_float32_is_gone_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coded = kt.data.with_known(np.array([[1e300, 1.0]]), np.array([[False, True]]))
    np.testing.assert_array_equal(coded, np.array([[NAN, 1]], "float32"))
