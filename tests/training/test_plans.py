"""Plans: their stages, and which of them fits how much data."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasmtl as kt
from kerasmtl.training.fine_tune import count_labels
from kerasmtl.training.plans import (
    HEAD_ALONE,
    LAST_ALONE,
    LITTLE,
    PLANS,
    Plan,
    Stage,
    as_plan,
    backbone_parameters,
    choose_plan,
    make_plan,
)

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
    plan = make_plan(name, head_epochs=4, epochs=9)
    assert [stage.train for stage in plan] == trains
    assert plan[0].epochs == 4
    assert sum(stage.epochs for stage in plan[1:]) == (9 if len(plan) > 1 else 0)
    assert plan.epochs == sum(stage.epochs for stage in plan)


def test_every_stage_after_the_head_is_slower_warms_up_and_spares_the_first_layers():
    for name in PLANS:
        head, *others = make_plan(name, learning_rate=1e-2, fine_learning_rate=1e-3)
        assert head.learning_rate == 1e-2 and head.steady()
        for stage in others:
            assert stage.learning_rate == 1e-3
            assert stage.warmup > 0 and stage.schedule == "cosine"
            assert 0 < stage.backbone_decay < 1
            assert not stage.normalization


def test_options_reach_the_stages():
    plan = make_plan("full", patience=3, normalization=True, backbone_decay=0.5)
    assert [stage.patience for stage in plan] == [3, 3]
    assert plan[1].normalization and plan[1].backbone_decay == 0.5


def test_one_epoch_is_enough_for_every_plan():
    for name in PLANS:
        assert all(s.epochs == 1 for s in make_plan(name, head_epochs=1, epochs=1))


def test_stages_that_share_epochs_have_no_more_than_these():
    for epochs in (1, 2, 3, 7):
        assert make_plan("gradual", 1, epochs).epochs == 1 + epochs
    assert [stage.train for stage in make_plan("gradual", 1, 1)] == ["head", "all"]


def test_stages_names_and_plans_become_plans():
    stages = [Stage("head", 1, 0.1), Stage(2, 1, 0.1)]
    assert list(as_plan(stages)) == stages
    assert as_plan("full") == make_plan("full")
    plan = Plan("mine", tuple(stages))
    assert as_plan(plan) is plan
    assert "the last 2 groups" in str(plan)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: make_plan("tail"), "`name` is no plan.*'head'.*Received: 'tail'"),
        (lambda: make_plan("full", epochs=0), "`epochs` is too small"),
        (lambda: make_plan("gradual", epochs="3"), "`epochs` is too small, or no whole number"),
        (lambda: as_plan("tail"), "`plan` is unknown.*'auto'.*Received: 'tail'"),
        (lambda: as_plan([]), "`plan` is empty"),
        (lambda: as_plan(["head"]), "`plan` holds what is no Stage. Received: 'head'"),
        (lambda: as_plan(Stage("head", 1, 0.1)), "`plan` is no list of stages"),
        (lambda: choose_plan(0, [], 10), "`train` is empty"),
    ],
)
def test_wrong_plans_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


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
    assert plan.name == name
    assert plan.why


def test_the_median_task_counts_and_not_the_rarest():
    assert choose_plan(900, [3, 900, 900], 1000).name == "gradual"
    assert choose_plan(900, [3, 3, 900], 1000).name == "head"


def test_the_settings_are_those_of_the_plan_that_is_chosen():
    plan = choose_plan(900, [900], 1000, head_epochs=3, epochs=6, fine_learning_rate=2e-5)
    assert [stage.epochs for stage in plan] == [3, 2, 4] and plan[2].learning_rate == 2e-5


def test_without_a_backbone_the_settings_are_those_of_the_one_stage():
    (stage,) = choose_plan(900, [900], 0, head_epochs=2, epochs=3, learning_rate=0.5)
    assert (stage.epochs, stage.learning_rate, stage.train) == (5, 0.5, "all")
    (stage,) = choose_plan(900, [900], 0, head_epochs=1, epochs=1)
    assert stage.epochs == 2 and stage.warmup == 1.0
    assert choose_plan(900, [900], 0).epochs == make_plan("full").epochs
    with pytest.raises(ValueError, match="`epochs` is too small"):
        choose_plan(900, [900], 0, epochs=0)


@pytest.mark.parametrize("parameters", [0, 1000])
def test_a_setting_of_another_name_is_refused(parameters):
    with pytest.raises(TypeError, match="`bogus` is no setting.*'head_epochs'.*bogus=1"):
        choose_plan(900, [900], parameters, bogus=1)


def test_the_choice_says_what_it_counted():
    why = choose_plan(2400, [1800, 2000], 38_000_000).why
    assert "2,400 examples" in why and "1,900 known labels" in why and "1e+04 weights" in why


def test_without_validation_no_stage_waits():
    assert all(stage.patience is None for stage in choose_plan(10, [10], 10, patience=None))


def labels(*rows):
    return np.array(rows, "float32")


NAN = np.nan


@pytest.mark.parametrize(
    "y, known",
    [
        (labels([1, NAN], [0, NAN], [NAN, 1]), [2, 1]),
        (
            {"binary": labels([1, NAN], [0, 1], [NAN, 1]), "grade": labels([2], [NAN], [1])},
            [2, 2, 2],
        ),
    ],
)
def test_labels_are_counted_by_task_in_batches(y, known):
    data = tf.data.Dataset.from_tensor_slices((np.zeros((3, 2)), y)).batch(2)
    assert count_labels(data) == (3, known)


def test_labels_of_a_known_source_are_counted_without_its_pictures(shared_pictures):
    manifest = kt.Manifest.from_csv(shared_pictures / "labels.csv")
    data = kt.make_dataset(manifest, 32, training=True)
    examples, known = count_labels(data)
    assert examples == 12
    assert known == [int(n) for n in (~np.isnan(manifest.labels)).sum(0)]


def test_what_cannot_be_counted_is_named():
    with pytest.raises(ValueError, match="`train` cannot be counted"):
        count_labels([(1, 2)])


def test_weights_of_a_backbone_are_counted_and_new_layers_are_none():
    assert backbone_parameters(kt.build_model("tiny", ["a"], 32)) > 10_000
    own = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    assert backbone_parameters(own) == 0
    rows = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    assert backbone_parameters(kt.build_model(rows, ["a"])) == 0
