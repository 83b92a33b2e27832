"""Fine-tuning happens only where labels can judge it, and is kept only where it is better."""

import keras
import numpy as np
import pytest

import kerasmtl as kt
from kerasmtl.training.auto import head_for, keep_better
from kerasmtl.training.depth import can_judge


def line(weight):
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid", use_bias=False)(inputs))
    model.set_weights([np.array([[weight]])])
    return model


@pytest.mark.parametrize(
    "before,after,kept,weight",
    [(4.0, -4.0, "frozen", 4.0), (-4.0, 4.0, "fine-tuned", 4.0), (4.0, 4.1, "frozen", 4.0)],
)
def test_the_better_weights_are_kept(before, after, kept, weight):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (200, 1))
    y = (x + rng.normal(size=x.shape) * 0.3 > 0).astype("float32")
    y[::5] = np.nan
    model = line(after)
    assert keep_better(model, line(before).get_weights(), [(x, y)], [kt.Task("a")], False) == kept
    assert model.get_weights()[0].item() == pytest.approx(weight)


def test_the_mean_is_kept_where_it_is_better_than_both():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2))
    y = (x.sum(axis=1, keepdims=True) + rng.normal(size=(300, 1)) * 0.1 > 0).astype("float32")
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid", use_bias=False)(inputs))
    model.set_weights([np.array([[4.0], [0.0]])])
    before = model.get_weights()
    model.set_weights([np.array([[0.0], [4.0]])])
    assert keep_better(model, before, [(x, y)], [kt.Task("a")], verbose=False) == "average"
    np.testing.assert_allclose(model.get_weights()[0].ravel(), [2, 2])


def test_a_single_multiclass_task_is_compared_by_its_classes():
    task = kt.Task("c", "multiclass", classes=("x", "y", "z"))
    x = np.eye(3)[np.arange(60) % 3].astype("float32")
    inputs = keras.Input((3,))
    outputs = {"c": keras.layers.Dense(3, "softmax", use_bias=False)(inputs)}
    model = keras.Model(inputs, outputs)
    before = [np.zeros((3, 3))]
    model.set_weights([np.eye(3) * 9])
    data = [(x, {"c": (np.arange(60) % 3)[:, None].astype("float32")})]
    groups = np.arange(60) // 3
    assert keep_better(model, before, data, [task], False, groups) == "fine-tuned"


def test_every_kind_of_task_has_its_loss():
    tasks = [
        kt.Task("a"),
        kt.Task("c", "multiclass", classes=("x", "y")),
        kt.Task("r", "regression"),
    ]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype("float32")
    labels = np.column_stack([x[:, 0] > 0, x[:, 1] > 0, x[:, 2] * 9 + 70])
    backbone = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    model = kt.build_model(backbone, tasks, labels=labels)
    wrong = [weight * 0 for weight in model.get_weights()]
    head = kt.features.fit_head(x, labels, tasks)
    backbone.trainable = False
    good = head.attach(model)
    data = [(x, {"binary": labels[:, :1], "c": labels[:, 1:2], "r": labels[:, 2:]})]
    assert keep_better(good, good.get_weights(), data, tasks, verbose=False) == "frozen"
    model.set_weights(wrong)
    assert keep_better(model, wrong, data, tasks, verbose=False) == "frozen"


def test_a_validation_part_judges_from_twenty_of_the_rarer_answer_on():
    labels = np.full((60, 1), np.nan)
    labels[:20], labels[20:39] = 1, 0
    assert not can_judge(labels, [kt.Task("a")])
    labels[39] = 0
    assert can_judge(labels, [kt.Task("a")])
    three = kt.Task("c", "multiclass", classes=("x", "y", "z"))
    assert can_judge(np.zeros((60, 1)), [three]) and not can_judge(np.zeros((59, 1)), [three])
    number = kt.Task("r", "regression")
    assert can_judge(np.zeros((40, 1)), [number]) and not can_judge(np.zeros((39, 1)), [number])


@pytest.mark.parametrize("held,tune", [(30, False), (0, False)])
def test_a_table_s_head_learns_from_validation_rows_as_well(held, tune):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(80, 3)).astype("float32")
    labels = (values[:, :1] > 0).astype("float32")
    groups = [None, "b"] * 40
    rows = kt.Manifest.from_arrays(values, labels, ["a"], kt.data.Table(), groups=groups)
    train, val = rows.take(range(80 - held)), rows.take(range(80 - held, 80))
    model = kt.build_model(kt.backbones.columns(train.values), ["a"])
    head = head_for(model, (train, None), (val, None))
    assert len(head.labels) == 80 and head.tune is tune
    found = head.attach(model).predict(values, verbose=0)
    np.testing.assert_allclose(found, head.predict(np.asarray(model.layers[1](values))), atol=1e-5)
