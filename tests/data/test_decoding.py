"""Decoding in the graph against Pillow: which way up, palettes, CMYK, WebP, too many pixels."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from kerasmtl.data.images import MOST_PIXELS, decode_image, look_at, prepare_image, prepare_images

ORIENTATIONS = range(1, 9)


def picture(height=24, width=32, seed=0):
    """Smooth colours, so that JPEG keeps them, and that no two ways up look alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype="uint8")
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def noisy(height, width):
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 3))
    pixels = (np.asarray(picture(height, width), "float32") + noise).clip(0, 255)
    return Image.fromarray(pixels.astype("uint8"))


def encoded(image, suffix="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


def exif(orientation, order="<", kind=3, before=0):
    """An EXIF block with the orientation behind other entries; kind 3 is SHORT, 4 is LONG."""
    value = struct.pack(order + ("H" if kind == 3 else "I"), orientation).ljust(4, b"\0")
    one = struct.pack(order + "I", 1)
    entries = [struct.pack(order + "HHI4s", 0x0100 + n, 4, 1, one) for n in range(before)]
    entries.append(struct.pack(order + "HHI4s", 0x0112, kind, 1, value))
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
    body = struct.pack(order + "H", len(entries)) + b"".join(entries) + b"\0" * 4
    return b"Exif\0\0" + head + body


def segment(payload, kind=0xE1):
    return bytes([0xFF, kind]) + struct.pack(">H", len(payload) + 2) + payload


def with_segments(jpeg, *segments):
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def upright(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def close(decoded, expected):
    difference = np.abs(np.asarray(decoded, "float32") - expected)
    return decoded.shape == expected.shape and difference.max() < 14 and difference.mean() < 2.5


@pytest.fixture(scope="module")
def decode():
    return tf.function(decode_image, input_signature=[tf.TensorSpec((), tf.string)])


@pytest.fixture(scope="module")
def together():
    """A batch at 8 x 8 pixels, of at most 5000."""
    return tf.function(
        lambda data: prepare_images(data, (8, 8), 5000),
        input_signature=[tf.TensorSpec((None,), tf.string)],
    )


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_is_shown_as_pillow_shows_it(decode, orientation, order):
    jpeg = encoded(picture(), quality=95)
    data = with_segments(jpeg, segment(exif(orientation, order, before=orientation)))
    assert close(decode(data).numpy(), upright(data))
    turned = np.asarray(decode(jpeg))
    if orientation > 1:
        assert decode(data).shape != turned.shape or np.abs(turned * 1.0 - decode(data)).mean() > 5


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_what_pillow_writes_is_turned_too(decode, orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    data = encoded(picture(), quality=95, exif=tags)
    assert close(decode(data).numpy(), upright(data))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_orientation_is_found_behind_other_segments(decode, orientation):
    jpeg = encoded(picture(), quality=95)
    others = [
        segment(b"http://ns.adobe.com/xap/1.0/\0<x/>"),
        segment(b"x" * 60_000, 0xED),
        segment(b"a comment", 0xFE),
    ]
    data = with_segments(jpeg, *others, segment(exif(orientation, ">")))
    assert close(decode(data).numpy(), upright(data))


@pytest.mark.parametrize("order", "<>")
def test_an_orientation_of_four_bytes_counts(decode, order):
    jpeg = encoded(picture(), quality=95)
    data = with_segments(jpeg, segment(exif(6, order, kind=4)))
    assert decode(data).shape == (32, 24, 3)


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
        b"Exif",
        b"",
    ],
)
def test_exif_that_makes_no_sense_changes_nothing(decode, block):
    jpeg = encoded(picture(), quality=95)
    np.testing.assert_array_equal(decode(with_segments(jpeg, segment(block))), decode(jpeg))


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
def test_a_picture_that_is_turned_is_decoded_at_a_reduced_size_too(orientation):
    data = with_segments(encoded(noisy(330, 470), quality=95), segment(exif(orientation, ">")))
    size = (109, 156) if orientation < 5 else (156, 109)
    small = decode_image(tf.constant(data), size)
    assert small.shape[:2] == ((165, 235) if orientation < 5 else (235, 165))
    expected = Image.fromarray(upright(data)).resize(size[::-1], Image.Resampling.BILINEAR)
    difference = np.abs(prepare_image(tf.constant(data), size) * 255 - np.asarray(expected))
    assert np.mean(difference) < 2.5


def turned_cmyk():
    return with_segments(encoded(picture().convert("CMYK"), quality=95), segment(exif(6)))


def colours(count):
    return picture().convert("P", palette=Image.Palette.ADAPTIVE, colors=count)


def downwards(bmp):
    """The same BMP with its rows from the top: a negative height, and the rows the other way."""
    offset = struct.unpack_from("<I", bmp, 10)[0]
    height = struct.unpack_from("<i", bmp, 22)[0]
    stride = (len(bmp) - offset) // height
    rows = [bmp[offset + n * stride : offset + (n + 1) * stride] for n in range(height)]
    return bmp[:22] + struct.pack("<i", -height) + bmp[26:offset] + b"".join(rows[::-1])


def four_bits(height=5, width=7):
    """A BMP of 16 colours, two pixels a byte, which Pillow reads but does not write."""
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (16, 4), "uint8")
    places = rng.integers(0, 16, (height, 8), "uint8")
    rows = places[:, ::2] * 16 + places[:, 1::2]
    head = struct.pack("<2sIII", b"BM", 54 + 64 + rows.size, 0, 54 + 64)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 4, 0, 0, 0, 0, 16, 0)
    return head + info + palette.tobytes() + rows.tobytes()


