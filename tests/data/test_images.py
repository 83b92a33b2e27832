"""Decoding and resizing in the graph, against Pillow."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from encoded import (
    DECODED,
    EXACT,
    JPEG,
    REFUSED,
    TURNED,
    encoded,
    exif,
    image,
    large,
    segment,
    with_segments,
)
from modules import shared
from PIL import Image, ImageOps

from kerasmtl.data.image_files import MAX_PIXELS
from kerasmtl.data.images import (
    SPARE,
    WORTH,
    as_size,
    decode_image,
    prepare_image,
    prepare_images,
    resize_image,
)

LARGE = (330, 470)


@pytest.fixture(scope="module")
def decode():
    return tf.function(decode_image, input_signature=[tf.TensorSpec((), tf.string)])


@pytest.fixture(scope="module")
def together():
    """A batch at 8 x 8 pixels; an image may have 5000."""
    return tf.function(
        lambda data: prepare_images(data, (8, 8), 5000),
        input_signature=[tf.TensorSpec((None,), tf.string)],
    )


def by_pillow(data):
    with Image.open(io.BytesIO(data)) as opened:
        if opened.mode.startswith("I"):  # 16 bits
            opened = Image.fromarray((np.asarray(opened) >> 8).astype("uint8"))
        return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))


def is_near(decoded, expected):
    if decoded.shape != expected.shape:
        return False
    difference = np.abs(np.asarray(decoded, "float32") - expected)
    return difference.max() < 14 and difference.mean() < 2.5


@pytest.mark.parametrize("name", DECODED)
def test_every_format_is_decoded_as_pillow_decodes_it(decode, name):
    found, expected = decode(DECODED[name]).numpy(), by_pillow(DECODED[name])
    assert found.dtype == np.uint8
    if name in EXACT:
        np.testing.assert_array_equal(found, expected)
    else:
        assert is_near(found, expected)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_shown_as_pillow_shows_it(decode, orientation, order):
    data = with_segments(JPEG, segment(exif(orientation, order, before=orientation)))
    found = decode(data).numpy()
    assert is_near(found, by_pillow(data))
    assert orientation == 1 or not is_near(found, by_pillow(JPEG))


@pytest.mark.parametrize(
    "segments",
    [
        [segment(exif(6, ">", kind=4))],
        [segment(b"http://ns.adobe.com/xap/1.0/\0<x/>"), segment(exif(6)), segment(exif(1))],
        [segment(b"x" * 60_000, 0xED)] * 4 + [segment(b"a comment", 0xFE), segment(exif(6))],
    ],
    ids=["four bytes", "the first of two", "late"],
)
def test_orientation_is_found_wherever_it_is(decode, segments):
    assert decode(with_segments(JPEG, *segments)).shape == (32, 24, 3)


@pytest.mark.parametrize(
    "block",
    [
        exif(0),
        exif(9),
        exif(6)[:12],
        exif(6)[:18],
        exif(6).replace(b"II", b"XX"),
        exif(6)[:10] + struct.pack("<I", 2**31 + 5) + exif(6)[14:],
        b"Exif\0\0",
        b"",
    ],
)
def test_damaged_exif_changes_nothing(decode, block):
    data = with_segments(JPEG, segment(block))
    np.testing.assert_array_equal(decode(data), decode(JPEG))


@pytest.mark.parametrize(
    ("size", "ratio"),
    [((220, 300), 1), ((109, 156), 2), ((110, 156), 2), ((111, 30), 1), ((30, 157), 1),
     ((54, 78), 4), ((27, 38), 8), ((4, 4), 8), ((400, 600), 1)],
)  # fmt: skip
def test_a_large_jpeg_is_decoded_no_larger_than_needed(size, ratio):
    data = encoded(image(*LARGE, noise=4), quality=95)
    assert len(data) > WORTH
    pixels = decode_image(tf.constant(data), size)
    assert pixels.shape[:2] == tuple(-(-side // ratio) for side in LARGE)
    if ratio > 1:
        assert all(side >= SPARE * wanted for side, wanted in zip(pixels.shape, size, strict=False))
    small = encoded(Image.new("RGB", LARGE[::-1]))
    assert len(small) < WORTH and decode_image(tf.constant(small), size).shape == (*LARGE, 3)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_decoding_at_a_reduced_size_hardly_changes_the_image(options, orientation):
    data = encoded(image(*LARGE, noise=4), quality=95, **options)
    data = tf.constant(with_segments(data, segment(exif(orientation))))
    for size in ((100, 150), (20, 30)):
        size = size if orientation < 5 else size[::-1]
        full = decode_image(data)
        difference = np.abs(prepare_image(data, size) - resize_image(full, size)) * 255
        assert decode_image(data, size).shape[0] < full.shape[0]
        assert difference.mean() < 2.5 and difference.max() < 10


@pytest.mark.parametrize("size", [(6, 8), (12, 32), (24, 32), (48, 64), (5, 70)])
def test_resizing_is_that_of_pillow_with_antialiasing(size):
    pixels = image()
    channels = [
        channel.convert("F").resize(size[::-1], Image.Resampling.BILINEAR)
        for channel in pixels.split()
    ]
    expected = np.stack([np.asarray(channel) for channel in channels], -1) / 255
    for given in (np.asarray(pixels), np.asarray(pixels, "float32") / 255):
        resized = resize_image(given, size)
        assert resized.dtype == tf.float32
        np.testing.assert_allclose(resized, expected, atol=1e-4)


@pytest.mark.parametrize("size", [(13, 17), (100, 333), (260, 300)])
def test_white_stays_within_the_unit_range(size):
    rng = np.random.default_rng(0)
    for height, width in [(90, 121), (251, 250), (333, 101), (480, 641)]:
        pixels = np.full((height, width, 3), 255, "uint8")
        pixels[: height // 3] = rng.integers(250, 256, (width, 3))
        images = prepare_images(tf.constant([encoded(Image.fromarray(pixels), "PNG")]), size)
        assert images.numpy().max() == 1.0 and images.numpy().min() >= 0


def test_photographs_are_what_pillow_makes_of_them():
    """Of the real images that were resized and turned: the mean error is below 2.5/255."""
    folder = shared("data", "street_photos", "images")
    for number, path in enumerate(sorted(folder.glob("*.jpg"))[:6]):
        data = path.read_bytes()
        if number % 2:
            with Image.open(path) as photo:
                data = encoded(photo.resize((320, 240)), "PNG" if number == 1 else "JPEG")
        if number > 2:
            data = with_segments(data, segment(exif(8, ">")))
        expected = Image.fromarray(by_pillow(data)).resize((160, 120), Image.Resampling.BILINEAR)
        found = prepare_image(tf.constant(data), (120, 160)).numpy() * 255
        assert np.abs(found - np.asarray(expected)).mean() < 2.5


def test_a_batch_is_what_its_images_are_alone_bit_for_bit(together):
    data = [TURNED, *DECODED.values()]
    alone = [prepare_image(tf.constant(one), (8, 8)) for one in data]
    np.testing.assert_array_equal(together(tf.constant(data)), np.stack(alone))
    assert together(tf.constant([], tf.string)).shape == (0, 8, 8, 3)


BOMBS = {
    "jpeg": large("JPEG", "RGB"),
    "turned jpeg": with_segments(large("JPEG", "RGB"), segment(exif(6))),
    "png": large(),
    "gif": large("GIF"),
    "bmp": large("BMP", "RGB"),
    "webp": large("WEBP", "RGB"),
    "lossless webp": large("WEBP", "RGB", lossless=True),
    "webp with alpha": encoded(Image.new("RGBA", (101, 50), (9, 9, 9, 9)), "WEBP"),
}
BAD = REFUSED | {
    f"large {name}": (data, "of 50 x 101 pixels, more than 5000") for name, data in BOMBS.items()
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_decoded_is_named_by_its_number_and_reason(together, name):
    data, reason = BAD[name]
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        together(tf.constant([JPEG, data, JPEG]))
    if reason is not None:
        assert f"image_bytes[1] is {reason}" in raised.value.message
    assert "image_bytes[0]" not in raised.value.message


@pytest.mark.parametrize("sides", [(2**16 - 1, 2**16 - 1), (2**31, 2**31), (2**32 - 1, 2**32 - 1)])
def test_a_bomb_is_known_by_its_header(sides):
    png = large()
    bomb = png[:16] + struct.pack(">II", *sides) + png[24:]
    reason = f"x is of {sides[1]} x {sides[0]} pixels, more than {MAX_PIXELS}"
    with pytest.raises(tf.errors.InvalidArgumentError, match=reason):
        decode_image(tf.constant(bomb), name="x")


@pytest.mark.parametrize(
    ("size", "pair"),
    [(8, (8, 8)), ((8, 9), (8, 9)), ([8, 9], (8, 9)), (np.int64(8), (8, 8))],
)
def test_a_size_is_one_number_or_two(size, pair):
    assert as_size(size) == pair
    assert as_size(np.array(pair)) == pair and all(type(n) is int for n in as_size(size))


@pytest.mark.parametrize("size", [0, -1, (8,), (8, 8, 3), (8, 0), 8.0, (8.5, 8), "88", None])
def test_anything_else_is_refused_as_a_size(size):
    with pytest.raises(ValueError, match="`image_size`"):
        as_size(size)


@pytest.mark.slow
def test_twenty_megapixels_that_are_turned(decode):
    data = with_segments(encoded(image(4000, 5000, noise=4), quality=90), segment(exif(6)))
    assert decode(data).shape == (5000, 4000, 3)
    expected = Image.fromarray(by_pillow(data)).resize((64, 96), Image.Resampling.BILINEAR)
    found = np.asarray(prepare_image(tf.constant(data), (96, 64))) * 255
    assert np.abs(found - np.asarray(expected)).mean() < 2.5
