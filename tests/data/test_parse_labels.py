"""Text cells as labels."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasmtl.data.labels import find_classes, parse_labels
from kerasmtl.tasks import Task

NAN = float("nan")


@pytest.mark.parametrize("cell", ["", "?", "NA", "na", "N/A", "nan", "NaN", "None", "NULL"])
@pytest.mark.parametrize("blanks", ["{}", " {} ", "\t{}"])
def test_every_missing_code_is_nan_whatever_its_case_and_blanks(cell, blanks):
    values, invalid = parse_labels(pd.Series([blanks.format(cell)]), Task("a"))
    assert np.isnan(values[0]) and not invalid[0]


@pytest.mark.parametrize(
    ("cell", "value"), [("0", 0), ("1", 1), ("0.0", 0), ("1.0", 1), (" 1 ", 1)]
)
def test_every_label_code_has_its_value(cell, value):
    values, invalid = parse_labels(pd.Series([cell]), Task("a"))
    assert values.dtype == np.float32 and values[0] == value and not invalid[0]


@pytest.mark.parametrize("cell", ["2", "-1", "yes", "truth", "0.5", "01", "1,0", "n a", "-", "１"])
def test_anything_else_is_invalid_and_nan(cell):
    values, invalid = parse_labels(pd.Series([cell]), Task("a"))
    assert np.isnan(values[0]) and invalid[0]


def test_cells_keep_their_order():
    values, invalid = parse_labels(pd.Series(["1", "x", "", "0", "1", "x"]), Task("a"))
    np.testing.assert_array_equal(values, np.array([1, NAN, NAN, 0, 1, NAN], "float32"))
    np.testing.assert_array_equal(invalid, [False, True, False, False, False, True])


def parsed(cells, task):
    values, invalid = parse_labels(pd.Series(cells), task)
    return values.tolist(), invalid.tolist()


@pytest.mark.parametrize(
    ("policy", "value"), [("ignore", NAN), ("zero", 0), ("one", 1), (0.25, 0.25)]
)
def test_an_uncertain_label_counts_as_the_policy_says(policy, value):
    task = Task("a", missing="-9", uncertain=(-1, "Maybe"), uncertain_as=policy)
    values, invalid = parse_labels(pd.Series(["-1", "-1.0", " maybe", "-9", "1", "-2"]), task)
    np.testing.assert_array_equal(values, np.array([value] * 3 + [NAN, 1, NAN], "float32"))
    assert invalid.tolist() == [False] * 5 + [True]


def test_what_always_means_missing_cannot_be_uncertain():
    with pytest.raises(ValueError, match=r"`uncertain` of task 'a'.*always mean missing.*\['\?'\]"):
        parse_labels(pd.Series(["1"]), Task("a", uncertain="?"))


def test_a_class_is_its_position_whatever_its_case():
    task = Task("g", "multiclass", classes=("low", "High", "none"), missing="-")
    values, invalid = parse_labels(pd.Series(["HIGH", "low", " none", "", "-", "mid"]), task)
    np.testing.assert_array_equal(values, [1, 0, 2, NAN, NAN, NAN])
    assert invalid.tolist() == [False] * 5 + [True]


def test_classes_are_found_and_sorted_numbers_by_size():
    task = Task("g", "multiclass", missing=-1)
    assert find_classes(pd.Series(["10", "9", "-1", "?", "9.0", "1"]), task) == ("1", "9", "10")
    assert find_classes(pd.Series(["b", "a", "B", "10", "none"]), task) == ("10", "a", "B")
    assert parsed(["b", "a", "B"], task) == ([1, 0, 1], [False] * 3)


@pytest.mark.parametrize("cell", ["inf", "-inf", "Infinity", "1e39", "-1e400", "1_000", "1,5", "x"])
def test_a_number_that_float32_does_not_hold_is_invalid(cell):
    values, invalid = parse_labels(pd.Series([cell]), Task("a", "regression"))
    assert np.isnan(values[0]) and invalid[0]


def test_numbers_are_read_as_they_are_and_codes_are_missing():
    task = Task("a", "regression", missing=(-1, "none so far"))
    cells = ["0.1", "-2e3", "", "-1.00", "None so far", "3.4e38", "7", "NaN"]
    values, invalid = parse_labels(pd.Series(cells), task)
    expected = np.array([0.1, -2000, NAN, NAN, NAN, 3.4e38, 7, NAN], "float32")
    np.testing.assert_array_equal(values, expected)
    assert not invalid.any()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_every_finite_float32_is_read_to_the_bit(numbers):
    values, invalid = parse_labels(pd.Series([repr(n) for n in numbers]), Task("a", "regression"))
    assert values.tobytes() == np.array(numbers, "float32").tobytes() and not invalid.any()
