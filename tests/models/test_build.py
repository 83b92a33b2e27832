"""build_model: a plain functional model from every kind of backbone, for tasks of any kind."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from modules import save_dict_module, save_nested_module, save_reusable, save_text_module

import kerasmtl as kt
from kerasmtl.models.backbones import backbone_layers
from kerasmtl.models.build import check_outputs

TASKS = [kt.Task("a"), kt.Task("b"), kt.Task("c")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_reusable(tmp_path_factory.mktemp("module") / "reusable")


def images(rows, size):
    return np.random.default_rng(0).random((rows, size, size, 3), dtype="float32")


def map_backbone():
    image = keras.Input((16, 16, 3))
    return keras.Model(image, keras.layers.Conv2D(5, 3)(image), name="own")


def test_a_plain_functional_model_with_one_output_per_task(folder):
    model = kt.build_model(folder.as_posix(), TASKS, image_size=16, hidden=[8, 4], dropout=0.5)
    assert type(model).__name__ == "Functional"
    assert model.input_shape == (None, 16, 16, 3) and model.output_shape == (None, 3)
    p = model.predict(images(4, 16), verbose=0)
    assert ((p > 0) & (p < 1)).all()
    assert [layer.units for layer in model.layers if isinstance(layer, keras.layers.Dense)] == [
        8,
        4,
        3,
    ]


def test_a_keras_model_is_a_backbone_and_its_map_is_pooled():
    backbone = map_backbone()
    model = kt.build_model(backbone, TASKS)
    assert model.input_shape == (None, 16, 16, 3)  # found, not asked
    assert backbone.trainable
    x = images(2, 16)
    pooled = keras.Model(model.input, model.get_layer("head_pool").output)
    np.testing.assert_allclose(
        pooled.predict(x, verbose=0), backbone.predict(x, verbose=0).mean(axis=(1, 2)), atol=1e-5
    )


def test_a_module_of_fixed_size_sets_the_size_and_refuses_another(tmp_path):
    layer = kt.HubLayer(save_reusable(tmp_path / "module", 12), input_range=(0, 1))
    assert kt.build_model(layer, TASKS).input_shape == (None, 12, 12, 3)
    with pytest.raises(ValueError, match=r"`image_size`.*\(12, 12\).*got \(10, 10\)"):
        kt.build_model(layer, TASKS, image_size=10)


def test_a_dict_of_outputs_says_how_to_choose(tmp_path):
    folder = save_dict_module(tmp_path / "several")
    with pytest.raises(ValueError, match="output_key"):
        kt.build_model(str(folder), TASKS, 16)
    model = kt.build_model(kt.HubLayer(folder, output_key="map"), TASKS, 16)
    assert model.output_shape == (None, 3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"tasks": []}, "`tasks`"),
        ({"tasks": ["a", "a"]}, "`tasks`"),
        ({"tasks": "a"}, "`tasks`"),
        ({"hidden": [0]}, "`hidden`"),
        ({"dropout": 1.0}, "`dropout`"),
        ({"image_size": (16,)}, "`image_size`"),
        ({"image_size": -3}, "`image_size`"),
        ({"backbone": keras.layers.Flatten()}, "`backbone`.*HubLayer"),
        ({"backbone": "nothing"}, "`handle`"),
    ],
)
def test_wrong_arguments_are_named(folder, arguments, message):
    given = {"backbone": str(folder), "tasks": TASKS, "image_size": 16, **arguments}
    with pytest.raises(ValueError, match=message):
        kt.build_model(**given)


def save_image_module(folder, prepare, dtype=tf.float32, size=None):
    """A SavedModel that prepares its images and gives features of them, (batch, 4)."""

    class Images(tf.Module):
        def __init__(self):
            super().__init__()
            start = tf.random.stateless_normal((3, 3, 3, 4), seed=(7, 8))
            self.kernel = tf.Variable(start, name="conv/kernel")

        @tf.function(input_signature=[tf.TensorSpec((None, size, size, 3), dtype)])
        def __call__(self, images):
            x = prepare(tf.cast(images, tf.float32))
            return tf.reduce_mean(tf.nn.conv2d(x, self.kernel, 1, "VALID"), axis=(1, 2))

    tf.saved_model.save(Images(), str(folder))
    return folder


def features_of(model):
    """The model up to what its backbone gives."""
    (backbone,) = backbone_layers(model)
    return keras.Model(model.input, backbone.output)


LEVELS = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype("uint8")


@pytest.mark.parametrize("dtype, given", [(tf.uint8, None), (tf.int32, (0, 1))])
def test_a_module_of_integer_pixels_gets_0_to_255(tmp_path, dtype, given):
    folder = save_image_module(tmp_path / "module", lambda x: x / 127.5 - 1.0, dtype, 16)
    expected = tf.saved_model.load(str(folder))(tf.constant(LEVELS, dtype))
    model = kt.build_model(kt.HubLayer(folder, input_range=given), TASKS)
    assert model.input_shape == (None, 16, 16, 3) and model.input.dtype == "float32"
    near = np.maximum(LEVELS.astype("float32") - 0.4, 0.0) / 255  # is rounded
    received = features_of(model)(near)
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("low, high", [(-1.0, 1.0), (0.0, 1.0)])
def test_images_are_scaled_to_the_given_range(tmp_path, low, high):
    folder = save_image_module(tmp_path / "module", lambda x: x / 127.5 - 1.0)
    layer = kt.load_backbone(str(folder), input_range=(low, high))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = kt.build_model(layer, TASKS, 16)
    x = LEVELS.astype("float32") / 255
    expected = tf.saved_model.load(str(folder))(tf.constant(low + (high - low) * x))
    np.testing.assert_allclose(features_of(model)(x), expected, rtol=1e-4, atol=1e-4)


def test_a_range_that_is_only_assumed_is_not_silent(folder):
    with pytest.warns(UserWarning, match=r"`input_range`.*\[0, 1\]"):
        kt.build_model(str(folder), TASKS, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kt.build_model("tiny", TASKS, 64)


def test_a_range_is_for_saved_models_alone():
    with pytest.raises(ValueError, match="`input_range`"):
        kt.load_backbone("MobileNetV2", input_range=(0, 255))


def test_levels_are_told_apart_under_a_mixed_policy(tmp_path):
    folder = save_image_module(tmp_path / "module", lambda x: x / 127.5 - 1.0, tf.uint8)
    expected = tf.saved_model.load(str(folder))(tf.constant(LEVELS))
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = features_of(kt.build_model(str(folder), TASKS, 16))
        received = model(LEVELS.astype("float32") / 255)
    finally:
        keras.config.set_dtype_policy("float32")
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


def test_an_image_size_for_anything_else_is_refused(tmp_path):
    for backbone in (kt.HubLayer(save_text_module(tmp_path / "module")), kt.backbones.mlp(3)):
        with pytest.raises(ValueError, match="`image_size`.*got 64"):
            kt.build_model(backbone, TASKS, image_size=64)


# ---------------------------------------------------------------- tasks of several kinds

MIXED = [
    kt.Task("a"),
    kt.Task("grade/level", "multiclass", classes=("low", "mid", "high")),
    kt.Task("b"),
    kt.Task("hours", "regression"),
]
SHAPES = {"binary": (None, 2), "grade/level": (None, 3), "hours": (None, 1)}


def model_of(tasks, **options):
    keras.utils.set_random_seed(0)
    return kt.build_model(kt.backbones.mlp(4, hidden=[8]), tasks, **options)


def shapes_of(model):
    return {key: tuple(output.shape) for key, output in model.output.items()}


def rows_of_numbers(count=5):
    return np.random.default_rng(0).normal(size=(count, 4)).astype("float32")


def test_mixed_kinds_have_an_output_each_and_share_the_binary_one():
    model = model_of(MIXED, hidden=[6], dropout=0.2)
    assert shapes_of(model) == SHAPES
    p = model.predict(rows_of_numbers(), verbose=0)
    assert ((p["binary"] > 0) & (p["binary"] < 1)).all()
    np.testing.assert_allclose(p["grade/level"].sum(axis=1), 1, rtol=1e-5)
    far = model.predict(1e4 * rows_of_numbers(), verbose=0)["hours"]
    assert np.abs(far).max() > 10  # linear, not squashed


def test_outputs_are_float32_under_a_mixed_policy():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = model_of(MIXED)
        assert {output.dtype for output in model.output.values()} == {"float32"}
    finally:
        keras.config.set_dtype_policy("float32")


def test_classes_that_are_not_known_yet_are_asked_for():
    with pytest.raises(ValueError, match="`classes`"):
        model_of([kt.Task("c", "multiclass")])


def test_tasks_that_differ_from_the_outputs_are_named():
    check_outputs(model_of(MIXED), MIXED)
    with pytest.raises(ValueError, match=r"`tasks`.*need \{'binary': \(None, 2\)"):
        check_outputs(model_of([kt.Task("a")]), MIXED)
    with pytest.raises(ValueError, match=r"Outputs without a task: \['grade/level', 'hours'\]"):
        check_outputs(model_of(MIXED), [kt.Task("a"), kt.Task("b")])
    with pytest.raises(ValueError, match=r"Outputs without a task: \[1\]"):
        check_outputs(model_of([kt.Task("a"), kt.Task("b")]), [kt.Task("a")])
