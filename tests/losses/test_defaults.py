"""Default losses, and regression at the scale of its own labels."""

import keras
import numpy as np
import pytest

import kerasmtl as kt
from kerasmtl.losses.defaults import target_scales

NAN = float("nan")
HOURS = kt.Task("hours", "regression")


def test_mean_and_deviation_are_those_of_the_known_labels():
    labels = np.array([[1, 400, 7, NAN], [0, NAN, 7, NAN], [NAN, 600, NAN, NAN]], "float32")
    tasks = [kt.Task("a"), HOURS, kt.Task("flat", "regression"), kt.Task("none", "regression")]
    assert target_scales(tasks, labels) == {"hours": (500.0, 100.0), "flat": (7.0, 1.0)}
    assert target_scales(tasks, None) == {}
    with pytest.raises(ValueError, match="`labels`"):
        target_scales([HOURS], labels)


def test_each_kind_has_its_loss_and_tasks_their_weights():
    tasks = [
        kt.Task("a", weight=2),
        kt.Task("k", "multiclass", ("x", "y")),
        kt.Task("b"),
        kt.Task("n", "regression", weight=0),
    ]
    losses = kt.losses.for_tasks(tasks)
    assert isinstance(losses["binary"], kt.losses.MaskedBinaryCrossentropy)
    assert losses["binary"].task_weights == (2.0, 1.0)
    assert isinstance(losses["k"], kt.losses.MaskedCategoricalCrossentropy)
    assert losses["n"] is None
    binary = kt.losses.for_tasks([kt.Task("a"), kt.Task("b")])
    assert isinstance(binary, kt.losses.MaskedBinaryCrossentropy) and binary.task_weights is None


def example(rows=300):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3)).astype("float32")
    z = x @ [1.0, -0.5, 0.25]
    labels = np.stack([z > 0, 492 + 120 * z], axis=1).astype("float32")
    labels[rng.random(labels.shape) < 0.2] = NAN
    return x, labels, [kt.Task("a"), HOURS]


def test_the_loss_is_the_one_of_standardized_labels():
    _, labels, tasks = example()
    (mean, std), known = target_scales(tasks, labels)["hours"], labels[:, 1:]
    predicted = (mean + std * np.linspace(-2, 2, len(labels))[:, None]).astype("float32")
    plain = kt.losses.MaskedHuber()((known - mean) / std, (predicted - mean) / std)
    loss = kt.losses.for_tasks(tasks, labels)["hours"]
    np.testing.assert_allclose(loss(known, predicted), plain, rtol=1e-4)


def test_a_regression_task_is_learned_at_its_natural_scale(tmp_path):
    keras.utils.set_random_seed(0)
    x, labels, tasks = example()
    model = kt.build_model(kt.backbones.mlp(x, [16]), tasks, labels=labels)
    before = model.predict(x, verbose=0)["hours"]
    assert 300 < before.mean() < 700 and before.std() > 10
    model.compile(
        keras.optimizers.Adam(1e-2), kt.losses.for_tasks(tasks, labels), jit_compile=False
    )
    y = {"binary": labels[:, :1], "hours": labels[:, 1:]}
    model.fit(x, y, epochs=10, verbose=0)
    model.save(tmp_path / "m.keras")
    after = keras.models.load_model(tmp_path / "m.keras").predict(x, verbose=0)["hours"]
    known = ~np.isnan(labels[:, 1])
    error = (after[known, 0] - labels[known, 1]).std()
    assert error < 0.4 * labels[known, 1].std()
