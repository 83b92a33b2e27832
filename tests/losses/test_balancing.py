"""Balancers against their formulas in NumPy, and the task that is absent."""

import json

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

import kerasmtl as kt

NAN = float("nan")
TASKS, ROWS, EVERY = 4, 6, 2
BALANCERS = {
    "uncertainty": lambda **o: kt.losses.UncertaintyWeighting(TASKS, rate=0.1, **o),
    "random": lambda **o: kt.losses.RandomWeighting(TASKS, seed=3, **o),
    "dwa": lambda **o: kt.losses.DynamicWeightAverage(TASKS, EVERY, **o),
    "famo": lambda **o: kt.losses.FAMO(TASKS, EVERY, rate=0.5, **o),
}
all_balancers = pytest.mark.parametrize("name", BALANCERS)
# Both ways to remember, and of these the windows under XLA, which compiles for seconds.
modes = pytest.mark.parametrize(
    ("name", "mode"),
    [*((name, "eager") for name in BALANCERS), ("uncertainty", "graph"), ("famo", "xla")],
)


def state_of(balancer):
    return {name: np.array(values) for name, values in balancer.get_config()["state"].items()}


def stepper(balancer, mode="eager", **options):
    """One training step by call: value by row, and the gradient of its sum."""
    loss = kt.losses.MaskedBinaryCrossentropy(balancer=balancer, reduction="none", **options)

    def step(y, p):
        with tf.GradientTape() as tape:
            tape.watch(p)
            value = loss(y, p)
        return value, tape.gradient(value, p)

    call = step if mode == "eager" else tf.function(step, jit_compile=mode == "xla")
    return lambda y, p: tuple(part.numpy() for part in call(tf.constant(y), tf.constant(p)))


def batches(count=7, absent=None, seed=0):
    for number in range(count):
        y, p = reference.case(seed + number, ROWS, TASKS, known=0.7)
        y[0] = [0, 1, 0, 1]
        if absent is not None:
            y[:, absent] = NAN
        yield y, p


def sums(y, p):
    """Of the known cells, by task: sum of losses, and number."""
    kept = [reference.cells(y[:, j], p[:, j]) for j in range(TASKS)]
    costs = [-(t * np.log(q) + (1 - t) * np.log(1 - q)) for t, q in kept]
    return np.array([c.sum() for c in costs]), np.array([len(c) for c in costs])


class Uncertainty:
    def __init__(self):
        self.s = np.zeros(TASKS)

    def step(self, total, count):
        weights = np.exp(-self.s)
        self.s = self.s - 0.1 * (count / ROWS) * (0.5 - weights * total / count)
        return weights


class Windows:
    def __init__(self):
        self.weights, self.logits, self.means, self.seen = np.ones(TASKS), np.zeros(TASKS), [], []

    def step(self, total, count):
        weights = self.weights
        self.seen.append((total, count))
        if len(self.seen) == EVERY:
            self.means.append(sum(t for t, _ in self.seen) / sum(c for _, c in self.seen))
            self.seen = []
            if len(self.means) > 1:
                self.rebalance(self.means[-2], self.means[-1])
        return weights


class Dwa(Windows):
    def rebalance(self, before, now):
        parts = np.exp(now / before / 2)
        self.weights = TASKS * parts / parts.sum()


class Famo(Windows):
    def rebalance(self, before, now):
        z = np.exp(self.logits) / np.exp(self.logits).sum()
        jacobian = np.diag(z) - np.outer(z, z)
        slope = jacobian.T @ np.log(before / now) + 0.001 * self.logits
        self.logits = self.logits - 0.5 * slope
        z = np.exp(self.logits) / np.exp(self.logits).sum() / now
        self.weights = TASKS * z / z.sum()


