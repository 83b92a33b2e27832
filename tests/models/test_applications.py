"""Backbones from keras.applications: preprocessing, sizes, and weights from files."""

import keras
import numpy as np
import pandas as pd
import pytest
from modules import twin
from PIL import Image

import kerasmtl as kt
from kerasmtl.models.applications import (
    application,
    application_size,
    is_application,
    parse_application,
)

# One family of each way to preprocess: none, inside the network, [-1, 1], deviations, caffe.
FAMILIES = {
    "efficientnet": "EfficientNetB0",
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3": "MobileNetV3Small",
    "densenet": "DenseNet121",
    "resnet": "ResNet50",
    "nasnet": "NASNetMobile",
}
QUICK = ("mobilenet_v3",)
SIZE = 80  # taken by every family but NASNet


def drawn(size=SIZE):
    """A red disc on slopes of green and blue, uint8: channels and corners all differ."""
    down, right = np.mgrid[:size, :size]
    disc = (down - 30) ** 2 + (right - 50) ** 2 < 400
    return np.stack([np.where(disc, 230, 20), 2 * down, 255 - 3 * right], -1).astype("uint8")


def read(folder, size=SIZE):
    """What kerasmtl makes of the drawn image's file, (1, size, size, 3)."""
    Image.fromarray(drawn(size)).save(folder / "disc.png")
    pd.DataFrame({"image": ["disc.png"], "red": [1]}).to_csv(folder / "labels.csv", index=False)
    dataset = kt.make_dataset(kt.Manifest.from_csv(folder / "labels.csv"), size)
    return next(iter(dataset))[0].numpy()


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return read(tmp_path_factory.mktemp("image"))


def same(received, expected):
    """Equal up to rounding, measured by the features' own size; and not all the same."""
    received, expected = np.asarray(received), np.asarray(expected)
    scale = abs(expected).max()
    assert np.isfinite(scale) and expected.std() > 0
    np.testing.assert_allclose(received, expected, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[] if f in QUICK else pytest.mark.slow) for f in FAMILIES]
)
def test_an_application_sees_what_its_family_expects(tmp_path, family):
    keras.utils.set_random_seed(0)
    backbone = application(FAMILIES[family], weights=None)
    network = next(layer for layer in backbone.layers if isinstance(layer, keras.Model))
    size = backbone.input_shape[1] or SIZE
    pixels = drawn(size)[None].astype("float32")
    prepared = getattr(keras.applications, family).preprocess_input(pixels)
    same(backbone(read(tmp_path, size)), network(prepared))


def test_the_embedded_module_sees_what_its_twin_sees(image):
    layer = kt.HubLayer("tiny")
    same(layer(image), twin(layer)(drawn()[None] / np.float32(255)))


# ---------------------------------------------------------------- weights from a file


@pytest.mark.slow
@pytest.mark.parametrize("of", ["the network", "the backbone"])
def test_weights_come_from_a_file(image, tmp_path, of):
    keras.utils.set_random_seed(0)
    saved = application("MobileNetV3Small", weights=None)
    network = next(layer for layer in saved.layers if isinstance(layer, keras.Model))
    path = tmp_path / "own.weights.h5"
    (network if of == "the network" else saved).save_weights(path)
    keras.utils.set_random_seed(1)
    other = application("MobileNetV3Small", weights=None)
    loaded = application("MobileNetV3Small", weights=path)
    assert loaded.trainable_variables == []
    np.testing.assert_array_equal(loaded(image), saved(image))
    assert not np.allclose(other(image), saved(image), rtol=1e-2, atol=0)


@pytest.mark.slow
def test_efficientnet_files_of_keras_divide_by_the_whole_deviation(image, tmp_path):
    """As the network does that Keras builds with weights="imagenet", by one more layer."""
    mean, spread = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    keras.utils.set_random_seed(0)
    network = keras.applications.EfficientNetB0(include_top=False, weights=None, pooling="avg")
    expected = network((drawn()[None] / np.float32(255) - mean) / spread * 255)
    normalization = next(
        layer for layer in network.layers if isinstance(layer, keras.layers.Normalization)
    )
    normalization.load_own_variables({"0": mean, "1": spread, "2": np.int32(0)})
    network.save_weights(tmp_path / "published.weights.h5")
    loaded = application("EfficientNetB0", weights=tmp_path / "published.weights.h5")
    same(loaded(image), expected)


@pytest.mark.parametrize(
    "wrong", [pytest.param("another model's", marks=pytest.mark.slow), "no weights", "absent"]
)
def test_a_wrong_file_is_named(tmp_path, wrong):
    path = tmp_path / "wrong.weights.h5"
    if wrong == "another model's":
        application("MobileNet", weights=None).save_weights(path)
    elif wrong == "no weights":
        path.write_bytes(b"nothing of the sort")
    with pytest.raises(ValueError, match="`weights`.*MobileNetV2.*wrong.weights.h5"):
        application("MobileNetV2", weights=path)


@pytest.mark.parametrize(
    "handle, parsed",
    [
        ("MobileNetV2", ("MobileNetV2", "imagenet")),
        ("MobileNetV2:a/b.weights.h5", ("MobileNetV2", "a/b.weights.h5")),
        ("MobileNetV2:C:/b.h5", ("MobileNetV2", "C:/b.h5")),
        ("tiny", None),
        ("https://tfhub.dev/x/1", None),
        ("keras_hub:resnet_50_imagenet", None),
        ("MobileNetV2/folder", None),
    ],
)
def test_a_handle_may_name_the_weights(handle, parsed):
    assert parse_application(handle) == parsed


def test_a_colon_without_a_file_is_refused():
    with pytest.raises(ValueError, match="`handle`"):
        parse_application("MobileNetV2:")


def test_every_application_has_its_preprocessing(monkeypatch):
    network = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(1, 1)])
    names = [name for name in dir(keras.applications) if is_application(name)]
    for name in names:
        monkeypatch.setattr(keras.applications, name, lambda **kwargs: network)
        assert application(name, weights=None).name == name.lower()
    assert len(names) >= 40


@pytest.mark.slow
def test_an_application_has_the_size_it_was_trained_for():
    assert application_size("MobileNetV2") == (224, 224)
    for name in ("Xception", "InceptionV3", "EfficientNetB1"):
        built = getattr(keras.applications, name)(weights=None)
        assert built.input_shape[1:3] == application_size(name)
