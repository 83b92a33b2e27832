"""What every masked metric promises, by one table of all of them."""

import json
import subprocess
import sys
import warnings
from functools import partial

import keras
import numpy as np
import pytest
import reference_scores as truth
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from modules import HELPERS

import kerasmtl as kt
from kerasmtl.metrics import MaskedMetric

NAN = float("nan")
HIDDEN = [0.0, 1.0, 0.3, 1e30, -1e30, NAN, np.inf, -np.inf]
# Two of these never share a bin of the ranking metrics, whose results are exact then.
VALUES = np.array([0.02, 0.1, 0.3, 0.45, 0.5, 0.62, 0.9, 0.99], "float32")


def binary(seed, rows, known, tasks=3):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, (rows, tasks)).astype("float32")
    p = rng.choice(VALUES, y.shape)
    y[rng.random(y.shape) > known] = NAN
    return y, p


def classes(seed, rows, known):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, (rows, 1)).astype("float32")
    p = rng.dirichlet(np.ones(4), rows).astype("float32")
    y[rng.random(y.shape) > known] = NAN
    return y, p


def numbers(seed, rows, known, tasks=3):
    rng = np.random.default_rng(seed)
    y = rng.normal(3.0, 2.0, (rows, tasks)).astype("float32")
    p = (y + rng.normal(size=y.shape)).astype("float32")
    y[rng.random(y.shape) > known] = NAN
    return y, p


# The class, its reference, its data; what the reference knows of its settings is bound here.
TABLE = {
    "auc": (kt.metrics.MaskedAUC, truth.auc, binary),
    "average_precision": (kt.metrics.MaskedAveragePrecision, truth.average_precision, binary),
    "accuracy": (kt.metrics.MaskedBinaryAccuracy, truth.accuracy, binary),
    "f1": (kt.metrics.MaskedF1, truth.f1, binary),
    "precision_at_recall": (
        partial(kt.metrics.MaskedPrecisionAtRecall, 0.7),
        truth.precision_at_recall,
        binary,
    ),
    "brier": (kt.metrics.MaskedBrier, truth.brier, binary),
    "ece": (kt.metrics.MaskedECE, truth.ece, binary),
    "categorical_accuracy": (
        kt.metrics.MaskedCategoricalAccuracy,
        truth.categorical_accuracy,
        classes,
    ),
    "mae": (kt.metrics.MaskedMAE, truth.mae, numbers),
    "rmse": (kt.metrics.MaskedRMSE, truth.rmse, numbers),
    "r2": (kt.metrics.MaskedR2, truth.r2, numbers),
}
every = pytest.mark.parametrize("name", TABLE)
averaged = pytest.mark.parametrize("name", [n for n in TABLE if n != "categorical_accuracy"])
few = settings(max_examples=8, deadline=None, derandomize=True)
holes = st.sampled_from([0.05, 0.3, 0.7, 1.0])
seeds = st.integers(0, 10_000)


def updated(metric, y, p, batch=None, weight=None):
    for start in range(0, len(y), batch or len(y)):
        rows = slice(start, start + (batch or len(y)))
        metric.update_state(y[rows], p[rows], None if weight is None else weight[rows])
    return metric


def state(metric):
    return b"".join(variable.numpy().tobytes() for variable in metric.variables)


def hide(y, p, value):
    """The same predictions with `value` wherever the label is missing."""
    missing = np.isnan(y) if p.shape == y.shape else np.isnan(y[:, :1])
    return np.where(missing, np.float32(value), p)


def test_the_table_names_every_metric():
    exported = {n for n in kt.__all__ if isinstance(c := getattr(kt, n), type) and is_metric(c)}
    assert exported == {type(make()).__name__ for make, _, _ in TABLE.values()}


def is_metric(cls):
    return issubclass(cls, MaskedMetric)


