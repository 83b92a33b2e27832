"""Training a new head on a frozen backbone: features computed once, against stock Keras `fit`.

    python benchmarks/head_training.py [--epochs 20] [--rounds 3] [--write]

On street_photos (230 photographs) and on the embedded street_scenes (1,200 drawings), with a
MobileNet and with the embedded extractor. Both contestants get the same model, weights, batches,
loss and metrics; stock Keras decodes each image once, too (its data set is cached in memory), and
then runs the frozen backbone in every epoch. The cache of features starts empty.

Each run has a process of its own, and the contestants take turns: stock, cached, cached again, and
the head that projects get by default, chosen by folds on the same cached features.
Times are medians over the rounds; ratios are medians of the ratios round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import kerasmtl as kt
from kerasmtl.models.hub.embedded import dataset_csv
from kerasmtl.training.auto import head_for

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


def run(labels: str, backbone: str, epochs: int, kind: str) -> dict[str, Any]:
    """Seconds of the whole run and of each epoch, and the history."""
    keras.utils.set_random_seed(0)
    train, validation, _ = kt.Manifest.from_csv(labels).split()
    model = kt.build_model(backbone, train.tasks, hidden=[512], dropout=0.5)
    size = model.input_shape[1:3]
    times = EpochTimes()
    began, cpu = time.perf_counter(), time.process_time()
    data = kt.make_dataset(train, size, training=True)
    held = kt.make_dataset(validation, size)
    if kind == "folds":
        parts = [(rows, kt.make_dataset(rows, size)) for rows in (train, validation)]
        head_for(model, *parts, plan="head").attach(model)
        return {"whole": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    if kind == "cached":
        plan = [kt.plans.Stage("head", epochs, 1e-3)]
        history = kt.fine_tune(
            model, data, held, plan=plan, cache=True, callbacks=[times], verbose=0
        )
    else:
        model.compile(
            keras.optimizers.Adam(1e-3),
            loss=kt.losses.for_tasks(train.tasks),
            metrics=kt.metrics.for_tasks(train.tasks),
        )
        history = model.fit(
            data, validation_data=held, epochs=epochs, callbacks=[times], shuffle=False, verbose=0
        )
    return {
        "whole": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "first": times.seconds[0],
        "late": statistics.median(times.seconds[1:]),
        "history": {name: [float(v) for v in values] for name, values in history.history.items()},
    }


def in_a_process(*given: Any, cache: str) -> dict[str, Any]:
    """`run` in a process of its own."""
    command = [sys.executable, __file__, "--run", json.dumps(given)]
    done = subprocess.run(
        command,
        env={**os.environ, "TFHUB_CACHE_DIR": cache},
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return json.loads(done.stdout.splitlines()[-1])


def rounds_of(labels: Path, backbone: str, epochs: int, rounds: int) -> list[list[dict[str, Any]]]:
    """Stock, cached, cached again, and by folds, in each round."""
    found = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as empty:
            kinds = ("stock", "cached", "cached", "folds")
            found.append(
                [in_a_process(str(labels), backbone, epochs, kind, cache=empty) for kind in kinds]
            )
    return found


def row(name: str, labels: Path, network: str, backbone: str, args: argparse.Namespace) -> str:
    """One line of the table."""
    rounds = rounds_of(labels, backbone, args.epochs, args.rounds)
    stock, own, again = (
        {
            part: statistics.median(each[kind][part] for each in rounds)
            for part in ("whole", "cpu", "first", "late")
        }
        for kind in range(3)
    )
    ratios = {
        part: statistics.median(plain[part] / quick[part] for plain, quick, *_ in rounds)
        for part in ("whole", "late")
    }
    apart = max(
        float(np.abs(np.subtract(values, quick["history"][key])).max())
        for plain, quick, *_ in rounds
        for key, values in plain["history"].items()
        if key.startswith("val_")
    )
    folds = statistics.median(each[3]["whole"] for each in rounds)
    more = statistics.median(each[3]["whole"] / each[2]["whole"] for each in rounds)
    print(f"{name}, {network}: processor {stock['cpu']:.1f} s and {own['cpu']:.1f} s", flush=True)
    return (
        f"| {name} | {network} | {stock['whole']:.1f} | {own['whole']:.1f} | "
        f"**{ratios['whole']:.1f}** | {again['whole']:.1f} | {own['first']:.1f} | "
        f"{1e3 * stock['late']:.0f} | {1e3 * own['late']:.0f} | **{ratios['late']:.1f}** | "
        f"{apart:.0e} | {folds:.1f} | **{more:.2f}** |"
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
    if args.only:
        contestants = [each for each in contestants if args.only in f"{each[0]} {each[2]}"]
    lines = [
        "| images | backbone | stock `fit`, s | cached, s | ratio | cached again, s | "
        "its first epoch, s | later epochs: stock, ms | cached, ms | ratio | validation apart by | "
        "by folds, s | to cached again |",
        "| --- | --- |" + " ---: |" * 11,
        *(row(*contestant, args) for contestant in contestants),
    ]
    return "\n\n".join(
        [
            HEADING,
            f"`python benchmarks/head_training.py --write`, {time.strftime('%Y-%m-%d')}, "
            f"{args.machine}, Python {platform.python_version()}, TensorFlow {tf.__version__}, "
            f"Keras {keras.__version__}; {args.epochs} epochs, a head of 512 units, batches of 32; "
            f"medians of {args.rounds} rounds, each run in a process of its own.",
            "\n".join(lines),
            "Wanted with MobileNet: the whole run 5 times as fast on street_photos and 8 on "
            "street_scenes, later epochs 30 times; with the embedded extractor later epochs 10 "
            "times; validation equal to 1e-5. `Cached again`: a second run, whose features are "
            "there already. `Its first epoch`: of the cached run, in which its graphs are made. "
            '`By folds`: the head of `hidden = "auto"`, all candidates, on features that are there '
            "already; wanted: 1.5 times cached again at most.",
        ]
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="part of the names of images and backbone")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores {platform.machine()}")
    parser.add_argument("--write", action="store_true", help="keep the table in RESULTS.md")
    args = parser.parse_args()
    if args.run:
        print(json.dumps(run(*json.loads(args.run))))
        return
    text = section(args)
    print(text)
    if args.write:
        from results import keep

        keep(HEADING, text)


if __name__ == "__main__":
    main()
