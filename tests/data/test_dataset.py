"""Data sets: shapes, an order that follows from seed and epoch, caches, errors that name lines."""

import errno
import gc
import io
import os
import shutil
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from image_folder import HEIGHT, WIDTH
from PIL import Image
from tables import table_of

from kerasmtl.data.dataset import make_dataset, permutation, source_of
from kerasmtl.data.manifest import Manifest
from kerasmtl.tasks import Task
from kerasmtl.utils.tf import graph_fault

ROWS, FEW = 17, 13


@pytest.fixture(scope="module")
def greys(tmp_path_factory):
    """Images whose grey is 10 times the number of their row: the order can be read off them."""
    folder = tmp_path_factory.mktemp("greys")
    lines = ["image,a,b"]
    for row in range(ROWS):
        Image.new("RGB", (3, 2), (10 * row,) * 3).save(folder / f"{row}.png")
        lines.append(f"{row}.png,{row % 2},{'?' if row % 3 else row % 2}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return Manifest.from_csv(folder / "labels.csv")


@pytest.fixture
def manifest(shared_images):
    return Manifest.from_csv(shared_images / "labels.csv")


def order(dataset):
    return [int(row) for x, _ in dataset for row in np.round(x[:, 0, 0, 0].numpy() * 25.5)]


def collected(dataset):
    return [np.concatenate(parts) for parts in zip(*dataset.as_numpy_iterator(), strict=True)]


def test_batches_have_the_shapes_and_types_that_the_docstring_says(manifest):
    dataset = make_dataset(manifest, size=(10, 16), batch_size=5)
    batches = list(dataset)
    assert [x.shape for x, _ in batches] == [(5, 10, 16, 3), (5, 10, 16, 3), (2, 10, 16, 3)]
    assert [y.shape for _, y in batches] == [(5, 3), (5, 3), (2, 3)]
    assert all(x.dtype == y.dtype == tf.float32 for x, y in batches)
    assert dataset.element_spec[0].shape.as_list() == [None, 10, 16, 3]
    assert dataset.element_spec[1].shape.as_list() == [None, 3]
    assert len(dataset) == 3


def test_images_and_labels_are_those_of_the_manifest(manifest):
    images, labels = collected(make_dataset(manifest, (HEIGHT, WIDTH), batch_size=4))
    np.testing.assert_array_equal(labels, manifest.labels)
    assert np.isnan(labels).sum() == np.isnan(manifest.labels).sum() > 0
    for image, path in zip(images, manifest.input.paths(manifest.values), strict=True):
        expected = np.asarray(Image.open(path)) / np.float32(255)
        np.testing.assert_allclose(image, expected, atol=4 / 255)


def test_mixed_kinds_come_as_a_dict_of_the_models_outputs(image_folder):
    files = ["00.jpg", "01.png", "02.jpg", "03.png", "04.jpg", "05.png"]
    rows = [
        f"{file},{i % 2},{'abc'[i % 3]},{i / 4},{i if i < 2 else '?'}"
        for i, file in enumerate(files)
    ]
    path = image_folder / "mixed.csv"
    path.write_text("image,x,grade,size,y\n" + "\n".join(rows) + "\n")
    tasks = ["x", Task("grade", "multiclass"), Task("size", "regression"), Task("y")]
    manifest = Manifest.from_csv(path, tasks)
    for training in (False, True):
        dataset = make_dataset(manifest, 8, batch_size=4, training=training)
        assert {key: spec.shape.as_list() for key, spec in dataset.element_spec[1].items()} == {
            "binary": [None, 2], "grade": [None, 1], "size": [None, 1]
        }  # fmt: skip
    batches = [labels for _, labels in make_dataset(manifest, 8, batch_size=4)]
    values = {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
    np.testing.assert_array_equal(values["grade"][:, 0], [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(values["size"][:, 0], np.arange(6) / 4)
    np.testing.assert_array_equal(values["binary"], manifest.labels[:, [0, 3]])


@pytest.mark.parametrize("cache", [True, False])
def test_without_training_the_order_is_that_of_the_rows_in_every_epoch(greys, cache):
    dataset = make_dataset(greys, 2, batch_size=4, cache=cache)
    assert order(dataset) == order(dataset) == list(range(ROWS))
    assert order(make_dataset(greys.take([5, 3, 3]), 2)) == [5, 3, 3]


def test_the_cache_changes_no_bit_of_any_batch(manifest):
    cached, fresh = (
        make_dataset(manifest, 8, batch_size=5, training=True, cache=cache)
        for cache in (True, False)
    )
    for _ in range(2):
        for ours, theirs in zip(collected(cached), collected(fresh), strict=True):
            assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(
    ("image", "line", "reason"),
    [("02.jpg", 4, "truncated"), ("04.jpg", 6, "empty")],
)
def test_a_damaged_image_raises_an_error_with_its_name_and_line(
    image_folder, image, line, reason, cache
):
    path = image_folder / image
    data = path.read_bytes()
    path.write_bytes(b"" if reason == "empty" else data[: len(data) - 60])
    dataset = make_dataset(
        Manifest.from_csv(image_folder / "labels.csv"), 8, batch_size=2, cache=cache
    )
    with pytest.raises(tf.errors.OpError) as error:
        list(dataset)
    assert f"labels.csv, line {line}: {image} is {reason}" in graph_fault(error.value)
    assert "`kerasmtl check`" in graph_fault(error.value)


def test_absent_images_are_refused_before_the_first_batch(image_folder):
    (image_folder / "02.jpg").unlink()
    (image_folder / "05.png").unlink()
    manifest = Manifest.from_csv(image_folder / "labels.csv")
    with pytest.raises(FileNotFoundError, match=r"2 absent .*line 4: '02\.jpg'; line 7: '05"):
        make_dataset(manifest, 8)


@pytest.mark.parametrize("batch_size", [0])
def test_a_batch_size_below_one_is_refused(manifest, batch_size):
    with pytest.raises(ValueError, match=f"`batch_size` must be.*{batch_size}"):
        make_dataset(manifest, 8, batch_size=batch_size)


@pytest.mark.parametrize("image_size", [0, (8, 8, 3), None])
def test_a_wrong_image_size_is_refused(manifest, image_size):
    with pytest.raises(ValueError, match="`size` must be"):
        make_dataset(manifest, image_size)


def test_training_refuses_a_task_without_labels_and_validation_takes_it(greys):
    part = greys.take([1, 2, 4, 5])
    with pytest.raises(ValueError, match="`tasks` must.*'b': 'no known label among 4 rows'"):
        make_dataset(part, 2, training=True)
    assert order(make_dataset(part, 2)) == [1, 2, 4, 5]


@pytest.fixture
def own(manifest, tmp_path):
    """The manifest with a copy of its images, to change."""
    folder = tmp_path / "own"
    shutil.copytree(manifest.input.root, folder)
    return Manifest.from_csv(folder / "labels.csv")


def remove_images(manifest):
    for path in set(manifest.input.paths(manifest.values)):
        os.unlink(path)


def test_the_second_epoch_of_a_cached_data_set_reads_no_file(own):
    dataset = make_dataset(own, 8, batch_size=5, training=True, cache=True)
    first = collected(dataset)
    remove_images(own)
    second = collected(dataset)
    assert sorted(map(np.ndarray.tobytes, first[0])) == sorted(map(np.ndarray.tobytes, second[0]))
    with pytest.raises(FileNotFoundError):
        make_dataset(own, 8)


def test_a_cache_on_disk_changes_no_bit_and_is_found_again(own, tmp_path):
    folder = tmp_path / "cache"
    expected = collected(make_dataset(own, 8, batch_size=5, training=True, cache=False))
    for _ in range(2):
        stored = collected(make_dataset(own, 8, batch_size=5, training=True, cache=folder))
        for ours, theirs in zip(stored, expected, strict=True):
            assert ours.tobytes() == theirs.tobytes()
        (file,) = folder.iterdir()  # one file, and nothing left aside
    written = file.stat().st_mtime_ns
    collected(make_dataset(own, 8, cache=str(folder)))
    assert file.stat().st_mtime_ns == written
    make_dataset(own, 9, cache=folder)
    assert len(list(folder.iterdir())) == 2


class Full(io.BytesIO):
    """A file on a full disk."""

    def write(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("failure", ["image", "disk"])
def test_a_cache_that_was_not_finished_leaves_nothing(own, tmp_path, monkeypatch, failure):
    folder = tmp_path / "cache"
    if failure == "image":
        path = own.source.parent / own.names[11]
        path.write_bytes(path.read_bytes()[:-60])
        with pytest.raises(tf.errors.OpError, match="line 13: '?11.png"):
            make_dataset(own, 8, cache=folder)
    else:
        monkeypatch.setattr("kerasmtl.data.dataset.Path.open", lambda *args, **options: Full())
        with pytest.raises(OSError, match=r"`cache` must be .*room for 9,216 bytes.*No space"):
            make_dataset(own, 8, cache=folder)
    assert list(folder.iterdir()) == []


def test_the_hash_is_that_of_all_bytes_in_order_and_of_the_size(own):
    def hashed(rows=own, size=8):
        return source_of(make_dataset(rows, size)).content_sha256()

    first = hashed()
    assert first == hashed() == hashed(own.take(range(len(own)))) and len(first) == 64
    assert len({first, hashed(size=9), hashed(size=(8, 9)), hashed(own.take(range(11)))}) == 4
    assert hashed(own.take(range(len(own))[::-1])) != first
    path = own.source.parent / own.names[3]
    path.write_bytes(path.read_bytes() + b"\0")
    assert hashed() != first


def test_images_are_read_once_for_their_hash_while_they_stay_the_same(image_folder, monkeypatch):
    from kerasmtl.data.inputs import image as image_input

    read, plain = [], image_input.file_sha256
    monkeypatch.setattr(image_input, "file_sha256", lambda p: (read.append(p), plain(p))[1])
    source = source_of(make_dataset(Manifest.from_csv(image_folder / "labels.csv"), 8))
    before = source.content_sha256()
    assert source.content_sha256() == before and len(read) == source.count
    image = image_folder / "03.png"
    kept = image.stat()
    changed = bytearray(image.read_bytes())
    changed[-1] ^= 1
    image.write_bytes(bytes(changed))
    os.utime(image, ns=(kept.st_atime_ns, kept.st_mtime_ns + 1))
    assert source.content_sha256() != before and len(read) == source.count + 1


def test_without_determinism_every_image_still_comes_once_with_its_labels(greys):
    dataset = make_dataset(greys, 2, batch_size=4, training=True, cache=False, deterministic=False)
    assert not source_of(dataset).deterministic
    assert sorted(order(dataset)) == list(range(ROWS))
    for images, labels in dataset:
        rows = np.round(images[:, 0, 0, 0].numpy() * 25.5).astype(int)
        np.testing.assert_array_equal(labels, greys.labels[rows])


@pytest.fixture
def table():
    """The feature of a row is its number."""
    labels = np.stack([np.arange(FEW) % 2, np.arange(FEW) % 3 > 0], axis=1).astype("float32")
    labels[3, 1] = np.nan
    return table_of(np.arange(FEW)[:, None], labels, ["a", "b"])


def row_order(dataset):
    return [int(row) for x, _ in dataset for row in x[:, 0].numpy()]


@pytest.mark.parametrize(("count", "seed"), [(1, 7), (1000, -1), (1000, 2**40)])
def test_every_epoch_is_a_permutation_of_the_rows(count, seed):
    for epoch in (0, 1, 2**33):
        assert sorted(permutation(count, seed, epoch).numpy()) == list(range(count))


def test_the_order_is_the_same_on_every_machine_and_in_every_version():
    # Written down: a resumed run relies on it.
    assert permutation(10, 0, 0).numpy().tolist() == [3, 0, 1, 9, 4, 2, 8, 7, 6, 5]
    assert permutation(10, 0, 1).numpy().tolist() == [3, 5, 1, 4, 9, 2, 0, 7, 6, 8]


def test_an_iterator_takes_the_epoch_and_moves_it_on(table):
    data = make_dataset(table, None, 4, training=True, seed=5)
    epoch = source_of(data).epoch
    for number in (0, 1, 2):
        assert epoch.numpy() == number
        assert row_order(data) == permutation(FEW, 5, number).numpy().tolist()
    epoch.assign(1)
    assert row_order(data) == permutation(FEW, 5, 1).numpy().tolist()
    assert epoch.numpy() == 2


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
    plain = np.concatenate(seen)[-2 * FEW :].reshape(2, FEW)
    assert plain[0].tolist() != plain[1].tolist()
    seen.clear()
    model.fit(data, epochs=2, verbose=0, shuffle=False, callbacks=[Backwards()])
    rows = np.concatenate(seen).reshape(2, FEW)
    for number, epoch in enumerate((10, 9)):
        assert rows[number].tolist() == permutation(FEW, 0, epoch).numpy().tolist()


def test_the_source_says_where_a_table_data_set_came_from(table):
    source = source_of(make_dataset(table, None, 4, training=True, seed=9))
    assert (source.count, source.batch_size, source.training, source.seed) == (FEW, 4, True, 9)
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


def test_a_changed_feature_or_column_changes_the_hash(table):
    def hashed(rows):
        return source_of(make_dataset(rows)).content_sha256()

    assert hashed(table) == hashed(table.take(range(FEW)))
    features = table.values.copy()
    features[4, 0] = np.nextafter(features[4, 0], np.float32(9))
    others = [
        table_of(features, table.labels, table.tasks),
        table_of(table.values, table.labels, table.tasks, columns=["other"]),
        table.take(range(FEW - 1)),
        table.take(range(FEW)[::-1]),
    ]
    assert len({hashed(table), *map(hashed, others)}) == 5


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
    assert row_order(data) == permutation(FEW, 0, 0).numpy().tolist() and epoch.numpy() == 1
