"""Laws that every loss keeps: all losses eagerly, six representatives in graphs and under XLA."""

import functools

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from loss_table import CASES, ROWS, row_costs

import kerasmtl as kt

NAN = float("nan")
Refused = tf.errors.InvalidArgumentError
# Predictions under a missing label.
HIDDEN = [0.0, 1.0, 0.3, 1e30, -1e30, NAN, np.inf, -np.inf]
SHARES = [0.1, 0.5, 0.9]  # of known labels
VARIANTS = [
    (name, logits)
    for name, case in CASES.items()
    for logits in ([False, True] if case.kind != "numbers" else [False])
]
variants = pytest.mark.parametrize(
    ("name", "logits"), VARIANTS, ids=[n + ("-logits" if on else "") for n, on in VARIANTS]
)
COMPILED = [
    ("binary", False),
    ("partial", True),
    ("asl-partial", False),
    ("epr-batch", False),
    ("huber", False),
    ("categorical", True),
]


def made(which, logits, **options):
    if CASES[which].kind != "numbers":
        options["from_logits"] = logits
    return CASES[which].make(**options)


@functools.cache
def differentiated(name, logits, mode="eager", missing=None):
    """The loss of each row and the gradient of the sum; one trace serves all calls of a test."""
    loss = made(name, logits, reduction="none", missing=missing)

    def both(y, p):
        with tf.GradientTape() as tape:
            tape.watch(p)
            value = loss(y, p)
        return value, tape.gradient(value, p)

    call = both if mode == "eager" else tf.function(both, jit_compile=mode == "xla")
    return lambda y, p: tuple(part.numpy() for part in call(tf.constant(y), tf.constant(p)))


def cases(name, logits, shares=SHARES):
    return [CASES[name].data(seed, share, logits) for seed, share in enumerate(shares)]


def others(name, values, row):
    """The values of the other rows, unless they depend on the batch."""
    return values[:0] if CASES[name].by_batch else np.delete(values, row)


def wrong_label(name):
    return {"binary": 1.5, "numbers": np.inf, "classes": 9.0}[CASES[name].kind]


# The formula


@variants
def test_it_is_the_formula_on_deleted_cells(name, logits):
    for y, p in cases(name, logits):
        value, _ = differentiated(name, logits)(y, p)
        assert value.shape == (ROWS,) and value.dtype == np.float32
        expected = row_costs(CASES[name], y, p, logits)
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-6)


@variants
def test_the_gradient_is_the_slope_of_the_formula(name, logits):
    step, case, rng = 1e-6, CASES[name], np.random.default_rng(0)
    for y, p in cases(name, logits):
        row, task = rng.integers(ROWS), rng.integers(p.shape[1])
        up, down = p.astype("float64"), p.astype("float64")
        up[row, task] += step
        down[row, task] -= step
        slope = row_costs(case, y, up, logits).sum() - row_costs(case, y, down, logits).sum()
        _, ours = differentiated(name, logits)(y, p)
        np.testing.assert_allclose(ours[row, task], slope / (2 * step), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "logits"), [v for v in VARIANTS if CASES[v[0]].stock])
def test_with_nothing_missing_it_is_that_of_keras(name, logits):
    for y, p in cases(name, logits, [1.0, 1.0]):
        theirs = CASES[name].stock(None if CASES[name].kind == "numbers" else logits)(y, p)
        np.testing.assert_allclose(made(name, logits)(y, p), CASES[name].factor * theirs, rtol=2e-6)


@pytest.mark.parametrize("logits", [False, True])
def test_six_hundred_tasks_with_few_labels_keep_the_accuracy(logits):
    y, p = reference.case(rows=256, tasks=600, known=0.02, logits=logits)
    value = kt.losses.MaskedBinaryCrossentropy(from_logits=logits)(y, p)
    np.testing.assert_allclose(value, reference.loss(y, p, logits), rtol=1e-6)


