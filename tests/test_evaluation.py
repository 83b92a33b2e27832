"""Exact scores against scikit-learn on deleted cells."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from sklearn.metrics import average_precision_score

import kerasmtl as kt

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


@pytest.mark.parametrize("known", [0.1, 0.6, 1.0])
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_scores_are_those_of_the_known_cells(known, threshold):
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


@pytest.mark.parametrize("hidden", [0.0, 1.0, NAN, np.inf])
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
    assert ones.accuracy == (p[:, 2] > 0.5).mean() and ones.average_precision == 1
    assert report.macro_auc == report.tasks["both"].auc == reference.auc_per_task(y, p)[0]


def test_without_any_label_the_mean_is_nan():
    y, p = np.full((4, 2), NAN, "float32"), np.zeros((4, 2), "float32")
    assert np.isnan(scored(y, p).macro_auc)


def test_the_tasks_name_the_columns_in_order():
    y, p = reference.case(rows=60, tasks=3)
    forward = scored(y, p, ["a", "b", "c"])
    assert list(forward.tasks) == ["a", "b", "c"]
    assert scored(y[:, ::-1], p[:, ::-1], ["c", "b", "a"]).tasks == forward.tasks


def test_the_streaming_metrics_agree():
    y, p = reference.case(rows=2000, tasks=3)
    report = scored(y, p)
    auc, accuracy = kt.MaskedAUC(), kt.MaskedBinaryAccuracy()
    auc.update_state(y, p)
    accuracy.update_state(y, p)
    np.testing.assert_allclose(auc.result_per_task(), column(report, "auc"), atol=2e-3)
    np.testing.assert_allclose(accuracy.result_per_task(), column(report, "accuracy"), rtol=1e-6)


def test_labels_and_predictions_of_a_shuffled_data_set_stay_together():
    y, p = reference.case(rows=100, tasks=2)
    dataset = tf.data.Dataset.from_tensor_slices((p, y)).shuffle(100).batch(7)
    report = kt.evaluate(echo(2), dataset, ["a", "b"])
    np.testing.assert_allclose(column(report, "auc"), reference.auc_per_task(y, p), rtol=1e-12)


def test_any_iterable_of_batches_will_do():
    y, p = reference.case(rows=20, tasks=2)
    batches = iter([(p[:8], y[:8]), (p[8:], y[8:])])
    assert kt.evaluate(echo(2), batches, ["a", "b"]) == scored(y, p, ["a", "b"])


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_a_number_of_tasks_that_does_not_fit_is_refused_with_both_shapes(names):
    y, p = reference.case(rows=20, tasks=2)
    with pytest.raises(ValueError, match=r"`tasks` does not fit.*\(20, 2\).*\(20, 2\)"):
        scored(y, p, names)


def test_labels_that_do_not_fit_the_model_are_refused():
    y, p = reference.case(rows=20, tasks=3)
    with pytest.raises(ValueError, match=r"labels \(20, 2\), predictions \(20, 3\)"):
        scored(y[:, :2], p, ["a", "b", "c"])


def test_nan_predictions_of_known_labels_are_refused_by_task():
    y, p = reference.case(rows=20, tasks=2, known=1.0)
    p[3:5, 1] = NAN
    with pytest.raises(ValueError, match="predicts NaN for 2 known labels of task 'b'"):
        scored(y, p, ["a", "b"])


@pytest.mark.parametrize("code", [-1.0, 0.5, 2.0])
def test_labels_that_are_none_of_0_1_and_nan_are_refused_not_counted(code):
    y, p = reference.case(rows=20, tasks=2)
    y[3, 1] = code
    with pytest.raises(ValueError, match=f"labels of task 'b' other than 0, 1 and NaN.*{code}"):
        scored(y, p, ["a", "b"])


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="`dataset` is empty"):
        kt.evaluate(echo(2), [], ["a", "b"])
