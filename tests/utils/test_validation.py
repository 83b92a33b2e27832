"""Argument checks that all rooms share."""

import doctest

import numpy as np
import pytest

from kerasmtl.utils import files, progress, text, tf, validation
from kerasmtl.utils.validation import check_choice, check_count, check_number


@pytest.mark.parametrize("module", [files, progress, text, tf, validation])
def test_the_examples_run(module):
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2)])
def test_numbers_come_back_as_floats(value):
    assert type(check_number("x", value, 0, 2)) is float


@pytest.mark.parametrize(
    ("value", "bounds"),
    [
        *((value, {}) for value in (True, "1", None, float("nan"))),
        (float("inf"), {"low": 0}),
        (-1, {"low": 0}),
        (2, {"high": 1}),
        (0, {"low": 0, "open_low": True}),
        (1, {"high": 1, "open_high": True}),
    ],
)
def test_other_values_and_numbers_out_of_bounds_are_refused(value, bounds):
    with pytest.raises(ValueError, match="`x` must be a finite number.*, got"):
        check_number("x", value, **bounds)


@pytest.mark.parametrize("value", [0, 1.0, True, "1", None])
def test_other_values_than_counts_are_refused(value):
    assert check_count("x", np.int64(3)) == 3
    with pytest.raises(ValueError, match="`x` must be an integer"):
        check_count("x", value)


@pytest.mark.parametrize("value", ["c", 1, None, ["a"]])
def test_other_values_than_the_choices_are_refused(value):
    assert check_choice("x", "a", ("a", "b")) == "a"
    with pytest.raises(ValueError, match="`x` must be one of 'a', 'b', got"):
        check_choice("x", value, ("a", "b"))