EXACT = {
    "palette bmp": lambda: encoded(colours(256), "BMP"),
    "palette bmp of few colours": lambda: encoded(colours(7), "BMP"),
    "palette bmp from the top": lambda: downwards(encoded(colours(256), "BMP")),
    "4-bit bmp": four_bits,
    "black and white bmp": lambda: encoded(picture(5, 13).convert("1"), "BMP"),
    "grey bmp": lambda: encoded(picture().convert("L"), "BMP"),
    "bmp": lambda: encoded(picture(5, 7), "BMP"),
    "bmp from the top": lambda: downwards(encoded(picture(5, 7), "BMP")),
    "webp": lambda: encoded(picture(), "WEBP", lossless=True),
    "lossy webp": lambda: encoded(picture(), "WEBP", quality=80),
    "webp with alpha": lambda: encoded(alpha(), "WEBP", lossless=True, exact=True),
    "lossy webp with alpha": lambda: encoded(alpha(), "WEBP", quality=80, exact=True),
    "palette png": lambda: encoded(colours(16), "PNG"),
    "png with alpha": lambda: encoded(alpha(), "PNG"),
    "gif": lambda: encoded(colours(16), "GIF"),
    "1 x 1 png": lambda: encoded(picture(1, 1), "PNG"),
    "1 x 1 bmp": lambda: encoded(colours(2).resize((1, 1)), "BMP"),
    "1 x 1 webp": lambda: encoded(picture(1, 1), "WEBP", lossless=True),
}


def alpha():
    image = picture()
    image.putalpha(picture(seed=1).convert("L"))
    return image


@pytest.mark.parametrize("name", EXACT)
def test_pixels_are_those_of_pillow(decode, name):
    data = EXACT[name]()
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)


def test_cmyk_is_turned_and_converted(decode):
    assert decode(turned_cmyk()).shape == (32, 24, 3)
    assert close(decode(turned_cmyk()).numpy(), upright(turned_cmyk()))


def test_a_batch_is_what_its_pictures_are_alone(together):
    data = [encoded(picture(seed=1)), turned_cmyk(), *(make() for make in EXACT.values())]
    alone = [prepare_image(tf.constant(one), (8, 8)) for one in data]
    np.testing.assert_allclose(together(tf.constant(data)), np.stack(alone), atol=1e-6)
    assert together(tf.constant([], tf.string)).shape == (0, 8, 8, 3)


