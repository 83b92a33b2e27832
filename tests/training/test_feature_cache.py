"""Features of a frozen part, computed once and kept."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tables import load_table

import kerasmtl as kt
from kerasmtl.data.dataset import permutation, source_of
from kerasmtl.training import feature_cache, feature_store
from kerasmtl.training.feature_cache import cache_features, cached_head
from kerasmtl.training.feature_store import entries
from kerasmtl.training.features import split_model

L = keras.layers
ROWS, COLUMNS = 150, 6


def frozen(units, **settings):
    return L.Dense(units, trainable=False, **settings)


@keras.saving.register_keras_serializable("test_feature_cache")
class Noted(L.Layer):
    """Passes its inputs on and counts the rows that it is given."""

    rows = 0

    def __init__(self, **settings):
        super().__init__(trainable=False, **settings)

    def call(self, inputs):
        def count(values):
            Noted.rows += len(values)
            return values

        # Keras traces the model when it builds it; only real rows come here.
        return tf.ensure_shape(tf.numpy_function(count, [inputs], tf.float32), inputs.shape)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """Shards of 64 rows, computed 16 at a time."""
    monkeypatch.setattr(feature_store, "SHARD_ROWS", 64)
    monkeypatch.setattr(feature_cache, "COMPUTED", 16)
    Noted.rows = 0


def table(folder, tasks=("a", "b"), rows=ROWS, change=0.0):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (rows, len(tasks))).astype("float32")
    labels[rng.random(labels.shape) < 0.3] = np.nan
    values = rng.normal(size=(rows, COLUMNS)).astype("float32")
    values[3, 2] += change
    names = [task if isinstance(task, kt.Task) else kt.Task(task) for task in tasks]
    np.savez(folder / "table.npz", X=values, Y=labels, tasks=[task.name for task in names])
    return load_table(folder / "table.npz", tasks=names)


def dataset(rows, **settings):
    return kt.make_dataset(rows, **settings)


@pytest.fixture
def data(tmp_path):
    return dataset(table(tmp_path), batch_size=32, training=True, seed=3)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "features"


def cached(model, data, folder, **settings):
    return cache_features(model, data, folder, progress=False, **settings)


def model_of(seed=0, units=5, layer=None, outputs=2):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((COLUMNS,))
    features = frozen(units, activation="relu")(Noted()(inputs))
    if layer is not None:
        features = layer(features)
    return keras.Model(inputs, L.Dense(outputs, "sigmoid")(features))


def image_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    features = L.GlobalMaxPooling2D()(L.Conv2D(4, 3, trainable=False)(inputs))
    return keras.Model(inputs, L.Dense(3, "sigmoid")(features))


def same_batches(model, data, found, epochs=(0, 1, 5)):
    """Assert that batches are the features of the data set's, in their order, epoch by epoch."""
    features, epoch = split_model(model)[0], source_of(data).epoch
    for number in epochs:
        received = []
        for each in (data, found):
            if epoch is not None:
                epoch.assign(number)
            received.append(list(each))
            assert each.cardinality() == len(received[-1])
        for (x, y), (a, b) in zip(*received, strict=True):
            expected = (features(x), y)
            keras.tree.assert_same_structure(expected, (a, b))
            for c, d in zip(keras.tree.flatten(expected), keras.tree.flatten((a, b)), strict=True):
                assert c.dtype == d.dtype
                np.testing.assert_allclose(c, d, rtol=1e-6, atol=1e-6)
        if epoch is not None:
            assert epoch.numpy() == number + 1


def test_batches_are_those_of_the_data_set(data, folder):
    model = model_of()
    found = cached(model, data, folder)
    same_batches(model, data, found)
    assert source_of(found).epoch is source_of(data).epoch


def test_validation_data_of_several_kinds_of_tasks_keep_their_order(tmp_path, folder):
    rows = table(tmp_path, ["a", kt.Task("b", kind="regression")])
    data = dataset(rows, batch_size=64)
    model = model_of()
    found = cached(model, data, folder)
    same_batches(model, data, found, epochs=(0,))
    assert source_of(found).epoch is None