@modes
def test_gradients_are_weighed_by_the_formula_and_values_are_not(name, mode):
    if name == "random":
        return  # see below
    balancer, truth = (
        BALANCERS[name](),
        {"uncertainty": Uncertainty, "dwa": Dwa, "famo": Famo}[name](),
    )
    step = stepper(balancer, mode)
    for y, p in batches():
        weights = truth.step(*sums(y, p))
        np.testing.assert_allclose(balancer.weights(), weights, rtol=1e-4)
        value, slope = step(y, p)
        np.testing.assert_allclose(value, reference.row_losses(y, p), rtol=1e-5)
        plain = reference.gradient(y, p) * ROWS
        np.testing.assert_allclose(slope, plain * weights, rtol=2e-4, atol=1e-6)
    assert np.ptp(balancer.weights()) > 1e-3


@pytest.mark.parametrize("mode", ["eager", "xla"])
def test_random_weights_sum_to_the_tasks_and_change_by_step_and_seed(mode):
    balancer, drawn = BALANCERS["random"](), []
    step = stepper(balancer, mode)
    for y, p in batches(3):
        drawn.append(balancer.weights())
        _, slope = step(y, p)
        plain = reference.gradient(y, p) * ROWS
        np.testing.assert_allclose(slope, plain * drawn[-1], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(np.sum(drawn, 1), TASKS, rtol=1e-5)
    assert (drawn[0] != drawn[1]).all() and (drawn[1] != drawn[2]).all()
    np.testing.assert_array_equal(BALANCERS["random"]().weights(), drawn[0])
    assert (kt.losses.RandomWeighting(TASKS, seed=4).weights() != drawn[0]).all()


@all_balancers
def test_an_absent_task_moves_nothing_of_its_own_bit_for_bit(name):
    balancer = BALANCERS[name]()
    step = stepper(balancer)
    for y, p in batches(6):
        step(y, p)
    before, weights = state_of(balancer), balancer.weights()
    for y, p in batches(5, absent=1, seed=50):
        _, slope = step(y, p)
        assert (slope[:, 1] == 0).all()
    after = state_of(balancer)
    for key in set(before) - {"steps"}:
        assert before[key][1] == after[key][1]
    if name != "random":
        assert balancer.weights()[1] == weights[1]
        assert (np.delete(balancer.weights(), 1) != np.delete(weights, 1)).all()


@pytest.mark.parametrize("name", ["uncertainty", "dwa", "famo"])
def test_an_absent_task_moves_no_other_either(name):
    """With the task absent from the start, the others go as if it were not there."""
    four, three = BALANCERS[name](), BALANCERS[name]()
    three = type(three)(**{**three.get_config(), "tasks": 3, "state": None})
    with_it, without = stepper(four), stepper(three)
    for y, p in batches(8, absent=3):
        _, slope = with_it(y, p)
        _, other = without(y[:, :3], p[:, :3])
        np.testing.assert_allclose(slope[:, :3], other, rtol=1e-5)
    np.testing.assert_allclose(four.weights()[:3], three.weights(), rtol=1e-5)
    assert four.weights()[3] == 1.0


@modes
def test_nothing_under_a_missing_label_changes_a_bit_of_step_or_state(name, mode):
    results = []
    for hidden in (0.5, 1e30, NAN) if mode == "eager" else (0.5, NAN):
        balancer = BALANCERS[name]()
        step, seen = stepper(balancer, mode), []
        for y, p in batches(2 * EVERY):
            seen += step(y, np.where(np.isnan(y), np.float32(hidden), p))
        results.append([part.tobytes() for part in seen] + [str(state_of(balancer))])
    assert all(result == results[0] for result in results)


@all_balancers
def test_a_batch_with_nothing_known_moves_nothing(name):
    balancer = BALANCERS[name]()
    step = stepper(balancer)
    for y, p in batches(2 * EVERY):
        step(y, p)
    before = state_of(balancer)
    value, slope = step(np.full_like(y, NAN), np.full_like(p, NAN))
    assert (value == 0).all() and (slope == 0).all()
    after = state_of(balancer)
    if "steps" in before:
        assert (after.pop("steps") == before.pop("steps") + 1).all()
    assert str(before) == str(after)


@all_balancers
def test_a_nan_is_shown_and_not_kept(name):
    balancer = BALANCERS[name]()
    step = stepper(balancer)
    for number, (y, p) in enumerate(batches(8)):
        if number == 2:
            p[0, 2] = NAN
        value, slope = step(y, p)
        assert np.isnan(value[0]) == np.isnan(slope[0, 2]) == (number == 2)
    assert np.isfinite(balancer.weights()).all()


def small(balancer=None, optimizer="sgd", **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(TASKS, "sigmoid")])
    model.compile(optimizer, kt.losses.MaskedBinaryCrossentropy(balancer=balancer), **options)
    x = np.random.default_rng(3).normal(size=(24, 3)).astype("float32")
    y = reference.case(rows=24, tasks=TASKS)[0]
    return model, x, y


