"""Laws that every metric keeps, against scikit-learn and NumPy on deleted cells."""

import json
import warnings
from functools import partial

import keras
import numpy as np
import pytest
import reference_scores as truth
import tensorflow as tf

import kerasmtl as kt

NAN = float("nan")
HIDDEN = [0.0, 1.0, 0.3, 1e30, -1e30, NAN, np.inf, -np.inf]
# No two of these share a bin of the ranking metrics, whose results are exact then.
VALUES = np.array([0.02, 0.1, 0.3, 0.45, 0.5, 0.62, 0.9, 0.99], "float32")
SHARES = [0.05, 0.3, 0.7, 1.0]  # of known labels


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


# The class, its reference, its data.
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


def updated(metric, y, p, batch=None, weight=None):
    for start in range(0, len(y), batch or len(y)):
        rows = slice(start, start + (batch or len(y)))
        metric.update_state(y[rows], p[rows], None if weight is None else weight[rows])
    return metric


def state(metric):
    return b"".join(variable.numpy().tobytes() for variable in metric.variables)


def test_the_table_names_every_metric():
    public = {n for n in kt.metrics.__all__ if n.startswith("Masked")} - {"MaskedMetric"}
    assert public == {type(make()).__name__ for make, _, _ in TABLE.values()}


@every
def test_it_is_the_score_of_the_known_labels(name):
    make, score, data = TABLE[name]
    for seed, known in enumerate([*SHARES, 0.3, 0.7]):
        y, p = data(seed, 5 + 12 * seed, known)
        metric = updated(make(), y, p, batch=16)
        expected = truth.per_task(score, y, p)
        # A sum of squares minus the square of a sum keeps fewer digits.
        np.testing.assert_allclose(metric.per_task(), expected, rtol=1e-6, atol=1e-7)
        assert metric.defined() == (~np.isnan(expected)).sum()
        mean = np.nanmean(expected) if metric.defined() else NAN
        np.testing.assert_allclose(metric.result(), mean, rtol=1e-5, atol=1e-6)
        assert metric.result().shape == () and metric.result().dtype == "float32"


