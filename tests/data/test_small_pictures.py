"""Small files by the batch: each picture is what it is alone, bit for bit."""

import io
import logging
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kerasmtl.data.image_files import mended
from kerasmtl.data.images import SMALL, are_small, likely, plain_sides, prepare_files, prepare_image

SIZE = (24, 32)


def picture(height=24, width=32, seed=0, mode="RGB"):
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype="uint8")
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return image.convert(mode)


def encoded(image, suffix="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


def turned():
    tags = Image.Exif()
    tags[0x0112] = 6
    return encoded(picture(), exif=tags)


def noisy():
    noise = np.random.default_rng(0).integers(0, 256, (200, 240, 3), dtype="uint8")
    return encoded(Image.fromarray(noise), quality=95)  # decoded at a reduced size


PLAIN = {
    "jpeg": encoded(picture()),
    "progressive": encoded(picture(seed=1), progressive=True),
    "grey": encoded(picture(mode="L")),
    "png": encoded(picture(), "PNG"),
    "palette png": encoded(picture().quantize(9), "PNG"),
}
OTHERS = {
    "turned": turned(),
    "cmyk": encoded(picture(mode="CMYK")),
    "gif": encoded(picture().quantize(9), "GIF"),
    "bytes behind": PLAIN["jpeg"] + b"\0",
    "large": noisy(),
}


def gif(frame, screen):
    """A GIF whose only frame is smaller than itself."""
    data = encoded(picture(*frame).quantize(9), "GIF")
    return data[:6] + struct.pack("<HH", *screen[::-1]) + data[10:]


BATCHES = {
    "of the size": list(PLAIN.values()),
    "smaller": [encoded(picture(9, 32)), encoded(picture(24, 7), "PNG"), PLAIN["jpeg"]],
    "larger": [encoded(picture(25, 3)), encoded(picture(50, 70, 2)), encoded(picture(99, 98))],
    "smaller and larger": [encoded(picture(9, 9)), encoded(picture(50, 70))],
    "others": [*PLAIN.values(), *OTHERS.values(), encoded(picture(99, 98))],
    "gifs of smaller frames": [
        gif((20, 20), SIZE),
        gif((20, 20), (40, 40)),
        gif((50, 40), (60, 60)),
    ],
    "a gif alone": [gif((20, 20), SIZE)],
    "a larger gif": [gif((20, 20), (40, 40))],
    "none": [],
}


@pytest.fixture(scope="module", params=["same", "smaller", "larger"])
def together(request):
    """In a data set, as training has it, whatever its pictures were thought to be."""

    def prepare(batch):
        spec = tf.TensorSpec((None,), tf.string)
        data = tf.data.Dataset.from_generator(lambda: [batch], output_signature=spec)
        return next(
            iter(data.map(lambda one: prepare_files(mended(one, one, str), SIZE, request.param)))
        ).numpy()

    return prepare


@pytest.fixture(scope="module")
def alone():
    """As the exported model has it."""
    return tf.function(
        lambda data: prepare_image(data, SIZE), input_signature=[tf.TensorSpec((), tf.string)]
    )


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_is_what_its_pictures_are_alone(together, alone, name):
    images = together(BATCHES[name])
    assert images.shape == (len(BATCHES[name]), *SIZE, 3)
    for image, data in zip(images, BATCHES[name], strict=True):
        assert image.tobytes() == alone(data).numpy().tobytes()


def test_tensorflow_says_nothing(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("tensorflow"), "propagate", True)
    paths = tf.data.Dataset.from_tensors([b"x"])
    size = (23, 31)  # not traced yet
    for name in ("jpeg", "turned"):
        data = (PLAIN | OTHERS)[name]
        files = paths.map(lambda one, data=data: mended(tf.fill(tf.shape(one), data), one, str))
        assert len(list(files.map(lambda each: prepare_files(each, size, "larger")))) == 1
    assert not caplog.records


def test_plain_is_what_can_be_decoded_as_it_is():
    plain, sides = plain_sides(tf.constant(list(PLAIN.values())))
    assert plain.numpy().all() and (sides.numpy() == SIZE).all()
    sizes = [(20, 19), (300, 7), (7, 300)]
    files = [encoded(picture(*size), kind) for size in sizes for kind in ("JPEG", "PNG")]
    plain, sides = plain_sides(tf.constant(files))
    assert plain.numpy().all() and sides.numpy().tolist() == [list(s) for s in sizes for _ in "ab"]
    large, sides = plain_sides(tf.constant([encoded(picture(258, 513))]))
    assert large.numpy().all() and sides.numpy().tolist() == [[258, 513]]
    cut = [data[:-1] for data in PLAIN.values()] + [b"", b"\xff\xd8\xff", PLAIN["jpeg"][:160]]
    others = [OTHERS[name] for name in ("turned", "gif", "bytes behind")]
    plain, _ = plain_sides(tf.constant(cut + others))
    assert not plain.numpy().any()


@pytest.mark.parametrize(
    ("sides", "fit"),
    [((24, 32), "same"), ((24, 31), "smaller"), ((9, 9), "smaller"), ((25, 9), "larger")],
)
def test_the_first_picture_says_how_the_others_fit(tmp_path, sides, fit):
    path = tmp_path / "picture"
    for suffix in ("JPEG", "PNG", "GIF"):
        path.write_bytes(encoded(picture(*sides).quantize(9).convert("RGB"), suffix))
        assert likely(str(path), SIZE) == fit


@pytest.mark.parametrize("data", [b"", b"x", PLAIN["png"][:20], None])
def test_what_is_no_picture_says_nothing(tmp_path, data):
    path = tmp_path / "picture"
    if data is not None:
        path.write_bytes(data)
    assert likely(str(path), SIZE) == "larger"


def test_files_are_small_on_average(tmp_path):
    paths = [str(tmp_path / str(number)) for number in range(200)]
    for number, path in enumerate(paths):
        with open(path, "wb") as file:
            file.truncate(SMALL if number else SMALL + 1)
    assert are_small(paths[1:]) and not are_small(paths[:1])