PLAIN = encoded(picture(), quality=95)
BAD = {
    "no picture": (b"hello", "not a picture"),
    "empty": (b"", "empty"),
    "one byte": (b"\xff", "not a picture"),
    "start of a jpeg": (PLAIN[:50], "not a picture"),
    "cut jpeg": (PLAIN[:-40], "truncated"),
    "cut jpeg with a whole thumbnail": (
        with_segments(PLAIN, segment(exif(1) + PLAIN))[:-40],
        "truncated",
    ),
    "cut png": (encoded(picture(), "PNG")[:-4], "truncated"),
    "cut bmp": (encoded(colours(16), "BMP")[:-1], "truncated"),
    "cut webp": (encoded(picture(), "WEBP")[:-40], "truncated"),
    "riff": (b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 40, "not a picture"),
    "no size": (encoded(picture(), "GIF")[:6] + b"\0" * 200, "damaged"),
    "large jpeg": (encoded(Image.new("RGB", (101, 50))), "of 50 x 101 pixels, more than 5000"),
    "large png": (encoded(Image.new("1", (101, 50)), "PNG"), "of 50 x 101 pixels"),
    "large gif": (encoded(Image.new("1", (101, 50)), "GIF"), "of 50 x 101 pixels"),
    "large bmp": (encoded(Image.new("1", (101, 50)), "BMP"), "of 50 x 101 pixels"),
    "large webp": (encoded(Image.new("RGB", (101, 50)), "WEBP"), "of 50 x 101 pixels"),
    "large webp, lossless": (
        encoded(Image.new("RGB", (101, 50)), "WEBP", lossless=True),
        "of 50 x 101 pixels",
    ),
    "large webp with alpha": (
        encoded(Image.new("RGBA", (101, 50), (9, 9, 9, 9)), "WEBP"),
        "of 50 x 101 pixels",
    ),
    "animated webp": (
        encoded(picture(), "WEBP", save_all=True, append_images=[picture(seed=1)]),
        "an animated WebP",
    ),
    "compressed bmp": (four_bits()[:30] + b"\2" + four_bits()[31:], "a BMP of a kind"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_decoded_is_named_by_its_number_and_reason(together, name):
    data, reason = BAD[name]
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        together(tf.constant([PLAIN, data, PLAIN]))
    assert f"image_bytes[1] is {reason}" in raised.value.message
    assert "image_bytes[0]" not in raised.value.message


def test_all_bad_pictures_of_a_batch_are_named(together):
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        together(tf.constant([b"", PLAIN, b"x"]))
    assert "image_bytes[0] is empty; image_bytes[2] is not a picture" in raised.value.message


@pytest.mark.parametrize("sides", [(2**16 - 1, 2**16 - 1), (2**31, 2**31), (2**32 - 1, 2**32 - 1)])
def test_a_bomb_is_known_by_its_header(sides):
    png = encoded(Image.new("1", (8, 8)), "PNG")
    bomb = png[:16] + struct.pack(">II", *sides) + png[24:]
    reason = look_at(tf.constant(bomb)).reason.numpy().decode()
    assert reason == f"of {sides[1]} x {sides[0]} pixels, more than {MOST_PIXELS}"
    assert 2 * 89_478_485 == MOST_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


@pytest.mark.slow
def test_twenty_megapixels_that_are_turned(decode):
    data = with_segments(encoded(noisy(4000, 5000), quality=90), segment(exif(6)))
    assert decode(data).shape == (5000, 4000, 3)
    expected = Image.fromarray(upright(data)).resize((64, 96), Image.Resampling.BILINEAR)
    found = np.asarray(prepare_image(tf.constant(data), (96, 64))) * 255
    assert np.abs(found - np.asarray(expected)).mean() < 2.5