@averaged
def test_micro_pools_the_known_labels_and_none_gives_them_per_task(name):
    make, score, data = TABLE[name]
    for seed, known in enumerate(SHARES):
        y, p = data(seed, 30, known)
        micro, none = updated(make(average="micro"), y, p), updated(make(average="none"), y, p)
        np.testing.assert_allclose(micro.result(), truth.pooled(score, y, p), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(none.result(), none.per_task(), rtol=1e-6)
        np.testing.assert_array_equal(micro.per_task(), none.per_task())


@every
def test_nothing_under_a_missing_label_changes_a_bit(name):
    make, _, data = TABLE[name]
    y, p = data(1, 24, 0.6)
    missing = np.isnan(y) if p.shape == y.shape else np.isnan(y[:, :1])
    expected = updated(make(), y, p, batch=10)
    expected = state(expected) + expected.result().numpy().tobytes()
    for number, hidden in enumerate(HIDDEN):
        coded = np.where(np.isnan(y), np.float32(-1 if number % 2 else NAN), y)
        found = updated(make(missing=-1), coded, np.where(missing, np.float32(hidden), p), batch=10)
        assert state(found) + found.result().numpy().tobytes() == expected


@every
def test_invalid_values_are_never_hidden(name):
    make, _, data = TABLE[name]
    y, p = data(1, 24, 0.6)
    row, column = np.argwhere(~np.isnan(y))[3]
    wrong = p.copy()
    wrong[row, column] = NAN
    metric = updated(make(), *data(2, 24, 0.6))
    assert np.isfinite(metric.result())
    updated(updated(metric, y, wrong), *data(3, 24, 0.6))
    assert np.isnan(metric.result())
    np.testing.assert_array_equal(
        np.isnan(metric.per_task()), np.arange(len(metric.per_task())) == column
    )
    metric.reset_state()
    assert np.isfinite(updated(metric, *data(2, 24, 0.6)).result())
    for label in (np.inf, -1.0, 5.0):
        y[row, column] = label
        is_number = data is numbers and np.isfinite(label)
        assert np.isnan(updated(make(), y, p).result()) != is_number
    if data is binary:  # a logit taken for a probability
        y[row, column] = 1.0
        for value in (-0.1, 7.0):
            p[row, column] = value
            assert np.isnan(updated(make(), y, p).result())
            assert np.isfinite(updated(make(from_logits=True), y, p).result())


@every
def test_order_batches_and_merging_do_not_matter(name):
    make, _, data = TABLE[name]
    y, p = data(5, 40, 0.5)
    order = np.random.default_rng(0).permutation(len(y))
    whole, parts = updated(make(), y, p), updated(make(), y[order], p[order], 7)
    merged = updated(make(), y[:13], p[:13])
    merged.merge_state([updated(make(), y[13:], p[13:]), make()])
    for other in (parts, merged):
        np.testing.assert_allclose(other.per_task(), whole.per_task(), rtol=1e-9, atol=1e-12)
    for invalid in (make(missing=-1), keras.metrics.Mean()):
        with pytest.raises(ValueError, match="`metrics`"):
            make().merge_state([invalid])


@every
def test_with_nothing_known_it_is_nan_without_a_warning(name):
    make, _, data = TABLE[name]
    y, p = data(0, 12, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric = make()
        assert np.isnan(metric.result()) and metric.defined() == 0
        with pytest.raises(ValueError, match="update_state"):
            metric.per_task()
        updated(metric, y, p)
        assert np.isnan(metric.result()) and metric.defined() == 0
        assert np.isnan(metric.per_task()).all()
    before = state(updated(metric, *data(0, 12, 0.5)))
    assert state(updated(metric, y, p)) == before


@pytest.mark.parametrize("xla", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("name", ["auc", "f1", "ece", "categorical_accuracy", "r2"])
def test_a_graph_counts_what_eager_execution_counts(name, xla):
    make, _, data = TABLE[name]
    y, p = data(4, 50, 0.6)
    metric = updated(make(), y, p)
    expected = metric.result().numpy(), metric.per_task()
    metric.reset_state()
    update = tf.function(metric.update_state, jit_compile=xla)
    update(tf.constant(y), tf.constant(p))
    np.testing.assert_allclose(metric.per_task(), expected[1], rtol=1e-6)
    result = tf.function(metric.result, jit_compile=xla)()
    np.testing.assert_allclose(result, expected[0], rtol=1e-6)
    p[tuple(np.argwhere(~np.isnan(y))[3])] = NAN
    update(tf.constant(y), tf.constant(p))
    assert np.isnan(metric.result())


@every
def test_a_whole_weight_counts_a_row_that_often(name):
    make, _, data = TABLE[name]
    y, p = data(3, 24, 0.6)
    weight = np.random.default_rng(0).integers(0, 4, len(y))
    # A row of weight 0 does not exist, whatever is in it.
    weighted = updated(make(), y, np.where(weight[:, None] == 0, NAN, p), 24, weight * 1.0)
    repeated = updated(make(), np.repeat(y, weight, axis=0), np.repeat(p, weight, axis=0))
    np.testing.assert_allclose(weighted.per_task(), repeated.per_task(), rtol=1e-9, atol=1e-12)
    known = np.flatnonzero(~np.isnan(y).any(axis=1))[0]
    for invalid in (-1.0, NAN, np.inf):
        weights = np.where(np.arange(24) == known, np.float32(invalid), np.float32(1))
        assert np.isnan(updated(make(), y, p, weight=weights).result())


def test_weights_per_label_are_refused():
    for rows in (1, 3, 6):
        y, p = binary(0, rows, 1.0)
        with pytest.raises(ValueError, match="`sample_weight`"):
            kt.metrics.MaskedAUC().update_state(y, p, sample_weight=np.ones_like(y))


@every
def test_counts_go_on_beyond_what_float32_can_count(name):
    make, _, data = TABLE[name]
    y, p = data(1, 2, 1.0)
    many, one = np.float32(2**24), np.float32(1)
    streamed = updated(make(), y[:1], p[:1], weight=np.array([many]))
    for _ in range(8):
        updated(streamed, y[1:], p[1:], weight=np.array([one]))
    at_once = updated(make(), y, p, weight=np.array([many, 8 * one]))
    for found, expected in zip(streamed.variables, at_once.variables, strict=True):
        assert found.dtype == "float64"
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@every
def test_half_precision_predictions_are_summed_in_full(name):
    make, _, data = TABLE[name]
    y, p = data(1, 40, 0.6)
    half = tf.cast(p, "float16")
    keras.config.set_dtype_policy("mixed_float16")
    try:
        metric = make()
        metric.update_state(y, half)
    finally:
        keras.config.set_dtype_policy("float32")
    assert state(metric) == state(updated(make(), y, tf.cast(half, "float32").numpy()))
    assert metric.result().dtype == "float32"
    assert updated(make(dtype="float64"), y, p).result().dtype == "float64"


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
    y, p = data(1, 24, 0.6)
    assert state(updated(again, y, p)) == state(updated(metric, y, p))


@every
def test_shapes_that_do_not_fit_are_refused(name):
    make, _, data = TABLE[name]
    y, p = data(1, 24, 0.6)
    metric = updated(make(), y, p)
    fewer = y if name == "categorical_accuracy" else y[:, :2]
    with pytest.raises(ValueError, match="`y_pred`.*first batch"):
        metric.update_state(fewer, p[:, :-1])
    with pytest.raises(ValueError, match="`y_true`"):
        make().update_state(y[:-1], p)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: kt.metrics.MaskedAUC(average="mean"), "average"),
        (lambda: kt.metrics.MaskedAUC(num_bins=1), "num_bins"),
        (lambda: kt.metrics.MaskedECE(num_bins=0), "num_bins"),
        (lambda: kt.metrics.MaskedPrecisionAtRecall(0.0), "recall"),
        (lambda: kt.metrics.MaskedPrecisionAtRecall(1.1), "recall"),
        (lambda: kt.metrics.MaskedBinaryAccuracy(threshold=0.0), "threshold"),
        (lambda: kt.metrics.MaskedF1(threshold=50), "threshold"),
        (lambda: kt.metrics.MaskedBrier(missing=1), "missing"),
        (lambda: kt.metrics.MaskedMAE(missing="?"), "missing"),
    ],
)
def test_an_invalid_argument_is_refused_by_name(make, argument):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        make()


