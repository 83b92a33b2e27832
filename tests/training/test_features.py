"""A model in two: the frozen part and its head, against the model itself."""

import keras
import numpy as np
import pytest

import kerasmtl as kt
from kerasmtl.training.feature_cache import calls_of, randomness, split_model

L = keras.layers
RNG = np.random.default_rng(0)


def check(model, inputs, shape=None):
    """head(features(x)) is model(x), bit for bit; returns both."""
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


def rows(*shape):
    return RNG.normal(size=shape).astype("float32")


def frozen(units, **settings):
    return L.Dense(units, trainable=False, **settings)


def test_a_built_model_is_cut_behind_its_backbone():
    model = kt.build_model("tiny", ["a", "b"], hidden=[8], dropout=0.2, image_size=64)
    features, head = check(model, RNG.random((2, 64, 64, 3), "float32"), (None, 192))
    assert features.name == "kerasmtl_features" and head.name == "kerasmtl_head"
    assert [layer.name for layer in head.layers[1:]] == ["head_dense_1", "head_dropout_1", "head"]


def test_tasks_of_several_kinds_stay_a_dict():
    tasks = [kt.Task("a"), kt.Task("b", kind="regression")]
    model = kt.build_model("tiny", tasks, image_size=64)
    _, head = check(model, RNG.random((2, 64, 64, 3), "float32"))
    assert set(head.output) == {"binary", "b"}


def test_keras_applications_are_cut_behind_their_pooling():
    backbone = keras.applications.MobileNetV3Small(
        include_top=False, weights=None, input_shape=(64, 64, 3)
    )
    model = kt.build_model(backbone, ["a"], image_size=64, trainable=False)
    check(model, RNG.random((2, 64, 64, 3), "float32"), (None, 576))


def test_a_sequential_model():
    check(keras.Sequential([keras.Input((8,)), frozen(3), L.Dense(2)]), rows(4, 8), (None, 3))


def test_text_as_input():
    words = keras.Input((), dtype="string", name="text")
    lookup = L.TextVectorization(output_sequence_length=3, vocabulary=["a", "b"])
    vectors = L.GlobalAveragePooling1D()(L.Embedding(4, 5, trainable=False)(lookup(words)))
    inputs = keras.ops.convert_to_tensor(["a b", "c"])
    check(keras.Model(words, L.Dense(1)(vectors)), inputs, (None, 5))


def test_several_inputs_outputs_and_border_tensors():
    picture, table = keras.Input((4,), name="picture"), keras.Input((2,), name="table")
    shared = frozen(4)
    first, second = shared(picture), shared(shared(picture) + 1.0)
    trained = L.Dense(5)(first)
    outputs = {
        "mixed": L.Dense(1)(L.Concatenate()([trained, second, table])),
        "frozen": first,
        "sum": keras.ops.sum(trained, axis=-1, keepdims=True),
    }
    model = keras.Model({"picture": picture, "table": table}, outputs)
    features, head = check(model, {"picture": rows(4, 4), "table": rows(4, 2)})
    assert {name: t.shape[1] for name, t in features.output.items()} == {
        "features_0": 4,
        "features_1": 4,
        "features_2": 2,
    }


def test_training_the_head_trains_the_model():
    model = keras.Sequential([keras.Input((8,)), frozen(6), L.Dense(2)])
    x, y = rows(16, 8), rows(16, 2)
    features, head = split_model(model)
    kept = model.layers[0].kernel.numpy()
    head.compile("sgd", "mse")
    before = np.mean((model(x) - y) ** 2)
    head.fit(features(x), y, epochs=3, verbose=0)
    assert np.mean((model(x) - y) ** 2) < before
    np.testing.assert_array_equal(model.layers[0].kernel.numpy(), kept)


def test_the_model_is_as_it_was(tmp_path):
    model = keras.Sequential([keras.Input((8,)), frozen(3), L.Dense(2, name="last")])
    model = keras.Model(model.inputs[0], model.outputs[0])
    x = rows(4, 8)
    before, config = model(x), model.get_config()
    split_model(model)
    split_model(model)
    assert model.get_config() == config
    model.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "m.keras")(x), before)


