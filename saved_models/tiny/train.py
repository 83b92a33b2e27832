"""Train the embedded extractor on drawn objects and write it as a reusable TF2 SavedModel.

    pip install -e .
    python saved_models/tiny/train.py --out saved_models/tiny/1

The images are drawn once into a cache; drawing that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kerasmtl.saved_models.tiny.draw_objects import CLASSES, HALF_HIDDEN, draw_image

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

SIZE = 128
CHUNK = 500
HELD_OUT = 4000
# The side of a training batch and how often it is used: smaller is quicker, variety is wanted.
SIDES, SIDE_SHARES = (96, 112, 128), (0.5, 0.25, 0.25)


# ---------------------------------------------------------------- images


def draw_cache(cache: Path, count: int, seed: int, workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` images into memory-mapped arrays, or go on drawing them, and open those."""
    cache.mkdir(parents=True, exist_ok=True)
    plan = {"count": count, "seed": seed, "size": SIZE, "classes": list(CLASSES)}
    plan_file, done_file = cache / "plan.json", cache / "done.txt"
    if not plan_file.exists():
        _allocate(cache, "images", (count, SIZE, SIZE, 3), np.uint8)
        _allocate(cache, "labels", (count, len(CLASSES)), np.int8)
        plan_file.write_text(json.dumps(plan))
    elif json.loads(plan_file.read_text()) != plan:
        raise SystemExit(f"{cache} holds other images (count, seed or classes): empty it")
    done = set(done_file.read_text().split()) if done_file.exists() else set()
    todo = [start for start in range(0, count, CHUNK) if str(start) not in done]
    began = time.time()
    # The workers leave Ctrl-C to this process.
    pool = multiprocessing.Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    with pool, done_file.open("a") as notes:
        job = partial(_draw_chunk, cache, count, seed)
        for number, start in enumerate(pool.imap_unordered(job, todo), start=1):
            print(start, file=notes, flush=True)
            pace = number * CHUNK / (time.time() - began)
            left = (len(todo) - number) * CHUNK / pace
            message = f"\rdrawing: {number}/{len(todo)} chunks, {pace:.0f}/s, {left:.0f} s left "
            print(message, end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return tuple(np.load(cache / f"{name}.npy", mmap_mode="r") for name in ("images", "labels"))


def _allocate(cache: Path, name: str, shape: tuple[int, ...], dtype: type) -> None:
    np.lib.format.open_memmap(cache / f"{name}.npy", "w+", dtype, shape).flush()


def _draw_chunk(cache: Path, count: int, seed: int, start: int) -> int:
    images = np.load(cache / "images.npy", mmap_mode="r+")
    labels = np.load(cache / "labels.npy", mmap_mode="r+")
    for index in range(start, min(start + CHUNK, count)):
        image, seen = draw_image(np.random.default_rng([seed, index]), SIZE)
        images[index] = np.asarray(image)
        labels[index] = [seen[name] for name in CLASSES]
    images.flush()
    labels.flush()
    return start


# ---------------------------------------------------------------- training
# TensorFlow is imported where it is used, so that the drawing processes start without it.


def batches(count: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """One epoch of shuffled indices, in batches."""
    order = rng.permutation(count)
    for start in range(0, count - size + 1, size):
        yield np.sort(order[start : start + size])


def train(
    network: keras.Model, images: np.ndarray, labels: np.ndarray, args: argparse.Namespace
) -> float:
    """Train the network under a sigmoid head, and return the macro AUC on held-out images."""
    import keras

    outputs = keras.layers.Dense(len(CLASSES), name="head")(network.output)
    model = keras.Model(network.input, outputs)
    count = len(images) - min(HELD_OUT, len(images) // 5)
    progress = Progress(args.epochs * (count // args.batch_size))
    step = _training_step(model, _optimizer(args.learning_rate, progress.steps))
    rng = np.random.default_rng([args.seed, 1])
    score = math.nan
    for epoch in range(1, args.epochs + 1):
        for index in batches(count, args.batch_size, rng):
            side = int(rng.choice(SIDES, p=SIDE_SHARES))
            progress.show(epoch, float(step(images[index], labels[index], side)))
        score = macro_auc(model, images[count:], labels[count:])
        print(f"\nepoch {epoch}: held-out macro AUC {score:.4f}", flush=True)
        network.save_weights(args.cache / "latest.weights.h5")
    return score


class Progress:
    """A line that tells the step, the smoothed loss and the time left."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.loss = steps, 0, math.nan
        self.began = time.time()

    def show(self, epoch: int, loss: float) -> None:
        """Count one step."""
        self.loss = loss if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * loss
        self.done += 1
        if self.done % 20 == 0 or self.done == self.steps:
            left = (self.steps - self.done) * (time.time() - self.began) / self.done
            text = f"\repoch {epoch}: step {self.done}/{self.steps}, loss {self.loss:.3f}, "
            print(f"{text}{left:.0f} s left ", end="", file=sys.stderr, flush=True)


def _optimizer(learning_rate: float, steps: int) -> keras.optimizers.Optimizer:
    import keras

    warm = min(500, steps // 10)
    rate = keras.optimizers.schedules.CosineDecay(
        learning_rate / 20, steps - warm, warmup_target=learning_rate, warmup_steps=warm
    )
    return keras.optimizers.Adam(rate)


def _training_step(
    model: keras.Model, optimizer: keras.optimizers.Optimizer
) -> Callable[[np.ndarray, np.ndarray, int], tf.Tensor]:
    import tensorflow as tf

    optimizer.build(model.trainable_variables)
    weights = [variable.value for variable in model.trainable_variables]

    @tf.function(reduce_retracing=False)
    def step(images: tf.Tensor, truth: tf.Tensor, side: int) -> tf.Tensor:
        images = tf.image.random_flip_left_right(tf.cast(images, tf.float32) / 255.0)
        images = tf.image.resize(images, (side, side), antialias=True) if side < SIZE else images
        known = tf.cast(truth != HALF_HIDDEN, tf.float32)
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            target = tf.cast(truth == 1, tf.float32)
            cells = tf.nn.sigmoid_cross_entropy_with_logits(target, logits) * known
            loss = tf.reduce_mean(tf.reduce_sum(cells, axis=1))
            total = loss + tf.add_n(model.losses)
        optimizer.apply(tape.gradient(total, weights), model.trainable_variables)
        return loss

    return step


def macro_auc(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes of the area under the ROC curve, half hidden objects left out."""
    parts = [images[start : start + 200] for start in range(0, len(images), 200)]
    logits = [model(part.astype(np.float32) / 255.0, training=False).numpy() for part in parts]
    scores = np.concatenate(logits)
    areas = []
    for truth, score in zip(labels.T, scores.T, strict=True):
        ranks = np.argsort(np.argsort(score[truth != HALF_HIDDEN])) + 1.0
        positive = truth[truth != HALF_HIDDEN] == 1
        ones, zeros = positive.sum(), (~positive).sum()
        areas.append((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))
    return float(np.mean(areas))


def main() -> None:
    """Draw, train and export."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=224_000, help="how many to draw")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--cache", type=Path, default=Path("build/tiny_images"),
                        help="where the images are kept, 49 kB each")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("saved_models/tiny/1"))
    args = parser.parse_args()

    began = time.time()
    try:
        images, labels = draw_cache(args.cache, args.images, args.seed, args.workers)
    except KeyboardInterrupt:
        parser.exit(130, "\ninterrupted: the same command goes on where drawing stopped\n")
    drawn = time.time()
    import keras

    from kerasmtl.saved_models.tiny.network import tiny_network
    from kerasmtl.saved_models.tiny.reusable import export

    keras.utils.set_random_seed(args.seed)
    network = tiny_network()
    train(network, images, labels, args)
    export(network, args.out)
    print(f"drawing {drawn - began:.0f} s, training {time.time() - drawn:.0f} s: {args.out}")


if __name__ == "__main__":
    main()
