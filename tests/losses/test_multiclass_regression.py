"""Multiclass and regression losses beyond the laws of `test_base`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasmtl as kt

NAN = float("nan")


def class_case(rows=12, classes=3):
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, rows).astype("float32")
    z = rng.normal(size=(rows, classes)).astype("float32")
    y[::3] = NAN
    return y, z


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("column", [False, True])
def test_multiclass_is_keras_on_the_known_rows(logits, column):
    y, z = class_case()
    p = z if logits else np.array(keras.ops.softmax(z))
    known = ~np.isnan(y)
    stock = keras.losses.SparseCategoricalCrossentropy(logits, reduction="sum")(y[known], p[known])
    ours = kt.losses.MaskedCategoricalCrossentropy(logits, reduction="sum")(
        y[:, None] if column else y, p
    )
    np.testing.assert_allclose(ours, stock, rtol=1e-6)


@pytest.mark.parametrize("wrong", [3.0, -2.0, 0.5, np.inf, 1e30])
def test_a_label_that_is_not_a_class_is_refused(wrong):
    y, z = class_case()
    y[1] = wrong
    with pytest.raises(tf.errors.InvalidArgumentError, match="`y_true` must be a class from 0"):
        kt.losses.MaskedCategoricalCrossentropy(True)(y, z)


def test_a_class_cannot_mean_missing():
    y, z = class_case()
    with pytest.raises(ValueError, match="`missing`"):
        kt.losses.MaskedCategoricalCrossentropy(True, missing=2)(y, z)


def test_any_finite_number_may_mean_missing_in_regression():
    y = np.array([[1, 0.5], [2, 3]], "float32")
    p = np.array([[1, 9], [2, 3]], "float32")
    assert float(kt.losses.MaskedMeanAbsoluteError(missing=0.5)(y, p)) == 0.0


def test_labels_of_one_dimension_are_told_their_shape():
    with pytest.raises(ValueError, match=r"`y_true`.*y\.reshape\(-1, 1\)"):
        kt.losses.MaskedMeanSquaredError()(np.zeros(4, "float32"), np.zeros((4, 1), "float32"))


def test_a_delta_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="`delta`"):
        kt.losses.MaskedHuber(delta=0.0)
