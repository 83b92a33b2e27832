"""Augmentation: only in training, in [0, 1], and a function of seed, epoch and row alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kerasmtl.data.augmentation import (
    ROTATION,
    SHIFT,
    ZOOM,
    SmallChanges,
    _transform,
    as_layer,
    augmenter,
    default_augmentation,
    described,
)
from kerasmtl.data.dataset import make_dataset, source_of
from kerasmtl.data.manifest import Manifest

SIZE = (16, 20)
ROWS = 5


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for row in range(ROWS):
        pixels = rng.integers(0, 256, (4, 5, 3), dtype="uint8")
        image = Image.fromarray(pixels).resize(SIZE[::-1], Image.Resampling.BICUBIC)
        image.save(folder / f"{row}.png")
    lines = [f"{row}.png,{row % 2}" for row in range(ROWS)]
    (folder / "labels.csv").write_text("image,a\n" + "\n".join(lines))
    return Manifest.from_csv(folder / "labels.csv")


@pytest.fixture(scope="module")
def images():
    return tf.constant(np.random.default_rng(1).random((6, *SIZE, 3), dtype="float32"))


def noisy():
    """A layer that is compiled faster than the default."""
    return keras.layers.GaussianNoise(0.2)


def made(manifest, augment=noisy, **options):
    augment = noisy() if augment is noisy else augment
    options = {"batch_size": 3, "training": True, **options}
    return make_dataset(manifest, SIZE, augment=augment, **options)


def epoch(dataset):
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_the_default_changes_images_a_little_and_keeps_them_in_range(images):
    changed = augmenter(as_layer("default", SIZE), 0)(images, 0, 0).numpy()
    assert changed.shape == images.shape and changed.dtype == np.float32
    assert changed.min() >= 0 and changed.max() <= 1
    assert all(np.abs(a - b).mean() > 0.01 for a, b in zip(changed, images, strict=True))
    flat = tf.fill((6, *SIZE, 3), 0.5)
    assert np.abs(augmenter(as_layer("default", SIZE), 0)(flat, 0, 0) - 0.5).max() <= 0.11


def test_left_and_right_are_exchanged_unless_flip_is_off():
    """Of an image that is dark on the left and bright on the right."""
    ramp = np.broadcast_to(np.linspace(0.2, 0.8, SIZE[1], dtype="float32")[:, None], (*SIZE, 3))
    ramps = tf.constant(np.stack([ramp] * 64))

    def flipped(layer):
        changed = augmenter(as_layer(layer, SIZE), 0)(ramps, 0, 0).numpy()
        return (changed[:, :, :4].mean((1, 2, 3)) > changed[:, :, -4:].mean((1, 2, 3))).mean()

    assert 0.25 < flipped(default_augmentation()) < 0.75
    assert flipped(default_augmentation(flip=False)) == 0


def moved(images, angle=0.0, right=0.0, down=0.0, zoom=1.0, mirror=1.0):
    numbers = [tf.fill((len(images),), value) for value in (angle, right, down, zoom, mirror)]
    return keras.ops.image.affine_transform(
        images, _transform(*numbers, *map(float, SIZE)), fill_mode="nearest"
    ).numpy()


def test_the_default_moves_by_what_its_one_transform_says(images):
    x = images.numpy()
    np.testing.assert_allclose(moved(x), x, atol=1e-4)
    np.testing.assert_allclose(moved(x, mirror=-1.0), x[:, :, ::-1], atol=1e-4)
    np.testing.assert_allclose(moved(x, down=1 / SIZE[0])[:, :-1], x[:, 1:], atol=1e-4)
    np.testing.assert_allclose(moved(x, right=-1 / SIZE[1])[:, :, 1:], x[:, :, :-1], atol=1e-4)
    np.testing.assert_allclose(moved(x, angle=np.pi), x[:, ::-1, ::-1], atol=1e-4)
    assert (7.1 < 360 * ROTATION < 7.3) and (SHIFT, ZOOM) == (0.05, 0.1)
    ramp = tf.constant(
        np.broadcast_to(np.linspace(0, 1, SIZE[1])[:, None], (1, *SIZE, 3)), "float32"
    )
    inner = moved(ramp, zoom=0.5)[0, 0, :, 0]
    np.testing.assert_allclose(inner, np.linspace(0.25, 0.75, SIZE[1]), atol=1e-4)


def test_without_training_the_default_changes_nothing_and_it_is_loaded_as_it_was(images):
    layer = SmallChanges(flip=False)
    assert layer(images).numpy().tobytes() == images.numpy().tobytes()
    loaded = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert isinstance(loaded, SmallChanges) and loaded.flip is False


def test_the_same_arguments_give_the_same_images_and_others_others(images):
    layer = as_layer("default", SIZE)
    state = [variable.numpy() for variable in layer.variables]
    augment = augmenter(layer, 3)
    first = augment(images, 2, 5).numpy()
    augment(images, 0, 0)
    assert augment(images, 2, 5).numpy().tobytes() == first.tobytes()
    fresh = augmenter(as_layer("default", SIZE), 3)  # in a graph, and with numbers of its own
    compiled = tf.function(fresh)(images, tf.constant(2, tf.int64), tf.constant(5, tf.int64))
    np.testing.assert_allclose(compiled, first, atol=1e-6)
    others = [augment(images, 1, 5), augment(images, 2, 4), augmenter(layer, 4)(images, 2, 5)]
    assert all(np.abs(other - first).mean() > 0.01 for other in others)
    for before, variable in zip(state, layer.variables, strict=True):
        np.testing.assert_array_equal(before, variable.numpy())


def test_two_layers_of_one_kind_draw_numbers_of_their_own():
    noise = [keras.layers.GaussianNoise(0.05), keras.layers.GaussianNoise(0.05)]
    still = tf.fill((4, *SIZE, 3), 0.5)
    changed = augmenter(as_layer(noise, SIZE), 0)(still, 0, 0).numpy() - 0.5
    assert changed.std() == pytest.approx(0.05 * 2**0.5, rel=0.05)  # twice the same gives 0.1


def test_every_epoch_has_images_of_its_own_whatever_the_cache_and_can_be_repeated(
    manifest, tmp_path
):
    data = made(manifest)
    first, second = epoch(data), epoch(data)
    source_of(data).epoch.assign(1)
    others = [epoch(made(manifest, cache=cache)) for cache in (False, tmp_path)]
    for ours, theirs in ((epoch(data), second), *((other, first) for other in others)):
        for one, other in zip(ours, theirs, strict=True):
            assert one.tobytes() == other.tobytes()
    # In the order of the rows, so that only the augmentation differs.
    unchanged = epoch(made(manifest, None))[0]
    assert np.abs(first[0] - unchanged).mean() > 0.01
    assert first[0].tobytes() != second[0].tobytes()


def test_without_training_nothing_is_augmented_and_the_source_says_so(manifest):
    plain = epoch(make_dataset(manifest, SIZE))[0].tobytes()
    asked = make_dataset(manifest, SIZE, augment="default")
    assert epoch(asked)[0].tobytes() == plain
    assert source_of(asked).random is None and source_of(made(manifest, None)).random is None
    source = source_of(made(manifest))
    assert source.random == "augment='augmentation'"
    assert np.concatenate(list(source.inputs(4).as_numpy_iterator())).tobytes() == plain


def test_a_view_of_a_row_depends_on_seed_view_and_row_alone(manifest):
    source, other = (source_of(made(manifest, seed=seed, cache=False)) for seed in (0, 1))

    def view(number, batch_size, source=source):
        inputs = source.augmented_inputs(number, batch_size)
        return np.concatenate(list(inputs.as_numpy_iterator()))

    first = view(0, 2)
    assert first.shape == (ROWS, *SIZE, 3)
    assert first.tobytes() == view(0, 5).tobytes()
    for different in (view(1, 2), view(0, 2, other)):
        assert np.abs(first - different).mean() > 0.01


def test_what_is_augmented_is_part_of_the_hash(manifest):
    def hashed(augment, seed=0):
        return source_of(made(manifest, augment, seed=seed, cache=False)).content_sha256()

    assert hashed(noisy()) == hashed(noisy()) == hashed([noisy()])
    others = [hashed(None), hashed(noisy(), 1), hashed([noisy(), noisy()])]
    others += [hashed(keras.layers.RandomFlip(mode)) for mode in ("horizontal", "vertical")]
    assert len({hashed(noisy()), *others}) == 6
    assert hashed(None, 0) == hashed(None, 1)


def test_the_switch_of_the_default_is_part_of_its_description():
    first = described(as_layer("default", SIZE))
    assert described(as_layer(default_augmentation(), SIZE)) == first
    assert described(as_layer(default_augmentation(flip=False), SIZE)) != first


def test_weights_of_a_layer_are_part_of_its_description():
    layers = [keras.layers.Rescaling(0.5), keras.layers.BatchNormalization()]
    first = described(as_layer(layers, SIZE))
    layers[1].moving_mean.assign([1.0, 0.0, 0.0])
    assert described(as_layer(layers, SIZE)) != first


def test_weights_of_a_layer_are_used():
    layer = as_layer(keras.layers.Normalization(mean=[0.5] * 3, variance=[0.25] * 3), SIZE)
    dense = as_layer(keras.layers.Dense(3, kernel_initializer="identity"), SIZE)
    images = tf.fill((2, *SIZE, 3), 0.75)
    np.testing.assert_allclose(augmenter(layer, 0)(images, 0, 0), 0.5, atol=1e-5)
    np.testing.assert_allclose(augmenter(dense, 0)(images, 0, 0), 0.75)


def test_half_precision_leaves_images_in_single(manifest):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        assert default_augmentation().layers[0].compute_dtype == "float32"
        images, _ = epoch(made(manifest, keras.layers.RandomFlip()))
    finally:
        keras.config.set_dtype_policy("float32")
    assert images.dtype == np.float32


@pytest.mark.parametrize("augment", ["flip", 3, [], [3], {"a": 1}])
def test_anything_but_layers_is_refused(manifest, augment):
    with pytest.raises(TypeError, match="`augment` must be a Keras layer"):
        made(manifest, augment)


def test_a_layer_that_changes_the_size_is_refused(manifest):
    with pytest.raises(ValueError, match="`augment` must keep the shape.*1, 16, 20.*1, 8, 8"):
        made(manifest, keras.layers.RandomCrop(8, 8))
