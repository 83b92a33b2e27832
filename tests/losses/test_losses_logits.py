"""Probabilities of 0 and 1 that are wrong: learnt from, as Keras' own losses do."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from loss_table import CASES

import kerasmtl as kt
from kerasmtl import losses
from kerasmtl.losses.base import LOGITS, NOTES, cast_with_notes, logits_of

NAN = float("nan")
BIASES = np.array([-40, -20, 20, 40], "float32")
modes = pytest.mark.parametrize("mode", ["eager", "graph"])


def test_keras_still_notes_logits_and_mask_as_3_15_does():
    z = tf.constant([[1.0, 2.0]])
    for activation in (keras.activations.sigmoid, keras.activations.softmax):
        p = activation(z)
        assert getattr(p, LOGITS, None) is z, f"Keras {keras.__version__} is not as 3.15.1"
        assert logits_of(p) is z
    masked = keras.layers.Masking()(tf.zeros((2, 3, 1)))
    assert all(hasattr(thing, note) for thing, note in zip((p, masked), NOTES, strict=True))


def test_logits_of_another_shape_are_none_and_a_cast_keeps_the_notes():
    p = keras.activations.sigmoid(tf.constant([[17.0, -3.0]], "float16"))
    p._keras_mask = tf.constant([True])
    cast = cast_with_notes(p, "float32")
    assert cast.dtype == logits_of(cast).dtype == "float32" and cast._keras_mask is p._keras_mask
    assert cast_with_notes(cast, "float32") is cast
    assert logits_of(tf.constant([[0.5]])) is None
    p._keras_logits = tf.zeros((1, 3))
    assert logits_of(p) is None


def slope(loss, activation, biases, y, mode):
    def both(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = loss(y, activation(z))
        return value, tape.gradient(value, z)

    call = both if mode == "eager" else tf.function(both)
    return [part.numpy() for part in call(tf.constant(biases))]


@modes
@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.binary and c.stock])
def test_saturated_sigmoids_lose_and_learn_as_in_keras(name, mode):
    z = np.stack([BIASES, BIASES])
    y = np.array([[0] * 4, [1] * 4], "float32")
    case, sigmoid = CASES[name], keras.activations.sigmoid
    theirs = slope(case.stock(False), sigmoid, z, y, mode)
    for ours, expected in zip(slope(case.make(), sigmoid, z, y, mode), theirs, strict=True):
        np.testing.assert_allclose(ours, case.factor * expected, rtol=1e-5, atol=1e-8)
    assert (abs(theirs[1][0, 2:]) > 0.01).all() and (abs(theirs[1][1, :2]) > 0.01).all()


@pytest.mark.parametrize(
    "loss",
    [
        losses.AsymmetricLoss(margin=0.0),
        losses.MaskedBinaryCrossentropy(pos_weight=2.0, gamma=1.0),
        losses.PartialBinaryCrossentropy(),
        losses.ExpectedPositives(1.0),
        losses.LargeLoss("correct", 0.9),
        losses.AssumeNegative("weak"),
    ],
    ids=lambda loss: loss.name,
)
def test_with_labels_missing_a_wrong_certainty_is_learnt_from_in_every_loss(loss):
    y = np.array([[NAN, 1, NAN, 0]], "float32")
    value, moved = slope(loss, keras.activations.sigmoid, BIASES[None], y, "graph")
    assert value > 30 and abs(moved[0, 1]) > 0.01 and abs(moved[0, 3]) > 0.01
    if not (loss.counts_unknown or isinstance(loss, losses.ExpectedPositives)):
        assert (moved[0, [0, 2]] == 0).all()


def trained(loss, activation, y, dtype=None, **options):
    layer = keras.layers.Dense(
        4,
        activation,
        kernel_initializer="zeros",
        bias_initializer=lambda shape, dtype=None: tf.cast(BIASES, dtype),
        dtype=dtype,
    )
    model = keras.Sequential([keras.Input((1,)), layer])
    model.compile(keras.optimizers.SGD(1.0), loss, **options)
    return float(model.train_on_batch(np.zeros((len(y), 1)), y)), layer.bias.numpy()


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"jit_compile": False}], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_step_of_training_is_that_of_keras(options, smoothing):
    y = np.array([[0, 1, 0, 1], [1, 0, 1, 0]], "float32")
    stock = keras.losses.BinaryCrossentropy(label_smoothing=smoothing)
    ours = kt.losses.MaskedBinaryCrossentropy(normalization="mean", label_smoothing=smoothing)
    found, expected = (trained(loss, "sigmoid", y, **options) for loss in (ours, stock))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_array_equal(found[1], expected[1])
    assert (found[1] != BIASES).any()
    y = np.array([0, 1, 2.0, 3])
    found, expected = (
        trained(loss, "softmax", y, **options)
        for loss in (
            kt.losses.MaskedCategoricalCrossentropy(),
            keras.losses.SparseCategoricalCrossentropy(),
        )
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_learns_from_its_logits_in_float32(dtype):
    y = np.array([[0, 1, 0, NAN]], "float32")
    value, bias = trained(
        kt.losses.MaskedBinaryCrossentropy(), "sigmoid", y, dtype, jit_compile=False
    )
    np.testing.assert_allclose(value, 40.0, rtol=1e-6)
    np.testing.assert_allclose(bias - BIASES, [0, 1, -1, 0], atol=1e-3)


def test_from_logits_over_a_sigmoid_warns_and_does_as_keras_does():
    y = np.array([[0, 1, 0, 1]], "float32")
    p = keras.activations.sigmoid(tf.constant(BIASES[None]))
    with pytest.warns(UserWarning, match="`from_logits` is True.*Expected from_logits=False"):
        ours = kt.losses.MaskedBinaryCrossentropy(from_logits=True, normalization="mean")(y, p)
    with pytest.warns(UserWarning):
        stock = keras.losses.BinaryCrossentropy(from_logits=True)(y, p)
    np.testing.assert_allclose(ours, stock, rtol=1e-6)
