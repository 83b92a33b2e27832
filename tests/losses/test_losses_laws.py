"""Laws that every loss keeps, whatever the data: one table of losses, one test a law."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_table import CASES, ROWS, TASKS, row_costs

from kerasmtl.masking import with_known

NAN = float("nan")
Refused = tf.errors.InvalidArgumentError
MODES = ["eager", "graph", "xla"]
HIDDEN = [0.0, 1.0, 0.3, 1e30, -1e30, NAN, np.inf, -np.inf]
VARIANTS = [
    (name, logits)
    for name, case in CASES.items()
    for logits in ([False, True] if case.kind != "numbers" else [False])
]
variants = pytest.mark.parametrize(
    ("name", "logits"), VARIANTS, ids=[n + ("-logits" if on else "") for n, on in VARIANTS]
)
masking = [v for v in VARIANTS if CASES[v[0]].ignores]
ignoring = pytest.mark.parametrize(("name", "logits"), masking)
modes = pytest.mark.parametrize("mode", MODES)
few = settings(max_examples=6, deadline=None, derandomize=True, database=None)
seeds, shares = st.integers(0, 2**31), st.sampled_from([0.1, 0.5, 0.9])


def made(which, logits, **options):
    if CASES[which].kind != "numbers":
        options["from_logits"] = logits
    return CASES[which].make(**options)


@functools.cache
def differentiated(name, logits, mode, missing=None):
    """The loss by row and the gradient of its sum: one trace serves all examples of a test."""
    loss = made(name, logits, reduction="none", missing=missing)

    def both(y, p):
        with tf.GradientTape() as tape:
            tape.watch(p)
            value = loss(y, p)
        return value, tape.gradient(value, p)

    call = both if mode == "eager" else tf.function(both, jit_compile=mode == "xla")
    return lambda y, p: tuple(part.numpy() for part in call(tf.constant(y), tf.constant(p)))


def missing_cells(y, p):
    return np.broadcast_to(np.isnan(y), p.shape)


def others(name, values, row):
    """The values of the other rows, unless they depend on the batch."""
    return values[:0] if CASES[name].by_batch else np.delete(values, row)


@variants
@few
@given(seed=seeds, share=shares)
def test_it_is_the_formula_on_deleted_cells(name, logits, seed, share):
    y, p = CASES[name].data(seed, share, logits)
    value, _ = differentiated(name, logits, "eager")(y, p)
    assert value.shape == (ROWS,) and value.dtype == np.float32
    np.testing.assert_allclose(value, row_costs(CASES[name], y, p, logits), rtol=2e-5, atol=1e-6)


@variants
@few
@given(seed=seeds, share=shares, row=st.integers(0, ROWS - 1), task=st.integers(0, TASKS - 1))
def test_the_gradient_is_the_slope_of_the_formula(name, logits, seed, share, row, task):
    y, p = CASES[name].data(seed, share, logits)
    step, case = 1e-6, CASES[name]
    up, down = p.astype("float64"), p.astype("float64")
    up[row, task] += step
    down[row, task] -= step
    slope = row_costs(case, y, up, logits).sum() - row_costs(case, y, down, logits).sum()
    _, ours = differentiated(name, logits, "eager")(y, p)
    np.testing.assert_allclose(ours[row, task], slope / (2 * step), rtol=1e-3, atol=1e-4)


@modes
@ignoring
@few
@given(seed=seeds, share=shares, hidden=st.lists(st.sampled_from(HIDDEN), min_size=2, max_size=4))
def test_nothing_under_a_missing_cell_changes_a_bit(name, logits, mode, seed, share, hidden):
    y, p = CASES[name].data(seed, share, logits)
    missing = np.isnan(y)
    call = differentiated(name, logits, mode, missing=-7.0)
    expected = [part.tobytes() for part in call(y, np.where(missing, np.float32(0.25), p))]
    for number, prediction in enumerate(hidden):
        code = np.float32(-7 if number % 2 else NAN)
        value, slope = call(
            np.where(missing, code, y), np.where(missing, np.float32(prediction), p)
        )
        assert [value.tobytes(), slope.tobytes()] == expected
        assert (slope[missing_cells(y, p)] == 0).all() and np.isfinite(slope).all()


@variants
@few
@given(seed=seeds, share=shares, code=st.sampled_from([*HIDDEN, -1.0]))
def test_a_mask_of_ones_own_hides_any_label_under_it(name, logits, seed, share, code):
    y, p = CASES[name].data(seed, share, logits)
    missing = np.isnan(y)
    call = differentiated(name, logits, "eager")
    coded = with_known(np.where(missing, np.float32(code), y), ~missing)
    for ours, expected in zip(call(coded, p), call(y, p), strict=True):
        assert ours.tobytes() == expected.tobytes()


@modes
@variants
@few
@given(seed=seeds, row=st.integers(0, ROWS - 1), task=st.sampled_from([0, 1, 3]))
def test_a_nan_prediction_of_a_known_cell_is_never_hidden(name, logits, mode, seed, row, task):
    y, p = CASES[name].data(seed, 0.5, logits)
    y[row, task % y.shape[1]] = 1.0
    p[row, task] = NAN
    value, slope = differentiated(name, logits, mode)(y, p)
    assert np.isnan(value[row]) and np.isnan(slope[row, task])
    assert not np.isnan(others(name, value, row)).any()


@modes
@variants
@pytest.mark.parametrize("wrong", [-0.5, 1.5, 2.0, np.inf, -np.inf])
def test_a_label_that_is_none_is_refused_and_under_xla_makes_its_row_nan(name, logits, mode, wrong):
    y, p = CASES[name].data(3, 0.5, logits)
    # A regression label may be any finite number.
    wrong = np.copysign(np.inf, wrong) if CASES[name].kind == "numbers" else wrong
    y[2, 1 % y.shape[1]] = 9.0 if CASES[name].kind == "classes" and wrong == 2 else wrong
    call = differentiated(name, logits, mode)
    if mode != "xla":  # which drops assertions
        with pytest.raises(Refused, match=rf"`y_true` must be .*\[{y[2, 1 % y.shape[1]]:g}\]"):
            call(y, p)
        return
    value, slope = call(y, p)
    assert np.isnan(value[2]) and np.isnan(slope[2, 1])
    assert not np.isnan(others(name, value, 2)).any()


@modes
@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.kind != "numbers"])
@pytest.mark.parametrize("wrong", [-0.1, 1.1, 7.0, np.inf, -np.inf])
def test_a_logit_taken_for_a_probability_is_refused_and_under_xla_makes_its_row_nan(
    name, mode, wrong
):
    y, p = CASES[name].data(1, 0.5)
    y[1, 0], p[1, 0] = 1.0, wrong
    call = differentiated(name, False, mode)
    if mode != "xla" and np.isfinite(wrong):
        with pytest.raises(Refused, match=rf"`y_pred` must be .*\[{wrong:g}\].*from_logits=True"):
            call(y, p)
    else:
        value, _ = call(y, p)
        assert np.isnan(value[1]) and not np.isnan(others(name, value, 1)).any()
    p[1, 0] = 1.0 + 5e-7  # as sums of float32 round
    assert np.isfinite(call(y, p)[0]).all()


@modes
@ignoring
@pytest.mark.parametrize("hidden", [0.5, NAN, np.inf])
def test_all_missing_costs_exactly_nothing(name, logits, mode, hidden):
    y, p = CASES[name].data(0, 0.0, logits)
    value, slope = differentiated(name, logits, mode)(y, np.full_like(p, hidden))
    assert (value == 0).all() and (slope == 0).all()


@pytest.mark.parametrize(("name", "logits"), [v for v in VARIANTS if not CASES[v[0]].by_batch])
@few
@given(seed=seeds, share=shares, cuts=st.sets(st.integers(1, ROWS - 1)), order=st.randoms())
def test_batches_and_order_change_nothing(name, logits, seed, share, cuts, order):
    y, p = CASES[name].data(seed, share, logits)
    rows = list(range(ROWS))
    order.shuffle(rows)
    call = differentiated(name, logits, "eager")
    parts = [call(y[part], p[part]) for part in np.split(np.array(rows), sorted(cuts))]
    value, slope = (np.concatenate(pieces) for pieces in zip(*parts, strict=True))
    whole_value, whole_slope = call(y, p)
    np.testing.assert_allclose(value, whole_value[rows], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(slope, whole_slope[rows], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("name", "logits"), [v for v in VARIANTS if CASES[v[0]].stock])
@few
@given(seed=seeds)
def test_with_nothing_missing_it_is_that_of_keras(name, logits, seed):
    y, p = CASES[name].data(seed, 1.0, logits)
    theirs = CASES[name].stock(None if CASES[name].kind == "numbers" else logits)(y, p)
    ours = made(name, logits)(y, p)
    np.testing.assert_allclose(ours, CASES[name].factor * theirs, rtol=2e-6)


@variants
@few
@given(seed=seeds, share=shares)
def test_graph_and_xla_agree_with_eager(name, logits, seed, share):
    y, p = CASES[name].data(seed, share, logits)
    expected = differentiated(name, logits, "eager")(y, p)
    for mode in ("graph", "xla"):
        for ours, theirs in zip(differentiated(name, logits, mode)(y, p), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6)


@variants
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(name, logits, dtype):
    y, p = CASES[name].data(5, 0.5, logits)
    half = tf.cast(p, dtype)
    value = made(name, logits)(y, half)
    assert value.dtype == tf.float32
    np.testing.assert_array_equal(value, made(name, logits)(y, tf.cast(half, "float32")))


@pytest.mark.parametrize(("name", "logits"), [v for v in VARIANTS if v[1]])
def test_large_logits_stay_finite(name, logits):
    y = np.array([[1, 0, NAN, 1]] * 2, "float32")
    y = y[:, :1] if CASES[name].kind == "classes" else y
    p = np.array([[-80, 80, 80, 80], [80, -80, -80, -80]], "float32")
    value, slope = differentiated(name, logits, "graph")(y, p)
    assert np.isfinite(value).all() and np.isfinite(slope).all() and (value >= 0).all()


@variants
def test_the_config_makes_an_equal_loss(name, logits):
    loss = made(name, logits, missing=-1, reduction="sum", name="mine")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss) and again.get_config() == loss.get_config()
    y, p = CASES[name].data(7, 0.5, logits)
    assert float(again(y, p)) == float(loss(y, p))
