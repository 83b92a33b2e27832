"""Losses in which missing labels count as something, beyond the laws of `test_base`."""

import numpy as np
import pytest
import reference
import tensorflow as tf

import kerasmtl as kt

NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: kt.losses.AssumeNegative("strong"), "unknown_weight"),
        (lambda: kt.losses.AssumeNegative([1.0, -1.0]), "unknown_weight"),
        (lambda: kt.losses.PartialBinaryCrossentropy(alpha=-9.0), "alpha"),
        (lambda: kt.losses.PartialBinaryCrossentropy(alpha="1"), "alpha"),
        (lambda: kt.losses.PartialBinaryCrossentropy(1.0, 0.0, -200.0), "gamma"),
        (lambda: kt.losses.PartialBinaryCrossentropy(normalization="mean"), "normalization"),
        (lambda: kt.losses.AsymmetricLoss(margin=1.0), "margin"),
        (lambda: kt.losses.AsymmetricLoss(gamma_unknown=-1.0), "gamma_unknown"),
        (lambda: kt.losses.HillLoss(lam=0.5), "lam"),
        (lambda: kt.losses.ExpectedPositives(-1.0), "positives"),
        (lambda: kt.losses.ExpectedPositives(1.0, level="epoch"), "level"),
    ],
)
def test_an_invalid_argument_is_refused_by_name(make, argument):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        make()


@pytest.mark.parametrize(
    ("make", "normalization"),
    [
        (lambda: kt.losses.AssumeNegative(0.0), "sum"),
        (lambda: kt.losses.AssumeNegative(0.0, normalization="mean"), "mean"),
        (lambda: kt.losses.AsymmetricLoss(0, 0, 0, 1.0, 0.0), "sum"),
        (lambda: kt.losses.ExpectedPositives(1.0, weight=0.0), "sum"),
    ],
)
def test_with_weight_0_missing_labels_are_ignored(make, normalization):
    y, p = reference.case(rows=16, tasks=4)
    expected = kt.losses.MaskedBinaryCrossentropy(normalization=normalization)(y, p)
    for hidden in (0.3, NAN, 7.0):
        p = np.where(np.isnan(y), np.float32(hidden), p)
        np.testing.assert_allclose(make()(y, p), expected, rtol=1e-5)


@pytest.mark.parametrize("normalization", ["sum", "mean"])
def test_missing_labels_count_as_0_in_the_tasks_that_say_so(normalization):
    y = np.array([[1, NAN, 0], [NAN, NAN, NAN]], "float32")
    p = np.array([[0.8, NAN, 0.4], [0.3, 0.9, 0.5]], "float32")
    loss = kt.losses.AssumeNegative([0.5, 0, 1], normalization=normalization, reduction="none")
    first, second = -np.log(0.8) - np.log(0.6), -0.5 * np.log(0.7) - np.log(0.5)
    count = 2.0 if normalization == "mean" else 1.0
    np.testing.assert_allclose(loss(y, p), [first / count, second / count], rtol=1e-6)
    again = kt.losses.AssumeNegative.from_config(loss.get_config())
    assert again.unknown_weight == loss.unknown_weight == (0.5, 0.0, 1.0)
    with pytest.raises(ValueError, match="`unknown_weight`"):
        kt.losses.AssumeNegative([1.0, 0.0])(y, p)


def test_expected_positives_by_batch_is_the_published_term():
    y, p = reference.case(tasks=4)
    level = kt.losses.ExpectedPositives(1.5, level="batch")(y, p)
    published = ((p.sum(1).mean() - 1.5) / 4) ** 2
    np.testing.assert_allclose(level, reference.loss(y, p) + 4 * published, rtol=1e-5)
    assert level <= kt.losses.ExpectedPositives(1.5)(y, p)


def test_hill_hardly_moves_what_looks_positive_and_assume_negative_does():
    y, p = np.full((1, 4), NAN, "float32"), tf.constant([[0.2, 0.5, 0.9, 0.999]])

    def slopes(loss):
        with tf.GradientTape() as tape:
            z = tf.Variable(tf.math.log(p / (1 - p)))
            value = loss(y, z)
        return tape.gradient(value, z).numpy()[0]

    hill = slopes(kt.losses.HillLoss(from_logits=True))
    negative = slopes(kt.losses.AssumeNegative(from_logits=True))
    assert hill[3] < 0.01 < hill[1] and negative[3] > 0.99
