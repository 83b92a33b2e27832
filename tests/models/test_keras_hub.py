"""KerasHub presets as backbones; skipped where keras-hub is not installed."""

import sys

import keras
import numpy as np
import pytest

from kerasmtl.models.backbones import preset


@pytest.fixture(scope="module")
def hub():
    return pytest.importorskip("keras_hub", reason="keras-hub is not installed")


@pytest.fixture(scope="module")
def resnet(hub):
    """A small ResNet with random weights."""
    keras.utils.set_random_seed(0)
    return hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 8],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
    )


CONVERTERS = {
    "by channel": {"scale": (0.017, 0.018, 0.019), "offset": (-2.1, -2.0, -1.8)},
    "one for all": {"scale": 1 / 127.5, "offset": -1.0},
    "none": {},
}


def saved(hub, backbone, folder, **converter):
    backbone.save_to_preset(str(folder))
    hub.layers.ResNetImageConverter(image_size=(32, 32), **converter).save_to_preset(str(folder))
    return f"keras_hub:{folder}"


def images(size=32):
    return np.random.default_rng(0).random((2, size, size, 3), dtype="float32")


@pytest.mark.parametrize("converter", CONVERTERS)
@pytest.mark.slow
def test_the_presets_own_preprocessing_is_built_in(hub, resnet, tmp_path, converter):
    handle = saved(hub, resnet, tmp_path, **CONVERTERS[converter])
    own = hub.layers.ImageConverter.from_preset(str(tmp_path))
    expected = resnet.predict(own(images() * 255.0), verbose=0)
    model = preset(handle)
    assert model.image_size == (32, 32)
    assert model.predict(images(48), verbose=0).shape[0] == 2
    received = model.predict(images(), verbose=0)
    assert expected.ndim == 4 and expected.std() > 0
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


@pytest.mark.slow
def test_a_model_with_a_preset_is_saved_and_loaded(hub, resnet, tmp_path):
    model = preset(saved(hub, resnet, tmp_path / "preset", **CONVERTERS["by channel"]))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        loaded.predict(images(), verbose=0), model.predict(images(), verbose=0)
    )


@pytest.mark.slow
def test_tokens_are_averaged(hub, tmp_path):
    keras.utils.set_random_seed(0)
    vit = hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16
    )
    vit.save_to_preset(str(tmp_path))
    hub.layers.ViTImageConverter(image_size=(32, 32), scale=1 / 255).save_to_preset(str(tmp_path))
    received = preset(f"keras_hub:{tmp_path}").predict(images(), verbose=0)
    expected = vit.predict(images(), verbose=0).mean(axis=1)
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_what_is_not_a_preset_of_images_is_refused(hub, tmp_path):
    with pytest.raises(ValueError, match="`handle`.*KerasHub preset"):
        preset(f"keras_hub:{tmp_path}")
    bert = hub.models.BertBackbone(
        vocabulary_size=10, num_layers=1, num_heads=2, hidden_dim=4, intermediate_dim=4
    )
    bert.save_to_preset(str(tmp_path))
    with pytest.raises(ValueError, match="`handle`.*takes images"):
        preset(f"keras_hub:{tmp_path}")


def test_without_keras_hub_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'kerasmtl\[keras-hub\]'"):
        preset("keras_hub:resnet_50_imagenet")
