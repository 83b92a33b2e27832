"""Missing at random or not: said with evidence, and not without."""

import json

import numpy as np
import pandas as pd
import pytest

from kerasmtl.data.audit import audit, class_faults, co_known, coverage
from kerasmtl.tasks import Task

NAN = float("nan")


def tasks(count):
    return [Task(f"t{at}") for at in range(count)]


def related(rows, count, seed=0):
    """Binary labels that share a cause."""
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=(rows, 1))
    return (cause + rng.normal(size=(rows, count)) > 0).astype("float32"), rng


def with_missing(labels, missing):
    return np.where(missing, np.float32(NAN), labels)


@pytest.mark.parametrize("rows", [60, 2_000])
def test_labels_missing_at_random_are_never_called_predictable(rows):
    claims = 0
    for seed in range(2):
        labels, rng = related(rows, 4, seed)
        splits = rng.choice(["train", "test"], rows)
        found = audit(with_missing(labels, rng.random(labels.shape) < 0.4), tasks(4), splits)
        claims += (found.tasks.predictable != "").sum()
        assert (found.tasks.policy == "ignore").all()
    assert claims == 0


def test_labels_missing_because_of_another_label_are_found():
    labels, rng = related(2_000, 4)
    missing = np.zeros(labels.shape, dtype=bool)
    missing[:, 0] = rng.random(2_000) < np.where(labels[:, 1] == 1, 0.8, 0.2)
    found = audit(with_missing(labels, missing), tasks(4)).tasks
    assert found.predictable.tolist() == ["labels", "", "", ""]
    assert found.from_labels["t0"] == pytest.approx(0.8, abs=0.05)
    assert "not missing at random" in found.reason["t0"]
    assert found.policy["t0"] == "ignore"


def test_tasks_labelled_together_are_found_and_their_values_say_nothing():
    labels, rng = related(2_000, 4)
    missing = rng.random((2_000, 4)) < 0.5
    missing[:, 1] = missing[:, 0]
    found = audit(with_missing(labels, missing), tasks(4)).tasks
    assert found.predictable.tolist() == ["known", "known", "", ""]
    assert found.from_known["t0"] > 0.99 and found.from_labels["t2"] < 0.6


def test_a_split_that_was_labelled_unlike_is_found():
    labels, rng = related(2_000, 3)
    splits = rng.choice(["train", "test"], 2_000)
    missing = rng.random((2_000, 3)) < 0.5
    missing[:, 2] = rng.random(2_000) < np.where(splits == "test", 0.1, 0.9)
    found = audit(with_missing(labels, missing), tasks(3), splits).tasks
    assert found.predictable.tolist() == ["", "", "split"]
    assert "the split (AUC" in found.reason["t2"]
    assert np.isnan(audit(with_missing(labels, missing), tasks(3)).tasks.from_split).all()


def test_positives_only_asks_for_another_loss():
    labels, rng = related(500, 3)
    labels[:, 1] = np.where(labels[:, 1] == 1, 1, NAN)
    found = audit(labels, tasks(3)).tasks
    other = "AssumeNegative (WAN), ExpectedPositives (EPR) or LargeLoss (LL-R)"
    assert found.policy.tolist() == ["ignore", other, "ignore"]
    assert found.reason["t1"].startswith("positives only: 0 of")
    assert found.reason["t0"] == "every label is known"


@pytest.mark.parametrize("negatives, only", [(0, True), (3, True), (30, False)])
def test_a_few_negatives_do_not_change_the_advice(negatives, only):
    labels = np.full((3_000, 2), NAN, "float32")
    labels[:443, 0] = 1
    labels[443 : 443 + negatives, 0] = 0
    labels[:, 1] = np.arange(3_000) % 2
    found = audit(labels, tasks(2))
    assert found.tasks.policy["t0"].startswith("AssumeNegative") == only
    if negatives and only:
        assert "nearly positives only: 3 of 446" in found.tasks.reason["t0"]


def test_one_class_only_is_left_out():
    labels = np.full((200, 3), NAN, "float32")
    labels[:90, 0], labels[:, 1], labels[:, 2] = 0, 1, np.arange(200) % 2
    found = audit(labels, tasks(3)).tasks
    assert found.policy.tolist() == ["leave out", "leave out", "ignore"]
    assert "negatives only" in found.reason["t0"] and "200 labels are 1" in found.reason["t1"]


@pytest.mark.parametrize("rows", [0, 1, 30])
def test_tiny_data_are_not_judged(rows):
    labels, rng = related(rows, 3)
    partly_known = with_missing(labels, rng.random(labels.shape) < 0.5)
    found = audit(partly_known, tasks(3), np.array(["train", "test"] * rows)[:rows])
    assert (found.tasks.predictable == "").all()
    assert found.tasks[["from_known", "from_labels", "from_split"]].isna().all().all()
    json.dumps(found.to_dict(), allow_nan=False)


def test_kinds_may_be_mixed():
    rng = np.random.default_rng(0)
    labels = np.column_stack(
        [rng.integers(0, 3, 1_500), rng.normal(5, 2, 1_500), rng.integers(0, 2, 1_500)]
    ).astype("float32")
    labels[(labels[:, 0] == 1) & (rng.random(1_500) < 0.9), 1] = NAN
    mixed = [Task("g", "multiclass", classes=("a", "b", "c")), Task("s", "regression"), Task("x")]
    assert audit(labels, mixed).tasks.predictable.tolist() == ["", "labels", ""]


def advice(labels):
    return " ".join(audit(labels, tasks(labels.shape[1])).advice)


def test_advice_names_amounts():
    labels, _ = related(1_500, 2)
    assert advice(labels) == ""
    labels[100:, 1] = NAN
    assert "Known labels per task: 100 ('t1') to 1500 ('t0')" in advice(labels)


def test_rows_without_labels_do_not_count():
    labels = np.zeros((2_100, 1), "float32")
    labels[:200] = NAN
    assert "200 of 2100 rows have no label" in advice(labels)


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
    assert audit(LABELS, TASKS).nothing_known == 1


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
