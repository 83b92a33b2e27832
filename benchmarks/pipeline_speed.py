"""Images a second through `make_dataset`, against keras.utils.image_dataset_from_directory.

    python benchmarks/pipeline_speed.py [--rounds 9] [--photos FOLDER] [--write]

The same JPEGs, size and batch; each epoch reads and decodes every image (no cache on either side,
files in the operating system's cache), in turn A B B A; medians, and the ratio pair by pair. Small:
images drawn at 128 pixels, and photographs of 1280 x 720 if they are at hand. Large: the same
photographs (or drawn images) enlarged to 1920 x 1080 and 4000 x 3000 with the noise of a sensor.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import kerasmtl as kt

HEADING = "## Input pipeline"
SHARED = Path(__file__).resolve().parents[2] / "shared"
BATCH = 32


def drawn(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Smooth colours with rectangles on them: edges and plain faces."""
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype="uint8"))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).copy()
    for _ in range(12):
        x, y = rng.integers(0, width), rng.integers(0, height)
        w, h = rng.integers(1, width // 3), rng.integers(1, height // 3)
        pixels[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def enlarged(image: Image.Image, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """At another size, with noise of 3/255 as of a sensor."""
    image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, "float32") + rng.normal(0, 3, (height, width, 3)).astype("float32")
    return Image.fromarray(pixels.clip(0, 255).astype("uint8"))


def folder_of(images: list[Image.Image], copies: int, folder: Path) -> float:
    """Two folders of classes with JPEGs of quality 90, and a labels.csv; the mean kB of a file."""
    rows = []
    for number in range(copies * len(images)):
        name = f"{'ab'[number % 2]}/{number:05d}.jpg"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if number < len(images):
            images[number].save(folder / name, "JPEG", quality=90)
        else:
            earlier = number % len(images)
            (folder / name).write_bytes((folder / rows[earlier][0]).read_bytes())
        rows.append((name, number % 2))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "b"), *rows])
    return statistics.mean((folder / name).stat().st_size for name, _ in rows) / 1000


Epoch = Callable[[], tuple[float, float]]  # seconds and seconds of the processor, an image


def epochs(folder: Path, size: int) -> tuple[Epoch, Epoch, Epoch]:
    """One epoch each: ours, Keras', and nothing but TensorFlow's decoder at 1/8."""
    manifest = kt.Manifest.from_csv(folder / "labels.csv", ["b"])
    ours = kt.make_dataset(manifest, size, BATCH, training=True, cache=False)
    theirs = keras.utils.image_dataset_from_directory(
        folder, image_size=(size, size), batch_size=BATCH, shuffle=True, seed=0, verbose=False
    )

    def timed(dataset: tf.data.Dataset) -> Epoch:
        def run() -> tuple[float, float]:
            began, worked = time.perf_counter(), time.process_time()
            seen = sum(int(images.shape[0]) for images, _ in dataset)
            return (time.perf_counter() - began) / seen, (time.process_time() - worked) / seen

        return run

    return timed(ours), timed(theirs), timed(_decoded(manifest.input.paths(manifest.values)))


def _decoded(paths: list[str]) -> tf.data.Dataset:
    """What no pipeline can be faster than that reads JPEGs with this decoder."""

    def decode(path: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = tf.io.decode_jpeg(tf.io.read_file(path), channels=3, ratio=8)
        return tf.shape(pixels), tf.constant(0)

    return tf.data.Dataset.from_tensor_slices(paths).map(decode, tf.data.AUTOTUNE).batch(BATCH)


def compare(folder: Path, size: int, rounds: int) -> tuple[float, float, float, float, float]:
    """Median images a second of both; median ratios of speed and of the processor's time, and of
    the processor's time to that of the decoder at 1/8."""
    ours, theirs, least = epochs(folder, size)
    ours(), theirs(), least()
    pairs = []
    for number in range(rounds):
        if number % 2:
            other = theirs()
            pairs.append((ours(), other, least()))
        else:
            pairs.append((ours(), theirs(), least()))
    own, other, _ = (
        statistics.median(1 / one[0] for one in each) for each in zip(*pairs, strict=True)
    )
    ratios = [statistics.median(b[kind] / a[kind] for a, b, _ in pairs) for kind in (0, 1)]
    return own, other, *ratios, statistics.median(b[1] / c[1] for _, b, c in pairs)


def photographs(folder: Path, count: int) -> list[Image.Image]:
    """Some of the photographs, if they are at hand."""
    paths = sorted(folder.glob("*")) if folder.is_dir() else []
    chosen = np.random.default_rng(0).permutation(len(paths))[:count]
    return [Image.open(paths[number]).convert("RGB") for number in chosen]


def cases(args: argparse.Namespace) -> list[tuple[str, list[Image.Image], int, int]]:
    """Name, images, copies of each, and the size that they are read at."""
    rng = np.random.default_rng(0)
    small = [drawn(rng, 128, 128) for _ in range(200)]
    photos = photographs(Path(args.photos), 24)
    base = photos or [drawn(rng, 1280, 720) for _ in range(24)]
    what = "photographs" if photos else "drawn"
    full = [enlarged(image, 1920, 1080, rng) for image in base]
    camera = [enlarged(image, 4000, 3000, rng) for image in base]
    found = [
        ("small: drawn, 128 x 128", small, 50, 128),
        ("small: drawn, 128 x 128", small, 50, 224),
    ]
    if photos:
        found.append(("photographs, 1280 x 720", photos, 20, 224))
    return [
        *found,
        (f"2 megapixels: {what}, 1920 x 1080", full, 20, 96),
        (f"2 megapixels: {what}, 1920 x 1080", full, 20, 224),
        (f"12 megapixels: {what}, 4000 x 3000", camera, 8, 96),
        (f"12 megapixels: {what}, 4000 x 3000", camera, 8, 224),
    ]


def section(args: argparse.Namespace) -> str:
    """The section of RESULTS.md."""
    lines = [
        "| JPEGs | kB each | read at | make_dataset, images/s | image_dataset_from_directory, "
        "images/s | ratio | by processor time | decoder alone |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, images, copies, size in cases(args):
        with tempfile.TemporaryDirectory() as folder:
            kilobytes = folder_of(images, copies, Path(folder))
            own, other, ratio, worked, most = compare(Path(folder), size, args.rounds)
        lines.append(
            f"| {name} | {kilobytes:.0f} | {size} | {own:,.0f} | {other:,.0f} | {ratio:.2f} | "
            f"{worked:.2f} | {most:.2f} |"
        )
    return "\n\n".join(
        [
            HEADING,
            f"`python benchmarks/pipeline_speed.py --write`, {time.strftime('%Y-%m-%d')}, "
            f"{args.machine}, Python {platform.python_version()}, TensorFlow {tf.__version__}, "
            f"Keras {keras.__version__}; {args.rounds} pairs of epochs without a cache, batches of "
            f"{BATCH}.",
            "\n".join(lines),
            "Wanted: 1.0 or more on small, 1.5 or more on large JPEGs. make_dataset resizes with "
            "antialiasing, image_dataset_from_directory without. `Decoder alone`: by "
            "processor time, the gain of a pipeline that did nothing but TensorFlow's decoding at "
            "1/8; with this decoder there is no more to gain.",
        ]
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--photos", default=str(SHARED / "data" / "street_photos" / "images"))
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores {platform.machine()}")
    parser.add_argument("--write", action="store_true", help="keep the table in RESULTS.md")
    args = parser.parse_args()
    text = section(args)
    print(text)
    if args.write:
        from results import keep

        keep(HEADING, text)


if __name__ == "__main__":
    main()
