"""The learning-rate finder: its curve, its suggestion, and that nothing is left of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasmtl as kt
from kerasmtl.training.lr_finder import _exploded

LearningRateCurve, LayerwiseDecay = kt.optimizers.LearningRateCurve, kt.optimizers.LayerwiseDecay
find_learning_rate = kt.optimizers.find_learning_rate
Cosine = keras.optimizers.schedules.CosineDecay

RNG = np.random.default_rng(0)
X = RNG.random((24, 4), dtype="float32")
Y = RNG.choice([0.0, 1.0, np.nan], (24, 2)).astype("float32")


def batches(y=Y):
    return tf.data.Dataset.from_tensor_slices((X, y)).batch(8)


def network(optimizer=None, **compiled):
    """With all that training moves: slots, statistics, dropout's seed, a loss with a memory."""
    keras.utils.set_random_seed(0)
    row = keras.Input((4,))
    hidden = keras.layers.Dense(5, "relu")(row)
    hidden = keras.layers.BatchNormalization()(hidden)
    hidden = keras.layers.Dropout(0.5)(hidden)
    model = keras.Model(row, keras.layers.Dense(2, "sigmoid")(hidden))
    loss = kt.losses.MaskedBinaryCrossentropy(balancer=kt.losses.UncertaintyWeighting(2))
    model.compile(
        optimizer or keras.optimizers.Adam(0.01),
        compiled.pop("loss", loss),
        metrics=[kt.metrics.MaskedAUC(num_bins=16)],
        run_eagerly=True,
        **compiled,
    )
    return model


def everything(model):
    held = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    balancer = getattr(model.loss, "balancer", None)
    if balancer is not None:
        held += [*balancer.state.values()]
    return [np.array(variable.numpy()) for variable in held]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1)),
        lambda: LayerwiseDecay(keras.optimizers.AdamW(Cosine(0.1, 9)), {"dense/kernel": 0.5}),
    ],
    ids=["average", "loss scale", "scaled"],
)
def test_nothing_is_left_of_it(make):
    model = network(make())
    model.fit(batches(), verbose=0, shuffle=False)
    optimizer, before = model.optimizer, everything(model)
    curve = find_learning_rate(model, batches(), steps=7, high=1.0)
    assert len(curve.rates) == 7
    assert model.optimizer is optimizer
    assert_same(everything(model), before)


def test_training_goes_on_as_if_it_had_not_been():
    model, other = network(), network()
    for each in (model, other):
        each.fit(batches(), verbose=0, shuffle=False)
    find_learning_rate(model, batches(), steps=7, high=1.0)
    for each in (model, other):
        each.fit(batches(), verbose=0, shuffle=False)
    assert_same(everything(model), everything(other))


def test_nothing_is_left_after_ctrl_c():
    model = network()
    model.fit(batches(), verbose=0, shuffle=False)
    before = everything(model)

    def interrupted():
        yield from batches()
        assert any((a != b).any() for a, b in zip(everything(model)[:2], before, strict=False))
        raise KeyboardInterrupt

    optimizer = model.optimizer
    with pytest.raises(KeyboardInterrupt):
        find_learning_rate(model, interrupted())
    assert model.optimizer is optimizer
    assert_same(everything(model), before)


def test_a_data_set_gives_the_same_epoch_next(shared_images):
    manifest = kt.Manifest.from_csv(shared_images / "labels.csv")
    data = kt.make_dataset(manifest, 8, batch_size=4, training=True, seed=1)
    twin = kt.make_dataset(manifest, 8, batch_size=4, training=True, seed=1)
    image = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(3, "sigmoid")(keras.layers.Flatten()(image))
    model = keras.Model(image, outputs)
    model.compile("sgd", kt.losses.MaskedBinaryCrossentropy())
    find_learning_rate(model, data, steps=10, high=0.1)
    for (x, _), (expected, _) in zip(data, twin, strict=True):
        np.testing.assert_array_equal(x, expected)


def quadratic(curvature, optimizer):
    """The loss `curvature / 2 · w²` from w = 1, which descent makes less below 2 / curvature."""
    row = keras.Input((1,))
    model = keras.Model(row, keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")(row))
    model.compile(optimizer, "mse")
    x = np.full((4, 1), np.sqrt(curvature / 2), "float32")
    return model, tf.data.Dataset.from_tensors((x, np.zeros((4, 1), "float32")))


@pytest.mark.parametrize("curvature, steps", [(0.5, 60), (500.0, 200)])
def test_the_suggestion_for_a_quadratic_is_below_where_it_explodes(curvature, steps):
    model, data = quadratic(curvature, keras.optimizers.SGD(1.0))
    curve = find_learning_rate(model, data, steps=steps, low=1e-6, high=100.0)
    assert 0.02 / curvature < curve.suggestion < 2.0 / curvature
    assert curve.rates[-1] < 100.0  # it stopped when the loss exploded
    np.testing.assert_allclose(curve.rates, np.geomspace(1e-6, 100, steps)[: len(curve.rates)])


def test_losses_and_their_smoothing_by_hand():
    model, data = quadratic(2.0, keras.optimizers.SGD(1.0))
    curve = find_learning_rate(model, data, steps=9, low=1e-3, high=0.5, smoothing=0.75)
    weight, average = 1.0, 0.0
    for i, rate in enumerate(np.geomspace(1e-3, 0.5, 9)):
        assert curve.losses[i] == pytest.approx(weight**2, rel=1e-5)
        average = 0.75 * average + 0.25 * curve.losses[i]
        assert curve.smoothed[i] == pytest.approx(average / (1 - 0.75 ** (i + 1)), rel=1e-9)
        weight -= rate * 2.0 * weight
    assert curve.suggestion == pytest.approx(0.05)


def test_no_suggestion_where_the_loss_only_grows():
    model, data = quadratic(1.0, keras.optimizers.SGD(1.0))
    curve = find_learning_rate(model, data, low=3.0, high=30.0, steps=20)
    assert curve.suggestion is None


def test_infinite_losses_end_it_and_are_not_in_the_curve():
    model, data = quadratic(1.0, keras.optimizers.SGD(1.0))
    curve = find_learning_rate(model, data, low=1e-2, high=1e30, steps=12, smoothing=0.0)
    assert 2 < len(curve.rates) < 12 and np.isfinite(curve.losses).all()


@pytest.mark.parametrize(
    "losses, exploded",
    [([2, 1, 4], False), ([2, 1, 4.1], True), ([-1, -2, 4], False), ([-1, -2, 4.1], True)],
)
def test_a_loss_explodes_by_its_size_whatever_its_sign(losses, exploded):
    assert not _exploded([-1.0])
    assert _exploded(losses) is exploded


CURVE = LearningRateCurve(np.array([0.1, 1.0]), np.array([2.0, 1.0]), np.array([2.0, 1.5]), 0.1)


def test_the_plot_is_an_image(tmp_path):
    CURVE.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[:5] == b"\x89PNG\r"
    assert [file.name for file in tmp_path.iterdir()] == ["curve.png"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"low": 0.0},
        {"high": float("inf")},
        {"high": 1.0, "low": 1.0},
        {"steps": 1},
        {"smoothing": 1.0},
        {"data": []},
        {"data": batches().map(lambda x, y: (x * np.nan, y))},
        {"model": keras.Sequential([keras.layers.Dense(2)])},
    ],
)
def test_wrong_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
        find_learning_rate(**{"model": network(loss="mse"), "data": batches(), **arguments})
