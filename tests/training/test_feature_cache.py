"""Models in two parts, and the features of the frozen part, computed once."""

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
from kerasmtl.training.feature_cache import (
    FrozenPart,
    cache_features,
    calls_of,
    randomness,
    split_model,
)
from kerasmtl.training.feature_store import entries

L = keras.layers
RNG = np.random.default_rng(0)
ROWS, COLUMNS = 150, 6


def frozen(units, **settings):
    return L.Dense(units, trainable=False, **settings)


def numbers(*shape):
    return RNG.normal(size=shape).astype("float32")


# ---------------------------------------------------------------- split_model


def check_split(model, inputs, shape=None):
    """Assert that head(features(x)) is model(x), bit for bit; return both."""
    features, head = split_model(model)
    if shape is not None:
        assert tuple(features.output.shape) == shape
    expected, received = model(inputs), head(features(inputs))
    keras.tree.assert_same_structure(expected, received)
    for a, b in zip(keras.tree.flatten(expected), keras.tree.flatten(received), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not features.trainable_weights
    assert {id(v) for v in head.trainable_variables} == {id(v) for v in model.trainable_variables}
    return features, head


def test_a_built_model_is_split_behind_its_backbone():
    tasks = [kt.Task("a"), kt.Task("b", kind="regression")]
    model = kt.build_model("tiny", tasks, hidden=[8], dropout=0.2, image_size=64)
    features, head = check_split(model, RNG.random((2, 64, 64, 3), "float32"), (None, 192))
    assert features.name == "kerasmtl_features" and head.name == "kerasmtl_head"
    assert set(head.output) == {"binary", "b"}


def test_a_sequential_model_of_text_is_split():
    words = keras.Input((), dtype="string", name="text")
    lookup = L.TextVectorization(output_sequence_length=3, vocabulary=["a", "b"])
    vectors = L.GlobalAveragePooling1D()(L.Embedding(4, 5, trainable=False)(lookup(words)))
    inputs = keras.ops.convert_to_tensor(["a b", "c"])
    check_split(keras.Model(words, L.Dense(1)(vectors)), inputs, (None, 5))
    check_split(keras.Sequential([keras.Input((8,)), frozen(3), L.Dense(2)]), numbers(4, 8))


def test_several_inputs_outputs_and_border_tensors():
    image, table = keras.Input((4,), name="image"), keras.Input((2,), name="table")
    shared = frozen(4)
    first, second = shared(image), shared(shared(image) + 1.0)
    trained = L.Dense(5)(first)
    outputs = {
        "mixed": L.Dense(1)(L.Concatenate()([trained, second, table])),
        "frozen": first,
        "sum": keras.ops.sum(trained, axis=-1, keepdims=True),
    }
    model = keras.Model({"image": image, "table": table}, outputs)
    features, _ = check_split(model, {"image": numbers(4, 4), "table": numbers(4, 2)})
    assert {name: tensor.shape[1] for name, tensor in features.output.items()} == {
        "features_0": 4,
        "features_1": 4,
        "features_2": 2,
    }


def test_the_head_trains_as_the_whole_model_does():
    def build():
        keras.utils.set_random_seed(0)
        layers = [frozen(6), L.Dropout(0.5, seed=1), L.Dense(4, "relu"), L.Dense(1)]
        return keras.Sequential([keras.Input((8,)), *layers])

    x, y = numbers(32, 8), numbers(32, 1)
    whole, other = build(), build()
    features, head = split_model(other)
    for model, inputs in ((whole, x), (head, features.predict(x, verbose=0))):
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(inputs, y, epochs=2, batch_size=8, shuffle=False, verbose=0)
    for a, b in zip(whole.weights, other.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-6)


def test_the_model_stays_as_it_was(tmp_path):
    model = keras.Sequential([keras.Input((8,)), frozen(3), L.Dense(2, name="last")])
    model = keras.Model(model.inputs[0], model.outputs[0])
    x = numbers(4, 8)
    before, config = model(x), model.get_config()
    split_model(model)
    split_model(model)
    assert model.get_config() == config
    model.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "m.keras")(x), before)


def test_batch_normalization_belongs_to_the_head_unless_it_is_frozen():
    def model(**settings):
        layers = [frozen(3), L.BatchNormalization(**settings), L.Dense(2)]
        return keras.Sequential([keras.Input((8,)), *layers])

    assert len(check_split(model(), numbers(4, 8))[1].layers) == 3
    # Without scale and offset it has nothing to train, and still changes in training.
    assert len(split_model(model(center=False, scale=False))[1].layers) == 3
    assert len(check_split(model(trainable=False), numbers(4, 8))[1].layers) == 2


