"""One picture: every format against Pillow, and every kind of damage."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from kerasmtl.data.image_files import picture_fault
from kerasmtl.data.images import (
    MOST_PIXELS,
    SPARE,
    WORTH,
    as_size,
    decode_image,
    prepare_image,
    prepare_images,
    read_image,
    resize_image,
)

HEIGHT, WIDTH = 24, 32
WHERE = "labels.csv, line 7"


def picture(seed=0, height=HEIGHT, width=WIDTH):
    """Smooth colours, so that JPEG keeps them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype="uint8")
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, suffix, **options):
    buffer = io.BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


def with_alpha():
    image = picture()
    image.putalpha(picture(1).convert("L"))
    return image


def sixteen_bits():
    return Image.fromarray(np.asarray(picture().convert("L")).astype("uint16") * 257)


def frames():
    return {"save_all": True, "append_images": [picture(1), picture(2)]}


def palette():
    return picture().convert("P", palette=Image.Palette.ADAPTIVE)


FORMATS = {
    "jpeg": (picture, "JPEG", {"quality": 95}),
    "progressive jpeg": (picture, "JPEG", {"quality": 95, "progressive": True}),
    "grey jpeg": (lambda: picture().convert("L"), "JPEG", {"quality": 95}),
    "cmyk jpeg": (lambda: picture().convert("CMYK"), "JPEG", {"quality": 95}),
    "png": (picture, "PNG", {}),
    "png with alpha": (with_alpha, "PNG", {}),
    "palette png": (palette, "PNG", {}),
    "palette png with transparency": (palette, "PNG", {"transparency": 3}),
    "grey png": (lambda: picture().convert("L"), "PNG", {}),
    "grey png with alpha": (lambda: with_alpha().convert("LA"), "PNG", {}),
    "black and white png": (lambda: picture().convert("1"), "PNG", {}),
    "16-bit png": (sixteen_bits, "PNG", {}),
    "gif": (palette, "GIF", {}),
    "animated gif": (picture, "GIF", frames()),
    "bmp": (picture, "BMP", {}),
    "bmp with alpha": (with_alpha, "BMP", {}),
    "palette bmp": (palette, "BMP", {}),
    "black and white bmp": (lambda: picture().convert("1"), "BMP", {}),
    "webp": (picture, "WEBP", {"lossless": True}),
    "webp with alpha": (with_alpha, "WEBP", {"lossless": True, "exact": True}),
    "tiff": (picture, "TIFF", {}),
    "cmyk tiff": (lambda: picture().convert("CMYK"), "TIFF", {}),
    "16-bit tiff": (sixteen_bits, "TIFF", {}),
    "16-bit pgm": (sixteen_bits, "PPM", {}),
}


def by_pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        if image.mode.startswith("I"):  # 16 bits
            image = Image.fromarray((np.asarray(image) >> 8).astype("uint8"))
        return np.asarray(image.convert("RGB"), "float32") / 255


def read(tmp_path, data, size=(HEIGHT, WIDTH)):
    """As a data set reads it: in a graph."""
    path = tmp_path / "picture"
    path.write_bytes(data)
    paths = tf.data.Dataset.from_tensors(str(path))
    return next(iter(paths.map(lambda p: read_image(p, size, lambda _: WHERE)))).numpy()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_as_pillow_reads_it(tmp_path, name):
    make, suffix, options = FORMATS[name]
    data = encoded(make(), suffix, **options)
    image = read(tmp_path, data)
    assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.float32
    assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.05
    difference = np.abs(image - by_pillow(data)) * 255
    # TensorFlow's default for JPEG is the fast inverse transform.
    assert difference.max() < (12 if suffix == "JPEG" else 0.5) and difference.mean() < 2
    assert picture_fault(data) is None


SERVED = [name for name, (_, suffix, _) in FORMATS.items() if suffix in ("JPEG", "PNG", "GIF")]


@pytest.mark.parametrize("name", [*SERVED, "bmp", "bmp with alpha"])
def test_the_exported_model_decodes_as_the_data_set_does(tmp_path, name):
    make, suffix, options = FORMATS[name]
    data = encoded(make(), suffix, **options)
    decoded = prepare_image(tf.constant(data), (HEIGHT, WIDTH))
    np.testing.assert_array_equal(decoded, read(tmp_path, data))


@pytest.mark.parametrize("suffix", ["JPEG", "PNG"])
@pytest.mark.parametrize("tail", [b"\0", b"\r\n", b"garbage" * 50])
def test_bytes_after_the_end_do_no_harm(tmp_path, suffix, tail):
    data = encoded(picture(), suffix)
    np.testing.assert_array_equal(read(tmp_path, data + tail), read(tmp_path, data))