@pytest.mark.parametrize("name", ["uncertainty", "dwa"])
def test_evaluation_does_not_step_and_shows_the_loss_without_a_balancer(name):
    balancer = BALANCERS[name]()
    model, x, y = small(balancer)
    model.fit(x, y, batch_size=6, verbose=0)
    before = state_of(balancer)
    for batch_size in (5, 24):
        value = model.evaluate(x, y, batch_size=batch_size, verbose=0)
        np.testing.assert_allclose(value, reference.loss(y, model.predict(x, verbose=0)), rtol=1e-5)
    assert str(before) == str(state_of(balancer)) and any(v.any() for v in before.values())


def test_momentum_and_decay_of_the_optimizer_do_not_move_an_absent_task():
    balancer = BALANCERS["uncertainty"]()
    model, x, y = small(balancer, "adamw")
    model.fit(x, y, verbose=0)
    before = state_of(balancer)["log_variance"]
    y[:, 2] = NAN
    model.fit(x, y, epochs=2, verbose=0)
    moved = state_of(balancer)["log_variance"] != before
    assert moved.tolist() == [True, True, False, True]


@pytest.mark.parametrize("name", ["random", "famo"])
def test_saved_in_the_midst_of_training_it_goes_on_as_if_never_saved(name, tmp_path):
    model, x, y = small(BALANCERS[name](), "adam")
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert again.loss.balancer is not model.loss.balancer
    for one in (model, again):
        one.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
    assert str(state_of(model.loss.balancer)) == str(state_of(again.loss.balancer))
    for ours, theirs in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "policy"), [("uncertainty", "mixed_float16"), ("famo", "mixed_bfloat16")]
)
def test_mixed_precision_trains_and_the_loss_scale_does_not_move_the_balancer(name, policy):
    states = []
    for chosen in ("float32", policy):
        keras.config.set_dtype_policy(chosen)
        try:
            balancer = BALANCERS[name]()
            model, x, y = small(balancer)
            model.fit(x, y, batch_size=24, epochs=5, verbose=0)
        finally:
            keras.config.set_dtype_policy("float32")
        states.append(balancer.weights())
    np.testing.assert_allclose(*states, rtol=0.02)


def test_the_weight_of_a_task_without_loss_does_not_grow_for_ever():
    balancer = kt.losses.UncertaintyWeighting(2, rate=1.0)
    p = tf.constant([[0.0, 1e4]])
    loss = kt.losses.MaskedMeanSquaredError(balancer=balancer)

    @tf.function
    def slope():
        with tf.GradientTape() as tape:
            tape.watch(p)
            value = loss(np.zeros((1, 2), "float32"), p)
        return tape.gradient(value, p)

    for _ in range(400):
        found = slope().numpy()
        assert np.isfinite(found).all() and found[0, 0] == 0
    np.testing.assert_allclose(balancer.weights(), np.exp([10, -10]), rtol=1e-5)


