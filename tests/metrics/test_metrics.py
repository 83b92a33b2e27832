"""The streaming metrics against scikit-learn on deleted cells."""

import keras
import numpy as np
import pytest
import reference
import reference_scores
import tensorflow as tf

import kerasmtl as kt

NAN = float("nan")
HIDDEN = [0.0, 1.0, 0.3, 1e30, -1e30, NAN, np.inf, -np.inf]
both_metrics = pytest.mark.parametrize(
    "kind", [kt.metrics.MaskedAUC, kt.metrics.MaskedBinaryAccuracy]
)
both_kinds = pytest.mark.parametrize("logits", [False, True], ids=["probabilities", "logits"])


def updated(metric, y, p, batch=None, weight=None):
    for start in range(0, len(y), batch or len(y)):
        rows = slice(start, start + (batch or len(y)))
        metric.update_state(y[rows], p[rows], None if weight is None else weight[rows])
    return metric


def state(metric):
    return b"".join(variable.numpy().tobytes() for variable in metric.variables)


def ties(rows=200, tasks=4, seed=0):
    """Predictions of four values: exact in any binning."""
    y, _ = reference.case(seed, rows, tasks)
    p = np.random.default_rng(seed).choice(np.array([0.1, 0.3, 0.5, 0.9], "float32"), y.shape)
    return y, p


@both_kinds
@pytest.mark.parametrize("known", [0.1, 0.5, 1.0])
def test_auc_is_that_of_the_known_cells_up_to_the_bins(known, logits):
    y, p = reference.case(rows=4000, tasks=6, known=known, logits=logits)
    metric = updated(kt.metrics.MaskedAUC(from_logits=logits), y, p, batch=256)
    expected = reference.auc_per_task(y, p)
    np.testing.assert_allclose(metric.per_task(), expected, atol=2e-3)
    np.testing.assert_allclose(metric.result(), expected.mean(), atol=2e-3)


def test_auc_is_exact_where_predictions_fall_into_bins_of_their_own():
    y, p = ties()
    metric = updated(kt.metrics.MaskedAUC(), y, p, batch=64)
    np.testing.assert_allclose(metric.per_task(), reference.auc_per_task(y, p), rtol=1e-6)


def in_bins(y, p, bins):
    """By bin, from the highest down: known positives and negatives of one task."""
    label, q = reference.cells(y, p)
    logit = np.log(q) - np.log1p(-q)
    chosen = np.minimum(((0.5 - logit / 32) * bins).astype(int), bins - 1)
    return (np.bincount(chosen, label == wanted, bins) for wanted in (1, 0))


@pytest.mark.parametrize("bins", [16, 100, 1024])
def test_the_error_of_the_auc_is_within_the_bound_that_it_states(bins):
    y, p = reference.case(rows=2000, tasks=3)
    errors = updated(kt.metrics.MaskedAUC(num_bins=bins), y, p).per_task() - reference.auc_per_task(
        y, p
    )
    for column, error in enumerate(errors):
        positives, negatives = in_bins(y[:, column], p[:, column], bins)
        bound = (positives * negatives).sum() / (2 * positives.sum() * negatives.sum())
        # A logit at an edge may fall to either side in float32.
        assert abs(error) <= bound + 1e-5


@pytest.mark.parametrize("bins", [16, 100, 1024])
def test_average_precision_and_precision_at_recall_are_those_of_rounded_predictions(bins):
    y, p = reference.case(rows=2000, tasks=3)
    average = updated(kt.metrics.MaskedAveragePrecision(num_bins=bins), y, p).per_task()
    at_recall = updated(kt.metrics.MaskedPrecisionAtRecall(0.8, num_bins=bins), y, p).per_task()
    for column in range(3):
        positives, negatives = in_bins(y[:, column], p[:, column], bins)
        hits, seen = positives.cumsum(), (positives + negatives).cumsum()
        precision = hits / np.maximum(seen, 1)
        expected = (precision * positives).sum() / positives.sum()
        np.testing.assert_allclose(average[column], expected, atol=1e-4)
        best = precision[hits / positives.sum() >= 0.8].max()
        np.testing.assert_allclose(at_recall[column], best, atol=1e-3)
        if bins == 1024:
            label, q = reference.cells(y[:, column], p[:, column])
            exact = reference_scores.average_precision(label, q)
            np.testing.assert_allclose(average[column], exact, atol=5e-3)