@pytest.mark.parametrize("size", [(6, 8), (12, 32), (48, 64), (5, 7)])
def test_resizing_is_that_of_pillow_with_antialiasing(size):
    image = picture()
    channels = [
        channel.convert("F").resize(size[::-1], Image.Resampling.BILINEAR)
        for channel in image.split()
    ]
    expected = np.stack([np.asarray(channel) for channel in channels], -1) / 255
    resized = resize_image(np.asarray(image, "float32") / 255, size)
    np.testing.assert_allclose(resized, expected, atol=1e-4)


@pytest.mark.parametrize("size", [(6, 8), (24, 32), (48, 64), (5, 70), (24, 31)])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_resizing_is_that_of_tensorflow(size, dtype):
    pixels = np.asarray(picture()).astype(dtype)
    expected = tf.image.resize(pixels, size, antialias=True)
    if dtype == "uint8":
        expected = np.minimum(expected * np.float32(1 / 255), 1)
    resized = resize_image(pixels, size)
    np.testing.assert_allclose(resized, expected, rtol=1e-6)
    if min(size[0] - HEIGHT, size[1] - WIDTH) < 0:
        np.testing.assert_array_equal(resized, expected)


@pytest.mark.parametrize("size", [(13, 17), (96, 96), (100, 333), (224, 224), (260, 300)])
def test_a_white_picture_stays_within_the_unit_range_whatever_its_size(tmp_path, size):
    for number, (height, width) in enumerate([(90, 121), (251, 250), (333, 101), (480, 641)]):
        pixels = np.full((height, width, 3), 255, "uint8")
        pixels[: height // 3] = np.random.default_rng(number).integers(250, 256, (width, 3))
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    paths = [str(path) for path in sorted(tmp_path.glob("*.png"))]
    read = tf.stack([read_image(tf.constant(path), size) for path in paths])
    served = prepare_images(tf.stack([tf.io.read_file(path) for path in paths]), size)
    for images in (read.numpy(), served.numpy()):
        assert images.max() == 1.0 and images.min() >= 0


LARGE = (330, 470)


def large():
    """With a little noise, so that it takes more than a few bytes."""
    pixels = np.asarray(picture(0, *LARGE), "float32")
    noise = np.random.default_rng(0).normal(0, 4, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype("uint8"))


@pytest.mark.parametrize(
    ("size", "ratio"),
    [((220, 300), 1), ((109, 156), 2), ((110, 156), 2), ((111, 30), 1), ((30, 157), 1),
     ((54, 78), 4), ((27, 38), 8), ((4, 4), 8), ((400, 600), 1)],
)  # fmt: skip
def test_a_large_jpeg_is_decoded_no_larger_than_needed(size, ratio):
    data = encoded(large(), "JPEG", quality=95)
    assert len(data) > WORTH
    pixels = decode_image(tf.constant(data), size)
    assert pixels.shape[:2] == tuple(-(-side // ratio) for side in LARGE)
    if ratio > 1:
        assert all(side >= SPARE * wanted for side, wanted in zip(pixels.shape, size, strict=False))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("size", [(100, 150), (54, 78), (20, 30)])
def test_decoding_at_a_reduced_size_hardly_changes_the_picture(size, options):
    data = tf.constant(encoded(large(), "JPEG", quality=95, **options))
    full = resize_image(decode_image(data), size)
    difference = np.abs(prepare_image(data, size) - full) * 255
    assert decode_image(data, size).shape[0] < LARGE[0]
    assert difference.mean() < 2.5 and difference.max() < 10


def test_a_jpeg_of_few_bytes_is_decoded_whole():
    data = encoded(Image.new("RGB", LARGE[::-1]), "JPEG")
    assert len(data) < WORTH
    assert decode_image(tf.constant(data), (8, 8)).shape == (*LARGE, 3)


@pytest.mark.parametrize("suffix", ["PNG", "GIF", "BMP"])
def test_only_jpegs_are_decoded_at_a_reduced_size(suffix):
    data = encoded(large(), suffix)
    assert decode_image(tf.constant(data), (8, 8)).shape == (*LARGE, 3)


def test_a_picture_is_read_in_eager_execution_too(tmp_path):
    for suffix in ("PNG", "TIFF"):
        path = tmp_path / suffix
        path.write_bytes(encoded(picture(), suffix))
        image = read_image(tf.constant(str(path)), (HEIGHT, WIDTH))
        np.testing.assert_allclose(image, np.asarray(picture()) / np.float32(255), atol=1e-6)


def turned(suffix):
    tags = Image.Exif()
    tags[0x0112] = 6
    more = {"save_all": True, "append_images": [picture(1)]} if suffix == "MPO" else {}
    return encoded(picture(), suffix, exif=tags, **more)


@pytest.mark.parametrize("tail", [b"", b"\0" * 9])
@pytest.mark.parametrize("suffix", ["JPEG", "MPO"])
def test_a_picture_of_a_telephone_is_turned(tmp_path, suffix, tail):
    data = turned(suffix) + tail
    shown = prepare_image(tf.constant(data), (WIDTH, HEIGHT))
    np.testing.assert_array_equal(read(tmp_path, data, (WIDTH, HEIGHT)), shown)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image), "float32") / 255
    assert np.abs(shown - expected).mean() < 0.01


@pytest.mark.parametrize("make", [lambda: encoded(picture(), "JPEG"), lambda: turned("JPEG")])
def test_a_jpeg_of_too_many_pixels_is_named(tmp_path, make):
    data = make()
    frame = data.index(b"\xff\xc0")
    data = data[: frame + 5] + b"\xff\xff\xff\xff" + data[frame + 9 :]
    with pytest.raises(tf.errors.OpError, match=f"{WHERE} is too large to decode safely"):
        read(tmp_path, data)


def without_size():
    data = encoded(palette(), "GIF")
    return data[:6] + bytes(4) + data[10:]


def small_jpeg():
    """Fewer bytes than any JPEG with tables of its own, such as every encoder writes."""
    data = encoded(Image.new("L", (8, 8)), "JPEG", quality=1)
    tables = data.index(b"\xff\xdb"), data.index(b"\xff\xc0")
    scan = data.index(b"\xff\xda")
    frame = data[tables[1] : data.index(b"\xff\xc4")]
    return data[:2] + data[tables[0] : tables[1]] + frame + data[scan:]


def test_the_bound_of_pixels_does_not_hang_on_pillow(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    data = encoded(Image.new("1", (MOST_PIXELS // 8000 + 1, 8000)), "PNG")
    with pytest.raises(tf.errors.OpError, match=f"{WHERE} is too large to decode safely"):
        read(tmp_path, data)


DAMAGED = {
    "gif without a size": (without_size, "damaged"),
    "jpeg of few bytes": (small_jpeg, "not a picture"),
    "truncated jpeg": (lambda: encoded(picture(), "JPEG")[:-40], "truncated"),
    "truncated png": (lambda: encoded(picture(), "PNG")[:-40], "truncated"),
    "truncated bmp": (lambda: encoded(picture(), "BMP")[:-40], "truncated"),
    "truncated tiff": (lambda: encoded(picture(), "TIFF")[:-400], "truncated|unreadable"),
    "truncated webp": (lambda: encoded(picture(), "WEBP")[:-40], "unreadable|truncated"),
    "start of a jpeg": (lambda: encoded(picture(), "JPEG")[:3], "not a picture"),
    "empty": (lambda: b"", "empty"),
    "one byte": (lambda: b"x", "not a picture"),
    "text": (lambda: b"image,a\nx.jpg,1\n" * 9, "not a picture"),
    "floats": (
        lambda: encoded(Image.fromarray(np.full((9, 9), 0.5, "float32")), "TIFF"),
        "of 32-bit floats",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_whole_picture_raises_an_error_that_says_where_and_why(tmp_path, name):
    make, reason = DAMAGED[name]
    with pytest.raises(tf.errors.OpError, match=f"{WHERE} is ({reason})"):
        read(tmp_path, make())


@pytest.mark.parametrize("name", DAMAGED)
def test_a_fault_is_the_same_for_bytes_and_for_a_path(tmp_path, name):
    make, reason = DAMAGED[name]
    (tmp_path / "picture").write_bytes(make())
    fault = picture_fault(make())
    assert fault == picture_fault(str(tmp_path / "picture"))
    assert fault.startswith(tuple(reason.split("|")))


def test_an_absent_file_and_a_folder_are_faults(tmp_path):
    assert picture_fault(str(tmp_path / "gone.jpg")) == "absent"
    assert picture_fault(str(tmp_path)).startswith("unreadable")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["jpeg", "png", "animated gif", "bmp", "webp", "tiff"])
def test_no_damage_makes_the_check_itself_fail(name):
    make, suffix, options = FORMATS[name]
    data = encoded(make(), suffix, **options)
    rng = np.random.default_rng(0)
    faults = [picture_fault(data[:length]) for length in range(0, len(data) - 40, 37)]
    for _ in range(100):
        damaged = np.frombuffer(data, "uint8").copy()
        damaged[rng.integers(0, len(data), 4)] = rng.integers(0, 256, 4)
        faults.append(picture_fault(damaged.tobytes()))
    assert all(fault is None or fault for fault in faults) and faults[0] == "empty"


@pytest.mark.parametrize(
    ("size", "pair"),
    [(8, (8, 8)), ((8, 9), (8, 9)), ([8, 9], (8, 9)), (np.int64(8), (8, 8))],
)
def test_a_size_is_one_number_or_two(size, pair):
    assert as_size(size) == pair
    assert as_size(np.array(pair)) == pair and all(type(n) is int for n in as_size(size))


@pytest.mark.parametrize("size", [0, -1, (8,), (8, 8, 3), (8, 0), 8.0, (8.5, 8), "88", None, "8"])
def test_anything_else_is_no_size(size):
    with pytest.raises(ValueError, match="`image_size` is no size"):
        as_size(size)