def test_a_batch_normalization_that_is_trained_stays_in_the_head():
    def model(**settings):
        return keras.Sequential(
            [keras.Input((8,)), frozen(3), L.BatchNormalization(**settings), L.Dense(2)]
        )

    assert len(check(model(), rows(4, 8))[1].layers) == 3
    # Without scale and offset it has nothing to train, and yet changes in training.
    assert len(split_model(model(center=False, scale=False))[1].layers) == 3
    assert len(check(model(trainable=False), rows(4, 8))[1].layers) == 2


def test_a_mask_is_not_lost():
    words = keras.Input((7,), dtype="int32")
    vectors = L.Embedding(5, 3, mask_zero=True, trainable=False, name="words")(words)
    inputs = RNG.integers(0, 2, (4, 7))
    inputs[:, 0] = 1
    pooled = L.GlobalAveragePooling1D()(vectors)
    check(keras.Model(words, L.Dense(1)(pooled)), inputs, (None, 3))
    with pytest.raises(ValueError, match="'words' hands a mask on"):
        split_model(keras.Model(words, L.LSTM(2)(vectors)))


def test_the_head_trains_as_the_whole_does():
    def build():
        keras.utils.set_random_seed(0)
        layers = [frozen(6), L.Dropout(0.5, seed=1), L.Dense(4, "relu"), L.Dense(1)]
        model = keras.Sequential([keras.Input((8,)), *layers])
        return model

    x, y = rows(32, 8), rows(32, 1)
    whole, other = build(), build()
    features, head = split_model(other)
    whole.compile(keras.optimizers.SGD(0.1), "mse")
    head.compile(keras.optimizers.SGD(0.1), "mse")
    whole.fit(x, y, epochs=2, batch_size=8, shuffle=False, verbose=0)
    head.fit(features.predict(x, verbose=0), y, epochs=2, batch_size=8, shuffle=False, verbose=0)
    for a, b in zip(whole.weights, other.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([L.Dense(3), L.Dense(2)], "'dense.*' is trainable"),
        ([L.Rescaling(2.0), L.Dense(2)], "'dense.*' is trainable"),
        ([L.Dropout(0.1, name="early"), frozen(3), L.Dense(2)], "'early' is random in training"),
        ([L.GaussianNoise(0.1, name="n"), frozen(3), L.Dense(2)], "'n' is random in training"),
        ([frozen(3), frozen(2)], "no head to train"),
    ],
)
def test_no_frozen_part_is_refused_with_the_reason(layers, reason):
    with pytest.raises(ValueError, match=reason):
        split_model(keras.Sequential([keras.Input((8,)), *layers]))


def test_what_is_random_inside_of_a_frozen_backbone_is_named():
    backbone = keras.Sequential([keras.Input((8,)), frozen(3), L.Dropout(0.1, name="deep")])
    model = keras.Sequential([keras.Input((8,)), backbone, L.Dense(2)])
    backbone.trainable = False
    with pytest.raises(ValueError, match=f"'deep' in '{backbone.name}' is random in training"):
        split_model(model)


def test_an_unfrozen_backbone_is_named():
    model = kt.build_model("tiny", ["a"], image_size=64, trainable=True)
    with pytest.raises(ValueError, match="'hub_layer.*' is trainable"):
        split_model(model)
    kt.freeze(model)
    assert split_model(model)[0].output.shape == (None, 192)


def test_a_subclassed_model_is_refused():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(ValueError, match="no graph of layers"):
        split_model(Own())


def test_what_is_random():
    assert randomness(L.Dropout(0.5)) and not randomness(L.Dropout(0.0))
    assert randomness(L.RandomFlip()) and not randomness(L.Rescaling(2.0))
    assert randomness(L.BatchNormalization()) and not randomness(
        L.BatchNormalization(trainable=False)
    )
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
