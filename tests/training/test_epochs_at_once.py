"""Many batches in one call: the same run as batch by batch, bit for bit."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasmtl as kt
from kerasmtl.training import feature_cache
from kerasmtl.training import feature_cache as feature_dataset
from kerasmtl.training import fine_tune as epochs_at_once
from kerasmtl.training.callbacks import LossNotFinite
from kerasmtl.training.fine_tune import HeadAtOnce, fine_tune, see_batches
from kerasmtl.training.plans import Stage

SIZE = 12
COSINE = Stage("head", 3, 1e-2, warmup=0.5, schedule="cosine")
Callback = keras.callbacks.Callback


@pytest.fixture(scope="module", autouse=True)
def features_elsewhere(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFHUB_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def two_at_once(monkeypatch):
    """Three batches of an epoch are two stretches, of which the second is not full."""
    monkeypatch.setattr(epochs_at_once, "AT_ONCE", 2)


def model_of(tasks, dropout=0.3, **options):
    keras.utils.set_random_seed(0)
    image = keras.Input((SIZE, SIZE, 3))
    backbone = keras.Model(image, keras.layers.Conv2D(4, 3, name="conv")(image))
    model = kt.build_model(backbone, tasks, SIZE, hidden=[4], dropout=dropout)
    loss = kt.losses.MaskedBinaryCrossentropy(balancer=kt.losses.UncertaintyWeighting(len(tasks)))
    options = {"optimizer": keras.optimizers.Adam(1e-2), "jit_compile": False, **options}
    model.compile(
        loss=loss, metrics=[kt.metrics.MaskedAUC(), kt.metrics.MaskedBinaryAccuracy()], **options
    )
    return model


class Batches(Callback):
    """Wants each batch, so that they run one by one."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(batch)

    def on_test_batch_end(self, batch, logs=None):
        self.seen.append(-1 - batch)


