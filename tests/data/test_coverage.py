"""What is known, counted as NumPy and pandas count it."""

import numpy as np
import pandas as pd

from kerasmtl.data.audit import class_faults, co_known, coverage, nothing_known
from kerasmtl.tasks import Task

NAN = float("nan")
TASKS = [
    Task("a", uncertain=-1, uncertain_as=0.5),
    Task("grade", "multiclass", classes=("low", "mid", "high")),
    Task("size", "regression"),
]
LABELS = np.array(
    [[1, 0, 2.5], [0, 2, NAN], [0.5, 2, 3.5], [NAN, NAN, NAN], [1, NAN, -1]], "float32"
)


def test_binary_tasks_alone_have_the_columns_of_counts():
    table = coverage(LABELS[:, :1], TASKS[:1])
    assert table.reset_index().to_dict(orient="records") == [
        {"task": "a", "kind": "binary", "known": 4, "positive": 2, "negative": 1, "share": 0.8}
    ]


def test_every_kind_has_what_it_can_have():
    table = coverage(LABELS, TASKS)
    assert table.kind.tolist() == ["binary", "multiclass", "regression"]
    assert table.known.tolist() == [4, 3, 3] and table.share.tolist() == [0.8, 0.6, 0.6]
    assert table.positive["a"] == 2 and table.positive.isna().tolist() == [False, True, True]
    assert table.classes["grade"] == {"low": 1, "mid": 0, "high": 2}
    known = LABELS[[0, 2, 4], 2]
    np.testing.assert_allclose(table.loc["size", ["mean", "std"]].tolist(), [5 / 3, known.std()])
    assert (table.positive.dropna() > 0).all()


def test_co_known_is_the_number_of_rows_with_both():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((70_000, 3)) < [0.1, 0.5, 0.9], 1.0, NAN).astype("float32")
    known = pd.DataFrame(~np.isnan(labels), columns=["x", "y", "z"]).astype(int)
    pd.testing.assert_frame_equal(co_known(labels, [Task(n) for n in "xyz"]), known.T @ known)


def test_rows_without_any_label_are_counted():
    assert nothing_known(LABELS) == 1 and nothing_known(LABELS[:3]) == 0


def test_what_cannot_be_learnt_is_named_for_every_kind():
    labels = np.array([[1, 2, 5], [1, 2, 5], [NAN, NAN, 5]], "float32")
    faults = class_faults(labels, TASKS)
    assert faults == {
        "a": "one class only among 3 rows: all 2 known labels are 1",
        "grade": "one class only among 3 rows: all 2 known labels are high",
        "size": "one value only among 3 rows: all 3 known labels are 5",
    }
    assert class_faults(LABELS, TASKS) == {}
    assert class_faults(labels[:0, :1], TASKS[:1]) == {"a": "no known label among 0 rows"}
