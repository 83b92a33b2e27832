"""What is wrong with a model or with data is said before anything is trained."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasmtl as kt
from kerasmtl.training.fine_tune import batches_of, fine_tune
from kerasmtl.training.plans import Stage

PLAN = [Stage("all", 1, 1e-3)]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype("float32")
Y = (X[:, :2] > 0).astype("float32")


def slices(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0])


def data():
    return slices(X, Y).batch(4)


def model_of():
    numbers = keras.Input((4,))
    return keras.Model(numbers, keras.layers.Dense(2, activation="sigmoid")(numbers))


class Rows(keras.utils.PyDataset):
    def __init__(self, count=4):
        super().__init__()
        self.count = count

    @property
    def num_batches(self):
        return self.count

    def __getitem__(self, index):
        return X[4 * index : 4 * index + 4], Y[4 * index : 4 * index + 4]


class OfLength(Rows):
    def __len__(self):
        return self.count


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2, activation="sigmoid")

    def call(self, x):
        return self.dense(x)


def refused(train, message, model=None, **options):
    model = model or model_of()
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        fine_tune(model, train, plan=options.pop("plan", PLAN), verbose=0, **options)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


TABLE = kt.Table.from_arrays(X, Y, ["a", "b"])


@pytest.mark.parametrize("plan", [PLAN, "auto"])
@pytest.mark.parametrize(
    "train, received",
    [
        ((X, Y), r"from_tensor_slices\(\(inputs, labels\)\).batch.*Received: tuple"),
        ([(X, Y)], "from_tensor_slices.*Received: list"),
        (X, "from_tensor_slices.*Received: ndarray"),
        (None, "from_tensor_slices.*Received: NoneType"),
        ("labels.csv", "from_tensor_slices.*Received: str"),
        ((b for b in [(X, Y)]), "from_tensor_slices.*Received: generator"),
        (TABLE, r"Pass train=kt.make_table_dataset\(table, training=True\).*Received: Table"),
    ],
)
def test_what_is_no_data_set_is_named_with_what_makes_one(train, received, plan):
    refused(train, f"`train` is no data set in batches.*{received}", plan=plan)


def test_a_manifest_is_no_data_set(shared_pictures):
    manifest = kt.Manifest.from_csv(shared_pictures / "labels.csv")
    refused(manifest, r"Pass train=kt.make_dataset\(manifest, size, training=True\)")


@pytest.mark.parametrize(
    "train, message",
    [
        (data().take(0), "`train` is empty"),
        (Rows(0), "`train` is empty"),
        (Rows(None), "`train` has no end"),
        (data().repeat(), "`train` has no end"),
        (slices(X).batch(4), "`train` gives no labels"),
        (slices(X, Y), r"`train` is not in batches.*Pass train=train.batch\(32\)"),
    ],
)
def test_data_that_cannot_be_trained_on_is_named(train, message):
    refused(train, message)


def test_validation_is_looked_at_as_well():
    refused(data(), "`validation` is empty", validation=data().take(0))
    refused(data(), "Pass validation=kt.make_table_dataset", validation=TABLE)


def test_a_model_that_is_not_built_is_named_and_trains_once_it_is():
    refused(data(), r"`model` 'subclassed.* is not built.*model\(next", model=Subclassed())
    model = Subclassed()
    model(X)
    assert fine_tune(model, data(), plan=PLAN, verbose=0).epoch == [0]


def test_what_is_no_model_is_named():
    with pytest.raises(ValueError, match="`model` is no Keras model.*Received: str"):
        fine_tune("model.keras", data(), plan=PLAN)


def test_several_outputs_need_losses_of_their_own():
    numbers = keras.Input((4,))
    outputs = {name: keras.layers.Dense(1)(numbers) for name in ("one", "two")}
    train = slices(X, {"one": Y[:, :1], "two": Y[:, 1:]}).batch(4)
    message = r"several outputs: \['one', 'two'\].*loss=kt.losses.for_tasks"
    refused(train, message, model=keras.Model(numbers, outputs))
    model = keras.Model(numbers, outputs)
    model.compile("adam", {"one": "mse", "two": "mse"})
    assert fine_tune(model, train, plan=PLAN, verbose=0).epoch == [0]


# ---------------------------------------------------------------- lengths


def test_a_schedule_of_a_later_stage_is_refused_before_the_first():
    unknown = data().filter(lambda x, y: True)
    plan = [*PLAN, Stage("all", 2, 1e-3, schedule="cosine")]
    refused(unknown, "unknown number of batches.*stage 2", plan=plan)


@pytest.mark.parametrize("kind", [Rows, OfLength])
def test_a_py_dataset_says_its_length(kind):
    assert batches_of(kind()) == 4
    plan = [Stage("all", 2, 1e-3, schedule="cosine", warmup=0.5)]
    assert fine_tune(model_of(), kind(), plan=plan, verbose=0).epoch == [0, 1]
