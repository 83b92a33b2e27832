"""Features computed once: the same batches as the data set's, found again, or computed anew."""

import os
import subprocess
import sys
import textwrap
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from modules import HELPERS, save_reusable
from PIL import Image

import kerasmtl as kt
from kerasmtl.data.dataset import permutation, source_of
from kerasmtl.training import feature_cache, feature_store
from kerasmtl.training import feature_cache as feature_computing
from kerasmtl.training import feature_cache as feature_dataset
from kerasmtl.training import feature_cache as feature_key
from kerasmtl.training import feature_store as feature_blocks
from kerasmtl.training.feature_cache import cache_features, split_model
from kerasmtl.training.feature_store import entries

L = keras.layers
ROWS, COLUMNS = 150, 6


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
    monkeypatch.setattr(feature_blocks, "BLOCK", 64)
    for module in (feature_cache, feature_store):
        monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(feature_computing, "COMPUTED", 16)
    Noted.rows = 0


def table(folder, tasks=("a", "b"), rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (rows, len(tasks))).astype("float32")
    labels[rng.random(labels.shape) < 0.3] = np.nan
    values = rng.normal(size=(rows, COLUMNS)).astype("float32")
    names = [task if isinstance(task, kt.Task) else kt.Task(task) for task in tasks]
    np.savez(folder / "table.npz", X=values, Y=labels, tasks=[task.name for task in names])
    return kt.Table.load(folder / "table.npz", tasks=names)


@pytest.fixture
def data(tmp_path):
    return kt.make_table_dataset(table(tmp_path), batch_size=32, training=True, seed=3)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "features"


def model_of(seed=0, units=5, layer=None, outputs=2):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((COLUMNS,))
    frozen = L.Dense(units, "relu", trainable=False)(Noted()(inputs))
    if layer is not None:
        frozen = layer(frozen)
    return keras.Model(inputs, L.Dense(outputs, "sigmoid")(frozen))


def picture_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    frozen = L.GlobalMaxPooling2D()(L.Conv2D(4, 3, trainable=False)(inputs))
    return keras.Model(inputs, L.Dense(3, "sigmoid")(frozen))