@every
@few
@given(seed=seeds, known=holes, rows=st.integers(1, 40))
def test_it_is_the_score_of_the_known_cells(name, seed, known, rows):
    make, score, data = TABLE[name]
    y, p = data(seed, rows, known)
    metric = updated(make(), y, p, batch=16)
    expected = truth.per_task(score, y, p)
    # A sum of squares minus the square of a sum keeps fewer digits.
    np.testing.assert_allclose(metric.per_task(), expected, rtol=1e-6, atol=1e-7)
    assert metric.defined() == (~np.isnan(expected)).sum()
    mean = np.nanmean(expected) if metric.defined() else NAN
    np.testing.assert_allclose(metric.result(), mean, rtol=1e-5, atol=1e-6)
    assert metric.result().shape == () and metric.result().dtype == "float32"


@averaged
@few
@given(seed=seeds, known=holes)
def test_micro_pools_the_known_cells_and_none_gives_them_by_task(name, seed, known):
    make, score, data = TABLE[name]
    y, p = data(seed, 30, known)
    micro, none = updated(make(average="micro"), y, p), updated(make(average="none"), y, p)
    np.testing.assert_allclose(micro.result(), truth.pooled(score, y, p), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(none.result(), none.per_task(), rtol=1e-6)
    np.testing.assert_array_equal(micro.per_task(), none.per_task())


@every
@settings(few, max_examples=4)
@given(seed=seeds, known=holes, code=st.sampled_from([NAN, -1.0]))
def test_nothing_under_a_missing_cell_changes_a_bit(name, seed, known, code):
    make, _, data = TABLE[name]
    y, p = data(seed, 24, known)
    coded = np.where(np.isnan(y), np.float32(code), y)
    seen = {
        state(metric) + metric.result().numpy().tobytes()
        for hidden in HIDDEN
        for metric in [updated(make(missing=-1), coded, hide(y, p, hidden), batch=10)]
    }
    assert seen == {state(m := updated(make(), y, p, batch=10)) + m.result().numpy().tobytes()}


@every
@pytest.mark.parametrize("xla", [None, False, True], ids=["eager", "graph", "xla"])
def test_a_nan_prediction_of_a_known_label_is_never_hidden(name, xla):
    make, _, data = TABLE[name]
    y, p = data(1, 24, 0.6)
    row, column = np.argwhere(~np.isnan(y))[3]
    p[row, column] = NAN
    for average in ("macro", "micro"):
        metric = make() if name == "categorical_accuracy" else make(average=average)
        update = metric.update_state
        updated(metric, *data(2, 24, 0.6))
        assert np.isfinite(metric.result())
        update = update if xla is None else tf.function(update, jit_compile=xla)
        update(tf.constant(y), tf.constant(p))
        updated(metric, *data(3, 24, 0.6))
        assert np.isnan(metric.result())
        np.testing.assert_array_equal(
            np.isnan(metric.per_task()), np.arange(len(metric.per_task())) == column
        )
        metric.reset_state()
        updated(metric, *data(2, 24, 0.6))
        assert np.isfinite(metric.result())


@every
@pytest.mark.parametrize("label", [np.inf, -np.inf, -1.0, 5.0])
def test_a_label_that_is_none_makes_the_result_nan(name, label):
    make, _, data = TABLE[name]
    y, p = data(1, 24, 0.6)
    y[tuple(np.argwhere(~np.isnan(y))[0])] = label
    is_number = data is numbers and np.isfinite(label)
    assert np.isnan(updated(make(), y, p).result()) != is_number


@pytest.mark.parametrize("name", [n for n, row in TABLE.items() if row[2] is binary])
@pytest.mark.parametrize("p", [-0.1, 1.1, 7.0, np.inf])
def test_a_logit_taken_for_a_probability_makes_the_result_nan(name, p):
    make, _, data = TABLE[name]
    y, predicted = data(1, 24, 0.6)
    predicted[tuple(np.argwhere(~np.isnan(y))[0])] = p
    assert np.isnan(updated(make(), y, predicted).result())
    assert np.isfinite(updated(make(from_logits=True), y, predicted).result())


@every
@few
@given(seed=seeds, known=holes, batch=st.integers(1, 40))
def test_order_and_batches_do_not_matter(name, seed, known, batch):
    make, _, data = TABLE[name]
    y, p = data(seed, 40, known)
    order = np.random.default_rng(seed).permutation(len(y))
    whole, parts = updated(make(), y, p), updated(make(), y[order], p[order], batch)
    np.testing.assert_allclose(parts.per_task(), whole.per_task(), rtol=1e-9, atol=1e-12)
    if name not in ("brier", "ece", "mae", "rmse", "r2"):
        assert state(parts) == state(whole)


@every
@few
@given(seed=seeds, cut=st.integers(1, 29))
def test_merged_states_are_the_state_of_all_rows(name, seed, cut):
    make, _, data = TABLE[name]
    y, p = data(seed, 30, 0.6)
    merged = updated(make(), y[:cut], p[:cut])
    merged.merge_state([updated(make(), y[cut:], p[cut:]), make()])
    np.testing.assert_allclose(
        merged.per_task(), updated(make(), y, p).per_task(), rtol=1e-9, atol=1e-12
    )
    empty = make()
    empty.merge_state([merged])
    assert state(empty) == state(merged)


@every
def test_a_metric_of_other_settings_is_not_merged(name):
    make, _, _ = TABLE[name]
    with pytest.raises(ValueError, match="`metrics` has one that does not fit"):
        make().merge_state([make(missing=-1)])
    with pytest.raises(ValueError, match="`metrics` has one that does not fit"):
        make().merge_state([keras.metrics.Mean()])


@every
def test_with_nothing_known_it_is_nan_without_a_warning(name):
    make, _, data = TABLE[name]
    y, p = data(0, 12, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric = make()
        assert np.isnan(metric.result()) and metric.defined() == 0
        updated(metric, y, p)
        assert np.isnan(metric.result()) and metric.defined() == 0
        assert np.isnan(metric.per_task()).all()
    before = state(updated(metric, *data(0, 12, 0.5)))
    assert state(updated(metric, y, p)) == before


@every
@pytest.mark.parametrize("xla", [False, True], ids=["graph", "xla"])
def test_a_graph_counts_what_eager_execution_counts(name, xla):
    make, _, data = TABLE[name]
    y, p = data(4, 50, 0.6)
    metric = updated(make(), y, p)
    expected = metric.result().numpy(), metric.per_task()
    metric.reset_state()
    assert np.isnan(metric.result())
    tf.function(metric.update_state, jit_compile=xla)(tf.constant(y), tf.constant(p))
    np.testing.assert_allclose(metric.per_task(), expected[1], rtol=1e-6)
    result = tf.function(metric.result, jit_compile=xla)()
    np.testing.assert_allclose(result, expected[0], rtol=1e-6)


@every
@few
@given(seed=seeds)
def test_a_whole_weight_counts_a_row_that_often(name, seed):
    make, _, data = TABLE[name]
    y, p = data(seed, 24, 0.6)
    weight = np.random.default_rng(seed).integers(0, 4, len(y))
    # A row of weight 0 is not there, whatever is in it.
    weighted = updated(make(), y, np.where(weight[:, None] == 0, NAN, p), 24, weight * 1.0)
    repeated = updated(make(), np.repeat(y, weight, axis=0), np.repeat(p, weight, axis=0))
    np.testing.assert_allclose(weighted.per_task(), repeated.per_task(), rtol=1e-9, atol=1e-12)
    assert not np.any(np.isinf(weighted.per_task()))


@every
@pytest.mark.parametrize("weight", [-1.0, NAN, np.inf])
def test_a_weight_that_is_none_makes_the_result_nan(name, weight):
    make, _, data = TABLE[name]
    y, p = data(1, 24, 1.0)
    weights = np.where(np.arange(24) == 3, np.float32(weight), np.float32(1))
    assert np.isnan(updated(make(), y, p, weight=weights).result())


@every
def test_counts_go_on_beyond_what_float32_can_count(name):
    make, _, data = TABLE[name]
    y, p = data(1, 2, 1.0)
    many, one = np.float32(2**24), np.float32(1)
    streamed = updated(make(), y[:1], p[:1], weight=np.array([many]))
    for _ in range(8):
        updated(streamed, y[1:], p[1:], weight=np.array([one]))
    at_once = updated(make(), y, p, weight=np.array([many, 8 * one]))
    assert streamed.variables[0].dtype == "float64"
    for found, expected in zip(streamed.variables, at_once.variables, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert any(2**24 + 8 == variable.numpy().max() for variable in streamed.variables) or (
        name in ("auc", "average_precision", "precision_at_recall")
        and sum(v.numpy()[0].sum() for v in streamed.variables) == 2**24 + 8
    )


@every
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_predictions_are_summed_in_full(name, dtype):
    make, _, data = TABLE[name]
    y, p = data(1, 40, 0.6)
    half = tf.cast(p, dtype)
    keras.config.set_dtype_policy(f"mixed_{dtype}")
    try:
        metric = make()
        metric.update_state(y, half)
    finally:
        keras.config.set_dtype_policy("float32")
    expected = updated(make(), y, tf.cast(half, "float32").numpy())
    assert state(metric) == state(expected)
    assert metric.result().dtype == "float32" and metric.variables[0].dtype == "float64"


@every
def test_the_config_makes_an_equal_metric(name):
    make, _, data = TABLE[name]
    options = {"missing": -1, "name": "mine"}
    if name != "categorical_accuracy":
        options["average"] = "micro"
    metric = make(**options)
    packed = json.loads(json.dumps(keras.saving.serialize_keras_object(metric)))
    again = keras.saving.deserialize_keras_object(packed)
    assert type(again) is type(metric) and again.get_config() == metric.get_config()
    assert again.name == "mine" and again.missing == -1
    y, p = data(1, 24, 0.6)
    assert state(updated(again, y, p)) == state(updated(metric, y, p))


@every
def test_another_number_of_tasks_than_in_the_first_batch_is_refused(name):
    make, _, data = TABLE[name]
    y, p = data(1, 24, 0.6)
    metric = updated(make(), y, p)
    fewer = y if name == "categorical_accuracy" else y[:, :2]
    with pytest.raises(ValueError, match=f"number of .* first batch.* Received: {p.shape[1] - 1}"):
        metric.update_state(fewer, p[:, :-1])


@averaged
def test_an_unknown_average_is_refused(name):
    with pytest.raises(ValueError, match="`average` is unknown.*Received: 'mean'"):
        TABLE[name][0](average="mean")


@every
def test_the_state_does_not_grow_with_the_rows(name):
    make, _, data = TABLE[name]
    sizes = {len(state(updated(make(), *data(1, rows, 0.6)))) for rows in (10, 1000)}
    assert len(sizes) == 1


REPLICAS = """
import json, sys
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from test_metrics_laws import TABLE, binary, classes, numbers

found = {}
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
for data in (binary, classes, numbers):
    y, p = data(5, 48, 0.6)
    with strategy.scope():
        inputs = keras.Input(p.shape[1:])
        model = keras.Model(inputs, keras.layers.Activation("linear")(inputs))
        metrics = [row[0](name=name) for name, row in TABLE.items() if row[2] is data]
        model.compile(loss=lambda y, p: p[:, 0], metrics=metrics)
    found |= model.evaluate(p, y, batch_size=16, verbose=0, return_dict=True)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_two_replicas_count_the_known_cells_of_both():
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS],
        cwd=HELPERS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    for name, (_, score, data) in TABLE.items():
        y, p = data(5, 48, 0.6)
        expected = np.nanmean(truth.per_task(score, y, p))
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, err_msg=name)