def test_a_mask_is_not_lost():
    words = keras.Input((7,), dtype="int32")
    vectors = L.Embedding(5, 3, mask_zero=True, trainable=False, name="words")(words)
    inputs = RNG.integers(0, 2, (4, 7))
    inputs[:, 0] = 1
    pooled = L.GlobalAveragePooling1D()(vectors)
    check_split(keras.Model(words, L.Dense(1)(pooled)), inputs, (None, 3))
    with pytest.raises(ValueError, match="'words' passes a mask on"):
        split_model(keras.Model(words, L.LSTM(2)(vectors)))


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([L.Rescaling(2.0), L.Dense(2)], "'dense.*' is trainable"),
        ([L.Dropout(0.1, name="early"), frozen(3), L.Dense(2)], "'early' is random in training"),
        ([frozen(3), frozen(2)], "all of it frozen"),
    ],
)
def test_a_model_without_a_frozen_part_is_refused_with_the_reason(layers, reason):
    with pytest.raises(ValueError, match=f"`model`.*{reason}"):
        split_model(keras.Sequential([keras.Input((8,)), *layers]))


def test_a_layer_inside_a_frozen_backbone_is_named():
    backbone = keras.Sequential([keras.Input((8,)), frozen(3), L.Dropout(0.1, name="deep")])
    model = keras.Sequential([keras.Input((8,)), backbone, L.Dense(2)])
    backbone.trainable = False
    with pytest.raises(ValueError, match=f"'deep' in '{backbone.name}' is random in training"):
        split_model(model)


def test_a_subclassed_model_is_refused():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(ValueError, match="`model` must be a functional"):
        split_model(Own())


def test_randomness():
    assert randomness(L.Dropout(0.5)) and not randomness(L.Dropout(0.0))
    assert randomness(L.RandomFlip()) and not randomness(L.Rescaling(2.0))
    assert randomness(L.BatchNormalization())
    assert not randomness(L.BatchNormalization(trainable=False))
    assert not randomness(L.LSTM(2)) and randomness(L.LSTM(2, recurrent_dropout=0.1))
    assert randomness(L.Bidirectional(L.GRU(2, dropout=0.1)))
    assert randomness(L.SpectralNormalization(L.Dense(2)))
    assert not randomness(keras.ops.add)


def test_the_graph_is_read_as_keras_3_15_keeps_it():
    """Attributes of Keras that are not public: if they change, `calls_of` must be adapted."""
    layer = frozen(3)
    inputs = keras.Input((3,))
    outputs = layer(layer(inputs) * 2.0)
    found = calls_of(keras.Model(inputs, outputs))
    assert [call.operation is layer for call in found] == [True, False, True]
    assert found[0].inputs[0] is inputs and found[2].outputs[0] is outputs
    assert found[1].inputs[0] is found[0].outputs[0]


# ---------------------------------------------------------------- cache_features


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
    same_batches(model, data, cached(model, data, folder))
    assert source_of(cached(model, data, folder)).epoch is source_of(data).epoch


def test_validation_data_of_several_kinds_of_tasks_keep_their_order(tmp_path, folder):
    rows = table(tmp_path, ["a", kt.Task("b", kind="regression")])
    data = dataset(rows, batch_size=64)
    model = model_of()
    found = cached(model, data, folder)
    same_batches(model, data, found, epochs=(0,))
    assert source_of(found).epoch is None


