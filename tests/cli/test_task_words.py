"""Tasks as words of a command line."""

import pytest

from kerasmtl.cli.common import read_task
from kerasmtl.tasks import Task


@pytest.mark.parametrize(
    "word, task",
    [
        ("leak", Task("leak")),
        ("hours:regression", Task("hours", "regression")),
        ("leak:missing=-1", Task("leak", missing="-1")),
        ("leak:missing=-1,-9:weight=2", Task("leak", missing=("-1", "-9"), weight=2)),
        ("e:uncertain=-1:uncertain_as=one", Task("e", uncertain="-1", uncertain_as="one")),
        ("e:uncertain=-1:uncertain_as=0.5", Task("e", uncertain="-1", uncertain_as=0.5)),
        ("w:multiclass:classes=dry, wet", Task("w", "multiclass", classes=("dry", "wet"))),
        ("ratio:a:b", Task("ratio:a:b")),
        ("a:b:regression", Task("a:b", "regression")),
        ("regression", Task("regression")),
    ],
)
def test_what_follows_a_colon_is_kind_or_code(word, task):
    assert read_task(word) == task


@pytest.mark.parametrize(
    "word, message",
    [
        ("a:regression:binary", "names kind twice"),
        ("a:missing=1", "names a label"),
        ("a:weight=heavy", "`weight` of a task is no number"),
        ("a:uncertain_as=maybe", "`uncertain_as` of task 'a' is no policy"),
        (":regression", "`name` is not a task name"),
    ],
)
def test_what_is_wrong_is_named(word, message):
    with pytest.raises(ValueError, match=message):
        read_task(word)
