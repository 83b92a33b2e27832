"""Tasks: names, kinds, and lists of them."""

import pytest

from kerasmtl.tasks import Task, as_tasks


def test_a_string_stands_for_a_binary_task_and_the_order_is_kept():
    assert as_tasks(["b", Task("a")]) == (Task("b", "binary"), Task("a"))


def test_any_iterable_of_tasks_will_do():
    assert as_tasks(name for name in "ab") == (Task("a"), Task("b"))


@pytest.mark.parametrize("name", ["", " ", " a", "a ", "a\n", 3, None])
def test_a_name_that_is_empty_or_has_blanks_at_its_ends_is_refused(name):
    with pytest.raises(ValueError, match="`name` is not a task name"):
        Task(name)


@pytest.mark.parametrize("name", ["stop sign", "Ампель", "信号", "a[b]"])
def test_a_name_may_be_any_other_text(name):
    assert Task(name).name == name


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="`kind` is unknown.*'ranking'"):
        Task("a", kind="ranking")


@pytest.mark.parametrize("single", ["cat", Task("cat")])
def test_one_task_instead_of_a_list_is_refused(single):
    with pytest.raises(ValueError, match="single task.*Expected a list"):
        as_tasks(single)


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="at least one task"):
        as_tasks([])


def test_names_that_stand_twice_are_refused_by_name():
    with pytest.raises(ValueError, match=r"\['a', 'c'\]"):
        as_tasks(["a", "b", "a", "c", Task("c")])


def test_a_task_cannot_be_changed():
    with pytest.raises(AttributeError):
        Task("a").name = "b"