def test_a_recall_counts_as_reached_when_it_is_met_exactly():
    y = np.array([[1]] * 7 + [[0]] + [[1]] * 3, "float32")
    p = np.linspace(0.95, 0.05, 11).astype("float32")[:, None]
    assert updated(kt.metrics.MaskedPrecisionAtRecall(0.7), y, p).result() == 1.0
    np.testing.assert_allclose(
        updated(kt.metrics.MaskedPrecisionAtRecall(0.71), y, p).result(), 10 / 11
    )


@pytest.mark.parametrize("recall", [0.0, -0.1, 1.1])
def test_a_recall_that_is_no_share_is_refused(recall):
    with pytest.raises(ValueError, match="`recall` is no share"):
        kt.metrics.MaskedPrecisionAtRecall(recall)


def test_f1_without_a_known_positive_is_undefined_whatever_is_predicted():
    y = np.array([[0, 1], [0, 0], [NAN, 1]], "float32")
    for p in (0.1, 0.9):
        assert np.isnan(updated(kt.metrics.MaskedF1(), y, np.full_like(y, p)).per_task()[0])


def test_logits_and_their_probabilities_have_the_same_scores():
    y, z = reference.case(rows=200, tasks=3, logits=True)
    p = reference.sigmoid(z).astype("float32")
    kinds = (
        kt.metrics.MaskedF1,
        kt.metrics.MaskedBrier,
        kt.metrics.MaskedECE,
        kt.metrics.MaskedAveragePrecision,
    )
    for kind in kinds:
        logits = updated(kind(from_logits=True), y, z).per_task()
        np.testing.assert_allclose(logits, updated(kind(), y, p).per_task(), atol=1e-3)


def test_r2_keeps_its_digits_far_from_zero():
    rng = np.random.default_rng(0)
    y = 1e5 + rng.normal(size=(400, 1))
    p = y + rng.normal(scale=0.5, size=y.shape)
    expected = reference_scores.r2(y[:, 0], p[:, 0])
    metric = updated(kt.metrics.MaskedR2(), y, p, batch=64)
    np.testing.assert_allclose(metric.per_task(), [expected], rtol=1e-3)


@pytest.mark.parametrize("level", [0.1, 1e6])
def test_r2_of_labels_that_do_not_differ_is_undefined(level):
    y = np.full((1000, 1), level)
    assert np.isnan(updated(kt.metrics.MaskedR2(), y, y + 1).result())


@pytest.mark.parametrize("shapes", [((4,), (4, 3)), ((4, 1), (4, 3))], ids=str)
def test_classes_come_with_or_without_a_dimension(shapes):
    y = np.array([2, NAN, 0, 1], "float32").reshape(shapes[0])
    p = np.array([[0, 0, 1], [NAN] * 3, [0, 1, 0], [0, 1, 0]], "float32")
    metric = updated(kt.metrics.MaskedCategoricalAccuracy(), y, p)
    np.testing.assert_allclose(metric.result(), 2 / 3, rtol=1e-6)
    assert metric.per_task().shape == (1,)


@pytest.mark.parametrize("shapes", [((4, 2), (4, 3)), ((4,), (4,)), ((4,), (5, 3))])
def test_classes_of_other_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match="`y_true` is not one class a row"):
        kt.metrics.MaskedCategoricalAccuracy().update_state(*map(np.zeros, shapes))


