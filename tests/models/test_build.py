"""build_model: a plain functional model from every kind of backbone."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from modules import save_dict_module, save_nested_module, save_reusable, save_text_module, shared

import kerasmtl as kt
from kerasmtl.models.applications import application
from kerasmtl.models.backbones import backbone_layers, load_backbone

TASKS = [kt.Task("a"), kt.Task("b"), kt.Task("c")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_reusable(tmp_path_factory.mktemp("module") / "reusable")


def pictures(rows, size):
    return np.random.default_rng(0).random((rows, size, size, 3), dtype="float32")


def map_backbone():
    image = keras.Input((16, 16, 3))
    return keras.Model(image, keras.layers.Conv2D(5, 3)(image), name="own")


def test_a_plain_functional_model_with_one_output_per_task(folder):
    model = kt.build_model(folder.as_posix(), TASKS, image_size=16, hidden=[8, 4], dropout=0.5)
    assert type(model).__name__ == "Functional"
    assert model.input_shape == (None, 16, 16, 3) and model.output_shape == (None, 3)
    p = model.predict(pictures(4, 16), verbose=0)
    assert ((p > 0) & (p < 1)).all()
    assert [layer.units for layer in model.layers if isinstance(layer, keras.layers.Dense)] == [
        8,
        4,
        3,
    ]


def test_a_handle_is_frozen_unless_asked_otherwise(folder):
    assert not backbone_layers(kt.build_model(str(folder), TASKS, 16))[0].trainable
    assert backbone_layers(kt.build_model(str(folder), TASKS, 16, trainable=True))[0].trainable


def test_a_keras_model_is_a_backbone_and_its_map_is_pooled():
    backbone = map_backbone()
    model = kt.build_model(backbone, TASKS)
    assert model.input_shape == (None, 16, 16, 3)  # found, not asked
    assert backbone.trainable
    x = pictures(2, 16)
    pooled = keras.Model(model.input, model.get_layer("head_pool").output)
    np.testing.assert_allclose(
        pooled.predict(x, verbose=0), backbone.predict(x, verbose=0).mean(axis=(1, 2)), atol=1e-5
    )


def test_the_embedded_backbone_by_name():
    model = kt.build_model("tiny", TASKS)
    assert model.input_shape == (None, 128, 128, 3)
    assert kt.build_model("tiny", TASKS, image_size=(64, 96)).input_shape == (None, 64, 96, 3)


def test_a_module_of_fixed_size_sets_the_size_and_refuses_another():
    path = shared("models", "mobilenet_v1_025_224")
    assert kt.build_model(str(path), TASKS).input_shape == (None, 224, 224, 3)
    with pytest.raises(ValueError, match=r"Expected \(224, 224\). Received: \(100, 100\)"):
        kt.build_model(str(path), TASKS, image_size=100)


def test_a_dict_of_outputs_says_how_to_choose(tmp_path):
    folder = save_dict_module(tmp_path / "several")
    with pytest.raises(ValueError, match="output_key"):
        kt.build_model(str(folder), TASKS, 16)
    model = kt.build_model(kt.HubLayer(folder, output_key="map"), TASKS, 16)
    assert model.output_shape == (None, 3)


def test_an_application_is_frozen_or_trainable_as_a_whole():
    assert application("MobileNetV2", weights=None).trainable_variables == []
    assert application("MobileNetV2", weights=None, trainable=True).trainable_variables


def test_an_application_without_network_says_what_to_do_offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise Exception("URL fetch failure on somewhere: None -- no network")

    monkeypatch.setattr(keras.applications, "MobileNetV2", refuse)
    with pytest.raises(ValueError, match="cannot be downloaded.*Offline"):
        load_backbone("MobileNetV2")


def test_probabilities_stay_float32_under_a_mixed_policy(folder):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = kt.build_model(str(folder), TASKS, 16, hidden=[8])
        assert model.output.dtype == "float32"
        assert model.get_layer("head_dense_1").compute_dtype == "float16"
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"tasks": []}, "`tasks` is empty"),
        ({"tasks": ["a", "a"]}, "names a task twice"),
        ({"tasks": "a"}, r"tasks=\['a'\]"),
        ({"hidden": [0]}, "`hidden` is no list of widths"),
        ({"dropout": 1.0}, "`dropout` is no share"),
        ({"image_size": (16,)}, "`image_size` is no size"),
        ({"image_size": -3}, "`image_size` is no size"),
        ({"backbone": keras.layers.Flatten()}, "Expected a handle, a HubLayer or a keras.Model"),
        ({"backbone": "nothing"}, "names nothing"),
    ],
)
def test_wrong_arguments_are_named(folder, arguments, message):
    given = {"backbone": str(folder), "tasks": TASKS, "image_size": 16, **arguments}
    with pytest.raises(ValueError, match=message):
        kt.build_model(**given)


def save_pictures_module(folder, prepare, dtype=tf.float32, size=None):
    """A SavedModel that prepares its pictures and gives features of them, (batch, 4)."""

    class Pictures(tf.Module):
        def __init__(self):
            super().__init__()
            start = tf.random.stateless_normal((3, 3, 3, 4), seed=(7, 8))
            self.kernel = tf.Variable(start, name="conv/kernel")

        @tf.function(input_signature=[tf.TensorSpec((None, size, size, 3), dtype)])
        def __call__(self, pictures):
            x = prepare(tf.cast(pictures, tf.float32))
            return tf.reduce_mean(tf.nn.conv2d(x, self.kernel, 1, "VALID"), axis=(1, 2))

    tf.saved_model.save(Pictures(), str(folder))
    return folder


def features_of(model):
    """The model up to what its backbone gives."""
    (backbone,) = backbone_layers(model)
    return keras.Model(model.input, backbone.output)


LEVELS = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype("uint8")


@pytest.mark.parametrize(
    "prepare, dtype, given",
    [
        (lambda x: x / 127.5 - 1.0, tf.float32, LEVELS.astype("float32")),
        (lambda x: x * 2.0 - 1.0, tf.float32, LEVELS.astype("float32") / 255),
        (lambda x: x / 127.5 - 1.0, tf.uint8, LEVELS),
        (lambda x: x / 127.5 - 1.0, tf.int32, LEVELS.astype("int32")),
    ],
    ids=["0 to 255", "0 to 1", "uint8", "int32"],
)
def test_pictures_are_brought_into_the_range_that_the_graph_tells(tmp_path, prepare, dtype, given):
    folder = save_pictures_module(tmp_path / "module", prepare, dtype, 16)
    expected = tf.saved_model.load(str(folder))(tf.constant(given))
    model = kt.build_model(str(folder), TASKS)
    assert model.input_shape == (None, 16, 16, 3) and model.input.dtype == "float32"
    received = features_of(model)(LEVELS.astype("float32") / 255)
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "low, high", [(-1.0, 1.0), (0.0, 255.0), (0.0, 1.0)], ids=["-1 to 1", "0 to 255", "0 to 1"]
)
def test_a_given_range_overrides_what_is_found(tmp_path, low, high):
    folder = save_pictures_module(tmp_path / "module", lambda x: x / 127.5 - 1.0)
    layer = kt.HubLayer(folder, input_range=(low, high))
    model = kt.build_model(layer, TASKS, 16)
    x = LEVELS.astype("float32") / 255
    expected = tf.saved_model.load(str(folder))(tf.constant(low + (high - low) * x))
    np.testing.assert_allclose(features_of(model)(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_levels_are_told_apart_under_a_mixed_policy(tmp_path, policy):
    folder = save_pictures_module(tmp_path / "module", lambda x: x / 127.5 - 1.0, tf.uint8)
    expected = tf.saved_model.load(str(folder))(tf.constant(LEVELS))
    keras.config.set_dtype_policy(policy)
    try:
        model = features_of(kt.build_model(str(folder), TASKS, 16))
        received = model(LEVELS.astype("float32") / 255)
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)


def test_pixels_between_two_levels_are_rounded(tmp_path):
    folder = save_pictures_module(tmp_path / "module", lambda x: x / 127.5 - 1.0, tf.uint8)
    expected = tf.saved_model.load(str(folder))(tf.constant(LEVELS))
    below = np.maximum(LEVELS.astype("float32") - 0.4, 0.0) / 255
    received = features_of(kt.build_model(str(folder), TASKS, 16))(below)
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)


def test_a_text_module_gets_strings(tmp_path):
    folder = save_text_module(tmp_path / "text")
    model = kt.build_model(str(folder), TASKS)
    assert model.input.dtype == "string" and model.input_shape == (None,)
    texts = tf.constant(["stop go", "car", "unheard of"])
    expected = tf.saved_model.load(str(folder))(texts)
    np.testing.assert_array_equal(features_of(model)(texts), expected)
    assert model(texts).shape == (3, 3)


def test_several_inputs_are_a_dict(tmp_path):
    folder = save_nested_module(tmp_path / "nested")
    model = kt.build_model(kt.HubLayer(folder, output_key="pooled"), TASKS)
    rng = np.random.default_rng(0)
    x = {
        "ids": rng.integers(0, 7, (2, 5)).astype("int32"),
        "weights": rng.random((2, 5), dtype="float32"),
    }
    assert {name: part.dtype for name, part in model.input.items()} == {
        "ids": "int32",
        "weights": "float32",
    }
    module = tf.saved_model.load(str(folder))
    expected = module({name: tf.constant(part) for name, part in x.items()})["pooled"]
    np.testing.assert_array_equal(features_of(model)(x), expected)
    assert model.predict(x, verbose=0).shape == (2, 3)


@pytest.mark.parametrize("save", [save_text_module, save_nested_module])
def test_a_picture_size_for_what_is_no_picture_is_refused(tmp_path, save):
    folder = save(tmp_path / "module")
    layer = kt.HubLayer(folder, output_key="pooled" if save is save_nested_module else None)
    with pytest.raises(ValueError, match="`image_size` is for pictures.*takes none.*Received: 64"):
        kt.build_model(layer, TASKS, image_size=64)
