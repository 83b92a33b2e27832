"""Plans: their stages, and which of them fits how much data."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasmtl as kt
from kerasmtl.training.depth import HEAD_ALONE, LAST_ALONE, LITTLE, advice, after_the_head
from kerasmtl.training.optimizers import LayerwiseDecay
from kerasmtl.training.plans import PLANS, as_plan, backbone_parameters, choose_plan, count_labels

Plan, Stage, make_plan = kt.plans.Plan, kt.plans.Stage, kt.plans.make_plan

# ---------------------------------------------------------------- by name


@pytest.mark.parametrize(
    "name, trains",
    [
        ("head", ["head"]),
        ("last-layers", ["head", 0.3]),
        ("full", ["head", "all"]),
        ("gradual", ["head", 0.3, "all"]),
    ],
)
def test_a_plan_is_the_stages_of_its_name(name, trains):
    plan = make_plan(name, head_epochs=4, epochs=9, learning_rate=1e-2, fine_learning_rate=1e-3)
    assert [stage.train for stage in plan] == trains
    assert plan[0].epochs == 4 and plan[0].rate(None) == 1e-2
    assert sum(stage.epochs for stage in plan[1:]) == (9 if len(plan) > 1 else 0)
    for stage in plan[1:]:
        assert stage.learning_rate == 1e-3 and not stage.normalization
        assert stage.warmup > 0 and stage.schedule == "cosine" and 0 < stage.backbone_decay < 1
    for epochs in (1, 2, 3):
        assert make_plan(name, 1, epochs).epochs == (1 if name == "head" else 1 + epochs)


def test_options_reach_the_stages():
    plan = make_plan("full", patience=3, normalization=True, backbone_decay=0.5)
    assert [stage.patience for stage in plan] == [3, 3]
    assert plan[1].normalization and plan[1].backbone_decay == 0.5


def test_stages_names_and_plans_become_plans():
    stages = [Stage("head", 1, 0.1), Stage(2, 1, 0.1)]
    assert list(as_plan(stages)) == stages
    assert as_plan("full") == make_plan("full")
    plan = Plan("mine", tuple(stages))
    assert as_plan(plan) is plan and "the last 2 groups" in str(plan)


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: make_plan("tail"), "name"),
        (lambda: make_plan("full", epochs=0), "epochs"),
        (lambda: as_plan("tail"), "plan"),
        (lambda: as_plan([]), "plan"),
        (lambda: as_plan(["head"]), "plan"),
        (lambda: as_plan(Stage("head", 1, 0.1)), "plan"),
        (lambda: choose_plan(0, [], 10), "train"),
        (lambda: choose_plan(900, [900], 0, epochs=0), "epochs"),
    ],
)
def test_wrong_plans_are_named(call, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        call()


@pytest.mark.parametrize(
    "arguments",
    [
        {"train": "top"},
        {"train": True},
        {"train": 0},
        {"train": 1.5},
        {"epochs": 0},
        {"epochs": 1.5},
        {"learning_rate": -1.0},
        {"learning_rate": float("nan")},
        {"patience": 0},
        {"backbone_decay": 1.1},
        {"warmup": 3.0},
        {"schedule": "step"},
    ],
    ids=str,
)
def test_wrong_stages_are_named(arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
        Stage(**{"train": "head", "epochs": 2, "learning_rate": 0.1, **arguments})


# ---------------------------------------------------------------- the optimizer of a stage


@pytest.mark.parametrize("warmup, schedule", [(0.0, "cosine"), (1.0, "cosine"), (0.5, "constant")])
def test_the_rate_rises_in_a_line_and_falls_along_a_cosine(warmup, schedule):
    stage = Stage("all", 3, 0.1, warmup=warmup, schedule=schedule)
    warm, rest = int(10 * warmup), 30 - int(10 * warmup)
    for step in range(31):
        if step < warm:
            expected = 0.1 / warm + (0.1 - 0.1 / warm) * step / warm
        elif schedule == "constant":
            expected = 0.1
        else:
            expected = 0.05 * (1 + np.cos(np.pi * (step - warm) / rest))
        np.testing.assert_allclose(stage.rate(10)(step), expected, rtol=1e-5, atol=1e-8)


def test_the_batch_normalization_of_a_table_is_trained_and_that_of_a_backbone_is_not():
    x = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    table = kt.build_model(kt.backbones.mlp(x, [4], batch_norm=True), ["a"])
    image = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    for model, trained in ((table, True), (kt.build_model(image, ["a"]), False)):
        kt.plans.Stage("all", 1, 1e-3).prepare(model)
        found = {variable.name for variable in model.trainable_variables}
        assert ({"gamma", "beta"} <= found) is trained and "kernel" in found


def test_an_optimizer_is_new_and_like_the_one_that_is_given():
    rows = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    model = kt.build_model(rows, ["a"])
    plain = Stage("head", 1, 0.5)
    assert isinstance(plain.optimizer(model), keras.optimizers.Adam)
    given = keras.optimizers.SGD(0.1, momentum=0.9)
    given.build(model.trainable_variables)
    made = plain.optimizer(model, like=given)
    assert type(made) is keras.optimizers.SGD and made.momentum == 0.9 and not made.built
    assert float(made.learning_rate) == 0.5
    scaled = keras.optimizers.LossScaleOptimizer(made)
    deep = Stage("all", 1, 0.25, backbone_decay=0.5).optimizer(model, like=scaled)
    assert isinstance(deep, keras.optimizers.LossScaleOptimizer)
    assert isinstance(deep.inner_optimizer, LayerwiseDecay)
    assert set(deep.inner_optimizer.factors.values()) == {0.5}
    # The factors are the stage's alone, however often a model is trained.
    assert type(plain.optimizer(model, like=deep.inner_optimizer)) is keras.optimizers.SGD
    with pytest.raises(ValueError, match="`train`"):
        Stage("all", 1, 0.1, warmup=0.5).optimizer(model)


# ---------------------------------------------------------------- by data


@pytest.mark.parametrize(
    "known, parameters, name",
    [
        (LITTLE - 1, 1000, "head"),
        (LITTLE, 1000, "gradual"),
        (100, 400 * LAST_ALONE, "gradual"),
        (100, 400 * LAST_ALONE + 1, "last-layers"),
        (100, 400 * HEAD_ALONE, "last-layers"),
        (100, 400 * HEAD_ALONE + 1, "head"),
        (10, 0, "all"),
    ],
)
def test_little_data_trains_the_head_more_the_last_layers_much_all(known, parameters, name):
    plan = choose_plan(2 * known, [known] * 4, parameters)
    assert plan.name == name and plan.why


def test_the_median_task_counts_and_not_the_rarest():
    assert choose_plan(900, [3, 900, 900], 1000).name == "gradual"
    assert choose_plan(900, [3, 3, 900], 1000).name == "head"


def test_the_settings_are_those_of_the_plan_that_is_chosen():
    plan = choose_plan(900, [900], 1000, head_epochs=3, epochs=6, fine_learning_rate=2e-5)
    assert [stage.epochs for stage in plan] == [3, 2, 4] and plan[2].learning_rate == 2e-5
    (stage,) = choose_plan(900, [900], 0, head_epochs=2, epochs=3, learning_rate=0.5)
    assert (stage.epochs, stage.learning_rate, stage.train) == (5, 0.5, "all")
    assert all(stage.patience is None for stage in choose_plan(10, [10], 10, patience=None))
    for parameters in (0, 1000):
        with pytest.raises(TypeError, match="bogus"):
            choose_plan(900, [900], parameters, bogus=1)


def test_the_choice_says_what_it_counted():
    why = choose_plan(2400, [1800, 2000], 38_000_000).why
    assert "2,400 examples" in why and "1,900 known labels" in why and "1e+04 weights" in why


def promised(said, parameters):
    """The plan that the sentence promises for a backbone of so many weights."""
    if "the head alone" in said:
        return "head"
    everything, last = (int(n.replace(",", "")) for n in re.findall(r"at most ([\d,]+)", said))
    return (
        "gradual" if parameters <= everything else "last-layers" if parameters <= last else "head"
    )


@pytest.mark.parametrize("held", [39, 40])
@pytest.mark.parametrize("known", [[LITTLE - 1], [LITTLE], [3, 900, 900], [6_000] * 14], ids=str)
def test_what_check_says_is_what_the_automatic_plan_does_for_every_backbone(known, held):
    tasks = [kt.Task(f"task {number}") for number in range(len(known))]
    labels = np.where(np.arange(max(known))[:, None] < known, 1.0, np.nan)
    val = np.tile(np.arange(held)[:, None] % 2 == 0, (1, len(known))).astype(float)
    edges = [rate * sum(known) + more for rate in (LAST_ALONE, HEAD_ALONE) for more in (0, 1)]
    for parameters in [10_000, 2_500_000, 10**12, *edges]:
        said = promised(advice(labels, val, tasks), parameters)
        assert said == after_the_head(labels, val, tasks, parameters)[0]
        if held == 40:
            assert said == choose_plan(900, known, parameters).name


NAN = np.nan


@pytest.mark.parametrize(
    "y, known",
    [
        ([[1, NAN], [0, NAN], [NAN, 1]], [2, 1]),
        ({"binary": [[1, NAN], [0, 1], [NAN, 1]], "grade": [[2], [NAN], [1]]}, [2, 2, 2]),
    ],
)
def test_labels_are_counted_by_task_in_batches(y, known):
    data = tf.data.Dataset.from_tensor_slices((np.zeros((3, 2)), y)).batch(2)
    assert count_labels(data) == (3, known)


def test_labels_of_a_known_source_are_counted_without_its_images(shared_images):
    manifest = kt.Manifest.from_csv(shared_images / "labels.csv")
    examples, known = count_labels(kt.make_dataset(manifest, 32, training=True))
    assert examples == 12
    assert known == [int(n) for n in (~np.isnan(manifest.labels)).sum(0)]
    with pytest.raises(ValueError, match="`train`"):
        count_labels([(1, 2)])


def test_weights_of_a_backbone_are_counted_and_new_layers_are_none():
    assert backbone_parameters(kt.build_model("tiny", ["a"], 32)) > 10_000
    own = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    assert backbone_parameters(own) == 0
    rows = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    assert backbone_parameters(kt.build_model(rows, ["a"])) == 0
    assert kt.plans.plan_for(own, None, "full") == make_plan("full") and "full" in PLANS
