"""The only definition of "missing"."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from kerasmtl.masking import (
    check_row_weights,
    check_same_shape,
    fill_missing,
    is_known,
    parse_labels,
)

NAN = float("nan")


@pytest.mark.parametrize("cell", ["", "?", "NA", "na", "N/A", "nan", "NaN", "None", "NULL"])
@pytest.mark.parametrize("blanks", ["{}", " {} ", "\t{}"])
def test_every_missing_code_is_nan_whatever_its_case_and_blanks(cell, blanks):
    values, invalid = parse_labels(pd.Series([blanks.format(cell)]))
    assert np.isnan(values[0]) and not invalid[0]


@pytest.mark.parametrize(
    ("cell", "value"), [("0", 0), ("1", 1), ("0.0", 0), ("1.0", 1), (" 1 ", 1)]
)
def test_every_label_code_has_its_value(cell, value):
    values, invalid = parse_labels(pd.Series([cell]))
    assert values.dtype == np.float32 and values[0] == value and not invalid[0]


@pytest.mark.parametrize("cell", ["2", "-1", "yes", "true", "0.5", "01", "1,0", "n a", "-", "１"])
def test_anything_else_is_invalid_and_nan(cell):
    values, invalid = parse_labels(pd.Series([cell]))
    assert np.isnan(values[0]) and invalid[0]


def test_cells_keep_their_order():
    values, invalid = parse_labels(pd.Series(["1", "x", "", "0", "1", "x"]))
    np.testing.assert_array_equal(values, np.array([1, NAN, NAN, 0, 1, NAN], "float32"))
    np.testing.assert_array_equal(invalid, [False, True, False, False, False, True])


def test_the_text_half_needs_neither_keras_nor_tensorflow():
    code = (
        "import sys, pandas, kerasmtl.manifest; from kerasmtl.masking import parse_labels;"
        "parse_labels(pandas.Series(['1']));"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nan_is_missing_and_zero_is_known():
    known = is_known(np.array([[0, 1, NAN, -1]], "float32"))
    np.testing.assert_array_equal(known, [[True, True, False, True]])


def test_a_code_is_missing_besides_nan():
    known = is_known(np.array([[0, 1, NAN, -1]], "float32"), missing=-1)
    np.testing.assert_array_equal(known, [[True, True, False, False]])


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
    with pytest.raises(ValueError) as error:
        check_same_shape(*(np.zeros(shape) for shape in shapes))
    assert all(str(shape) in str(error.value) for shape in shapes)


def test_unknown_sizes_fit_any_size():
    check_same_shape(
        tf.TensorSpec((None, 3)),
        tf.TensorSpec((4, None)),
    )


@pytest.mark.parametrize("shape", [(), (4,), (4, 1)])
def test_one_weight_a_row_is_accepted(shape):
    check_row_weights(np.ones(shape))
    check_row_weights(np.ones(shape).tolist())
    check_row_weights(tf.TensorSpec([None] * len(shape)))


@pytest.mark.parametrize("shape", [(4, 4), (4, 2), (1, 2), (4, 1, 1)])
def test_weights_by_label_are_refused(shape):
    with pytest.raises(ValueError, match="not one weight a row"):
        check_row_weights(np.ones(shape))