class Interrupt(Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def train(folder, plan=(COSINE,), callbacks=(), model=None, batch=5, validated=True, **options):
    manifest = kt.Manifest.from_csv(folder / "labels.csv")
    model = model or model_of(manifest.tasks)
    data = kt.make_dataset(manifest, SIZE, batch, training=True, seed=1)
    held = kt.make_dataset(manifest, SIZE, batch) if validated else None
    options = {"cache": True, "verbose": 0, **options}
    history = fine_tune(model, data, held, list(plan), list(callbacks), **options)
    return model, history.history


def assert_same(one, other):
    (model, history), (again, plain) = one, other
    assert history == plain
    pairs = [
        (model.variables, again.variables),
        (model.optimizer.variables, again.optimizer.variables),
    ]
    for variables, others in pairs:
        for a, b in zip(variables, others, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    np.testing.assert_array_equal(model.loss.balancer.weights(), again.loss.balancer.weights())


@pytest.fixture
def fitted(monkeypatch):
    """What is fitted, in each stage."""
    found = []
    fit = keras.Model.fit

    def noted(self, *args, **options):
        found.append(self)
        return fit(self, *args, **options)

    monkeypatch.setattr(keras.Model, "fit", noted)
    return found


@pytest.mark.parametrize(
    ("plan", "validated"),
    [((COSINE,), True), ((Stage("head", 2, 1e-2), COSINE), False)],
)
def test_it_ends_bit_for_bit_as_batch_by_batch(shared_pictures, fitted, plan, validated):
    batches = Batches()
    at_once = train(shared_pictures, plan, validated=validated)
    by_batch = train(shared_pictures, plan, [batches], validated=validated)
    assert [isinstance(model, HeadAtOnce) for model in fitted] == [
        at_once for at_once in (True, False) for _ in plan
    ]
    epoch = [0, 1, 2] + ([-1, -2, -3] if validated else [])
    assert batches.seen == epoch * (len(by_batch[1]["loss"]))
    assert_same(at_once, by_batch)


def test_one_stretch_is_as_many(shared_pictures, monkeypatch):
    several = train(shared_pictures)
    monkeypatch.setattr(epochs_at_once, "AT_ONCE", 256)
    assert_same(train(shared_pictures), several)


@pytest.mark.parametrize("first", ["at once", "by batch"])
def test_an_interrupted_run_goes_on_bit_for_bit(shared_pictures, tmp_path, first):
    """Also if the batches were run the other way before."""
    whole = train(shared_pictures, directory=tmp_path / "whole")
    callbacks = [Interrupt(), *([Batches()] if first == "by batch" else [])]
    with pytest.raises(KeyboardInterrupt):
        train(shared_pictures, callbacks=callbacks, directory=tmp_path / "part")
    assert_same(train(shared_pictures, directory=tmp_path / "part"), whole)


def table(folder, spoilt=None, label=np.nan):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (13, 3)).astype("float32")
    labels[rng.random(labels.shape) < 0.3] = np.nan
    values = rng.normal(size=(13, 4)).astype("float32")
    if spoilt is not None:
        values[spoilt] = np.nan
    np.savez(folder / "table.npz", X=values, Y=labels, tasks=["a", "b", "c"])
    tasks = [kt.Task("a"), kt.Task("b", kind="regression"), kt.Task("c")]
    return kt.Table.load(folder / "table.npz", tasks=tasks)


@keras.saving.register_keras_serializable("test_epochs_at_once")
class Rows(keras.metrics.Sum):
    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(keras.ops.ones_like(y_pred[:, 0]))


def train_on(rows, optimizer, callbacks, validation=None):
    """A head of two outputs on a small backbone; the model and its history."""
    keras.utils.set_random_seed(0)
    inputs, inner = keras.Input((4,)), keras.Input((4,))
    backbone = keras.Model(inner, keras.layers.Dense(5, "tanh")(inner), name="backbone")
    x = keras.layers.Dropout(0.3)(backbone(inputs))
    outputs = {
        "binary": keras.layers.Dense(2, "sigmoid", name="binary")(x),
        "b": keras.layers.Dense(1, name="b")(x),
    }
    model = keras.Model(inputs, outputs)
    losses = {
        "binary": kt.losses.MaskedBinaryCrossentropy(),
        "b": kt.losses.MaskedMeanSquaredError(),
    }
    model.compile(optimizer, losses, metrics={"b": [Rows(name="rows")]}, jit_compile=False)
    before = [np.array(v) for v in model.get_weights()]
    data = kt.make_table_dataset(rows, batch_size=4, training=True)
    held = kt.make_table_dataset(validation or rows, batch_size=4)
    plan = [Stage("head", 3, optimizer.learning_rate.numpy())]
    try:
        history = fine_tune(model, data, held, plan, callbacks, 0, cache=True)
    except LossNotFinite as error:
        for one, other in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(one, other)
        return str(error), None
    return [v.numpy() for v in model.variables], history.history


@pytest.mark.parametrize("steps", [None, 2])
def test_labels_of_several_kinds_and_accumulated_gradients(tmp_path, steps):
    results = []
    for callbacks in ([], [Batches()]):
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=steps)
        results.append(train_on(table(tmp_path), optimizer, callbacks))
    np.testing.assert_equal(results[0], results[1])


@pytest.mark.parametrize(("spoilt", "rate"), [(6, 0.1), (None, 1e20)])
def test_a_loss_that_is_nan_is_named_with_its_batch_and_rows(tmp_path, spoilt, rate):
    """As batch by batch: it is the same batch, and the model has the weights of before."""
    messages = [
        train_on(table(tmp_path, spoilt), keras.optimizers.SGD(rate), callbacks)[0]
        for callbacks in ([], [Batches()])
    ]
    assert messages[0] == messages[1]
    assert "in epoch 1, batch " in messages[0] and "rows: " in messages[0]
    assert spoilt is None or "row 6" in messages[0]


