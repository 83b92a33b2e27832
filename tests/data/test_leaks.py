"""The same image in two parts is found, however it was saved; different ones are not."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from tables import table_of

from kerasmtl.data.inputs import Image as Images
from kerasmtl.data.leaks import find_leaks
from kerasmtl.data.manifest import Manifest


def scene(seed, size=(160, 120)):
    """An image of rectangles and soft noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 200, (6, 8, 3), dtype="uint8"))
    image = coarse.resize(size, Image.Resampling.BICUBIC)
    for _ in range(6):
        x, y = rng.integers(0, size[0] - 30), rng.integers(0, size[1] - 30)
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        image.paste(colour, (int(x), int(y), int(x) + 30, int(y) + 24))
    return image


@pytest.fixture
def folder(tmp_path):
    """Ten different images."""
    for number in range(10):
        scene(number).save(tmp_path / f"{number}.png")
    return tmp_path


def found(folder, images, parts, near=True, groups=None):
    input, parts = Images(root=folder), np.array(list(parts), dtype=object)
    pairs = input.near_duplicates(images, parts, None) if near else ()
    leaks = find_leaks(parts, input.identities(images), pairs, groups)
    return [(leak.kind, images[leak.first], images[leak.second]) for leak in leaks]


def test_different_images_are_not_leaks(folder):
    images = [f"{number}.png" for number in range(10)]
    assert found(folder, images, ["train", "test"] * 5) == []


def test_the_same_file_under_two_names_is_found(folder):
    (folder / "link.png").symlink_to(folder / "1.png")
    images = ["0.png", "1.png", "./1.png", "link.png"]
    assert found(folder, images, ["train", "train", "test", "val"], near=False) == [
        ("same file", "1.png", "./1.png"),
        ("same file", "1.png", "link.png"),
    ]


def test_the_same_bytes_are_found_without_a_look_at_the_images(folder):
    (folder / "copy.png").write_bytes((folder / "3.png").read_bytes())
    images = ["2.png", "3.png", "copy.png"]
    options = {"near": False}
    assert found(folder, images, "aab", **options) == [("same bytes", "3.png", "copy.png")]
    assert found(folder, images, "aaa", **options) == []


CHANGES = {
    "smaller": lambda image: image.resize((80, 60)),
    "larger": lambda image: image.resize((320, 240)),
    "stretched": lambda image: image.resize((100, 120)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "grey": lambda image: image.convert("L"),
}


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_a_near_duplicate(folder, change, suffix):
    CHANGES[change](scene(4)).save(folder / f"copy.{suffix}")
    images = [*(f"{number}.png" for number in range(10)), f"copy.{suffix}"]
    parts = ["train"] * 10 + ["test"]
    assert found(folder, images, parts) == [("near-duplicate", "4.png", f"copy.{suffix}")]
    assert found(folder, images, ["train"] * 11) == []


def test_plain_images_are_not_taken_for_each_other(tmp_path):
    for number in range(4):
        Image.new("RGB", (50, 50), (60 * number,) * 3).save(tmp_path / f"{number}.png")
    assert found(tmp_path, [f"{number}.png" for number in range(4)], "abab") == []


def test_a_group_in_two_parts_is_named_once_for_each_row(folder):
    images = ["0.png", "1.png", "2.png", "3.png"]
    leaks = found(folder, images, "aabb", groups=np.array(["p", "q", "p", "r"], dtype=object))
    assert leaks == [("same group", "0.png", "2.png")]


def test_near_hashes_are_those_that_a_full_comparison_finds():
    from kerasmtl.data.leaks import FINE_BITS, _near

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (60, 8), dtype="uint8")
    fine = rng.integers(0, 256, (60, 32), dtype="uint8")
    for row in range(0, 60, 2):  # up to three bits of the 64, in any band
        coarse[row + 1] = coarse[row]
        for bit in rng.choice(64, rng.integers(0, 4), replace=False):
            coarse[row + 1, bit // 8] ^= 1 << (bit % 8)
        fine[row + 1] = fine[row]
    parts = np.array(["a", "b"] * 30)
    distance = np.bitwise_count(fine[:, None] ^ fine[None]).sum(-1)
    expected = {
        (a, b)
        for a, b in np.argwhere((distance <= FINE_BITS) & (parts[:, None] != parts)).tolist()
        if a < b
    }
    assert {(min(p), max(p)) for p in _near(coarse, fine, parts)} == expected
    assert len(expected) == 30


def test_rows_of_numbers_in_two_parts_are_found():
    features = np.array([[1, 2], [3, -0.0], [1, 2], [3, 0.0]], "float32")
    table = table_of(features, np.zeros((4, 1)), ["a"])
    leaks = find_leaks(np.array(list("aabb")), table.input.identities(table.values))
    assert [(leak.kind, leak.first, leak.second) for leak in leaks] == [
        ("same row", 0, 2),
        ("same row", 1, 3),
    ]


def test_a_manifest_names_both_sides_of_a_leak(folder):
    scene(4).resize((80, 60)).save(folder / "copy.jpg")
    rows = [
        f"{number}.png,{number % 2},{'val' if number == 0 else 'train'}" for number in range(10)
    ]
    (folder / "labels.csv").write_text("image,a,split\n" + "\n".join(rows) + "\ncopy.jpg,0,test\n")
    calls = []
    manifest = Manifest.from_csv(folder / "labels.csv")
    leaks = manifest.leaks(progress=lambda: calls.append(1))
    assert leaks.to_dict(orient="records") == [
        {
            "kind": "near-duplicate",
            "part": "train",
            "line": 6,
            "name": "4.png",
            "other_part": "test",
            "other_line": 12,
            "other_name": "copy.jpg",
        }
    ]
    assert len(calls) == 11 and manifest.leaks(near=False).empty