@variants
def test_batches_and_order_change_nothing(name, logits):
    if CASES[name].by_batch:
        return
    (y, p), call = CASES[name].data(3, 0.5, logits), differentiated(name, logits)
    rows = np.random.default_rng(0).permutation(ROWS)
    parts = [call(y[part], p[part]) for part in np.split(rows, [1, 3])]
    value, slope = (np.concatenate(pieces) for pieces in zip(*parts, strict=True))
    whole_value, whole_slope = call(y, p)
    np.testing.assert_allclose(value, whole_value[rows], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(slope, whole_slope[rows], rtol=1e-5, atol=1e-7)


# Missing labels


def unchanged_by_what_is_hidden(name, logits, mode):
    """Assert that neither predictions nor codes under missing labels change a bit."""
    call = differentiated(name, logits, mode, missing=-7.0)
    for y, p in cases(name, logits, [0.1, 0.6]):
        missing = np.isnan(y)
        everywhere = np.broadcast_to(missing, p.shape)
        expected = [part.tobytes() for part in call(y, np.where(missing, np.float32(0.25), p))]
        for number, hidden in enumerate(HIDDEN):
            coded = np.where(missing, np.float32(-7 if number % 2 else NAN), y)
            value, slope = call(coded, np.where(missing, np.float32(hidden), p))
            assert [value.tobytes(), slope.tobytes()] == expected
            assert (slope[everywhere] == 0).all() and np.isfinite(slope).all()
    for hidden in (0.5, NAN, np.inf):
        value, slope = call(np.full_like(y, NAN), np.full_like(p, hidden))
        assert (value == 0).all() and (slope == 0).all()


@pytest.mark.parametrize(("name", "logits"), [v for v in VARIANTS if CASES[v[0]].ignores])
def test_nothing_under_a_missing_label_changes_a_bit(name, logits):
    unchanged_by_what_is_hidden(name, logits, "eager")


@variants
def test_a_mask_hides_any_label_under_it(name, logits):
    y, p = CASES[name].data(0, 0.5, logits)
    missing, call = np.isnan(y), differentiated(name, logits)
    for code in (*HIDDEN, -1.0):
        coded = kt.data.with_known(np.where(missing, np.float32(code), y), ~missing)
        for ours, expected in zip(call(coded, p), call(y, p), strict=True):
            assert ours.tobytes() == expected.tobytes()


def test_nan_and_a_code_are_missing_side_by_side_also_in_integers():
    y, p = reference.case(rows=16, tasks=4)
    coded = np.where(np.isnan(y), -1, y).astype("int32")
    loss = kt.losses.MaskedBinaryCrossentropy(missing=-1)
    mixed = np.where(np.arange(4) % 2, y, coded).astype("float32")
    assert float(loss(coded, p)) == float(loss(mixed, p)) == float(loss(y, p))


# Invalid values


def never_hidden(name, logits, mode):
    """Assert that a NaN prediction for a known label makes its row NaN, and no other."""
    y, p = CASES[name].data(4, 0.5, logits)
    row, task = 2, 1
    y[row, task % y.shape[1]] = 1.0
    p[row, task] = NAN
    value, slope = differentiated(name, logits, mode)(y, p)
    assert np.isnan(value[row]) and np.isnan(slope[row, task])
    assert not np.isnan(others(name, value, row)).any()


def invalid_labels_refused(name, logits, mode):
    """Assert that an invalid label is an error, or, under XLA, makes its row NaN."""
    y, p = CASES[name].data(3, 0.5, logits)
    call = differentiated(name, logits, mode)
    for wrong in (wrong_label(name), -np.inf):
        y[2, 1 % y.shape[1]] = wrong
        if mode != "xla":
            with pytest.raises(Refused, match=rf"`y_true` must be .*\[{wrong:g}\]"):
                call(y, p)
            continue
        value, slope = call(y, p)
        assert np.isnan(value[2]) and np.isnan(slope[2, 1])
        assert not np.isnan(others(name, value, 2)).any()


def logits_refused(name, mode):
    """Assert that what is not a probability is an error, or makes its row NaN."""
    y, p = CASES[name].data(1, 0.5)
    y[1, 0] = 1.0
    call = differentiated(name, False, mode)
    for wrong in (-0.1, 7.0, np.inf):
        p[1, 0] = wrong
        if mode != "xla" and np.isfinite(wrong):
            with pytest.raises(Refused, match=rf"`y_pred` .*\[{wrong:g}\].*from_logits=True"):
                call(y, p)
        else:
            value, _ = call(y, p)
            assert np.isnan(value[1]) and not np.isnan(others(name, value, 1)).any()
    p[1, 0] = 1.0 + 5e-7  # as sums of float32 round
    assert np.isfinite(call(y, p)[0]).all()


@variants
def test_invalid_values_are_never_hidden(name, logits):
    never_hidden(name, logits, "eager")
    invalid_labels_refused(name, logits, "eager")
    if not logits and CASES[name].kind != "numbers":
        logits_refused(name, "eager")


@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize(("name", "logits"), COMPILED)
def test_compiled_losses_keep_the_laws_too(name, logits, mode):
    for y, p in cases(name, logits):
        expected = differentiated(name, logits)(y, p)
        for ours, eager in zip(differentiated(name, logits, mode)(y, p), expected, strict=True):
            np.testing.assert_allclose(ours, eager, rtol=1e-4, atol=2e-6)
    if CASES[name].ignores:
        unchanged_by_what_is_hidden(name, logits, mode)
    never_hidden(name, logits, mode)
    invalid_labels_refused(name, logits, mode)
    if not logits and CASES[name].kind != "numbers":
        logits_refused(name, mode)


# Precision


@variants
def test_half_precision_predictions_are_computed_in_float32(name, logits):
    y, p = CASES[name].data(5, 0.5, logits)
    for dtype in ("float16", "bfloat16"):
        half = tf.cast(p, dtype)
        value = made(name, logits)(y, half)
        assert value.dtype == tf.float32
        np.testing.assert_array_equal(value, made(name, logits)(y, tf.cast(half, "float32")))


@pytest.mark.parametrize("name", CASES)
def test_float64_is_computed_in_float64(name):
    y, p = CASES[name].data(1, 0.5)
    loss = CASES[name].make(dtype="float64", reduction="none")
    with tf.GradientTape() as tape:
        q = tf.Variable(p.astype("float64"))
        value = loss(y, q)
    assert value.dtype == tape.gradient(value, q).dtype == tf.float64
    np.testing.assert_allclose(value, row_costs(CASES[name], y, p), rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize(("name", "logits"), [v for v in VARIANTS if v[1]])
def test_large_logits_stay_finite(name, logits):
    y = np.array([[1, 0, NAN, 1]] * 2, "float32")
    y = y[:, :1] if CASES[name].kind == "classes" else y
    p = np.array([[-80, 80, 80, 80], [80, -80, -80, -80]], "float32")
    value, slope = differentiated(name, logits)(y, p)
    assert np.isfinite(value).all() and np.isfinite(slope).all() and (value >= 0).all()


# Reduction, weights, arguments


@variants
def test_the_config_makes_an_equal_loss(name, logits):
    loss = made(name, logits, missing=-1, reduction="sum", name="mine", dtype="float64")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss) and again.get_config() == loss.get_config()
    y, p = CASES[name].data(7, 0.5, logits)
    assert float(again(y, p)) == float(loss(y, p))


def test_reductions_and_weights_of_rows_are_those_of_keras():
    y, p = reference.case()
    rows, loss = reference.row_losses(y, p), kt.losses.MaskedBinaryCrossentropy
    np.testing.assert_allclose(loss(reduction="none")(y, p), rows, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(loss(reduction="sum")(y, p), rows.sum(), rtol=1e-6)
    weight = np.random.default_rng(1).random(len(y)).astype("float32")
    for shape in [(-1,), (-1, 1)]:
        ours = loss()(y, p, sample_weight=weight.reshape(shape))
        np.testing.assert_allclose(ours, (weight * rows).mean(), rtol=1e-6)


def test_weights_per_label_are_refused_even_if_batch_and_tasks_are_equal():
    y, p = reference.case(rows=4, tasks=4)
    with pytest.raises(ValueError, match="`sample_weight`"):
        kt.losses.MaskedBinaryCrossentropy()(y, p, sample_weight=np.ones_like(p))


def test_a_constant_of_the_data_set_is_as_large_as_the_mean_of_known_labels():
    y, p = reference.case()
    loss = kt.losses.MaskedBinaryCrossentropy(normalization=kt.losses.mean_known(y))
    expected = reference.row_losses(y, p).sum() / (~np.isnan(y)).sum()
    np.testing.assert_allclose(loss(y, p), expected, rtol=1e-6)


def test_tasks_of_weight_0_alone_have_no_loss_under_the_mean():
    y, p = np.array([[NAN, 1]], "float32"), np.array([[0.5, 0.5]], "float32")
    loss = kt.losses.MaskedBinaryCrossentropy(task_weights=[1, 0], normalization="mean")
    assert float(loss(y, p)) == 0.0


def test_the_weight_of_a_single_task_does_not_cancel_out():
    for normalization in ("sum", "mean"):
        loss = kt.losses.MaskedMeanSquaredError(task_weights=[0.5], normalization=normalization)
        np.testing.assert_allclose(loss(np.array([[2.0], [NAN]]), np.zeros((2, 1))), 1.0)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("normalization", "batch"),
        ("normalization", 0),
        ("normalization", True),
        ("task_weights", [0.0, 0.0]),
        ("task_weights", [1.0, -1.0]),
        ("task_weights", [1.0, np.inf]),
        ("task_weights", []),
        ("task_weights", 2.0),
        ("balancer", "uncertainty"),
        ("missing", 0.5),
        ("dtype", "float16"),
        ("dtype", keras.DTypePolicy("mixed_bfloat16")),
    ],
)
def test_an_invalid_argument_is_refused_by_name(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        kt.losses.MaskedBinaryCrossentropy(**{argument: value})


@pytest.mark.parametrize("number", [np.float32, np.int64])
def test_numbers_of_numpy_are_numbers(number):
    two, one = number(2), number(1)
    options = {"pos_weight": two, "normalization": two, "gamma": two, "label_smoothing": one}
    config = kt.losses.MaskedBinaryCrossentropy(missing=-two, **options).get_config()
    assert all(type(config[name]) is float for name in (*options, "missing"))


def test_weights_for_another_number_of_tasks_are_refused():
    y, p = reference.case(tasks=3)
    with pytest.raises(ValueError, match="`task_weights`"):
        kt.losses.MaskedBinaryCrossentropy(task_weights=[1.0, 2.0])(y, p)


def test_symbolic_tensors_have_a_loss():
    y, p = keras.KerasTensor((4, 2)), keras.KerasTensor((4, 2))
    for loss in (kt.losses.MaskedBinaryCrossentropy(), kt.losses.ExpectedPositives(1.0)):
        assert loss(y, p).shape == ()


# In `fit`


def small_model(activation="sigmoid", tasks=3, loss=None, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(tasks, activation)])
    loss = kt.losses.MaskedBinaryCrossentropy() if loss is None else loss
    model.compile(keras.optimizers.SGD(0.1), loss, **options)
    return model


