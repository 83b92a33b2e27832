"""Guards: a change of what is trained, and a loss that is no number."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasmtl as kt
from kerasmtl.training.callbacks import LossNotFinite, TrainableGuard
from kerasmtl.training.fine_tune import fine_tune
from kerasmtl.training.plans import Stage


def model_of():
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 3))
    backbone = keras.Model(image, keras.layers.Conv2D(2, 3)(image), name="backbone")
    model = kt.build_model(backbone, ["a"], 6)
    compiled(model)
    return model


def compiled(model):
    model.compile("adam", kt.losses.MaskedBinaryCrossentropy(), jit_compile=False)


def arrays(rows=8):
    rng = np.random.default_rng(0)
    x = rng.random((rows, 6, 6, 3), dtype="float32")
    return x, rng.integers(0, 2, (rows, 1)).astype("float32")


def data(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(2)


class At(keras.callbacks.Callback):
    """Does something to the model at one moment of the second epoch."""

    def __init__(self, moment, action):
        super().__init__()
        self.action, self.epoch, self.moment = action, 0, moment

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self._act("epoch begin")

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            self._act("batch end")

    def on_epoch_end(self, epoch, logs=None):
        self._act("epoch end")

    def _act(self, moment):
        if self.epoch == 1 and moment == self.moment:
            self.action(self.model)


def freeze(model):
    kt.freeze(model)


def compile_again(model):
    model.compile("sgd", "mse")


MOMENTS = ["epoch begin", "batch end", "epoch end"]
ACTIONS = [(freeze, "`trainable` was changed"), (compile_again, "was compiled during training")]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("action, message", ACTIONS)
def test_plain_fit_with_the_guard_raises(moment, action, message):
    model = model_of()
    with pytest.raises(RuntimeError, match=f"{message}.*Stage"):
        model.fit(
            data(*arrays()),
            epochs=3,
            callbacks=[At(moment, action), TrainableGuard()],
            shuffle=False,
            verbose=0,
        )


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("action, message", ACTIONS)
def test_fine_tune_raises_by_itself(moment, action, message):
    with pytest.raises(RuntimeError, match=f"{message}.*Stage"):
        fine_tune(
            model_of(),
            data(*arrays()),
            plan=[Stage("all", 3, 1e-3)],
            callbacks=[At(moment, action)],
            verbose=0,
        )


def test_unfreezing_names_the_variables():
    model = model_of()
    kt.freeze(model)
    compiled(model)
    act = At("epoch end", kt.unfreeze)
    with pytest.raises(RuntimeError, match="unfrozen: .*conv2d.*kernel"):
        model.fit(
            data(*arrays()), epochs=2, callbacks=[act, TrainableGuard()], shuffle=False, verbose=0
        )


def test_the_guard_lets_an_honest_training_pass():
    model = model_of()
    guard = TrainableGuard()
    for choose in (kt.freeze, kt.unfreeze):
        choose(model)
        compiled(model)
        history = model.fit(data(*arrays()), epochs=2, callbacks=[guard], shuffle=False, verbose=0)
        assert history.epoch == [0, 1]


class Spoil(keras.callbacks.Callback):
    """Makes the loss of the third epoch NaN from a batch on."""

    def __init__(self, batch):
        super().__init__()
        self.batch, self.epoch, self.kept = batch, 0, {}

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if self.epoch == 2 and batch == self.batch:
            weight = self.model.layers[-1].kernel
            weight.assign(np.full(weight.shape, np.nan, "float32"))

    def on_epoch_end(self, epoch, logs=None):
        self.kept[epoch] = [w.copy() for w in self.model.get_weights()]


@pytest.mark.parametrize("batch", [0, 2, 3])
def test_a_loss_that_is_nan_stops_and_leaves_the_last_good_weights(batch):
    model, spoil = model_of(), Spoil(batch)
    with pytest.raises(LossNotFinite, match=f"loss is nan in epoch 3, batch {batch + 1}"):
        fine_tune(
            model, data(*arrays()), plan=[Stage("all", 5, 1e-3)], callbacks=[spoil], verbose=0
        )
    assert sorted(spoil.kept) == [0, 1]
    for weight, kept in zip(model.get_weights(), spoil.kept[1], strict=True):
        np.testing.assert_array_equal(weight, kept)


def test_a_nan_input_in_the_first_epoch_leaves_the_first_weights():
    x, y = arrays()
    x[5, 0, 0, 0] = np.nan
    model = model_of()
    before = [w.copy() for w in model.get_weights()]
    with pytest.raises(FloatingPointError, match="in epoch 1, batch 3"):
        fine_tune(model, data(x, y), plan=[Stage("all", 5, 1e-3)], verbose=0)
    for weight, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)


@pytest.mark.parametrize("eagerly", [False, True], ids=["graph", "eager"])
def test_a_label_that_is_none_names_epoch_and_batch_and_what_to_do(eagerly):
    x, y = arrays()
    y[5, 0] = -1
    model = model_of()
    model.compile(
        "sgd", kt.losses.MaskedBinaryCrossentropy(), run_eagerly=eagerly, jit_compile=False
    )
    before = [w.copy() for w in model.get_weights()]
    with pytest.raises(LossNotFinite, match="epoch 1, batch 3.*`y_true` must be.*missing=-1") as e:
        fine_tune(model, data(x, y), plan=[Stage("all", 5, 1e-3)], verbose=0)
    assert "[" not in str(e.value) and "got -1 to -1 in 1 " in str(e.value)
    assert "learning rate" not in str(e.value)
    for weight, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)


def test_labels_that_are_none_in_the_validation_blame_no_batch_of_the_training():
    x, y = arrays()
    with pytest.raises(tf.errors.InvalidArgumentError, match="`y_true` must be"):
        fine_tune(model_of(), data(x, y), data(x, y - 1), plan=[Stage("all", 2, 1e-3)], verbose=0)


def test_a_last_step_that_spoils_the_weights_is_noticed():
    class Last(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                bias = self.model.layers[-1].bias
                bias.assign(np.full(bias.shape, np.inf, "float32"))

    model = model_of()
    with pytest.raises(LossNotFinite, match="no longer finite in epoch 1, in or before batch 4"):
        fine_tune(
            model, data(*arrays()), plan=[Stage("all", 2, 1e-3)], callbacks=[Last()], verbose=0
        )
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_weights_that_are_not_finite_at_the_end_of_an_epoch_blame_no_rows(shared_pictures):
    """The loss of later batches may be finite, so it need not have been the last one."""
    manifest = kt.Manifest.from_csv(shared_pictures / "labels.csv")

    class Last(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                bias = self.model.layers[-1].bias
                bias.assign(np.full(bias.shape, np.nan, "float32"))

    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 3))
    model = kt.build_model(keras.Model(image, keras.layers.Conv2D(2, 3)(image)), manifest.tasks, 6)
    compiled(model)
    train = kt.make_dataset(manifest, 6, 4, training=True)
    with pytest.raises(LossNotFinite, match="epoch 1, in or before batch 3. Expected") as caught:
        fine_tune(
            model, train, plan=[Stage("all", 1, 1e-3)], callbacks=[Last()], verbose=0, cache=False
        )
    assert ".png" not in str(caught.value)


def test_the_files_of_the_batch_are_named(shared_pictures):
    manifest = kt.Manifest.from_csv(shared_pictures / "labels.csv")
    train = kt.make_dataset(manifest, 6, 4, training=True, seed=3)
    seen = [len(images) for images, _ in train]
    assert seen == [4, 4, 4]

    class Spy(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 1:
                weight = self.model.layers[-1].kernel
                weight.assign(np.full(weight.shape, np.nan, "float32"))

    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 3))
    backbone = keras.Model(image, keras.layers.Conv2D(2, 3)(image))
    model = kt.build_model(backbone, manifest.tasks, 6)
    compiled(model)
    with pytest.raises(LossNotFinite, match=r"batch 2, which has 4 rows: ") as caught:
        fine_tune(
            model, train, plan=[Stage("all", 1, 1e-3)], callbacks=[Spy()], verbose=0, cache=False
        )
    from kerasmtl.data.dataset import permutation

    rows = permutation(12, 3, 0).numpy()[4:8]
    for row in rows:
        assert manifest.where(int(row)) in str(caught.value)
