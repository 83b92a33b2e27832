"""Scores against scikit-learn on deleted cells, and percentile intervals."""

import keras
import numpy as np
import pytest
import reference
import reference_scores as truth
import tensorflow as tf
from sklearn import metrics
from sklearn.metrics import average_precision_score

import kerasmtl as kt
from kerasmtl.evaluation.evaluate import intervals
from kerasmtl.evaluation.report import BinaryScores, Report

NAN = float("nan")


def echo(tasks):
    """A model that predicts its input."""
    inputs = keras.Input((tasks,))
    return keras.Model(inputs, keras.layers.Activation("linear")(inputs))


def scored(y, p, names=None, batch=16, **options):
    dataset = tf.data.Dataset.from_tensor_slices((p, y)).batch(batch)
    names = names or [f"task {j}" for j in range(y.shape[1])]
    return kt.evaluate(echo(p.shape[1]), dataset, tasks=names, **options)


def column(report, score):
    return [getattr(scores, score) for scores in report.tasks.values()]


@pytest.mark.parametrize("known", [0.1, 1.0])
def test_scores_are_those_of_the_known_labels(known, threshold=0.3):
    y, p = reference.case(rows=300, tasks=5, known=known)
    report = scored(y, p, threshold=threshold)
    precision = [average_precision_score(*reference.cells(y[:, j], p[:, j])) for j in range(5)]
    accuracy = reference.accuracy_per_task(y, p, threshold)
    assert report.rows == 300
    assert column(report, "known") == (~np.isnan(y)).sum(0).tolist()
    assert column(report, "positive") == (y == 1).sum(0).tolist()
    np.testing.assert_allclose(column(report, "auc"), reference.auc_per_task(y, p), rtol=1e-12)
    np.testing.assert_allclose(column(report, "average_precision"), precision, rtol=1e-12)
    np.testing.assert_allclose(column(report, "accuracy"), accuracy, rtol=1e-12)
    np.testing.assert_allclose(report.macro_auc, reference.auc_per_task(y, p).mean(), rtol=1e-12)


@pytest.mark.parametrize("threshold", [0.3, np.float64(0.7)])
def test_a_probability_at_the_threshold_is_a_one(threshold):
    y = np.array([[0.0], [1.0], [0.0], [0.0]], "float32")
    report = scored(y, np.full((4, 1), threshold, "float32"), threshold=threshold, bootstrap=3)
    assert column(report, "accuracy") == [0.25] and column(report, "f1") == [pytest.approx(0.4)]
    assert 0 < report.bootstrap.tasks["task 0"]["f1"].high


def test_each_task_may_have_a_threshold_of_its_own():
    y, p = reference.case(rows=300)
    names = [f"task {column}" for column in range(y.shape[1])]
    at = dict(zip(names, np.linspace(0.2, 0.8, len(names)), strict=True))
    del at[names[-1]]  # 0.5
    report = scored(y, p, threshold=at, bootstrap=2)
    assert report.thresholds == at | {names[-1]: 0.5} == report.to_dict()["thresholds"]
    decided = np.stack([p[:, n] >= report.thresholds[name] for n, name in enumerate(names)], 1)
    known = ~np.isnan(y)
    for column, name in enumerate(names):
        cells = known[:, column]
        expected = (decided[cells, column] == (y[cells, column] == 1)).mean()
        assert report.tasks[name].accuracy == pytest.approx(expected)
    assert report.micro["binary"].accuracy == pytest.approx((decided == (y == 1))[known].mean())
    with pytest.raises(ValueError, match="`threshold`.*'nobody'"):
        scored(y, p, threshold={"nobody": 0.5})


@pytest.mark.parametrize("hidden", [1.0, NAN, np.inf])
def test_predictions_under_missing_labels_have_no_influence(hidden):
    y, p = reference.case(rows=60, tasks=3)
    assert scored(y, np.where(np.isnan(y), np.float32(hidden), p)) == scored(y, p)


