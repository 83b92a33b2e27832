"""The other formats: size, accuracy and latency; and one model for all tasks against one for each.

    python benchmarks/formats.py             # prints two tables
    python benchmarks/formats.py --write     # and keeps them in benchmarks/RESULTS.md

A head is trained on the frozen embedded extractor with a project's default settings, converted, and
every file runs on the test part of the street scenes in its own runtime, with one thread. Times are
medians of processor time, which other work on the machine lengthens least; the contestants take
turns call by call.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn.metrics import precision_recall_curve, roc_auc_score

import kerasmtl as kt
from kerasmtl.evaluation.calibration import Decision
from kerasmtl.export.convert import convert_model, decisions_agree
from kerasmtl.export.converted_model import FORMATS, ConvertedModel
from kerasmtl.export.description import DEFAULT_SIGNATURE
from kerasmtl.export.signatures import ModelInterface, write_saved_model
from kerasmtl.models.hub.embedded import dataset_csv
from kerasmtl.tasks import as_tasks, by_task

HEADINGS = (
    "## Other formats: size, accuracy, latency",
    "## Other formats: one model for all tasks against one for each",
)
NAMES = {
    "saved_model": "SavedModel, TensorFlow",
    "litert": "LiteRT, float32",
    "litert-dynamic": "LiteRT, weights of 8 bits",
    "litert-int8": "LiteRT, integers of 8 bits",
    "onnx": "ONNX, ONNX Runtime",
}
COMPARED = ("saved_model", "litert", "litert-int8", "onnx")
SIZES = (1, 32)  # batches whose time is taken
SETTINGS = {"hidden": [512], "dropout": 0.5}  # of a project
EPOCHS, RATE = 20, 1e-3

Outputs = dict[str, np.ndarray]
Predict = Callable[[np.ndarray], Outputs]


def trained(train: kt.Manifest, val: kt.Manifest, seed: int, folder: Path) -> keras.Model:
    """A head on the frozen extractor, with a project's default settings."""
    keras.utils.set_random_seed(seed)
    model = kt.build_model("tiny", train.tasks, **SETTINGS)
    size = model.input_shape[1:3]
    model.compile(
        keras.optimizers.Adam(RATE),
        loss=kt.losses.for_tasks(train.tasks, train.labels),
        metrics=kt.metrics.for_tasks(train.tasks),
    )
    model.fit(
        kt.make_dataset(train, size, training=True, seed=seed),
        validation_data=kt.make_dataset(val, size),
        epochs=EPOCHS,
        callbacks=[kt.callbacks.Checkpoint(folder / "model.keras")],
        shuffle=False,
        verbose=0,
    )
    return kt.load_model(folder / "model.keras")


def images_of(manifest: kt.Manifest, model: keras.Model) -> np.ndarray:
    """Return all images of a manifest in its order, (rows, height, width, 3) float32."""
    return np.concatenate([x for x, _ in kt.make_dataset(manifest, model.input_shape[1:3])])


def written(
    model: keras.Model, names: Sequence[str], to: str, folder: Path, samples: np.ndarray
) -> tuple[Path, Predict]:
    """A model in a format, and how to run it with one thread."""
    folder.mkdir(parents=True, exist_ok=True)
    if to == "saved_model":
        interface = interface_of(model, as_tasks(names))
        write_saved_model(model, folder / to, [interface.endpoint(model)])
        loaded = tf.saved_model.load(str(folder / to))
        serve = loaded.signatures[DEFAULT_SIGNATURE]

        def predict(images: np.ndarray, keep: object = loaded) -> Outputs:
            found = serve(**{interface.name: tf.constant(images)})
            return {name: value.numpy() for name, value in found.items()}

        return folder / to, predict
    file = folder / f"{to}{FORMATS[to].suffix}"
    convert_model(model, file, names, to, samples=samples)
    return file, ConvertedModel(file, threads=1).predict


def interface_of(
    model: keras.Model, tasks: Sequence[kt.Task], limits: dict[str, float] | None = None
) -> ModelInterface:
    """Return the interface of a model of images, with thresholds."""
    decisions = {task.name: Decision((limits or {}).get(task.name, 0.5), 1.0) for task in tasks}
    return ModelInterface.of(model, tuple(tasks), None, decisions)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)


def milliseconds(
    contestants: dict[str, list[Predict]], images: np.ndarray, rounds: int
) -> dict[str, float]:
    """Median processor time to call all of a contestant's models, in turns with the others."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 3):
        for name, models in contestants.items():
            began = time.process_time()
            for predict in models:
                predict(images)
            if number >= 3:  # the first calls allocate
                times[name].append(1000 * (time.process_time() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def best_limits(manifest: kt.Manifest, outputs: Outputs) -> dict[str, float]:
    """By task, the threshold of the best F1 on known labels."""
    limits = {}
    for column, task in enumerate(manifest.tasks):
        y = manifest.labels[:, column]
        known = ~np.isnan(y)
        precision, recall, at = precision_recall_curve(y[known], outputs[task.name][known])
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
        limits[task.name] = float(at[f1[:-1].argmax()])
    return limits


def measure(args: argparse.Namespace, folder: Path) -> tuple[str, str]:
    """Both sections' tables, in Markdown."""
    manifest = kt.Manifest.from_csv(dataset_csv("street_scenes"))
    train, val, test = manifest.split(seed=args.seed)
    model = trained(train, val, args.seed, folder)
    names = [task.name for task in manifest.tasks]
    samples = images_of(train.take(range(300)), model)
    made = {to: written(model, names, to, folder / "all", samples) for to in NAMES}
    first = accuracy_table(args, model, made, val, test)
    apart = {to: [] for to in COMPARED}
    for name in names:
        keras.utils.set_random_seed(args.seed)  # untrained: weights change neither size nor time
        one = kt.build_model("tiny", [name], **SETTINGS)
        for to in COMPARED:
            apart[to].append(written(one, [name], to, folder / name, samples))
    return first, separate_table(args, {to: made[to] for to in COMPARED}, apart, samples)


