"""Cells of text as labels, tasks and groups: what each looks like, and how to say what it is."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasmtl.data.labels import find_classes, infer_tasks, parse_labels, read_labels
from kerasmtl.tasks import Task, as_tasks

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


def table(**columns):
    size = max(map(len, columns.values()))
    return pd.DataFrame(columns, index=range(2, size + 2), dtype=object)


def labels(frame, *tasks):
    return read_labels(frame, as_tasks(tasks), "labels.csv")


def fault(frame, *tasks):
    with pytest.raises(ValueError) as error:
        labels(frame, *tasks)
    return str(error.value)


def test_mixed_kinds_are_read_and_classes_found():
    frame = table(a=["1", "?", "0"], grade=["mid", "low", "mid"], size=["2.5", "-1", "NA"])
    tasks, values = labels(frame, "a", Task("grade", "multiclass"), Task("size", "regression"))
    assert tasks[1].classes == ("low", "mid")
    np.testing.assert_array_equal(values, np.array([[1, 1, 2.5], [NAN, 0, -1], [0, 1, NAN]], "f"))


def test_a_class_that_is_not_named_is_a_fault():
    message = fault(
        table(grade=["high", "x", "low"]), Task("grade", "multiclass", classes=("low", "high"))
    )
    assert "line 3, column 'grade': 'x'" in message and "must be a class or missing" in message
    assert "The classes of 'grade' are ['low', 'high']" in message


@pytest.mark.parametrize("cells", [["?", ""], ["a", "a"], ["1", "1.0"]])
def test_less_than_two_classes_are_refused(cells):
    message = fault(table(grade=cells), Task("grade", "multiclass"))
    assert (
        "`classes` of task 'grade' must be" in message
        and "--task grade:multiclass:classes=A,B" in message
    )


@pytest.mark.parametrize("majority", ["0", "1", "2"])
def test_a_column_of_three_values_looks_like_a_task_and_is_refused_with_the_call(majority):
    frame = table(grade=["0", "1", "2", *[majority] * 9])
    tasks = infer_tasks(frame, "labels.csv")
    assert tasks == (Task("grade"),)
    message = fault(frame, *tasks)
    assert (
        "If these are classes: Task('grade', 'multiclass') (command line: --task grade" in message
    )
    assert "'2'" in message and "line" in message


def test_minus_one_may_be_uncertain_or_missing():
    frame = table(a=["0", "1", "-1.0", "-1"])
    message = fault(frame, *infer_tasks(frame, "labels.csv"))
    assert "Task('a', uncertain=-1)" in message
    assert "Task('a', missing=-1)" in message
    _, ignored = labels(frame, Task("a", uncertain=-1, uncertain_as="ignore"))
    np.testing.assert_array_equal(ignored[:, 0], [0, 1, NAN, NAN])


def test_infinity_is_neither_a_class_nor_a_label():
    message = fault(table(grade=["1", "2", "inf"]), Task("grade", "multiclass"))
    assert "line 4, column 'grade', must be classes" in message and "'inf'" in message
    assert "line 4, column 'a': 'inf'" in fault(table(a=["1", "0", "inf"]), "a")


def test_true_and_false_are_labels_in_any_case():
    frame = table(a=["TRUE", "False", "?", "true", "1"])
    assert infer_tasks(frame, "labels.csv") == (Task("a"),)
    np.testing.assert_array_equal(labels(frame, "a")[1][:, 0], [1, 0, NAN, 1, 1])
    _, values = labels(frame, Task("a", missing="false"))
    np.testing.assert_array_equal(values[:, 0], [1, NAN, NAN, 1, 1])


def test_many_columns_with_the_same_code_are_told_once_and_in_short():
    frame = table(**{f"finding {n}": ["1", "0", "-1", "-1"] for n in range(14)})
    message = fault(frame, *infer_tasks(frame, "labels.csv"))
    assert "Task('finding 0', missing=-1)" in message and message.count("Task(") == 2
    assert "Columns with such cells: finding 0, finding 1" in message
    assert "; and 25 more." in message and len(message) < 700
