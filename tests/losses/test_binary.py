"""Binary cross-entropy: its arguments, and the logits that Keras attaches to probabilities."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from loss_table import CASES

import kerasmtl as kt
from kerasmtl.losses.base import ATTACHED, LOGITS, cast_with_attached, logits_of

NAN = float("nan")
BIASES = np.array([-40, -20, 20, 40], "float32")  # of saturated sigmoids


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("pos_weight", [0.0, 0.0]),
        ("pos_weight", 0.0),
        ("pos_weight", -1.0),
        ("label_smoothing", 1.5),
        ("gamma", -1.0),
        ("alpha", 2.0),
    ],
)
def test_an_invalid_argument_is_refused_by_name(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        kt.losses.MaskedBinaryCrossentropy(**{argument: value})


def test_pos_weights_for_another_number_of_tasks_are_refused():
    y, p = reference.case(tasks=3)
    with pytest.raises(ValueError, match="`pos_weight`"):
        kt.losses.MaskedBinaryCrossentropy(pos_weight=[1.0, 2.0])(y, p)


def test_saturated_wrong_predictions_cost_what_the_clip_says():
    y, p = np.array([[1, 0]], "float32"), np.array([[0, 1]], "float32")
    loss = kt.losses.MaskedBinaryCrossentropy
    np.testing.assert_allclose(loss()(y, p), reference.loss(y, p), rtol=1e-2)
    np.testing.assert_allclose(loss(True)(y, 100 * p - 50), 100.0, rtol=1e-6)


# Logits behind probabilities


def test_keras_still_attaches_logits_and_mask_as_3_15_does():
    z = tf.constant([[1.0, 2.0]])
    for activation in (keras.activations.sigmoid, keras.activations.softmax):
        p = activation(z)
        assert getattr(p, LOGITS, None) is z, f"Keras {keras.__version__} differs from 3.15.1"
        assert logits_of(p) is z
    masked = keras.layers.Masking()(tf.zeros((2, 3, 1)))
    assert all(hasattr(thing, name) for thing, name in zip((p, masked), ATTACHED, strict=True))


def test_a_cast_keeps_what_is_attached_and_logits_of_another_shape_are_ignored():
    p = keras.activations.sigmoid(tf.constant([[17.0, -3.0]], "float16"))
    p._keras_mask = tf.constant([True])
    cast = cast_with_attached(p, "float32")
    assert cast.dtype == logits_of(cast).dtype == "float32" and cast._keras_mask is p._keras_mask
    assert cast_with_attached(cast, "float32") is cast
    assert logits_of(tf.constant([[0.5]])) is None
    p._keras_logits = tf.zeros((1, 3))
    assert logits_of(p) is None


def value_and_slope(loss, z, y, graph=False):
    def both(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = loss(y, keras.activations.sigmoid(z))
        return value, tape.gradient(value, z)

    call = tf.function(both) if graph else both
    return [part.numpy() for part in call(tf.constant(z))]


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.binary and c.stock])
def test_saturated_sigmoids_have_loss_and_gradient_as_in_keras(name):
    z = np.stack([BIASES, BIASES])
    y = np.array([[0] * 4, [1] * 4], "float32")
    theirs = value_and_slope(CASES[name].stock(False), z, y)
    for ours, expected in zip(value_and_slope(CASES[name].make(), z, y), theirs, strict=True):
        np.testing.assert_allclose(ours, CASES[name].factor * expected, rtol=1e-5, atol=1e-8)
    assert (abs(theirs[1][0, 2:]) > 0.01).all() and (abs(theirs[1][1, :2]) > 0.01).all()


@pytest.mark.parametrize(
    "loss",
    [
        kt.losses.AsymmetricLoss(margin=0.0),
        kt.losses.MaskedBinaryCrossentropy(pos_weight=2.0, gamma=1.0),
        kt.losses.PartialBinaryCrossentropy(),
        kt.losses.ExpectedPositives(1.0),
        kt.losses.LargeLoss("correct", 0.9),
        kt.losses.AssumeNegative("weak"),
    ],
    ids=lambda loss: loss.name,
)
def test_with_labels_missing_a_wrong_certainty_has_a_gradient_in_every_loss(loss):
    y = np.array([[NAN, 1, NAN, 0]], "float32")
    value, slope = value_and_slope(loss, BIASES[None], y, graph=True)
    assert value > 30 and abs(slope[0, 1]) > 0.01 and abs(slope[0, 3]) > 0.01
    if not (loss.includes_missing or isinstance(loss, kt.losses.ExpectedPositives)):
        assert (slope[0, [0, 2]] == 0).all()


def trained(loss, y, activation="sigmoid", dtype=None, **options):
    """The loss of one step, and the biases after it."""
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
def test_a_step_of_training_is_that_of_keras(options):
    binary, classes = np.array([[0, 1, 0, 1], [1, 0, 1, 0]], "float32"), np.arange(4.0)
    for ours, stock, y, activation in [
        (
            kt.losses.MaskedBinaryCrossentropy(normalization="mean", label_smoothing=0.1),
            keras.losses.BinaryCrossentropy(label_smoothing=0.1),
            binary,
            "sigmoid",
        ),
        (
            kt.losses.MaskedCategoricalCrossentropy(),
            keras.losses.SparseCategoricalCrossentropy(),
            classes,
            "softmax",
        ),
    ]:
        found, expected = (trained(loss, y, activation, **options) for loss in (ours, stock))
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
        assert (found[1] != BIASES).any()


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_uses_its_logits_in_float32(dtype):
    y = np.array([[0, 1, 0, NAN]], "float32")
    value, bias = trained(kt.losses.MaskedBinaryCrossentropy(), y, dtype=dtype, jit_compile=False)
    np.testing.assert_allclose(value, 40.0, rtol=1e-6)
    np.testing.assert_allclose(bias - BIASES, [0, 1, -1, 0], atol=1e-3)


def test_from_logits_over_a_sigmoid_warns_and_does_as_keras_does():
    y = np.array([[0, 1, 0, 1]], "float32")
    p = keras.activations.sigmoid(tf.constant(BIASES[None]))
    with pytest.warns(UserWarning, match="`from_logits`"):
        ours = kt.losses.MaskedBinaryCrossentropy(from_logits=True, normalization="mean")(y, p)
    with pytest.warns(UserWarning):
        stock = keras.losses.BinaryCrossentropy(from_logits=True)(y, p)
    np.testing.assert_allclose(ours, stock, rtol=1e-6)