def test_more_bins_come_closer():
    y, p = reference.case(rows=4000, tasks=3)
    expected = reference.auc_per_task(y, p)
    errors = [
        np.abs(updated(kt.metrics.MaskedAUC(num_bins=bins), y, p).per_task() - expected).max()
        for bins in (8, 64, 4096)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 5e-4


@both_kinds
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_accuracy_is_that_of_the_known_cells(threshold, logits):
    y, p = reference.case(rows=500, tasks=6, logits=logits)
    metric = kt.metrics.MaskedBinaryAccuracy(threshold=threshold, from_logits=logits)
    updated(metric, y, p, batch=64)
    probability = reference.sigmoid(p) if logits else p
    expected = reference.accuracy_per_task(y, probability, threshold)
    np.testing.assert_allclose(metric.per_task(), expected, rtol=1e-6)
    np.testing.assert_allclose(metric.result(), expected.mean(), rtol=1e-6)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
@pytest.mark.parametrize(
    "kind, expected", [(kt.metrics.MaskedBinaryAccuracy, 0.25), (kt.metrics.MaskedF1, 0.4)]
)
def test_a_probability_at_the_threshold_is_a_one(kind, expected, threshold):
    metric = kind(threshold=threshold)
    y = np.array([[0.0], [1.0], [0.0], [0.0]], "float32")
    metric.update_state(y, np.full((4, 1), threshold, "float32"))
    assert float(metric.result()) == pytest.approx(expected)


@both_metrics
def test_a_perfect_model_has_1_however_much_is_missing(kind):
    y, _ = reference.case(rows=400, tasks=8, known=0.05)
    p = np.where(np.isnan(y), np.float32(0.9), 0.1 + 0.8 * y)
    metric = updated(kind(), y, p, batch=50)
    np.testing.assert_array_equal(metric.per_task(), np.ones(8))
    assert metric.result() == 1.0


@pytest.mark.parametrize("code", [NAN, -1.0], ids=["nan", "-1"])
def test_the_auc_of_keras_is_wrong_where_labels_are_missing(code):
    """The reason for this class: if this fails, Keras has learnt to mask."""
    y, anything = reference.case(rows=400, tasks=4, known=0.5)
    perfect = np.where(np.isnan(y), anything, 0.45 + 0.1 * y)
    assert updated(kt.metrics.MaskedAUC(missing=-1), y, perfect).result() == 1.0
    stock = keras.metrics.AUC(multi_label=True, num_labels=4)
    stock.update_state(np.where(np.isnan(y), np.float32(code), y), perfect)
    assert not stock.result() > 0.9


@both_metrics
@both_kinds
@pytest.mark.parametrize("code", [NAN, -1.0], ids=["nan", "-1"])
def test_nothing_under_a_missing_cell_changes_a_bit_of_the_state(code, logits, kind):
    y, p = reference.case(rows=64, tasks=4, logits=logits)
    missing = np.isnan(y)
    coded = np.where(missing, np.float32(code), y)
    seen = set()
    for hidden in HIDDEN:
        metric = kind(from_logits=logits, missing=-1)
        updated(metric, coded, np.where(missing, np.float32(hidden), p), batch=16)
        seen.add(state(metric) + metric.result().numpy().tobytes())
    assert len(seen) == 1
    np.testing.assert_array_equal(
        metric.per_task(), updated(kind(from_logits=logits), y, p).per_task()
    )


@both_metrics
def test_a_row_or_batch_without_labels_leaves_the_state_as_it_was(kind):
    y, p = reference.case(rows=32, tasks=4)
    metric = updated(kind(), y, p)
    before = state(metric)
    metric.update_state(np.full((5, 4), NAN, "float32"), np.full((5, 4), NAN, "float32"))
    assert state(metric) == before


@both_metrics
def test_the_batches_do_not_matter(kind):
    y, p = reference.case(rows=96, tasks=4)
    assert len({state(updated(kind(), y, p, batch=batch)) for batch in (1, 7, 96)}) == 1


@pytest.mark.parametrize("only", [0.0, 1.0, NAN])
def test_auc_of_a_task_with_one_class_is_nan_and_not_in_the_mean(only):
    y, p = ties()
    y[:, 2] = np.where(np.isnan(y[:, 2]), NAN, only)
    metric = updated(kt.metrics.MaskedAUC(), y, p)
    expected = reference.auc_per_task(y, p)
    assert np.isnan(expected[2])
    np.testing.assert_allclose(metric.per_task(), expected, rtol=1e-6)
    np.testing.assert_allclose(metric.result(), np.nanmean(expected), rtol=1e-6)


def test_accuracy_of_a_task_without_labels_is_nan_and_not_in_the_mean():
    y, p = ties()
    y[:, 0] = NAN
    metric = updated(kt.metrics.MaskedBinaryAccuracy(), y, p)
    expected = reference.accuracy_per_task(y, p)
    np.testing.assert_allclose(metric.per_task(), expected, rtol=1e-6)
    np.testing.assert_allclose(metric.result(), np.nanmean(expected), rtol=1e-6)


@both_metrics
def test_the_mean_is_nan_where_no_task_is_defined(kind):
    metric = kind()
    assert np.isnan(metric.result())
    metric.update_state(np.full((3, 2), NAN, "float32"), np.zeros((3, 2), "float32"))
    assert np.isnan(metric.result()) and np.isnan(metric.per_task()).all()


@both_metrics
def test_scores_by_task_before_any_batch_are_refused(kind):
    with pytest.raises(ValueError, match="Call update_state first"):
        kind().per_task()


@both_metrics
def test_after_a_reset_nothing_is_left(kind):
    y, p = ties()
    metric = updated(kind(), 1 - y, p)
    metric.reset_state()
    assert np.isnan(metric.result())
    assert state(updated(metric, y, p)) == state(updated(kind(), y, p))


@both_metrics
def test_a_whole_weight_counts_a_row_that_often(kind):
    y, p = ties(rows=60)
    weight = np.random.default_rng(0).integers(0, 4, len(y))
    weighted = updated(kind(), y, p, weight=weight.astype("float32"))
    repeated = updated(kind(), np.repeat(y, weight, axis=0), np.repeat(p, weight, axis=0))
    np.testing.assert_array_equal(weighted.per_task(), repeated.per_task())


@both_metrics
@pytest.mark.parametrize("rows", [1, 4, 6])
def test_weights_by_label_are_refused(kind, rows):
    y, p = ties(rows=rows)
    with pytest.raises(ValueError, match="not one weight a row"):
        kind().update_state(y, p, sample_weight=np.ones_like(y))


@both_metrics
def test_saturated_probabilities_are_counted(kind):
    y = np.array([[1, 1], [0, 0], [1, NAN], [0, 1]], "float32")
    p = np.array([[1, 0], [0, 1], [1, 0], [0, 0.5]], "float32")
    metric = updated(kind(), y, p)
    expected = (
        reference.auc_per_task if kind is kt.metrics.MaskedAUC else reference.accuracy_per_task
    )(y, p)
    np.testing.assert_array_equal(metric.per_task(), expected)


def test_saturated_and_infinite_logits_are_counted():
    y = np.array([[1], [0], [1], [0]], "float32")
    p = np.array([[np.inf], [-np.inf], [1e30], [-40]], "float32")
    assert updated(kt.metrics.MaskedAUC(from_logits=True), y, p).result() == 1.0
    assert updated(kt.metrics.MaskedBinaryAccuracy(from_logits=True), y, p).result() == 1.0


@both_metrics
@pytest.mark.parametrize("xla", [False, True], ids=["graph", "xla"])
def test_a_graph_counts_what_eager_execution_counts(kind, xla):
    y, p = ties()
    metric = updated(kind(), y, p)
    expected = state(metric)
    metric.reset_state()
    tf.function(metric.update_state, jit_compile=xla)(tf.constant(y), tf.constant(p))
    assert state(metric) == expected


@both_metrics
def test_labels_that_do_not_fit_the_predictions_are_refused(kind):
    with pytest.raises(ValueError, match="differ in shape"):
        kind().update_state(np.zeros((4, 3), "float32"), np.zeros((4, 2), "float32"))


@pytest.mark.parametrize(
    "metric",
    [
        kt.metrics.MaskedAUC(num_bins=64, from_logits=True, missing=-1, name="mine"),
        kt.metrics.MaskedBinaryAccuracy(threshold=0.3, from_logits=True, missing=-1, name="mine"),
    ],
)
def test_the_config_makes_an_equal_metric(metric):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert type(again) is type(metric)
    assert again.get_config() == metric.get_config()
    assert again.missing == -1 and again.name == "mine"


def test_a_wrong_number_of_bins_or_threshold_is_refused():
    with pytest.raises(ValueError, match="num_bins.*Received: 1"):
        kt.metrics.MaskedAUC(num_bins=1)
    for threshold in (0.0, 1.0, 50):
        with pytest.raises(ValueError, match=f"threshold.*Received: {threshold}"):
            kt.metrics.MaskedBinaryAccuracy(threshold=threshold)


def compiled_model(**options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "sigmoid")])
    model.compile(
        keras.optimizers.SGD(0.1),
        loss=kt.losses.MaskedBinaryCrossentropy(),
        metrics=[
            kt.metrics.MaskedAUC(num_bins=512),
            kt.metrics.MaskedBinaryAccuracy(threshold=0.4),
        ],
        **options,
    )
    return model


