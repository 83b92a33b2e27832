"""Draw street scenes with four labels: pedestrian, car, stop_sign and traffic_light.

    python datasets/street_scenes/draw.py OUT_DIR --count 1200

Image i depends on the seed, the size and i alone, whatever the count or the number of workers.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from kerasmtl.datasets.street_scenes.camera import photograph
from kerasmtl.datasets.street_scenes.canvas import CLEARLY_SEEN, Brush, Canvas, Drawer
from kerasmtl.datasets.street_scenes.furniture import MOUNTED, STANDING
from kerasmtl.datasets.street_scenes.palette import GREYS, Dice, log_uniform, vary
from kerasmtl.datasets.street_scenes.place import scenery
from kerasmtl.datasets.street_scenes.subjects import car, pedestrian, stop_sign, traffic_light

LABELS = ("pedestrian", "car", "stop_sign", "traffic_light")
COVERAGE = {"pedestrian": 0.95, "car": 0.85, "stop_sign": 0.70, "traffic_light": 0.15}
SPLITS = {"train": 0.65, "val": 0.15, "test": 0.20}
SHARES = {"pedestrian": 0.45, "car": 0.45, "stop_sign": 0.40, "traffic_light": 0.42}
MISSING = "?"
# The streams of random numbers beside those of the images.
STREAM_OF_SPLITS, STREAM_OF_HOLES = 1 << 40, 1 << 41

# Drawer, height in metres, and the least and greatest height as a share of the image.
LABELLED: dict[str, tuple[Drawer, float, float, float]] = {
    "pedestrian": (pedestrian, 1.7, 0.32, 0.95),
    "car": (car, 1.5, 0.2, 0.6),
    "stop_sign": (stop_sign, 0.8, 0.13, 0.45),
    "traffic_light": (traffic_light, 1.0, 0.18, 0.5),
}

# How far down the image an object stands, and what draws it.
Item = tuple[float, Callable[[], None]]


def draw_scene(rng: np.random.Generator, size: int = 128) -> tuple[Image.Image, dict[str, int]]:
    """Draw one scene, and tell which of the four labels can be seen in it.

    What is to be seen is settled first, each label by itself; the scene is drawn again until at
    least half of one object of each such label is in the image and not hidden.
    """
    dice = random.Random(int(rng.integers(1 << 62)))
    wanted = [label for label in LABELS if dice.random() < SHARES[label]]
    while True:
        canvas = Canvas(size)
        horizon = scenery(canvas, dice)
        _populate(canvas, dice, horizon, wanted)
        if _all_seen(canvas, wanted):
            labels = {label: int(label in wanted) for label in LABELS}
            return photograph(canvas, dice, rng), labels


def _all_seen(canvas: Canvas, wanted: Sequence[str]) -> bool:
    seen = {kind for kind, share in canvas.visible() if share >= CLEARLY_SEEN}
    return seen.issuperset(wanted)


def _populate(canvas: Canvas, dice: Dice, horizon: float, wanted: Sequence[str]) -> None:
    """Draw all objects, the far ones first."""
    items: list[Item] = []
    for label in wanted:
        while True:
            items.append(_labelled(canvas, dice, horizon, label))
            if dice.random() > 0.3:
                break
    for _ in range(dice.randint(1, 5)):
        items.append(_standing(canvas, dice, horizon))
    for _ in range(dice.randint(0, 3)):
        items.append(_mounted(canvas, dice, horizon))
    items.sort(key=lambda item: item[0])
    for _, draw in items:
        draw()


def _foot(dice: Dice, horizon: float, height: float, metres: float) -> float:
    """Where an object stands on the ground, farther down the nearer (the larger) it is."""
    camera = dice.uniform(1.3, 2.6)
    return min(horizon + height * camera / metres, dice.uniform(1.02, 1.3))


def _brush(canvas: Canvas, dice: Dice, x: float, y: float, height: float) -> Brush:
    return Brush(canvas, x, y, height, mirror=dice.random() < 0.5,
                 squeeze=dice.uniform(0.78, 1.1), tilt=dice.gauss(0, 0.035))  # fmt: skip


def _face_on(canvas: Canvas, dice: Dice, x: float, y: float, height: float) -> Brush:
    """A brush for what must not be mirrored, such as letters."""
    return Brush(canvas, x, y, height, squeeze=dice.uniform(0.7, 1.0),
                 tilt=dice.gauss(0, 0.05))  # fmt: skip


def _labelled(canvas: Canvas, dice: Dice, horizon: float, label: str) -> Item:
    drawer, metres, low, high = LABELLED[label]
    height = log_uniform(dice, low, high)
    if label in ("stop_sign", "traffic_light"):
        return _on_pole(canvas, dice, horizon, drawer, metres, height, label)
    foot = _foot(dice, horizon, height, metres)
    x = dice.uniform(0.05, 0.95)

    def draw() -> None:
        brush = _brush(canvas, dice, x, foot, height)
        canvas.begin(label)
        drawer(brush, dice)
        canvas.end()

    return foot, draw


def _standing(canvas: Canvas, dice: Dice, horizon: float) -> Item:
    drawer, metres = dice.choice(STANDING)
    height = min(1.3, log_uniform(dice, 0.14, 0.7) * metres / 1.7)
    foot = _foot(dice, horizon, height, metres)
    x = dice.uniform(-0.05, 1.05)
    return foot, lambda: drawer(_brush(canvas, dice, x, foot, height), dice)


def _mounted(canvas: Canvas, dice: Dice, horizon: float) -> Item:
    drawer, metres = dice.choice(MOUNTED)
    height = log_uniform(dice, 0.1, 0.45)
    return _on_pole(canvas, dice, horizon, drawer, metres, height)


def _on_pole(canvas: Canvas, dice: Dice, horizon: float, drawer: Drawer, metres: float,
             height: float, label: str | None = None) -> Item:  # fmt: skip
    """A sign or a light on a pole, on an arm reaching over the road, or on a wall."""
    foot = _foot(dice, horizon, height, metres)
    x = dice.uniform(0.06, 0.94)
    y = min(foot - height * dice.uniform(1.2, 3.2), dice.uniform(0.3, 0.85))
    y = max(y, height * 0.5 + dice.uniform(-0.05, 0.2))
    support = dice.random()

    def draw() -> None:
        metal, width = vary(dice, dice.choice(GREYS), 12), max(0.008, height * 0.07)
        pole = Brush(canvas, x, foot, 1.0)
        if support < 0.7:
            pole.line([(0, 0), (0, foot - y - height * 0.3)], width, metal)
        elif support < 0.85:
            away = dice.choice((-1, 1)) * (height * 0.6 + dice.uniform(0.1, 0.4))
            pole.line([(away, 0), (away, foot - y), (0, foot - y)], width, metal)
        brush = _face_on(canvas, dice, x, y, height)
        if label:
            canvas.begin(label)
        drawer(brush, dice)
        if label:
            canvas.end()

    return foot, draw


def split_and_hide(labels: np.ndarray, seed: int) -> tuple[list[str], np.ndarray]:
    """Share images out among the splits, and choose at random which labels are known.

    In each split each task keeps its share of the known cells, of ones as of zeros, and at least
    one of both where there are any.
    """
    count = len(labels)
    order = np.random.default_rng([seed, STREAM_OF_SPLITS]).permutation(count)
    bounds = np.cumsum([round(count * share) for share in SPLITS.values()])[:-1]
    parts = np.split(order, bounds)
    splits = [""] * count
    known = np.zeros(labels.shape, bool)
    rng = np.random.default_rng([seed, STREAM_OF_HOLES])
    for name, part in zip(SPLITS, parts, strict=True):
        for index in part:
            splits[index] = name
        for task, share in enumerate(COVERAGE.values()):
            for value in (0, 1):
                cells = rng.permutation(part[labels[part, task] == value])
                known[cells[: max(1, round(share * len(cells)))], task] = True
    return splits, known


def write_dataset(
    folder: Path, count: int, *, seed: int = 0, size: int = 128, quality: int = 84, workers: int = 1
) -> None:
    """Draw a data set into a new or empty folder: `images/`, `labels_full.csv`, `labels.csv`."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    width = max(5, len(str(count - 1)))
    names = [f"images/{index:0{width}d}.jpg" for index in range(count)]
    job = partial(_write_image, folder, seed, size, quality)
    labels = np.zeros((count, len(LABELS)), np.int8)
    # The workers leave Ctrl-C to this process.
    with multiprocessing.Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        drawn = pool.imap(job, enumerate(names), chunksize=32)
        for index, row in enumerate(_with_progress(drawn, count)):
            labels[index] = row
    splits, known = split_and_hide(labels, seed)
    _write_csv(folder / "labels_full.csv", names, splits, labels, np.ones_like(known))
    _write_csv(folder / "labels.csv", names, splits, labels, known)


