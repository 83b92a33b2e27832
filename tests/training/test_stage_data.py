"""Stages of the head on features that are computed once."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasmtl as kt
from kerasmtl.training import feature_cache
from kerasmtl.training.callbacks import Checkpoint
from kerasmtl.training.fine_tune import fine_tune
from kerasmtl.training.plans import Stage

SIZE = 12
PLAN = [Stage("head", 2, 1e-2)]


@pytest.fixture(scope="module", autouse=True)
def features_elsewhere(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFHUB_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def model_of(tasks, random_first=False):
    keras.utils.set_random_seed(0)
    image = x = keras.Input((SIZE, SIZE, 3))
    if random_first:
        x = keras.layers.GaussianNoise(0.1, name="noise")(x)
    x = keras.layers.Conv2D(4, 3, name="conv")(x)
    model = kt.build_model(keras.Model(image, x), tasks, SIZE, hidden=[4], dropout=0.2)
    model.compile(
        "adam",
        kt.losses.MaskedBinaryCrossentropy(),
        metrics=[kt.metrics.MaskedAUC()],
        jit_compile=False,
    )
    return model


def data(folder, **options):
    manifest = kt.Manifest.from_csv(folder / "labels.csv")
    train = kt.make_dataset(manifest, SIZE, 4, training=True, **options)
    return manifest, train, kt.make_dataset(manifest, SIZE, 4)


def test_with_and_without_the_cache_a_run_is_the_same(shared_pictures):
    histories, models = [], []
    for cache in (True, False):
        manifest, train, validation = data(shared_pictures)
        models.append(model_of(manifest.tasks))
        plan = [*PLAN, Stage("all", 1, 1e-3)]
        history = fine_tune(models[-1], train, validation, plan, verbose=0, cache=cache)
        histories.append(history.history)
    cached, plain = histories
    assert cached.keys() == plain.keys()
    for name, values in plain.items():
        np.testing.assert_allclose(cached[name], values, atol=1e-5, err_msg=name)
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_callbacks_see_the_full_model_and_the_backbone_does_not_run(
    shared_pictures, tmp_path, monkeypatch
):
    manifest, train, validation = data(shared_pictures)
    model = model_of(manifest.tasks)
    fine_tune(model, train, validation, PLAN, verbose=0, cache=True)  # computes the features
    model = model_of(manifest.tasks)
    calls, seen = [], []
    call = keras.layers.Conv2D.call

    def counted(layer, inputs):
        calls.append(1)
        return call(layer, inputs)

    monkeypatch.setattr(keras.layers.Conv2D, "call", counted)

    class See(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((self.model, len(calls)))

    path = tmp_path / "model.keras"
    fine_tune(
        model, train, validation, PLAN, [See(), Checkpoint(path)], 0, cache=True, monitor="loss"
    )
    assert seen == 2 * [(model, 2)]  # the first rows of each data set, to see that they fit
    pictures = np.random.default_rng(0).random((2, SIZE, SIZE, 3), dtype="float32")
    kept = kt.load_model(path)
    assert [layer.name for layer in kept.layers] == [layer.name for layer in model.layers]
    assert kept.predict(pictures, verbose=0).shape == (2, 3)


def rows():
    x = np.random.default_rng(0).random((8, SIZE, SIZE, 3), dtype="float32")
    y = np.tile(np.eye(2, 3, dtype="float32"), (4, 1))
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(4)


def test_why_there_is_no_cache_is_said_once_and_training_goes_on(capsys):
    plan = [*PLAN, *PLAN]
    history = fine_tune(model_of(["a", "b", "c"]), rows(), plan=plan, verbose=2)
    shown = capsys.readouterr().out
    assert shown.count("Features are not cached: `train`") == 1
    assert history.epoch == [0, 1, 2, 3]


def test_a_cache_that_is_asked_for_and_impossible_is_an_error(shared_pictures):
    with pytest.raises(ValueError, match="make_dataset"):
        fine_tune(model_of(["a", "b", "c"]), rows(), plan=PLAN, verbose=0, cache=True)
    manifest, train, _ = data(shared_pictures)
    with pytest.raises(ValueError, match="random in training"):
        model = model_of(manifest.tasks, random_first=True)
        fine_tune(model, train, plan=PLAN, verbose=0, cache=True)
    manifest, train, _ = data(shared_pictures, augment="default")
    with pytest.raises(ValueError, match="augment"):
        fine_tune(model_of(manifest.tasks), train, plan=PLAN, verbose=0, cache=True)


@pytest.mark.parametrize("name", ["train", "validation"])
def test_nothing_is_computed_before_both_data_sets_are_seen_to_be_fit(
    shared_pictures, name, monkeypatch, capsys
):
    manifest, *pair = data(shared_pictures)
    sets = dict(zip(("train", "validation"), pair, strict=True))
    sets[name] = sets[name].map(lambda x, y: (x, y))
    begun = []
    monkeypatch.setattr(feature_cache, "make_entry", lambda *given: begun.append(given))
    with pytest.raises(ValueError, match=f"`{name}` does not say what it was made from"):
        fine_tune(model_of(manifest.tasks), **sets, plan=PLAN, verbose=0, cache=True)
    fine_tune(model_of(manifest.tasks), **sets, plan=PLAN, verbose=2)
    assert f"Features are not cached: `{name}` does not say" in capsys.readouterr().out
    assert not begun


def test_a_layer_that_cannot_be_hashed_is_said(shared_pictures, capsys):
    manifest, train, _ = data(shared_pictures)
    odd = (number for number in range(3))
    keras.utils.set_random_seed(0)
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Lambda(lambda x: x if odd else x, name="odd")(image)
    backbone = keras.Model(image, keras.layers.Conv2D(4, 3)(x))
    model = kt.build_model(backbone, manifest.tasks, SIZE)
    model.compile("adam", kt.losses.MaskedBinaryCrossentropy(), jit_compile=False)
    fine_tune(model, train, plan=PLAN, verbose=2)
    shown = capsys.readouterr().out
    assert "Features are not cached: `model` has something" in shown
    assert "layer 'odd', 'function', 'odd'. Expected" in shown and "builtins.generator" in shown


def test_a_callback_that_stops_ends_a_cached_stage(shared_pictures):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    manifest, train, validation = data(shared_pictures)
    history = fine_tune(
        model_of(manifest.tasks), train, validation, PLAN, [Stop()], verbose=0, cache=True
    )
    assert history.epoch == [0]


def test_unfreezing_in_a_cached_stage_raises(shared_pictures):
    class Unfreeze(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kt.unfreeze(self.model)

    manifest, train, _ = data(shared_pictures)
    with pytest.raises(RuntimeError, match="unfrozen: .*conv.*Stage"):
        fine_tune(
            model_of(manifest.tasks),
            train,
            plan=PLAN,
            callbacks=[Unfreeze()],
            verbose=0,
            cache=True,
        )