def test_scores_that_are_not_defined_are_nan_and_not_in_the_mean():
    y, p = reference.case(rows=60, tasks=4, known=1.0)
    y[:, 1], y[:, 2], y[:, 3] = NAN, 1, 0
    report = scored(y, p, ["both", "none", "ones", "zeros"])
    none, ones, zeros = (report.tasks[name] for name in ("none", "ones", "zeros"))
    assert (none.known, none.positive) == (0, 0)
    assert np.isnan([none.auc, none.average_precision, none.accuracy]).all()
    assert np.isnan([ones.auc, zeros.auc, zeros.average_precision]).all()
    assert ones.accuracy == (p[:, 2] >= 0.5).mean() and ones.average_precision == 1
    assert report.macro_auc == report.tasks["both"].auc == reference.auc_per_task(y, p)[0]


@pytest.mark.parametrize(
    ("argument", "value"),
    [("threshold", 1.5), ("threshold", "0.5"), ("threshold", True), ("recall", 0), ("recall", "1")]
    + [("bootstrap", -1), ("groups", ["a"]), ("tasks", ["a"]), ("tasks", ["a", "b", "c"])],
)
def test_arguments_are_checked(argument, value):
    y, p = reference.case(rows=20, tasks=2)
    given = {"tasks": ["a", "b"], argument: value}
    with pytest.raises(ValueError, match=f"`{argument}`"):
        kt.evaluate(echo(2), [(p, y)], **given)
    with pytest.raises(ValueError, match="`dataset`.*3 parts"):
        kt.evaluate(echo(2), [(p, y, np.ones(20))], ["a", "b"])


@pytest.mark.parametrize("code", [-1.0, 0.5])
def test_invalid_labels_and_predictions_are_named_by_task(code):
    y, p = reference.case(rows=20, tasks=2, known=1.0)
    p[3:5, 1] = NAN
    with pytest.raises(ValueError, match="`model`.*NaN for 2 known labels of task 'b'"):
        scored(y, p, ["a", "b"])
    y[3, 1] = code
    with pytest.raises(ValueError, match=f"`dataset`.*'b'.*{code}"):
        scored(y, p, ["a", "b"])


MIXED = [
    kt.Task("colour", "multiclass", classes=("red", "green", "blue")),
    "cat",
    kt.Task("size", "regression"),
    "dog",
]


def mixed_data(rows=90, known=0.7, seed=0):
    """Labels and predictions by output, with missing labels."""
    rng = np.random.default_rng(seed)
    y, p = reference.case(seed, rows, 2, known)
    size = rng.normal(5, 2, (rows, 1)).astype("float32")
    colour = rng.integers(0, 3, (rows, 1)).astype("float32")
    labels = {"colour": colour, "binary": y, "size": size}
    predictions = {
        "colour": rng.dirichlet(np.ones(3), rows).astype("float32"),
        "binary": p,
        "size": (size + rng.normal(size=size.shape)).astype("float32"),
    }
    for key in ("colour", "size"):
        labels[key] = np.where(rng.random((rows, 1)) > known, np.float32(NAN), labels[key])
    return labels, predictions


def echo_dict(predictions):
    """A model that predicts its inputs."""
    inputs = {key: keras.Input(p.shape[1:], name=key) for key, p in predictions.items()}
    layer = keras.layers.Activation("linear")
    return keras.Model(inputs, {key: layer(tensor) for key, tensor in inputs.items()})


def scored_mixed(labels, predictions, tasks=MIXED, **options):
    dataset = tf.data.Dataset.from_tensor_slices((predictions, labels)).batch(16)
    return kt.evaluate(echo_dict(predictions), dataset, tasks, **options)


def known_of(labels, predictions, key):
    keep = np.flatnonzero(~np.isnan(labels[key][:, 0]))
    return labels[key][keep, 0].astype("float64"), predictions[key][keep].astype("float64")