def _write_image(
    folder: Path, seed: int, size: int, quality: int, item: tuple[int, str]
) -> tuple[int, ...]:
    index, name = item
    image, labels = draw_scene(np.random.default_rng([seed, index]), size)
    image.save(folder / name, quality=quality, optimize=True)
    return tuple(labels.values())


def _with_progress(rows: Iterable[tuple[int, ...]], count: int) -> Iterable[tuple[int, ...]]:
    began, shown = time.time(), 0.0
    for number, row in enumerate(rows, start=1):
        yield row
        now = time.time()
        if now - shown > 0.5 or number == count:
            pace = number / max(now - began, 1e-6)
            left = (count - number) / pace
            text = f"\r{number}/{count} images, {pace:.0f}/s, {left:.0f} s left "
            print(text, end="\n" if number == count else "", file=sys.stderr, flush=True)
            shown = now


def _write_csv(path: Path, names: Sequence[str], splits: Sequence[str], labels: np.ndarray,
               known: np.ndarray) -> None:  # fmt: skip
    """Write beside the path, then rename: the file is whole or not there."""
    aside = path.with_suffix(".part")
    with aside.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("image", "split", *LABELS))
        for name, split, row, seen in zip(names, splits, labels, known, strict=True):
            cells = (str(v) if k else MISSING for v, k in zip(row, seen, strict=True))
            writer.writerow((name, split, *cells))
    aside.replace(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    parser.add_argument("--count", type=int, default=1200, help="images, up to 1000000")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other images")
    parser.add_argument("--size", type=int, default=128, help="side of an image in pixels")
    parser.add_argument("--quality", type=int, default=84, help="of the JPEG files, 1 to 95")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(arguments)
    if not 1 <= args.count <= 1_000_000:
        parser.error("--count must lie between 1 and 1000000")
    if args.size < 32:
        parser.error("--size must be 32 or more")
    try:
        write_dataset(args.folder, args.count, seed=args.seed, size=args.size,
                      quality=args.quality, workers=args.workers)  # fmt: skip
    except FileExistsError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, f"\ninterrupted: {args.folder} has no labels.csv\n")


if __name__ == "__main__":
    main()