def accuracy_table(
    args: argparse.Namespace,
    model: keras.Model,
    made: dict[str, tuple[Path, Predict]],
    val: kt.Manifest,
    test: kt.Manifest,
) -> str:
    """Size, macro AUC on full labels, decisions that agree with Keras, and latency."""
    full = pd.read_csv(dataset_csv("street_scenes").with_name("labels_full.csv"))
    truth = full.set_index("image").loc[[str(image) for image in test.names]]
    images = images_of(test, model)
    wanted = by_task(model.predict(images, verbose=0), test.tasks)
    checked = by_task(model.predict(images_of(val, model), verbose=0), test.tasks)
    half, best = dict.fromkeys(wanted, 0.5), best_limits(val, checked)
    runs = {to: [predict] for to, (_, predict) in made.items()}
    times = [milliseconds(runs, images[:size], args.rounds) for size in SIZES]
    lines = [
        "| format | MB | macro AUC | largest difference | decisions the same, at 0.5 | at the best "
        "F1 | one image (ms) | 32 images (ms) |",
        "| --- |" + " ---: |" * 7,
    ]
    for to, (path, predict) in made.items():
        got = predict(images)
        auc = np.mean([roc_auc_score(truth[name], got[name]) for name in wanted])
        off = max(np.abs(got[name] - wanted[name]).max() for name in wanted)
        same = [
            decisions_agree(got, wanted, interface_of(model, test.tasks, limits))
            for limits in (half, best)
        ]
        lines.append(
            f"| {NAMES[to]} | {size_of(path) / 1e6:.2f} | {auc:.4f} | {off:.1e} | "
            f"{same[0]:.1%} | {same[1]:.1%} | {times[0][to]:.1f} | {times[1][to]:.0f} |"
        )
    return "\n".join(lines) + (
        f"\n\n{len(images)} test images, {len(wanted)} tasks. The best F1 is that on validation "
        "labels. litert-int8: " + _changed(wanted, runs["litert-int8"][0], images)
    )


def _changed(wanted: Outputs, predict: Predict, images: np.ndarray) -> str:
    """How near the threshold those cases are that integers decide otherwise."""
    got = predict(images)
    distance = [np.abs(wanted[n] - 0.5)[(got[n] >= 0.5) != (wanted[n] >= 0.5)] for n in wanted]
    changed, all_ = np.concatenate(distance), np.concatenate([*wanted.values()])
    if not len(changed):
        return "at 0.5 they change none."
    return (
        f"at 0.5 they change {len(changed)} of {all_.size}; of these the model's own probability "
        f"is at most {changed.max():.2f} from 0.5, half of them at most {np.median(changed):.2f}, "
        f"and of all cases half are more than {np.median(np.abs(all_ - 0.5)):.2f} from it."
    )


def separate_table(
    args: argparse.Namespace,
    together: dict[str, tuple[Path, Predict]],
    apart: dict[str, list[tuple[Path, Predict]]],
    samples: np.ndarray,
) -> str:
    """Size and latency of one model for all tasks, and of one for each, run one after another."""
    runs = {f"{to}, one": [predict] for to, (_, predict) in together.items()}
    runs |= {f"{to}, each": [predict for _, predict in pairs] for to, pairs in apart.items()}
    times = milliseconds(runs, samples[:1], args.rounds)
    count = len(apart["litert"])
    lines = [
        f"| format | one model (MB) | {count} models (MB) | one model (ms) | {count} models (ms) | "
        "times as fast |",
        "| --- |" + " ---: |" * 5,
    ]
    for to, (path, _) in together.items():
        one, each = times[f"{to}, one"], times[f"{to}, each"]
        lines.append(
            f"| {NAMES[to]} | {size_of(path) / 1e6:.2f} | "
            f"{sum(size_of(p) for p, _ in apart[to]) / 1e6:.2f} | {one:.1f} | {each:.1f} | "
            f"{each / one:.1f} |"
        )
    return "\n".join(lines) + f"\n\nOne image, all {count} answers."


def sections(tables: tuple[str, str], args: argparse.Namespace) -> list[str]:
    """The sections of RESULTS.md."""
    from importlib.metadata import version

    said = (
        f"`python benchmarks/formats.py --write`, {time.strftime('%Y-%m-%d')}, {args.machine}, "
        f"Python {platform.python_version()}, TensorFlow {tf.__version__}, Keras "
        f"{keras.__version__}, LiteRT {version('ai-edge-litert')}, ONNX Runtime "
        f"{version('onnxruntime')}; one thread; processor time, medians of {args.rounds} calls in "
        "turns."
    )
    about = (
        "A head trained on the frozen embedded extractor at 128 x 128 with a project's default "
        f"settings, seed {args.seed}, on street_scenes; pixels in, and no decoding.",
        "The same network with the head of one task or of all; the extractor is frozen, so each "
        "file holds it.",
    )
    return ["\n\n".join(parts) for parts in zip(HEADINGS, (said, said), about, tables, strict=True)]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores {platform.machine()}")
    parser.add_argument("--write", action="store_true", help="keep the tables in RESULTS.md")
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        texts = sections(measure(args, Path(folder)), args)
    print("\n\n".join(texts))
    if args.write:
        from results import keep

        for heading, text in zip(HEADINGS, texts, strict=True):
            keep(heading, text)


if __name__ == "__main__":
    main()