def test_each_kind_has_its_scores():
    labels, predictions = mixed_data()
    report = scored_mixed(labels, predictions)
    assert list(report.tasks) == ["colour", "cat", "size", "dog"]
    y, p = known_of(labels, predictions, "colour")
    colour = report.tasks["colour"]
    assert (colour.known, colour.classes) == (len(y), 3)
    np.testing.assert_allclose(colour.accuracy, (p.argmax(1) == y).mean())
    np.testing.assert_allclose(
        colour.auc, metrics.roc_auc_score(y, p / p.sum(1, keepdims=True), multi_class="ovr")
    )
    np.testing.assert_allclose(
        colour.log_loss, -np.log(p[np.arange(len(y)), y.astype(int)]).mean(), rtol=1e-6
    )
    y, p = known_of(labels, predictions, "size")
    size = report.tasks["size"]
    np.testing.assert_allclose(size.mae, np.abs(y - p[:, 0]).mean())
    np.testing.assert_allclose(size.rmse, np.sqrt(((y - p[:, 0]) ** 2).mean()))
    np.testing.assert_allclose(size.r2, 1 - ((y - p[:, 0]) ** 2).sum() / (len(y) * y.var()))
    aucs = reference.auc_per_task(labels["binary"], predictions["binary"])
    np.testing.assert_allclose([report.tasks["cat"].auc, report.tasks["dog"].auc], aucs)
    np.testing.assert_allclose(report.macro("auc"), aucs.mean())
    assert report.defined("auc") == 2 and report.defined("r2", "regression") == 1


def test_binary_scores_beyond_auc_are_those_of_the_known_labels():
    y, p = reference.case(rows=300, tasks=4)
    report = scored(y, p)
    for name in ("f1", "brier", "ece"):
        expected = truth.per_task(getattr(truth, name), y, p)
        np.testing.assert_allclose(column(report, name), expected, rtol=1e-6)
        np.testing.assert_allclose(report.macro(name), expected.mean(), rtol=1e-6)
        pooled = truth.pooled(getattr(truth, name), y, p)
        np.testing.assert_allclose(getattr(report.micro["binary"], name), pooled, rtol=1e-6)
    np.testing.assert_allclose(report.micro["binary"].auc, truth.pooled(truth.auc, y, p))
    assert report.micro["binary"].known == (~np.isnan(y)).sum()


def test_a_class_that_no_known_label_has_is_not_in_the_auc():
    labels, predictions = mixed_data(known=1.0)
    labels["colour"][labels["colour"] == 2] = 0
    y, p = known_of(labels, predictions, "colour")
    expected = np.mean([metrics.roc_auc_score(y == label, p[:, label]) for label in (0, 1)])
    colour = scored_mixed(labels, predictions).tasks["colour"]
    np.testing.assert_allclose(colour.auc, expected)
    labels["colour"][:] = 1
    one = scored_mixed(labels, predictions).tasks["colour"]
    assert np.isnan(one.auc) and one.classes == 1 and one.log_loss > 0
    labels["colour"][:], labels["size"][:] = NAN, 3
    none = scored_mixed(labels, predictions)
    assert none.tasks["colour"].known == 0 and np.isnan(none.tasks["colour"].accuracy)
    assert np.isnan(none.tasks["size"].r2) and none.tasks["size"].mae > 0


def test_one_task_that_is_not_binary_needs_no_dict():
    labels, predictions = mixed_data()
    y, p = labels["size"], predictions["size"]
    report = kt.evaluate(echo(1), [(p, y)], [MIXED[2]])
    assert report.tasks["size"] == scored_mixed(labels, predictions).tasks["size"]
    assert np.isnan(report.macro_auc)
    assert kt.evaluate(echo(1), [(p, y[:, 0])], [MIXED[2]]) == report


def test_an_output_that_the_model_lacks_is_named():
    labels, predictions = mixed_data()
    del predictions["size"]
    with pytest.raises(ValueError, match="`model`.*'size'.*colour"):
        scored_mixed(labels, predictions)
    labels, predictions = mixed_data()
    del labels["colour"]
    with pytest.raises(ValueError, match="`dataset`.*'colour'"):
        scored_mixed(labels, predictions)
    y, p = reference.case(rows=20, tasks=4)
    with pytest.raises(ValueError, match="`(dataset|model)`.*'colour', 'binary', 'size'"):
        kt.evaluate(echo(4), [(p, y)], MIXED)