@pytest.mark.parametrize("kind", [kt.losses.DynamicWeightAverage, kt.losses.FAMO])
def test_a_batch_of_nan_is_left_out_of_the_mean_of_its_window(kind):
    balancer = kind(2, every=2)
    stepped = stepper(balancer)
    y, p = np.array([[1, 0]] * 4, "float32"), np.full((4, 2), 0.5, "float32")
    broken = p.copy()
    broken[0, 0] = NAN
    stepped(y, broken)
    stepped(y, p)
    np.testing.assert_allclose(state_of(balancer)["previous"], [np.log(2)] * 2, rtol=1e-6)


def test_a_balancer_serves_one_loss():
    balancer = kt.losses.FAMO(2, 2)
    first, second = (kt.losses.MaskedBinaryCrossentropy(balancer=balancer, name=n) for n in "ab")
    y, p = np.ones((1, 2), "float32"), np.full((1, 2), 0.5, "float32")
    first(y, p)
    first(y, p)
    with pytest.raises(ValueError, match="`balancer`.*'a' and 'b'.*from_config"):
        second(y, p)
    copied = kt.losses.FAMO.from_config(balancer.get_config())
    kt.losses.MaskedBinaryCrossentropy(balancer=copied)(y, p)
    del first
    second(y, p)


def test_numbers_of_numpy_are_numbers():
    balancer = kt.losses.UncertaintyWeighting(np.int64(4), rate=np.float32(0.5))
    assert (balancer.tasks, balancer.rate) == (4, 0.5)
    assert kt.losses.FAMO(2, np.int64(3)).every == 3
    json.dumps(balancer.get_config())


def test_squared_errors_count_half():
    balancer = BALANCERS["uncertainty"]()
    loss = kt.losses.MaskedMeanSquaredError(balancer=balancer, reduction="sum")
    y = np.array([[1, NAN, 0, 2]], "float32")
    p = tf.Variable([[0.0, 5.0, 0.5, 2.0]])
    with tf.GradientTape() as tape:
        value = loss(y, p)
    np.testing.assert_allclose(tape.gradient(value, p), [[-1, 0, 0.5, 0]])
    expected = -0.1 * (0.5 - 0.5 * np.array([1, 0, 0.25, 0])) * [1, 0, 1, 1]
    np.testing.assert_allclose(state_of(balancer)["log_variance"], expected, rtol=1e-5)


def test_task_weights_multiply_the_weights_of_the_balancer():
    y, p = next(batches())
    balancer = BALANCERS["random"]()
    drawn, weights = balancer.weights(), np.array([1, 2, 0.5, 3])
    _, slope = stepper(balancer, task_weights=weights)(y, p)
    expected = reference.gradient(y, p) * ROWS * drawn * weights
    np.testing.assert_allclose(slope, expected, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: kt.losses.UncertaintyWeighting(0), "tasks"),
        (lambda: kt.losses.UncertaintyWeighting(2, rate=0), "rate"),
        (lambda: kt.losses.DynamicWeightAverage(2, every=0), "every"),
        (lambda: kt.losses.DynamicWeightAverage(2, every=1.5), "every"),
        (lambda: kt.losses.DynamicWeightAverage(2, 1, temperature=-1), "temperature"),
        (lambda: kt.losses.FAMO(2, 1, decay=0), "decay"),
        (lambda: kt.losses.UncertaintyWeighting(2, state={"log_variance": [0.0]}), "state"),
        (lambda: kt.losses.UncertaintyWeighting(2, state={"weights": [1.0, 1.0]}), "state"),
        (lambda: stepper(kt.losses.UncertaintyWeighting(3))(*next(batches())), "balancer"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, argument):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        call()


def test_random_weights_are_the_softmax_of_standard_normal_numbers():
    balancer = kt.losses.RandomWeighting(50_000)
    logs = np.log(balancer.weights())
    z = np.sort(logs - logs.mean())
    np.testing.assert_allclose(z.std(), 1.0, atol=0.02)
    np.testing.assert_allclose(np.quantile(z, [0.0228, 0.1587, 0.9772]), [-2, -1, 2], atol=0.05)
