"""Training a new head on a frozen backbone: features computed once, against stock Keras `fit`.

    python benchmarks/head_training.py [--epochs 20] [--write]

On street_photos (230 photographs) and on the embedded street_scenes (1,200 drawings), with a
MobileNet and with the embedded extractor. Both contestants get the same model, weights, batches,
loss and metrics; stock Keras decodes each picture once, too (its data set is cached in memory), and
then runs the frozen backbone in every epoch. The cache of features starts empty.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import kerasmtl as kt
from kerasmtl.embedded import dataset_csv

HERE = Path(__file__).resolve().parent
HEADING = "## Head training: features computed once"
SHARED = HERE.parents[1] / "shared"
MOBILENET = SHARED / "models" / "mobilenet_v1_025_224"
PHOTOS = SHARED / "data" / "street_photos" / "labels.csv"


class EpochTimes(keras.callbacks.Callback):
    """Seconds of each epoch, its validation included."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.seconds.append(time.perf_counter() - self.began)


def contestant(labels: Path, backbone: str, epochs: int, cached: bool) -> tuple[Any, ...]:
    """Seconds of the whole run and of each epoch, and the history."""
    keras.utils.set_random_seed(0)
    train, validation, _ = kt.Manifest.from_csv(labels).split()
    model = kt.build_model(backbone, train.tasks, hidden=[512], dropout=0.5)
    size = model.input_shape[1:3]
    times = EpochTimes()
    began = time.perf_counter()
    data = kt.make_dataset(train, size, training=True)
    held = kt.make_dataset(validation, size)
    if cached:
        plan = [kt.Stage("head", epochs, 1e-3)]
        history = kt.fine_tune(
            model, data, held, plan=plan, cache=True, callbacks=[times], verbose=0
        )
    else:
        model.compile(
            keras.optimizers.Adam(1e-3),
            loss=kt.default_losses(train.tasks),
            metrics=kt.default_metrics(train.tasks),
        )
        history = model.fit(
            data, validation_data=held, epochs=epochs, callbacks=[times], shuffle=False, verbose=0
        )
    return time.perf_counter() - began, times.seconds, history.history


def row(name: str, labels: Path, network: str, backbone: str, epochs: int) -> str:
    """One line of the table."""
    stock, stock_epochs, plain = contestant(labels, backbone, epochs, cached=False)
    with tempfile.TemporaryDirectory() as empty:
        os.environ["TFHUB_CACHE_DIR"] = empty
        own, own_epochs, quick = contestant(labels, backbone, epochs, cached=True)
        again, _, _ = contestant(labels, backbone, epochs, cached=True)
    names = [key for key in plain if key.startswith("val_")]
    apart = max(float(np.abs(np.subtract(plain[key], quick[key])).max()) for key in names)
    late = [float(np.median(seconds[1:])) for seconds in (stock_epochs, own_epochs)]
    return (
        f"| {name} | {network} | {stock:.1f} | {own:.1f} | **{stock / own:.1f}** | {again:.1f} | "
        f"{1e3 * late[0]:.0f} | {1e3 * late[1]:.0f} | **{late[0] / late[1]:.0f}** | {apart:.0e} |"
    )


def section(args: argparse.Namespace) -> str:
    """The section of RESULTS.md."""
    scenes = dataset_csv("street_scenes")
    contestants = [("street_scenes", scenes, "embedded", "tiny")]
    if MOBILENET.is_dir():
        contestants.insert(0, ("street_scenes", scenes, "MobileNetV1-0.25", str(MOBILENET)))
        if PHOTOS.is_file():
            contestants.insert(0, ("street_photos", PHOTOS, "MobileNetV1-0.25", str(MOBILENET)))
            contestants.append(("street_photos", PHOTOS, "embedded", "tiny"))
    lines = [
        "| pictures | backbone | stock `fit`, s | cached, s | ratio | cached again, s | "
        "later epochs: stock, ms | cached, ms | ratio | validation apart by |",
        "| --- | --- |" + " ---: |" * 8,
        *(row(*contestant, args.epochs) for contestant in contestants),
    ]
    return "\n\n".join(
        [
            HEADING,
            f"`python benchmarks/head_training.py --write`, {time.strftime('%Y-%m-%d')}, "
            f"{args.machine}, Python {platform.python_version()}, TensorFlow {tf.__version__}, "
            f"Keras {keras.__version__}; {args.epochs} epochs, a head of 512 units, batches of 32.",
            "\n".join(lines),
            "Wanted with MobileNet: the whole run 5 times as fast on street_photos and 8 on "
            "street_scenes, later epochs 30 times; with the embedded extractor later epochs 10 "
            "times; validation equal to 1e-5. `Cached again`: a second run, whose features are "
            "there already.",
        ]
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=20)
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
