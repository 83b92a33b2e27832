"""The one definition of "missing" for arrays and tensors."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

import kerasmtl as kt
from kerasmtl.masking import (
    check_missing,
    check_row_weights,
    fill_missing,
    is_known,
    match_classes,
    match_shapes,
)

NAN = float("nan")
LABELS = np.array([[1, NAN, 1e30], [0, -1, 7]])
KNOWN = np.array([[True, False, False], [True, False, True]])
EXPECTED = np.array([[1, NAN, NAN], [0, NAN, 7]], "float32")


@pytest.mark.parametrize("of", [np.asarray, tf.constant])
def test_nan_and_a_code_are_missing_and_zero_is_known(of):
    y = of(np.array([[0, 1, NAN, -1]], "float32"))
    np.testing.assert_array_equal(is_known(y), [[True, True, False, True]])
    np.testing.assert_array_equal(is_known(y, missing=-1), [[True, True, False, False]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("code", [-99.9, -9999.9])
def test_a_code_that_float32_rounds_is_missing_in_any_labels(dtype, code):
    y = np.array([1.0, code], dtype)
    for labels in (y, tf.constant(y)):
        np.testing.assert_array_equal(is_known(labels, code), [True, False])


@pytest.mark.parametrize("code", ["?", (-1, -2), NAN, True])
def test_a_code_is_one_number(code):
    with pytest.raises(ValueError, match="`missing`"):
        check_missing(code)
    assert check_missing(None) is None and check_missing(np.int64(-1)) == -1.0


@pytest.mark.parametrize("code", [0, 1, 0.5])
def test_a_binary_label_cannot_mean_missing(code):
    assert check_missing(code) == code
    with pytest.raises(ValueError, match="`missing`"):
        check_missing(code, binary=True)


@pytest.mark.parametrize("hidden", [NAN, np.inf, -np.inf, 1e30])
def test_a_filled_cell_has_the_fill_and_no_gradient(hidden):
    values = tf.constant([2.0, hidden])
    with tf.GradientTape() as tape:
        tape.watch(values)
        filled = fill_missing(values, tf.constant([True, False]), 0.5)
        total = tf.reduce_sum(filled**2)
    np.testing.assert_array_equal(filled, [2.0, 0.5])
    np.testing.assert_array_equal(tape.gradient(total, values), [4.0, 0.0])


@pytest.mark.parametrize(
    "shapes", [((4, 3), (4, 2)), ((4, 3), (1, 3)), ((4,), (4, 1)), ((4,), (4,))]
)
def test_labels_and_predictions_of_other_shapes_are_refused_with_both_shapes(shapes):
    with pytest.raises(ValueError, match="`y_true` and `y_pred`") as error:
        match_shapes(*(np.zeros(shape) for shape in shapes))
    assert all(str(shape) in str(error.value) for shape in shapes)


@pytest.mark.parametrize("shapes", [((4, 3), (4, 3)), ((4,), (3, 2)), ((4,), (4,))])
def test_labels_that_are_not_one_class_per_row_are_refused(shapes):
    with pytest.raises(ValueError, match="`y_true`"):
        match_classes(*(np.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("match", [match_shapes, match_classes])
@pytest.mark.parametrize("xla", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("wrong", [(3, 2), (1, 4)])
def test_shapes_that_show_only_when_a_graph_runs_are_not_broadcast(match, xla, wrong):
    spec = [tf.TensorSpec([None, None]), tf.TensorSpec([None, 4])]

    @tf.function(input_signature=spec, jit_compile=xla)
    def call(y, p):
        return [tf.shape(part) for part in match(y, p)]

    good = (3, 4) if match is match_shapes else (3, 1)
    assert call(tf.ones(good), tf.ones((3, 4)))[1].numpy().tolist() == [3, 4]
    if xla and wrong == (1, 4) and match is match_shapes:
        return  # XLA drops the assertion on the number of rows
    with pytest.raises(tf.errors.InvalidArgumentError):
        call(tf.ones(wrong), tf.ones((3, 4)))


def test_an_unknown_number_of_dimensions_is_refused_with_the_way_out():
    spec = [tf.TensorSpec(None), tf.TensorSpec([None, 4])]
    for match in (match_shapes, match_classes):
        with pytest.raises(ValueError, match="`y_true`.*output_signature"):
            tf.function(match, input_signature=spec)(tf.ones((3, 4)), tf.ones((3, 4)))


def test_weights_are_one_per_row():
    for shape in [(), (4,), (4, 1)]:
        check_row_weights(np.ones(shape))
        check_row_weights(np.ones(shape).tolist())
        check_row_weights(tf.TensorSpec([None] * len(shape)))
    for shape in [(4, 4), (4, 2), (1, 2), (4, 1, 1)]:
        with pytest.raises(ValueError, match="`sample_weight`"):
            check_row_weights(np.ones(shape))


# Labels with a mask of their own


@pytest.mark.parametrize("kind", [bool, int, float])
def test_what_is_stored_under_unknown_becomes_nan(kind):
    coded = kt.data.with_known(LABELS, KNOWN.astype(kind))
    assert coded.dtype == np.float32
    np.testing.assert_array_equal(coded, EXPECTED)
    np.testing.assert_array_equal(kt.data.with_known(LABELS.tolist(), KNOWN.tolist()), EXPECTED)


def test_integer_labels_of_one_dimension_work():
    coded = kt.data.with_known(np.array([2, -1, 0]), np.array([True, False, True]))
    np.testing.assert_array_equal(coded, np.array([2, NAN, 0], "float32"))


def test_a_mask_works_in_a_data_set():
    data = tf.data.Dataset.from_tensor_slices((LABELS, KNOWN)).map(kt.data.with_known)
    np.testing.assert_array_equal(list(data.as_numpy_iterator()), EXPECTED)


def test_nan_marked_as_known_is_refused_at_once_or_by_the_loss():
    known = np.array([[True, True, False], [True, False, True]])
    with pytest.raises(ValueError, match=r"`labels`.*\(0, 1\), 1 in all"):
        kt.data.with_known(LABELS, known)
    coded = kt.data.with_known(tf.constant(LABELS), tf.constant(known))
    assert np.isinf(coded[0, 1])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`y_true`.*\[inf\]"):
        kt.losses.MaskedMeanSquaredError()(coded, np.zeros((2, 3), "float32"))


@pytest.mark.parametrize("known", [np.ones((2, 2)), KNOWN * 2])
def test_a_mask_of_another_shape_or_of_other_values_is_refused(known):
    with pytest.raises(ValueError, match="`known`"):
        kt.data.with_known(LABELS, known)


def test_a_hidden_number_beyond_float32_is_gone_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coded = kt.data.with_known(np.array([[1e300, 1.0]]), np.array([[False, True]]))
    np.testing.assert_array_equal(coded, np.array([[NAN, 1]], "float32"))
