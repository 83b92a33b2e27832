"""A regression task is learnt at the scale of its own labels, and predicts in their unit."""

import keras
import numpy as np
import pytest

import kerasmtl as kt
from kerasmtl.losses.defaults import target_scales

NAN = float("nan")
HOURS = kt.Task("hours", "regression")


def test_mean_and_spread_are_those_of_the_known_labels():
    labels = np.array([[1, 400, 7, NAN], [0, NAN, 7, NAN], [NAN, 600, NAN, NAN]], "float32")
    tasks = [kt.Task("a"), HOURS, kt.Task("flat", "regression"), kt.Task("none", "regression")]
    assert target_scales(tasks, labels) == {"hours": (500.0, 100.0), "flat": (7.0, 1.0)}
    assert target_scales(tasks, None) == {}
    with pytest.raises(ValueError, match=r"`labels` do not fit the tasks. Expected .*\(rows, 1\)"):
        target_scales([HOURS], labels)


def example(rows=300):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3)).astype("float32")
    z = x @ [1.0, -0.5, 0.25]
    labels = np.stack([z > 0, 492 + 120 * z], axis=1).astype("float32")
    labels[rng.random(labels.shape) < 0.2] = NAN
    return kt.Table.from_arrays(x, labels, [kt.Task("a"), HOURS])


def test_the_loss_is_the_one_of_standardised_labels():
    table = example()
    (mean, std), known = target_scales(table.tasks, table.labels)["hours"], table.labels[:, 1:]
    losses = kt.losses.for_tasks(table.tasks, table.labels)
    predicted = (mean + std * np.linspace(-2, 2, len(table))[:, None]).astype("float32")
    plain = kt.losses.MaskedHuber()((known - mean) / std, (predicted - mean) / std)
    np.testing.assert_allclose(losses["hours"](known, predicted), plain, rtol=1e-4)


def test_an_untrained_model_predicts_around_the_mean_in_the_unit_of_the_labels(tmp_path):
    keras.utils.set_random_seed(0)
    table = example()
    model = kt.build_model(kt.backbones.mlp(table.features, [8]), table.tasks, labels=table.labels)
    predicted = model.predict(table.features, verbose=0)["hours"]
    assert 300 < predicted.mean() < 700 and predicted.std() > 10
    model.save(tmp_path / "m.keras")
    again = kt.load_model(tmp_path / "m.keras").predict(table.features, verbose=0)["hours"]
    np.testing.assert_array_equal(again, predicted)


def test_hours_are_learnt_at_their_natural_scale():
    keras.utils.set_random_seed(0)
    table = example()
    model = kt.build_model(kt.backbones.mlp(table.features, [16]), table.tasks, labels=table.labels)
    loss = kt.losses.for_tasks(table.tasks, table.labels)
    model.compile(keras.optimizers.Adam(1e-2), loss=loss, jit_compile=False)
    model.fit(kt.make_table_dataset(table, 32, training=True), epochs=15, verbose=0, shuffle=False)
    report = kt.evaluate(model, kt.make_table_dataset(table), table.tasks)
    assert report.tasks["hours"].r2 > 0.9 and report.tasks["a"].auc > 0.95