def test_several_features_of_several_types(data, folder):
    inputs = keras.Input((COLUMNS,))
    first = frozen(3, dtype="mixed_float16")(inputs)
    second = L.Reshape((2, 2), dtype="mixed_bfloat16")(frozen(4, dtype="mixed_bfloat16")(first))
    trained = L.Concatenate()([L.Dense(2)(first), L.Flatten()(L.Dense(2)(second)), inputs])
    model = keras.Model(inputs, L.Dense(2)(trained))
    found = cached(model, data, folder)
    assert set(found.element_spec[0]) == {"features_0", "features_1", "features_2"}
    assert tf.TensorSpec((None, 2, 2), "bfloat16") in found.element_spec[0].values()
    same_batches(model, data, found)
    head = split_model(model)[1]
    head.compile("sgd", kt.losses.MaskedBinaryCrossentropy(from_logits=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head.fit(found, shuffle=False, verbose=0)


def test_what_is_found_is_computed_for_its_first_rows_alone(data, folder, tmp_path, capsys):
    cache_features(model_of(), data, folder)
    assert Noted.rows >= ROWS and f"once: {ROWS} rows" in capsys.readouterr().out
    Noted.rows = 0
    cache_features(model_of(), data, folder)  # other names of layers
    other_labels = dataset(table(tmp_path, ("p", "q")), batch_size=7)
    cache_features(model_of(outputs=3), other_labels, folder)
    assert Noted.rows == 2 * feature_cache.TRIED and capsys.readouterr().out == ""
    assert len(entries(folder)) == 1


def test_what_changes_the_features_computes_them_again(data, folder, tmp_path):
    for number, (model, rows) in enumerate(
        [
            (model_of(), data),
            (model_of(seed=1), data),
            (model_of(), dataset(table(tmp_path, change=1e-4))),
        ]
    ):
        same_batches(model, rows, cached(model, rows, folder), epochs=(0,))
        assert len(entries(folder)) == number + 1


def test_one_changed_pixel_computes_them_again(image_folder, folder):
    keys = []
    for color in (None, None, (1, 2, 3)):
        if color:
            with Image.open(image_folder / "05.png") as image:
                image.putpixel((3, 3), color)
                image.save(image_folder / "05.png")
        manifest = kt.Manifest.from_csv(image_folder / "labels.csv")
        data = kt.make_dataset(manifest, 32, batch_size=5, training=True, seed=1)
        keys.append(source_of(cached(image_model(), data, folder)).entry.key)
    assert keys[0] == keys[1] != keys[2]
    assert "labels.csv" in entries(folder)[0].about["first"]


@pytest.mark.parametrize("unfinished", [False, True])
def test_features_of_another_model_under_the_same_key_are_computed_again(
    data, folder, monkeypatch, capsys, unfinished
):
    monkeypatch.setattr(feature_cache, "feature_key", lambda *given: "the-same")
    cached(model_of(seed=1), data, folder)
    if unfinished:
        entries(folder)[0].shards.path(2).unlink()
    model = model_of()
    found = cache_features(model, data, folder)
    assert "another model" in capsys.readouterr().out
    same_batches(model, data, found, epochs=(0,))


def test_layers_whose_code_is_not_in_the_config_are_cached_on_demand_alone(data, folder):
    model = model_of(layer=L.Lambda(lambda inputs: inputs - 1.0))
    with pytest.raises(ValueError, match="`model`.*cache=True"):
        cached_head(model, data)
    same_batches(model, data, cached(model, data, folder), epochs=(0,))


def test_an_interrupted_run_computes_what_is_missing_with_the_same_bits(
    data, folder, tmp_path, monkeypatch
):
    model = model_of()
    write = feature_store.Entry.write

    def interrupted(self, number, rows):
        if number == 1:
            raise KeyboardInterrupt
        write(self, number, rows)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(feature_store.Entry, "write", interrupted)
        cached(model, data, folder)
    assert entries(folder)[0].shards.missing() == [1, 2]
    Noted.rows = 0
    cached(model, data, folder)
    # Rows 64 to 149; and the first ones: compared, computed twice, and once as in training.
    assert Noted.rows == 86 + 4 * feature_cache.TRIED
    whole = tmp_path / "whole"
    cached(model, data, whole)
    kept = [[p.read_bytes() for p in entries(each)[0].shards.paths()] for each in (folder, whole)]
    assert kept[0] == kept[1]


def test_a_damaged_shard_is_computed_again(data, folder):
    model = model_of()
    cached(model, data, folder)
    path = entries(folder)[0].shards.path(1)
    path.write_bytes(path.read_bytes()[:-7])
    same_batches(model, data, cached(model, data, folder), epochs=(0,))


def test_augmented_images_are_refused_or_kept_in_views(shared_images, folder, monkeypatch):
    monkeypatch.setattr(feature_store, "SHARD_ROWS", 16)
    manifest = kt.Manifest.from_csv(shared_images / "labels.csv")
    model = image_model()
    data = kt.make_dataset(manifest, 32, batch_size=5, training=True, augment="default")
    with pytest.raises(ValueError, match="`data`.*augment=.*views=4"):
        cached(model, data, folder)
    found = cached(model, data, folder, views=3)
    features, source, count = split_model(model)[0], source_of(data), len(manifest)
    views = [np.concatenate([features(x) for x in source.augmented_inputs(v, 4)]) for v in range(3)]
    assert not np.allclose(views[0], views[1], rtol=1e-3)
    kept = source_of(found).lookup(tf.range(3 * count, dtype=tf.int64))
    np.testing.assert_allclose(kept, np.concatenate(views), rtol=1e-4, atol=1e-5)
    for epoch in (0, 1, 2, 7):
        source.epoch.assign(epoch)
        received = np.concatenate([x for x, _ in found])
        expected = views[epoch % 3][permutation(count, source.seed, epoch).numpy()]
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)
    assert source_of(found).random == "views=3" and entries(folder)[0].rows == 3 * count


def test_wrong_arguments_are_named(data, folder):
    cached(model_of(), data, folder, views=4)
    assert entries(folder)[0].rows == ROWS  # without augmentation there is one view
    with pytest.raises(ValueError, match="`views`"):
        cached(model_of(), data, folder, views=0)
    with pytest.raises(ValueError, match="`data` must be what make_dataset returned"):
        cached(model_of(), data.map(lambda x, y: (x, y)), folder)


@keras.saving.register_keras_serializable("test_feature_cache")
class Hidden(L.Layer):
    """Random, or counting, in a way that no variable of the layer shows."""

    def __init__(self, when, **settings):
        super().__init__(trainable=False, **settings)
        self.when = when
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, inputs, training=False):
        if self.when == "always" or (self.when == "training" and training):
            return inputs + tf.random.normal(tf.shape(inputs))
        if self.when == "counts" and training:
            self.count.assign_add(1.0)
        return inputs

    def get_config(self):
        return {**super().get_config(), "when": self.when}


