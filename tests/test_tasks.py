"""Tasks: names, kinds, codes, and lists of them."""

import pytest

from kerasmtl.tasks import Task, all_binary, as_tasks, code_text, output_columns

GRADE = Task("grade", "multiclass", classes=("low", "mid", "high"))
CLASSES = {"kind": "multiclass", "classes": ("low", "high")}


def test_a_string_is_a_binary_task_and_the_order_is_kept():
    assert as_tasks(["b", Task("a")]) == (Task("b", "binary"), Task("a"))
    assert as_tasks(name for name in "ab") == (Task("a"), Task("b"))


@pytest.mark.parametrize("name", ["stop sign", "Ампель", "信号", "a[b]"])
def test_a_name_may_be_any_text(name):
    assert Task(name).name == name


def test_one_code_may_be_given_for_a_list_and_classes_are_texts():
    task = Task("a", missing=-1, uncertain="maybe")
    assert (task.missing, task.uncertain) == ((-1,), ("maybe",))
    assert Task("g", "multiclass", classes=[1, "2 "]).classes == ("1", "2")


@pytest.mark.parametrize(
    ("argument", "task"),
    [
        *(("name", {"name": name}) for name in ("", " a", "a\n", 3, None)),
        ("kind", {"kind": "ranking"}),
        *(("weight", {"weight": weight}) for weight in (-1, float("nan"), float("inf"), "1", None)),
        *(("uncertain_as", {"uncertain_as": to}) for to in ("maybe", 1.5, float("nan"), [1], 1j)),
        *(("missing", {"missing": a, "uncertain": b}) for a, b in ((-1, "-1.0"), ("U", "u "))),
        *(("missing", {"missing": code}) for code in (0, "1", "0.0")),
        ("missing", {"uncertain": 1.0}),
        ("missing", {**CLASSES, "missing": "Low"}),
        *(
            ("classes", {"kind": "multiclass", "classes": classes})
            for classes in (("a",), ("a", "A"), ("1", "1.0"))
        ),
        ("classes", {"classes": ("x", "y")}),
        ("classes", {"kind": "regression", "classes": ("x", "y")}),
        ("uncertain", {**CLASSES, "uncertain": -1}),
        ("uncertain", {"kind": "regression", "uncertain": -1}),
    ],
)
def test_what_is_wrong_with_a_task_is_named(argument, task):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        Task(**{"name": "a", **task})


@pytest.mark.parametrize(
    ("message", "tasks"),
    [
        ("`tasks`.*single task", "cat"),
        ("`tasks`.*single task", Task("cat")),
        ("`tasks`", []),
        (r"`tasks`.*\['a', 'c'\]", ["a", "b", "a", "c", Task("c")]),
        ("`tasks`.*'binary'", [Task("binary"), GRADE]),
        (r"`weight`.*\['a', 'b'\]", [Task("a", weight=0), Task("b", weight=0)]),
    ],
)
def test_what_is_wrong_with_a_list_is_named(message, tasks):
    with pytest.raises(ValueError, match=message):
        as_tasks(tasks)


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
    assert as_tasks(["binary", "b"])[0].name == "binary"
