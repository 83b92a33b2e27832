"""What computes something else has another hash, in every process the same."""

import functools
import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from modules import HELPERS

from kerasmtl.training.feature_cache import Description

L = keras.layers
FACTOR = 2.0
EPSILON = 1e-5


class Norm(L.Layer):
    """With a setting that Keras can only write down as the name of an attribute."""

    def __init__(self, mean, **settings):
        super().__init__(**settings)
        self.mean = mean

    def call(self, inputs):
        return inputs - EPSILON


class Inside(L.Layer):
    def __init__(self, inner, **settings):
        super().__init__(**settings)
        self.inner = inner

    def call(self, inputs):
        return self.inner(inputs)


class Holder:
    def __init__(self, value):
        self.value = value

    def scaled(self, x):
        return x * self.value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def described(value):
    return Description().of(value, "value")


def scale_by(factor):
    return lambda x: x * factor


def with_default(factor):
    def scaled(x, by=factor):
        return x * by

    return scaled


def with_global(factor):
    space = {"FACTOR": factor, "__name__": __name__}
    exec("def scaled(x):\n    return x * FACTOR\n", space)
    return space["scaled"]


def kinds(number):
    """Ways to hold a number, each in another place."""
    array = np.array([1.0, number, 3.0], "float32")
    later = np.zeros(5000, "float32")
    later[2500] = number  # where a printed array has dots
    looped = Holder(number)
    looped.itself = looped
    return {
        "array": Norm(array),
        "long array": Norm(later),
        "number": Norm(number),
        "text": Norm(str(number)),
        "bytes": Norm(str(number).encode()),
        "nested": Norm({"a": [1, (array, "b")]}),
        "set": Norm({"p", "q", number}),
        "objects": Norm(np.array([number, None], object)),
        "tensor": Norm(tf.constant(later)),
        "variable": Norm(tf.Variable(number)),
        "ragged": Norm(tf.ragged.constant([[1.0], [2.0, number]])),
        "loop": Norm(looped),
        "closure": L.Lambda(scale_by(number)),
        "closure of an array": L.Lambda(scale_by(array)),
        "closure of a function": L.Lambda(scale_by(scale_by(number))),
        "default": L.Lambda(with_default(number)),
        "global": L.Lambda(with_global(number)),
        "partial": L.Lambda(functools.partial(pow, number)),
        "method": L.Lambda(Holder(number).scaled),
        "tf.function": Norm(tf.function(scale_by(number))),
        "activation": L.Dense(2, scale_by(number)),
        "object": Norm(Holder(array)),
        "slots": Norm(Slotted(number)),
        "class": Norm(type("Made", (), {"value": number})),
        "inside a layer": Inside(Norm(array)),
        "inside a model": Inside(keras.Sequential([L.Input((3,)), Norm(number)])),
        "inside Keras": L.TimeDistributed(Norm(number)),
        "lambda in a layer": Inside(L.Lambda(scale_by(number))),
    }


@pytest.mark.parametrize("place", kinds(1.0))
def test_another_number_is_another_layer(place):
    first, same, other = (described(kinds(number)[place]) for number in (1.0, 1.0, 5.0))
    assert first == same != other


def test_functions_on_one_line():
    double, triple = Norm(lambda x: x * 2), Norm(lambda x: x * 3)
    assert described(double) != described(triple)
    assert described(L.Lambda(lambda x: x * 2)) != described(L.Lambda(lambda x: x * 3))


def test_an_edited_constant_of_the_module(monkeypatch):
    before = described(Norm(1.0))
    monkeypatch.setitem(globals(), "EPSILON", 1e-3)
    assert described(Norm(1.0)) != before


def test_types_are_told_apart():
    values = [1, 1.0, True, "1", b"1", np.int32(1), np.int64(1), [1], (1,), {1: 1}, {1}, None]
    assert len({repr(described(value)) for value in values}) == len(values)


def test_names_and_training_leave_no_trace():
    one, other = Norm(1.0, name="one"), Norm(1.0, name="other", trainable=False)
    other(keras.Input((3,)))
    assert described(one) == described(other)
    assert described(Norm(1.0, dtype="float16")) != described(one)


def test_a_constant_in_the_graph():
    def key(value):
        inputs = keras.Input((5000,))
        constant = np.zeros(5000, "float32")
        constant[2500] = value
        return Description().graph(keras.Model(inputs, inputs + tf.constant(constant)))

    assert key(1.0) == key(1.0) != key(2.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (number for number in range(3)),
        lambda: open(os.devnull),
        lambda: np.random.default_rng(0),
        lambda: tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(["a"], [1]), default_value=0
        ),
    ],
    ids=["generator", "file", "random", "lookup"],
)
def test_what_cannot_be_seen_into_is_refused(make):
    for layer in (Norm(make(), name="odd"), L.Lambda(scale_by(make()), name="odd")):
        with pytest.raises(ValueError, match="hashed.*: value, .*Received: .*without the feature"):
            described(Inside(layer))


PROCESS = """
    import sys
    sys.path.insert(0, {tests!r})
    from test_feature_description import described, kinds
    print([described(each) for each in kinds(1.0).values()])
"""


@pytest.mark.slow
def test_other_processes_find_the_same():
    code = textwrap.dedent(PROCESS.format(tests=str(HELPERS)))
    found = set()
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(run.stdout.splitlines()[-1])
    assert len(found) == 1
