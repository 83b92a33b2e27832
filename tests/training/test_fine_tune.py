"""`fine_tune`: what each stage trains, its rates, the best epoch, callbacks, and what it says."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasmtl as kt
from kerasmtl.data.dataset import permutation

TASKS = ["a", "b"]
Stage = kt.plans.Stage


def fine_tune(model, train, validation=None, plan="auto", callbacks=(), verbose=0, **options):
    return kt.fine_tune(model, train, validation, plan, callbacks, verbose, **options)


def model_of(optimizer=None, normalized=False, backbone=None, tasks=TASKS, **compiled):
    """Three convolutions and a head of two layers with dropout.

    It runs eagerly: tracing a graph takes longer than so few steps.
    """
    keras.utils.set_random_seed(0)
    if backbone is None:
        image = x = keras.Input((8, 8, 3))
        for name in ("first", "second", "third"):
            x = keras.layers.Conv2D(3, 3, activation="relu", name=name)(x)
            if normalized:
                x = keras.layers.BatchNormalization(name=f"{name}_bn")(x)
        backbone = keras.Model(image, x, name="backbone")
    model = kt.build_model(backbone, tasks, 8, hidden=[4], dropout=0.2)
    compiled = {"loss": kt.losses.MaskedBinaryCrossentropy(), "run_eagerly": True, **compiled}
    model.compile(
        optimizer or keras.optimizers.Adam(1e-2),
        metrics=[kt.metrics.MaskedAUC()],
        jit_compile=False,
        **compiled,
    )
    return model


def small(tasks=TASKS, **compiled):
    """A model whose steps cost next to nothing, for tests that train often."""
    image = keras.Input((8, 8, 3))
    backbone = keras.Model(image, keras.layers.Conv2D(2, 3)(image))
    return model_of(backbone=backbone, tasks=tasks, **compiled)


def arrays(rows=16, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random((rows, 8, 8, 3), dtype="float32")
    y = rng.choice([0.0, 1.0, np.nan], (rows, 2)).astype("float32")
    y[:2] = [[0, 1], [1, 0]]
    return x, y


def data(rows=16, seed=0):
    return tf.data.Dataset.from_tensor_slices(arrays(rows, seed)).batch(4)


def values(model):
    return {v.path: v.numpy().copy() for v in model.variables}


def moved(before, after):
    """The weights that differ; dropout draws on whatever weights are restored."""
    return {
        path
        for path in before
        if "seed" not in path and not np.array_equal(before[path], after[path])
    }


def layers_of(paths):
    names = ("first", "second", "third", "head")
    return {name for name in names if any(name in path for path in paths)}


class Watch(keras.callbacks.Callback):
    """The values of all variables after each epoch, the rates after each batch, the events."""

    def __init__(self):
        super().__init__()
        self.weights, self.rates, self.events = [], [], []

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


class Scores(keras.callbacks.Callback):
    """Says what the validation is to have given."""

    def __init__(self, scores, name="val_auc"):
        super().__init__()
        self.scores, self.name = scores, name

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.scores[epoch]


# ---------------------------------------------------------------- what is trained


PLAN = [
    Stage("head", 1, 1e-2),
    Stage(1, 1, 1e-2),
    Stage(0.6, 1, 1e-2),
    Stage("all", 1, 1e-2),
]
TRAINED = [
    {"head"},
    {"head", "third"},
    {"head", "second", "third"},
    {"head", "first", "second", "third"},
]


def test_each_stage_moves_what_it_names_and_leaves_the_rest_bit_for_bit():
    model, watch = model_of(), Watch()
    start = values(model)
    fine_tune(model, data(), plan=PLAN, callbacks=[watch])
    steps = zip([start, *watch.weights], watch.weights, strict=False)
    assert [layers_of(moved(*step)) for step in steps] == TRAINED


@pytest.mark.parametrize("normalization", [False, True])
def test_normalization_has_one_switch(normalization):
    model = model_of(normalized=True)
    start = values(model)
    fine_tune(model, data(), plan=[Stage("all", 1, 1e-2, normalization=normalization)])
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
    fine_tune(model, data(), plan=[Stage("all", 1, 0.1)])
    changed = sorted(path.split("/", 1)[1] for path in moved(start, values(model)))
    assert changed == ["two/bias", "two/kernel"]
    for train in ("head", 2):
        with pytest.raises(ValueError, match="`model`"):
            fine_tune(model, data(), plan=[Stage(train, 1, 0.1)])


def test_an_uncompiled_model_has_defaults_and_a_compiled_one_keeps_its_own():
    model = kt.build_model(small().layers[1], TASKS)
    history = fine_tune(model, data(), plan=[Stage("head", 1, 0.1)], cache=False)
    assert {"loss", "auc", "binary_accuracy"} <= set(history.history)
    balancer = kt.losses.UncertaintyWeighting(2)
    loss = kt.losses.MaskedBinaryCrossentropy(balancer=balancer)
    model = model_of(keras.optimizers.SGD(0.5, momentum=0.9), loss=loss)
    plan = [Stage("head", 1, 0.125), Stage("all", 1, 0.25)]
    history = fine_tune(model, data(), plan=plan)
    assert isinstance(model.optimizer, keras.optimizers.SGD) and model.optimizer.momentum == 0.9
    assert float(model.optimizer.learning_rate) == 0.25
    assert int(model.optimizer.iterations) == 4  # of the last stage: a new one each
    assert model.loss is loss and (balancer.weights() != 1.0).all()
    assert set(history.history) == {"loss", "auc"}


def test_rates_are_those_of_the_stages():
    cosine = Stage("all", 2, 0.1, warmup=1.0, schedule="cosine")
    plan = [Stage("head", 1, 0.5), cosine, Stage("head", 1, 0.25)]
    watch = Watch()
    fine_tune(model_of(), data(), plan=plan, callbacks=[watch])
    # After a step, a schedule already says the rate of the next one.
    warm = [0.025 + 0.075 * t / 4 for t in range(1, 5)]
    falling = [0.05 * (1 + np.cos(np.pi * t / 4)) for t in range(1, 5)]
    expected = [*4 * [0.5], *warm, *falling, *4 * [0.25]]
    np.testing.assert_allclose(watch.rates, expected, rtol=1e-5, atol=1e-8)


def test_mixed_float16_scales_the_loss_through_all_stages():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model, watch = model_of(), Watch()
        start = values(model)
        plan = kt.plans.make_plan("gradual", 1, 2)
        history = fine_tune(model, data(), plan=plan, callbacks=[watch])
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert history.epoch == [0, 1, 2] and np.isfinite(history.history["loss"]).all()
    assert layers_of(moved(start, watch.weights[0])) == {"head"}
    assert layers_of(moved(watch.weights[1], watch.weights[2])) >= {"first", "head"}


def test_moving_averages_of_keras_are_validated_kept_and_ended_with():
    raw, watch = [], Watch()
    model = model_of(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5))

    class Raw(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raw.append(values(self.model))

    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    plan = [Stage("head", 1, 0.1), Stage("all", 2, 0.1)]
    fine_tune(model, data(), plan=plan, callbacks=[Raw(), swap, watch])
    for epoch, first in ((0, 0), (2, 4)):  # a stage begins with averages of its own
        average = raw[first]
        for step in raw[first + 1 : 4 * (epoch + 1)]:
            average = {path: 0.5 * average[path] + 0.5 * step[path] for path in step}
        for path in (path for path in average if "head" in path):
            np.testing.assert_allclose(watch.weights[epoch][path], average[path], atol=1e-5)
    weights = {path: v for path, v in values(model).items() if "seed" not in path}
    for path, value in weights.items():
        np.testing.assert_allclose(value, watch.weights[-1][path], atol=1e-6)


# ---------------------------------------------------------------- the best epoch, and patience


def test_the_best_epoch_of_all_stages_is_restored():
    model, watch = model_of(), Watch()
    plan = [Stage("head", 2, 1e-2), Stage("all", 2, 1e-2)]
    callbacks = [Scores([0.5, 0.7, 0.6, 0.65]), watch]
    fine_tune(model, data(), data(seed=1), plan, callbacks)
    assert not moved(watch.weights[1], values(model))
    assert moved(watch.weights[1], watch.weights[0])


def test_patience_is_a_stages_own_and_of_the_monitor():
    plan = [Stage("head", 9, 1e-2, patience=2), Stage("all", 9, 1e-2, patience=1)]
    scores = Scores([0.9, 0.8, 0.7, 0.1, 0.2, 0.2] + 20 * [0.0])
    history = fine_tune(small(), data(), data(seed=1), plan, [scores])
    # Worse than the first stage's best all along, the second waits for its own.
    assert history.epoch == [0, 1, 2, 3, 4, 5]


# ---------------------------------------------------------------- callbacks and history


def test_callbacks_see_one_training_and_history_runs_on():
    model, watch = model_of(), Watch()
    plan = kt.plans.make_plan("gradual", head_epochs=2, epochs=3)
    history = fine_tune(model, data(), data(seed=1), plan, callbacks=[watch])
    assert watch.events == ["train begins", 0, 1, 2, 3, 4, "train ends"]
    assert history.epoch == [0, 1, 2, 3, 4]
    assert {"loss", "auc", "val_loss", "val_auc"} <= set(history.history)
    assert all(len(v) == 5 for v in history.history.values())
    assert model.history is history and watch.params["epochs"] == 5


@pytest.mark.parametrize("moment", ["on_epoch_end", "on_train_batch_end"])
def test_a_callback_that_stops_ends_the_run(moment, capsys):
    def stop(self, number, logs=None):
        self.model.stop_training = True

    stopping = type("Stopping", (keras.callbacks.Callback,), {moment: stop})()
    plan = [Stage("head", 3, 1e-2), Stage("all", 3, 1e-2)]
    history = fine_tune(small(), data(), plan=plan, callbacks=[stopping], verbose=2)
    assert history.epoch == [0]
    assert "Stopped after epoch 1: a callback asked for it." in capsys.readouterr().out


def test_freezing_in_a_stage_raises():
    class Freeze(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kt.freeze(self.model)

    with pytest.raises(RuntimeError, match="Stage"):
        fine_tune(small(), data(), plan=[Stage("all", 3, 1e-3)], callbacks=[Freeze()])


# ---------------------------------------------------------------- what it says


def test_stages_epochs_and_the_best_one_are_told_in_lines(capsys):
    plan = [Stage("head", 2, 0.1), Stage("all", 1, 0.01)]
    history = fine_tune(small(), data(), data(seed=1), plan, verbose=2, cache=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Stage 1 of 2: the head (22 of 78 weights), up to 2 epochs")
    assert lines[5].startswith("Stage 2 of 2: everything (78 of 78 weights), up to 1 epoch,")
    assert [lines[number] for number in (1, 3, 6)] == ["Epoch 1/2", "Epoch 2/2", "Epoch 3/3"]
    told = [float(re.search(r" val_auc: ([\d.]+)", lines[number])[1]) for number in (2, 4, 7)]
    np.testing.assert_allclose(told, history.history["val_auc"], atol=1e-4)
    best = int(np.argmax(history.history["val_auc"])) + 1
    assert lines[-1].startswith(f"Best epoch: {best} of 3, val_auc ")
    assert len(lines) == 9


def test_auto_says_what_it_chose_and_why_and_why_a_stage_ends(capsys):
    fine_tune(small(), data(), data(), verbose=2, callbacks=[Scores(99 * [0.5])])
    shown = capsys.readouterr().out
    assert "Plan 'head': the head, 20 epochs" in shown and "16 examples" in shown
    assert "Features are not cached: `" in shown
    assert "Stage 1 ends early, after epoch 6: val_auc has not improved for 5 epochs." in shown
    assert "Epoch 6/20" in shown and "Epoch 7/20" not in shown
    fine_tune(small(), data(), data(), verbose=0, plan=[Stage("head", 1, 0.1)])
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------- a loss that is not finite


@pytest.mark.parametrize("batch", [0, 3])
def test_a_loss_that_is_nan_stops_and_leaves_the_last_good_weights(batch):
    class Spoil(keras.callbacks.Callback):
        """Makes the loss of the third epoch NaN from a batch on."""

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_begin(self, number, logs=None):
            if self.epoch == 2 and number == batch:
                weight = self.model.layers[-1].kernel
                weight.assign(np.full(weight.shape, np.nan, "float32"))

    model, watch = small(), Watch()
    with pytest.raises(FloatingPointError, match=f"nan in epoch 3, batch {batch + 1}"):
        fine_tune(model, data(), plan=[Stage("all", 5, 1e-3)], callbacks=[Spoil(), watch])
    assert len(watch.weights) == 2 and not moved(watch.weights[1], values(model))


def test_a_label_out_of_range_says_what_to_do():
    x, y = arrays()
    y[9, 0] = -1
    wrong = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`y_true` must be.*missing=-1"):
        fine_tune(small(), wrong, plan=[Stage("all", 5, 1e-3)])


def test_weights_that_are_not_finite_at_the_end_of_an_epoch_blame_no_rows():
    """The loss of later batches may be finite, so it need not have been the last one."""

    class Last(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                bias = self.model.layers[-1].bias
                bias.assign(np.full(bias.shape, np.inf, "float32"))

    model = small()
    with pytest.raises(FloatingPointError, match="no longer finite in epoch 1"):
        fine_tune(model, data(), plan=[Stage("all", 2, 1e-3)], callbacks=[Last()])
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_the_files_of_the_batch_are_named(shared_images):
    manifest = kt.Manifest.from_csv(shared_images / "labels.csv")
    train = kt.make_dataset(manifest, 8, 4, training=True, seed=3)

    class Spy(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 1:
                weight = self.model.layers[-1].kernel
                weight.assign(np.full(weight.shape, np.nan, "float32"))

    plan = [Stage("all", 1, 1e-3)]
    with pytest.raises(FloatingPointError, match=r"batch 2, which has 4 rows: ") as caught:
        fine_tune(small(manifest.tasks), train, plan=plan, callbacks=[Spy()])
    for row in permutation(12, 3, 0).numpy()[4:8]:
        assert manifest.where(int(row)) in str(caught.value)


# ---------------------------------------------------------------- stages on cached features


def images(folder, **options):
    manifest = kt.Manifest.from_csv(folder / "labels.csv")
    train = kt.make_dataset(manifest, 8, 4, training=True, **options)
    return manifest.tasks, train, kt.make_dataset(manifest, 8, 4)


HEAD = [Stage("head", 2, 1e-2)]


def tabular():
    """A model of rows of numbers, and its data sets."""
    rng = np.random.default_rng(0)
    labels = rng.choice([0.0, 1.0, np.nan], (12, 2))
    labels[:2] = [[0, 1], [1, 0]]
    rows = kt.Manifest.from_arrays(rng.random((12, 4)), labels, TASKS, kt.data.Table())
    given = keras.Input((4,))
    backbone = keras.Model(given, keras.layers.Dense(3, name="deep")(given))
    model = kt.build_model(backbone, TASKS, hidden=[4], dropout=0.2)
    return model, *(kt.make_dataset(rows, batch_size=4, training=train) for train in (True, False))


def test_with_and_without_the_cache_a_run_is_the_same():
    histories, models = [], []
    for cache in (True, False):
        keras.utils.set_random_seed(0)
        model, train, validation = tabular()
        loss = kt.losses.MaskedBinaryCrossentropy()
        model.compile("adam", loss, metrics=[kt.metrics.MaskedAUC()], jit_compile=False)
        models.append(model)
        histories.append(fine_tune(model, train, validation, HEAD, cache=cache).history)
    cached, plain = histories
    assert cached.keys() == plain.keys()
    for name, found in plain.items():
        np.testing.assert_allclose(cached[name], found, atol=1e-5, err_msg=name)
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_callbacks_see_the_whole_model_and_the_backbone_does_not_run(
    shared_images, tmp_path, monkeypatch
):
    tasks, train, validation = images(shared_images)
    fine_tune(small(tasks), train, validation, HEAD, cache=True)  # computes the features
    model, calls, seen = small(tasks), [], []
    call = keras.layers.Conv2D.call

    def counted(layer, inputs):
        calls.append(1)
        return call(layer, inputs)

    monkeypatch.setattr(keras.layers.Conv2D, "call", counted)

    class See(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((self.model, len(calls)))

    path = tmp_path / "model.keras"
    callbacks = [See(), kt.callbacks.Checkpoint(path)]
    fine_tune(model, train, validation, HEAD, callbacks, cache=True, monitor="loss")
    # At most the first rows of each data set, to see that what was found fits.
    assert [each for each, _ in seen] == 2 * [model] and seen[0][1] == seen[1][1] <= 3
    kept = kt.load_model(path)
    assert [layer.name for layer in kept.layers] == [layer.name for layer in model.layers]
    assert kept.predict(arrays(2)[0], verbose=0).shape == (2, 3)


def test_a_cache_that_is_asked_for_and_impossible_is_an_error(shared_images):
    with pytest.raises(ValueError, match="make_dataset"):
        fine_tune(small(), data(), plan=HEAD, cache=True)
    tasks, train, _ = images(shared_images, augment="default")
    with pytest.raises(ValueError, match="augment"):
        fine_tune(small(tasks), train, plan=HEAD, cache=True)


def test_stopping_and_unfreezing_in_a_cached_stage():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    class Unfreeze(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kt.unfreeze(self.model)

    model, train, validation = tabular()
    model.compile("adam", kt.losses.MaskedBinaryCrossentropy(), run_eagerly=True)
    assert fine_tune(model, train, validation, HEAD, [Stop()], cache=True).epoch == [0]
    with pytest.raises(RuntimeError, match="unfrozen: deep"):
        fine_tune(model, train, plan=HEAD, callbacks=[Unfreeze()], cache=True)


# ---------------------------------------------------------------- saved afterwards


def test_a_model_trained_by_a_plan_is_loaded_with_its_optimizer(tmp_path):
    model = small()
    fine_tune(model, data(), data(), plan=kt.plans.make_plan("full", head_epochs=1, epochs=1))
    kt.save_model(model, tmp_path / "model.keras")
    loaded = kt.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is type(model.optimizer)
    for one, other in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    x = arrays()[0]
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


# ---------------------------------------------------------------- other models and data


def test_a_subclassed_model_is_trained_on_a_data_set_of_keras():
    class Batches(keras.utils.PyDataset):
        num_batches = 4

        def __getitem__(self, index):
            return tuple(each[4 * index : 4 * index + 4] for each in arrays())

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2, activation="sigmoid")

        def call(self, x):
            return self.dense(keras.ops.mean(x, axis=(1, 2)))

    model = Subclassed()
    model(arrays()[0])
    plan = [Stage("all", 2, 0.1, schedule="cosine")]
    assert fine_tune(model, Batches(), plan=plan).epoch == [0, 1]


def test_several_outputs_need_a_model_that_is_compiled():
    tasks = [kt.Task("a"), kt.Task("n", "regression")]
    x, y = arrays()
    labels = {"binary": y[:, :1], "n": y[:, 1:]}
    train = tf.data.Dataset.from_tensor_slices((x, labels)).batch(4)
    model = kt.build_model(small().layers[1], tasks)
    with pytest.raises(ValueError, match="`model`"):
        fine_tune(model, train, plan="head")
    losses, metrics = kt.losses.for_tasks(tasks), kt.metrics.for_tasks(tasks)
    model.compile("adam", losses, metrics=metrics, run_eagerly=True)
    history = fine_tune(model, train, train, plan=[Stage("head", 1, 0.1), Stage("all", 1, 0.1)])
    assert history.epoch == [0, 1] and "val_binary_auc" in history.history


# ---------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"cache": "yes"}, "cache"),
        ({"train": data().repeat()}, "train"),
        ({"train": data().unbatch()}, "train"),
        ({"train": arrays()[0]}, "train"),
        ({"train": data().take(0)}, "train"),
        ({"train": data().map(lambda x, y: x)}, "train"),
        ({"train": data().filter(lambda x, y: True), "plan": "full"}, "train"),
        ({"validation": [1, 2]}, "validation"),
        ({"plan": []}, "plan"),
        ({"plan": "tail"}, "plan"),
        ({"plan": [Stage("head", 1, 0.1, patience=1)]}, "validation"),
        ({"monitor": "val_auc"}, "validation"),
        ({"monitor": "mine"}, "monitor"),
        ({"model": "model"}, "model"),
        ({"model": keras.Sequential([keras.layers.Dense(2)])}, "model"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_trained(arguments, name):
    watch = Watch()
    given = {"model": None, "train": data(), "plan": [Stage("head", 1, 0.1)], **arguments}
    given["model"] = given["model"] or small()
    with pytest.raises(ValueError, match=f"`{name}`"):
        fine_tune(**given, callbacks=[watch])
    assert watch.events == []


def test_a_stage_that_trains_nothing_is_named():
    backbone = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)], name="b")
    image = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(backbone(image))
    model = keras.Model(image, keras.layers.Activation("sigmoid")(pooled))
    with pytest.raises(ValueError, match=r"`plan`.*Stage\(train='head'"):
        fine_tune(model, data(), plan=[Stage("all", 1, 0.1), Stage("head", 1, 0.1)])
