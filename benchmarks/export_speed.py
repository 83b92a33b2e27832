"""The exported signature on image bytes against decoding and the bare graph, at batch 32.

    python benchmarks/export_speed.py [--rounds 15] [--write]

"Decode + bare graph" is two calls: TensorFlow's JPEG decoder, told at which ratio, and kerasmtl's
resizing for the batch, with no look at headers, no other format and no orientation; then the Keras
model as a tf.function. Both run in one process by turns; weights do not change the speed.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from PIL import Image

import kerasmtl as kt
from kerasmtl.data.images import PARALLEL, RATIOS, SPARE, resize_image

HEADING = "## Export: the bytes signature against decoding and the bare graph"
IMAGES = Path(__file__).resolve().parent.parent / "datasets" / "street_scenes" / "images"
TASKS = ["pedestrian", "stop_sign", "traffic_light"]
BATCH = 32
BATCHES = 4


def batches(sides: tuple[int, int] | None) -> list[tf.Tensor]:
    """JPEGs of the street scenes, as they are or enlarged to width and height."""
    files = sorted(IMAGES.glob("*.jpg"))[: BATCH * BATCHES]

    def content(file: Path) -> bytes:
        if sides is None:
            return file.read_bytes()
        buffer = io.BytesIO()
        Image.open(file).convert("RGB").resize(sides).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()

    data = [content(file) for file in files]
    return [tf.constant(data[at : at + BATCH]) for at in range(0, len(data), BATCH)]


def apart(model: keras.Model, sides: tuple[int, int] | None) -> Callable[[tf.Tensor], object]:
    """Decoding, then the model: two functions; JPEGs are decoded at the ratio that fits `sides`."""
    size = model.input_shape[1:3]
    low = min(sides or (0, 0))
    ratio = max(ratio for ratio in (1, *RATIOS) if ratio == 1 or low // ratio >= size[0] * SPARE)

    def one(data: tf.Tensor) -> tf.Tensor:
        return resize_image(tf.io.decode_jpeg(data, channels=3, ratio=ratio), size)

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def decode(data: tf.Tensor) -> tf.Tensor:
        spec = tf.TensorSpec((*size, 3), tf.float32)
        return tf.map_fn(one, data, fn_output_signature=spec, parallel_iterations=PARALLEL)

    @tf.function(input_signature=[tf.TensorSpec((None, *size, 3), tf.float32)])
    def bare(images: tf.Tensor) -> tf.Tensor:
        return model(images, training=False)

    return lambda data: bare(decode(data))


def speed(call: Callable[[tf.Tensor], object], data: list[tf.Tensor]) -> float:
    """Images a second."""
    began = time.perf_counter()
    for batch in data:
        call(batch)
    return BATCH * len(data) / (time.perf_counter() - began)


def compare(
    model: keras.Model, data: list[tf.Tensor], sides: tuple[int, int] | None, rounds: int
) -> tuple[float, float, float]:
    """Median images a second of the signature and of the parts, and the median ratio."""
    with tempfile.TemporaryDirectory() as folder:
        path = kt.export_saved_model(model, Path(folder, "m"), TASKS, verify=False)
        loaded = tf.saved_model.load(str(path))
    served = loaded.signatures["serving_default"]
    calls = [lambda batch: served(image_bytes=batch), apart(model, sides)]
    for call in calls:
        speed(call, data)
    pairs = []
    for number in range(rounds):
        order = (0, 1) if number % 2 else (1, 0)
        found = {which: speed(calls[which], data) for which in order}
        pairs.append((found[0], found[1]))
    ours, parts = (statistics.median(each) for each in zip(*pairs, strict=True))
    return ours, parts, statistics.median(a / b for a, b in pairs)


def section(args: argparse.Namespace) -> str:
    """The section of RESULTS.md."""
    lines = [
        "| model | JPEGs | signature, images/s | decode + bare graph, images/s | ratio |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for backbone, size in (("tiny", 64), ("tiny", 128), ("MobileNetV2", 224)):
        keras.utils.set_random_seed(0)
        model = made(backbone, size)
        for name, sides in (("128 x 128", None), ("1280 x 720", (1280, 720))):
            ours, parts, ratio = compare(model, batches(sides), sides, args.rounds)
            lines.append(
                f"| {backbone}, {size} | {name} | {ours:,.0f} | {parts:,.0f} | {ratio:.2f} |"
            )
            print(lines[-1], flush=True)
    return "\n\n".join(
        [
            HEADING,
            f"`python benchmarks/export_speed.py --write`, {time.strftime('%Y-%m-%d')}, "
            f"{args.machine}, Python {platform.python_version()}, TensorFlow {tf.__version__}, "
            f"Keras {keras.__version__}; medians of {args.rounds} pairs, batches of {BATCH}.",
            "\n".join(lines),
            "Wanted: 0.97 or more. Large JPEGs are decoded at a reduced size on both sides.",
        ]
    )


def made(backbone: str, size: int) -> keras.Model:
    """An untrained model."""
    if backbone == "tiny":
        return kt.build_model("tiny", TASKS, size)
    shape = (size, size, 3)
    application = getattr(keras.applications, backbone)
    layer = application(input_shape=shape, include_top=False, weights=None)
    return kt.build_model(layer, TASKS, size)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
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