def test_a_label_that_is_none_is_named_with_its_batch_and_rows(tmp_path):
    """As batch by batch, also in the second stretch of an epoch."""
    rows = table(tmp_path)
    for row in (3, 12):
        labels = rows.labels.copy()
        labels[row, 0] = 2
        spoilt = kt.Table.from_arrays(rows.features, labels, rows.tasks)
        messages = [
            train_on(spoilt, keras.optimizers.SGD(0.1), callbacks)[0]
            for callbacks in ([], [Batches()])
        ]
        assert messages[0] == messages[1] and "`y_true` must be" in messages[0]
        assert re.search(rf"epoch 1, batch \d, which has \d rows: .*row {row}\b", messages[0])


def test_a_validation_loss_that_is_nan_ends_nothing(tmp_path):
    (tmp_path / "spoilt").mkdir()
    given = table(tmp_path), table(tmp_path / "spoilt", spoilt=1)
    histories = [
        train_on(given[0], keras.optimizers.SGD(0.1), callbacks, given[1])[1]
        for callbacks in ([], [Batches()])
    ]
    assert np.isnan(histories[0]["val_loss"]).all()
    assert histories[0]["val_b_rows"] == 3 * [13.0]
    np.testing.assert_equal(histories[0], histories[1])


def test_what_is_trained_is_traced_once(shared_pictures, monkeypatch):
    """Metrics that make their variables in a step would have it traced a second time."""
    traced = []
    step = HeadAtOnce.train_step
    monkeypatch.setattr(
        HeadAtOnce, "train_step", lambda self, data: traced.append(1) or step(self, data)
    )
    train(shared_pictures)
    assert traced == [1]


def test_the_progress_is_that_of_each_batch(shared_pictures, capfd):
    shown = []
    for callbacks in ([], [Batches()]):
        train(shared_pictures, callbacks=callbacks, verbose=2)
        lines = capfd.readouterr().out.partition("Epoch 1/3")[2]  # features are computed before
        shown.append(re.sub(r"[\d.]+ s  ", "", lines))
    assert shown[0].count("\nEpoch ") == 2
    assert shown[0] == shown[1]


@pytest.mark.parametrize("why", ["average", "eager", "strategy", "disk"])
def test_otherwise_batches_run_one_by_one(shared_pictures, fitted, monkeypatch, why):
    options = {"plan": [Stage("head", 1, 1e-2)]}
    if why == "average":
        options["ema"] = 0.9
    elif why == "eager":
        options["model"] = model_of(["a", "b", "c"], run_eagerly=True)
    elif why == "strategy":
        with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
            options["model"] = model_of(["a", "b", "c"])
    else:
        monkeypatch.setattr(feature_dataset, "MEMORY_LIMIT", 10)
        monkeypatch.setattr(feature_cache, "MEMORY_LIMIT", 10)
    train(shared_pictures, **options)
    assert len(fitted) == 1 and fitted[0].name.endswith("_head")
    assert not isinstance(fitted[0], HeadAtOnce)


class Old(Callback):
    def on_batch_begin(self, batch, logs=None):
        pass


@pytest.mark.parametrize(
    ("callback", "sees"),
    [
        (Callback(), False),
        (Interrupt(), False),
        (Batches(), True),
        (Old(), True),
        (keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None), False),
        (keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: None), True),
        (keras.callbacks.EarlyStopping(), False),
        (keras.callbacks.TerminateOnNaN(), False),
        (keras.callbacks.ModelCheckpoint("a.keras"), False),
        (keras.callbacks.ModelCheckpoint("a.keras", save_freq=3), True),
        (keras.callbacks.TensorBoard("logs"), True),
        (kt.callbacks.Checkpoint("a.keras"), False),
        (kt.callbacks.WeightAverage(), True),
    ],
)
def test_who_has_to_see_batches(callback, sees):
    assert see_batches([Callback(), callback]) == sees
