"""Stages run as one training: what is trained, the optimizer, the best epoch, and callbacks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasmtl as kt
from kerasmtl.training.callbacks import Monitor, direction
from kerasmtl.training.fine_tune import fine_tune
from kerasmtl.training.plans import Stage, make_plan

TASKS = ["a", "b"]


def model_of(optimizer=None, normalized=False, head_only=False):
    """Three convolutions and a head of two layers with dropout."""
    keras.utils.set_random_seed(0)
    image = x = keras.Input((8, 8, 3))
    for name in ("first", "second", "third"):
        x = keras.layers.Conv2D(3, 3, activation="relu", name=name)(x)
        if normalized:
            x = keras.layers.BatchNormalization(name=f"{name}_bn")(x)
    backbone = keras.Model(image, x, name="backbone")
    model = kt.build_model(backbone, TASKS, 8, hidden=[4], dropout=0.2)
    model.compile(
        optimizer or keras.optimizers.Adam(1e-2),
        kt.losses.MaskedBinaryCrossentropy(),
        metrics=[kt.metrics.MaskedAUC()],
        jit_compile=False,
    )
    return model


def data(rows=16, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random((rows, 8, 8, 3), dtype="float32")
    y = rng.choice([0.0, 1.0, np.nan], (rows, 2)).astype("float32")
    y[:2] = [[0, 1], [1, 0]]
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(4)


def values(model):
    return {v.path: v.numpy().copy() for v in model.variables}


class Watch(keras.callbacks.Callback):
    """The values of all variables, of the optimizer as well, after each epoch."""

    def __init__(self):
        super().__init__()
        self.weights, self.slots, self.rates, self.events = [], [], [], []

    def on_train_begin(self, logs=None):
        self.events.append("train begins")

    def on_train_end(self, logs=None):
        self.events.append("train ends")

    def on_epoch_begin(self, epoch, logs=None):
        self.events.append(epoch)

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(float(self.model.optimizer.learning_rate))

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append(values(self.model))
        self.slots.append(slots_of(self.model))


def slots_of(model):
    # Keras numbers the optimizers, too.
    return {v.path.partition("/")[2]: v.numpy().copy() for v in model.optimizer.variables}


def moved(before, after):
    return {path for path in before if not np.array_equal(before[path], after[path])}


def layers_of(paths):
    names = ("first", "second", "third", "head")
    return {name for name in names if any(name in path for path in paths)}


# ---------------------------------------------------------------- what is trained


PLAN = [
    Stage("head", 1, 1e-2),
    Stage(1, 1, 1e-2),
    Stage("all", 1, 1e-2, match="second"),
    Stage(0.6, 1, 1e-2),
    Stage("all", 1, 1e-2),
]
TRAINED = [
    {"head"},
    {"head", "third"},
    {"head", "second"},
    {"head", "second", "third"},
    {"head", "first", "second", "third"},
]


def test_each_stage_moves_what_it_names_and_leaves_the_rest_bit_for_bit():
    model, watch = model_of(), Watch()
    start = values(model)
    fine_tune(model, data(), plan=PLAN, callbacks=[watch], verbose=0)
    steps = zip([start, *watch.weights], watch.weights, strict=False)
    assert [layers_of(moved(*step)) for step in steps] == TRAINED


@pytest.mark.parametrize("normalization", [False, True])
def test_normalization_has_one_switch(normalization):
    model = model_of(normalized=True)
    start = values(model)
    plan = [Stage("all", 1, 1e-2, normalization=normalization)]
    fine_tune(model, data(), plan=plan, verbose=0)
    changed = moved(start, values(model))
    assert any("bn" in path for path in changed) == normalization
    assert any("second/kernel" in path for path in changed)


def test_a_model_without_a_backbone_is_trained_as_it_is():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(3, name="one"), keras.layers.Dense(2, "sigmoid", name="two")]
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), *layers])
    layers[0].trainable = False
    model.compile("sgd", kt.losses.MaskedBinaryCrossentropy(), jit_compile=False)
    start = values(model)
    fine_tune(model, data(), plan=[Stage("all", 1, 0.1)], verbose=0)
    changed = sorted(path.split("/", 1)[1] for path in moved(start, values(model)))
    assert changed == ["two/bias", "two/kernel"]
    for train in ("head", 2):
        with pytest.raises(ValueError, match="`model` holds no backbone"):
            fine_tune(model, data(), plan=[Stage(train, 1, 0.1)], verbose=0)


# ---------------------------------------------------------------- the optimizer


def test_slots_last_over_the_stages():
    plan = [Stage("head", 2, 1e-2), Stage("all", 1, 1e-2)]
    watch, first = Watch(), []

    class Begin(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            first.append(slots_of(self.model))

    fine_tune(model_of(), data(), plan=plan, callbacks=[watch, Begin()], verbose=0)
    slots = {path for path in watch.slots[1] if "head" in path and "momentum" in path}
    assert len(slots) == 4
    for path in slots:
        assert watch.slots[1][path].any()
        np.testing.assert_array_equal(first[2][path], watch.slots[1][path])
    assert [int(slot["iteration"]) for slot in watch.slots] == [4, 8, 12]
    assert not any(watch.slots[1][p].any() for p in watch.slots[1] if "first" in p)


def test_one_stage_in_two_halves_is_the_whole():
    """With slots, counters and dropout's seeds kept, the boundary makes no difference."""
    one, two = model_of(), model_of()
    whole = fine_tune(one, data(), plan=[Stage("all", 4, 1e-2)], verbose=0)
    halves = fine_tune(two, data(), plan=2 * [Stage("all", 2, 1e-2)], verbose=0)
    assert whole.history == halves.history
    for a, b in zip(one.variables, two.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_rates_are_those_of_the_stages():
    plan = [
        Stage("head", 1, 0.5),
        Stage("all", 2, 0.1, warmup=1.0, schedule="cosine"),
        Stage("head", 1, 0.25),
    ]
    watch = Watch()
    fine_tune(model_of(), data(), plan=plan, callbacks=[watch], verbose=0)
    # After a step, a schedule already says the rate of the next one.
    cosine = [0.05 * (1 + np.cos(np.pi * t / 4)) for t in range(5)]
    expected = [*4 * [0.5], 0.05, 0.075, 0.1, *cosine, *4 * [0.25]]
    np.testing.assert_allclose(watch.rates, expected, rtol=1e-5, atol=1e-8)


def test_the_first_layers_move_less_by_their_decay():
    changes = []
    for decay in (1.0, 0.5):
        model = model_of(keras.optimizers.SGD(0.1))
        start = values(model)
        stage = Stage("all", 1, 0.1, backbone_decay=decay, warmup=0.0)
        rows = data(4)
        fine_tune(model, rows, plan=[stage], verbose=0)
        after = values(model)
        changes.append({p: after[p] - start[p] for p in after if "kernel" in p})
    plain, decayed = changes
    factors = {"third": 0.5, "second": 0.25, "first": 0.125, "head": 1.0}
    for path, change in plain.items():
        (factor,) = [f for name, f in factors.items() if name in path]
        np.testing.assert_allclose(decayed[path], factor * change, rtol=1e-3, atol=1e-7)


def test_a_schedule_needs_to_know_the_length():
    unknown = data().filter(lambda x, y: True)
    with pytest.raises(ValueError, match="`train` has an unknown number of batches"):
        fine_tune(model_of(), unknown, plan=[Stage("all", 1, 0.1, warmup=0.5)], verbose=0)
    assert fine_tune(model_of(), unknown, plan=[Stage("all", 1, 0.1)], verbose=0).epoch == [0]


class SetRate(keras.callbacks.Callback):
    """Sets a rate at the beginning of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            self.model.optimizer.learning_rate = 1e-12


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_rate_over_a_schedule_is_refused_in_each_epoch(epoch):
    plan = [Stage("head", 1, 1e-2), Stage("all", 3, 1e-2, schedule="cosine")]
    with pytest.raises(TypeError, match="`learning_rate` follows a schedule"):
        fine_tune(model_of(), data(), plan=plan, callbacks=[SetRate(epoch)], verbose=0)


def test_a_rate_that_a_callback_sets_acts_where_there_is_no_schedule():
    """From the second epoch of the head on; the next stage has its own rate."""
    plan = [Stage("head", 3, 1e-2), Stage("all", 1, 1e-2, warmup=1.0)]
    watch = Watch()
    fine_tune(model_of(), data(), plan=plan, callbacks=[SetRate(1), watch], verbose=0)
    first, second, third, last = watch.weights
    for path in [path for path in first if path.endswith(("kernel", "bias"))]:
        np.testing.assert_allclose(third[path], first[path], rtol=0, atol=1e-6)
    assert layers_of(moved(second, last)) == {"first", "second", "third", "head"}
    assert watch.rates[4:12] == 8 * [np.float32(1e-12)] and watch.rates[-1] > 1e-3


@pytest.mark.parametrize(
    "callback",
    [
        keras.callbacks.ReduceLROnPlateau("loss", patience=1),
        keras.callbacks.LearningRateScheduler(lambda epoch: 1e-12),
    ],
)
def test_keras_callbacks_that_set_the_rate_and_a_schedule_are_refused_at_once(callback):
    plan = [Stage("head", 1, 1e-2), Stage("all", 3, 1e-2, schedule="cosine")]
    model, watch = model_of(), Watch()
    message = f"`callbacks` has {type(callback).__name__}.*stage 2"
    with pytest.raises(ValueError, match=message):
        fine_tune(model, data(), plan=plan, callbacks=[watch, callback], verbose=0)
    assert not watch.events
    plan = [Stage("head", 2, 1e-2), Stage("all", 1, 1e-2, backbone_decay=0.5)]
    fine_tune(model, data(), plan=plan, callbacks=[callback], verbose=0)


def test_mixed_float16_scales_the_loss_through_all_stages():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model, watch = model_of(), Watch()
        start = values(model)
        history = fine_tune(
            model, data(), plan=make_plan("gradual", 1, 2), callbacks=[watch], verbose=0
        )
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert history.epoch == [0, 1, 2]
    assert layers_of(moved(start, watch.weights[0])) == {"head"}
    assert layers_of(moved(watch.weights[1], watch.weights[2])) >= {"first", "head"}
    assert np.isfinite(history.history["loss"]).all()


# ---------------------------------------------------------------- the best epoch


class Scores(keras.callbacks.Callback):
    """Says what the validation is to have given; the first among the callbacks."""

    def __init__(self, scores, name="val_auc"):
        super().__init__()
        self.scores, self.name = scores, name

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.scores[epoch]


NAN = float("nan")


@pytest.mark.parametrize(
    "scores, monitor, best",
    [
        ([0.5, 0.7, 0.6, 0.65], None, 1),
        ([0.7, 0.5, 0.7, 0.6], None, 0),  # the earlier of two equal ones
        ([NAN, 0.1, NAN, NAN], None, 1),
        ([NAN, NAN, NAN, NAN], None, 3),
        ([0.5, 0.7, 0.6, 0.4], ("val_auc", "min"), 3),
    ],
)
def test_the_best_epoch_of_all_stages_is_restored(scores, monitor, best):
    model, watch = model_of(), Watch()
    plan = [Stage("head", 2, 1e-2), Stage("all", 2, 1e-2)]
    fine_tune(
        model,
        data(),
        data(seed=1),
        plan=plan,
        monitor=monitor,
        callbacks=[Scores(scores), watch],
        verbose=0,
    )
    assert not moved(watch.weights[best], values(model))
    assert moved(watch.weights[best], watch.weights[best - 1])


def test_patience_is_a_stages_own_and_of_the_monitor():
    plan = [Stage("head", 9, 1e-2, patience=2), Stage("all", 9, 1e-2, patience=1)]
    scores = [0.9, 0.8, 0.7, 0.1, 0.2, 0.2] + 20 * [0.0]
    history = fine_tune(
        model_of(), data(), data(seed=1), plan=plan, callbacks=[Scores(scores)], verbose=0
    )
    # Worse than the first stage's best all along, the second waits for its own.
    assert history.epoch == [0, 1, 2, 3, 4, 5]


def test_a_monitor_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"`monitor` 'val_x_auc' is not in the logs.*'val_auc'"):
        fine_tune(
            model_of(), data(), data(), plan=[Stage("all", 1, 0.1)], monitor="val_x_auc", verbose=0
        )
    with pytest.raises(ValueError, match="`monitor` 'val_auc' needs validation data"):
        fine_tune(model_of(), data(), plan=[Stage("all", 1, 0.1)], monitor="val_auc", verbose=0)


def test_directions_of_metrics():
    assert direction("val_binary_auc") == "max" and direction("val_mae") == "min"
    assert direction("val_loss") == "min" and direction("val_mine") is None
    with pytest.raises(ValueError, match=r"may be better high or low.*\('val_mine', 'max'\)"):
        Monitor("val_mine", True)
    with pytest.raises(ValueError, match="`monitor` has no direction"):
        Monitor(("val_mine", "up"), True)
    with pytest.raises(ValueError, match="`monitor` is no name.*Received: 3"):
        Monitor(3, True)


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("callback", [keras.callbacks.TerminateOnNaN, None])
def test_a_monitor_that_is_not_there_is_named_before_anything_is_trained(validation, callback):
    model = model_of()
    before = values(model)
    callbacks = [callback()] if callback else []
    name = "val_binary_auc" if validation else "acuu_loss"
    with pytest.raises(ValueError, match=f"`monitor` {name!r} is not in the logs.*'auc', 'loss'"):
        fine_tune(
            model,
            data(),
            data() if validation else None,
            [Stage("all", 1, 0.1)],
            callbacks,
            monitor=name,
            verbose=0,
        )
    assert not moved(before, values(model))


def test_looking_for_the_name_of_the_monitor_changes_nothing(shared_pictures):
    """Not the balancer either, nor the order of the epochs."""
    manifest = kt.Manifest.from_csv(shared_pictures / "labels.csv")
    found = []
    for monitor in (None, "val_auc"):
        keras.utils.set_random_seed(0)
        image = keras.Input((8, 8, 3))
        backbone = keras.Model(image, keras.layers.Conv2D(2, 3)(image))
        model = kt.build_model(backbone, manifest.tasks, 8, dropout=0.3)
        loss = kt.losses.MaskedBinaryCrossentropy(
            balancer=kt.losses.DynamicWeightAverage(len(manifest.tasks), every=1)
        )
        model.compile("adam", loss, metrics=[kt.metrics.MaskedAUC()], jit_compile=False)
        train, held = (kt.make_dataset(manifest, 8, 4, training=True, seed=s) for s in (0, 1))
        plan = [Stage("all", 2, 1e-2)]
        fine_tune(model, train, held, plan, monitor=monitor, verbose=0)
        found.append([*values(model).values(), loss.balancer.weights()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_callback_may_give_what_is_monitored():
    class Mine(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_mine"] = float(epoch)

    plan = [Stage("all", 2, 1e-2)]
    options = {"monitor": ("val_mine", "max"), "callbacks": [Mine()], "verbose": 0}
    history = fine_tune(model_of(), data(), data(), plan=plan, **options)
    assert history.history["val_mine"] == [0.0, 1.0]


@pytest.mark.parametrize(
    "names, chosen",
    [
        (["loss", "auc", "val_loss", "val_binary_accuracy", "val_auc"], "val_auc"),
        (["val_loss", "val_grade_loss", "val_binary_auc"], "val_binary_auc"),
        (["val_loss", "val_mine", "val_mae"], "val_mae"),
        (["val_loss", "val_mine"], "val_loss"),
    ],
)
def test_the_monitor_by_default(names, chosen):
    monitor = Monitor(None, True)
    monitor.rank(dict.fromkeys(names, 0.5))
    assert monitor.name == chosen


# ---------------------------------------------------------------- callbacks and history


def test_callbacks_see_one_training_and_history_runs_on():
    model, watch = model_of(), Watch()
    plan = make_plan("gradual", head_epochs=2, epochs=3)
    history = fine_tune(model, data(), data(seed=1), plan, callbacks=[watch], verbose=0)
    assert watch.events == ["train begins", 0, 1, 2, 3, 4, "train ends"]
    assert history.epoch == [0, 1, 2, 3, 4]
    assert all(len(v) == 5 for v in history.history.values())
    assert model.history is history
    assert watch.params["epochs"] == 5


@pytest.mark.parametrize("moment", ["on_epoch_end", "on_train_batch_end"])
def test_a_callback_that_stops_ends_the_run(moment):
    def stop(self, number, logs=None):
        self.model.stop_training = True

    stopping = type("Stopping", (keras.callbacks.Callback,), {moment: stop})()
    plan = [Stage("head", 3, 1e-2), Stage("all", 3, 1e-2)]
    history = fine_tune(model_of(), data(), plan=plan, callbacks=[stopping], verbose=0)
    assert history.epoch == [0]


def test_progress_is_shown_over_all_epochs(capsys):
    plan = [Stage("head", 1, 1e-2), Stage("all", 1, 1e-2)]
    fine_tune(model_of(), data(), plan=plan, verbose=2, cache=False)
    shown = capsys.readouterr().out
    assert "Epoch 1/2" in shown and "Epoch 2/2" in shown


def test_auto_says_what_it_chose_and_why(capsys):
    fine_tune(model_of(), data(), data(), verbose=2, callbacks=[Scores(99 * [0.5])], cache=False)
    shown = capsys.readouterr().out
    assert "Plan 'head': the head, 20 epochs" in shown and "16 examples" in shown
    assert "Epoch 6/20" in shown and "Epoch 7/20" not in shown  # the patience of 5


def test_the_loss_that_was_compiled_goes_on_with_its_state():
    model = model_of()
    balancer = kt.losses.UncertaintyWeighting(2)
    model.compile("adam", kt.losses.MaskedBinaryCrossentropy(balancer=balancer), jit_compile=False)
    loss = model.loss
    fine_tune(model, data(), plan=[Stage("head", 1, 1e-2), Stage("all", 1, 1e-2)], verbose=0)
    assert model.loss is loss
    assert (balancer.weights() != 1.0).all()


# ---------------------------------------------------------------- an average of the weights


def test_the_average_is_what_validation_callbacks_and_the_end_see():
    """Against the average taken by hand from the weights after each step."""
    raw, watch = [], Watch()
    model = model_of(keras.optimizers.SGD(0.1))

    class Raw(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raw.append(values(self.model))

    averages = values(model)
    plan = [Stage("head", 1, 0.1), Stage("all", 1, 0.1)]
    fine_tune(model, data(), plan=plan, ema=0.5, callbacks=[Raw(), watch], verbose=0)
    for number, step in enumerate(raw):
        share = min(0.5, (1 + number) / (10 + number))
        for path in step:
            averages[path] = share * averages[path] + (1 - share) * step[path]
        if number % 4 == 3:
            for path in (path for path in step if "seed" not in path):
                seen = watch.weights[number // 4][path]
                np.testing.assert_allclose(seen, averages[path], rtol=1e-4, atol=1e-6)
    assert moved(watch.weights[-1], raw[-1])
    assert not moved(watch.weights[-1], values(model))


# ---------------------------------------------------------------- wrong stages


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"train": "top"}, "`train` is unknown"),
        ({"train": True}, "`train` is unknown"),
        ({"train": 0}, "`train` is no number of groups"),
        ({"train": 1.5}, "`train` is no number of groups"),
        ({"epochs": 0}, "`epochs` is too small"),
        ({"epochs": 1.5}, "`epochs` is too small"),
        ({"epochs": True}, "`epochs` is too small, or no whole number.*from 1. Received: True"),
        ({"epochs": "5"}, "`epochs` is too small, or no whole number"),
        ({"learning_rate": -1.0}, "`learning_rate` is not positive"),
        ({"learning_rate": "1e-3"}, r"`learning_rate` .*Stage\('head', 2, 0.001\).*: '1e-3'"),
        ({"learning_rate": True}, "`learning_rate` is not positive"),
        ({"learning_rate": None}, "`learning_rate` is not positive"),
        ({"patience": 0}, "`patience` is too small"),
        ({"patience": 1.5}, "`patience` is too small, or no whole number.*from 1, or None"),
        ({"patience": True}, "`patience` is too small, or no whole number"),
        ({"match": "x"}, "`match` chooses among all groups"),
        ({"train": "all", "match": "("}, r"`match` is no regular expression.*match='\\\\\('"),
        ({"train": "all", "match": 3}, "`match` is no text"),
        ({"normalization": "no"}, "`normalization` is no switch"),
        ({"backbone_decay": "0.9"}, "`backbone_decay` is no factor"),
        ({"warmup": "1"}, "`warmup` is out of range. Expected 0 to 2 epochs.*Received: '1'"),
        ({"warmup": True}, "`warmup` is out of range"),
        ({"backbone_decay": 0.0}, "`backbone_decay` is no factor"),
        ({"backbone_decay": 1.1}, "`backbone_decay` is no factor"),
        ({"warmup": 3.0}, "`warmup` is out of range. Expected 0 to 2 epochs"),
        ({"schedule": "step"}, "`schedule` is unknown"),
    ],
)
def test_wrong_stages_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Stage(**{"train": "head", "epochs": 2, "learning_rate": 0.1, **arguments})


def test_a_wrong_stage_is_named_before_anything_is_trained():
    model, watch = model_of(), Watch()
    plan = [Stage("head", 1, 0.1), Stage("all", 1, 0.1, match="fifth")]
    with pytest.raises(ValueError, match="`match` 'fifth' matches nothing.*first, second, third"):
        fine_tune(model, data(), plan=plan, callbacks=[watch], verbose=0)
    assert watch.events == []


def test_a_stage_that_trains_nothing_is_named():
    backbone = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)], name="b")
    image = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(backbone(image))
    model = keras.Model(image, keras.layers.Activation("sigmoid")(pooled))
    with pytest.raises(ValueError, match="a stage that trains nothing: Stage.train='head'"):
        fine_tune(model, data(), plan=[Stage("all", 1, 0.1), Stage("head", 1, 0.1)], verbose=0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"cache": "yes"}, "`cache` is unknown"),
        ({"train": data().repeat()}, "`train` has no end"),
        ({"plan": []}, "`plan` is empty"),
        ({"plan": [Stage("head", 1, 0.1, patience=1)]}, "needs validation data"),
        ({"ema": 1.0}, "`decay` is out of range"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    arguments = {"train": data(), "plan": [Stage("head", 1, 0.1)], "verbose": 0, **arguments}
    with pytest.raises(ValueError, match=message):
        fine_tune(model_of(), **arguments)


def test_an_optimizer_that_averages_itself_is_refused():
    model = model_of(keras.optimizers.Adam(1e-3, use_ema=True))
    with pytest.raises(ValueError, match="optimizer with use_ema.*ema=0.99"):
        fine_tune(model, data(), plan=[Stage("head", 1, 0.1)], verbose=0)