def test_columns_and_classes_that_do_not_fit_name_the_task():
    labels, predictions = mixed_data()
    labels["binary"] = labels["binary"][:, :1]
    with pytest.raises(ValueError, match=r"`tasks`.*\['dog'\]"):
        scored_mixed(labels, predictions)
    labels, predictions = mixed_data()
    predictions["colour"] = predictions["colour"][:, :2]
    with pytest.raises(ValueError, match=r"`tasks`.*'colour'.*\(rows, 3\).*\(90, 2\)"):
        scored_mixed(labels, predictions)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("colour", NAN, "NaN for 1 known labels of task 'colour'"),
        ("size", np.inf, "finite numbers for task 'size'"),
        ("binary", 1.5, "from 0 to 1 for task 'cat'.*1.5"),
        ("colour", 0.9, "sum to 1 for task 'colour'"),
    ],
)
def test_predictions_that_cannot_be_scored_are_refused(key, value, message):
    labels, predictions = mixed_data()
    row = int(np.flatnonzero(~np.isnan(labels[key][:, 0]))[0])
    predictions[key][row] = value
    with pytest.raises(ValueError, match=message):
        scored_mixed(labels, predictions)
    labels[key][row] = NAN
    assert scored_mixed(labels, predictions).rows == 90


@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_whole_labels_are_scored_beside_a_softened_policy(dtype):
    p = np.array([[0.1], [0.8], [0.3], [0.9]], "float32")
    y = np.array([[0], [1], [0], [1]], dtype)
    task = kt.Task("a", uncertain=(-1,), uncertain_as=0.3)
    scores = kt.evaluate(echo(1), [(p, y)], [task]).tasks["a"]
    assert (scores.known, scores.positive, scores.accuracy) == (4, 2, 1.0)
    if dtype != "int64":
        y[0] = 0.3
        assert kt.evaluate(echo(1), [(p, y)], [task]).tasks["a"].known == 3


@pytest.mark.parametrize("wanted", [0.5, 1.0])
def test_precision_at_a_recall_is_that_of_the_known_labels(wanted):
    y, p = reference.case(rows=200, tasks=4)
    y[:, 3] = np.where(np.isnan(y[:, 3]), NAN, 0)
    report = scored(y, p, recall=wanted)

    def score(labels, predictions):
        return truth.precision_at_recall(labels, predictions, wanted)

    expected = truth.per_task(score, y, p)
    np.testing.assert_allclose(column(report, "precision_at_recall"), expected, rtol=1e-12)
    np.testing.assert_allclose(report.macro("precision_at_recall"), np.nanmean(expected))
    pooled = report.micro["binary"].precision_at_recall
    np.testing.assert_allclose(pooled, truth.pooled(score, y, p), rtol=1e-12)
    assert report.defined("precision_at_recall") == 3 and report.recall == wanted
    headers = [" ".join(str(column.header).split()) for column in report.table().columns]
    assert any(f"precision at {wanted:g}" in header for header in headers)
    found = report.to_dict()
    assert found["recall"] == wanted and found["tasks"]["task 3"]["precision_at_recall"] is None
    without = scored(y, p)
    assert "precision_at_recall" not in str(without.to_dict()) + str(without)


def test_outputs_and_columns_without_a_task_are_named():
    labels, predictions = mixed_data()
    with pytest.raises(ValueError, match="`tasks`, got .*'size'"):
        scored_mixed(labels, predictions, [MIXED[0], "cat", "dog"])
    y, p = reference.case(rows=20, tasks=3)
    with pytest.raises(ValueError, match=r"`tasks`.*\[1, 2\]"):
        scored(y, p, ["a"])


# Intervals


def report_of_counts(score):
    """A report whose accuracy is a score of how often each row was drawn."""
    return lambda counts: Report(
        len(counts), {"a": BinaryScores(len(counts), 1, NAN, NAN, score(counts))}
    )