@pytest.mark.parametrize("limit", [feature_cache.MEMORY_LIMIT, 100])
def test_several_features_of_several_types_in_memory_or_on_disk(data, folder, monkeypatch, limit):
    monkeypatch.setattr(feature_cache, "MEMORY_LIMIT", limit)
    inputs = keras.Input((COLUMNS,))
    first = frozen(3, dtype="mixed_float16")(inputs)
    second = L.Reshape((2, 2), dtype="mixed_bfloat16")(frozen(4, dtype="mixed_bfloat16")(first))
    trained = L.Concatenate()([L.Dense(2)(first), L.Flatten()(L.Dense(2)(second)), inputs])
    model = keras.Model(inputs, L.Dense(2)(trained))
    found = cached(model, data, folder)
    assert set(found.element_spec[0]) == {"features_0", "features_1", "features_2"}
    assert found.element_spec[0]["features_1"] == tf.TensorSpec((None, 2, 2), "bfloat16")
    assert source_of(found).in_memory == (limit > 100)
    same_batches(model, data, found)
    head = split_model(model)[1]
    head.compile("sgd", kt.losses.MaskedBinaryCrossentropy(from_logits=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head.fit(found, shuffle=False, verbose=0)


def test_what_is_found_is_computed_for_its_first_rows_alone(data, folder, tmp_path):
    cached(model_of(), data, folder)
    assert Noted.rows >= ROWS
    Noted.rows = 0
    cached(model_of(), data, folder)  # other names of layers
    other_labels = dataset(table(tmp_path, ("p", "q")), batch_size=7)
    cached(model_of(outputs=3), other_labels, folder)
    assert Noted.rows == 2 * feature_cache.TRIED
    assert len(entries(folder)) == 1


def test_what_changes_the_features_computes_them_again(data, folder, tmp_path):
    def computed(model, data=data):
        Noted.rows = 0
        same_batches(model, data, cached(model, data, folder), epochs=(0,))
        return len(entries(folder))

    def changed(change):
        model = model_of()
        change(next(layer for layer in model.layers if isinstance(layer, L.Dense)))
        return model

    assert computed(model_of()) == 1
    assert computed(model_of(seed=1)) == 2
    assert computed(model_of(units=6)) == 3
    assert computed(changed(lambda dense: dense.bias.assign(dense.bias + 1e-6))) == 4
    assert computed(changed(lambda d: setattr(d, "activation", keras.activations.tanh))) == 5
    assert computed(model_of(), dataset(table(tmp_path, change=1e-4))) == 6
    assert computed(model_of()) == 6


def test_one_changed_pixel_computes_them_again(picture_folder, folder):
    keys = []
    for color in (None, None, (1, 2, 3)):
        if color:
            with Image.open(picture_folder / "05.png") as image:
                image.putpixel((3, 3), color)
                image.save(picture_folder / "05.png")
        manifest = kt.Manifest.from_csv(picture_folder / "labels.csv")
        data = kt.make_dataset(manifest, 32, batch_size=5, training=True, seed=1)
        keys.append(source_of(cached(image_model(), data, folder)).key)
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


def shift_by(number):
    return L.Lambda(lambda inputs: inputs - number)


@keras.saving.register_keras_serializable("test_feature_cache")
class Registered(L.Layer):
    def __init__(self, **settings):
        super().__init__(trainable=False, **settings)

    def call(self, inputs):
        return inputs + 1.0


class Unregistered(Registered):
    pass


@pytest.mark.parametrize("layer", [shift_by(1.0), Unregistered(), L.Activation(lambda x: x)])
def test_layers_whose_code_is_not_in_the_config_are_cached_on_demand_alone(data, folder, layer):
    model = model_of(layer=layer)
    with pytest.raises(ValueError, match="`model`.*cache=True"):
        FrozenPart(model)
    same_batches(model, data, cached(model, data, folder), epochs=(0,))
    assert FrozenPart(model_of(layer=Registered())).features


def test_an_interrupted_run_computes_what_is_missing_with_the_same_bits(
    data, folder, tmp_path, monkeypatch
):
    model = model_of()
    run, calls = feature_cache.Step.__call__, []

    def interrupted(self, inputs):
        calls.append(len(inputs))
        if len(calls) == 2 + 4 + 2:  # in the second shard
            raise KeyboardInterrupt
        return run(self, inputs)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(feature_cache.Step, "__call__", interrupted)
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


def test_augmented_images_are_refused_or_kept_in_views(shared_pictures, folder, monkeypatch):
    monkeypatch.setattr(feature_store, "SHARD_ROWS", 16)
    manifest = kt.Manifest.from_csv(shared_pictures / "labels.csv")
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


def test_views_without_augmentation_are_one(data, folder):
    cached(model_of(), data, folder, views=4)
    assert entries(folder)[0].rows == ROWS


def test_wrong_arguments_are_named(data, folder):
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
        ("counts", "changes its variables when it is called: .*hidden"),
    ],
)
def test_features_that_do_not_stay_the_same_are_refused(data, folder, when, reason):
    layer = Hidden(when, name="hidden")
    with pytest.raises(ValueError, match=reason):
        cached(model_of(layer=layer), data, folder)
    assert layer.count.numpy() == 0 and not entries(folder)


def test_features_without_a_fixed_shape_are_refused(shared_pictures, folder):
    manifest = kt.Manifest.from_csv(shared_pictures / "labels.csv")
    inputs = keras.Input((None, None, 3))
    features = L.Conv2D(2, 3, trainable=False)(inputs)
    model = keras.Model(inputs, L.Dense(3)(L.GlobalMaxPooling2D()(L.Conv2D(2, 3)(features))))
    with pytest.raises(ValueError, match="a fixed shape, got float32 .None, None, None, 2."):
        cached(model, kt.make_dataset(manifest, 32), folder)


def test_the_head_ends_where_the_whole_model_does(tmp_path, folder):
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


def test_progress_is_shown_while_computing_alone(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    cache_features(model_of(), data)
    assert f"once: {ROWS} rows" in capsys.readouterr().out
    cache_features(model_of(), data)
    assert capsys.readouterr().out == ""
    assert len(entries(tmp_path / "cache" / "features")) == 1  # the folder by default


def test_an_entry_names_the_backbone(folder, shared_pictures):
    manifest = kt.Manifest.from_csv(shared_pictures / "labels.csv")
    model = kt.build_model("tiny", manifest.tasks, 32)
    cached(model, kt.make_dataset(manifest, 32, 4), folder)
    again = kt.build_model("tiny", manifest.tasks, 32)  # found again, however it was called before
    again(np.zeros((1, 32, 32, 3), "float32"))
    cached(again, kt.make_dataset(manifest, 32, 4), folder)
    assert [entry.about["backbone"] for entry in entries(folder)] == ["tiny"]