# In `fit`


def compiled_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "sigmoid")])
    metrics = [kt.metrics.MaskedAUC(), kt.metrics.MaskedBinaryAccuracy(threshold=0.4)]
    model.compile("sgd", kt.losses.MaskedBinaryCrossentropy(), metrics=metrics)
    x = np.random.default_rng(3).normal(size=(50, 4)).astype("float32")
    return model, x, binary(0, 50, 0.4)[0]


def test_compile_and_fit_need_nothing_else():
    model, x, y = compiled_model()
    history = model.fit(x, y, batch_size=16, epochs=2, validation_data=(x, y), verbose=0).history
    p = model.predict(x, verbose=0)
    auc = truth.per_task(truth.auc, y, p).mean()
    np.testing.assert_allclose(history["val_auc"][-1], auc, atol=5e-3)
    accuracy = np.mean((p >= 0.4)[~np.isnan(y)] == y[~np.isnan(y)])
    micro = updated(kt.metrics.MaskedBinaryAccuracy(0.4, average="micro"), y, p)
    np.testing.assert_allclose(micro.result(), accuracy, rtol=1e-6)
    macro = updated(kt.metrics.MaskedBinaryAccuracy(0.4), y, p).result()
    np.testing.assert_allclose(history["val_binary_accuracy"][-1], macro, rtol=1e-6)


def test_a_saved_model_comes_back_with_its_metrics(tmp_path):
    model, x, y = compiled_model()
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    assert again.evaluate(x, y, verbose=0, return_dict=True) == logs
    configs = [
        {metric.name: metric.get_config() for metric in m.metrics[1].metrics}
        for m in (model, again)
    ]
    assert configs[0] == configs[1] and set(configs[0]) == {"auc", "binary_accuracy"}


def test_each_kind_has_its_default_metrics():
    tasks = [kt.Task("a"), kt.Task("k", "multiclass", ("x", "y")), kt.Task("n", "regression")]
    found = kt.metrics.for_tasks(tasks)
    names = {key: [metric.name for metric in metrics] for key, metrics in found.items()}
    expected = {"binary": ["auc", "binary_accuracy"], "k": ["categorical_accuracy"], "n": ["mae"]}
    assert names == expected
    assert [metric.name for metric in kt.metrics.for_tasks(tasks[:1])] == expected["binary"]
