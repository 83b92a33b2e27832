"""Outputs for tasks of several kinds, and back to the tasks."""

import keras
import numpy as np
import pytest
from tables import table_of

import kerasmtl as kt
from kerasmtl.models.build import check_outputs
from kerasmtl.tasks import by_task

TASKS = [
    kt.Task("a"),
    kt.Task("grade/level", "multiclass", classes=("low", "mid", "high")),
    kt.Task("b"),
    kt.Task("hours", "regression"),
]
SHAPES = {"binary": (None, 2), "grade/level": (None, 3), "hours": (None, 1)}


def model_of(tasks, **options):
    keras.utils.set_random_seed(0)
    return kt.build_model(kt.backbones.mlp(4, hidden=[8]), tasks, **options)


def shapes_of(model):
    return {key: tuple(output.shape) for key, output in model.output.items()}


def rows(count=5):
    return np.random.default_rng(0).normal(size=(count, 4)).astype("float32")


def test_mixed_kinds_have_an_output_each_and_share_the_binary_one():
    model = model_of(TASKS, hidden=[6], dropout=0.2)
    assert shapes_of(model) == SHAPES
    p = model.predict(rows(), verbose=0)
    assert ((p["binary"] > 0) & (p["binary"] < 1)).all()
    np.testing.assert_allclose(p["grade/level"].sum(axis=1), 1, rtol=1e-5)
    far = model.predict(1e4 * rows(), verbose=0)["hours"]
    assert np.abs(far).max() > 10  # linear, not squashed


@pytest.mark.parametrize(
    "task, shape",
    [(kt.Task("c", "multiclass", classes=("x", "y")), (None, 2)), (TASKS[3], (None, 1))],
)
def test_a_single_task_of_another_kind_still_gives_a_dict(task, shape):
    assert shapes_of(model_of([task])) == {task.name: shape}


def test_outputs_are_float32_under_a_mixed_policy():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = model_of(TASKS)
        assert {output.dtype for output in model.output.values()} == {"float32"}
    finally:
        keras.config.set_dtype_policy("float32")


def test_classes_that_are_not_known_yet_are_asked_for():
    with pytest.raises(ValueError, match="`classes` of task 'c' are not known yet"):
        model_of([kt.Task("c", "multiclass")])


def test_outputs_by_task_are_in_the_order_of_the_tasks():
    model = model_of(TASKS)
    p = model.predict(rows(), verbose=0)
    named = by_task(p, TASKS)
    assert list(named) == ["a", "grade/level", "b", "hours"]
    np.testing.assert_array_equal(named["b"], p["binary"][:, 1])
    np.testing.assert_array_equal(named["hours"], p["hours"][:, 0])
    assert named["grade/level"].shape == (5, 3)
    plain = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(by_task(plain, [kt.Task("x"), kt.Task("y")])["y"], plain[:, 1])


def test_tasks_that_differ_from_the_outputs_are_named():
    check_outputs(model_of(TASKS), TASKS)
    with pytest.raises(ValueError, match=r"Expected output \(batch, 2\).*Received: \{'binary'"):
        check_outputs(model_of(TASKS), [kt.Task("a"), kt.Task("b")])
    with pytest.raises(ValueError, match=r"Expected outputs \{'binary': \(None, 2\)"):
        check_outputs(model_of([kt.Task("a")]), TASKS)


def test_outputs_and_columns_without_a_task_are_named():
    with pytest.raises(ValueError, match=r"Outputs without a task: \['grade/level', 'hours'\]"):
        check_outputs(model_of(TASKS), [kt.Task("a"), kt.Task("b")])
    with pytest.raises(ValueError, match=r"Outputs without a task: \['hours'\]"):
        check_outputs(model_of(TASKS), TASKS[:3])
    with pytest.raises(ValueError, match=r"Columns without a task: \[1\]"):
        check_outputs(model_of([kt.Task("a"), kt.Task("b")]), [kt.Task("a")])


def test_default_losses_and_metrics_train_every_output_and_ignore_holes():
    model = model_of(TASKS)
    x, rng = rows(32), np.random.default_rng(1)
    labels = np.column_stack(
        [rng.integers(0, n, 32) for n in (2, 3, 2)] + [rng.normal(size=32)]
    ).astype("float32")
    labels[rng.random(labels.shape) < 0.4] = np.nan
    table = table_of(x, labels, TASKS)
    model.compile(
        "adam",
        loss=kt.losses.for_tasks(TASKS),
        metrics=kt.metrics.for_tasks(TASKS),
        jit_compile=False,
    )
    before = [weight.numpy().copy() for weight in model.trainable_variables]
    history = model.fit(kt.make_dataset(table, None, 8), epochs=2, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values()), history
    assert {"binary_auc", "loss"} <= set(history)
    pairs = zip(before, model.trainable_variables, strict=True)
    assert all((a != b.numpy()).any() for a, b in pairs)


def test_the_weight_of_a_task_counts_in_its_loss():
    tasks = [kt.Task("a", weight=2.0), kt.Task("b", weight=0.0)]
    labels, p = np.float32([[1, 1]]), np.float32([[0.5, 0.1]])
    loss = kt.losses.for_tasks(tasks)
    np.testing.assert_allclose(loss(labels, p), 2 * np.log(2), rtol=1e-6)


def test_an_output_of_weight_0_is_not_trained():
    tasks = [kt.Task("a"), kt.Task("speed", kind="regression", weight=0.0)]
    losses = kt.losses.for_tasks(tasks)
    assert losses["speed"] is None
    inputs = keras.Input((3,))
    outputs = {
        "binary": keras.layers.Dense(1, activation="sigmoid", name="binary")(inputs),
        "speed": keras.layers.Dense(1, name="speed")(inputs),
    }
    model = keras.Model(inputs, outputs)
    model.compile("adam", losses)
    before = model.get_layer("speed").get_weights()
    x = np.random.default_rng(0).random((4, 3), dtype="float32")
    y = {"binary": np.ones((4, 1), "float32"), "speed": np.full((4, 1), 9.0, "float32")}
    model.train_on_batch(x, y)
    for a, b in zip(before, model.get_layer("speed").get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