def same_batches(features, data, cached, epochs=(0, 1, 5)):
    """The cached batches are the features of the batches of the data set, epoch by epoch."""
    epoch = source_of(data).epoch
    for number in epochs:
        for each in (data, cached):
            assert each.cardinality() == -(-source_of(data).count // source_of(data).batch_size)
        if epoch is not None:
            epoch.assign(number)
        expected = [(features(x), y) for x, y in data]
        if epoch is not None:
            epoch.assign(number)
        received = list(cached)
        assert len(expected) == len(received)
        for a, b in zip(expected, received, strict=True):
            keras.tree.assert_same_structure(a, b)
            for x, y in zip(keras.tree.flatten(a), keras.tree.flatten(b), strict=True):
                assert x.dtype == y.dtype
                np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
        if epoch is not None:
            assert epoch.numpy() == number + 1


def test_batches_are_those_of_the_data_set(data, folder):
    model = model_of()
    cached = cache_features(model, data, folder, progress=False)
    features, head = split_model(model)
    same_batches(features, data, cached)
    with_head = [head(x) for x, _ in cache_features(model, data, folder, progress=False)]
    source_of(data).epoch.assign_sub(1)
    for a, (x, _) in zip(with_head, data, strict=True):
        np.testing.assert_allclose(a, model(x), rtol=1e-6, atol=1e-6)


def test_an_epoch_of_features_counts_as_one_of_the_data_set(data, folder):
    cached = cache_features(model_of(), data, folder, progress=False)
    assert source_of(cached).epoch is source_of(data).epoch
    orders = [np.concatenate([y for _, y in each]) for each in (cached, cached, cached)]
    assert source_of(data).epoch.numpy() == 3
    assert not np.array_equal(orders[0], orders[1], equal_nan=True)


def test_validation_data_keep_their_order(tmp_path, folder):
    data = kt.make_table_dataset(table(tmp_path), batch_size=64)
    model = model_of()
    cached = cache_features(model, data, folder, progress=False)
    same_batches(split_model(model)[0], data, cached)
    assert source_of(cached).epoch is None


def test_labels_of_several_kinds(tmp_path, folder):
    tasks = ["a", kt.Task("b", kind="regression")]
    data = kt.make_table_dataset(table(tmp_path, tasks), batch_size=32, training=True)
    model = model_of()
    same_batches(split_model(model)[0], data, cache_features(model, data, folder, progress=False))


def test_several_border_tensors(data, folder):
    inputs = keras.Input((COLUMNS,))
    first = L.Dense(3, trainable=False)(inputs)
    second = L.Reshape((2, 2))(L.Dense(4, trainable=False)(first))
    trained = L.Concatenate()([L.Dense(2)(first), L.Flatten()(L.Dense(2)(second)), inputs])
    model = keras.Model(inputs, L.Dense(2)(trained))
    cached = cache_features(model, data, folder, progress=False)
    features, head = split_model(model)
    assert set(features.output) == {"features_0", "features_1", "features_2"}
    same_batches(features, data, cached)
    head.compile("sgd", kt.losses.MaskedBinaryCrossentropy(from_logits=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head.fit(cached, shuffle=False, verbose=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_features_keep_their_type(data, folder, dtype):
    inputs = keras.Input((COLUMNS,))
    frozen = L.Dense(3, trainable=False, dtype=f"mixed_{dtype}")(inputs)
    model = keras.Model(inputs, L.Dense(2)(frozen))
    cached = cache_features(model, data, folder, progress=False)
    assert cached.element_spec[0] == tf.TensorSpec((None, 3), dtype)
    same_batches(split_model(model)[0], data, cached, epochs=(0,))


def test_features_too_many_for_memory_are_read_by_batch(data, folder, monkeypatch):
    monkeypatch.setattr(feature_dataset, "MEMORY_LIMIT", 100)
    monkeypatch.setattr(feature_cache, "MEMORY_LIMIT", 100)
    model = model_of()
    cached = cache_features(model, data, folder, progress=False)
    assert cached.element_spec[0].shape == (None, 5)
    same_batches(split_model(model)[0], data, cached)
    Noted.rows = 0
    cache_features(model, data, folder, progress=False)
    assert Noted.rows == feature_computing.TRIED


def test_a_hit_computes_the_first_rows_alone(data, folder, tmp_path):
    cache_features(model_of(), data, folder, progress=False)
    assert Noted.rows >= ROWS
    Noted.rows = 0
    cache_features(model_of(), data, folder, progress=False)  # other names of layers
    other_labels = kt.make_table_dataset(table(tmp_path, ("p", "q", "r")), batch_size=7)
    values = source_of(data).table.features
    source_of(other_labels).table.features[:] = values
    cache_features(model_of(outputs=3), other_labels, folder, progress=False)
    assert Noted.rows == 2 * feature_computing.TRIED
    assert len(entries(folder)) == 1


def test_what_changes_the_features_computes_them_anew(data, folder, tmp_path):
    def computed(model, data=data):
        Noted.rows = 0
        cached = cache_features(model, data, folder, progress=False)
        same_batches(split_model(model)[0], data, cached, epochs=(0,))
        return Noted.rows > 0

    assert computed(model_of())
    assert computed(model_of(seed=1))  # other weights
    assert computed(model_of(units=6))
    model = model_of()
    dense = next(layer for layer in model.layers if isinstance(layer, L.Dense))
    dense.bias.assign(dense.bias + 1e-6)
    assert computed(model)
    model = model_of()
    dense = next(layer for layer in model.layers if isinstance(layer, L.Dense))
    dense.activation = keras.activations.tanh
    assert computed(model)
    rows = table(tmp_path)
    rows.features[3, 2] += 1e-4
    assert computed(model_of(), kt.make_table_dataset(rows))
    assert len(entries(folder)) == 6


def test_an_edited_layer_computes_them_anew(data):
    def key(function):
        inputs = keras.Input((COLUMNS,))
        frozen = L.Dense(3, trainable=False, kernel_initializer="ones")
        model = keras.Model(inputs, L.Dense(2)(frozen(L.Lambda(function)(inputs))))
        identity = feature_key.identity_of(split_model(model)[0])
        return feature_key.feature_key(identity, source_of(data), 1)

    def named(factor):
        space = {}
        exec(f"def scaled(x):\n    return x * {factor}\n", space)
        return space["scaled"]

    assert key(named(2.0)) == key(named(2.0)) != key(named(3.0))


class Shift(L.Layer):
    def __init__(self, by, **settings):
        super().__init__(trainable=False, **settings)
        self.by = by

    def call(self, inputs):
        return inputs - keras.ops.convert_to_tensor(self.by)


def shift_by(number):
    return L.Lambda(lambda inputs: inputs - number)


@pytest.mark.parametrize("make", [lambda number: Shift(np.full(5, number, "float32")), shift_by])
def test_another_constant_of_a_layer_computes_them_anew(data, folder, make):
    for number in (0.0, 5.0):
        model = model_of(layer=make(number))
        cached = cache_features(model, data, folder, progress=False)
        same_batches(split_model(model)[0], data, cached, epochs=(0,))
    assert len(entries(folder)) == 2


@pytest.mark.parametrize("augment", [None, "default"])
def test_features_of_another_model_under_the_same_key_are_computed_anew(
    shared_pictures, folder, augment, monkeypatch, capsys
):
    monkeypatch.setattr(feature_cache, "feature_key", lambda *given: "the-same")
    manifest = kt.Manifest.from_csv(shared_pictures / "labels.csv")
    data = kt.make_dataset(manifest, 32, batch_size=5, training=True, augment=augment)
    views, found = 2 if augment else 1, []
    for size in (1.0, 2.0, 2.0):
        model = picture_model()
        model.layers[1].kernel.assign(model.layers[1].kernel * size)
        cached = cache_features(model, data, folder, views, progress=True)
        found.append(source_of(cached).lookup(tf.range(len(manifest), dtype=tf.int64)).numpy())
        assert ("another model" in capsys.readouterr().out) == (len(found) == 2)
    np.testing.assert_allclose(found[1], 2 * found[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(found[1], found[2])


def test_an_unfinished_entry_of_another_model_is_not_gone_on_with(data, folder, monkeypatch):
    monkeypatch.setattr(feature_cache, "feature_key", lambda *given: "the-same")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupted(patched, after=2 + 4 + 2)
        cache_features(model_of(seed=1), data, folder, progress=False)
    model = model_of()
    cached = cache_features(model, data, folder, progress=False)
    same_batches(split_model(model)[0], data, cached, epochs=(0,))


def test_one_changed_pixel_computes_them_anew(picture_folder, folder):
    model = picture_model()

    def cached():
        manifest = kt.Manifest.from_csv(picture_folder / "labels.csv")
        data = kt.make_dataset(manifest, 32, batch_size=5, training=True, seed=1)
        found = cache_features(model, data, folder, progress=False)
        same_batches(split_model(model)[0], data, found, epochs=(0,))
        return source_of(found).key

    first = cached()
    assert cached() == first
    with Image.open(picture_folder / "05.png") as picture:
        picture.putpixel((3, 3), (1, 2, 3))
        picture.save(picture_folder / "05.png")
    assert cached() != first
    assert len(entries(folder)) == 2
    assert "labels.csv" in entries(folder)[0].about["first"]


def test_another_backbone_of_the_same_shape(shared_pictures, folder):
    manifest = kt.Manifest.from_csv(shared_pictures / "labels.csv")
    data = kt.make_dataset(manifest, 32)
    keys = set()
    for alpha in (0.25, 0.5):
        backbone = keras.applications.MobileNet(
            include_top=False, weights=None, input_shape=(32, 32, 3), alpha=alpha
        )
        model = kt.build_model(backbone, manifest.tasks, image_size=32, trainable=False)
        features, _ = split_model(model)
        keys.add(feature_key.feature_key(feature_key.identity_of(features), source_of(data), 1))
    assert len(keys) == 2


def interrupted(monkeypatch, after):
    """`cache_features` stops before it computes that batch."""
    run = feature_computing.Step.__call__
    calls = []

    def counted(self, inputs):
        calls.append(len(inputs))
        if len(calls) == after:
            raise KeyboardInterrupt
        return run(self, inputs)

    monkeypatch.setattr(feature_computing.Step, "__call__", counted)
    return calls


def test_an_interrupted_run_goes_on_and_ends_with_the_same_features(
    data, folder, tmp_path, monkeypatch
):
    model = model_of()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupted(patched, after=2 + 4 + 2)
        cache_features(model, data, folder, progress=False)
    assert [entry.made for entry in entries(folder)] == [""]
    with monkeypatch.context() as patched:
        calls = interrupted(patched, after=None)
        cached = cache_features(model, data, folder, progress=False)
    assert calls[2:] == [16] * 5 + [6]  # rows 64 to 149: the first block was there
    whole = cache_features(model, data, tmp_path / "other", progress=False)
    lookups = [source_of(each).lookup(tf.range(ROWS, dtype=tf.int64)) for each in (cached, whole)]
    np.testing.assert_array_equal(*lookups)


@pytest.mark.parametrize("first", [0, 64, 128, 192, 256])
def test_rows_from_the_middle_of_a_view_on(data, first):
    """Blocks of 64 rows do not end where the views of 150 rows do, which have batches of 16."""
    source, sizes = source_of(data), []

    def step(batch):
        sizes.append(len(batch))
        return {"features": batch.numpy()}

    batches = feature_computing.batches_from(step, source, 2, first)
    lengths = [min(64, 2 * ROWS - start) for start in range(first, 2 * ROWS, 64)]
    blocks = list(feature_computing.in_blocks(batches, lengths))
    assert [len(block["features"]) for block in blocks] == lengths
    expected = np.concatenate([source.table.features] * 2)[first:]
    np.testing.assert_array_equal(np.concatenate([b["features"] for b in blocks]), expected)
    assert set(sizes) == {16, 150 % 16}


def test_a_damaged_entry_is_computed_anew(data, folder):
    model = model_of()
    cache_features(model, data, folder, progress=False)
    path = entries(folder)[0].path / "features.npy"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    same_batches(split_model(model)[0], data, cache_features(model, data, folder, progress=False))


def test_augmented_pictures_are_refused_or_kept_in_views(shared_pictures, folder):
    manifest = kt.Manifest.from_csv(shared_pictures / "labels.csv")
    model = picture_model()
    data = kt.make_dataset(manifest, 32, batch_size=5, training=True, augment="default")
    with pytest.raises(ValueError, match="other inputs in each epoch .augment=.* or views=K"):
        cache_features(model, data, folder, progress=False)
    cached = cache_features(model, data, folder, views=3, progress=False)
    features, _ = split_model(model)
    source, count = source_of(data), len(manifest)
    views = [np.concatenate([features(x) for x in source.augmented_inputs(v, 4)]) for v in range(3)]
    assert not np.allclose(views[0], views[1], rtol=1e-3)
    kept = source_of(cached).lookup(tf.range(3 * count, dtype=tf.int64))
    np.testing.assert_allclose(kept, np.concatenate(views), rtol=1e-4, atol=1e-5)
    for epoch in (0, 1, 2, 3, 7):
        source.epoch.assign(epoch)
        received = np.concatenate([x for x, _ in cached])
        expected = views[epoch % 3][permutation(count, source.seed, epoch).numpy()]
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)
    assert source_of(cached).random == "views=3"
    assert entries(folder)[0].rows == 3 * count


def test_views_without_augmentation_are_one(data, folder):
    cache_features(model_of(), data, folder, views=4, progress=False)
    assert entries(folder)[0].rows == ROWS


@pytest.mark.parametrize("views", [0, -1, 1.0, True, "2"])
def test_a_wrong_count_of_views(data, views):
    with pytest.raises(ValueError, match="`views` is no count"):
        cache_features(model_of(), data, views=views)


def test_data_of_unknown_origin_are_refused(data, folder):
    with pytest.raises(ValueError, match="does not say what it was made from.*make_dataset"):
        cache_features(model_of(), data.map(lambda x, y: (x, y)), folder)


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


class Around(L.Layer):
    """Is told nothing of training, but what is in it is."""

    def __init__(self, inner, **settings):
        super().__init__(**settings)
        self.inner = inner

    def call(self, inputs):
        return self.inner(inputs)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("when", "reason"),
    [
        ("always", "other features when they are computed twice"),
        ("training", "other features in training"),
        ("counts", "changes its variables when it is called: .*hidden"),
    ],
)
def test_features_that_do_not_stay_the_same_are_refused(data, folder, when, reason, inside):
    layer = Hidden(when, name="hidden")
    model = model_of(layer=Around(layer) if inside else layer)
    with pytest.raises(ValueError, match=reason):
        cache_features(model, data, folder, progress=False)
    assert layer.count.numpy() == 0 and not entries(folder)


def test_features_of_no_fixed_shape_are_refused(shared_pictures, folder):
    manifest = kt.Manifest.from_csv(shared_pictures / "labels.csv")
    inputs = keras.Input((None, None, 3))
    frozen = L.Conv2D(2, 3, trainable=False)(inputs)
    model = keras.Model(inputs, L.Dense(3)(L.GlobalMaxPooling2D()(L.Conv2D(2, 3)(frozen))))
    with pytest.raises(ValueError, match="a fixed shape. Received: float32 .None, None, None, 2."):
        cache_features(model, kt.make_dataset(manifest, 32), folder, progress=False)


def trained(model, data, validation):
    model.compile("adam", kt.losses.MaskedBinaryCrossentropy(), metrics=[kt.metrics.MaskedAUC()])
    return model.fit(data, epochs=2, verbose=0, shuffle=False, validation_data=validation).history


def test_the_head_ends_where_the_whole_model_does(tmp_path, folder):
    rows = table(tmp_path)

    def both():
        training = kt.make_table_dataset(rows, batch_size=32, training=True, seed=3)
        return training, kt.make_table_dataset(rows, batch_size=32)

    whole, other = model_of(), model_of()
    expected = trained(whole, *both())
    cached = [cache_features(other, data, folder, progress=False) for data in both()]
    received = trained(split_model(other)[1], *cached)
    assert set(expected) == set(received) and "val_auc" in expected
    for name, values in expected.items():
        np.testing.assert_allclose(received[name], values, rtol=0, atol=1e-5)
    for a, b in zip(whole.weights, other.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-5)


def test_progress_is_shown_while_computing_alone(data, folder, capsys):
    cache_features(model_of(), data, folder)
    assert f"once: {ROWS} rows" in capsys.readouterr().out
    cache_features(model_of(), data, folder)
    assert capsys.readouterr().out == ""


def test_the_default_folder_is_in_the_cache_of_modules(data, tmp_path, monkeypatch):
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    cache_features(model_of(), data, progress=False)
    assert len(entries(tmp_path / "cache" / "features")) == 1


PROCESS = """
    import sys
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    import kerasmtl as kt
    from test_feature_cache import cache_features

    manifest = kt.Manifest.from_csv(Path({pictures!r}) / "labels.csv")
    model = kt.build_model("tiny", manifest.tasks, image_size=32)
    cached = cache_features(model, kt.make_dataset(manifest, 32), {folder!r})
    print(sum(float(x.numpy().sum()) for x, _ in cached))
"""


@pytest.mark.slow
def test_two_processes_at_once_agree(shared_pictures, folder):
    code = textwrap.dedent(
        PROCESS.format(tests=str(HELPERS), pictures=str(shared_pictures), folder=str(folder))
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    sums = [process.communicate()[0].splitlines()[-1] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sums[0] == sums[1] and float(sums[0]) > 0
    assert len(entries(folder)) == 1 and len(os.listdir(folder)) == 1


def test_an_entry_names_the_backbone_by_what_it_was_loaded_from(
    tmp_path, data, folder, shared_pictures
):
    module = save_reusable(tmp_path / "module")
    manifest = kt.Manifest.from_csv(shared_pictures / "labels.csv")
    rows = kt.make_dataset(manifest, 32, 4)
    image = keras.Input((32, 32, 3))
    own = keras.Model(image, L.GlobalMaxPooling2D()(L.Conv2D(4, 3)(image)), name="own_network")
    own.trainable = False
    expected = []
    for backbone, name in [(str(module), str(module)), (own, "own_network")]:
        model = kt.build_model(backbone, manifest.tasks, 32)
        cache_features(model, rows, folder, progress=False)
        expected.append(name)
    model = model_of()
    cache_features(model, data, folder, progress=False)
    found = {entry.about["backbone"] for entry in entries(folder)}
    assert found == {*expected, model.name}