def small_data(rows=50):
    x = np.random.default_rng(3).normal(size=(rows, 4)).astype("float32")
    return x, reference.case(rows=rows, tasks=3, known=0.4)[0]


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}, {"jit_compile": True}], ids=str)
def test_compile_and_fit_need_nothing_else(options):
    model, (x, y) = compiled_model(**options), small_data()
    history = model.fit(x, y, batch_size=16, epochs=2, validation_data=(x, y), verbose=0).history
    p = model.predict(x, verbose=0)
    np.testing.assert_allclose(
        history["val_auc"][-1], reference.auc_per_task(y, p).mean(), atol=5e-3
    )
    np.testing.assert_allclose(
        history["val_binary_accuracy"][-1], reference.accuracy_per_task(y, p, 0.4).mean(), rtol=1e-6
    )
    np.testing.assert_allclose(history["val_loss"][-1], reference.loss(y, p), rtol=1e-6)


def test_a_saved_model_comes_back_with_its_loss_and_metrics(tmp_path):
    model, (x, y) = compiled_model(), small_data()
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.loss.get_config() == model.loss.get_config()
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    assert again.evaluate(x, y, verbose=0, return_dict=True) == logs
    configs = [
        {metric.name: metric.get_config() for metric in m.metrics[1].metrics}
        for m in (model, again)
    ]
    assert configs[0] == configs[1] and set(configs[0]) == {"auc", "binary_accuracy"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("code", [-99.9, -9999.9])
def test_a_code_that_float32_rounds_is_missing_in_any_labels(dtype, code):
    y = np.array([[1, code], [2, 3], [code, 4]], dtype)
    p = np.array([[1, 0], [2, 3], [9, 4]], "float32")
    for kind in (kt.metrics.MaskedMAE, kt.metrics.MaskedRMSE):
        np.testing.assert_array_equal(updated(kind(missing=code), y, p).per_task(), [0, 0])


@pytest.mark.parametrize("recall", [1.0, 0.7])
def test_fractional_weights_reach_their_recall(recall):
    for seed in range(100):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 2, (30, 1)).astype("float32")
        # A bin of its own for each.
        p = rng.permutation(reference.sigmoid(np.linspace(-8, 8, 30)))[:, None].astype("float32")
        weight = rng.random(30)
        found = updated(kt.metrics.MaskedPrecisionAtRecall(recall), y, p, weight=weight).result()
        order = np.argsort(-p[:, 0])
        hits = np.cumsum((y[:, 0] * weight)[order])
        precision = hits / np.cumsum(weight[order])
        expected = precision[hits >= recall * hits[-1] * (1 - 1e-12)].max()
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_numbers_of_numpy_are_kept_as_numbers():
    metric = kt.metrics.MaskedPrecisionAtRecall(np.float32(0.5), np.int64(64), missing=np.int64(-1))
    assert metric.get_config()["recall"] == 0.5 and metric.get_config()["num_bins"] == 64
    assert keras.saving.serialize_keras_object(metric)["config"]["missing"] == -1.0
