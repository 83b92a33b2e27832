"""Models in two parts: the frozen one and the head."""

import keras
import numpy as np
import pytest

import kerasmtl as kt
from kerasmtl.training.features import (
    check_code,
    features_sha256,
    nodes_of,
    randomness,
    split_model,
    structure_of,
)

L = keras.layers
RNG = np.random.default_rng(0)


def frozen(units, **settings):
    return L.Dense(units, trainable=False, **settings)


def numbers(*shape):
    return RNG.normal(size=shape).astype("float32")


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


def test_layers_that_compute_something_else_in_training():
    assert randomness(L.Dropout(0.5)) and not randomness(L.Dropout(0.0))
    assert randomness(L.RandomFlip()) and not randomness(L.Rescaling(2.0))
    assert randomness(L.BatchNormalization())
    assert not randomness(L.BatchNormalization(trainable=False))
    assert not randomness(L.LSTM(2)) and randomness(L.LSTM(2, recurrent_dropout=0.1))
    assert randomness(L.Bidirectional(L.GRU(2, dropout=0.1)))
    assert randomness(L.SpectralNormalization(L.Dense(2)))
    assert not randomness(keras.ops.add)


def test_the_graph_is_read_as_keras_3_15_keeps_it():
    """Attributes of Keras that are not public: if they change, `nodes_of` must be adapted."""
    layer = frozen(3)
    inputs = keras.Input((3,))
    outputs = layer(layer(inputs) * 2.0)
    found = nodes_of(keras.Model(inputs, outputs))
    assert [call.operation is layer for call in found] == [True, False, True]
    assert found[0].input_tensors[0] is inputs and found[2].outputs[0] is outputs
    assert found[1].input_tensors[0] is found[0].outputs[0]


# ---------------------------------------------------------------- what decides the features


def model_of(units=3, activation="relu", dtype=None, name=None, trainable=False, last=None):
    keras.utils.set_random_seed(0)
    dense = L.Dense(units, activation, dtype=dtype, name=name, trainable=trainable)
    return keras.Sequential([keras.Input((8,)), dense, *([last] if last else [])])


def test_names_and_what_is_trainable_do_not_count():
    assert structure_of(model_of()) == structure_of(model_of(name="other", trainable=True))
    assert features_sha256(model_of()) == features_sha256(model_of(name="other"))


def test_what_decides_the_features_counts():
    shifted = model_of()
    shifted.layers[0].bias.assign_add([0.0, 0.0, 1e-6])
    words = [keras.Sequential([keras.Input((), dtype="string"), L.StringLookup()]) for _ in "ab"]
    words[0].layers[0].adapt(np.array(["a"]))
    words[1].layers[0].adapt(np.array(["b"]))
    models = [
        model_of(),
        shifted,
        model_of(units=4),
        model_of(activation="tanh"),
        model_of(dtype="mixed_float16"),
        *words,
    ]
    assert len({features_sha256(model) for model in models}) == len(models)


@keras.saving.register_keras_serializable("test_features")
class Registered(L.Layer):
    def call(self, inputs):
        return inputs + 1.0


class Unregistered(Registered):
    pass


@pytest.mark.parametrize(
    "layer", [L.Lambda(lambda x: x - 1.0), Unregistered(), L.Activation(lambda x: x)]
)
def test_layers_whose_code_is_not_in_the_config_are_refused(layer):
    with pytest.raises(ValueError, match=f"`model`.*{layer.name}.*cache=True"):
        check_code(model_of(last=layer))


def test_layers_and_functions_of_keras_and_registered_ones_are_known():
    check_code(model_of(last=Registered(), activation=keras.activations.gelu))
    check_code(model_of(activation=L.LeakyReLU(0.3)))
