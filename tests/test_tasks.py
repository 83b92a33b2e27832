"""Tasks: names, kinds, and lists of them."""

import pytest

from kerasmtl.tasks import Task, all_binary, as_tasks, code_text, output_columns


def test_a_string_stands_for_a_binary_task_and_the_order_is_kept():
    assert as_tasks(["b", Task("a")]) == (Task("b", "binary"), Task("a"))


@pytest.mark.parametrize("name", ["", " ", " a", "a ", "a\n", 3, None])
def test_a_name_that_is_empty_or_has_blanks_at_its_ends_is_refused(name):
    with pytest.raises(ValueError, match="`name`"):
        Task(name)


@pytest.mark.parametrize("name", ["stop sign", "Ампель", "信号", "a[b]"])
def test_a_name_may_be_any_other_text(name):
    assert Task(name).name == name


@pytest.mark.parametrize("single", ["cat", Task("cat")])
def test_one_task_instead_of_a_list_is_refused(single):
    with pytest.raises(ValueError, match="`tasks`.*single task"):
        as_tasks(single)


def test_names_that_stand_twice_are_refused_by_name():
    with pytest.raises(ValueError, match=r"\['a', 'c'\]"):
        as_tasks(["a", "b", "a", "c", Task("c")])


# Kinds, codes and policies

GRADE = Task("grade", "multiclass", classes=("low", "mid", "high"))


def test_one_code_may_stand_for_a_list_and_classes_are_texts():
    task = Task("a", missing=-1, uncertain="maybe")
    assert (task.missing, task.uncertain) == ((-1,), ("maybe",))
    assert Task("g", "multiclass", classes=[1, "2 "]).classes == ("1", "2")


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(ValueError, match="`weight` of task 'a'"):
        Task("a", weight=weight)


@pytest.mark.parametrize("policy", ["maybe", 1.5, -0.1, float("nan")])
def test_an_unknown_policy_is_refused(policy):
    with pytest.raises(ValueError, match="`uncertain_as` of task 'a'"):
        Task("a", uncertain=-1, uncertain_as=policy)


@pytest.mark.parametrize("pair", [(-1, "-1"), ("-1.0", -1), ("U", "u "), (-1, -1.0)])
def test_a_code_both_missing_and_uncertain_is_refused_however_it_is_written(pair):
    with pytest.raises(ValueError, match="`missing` and `uncertain` of task 'a'"):
        Task("a", missing=pair[0], uncertain=pair[1])


@pytest.mark.parametrize("code", [0, "1", 1.0, "0.0"])
@pytest.mark.parametrize("argument", ["missing", "uncertain"])
def test_a_code_that_is_a_label_is_refused(argument, code):
    with pytest.raises(ValueError, match="`missing`"):
        Task("a", **{argument: code})


@pytest.mark.parametrize("classes", [("a",), ("a", "a"), ("a", "A"), ("1", "1.0")])
def test_classes_that_are_not_two_distinct_ones_are_refused(classes):
    with pytest.raises(ValueError, match="`classes`"):
        Task("g", "multiclass", classes=classes)


@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_classes_are_for_multiclass_alone(kind):
    with pytest.raises(ValueError, match="`classes`"):
        Task("a", kind, classes=("x", "y"))


@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_uncertain_is_for_binary_alone(kind):
    with pytest.raises(ValueError, match="`uncertain`"):
        Task("a", kind, uncertain=-1)


def test_a_task_has_one_output_or_one_for_each_class():
    assert [Task("a").outputs, Task("a", "regression").outputs, GRADE.outputs] == [1, 1, 3]
    with pytest.raises(ValueError, match="`classes`.*from_csv"):
        _ = Task("g", "multiclass").outputs


@pytest.mark.parametrize(
    ("code", "text"),
    [(-1, "-1"), (-1.0, "-1"), ("-1.0", "-1"), (" U ", "u"), (0.5, "0.5"), ("1e3", "1000"),
     ("1_000", "1_000"), ("\uff11", "\uff11"), (float("nan"), "nan"), ("INF", "inf")],
)  # fmt: skip
def test_codes_are_compared_as_numbers_where_they_are_such(code, text):
    assert code_text(code) == text


def test_binary_tasks_share_one_output_and_others_have_their_own():
    tasks = [Task("a"), GRADE, Task("b"), Task("size", "regression")]
    assert output_columns(tasks) == {"binary": (0, 2), "grade": (1,), "size": (3,)}
    assert not all_binary(tasks) and all_binary([Task("a"), Task("b")])


def test_a_task_named_as_the_shared_output_is_refused_among_other_kinds():
    with pytest.raises(ValueError, match="`tasks`.*'binary'"):
        as_tasks([Task("binary"), GRADE])
    assert as_tasks(["binary", "b"])[0].name == "binary"


def test_weights_that_sum_to_nothing_are_refused():
    with pytest.raises(ValueError, match=r"`weight`.*\['a', 'b'\]"):
        as_tasks([Task("a", weight=0), Task("b", weight=0)])
    assert len(as_tasks([Task("a", weight=0), Task("b")])) == 2


@pytest.mark.parametrize("argument", ["weight", "uncertain_as"])
@pytest.mark.parametrize("value", [None, [1], 1j])
def test_what_is_no_number_at_all_is_refused_by_name(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` of task 'a'"):
        Task("a", **{argument: value})
    with pytest.raises(ValueError, match="`weight` of task 'a'.*'1'"):
        Task("a", weight="1")