def small_data(rows=40, tasks=3):
    x = np.random.default_rng(3).normal(size=(rows, 4)).astype("float32")
    return x, reference.case(rows=rows, tasks=tasks, known=0.4)[0]


def test_a_step_of_descent_is_that_of_the_formula():
    model, (x, y) = small_model(), small_data()
    kernel, bias = (np.array(weight) for weight in model.get_weights())
    slope = reference.gradient(y, x @ kernel + bias, logits=True)
    model.fit(x, y, batch_size=len(x), epochs=1, verbose=0)
    new_kernel, new_bias = model.get_weights()
    np.testing.assert_allclose(new_kernel, kernel - 0.1 * x.T @ slope, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(new_bias, bias - 0.1 * slope.sum(0), rtol=1e-4, atol=1e-6)


def test_a_task_without_labels_keeps_its_weights_bit_for_bit():
    model, (x, y) = small_model(), small_data()
    y[:, 1] = NAN
    before = model.layers[0].kernel.numpy()
    model.fit(x, y, epochs=2, verbose=0)
    after = model.layers[0].kernel.numpy()
    assert before[:, 1].tobytes() == after[:, 1].tobytes()
    assert (before[:, [0, 2]] != after[:, [0, 2]]).all()


def test_invalid_values_end_the_training_with_what_to_do():
    x, y = small_data()
    coded = np.where(np.isnan(y), -1, y).astype("int32")
    model = small_model(jit_compile=False)
    for step in (model.fit, model.evaluate):
        with pytest.raises(Refused, match=r"(?s)`y_true` must be from 0 to 1.*missing=-1"):
            step(x, coded, verbose=0)
    loss = kt.losses.MaskedBinaryCrossentropy(missing=-1)
    small_model(loss=loss).fit(x, coded, verbose=0)
    with pytest.raises(Refused, match=r"(?s)`y_pred` must be probabilities.*from_logits=True"):
        small_model(None, jit_compile=False).fit(5 * x, y, verbose=0)


def test_a_saved_compiled_model_has_its_loss(tmp_path):
    loss = kt.losses.MaskedBinaryCrossentropy(task_weights=[1, 2, 3])
    model = small_model(loss=loss)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras").loss
    assert type(again) is type(loss) and again.get_config() == loss.get_config()


def test_a_model_of_mixed_kinds_trains_with_one_loss_per_output():
    keras.utils.set_random_seed(0)
    kinds = {
        "binary": ("binary", "sigmoid"),
        "kind": ("categorical", "softmax"),
        "age": ("squared", None),
    }
    inputs = keras.Input((4,))
    outputs = {
        name: keras.layers.Dense(4, activation, name=name)(inputs)
        for name, (_, activation) in kinds.items()
    }
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {name: CASES[case].make() for name, (case, _) in kinds.items()})
    x = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
    y = {name: CASES[case].data(0, 0.6, rows=12)[0] for name, (case, _) in kinds.items()}
    p = model.predict(x, verbose=0)
    expected = sum(row_costs(CASES[c], y[n], p[n]).mean() for n, (c, _) in kinds.items())
    value = model.evaluate(x, y, batch_size=5, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