@pytest.mark.parametrize(
    ("when", "reason"),
    [
        ("always", "other features when they are computed twice"),
        ("training", "other features in training"),
        ("counts", "one that changes .*hidden.* when it is called"),
    ],
)
def test_features_that_do_not_stay_the_same_are_refused(data, folder, when, reason):
    layer = Hidden(when, name="hidden")
    with pytest.raises(ValueError, match=reason):
        cached(model_of(layer=layer), data, folder)
    assert layer.count.numpy() == 0 and not entries(folder)


def test_features_without_a_fixed_shape_are_refused(shared_images, folder):
    manifest = kt.Manifest.from_csv(shared_images / "labels.csv")
    inputs = keras.Input((None, None, 3))
    features = L.Conv2D(2, 3, trainable=False)(inputs)
    model = keras.Model(inputs, L.Dense(3)(L.GlobalMaxPooling2D()(L.Conv2D(2, 3)(features))))
    with pytest.raises(ValueError, match="a fixed shape, got float32 .None, None, None, 2."):
        cached(model, kt.make_dataset(manifest, 32), folder)


@pytest.mark.parametrize("chunk", [1, 2**26])
def test_the_head_ends_where_the_whole_model_does(tmp_path, folder, monkeypatch, chunk):
    monkeypatch.setattr(feature_cache, "CHUNK", chunk)  # a batch at a time, and all at once
    rows, histories, models = table(tmp_path), [], [model_of(), model_of()]
    for number, model in enumerate(models):
        sets = [dataset(rows, batch_size=32, training=True, seed=3), dataset(rows, batch_size=32)]
        if number:
            sets = [cached(model, data, folder) for data in sets]
            model = split_model(model)[1]
        loss, auc = kt.losses.MaskedBinaryCrossentropy(), kt.metrics.MaskedAUC()
        model.compile("adam", loss, metrics=[auc])
        fitted = model.fit(sets[0], validation_data=sets[1], epochs=2, verbose=0, shuffle=False)
        histories.append(fitted.history)
    assert set(histories[0]) == set(histories[1]) and "val_auc" in histories[0]
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=0, atol=1e-5)
    for a, b in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "size, steps, together", [(32, 5, 1), (8, 19, 19), (4, 38, 38), (2, 75, 25)]
)
def test_a_stage_fits_whole_epochs_on_features_without_an_end(tmp_path, size, steps, together):
    rows, model = table(tmp_path), model_of()
    model.compile("adam", kt.losses.MaskedBinaryCrossentropy())
    data = dataset(rows, batch_size=size, training=True, seed=3)
    part, found = kt.plans.Stage("head", 2, 1e-2).data(model, data, dataset(rows, batch_size=size))
    assert found["steps_per_epoch"] == steps and part.steps_per_execution == together
    batches = iter(found["x"])
    for epoch in range(3):
        labels = np.concatenate([next(batches)[1] for _ in range(steps)])
        order = permutation(ROWS, 3, epoch).numpy()
        np.testing.assert_array_equal(labels, source_of(data).labels[order])
    assert len(found["validation_data"]) == steps


def test_an_entry_names_the_backbone(tmp_path, monkeypatch, shared_images):
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))  # with the folder by default
    manifest = kt.Manifest.from_csv(shared_images / "labels.csv")
    model = kt.build_model("tiny", manifest.tasks, 32)
    cache_features(model, kt.make_dataset(manifest, 32, 4))
    again = kt.build_model("tiny", manifest.tasks, 32)  # found again, however it was called before
    again(np.zeros((1, 32, 32, 3), "float32"))
    cache_features(again, kt.make_dataset(manifest, 32, 4))
    assert [entry.about["backbone"] for entry in entries(tmp_path / "features")] == ["tiny"]
