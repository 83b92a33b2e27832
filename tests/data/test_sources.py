"""The order of an epoch is a function of seed and epoch; a data set knows the rows it came from."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tables import table_of

from kerasmtl.data.dataset import (
    make_dataset,
    permutation,
    source_of,
)
from kerasmtl.data.manifest import Manifest
from kerasmtl.tasks import Task

ROWS = 13


@pytest.fixture
def table():
    """The feature of a row is its number."""
    labels = np.stack([np.arange(ROWS) % 2, np.arange(ROWS) % 3 > 0], axis=1).astype("float32")
    labels[3, 1] = np.nan
    return table_of(np.arange(ROWS)[:, None], labels, ["a", "b"])


@pytest.fixture
def greys(tmp_path):
    """Pictures whose grey is 10 times the number of their row."""
    for row in range(ROWS):
        Image.new("RGB", (3, 2), (10 * row,) * 3).save(tmp_path / f"{row}.png")
    lines = [f"{row}.png,{row % 2},{int(row % 3 > 0)}" for row in range(ROWS)]
    (tmp_path / "labels.csv").write_text("image,a,b\n" + "\n".join(lines))
    return Manifest.from_csv(tmp_path / "labels.csv")


def order(dataset):
    return [int(row) for x, _ in dataset for row in x[:, 0].numpy()]


def picture_order(dataset):
    return [int(row) for x, _ in dataset for row in np.round(x[:, 0, 0, 0].numpy() * 25.5)]


@pytest.mark.parametrize("seed", [0, 7, -1, 2**40])
@pytest.mark.parametrize("count", [1, 2, 1000])
def test_every_epoch_is_a_permutation_of_the_rows(count, seed):
    for epoch in (0, 1, 2**33):
        assert sorted(permutation(count, seed, epoch).numpy()) == list(range(count))


def test_the_order_is_the_same_on_every_machine_and_in_every_version():
    # Written down: a resumed run relies on it.
    assert permutation(10, 0, 0).numpy().tolist() == [3, 0, 1, 9, 4, 2, 8, 7, 6, 5]
    assert permutation(10, 0, 1).numpy().tolist() == [3, 5, 1, 4, 9, 2, 0, 7, 6, 8]


def test_orders_of_different_seeds_and_epochs_have_nothing_in_common():
    orders = [permutation(500, seed, epoch).numpy() for seed in range(3) for epoch in range(3)]
    between = np.abs(np.corrcoef([*orders, np.arange(500)])[~np.eye(10, dtype=bool)])
    assert between.max() < 0.2  # four and a half standard deviations of chance


def test_all_positions_are_equally_likely():
    first = np.array([permutation(4, 0, epoch).numpy() for epoch in range(800)])
    counts = np.stack([np.bincount(column, minlength=4) for column in first.T])
    assert (abs(counts - 200) < 62).all()  # five standard deviations


def test_an_iterator_takes_the_epoch_and_moves_it_on(table):
    data = make_dataset(table, None, 4, training=True, seed=5)
    epoch = source_of(data).epoch
    for number in (0, 1, 2):
        assert epoch.numpy() == number
        assert order(data) == permutation(ROWS, 5, number).numpy().tolist()
    epoch.assign(1)
    assert order(data) == permutation(ROWS, 5, 1).numpy().tolist()
    assert epoch.numpy() == 2


def test_tensorflows_global_seed_changes_nothing(table):
    orders = []
    for seed in (1, 2):
        tf.random.set_seed(seed)
        orders.append(order(make_dataset(table, None, 4, training=True, seed=3)))
    assert orders[0] == orders[1] == permutation(ROWS, 3, 0).numpy().tolist()


def test_pictures_and_rows_come_in_the_order_of_the_permutation(table, greys):
    rows = make_dataset(table, None, 4, training=True, seed=2)
    pictures = [make_dataset(greys, 2, 4, True, seed=2, cache=cache) for cache in (True, False)]
    for number in range(3):
        expected = permutation(ROWS, 2, number).numpy().tolist()
        assert order(rows) == expected
        assert [picture_order(each) for each in pictures] == [expected, expected]


def test_fit_shuffles_anew_in_every_epoch_and_an_assigned_epoch_comes_next(table):
    data = make_dataset(table, None, 4, training=True)
    seen = []

    class Seen(keras.layers.Layer):
        def call(self, inputs):
            tf.py_function(lambda x: seen.append(x[:, 0].numpy()), [inputs], [])
            return inputs

    class Backwards(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            source_of(data).epoch.assign(10 - epoch)

    model = keras.Sequential([keras.Input((1,)), Seen(), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.MeanSquaredError())
    model.fit(data.map(lambda x, y: (x, tf.zeros_like(y))), epochs=2, verbose=0, shuffle=False)
    plain = np.concatenate(seen)[-2 * ROWS :].reshape(2, ROWS)
    assert plain[0].tolist() != plain[1].tolist()
    seen.clear()
    model.fit(data, epochs=2, verbose=0, shuffle=False, callbacks=[Backwards()])
    rows = np.concatenate(seen).reshape(2, ROWS)
    for number, epoch in enumerate((10, 9)):
        assert rows[number].tolist() == permutation(ROWS, 0, epoch).numpy().tolist()


def test_the_source_says_where_a_table_data_set_came_from(table):
    source = source_of(make_dataset(table, None, 4, training=True, seed=9))
    assert (source.count, source.batch_size, source.training, source.seed) == (ROWS, 4, True, 9)
    assert source.random is None and source.deterministic
    assert source.epoch.numpy() == 0 and source.epoch.dtype == tf.int64
    np.testing.assert_array_equal(source.labels, table.labels)
    inputs = list(source.inputs(5).as_numpy_iterator())
    assert [len(batch) for batch in inputs] == [5, 5, 3]
    np.testing.assert_array_equal(np.concatenate(inputs), table.values)
    views = np.concatenate(list(source.augmented_inputs(1, 5).as_numpy_iterator()))
    np.testing.assert_array_equal(views, table.values)
    assert source.where(3) == table.where(3)
    assert source_of(make_dataset(table, None, 4)).epoch is None


def test_the_labels_of_a_source_are_those_of_the_batches(table):
    tasks = [Task("a"), Task("b", "regression")]
    mixed = table_of(table.values, table.labels, tasks)
    data = make_dataset(mixed, None, ROWS)
    ((_, labels),) = data.as_numpy_iterator()
    source = source_of(data)
    assert labels.keys() == source.labels.keys() == {"binary", "b"}
    for key, values in labels.items():
        np.testing.assert_array_equal(values, source.labels[key])


def test_a_changed_feature_or_column_changes_the_hash(table):
    def hashed(rows):
        return source_of(make_dataset(rows)).content_sha256()

    assert hashed(table) == hashed(table.take(range(ROWS)))
    features = table.values.copy()
    features[4, 0] = np.nextafter(features[4, 0], np.float32(9))
    others = [
        table_of(features, table.labels, table.tasks),
        table_of(table.values, table.labels, table.tasks, columns=["other"]),
        table.take(range(ROWS - 1)),
        table.take(range(ROWS)[::-1]),
    ]
    assert len({hashed(table), *map(hashed, others)}) == 5


def test_what_was_made_from_a_data_set_has_no_source(table):
    data = make_dataset(table)
    assert source_of(data) is not None
    for other in (data.map(lambda x, y: (x, y)), data.take(1), [1], None, 3, np.zeros(2)):
        assert source_of(other) is None


def test_a_data_set_that_is_gone_leaves_nothing_behind(table):
    data = make_dataset(table, None, 4, training=True)
    derived = data.take(2)
    source = weakref.ref(source_of(data))
    del data
    gc.collect()
    assert len(list(derived)) == 2  # what was made from it still works
    del derived
    gc.collect()
    assert source() is None


def test_an_epoch_is_one_variable_on_the_cpu_in_the_scope_of_a_strategy_too(table):
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        data = make_dataset(table, None, 4, training=True)
    epoch = source_of(data).epoch
    assert not isinstance(epoch, tf.distribute.DistributedValues)
    assert "CPU" in epoch.device
    assert order(data) == permutation(ROWS, 0, 0).numpy().tolist() and epoch.numpy() == 1
