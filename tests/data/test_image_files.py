"""Image files that cannot be used: found by Pillow, and by the same rules in the graph."""

import numpy as np
import pytest
import tensorflow as tf
from encoded import DECODED, REFUSED, TURNED, encoded, image, large
from PIL import Image

from kerasmtl.data.image_files import MAX_PIXELS, image_fault
from kerasmtl.data.images import prepare_image
from kerasmtl.data.inputs import Image as Images


@pytest.fixture(scope="module")
def is_decoded():
    prepare = tf.function(
        lambda data: prepare_image(data, (8, 8)), input_signature=[tf.TensorSpec((), tf.string)]
    )

    def run(data):
        try:
            return prepare(data).shape == (8, 8, 3)
        except tf.errors.InvalidArgumentError:
            return False

    return run


@pytest.mark.parametrize("name", DECODED)
def test_what_is_decoded_has_no_fault(is_decoded, name):
    assert image_fault(DECODED[name]) is None and is_decoded(DECODED[name])


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_has_the_same_fault_by_name_and_by_bytes(tmp_path, is_decoded, name):
    data, reason = REFUSED[name]
    (tmp_path / "image").write_bytes(data)
    fault = image_fault(data)
    assert fault == image_fault(str(tmp_path / "image"))
    assert fault.startswith(reason or ("truncated", "unreadable", "damaged"))
    assert not is_decoded(data)


def test_missing_files_and_folders_are_faults(tmp_path):
    assert image_fault(tmp_path / "gone.jpg") == "missing"
    assert image_fault(tmp_path).startswith("unreadable")


def test_the_bound_of_pixels_does_not_depend_on_pillow(monkeypatch):
    rows = MAX_PIXELS // 8000 + 1
    data = encoded(Image.new("1", (8000, rows)), "PNG")
    assert image_fault(data) == f"of more than {MAX_PIXELS} pixels"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert image_fault(data) == f"of {rows} x 8000 pixels, more than {MAX_PIXELS}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["jpeg", "png", "animated gif", "bmp", "webp"])
def test_cut_files_are_refused_by_check_and_graph_alike(is_decoded, name):
    data = DECODED[name]
    for length in np.linspace(0, len(data) - 1, 12, dtype=int):
        part = data[:length]
        assert (image_fault(part) is None) == is_decoded(part), length


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["jpeg", "png", "animated gif", "bmp", "webp"])
def test_no_damage_makes_the_check_itself_fail(name):
    data, rng = DECODED[name], np.random.default_rng(0)
    for _ in range(60):
        damaged = np.frombuffer(data, "uint8").copy()
        damaged[rng.integers(0, len(data), 4)] = rng.integers(0, 256, 4)
        fault = image_fault(damaged.tobytes())
        assert fault is None or len(fault) > 3


def test_the_rows_of_bad_files_are_named(tmp_path):
    (tmp_path / "good").write_bytes(TURNED)
    (tmp_path / "large").write_bytes(large())
    (tmp_path / "cut").write_bytes(encoded(image())[:-9])
    images = np.array([*["good", "large"] * 70, "cut", "gone"])
    calls = []
    input = Images(root=tmp_path)
    faults = input.faults(images, lambda: calls.append(1))
    assert faults == {140: "truncated", 141: "missing"} and len(calls) == 142
    assert input.absent(images) == {141: "missing"}