def test_each_draw_has_as_many_rows_as_the_data_and_whole_groups():
    drawn = []

    def score(counts):
        drawn.append(counts)
        return float(counts[0])

    found = intervals(report_of_counts(score), np.arange(8), 20, seed=1)
    assert found.draws == 20 and all(counts.sum() == 8 for counts in drawn)
    values = [float(counts[0]) for counts in drawn]
    expected = np.percentile(values, (2.5, 97.5))
    interval = found.tasks["a"]["accuracy"]
    np.testing.assert_allclose((interval.low, interval.high), expected)
    drawn.clear()
    groups = np.array([0, 1, 0, 2, 1, 0])
    intervals(report_of_counts(score), groups, 20, seed=1)
    for counts in drawn:
        assert all(len(set(counts[groups == group])) == 1 for group in range(3))
        assert sum(counts[groups == group][0] for group in range(3)) == 3


def test_a_draw_is_scored_as_its_rows_repeated():
    y, p = reference.case(rows=40, tasks=2)
    report = scored(y, p, bootstrap=1, seed=5)
    counts = np.bincount(np.random.default_rng(5).integers(0, 40, 40), minlength=40)
    again = scored(np.repeat(y, counts, axis=0), np.repeat(p, counts, axis=0))
    for name, scores in again.tasks.items():
        for score, interval in report.bootstrap.tasks[name].items():
            np.testing.assert_equal(interval.low, getattr(scores, score))
    np.testing.assert_equal(report.bootstrap.macro["binary"]["auc"].low, again.macro_auc)
    np.testing.assert_equal(report.bootstrap.micro["binary"]["f1"].low, again.micro["binary"].f1)


def test_the_interval_of_an_accuracy_is_that_of_a_share():
    y, p = reference.case(rows=1000, tasks=1, known=1.0)
    right = (p[:, 0] >= 0.5) == (y[:, 0] == 1)
    found = intervals(report_of_counts(lambda counts: counts @ right / 1000), np.arange(1000), 1000)
    reach = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 1000)
    interval = found.tasks["a"]["accuracy"]
    expected = (right.mean() - reach, right.mean() + reach)
    np.testing.assert_allclose((interval.low, interval.high), expected, atol=4e-3)


def test_draws_that_define_no_score_are_counted():
    y, p = reference.case(rows=40, tasks=2, known=1.0)
    y[:, 0] = 0
    y[3, 0] = 1
    report = scored(y, p, bootstrap=100)
    rare = report.bootstrap.tasks["task 0"]["auc"]
    # One positive of 40 is not drawn in (39/40)^40 = 36 % of the draws.
    assert 20 < rare.undefined < 55 and np.isfinite([rare.low, rare.high]).all()
    assert report.bootstrap.tasks["task 0"]["accuracy"].undefined == 0
    assert report.bootstrap.macro["binary"]["auc"].undefined == 0
    y[:, 0] = NAN
    none = scored(y, p, bootstrap=5).bootstrap.tasks["task 0"]["auc"]
    assert none.undefined == 5 and np.isnan([none.low, none.high]).all()


def test_all_kinds_have_intervals_and_a_recall_only_where_it_is_asked_for():
    found = scored_mixed(*mixed_data(), bootstrap=5).bootstrap
    assert list(found.tasks) == [task if isinstance(task, str) else task.name for task in MIXED]
    assert set(found.tasks["colour"]) == {"accuracy", "auc", "log_loss"}
    assert set(found.tasks["size"]) == {"mae", "rmse", "r2"}
    assert set(found.micro["multiclass"]) == {"accuracy", "log_loss"}
    assert found.tasks["size"] == found.macro["regression"]
    assert "precision_at_recall" not in found.tasks["cat"]
    y, p = reference.case(rows=100, tasks=2)
    report = scored(y, p, bootstrap=40, recall=0.8)
    interval = report.bootstrap.tasks["task 0"]["precision_at_recall"]
    assert interval.low <= report.tasks["task 0"].precision_at_recall <= interval.high
