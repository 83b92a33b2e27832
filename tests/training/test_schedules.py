"""Warm-up and cosine against their formulas."""

import math

import keras
import numpy as np
import pytest

from kerasmtl.training.optimizers import WarmupCosine


def expected(step, rate, warmup, decay, final, begin):
    s = max(step - begin, 0)
    if s < warmup:
        return rate * (s + 1) / warmup
    if decay is None:
        return rate
    t = min((s - warmup) / decay, 1.0)
    return rate * (final + (1 - final) * (1 + math.cos(math.pi * t)) / 2)


@pytest.mark.parametrize(
    "rate, warmup, decay, final, begin",
    [
        (0.1, 0, None, 0.0, 0),
        (0.1, 5, None, 0.0, 3),
        (0.1, 0, 10, 0.0, 0),
        (2.0, 4, 9, 0.25, 0),
        (1e-3, 1, 1, 1.0, 7),
    ],
)
def test_every_step_is_the_formula(rate, warmup, decay, final, begin):
    schedule = WarmupCosine(rate, warmup, decay, final, begin)
    found = [float(schedule(step)) for step in range(40)]
    wanted = [expected(step, rate, warmup, decay, final, begin) for step in range(40)]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * rate)


def test_the_corners():
    schedule = WarmupCosine(0.5, warmup_steps=4, decay_steps=8, final=0.1, begin=100)
    assert float(schedule(0)) == float(schedule(100)) == 0.125
    assert float(schedule(103)) == float(schedule(104)) == 0.5
    assert float(schedule(112)) == float(schedule(10**9)) == pytest.approx(0.05, rel=1e-6)


def test_steps_beyond_what_float32_counts():
    begin = 2**24 + 1
    schedule = WarmupCosine(1.0, warmup_steps=8, begin=begin)
    found = [float(schedule(keras.Variable(begin + i, dtype="int64"))) for i in range(8)]
    assert found == [(i + 1) / 8 for i in range(8)]


@pytest.mark.parametrize("decay", [None, 7])
def test_the_rate_is_float32_and_the_config_comes_back(decay):
    schedule = WarmupCosine(0.1, 3, decay, 0.2, 5)
    config = keras.saving.serialize_keras_object(schedule)
    twin = keras.saving.deserialize_keras_object(config)
    assert keras.backend.standardize_dtype(schedule(6).dtype) == "float32"
    assert twin.get_config() == schedule.get_config()
    assert [float(twin(i)) for i in range(20)] == [float(schedule(i)) for i in range(20)]


def test_an_optimizer_follows_it():
    variable = keras.Variable(0.0)
    optimizer = keras.optimizers.SGD(WarmupCosine(1.0, warmup_steps=2, decay_steps=2))
    seen = []
    for _ in range(5):
        before = float(variable.numpy())
        optimizer.apply([keras.ops.ones(())], [variable])
        seen.append(before - float(variable.numpy()))
    np.testing.assert_allclose(seen, [0.5, 1.0, 1.0, 0.5, 0.0], atol=1e-6)


def test_numbers_of_numpy_are_taken():
    schedule = WarmupCosine(np.float32(0.5), np.int64(2), np.int32(4), np.float64(0.5))
    assert schedule.get_config()["warmup_steps"] == 2
    assert float(schedule(1)) == 0.5


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"learning_rate": 0.0}, "`learning_rate` is not positive"),
        ({"learning_rate": float("nan")}, "`learning_rate` is not positive"),
        ({"learning_rate": "fast"}, "`learning_rate` is not positive"),
        ({"warmup_steps": -1}, "`warmup_steps` is no number of steps. Expected .* from 0"),
        ({"warmup_steps": 2.5}, "`warmup_steps` is no number of steps"),
        ({"warmup_steps": True}, "`warmup_steps` is no number of steps"),
        ({"decay_steps": 0}, "`decay_steps` is no number of steps. Expected .* from 1"),
        ({"final": 1.5}, "`final` is no share"),
        ({"final": float("nan")}, "`final` is no share"),
        ({"begin": -3}, "`begin` is no number of steps"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        WarmupCosine(**{"learning_rate": 0.1, **arguments})
