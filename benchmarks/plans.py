"""Which plan is best at which size, and does `auto` find it?

    python benchmarks/plans.py [--sizes 100 300 1000 10000] [--seeds 3] [--write]

Street scenes are drawn afresh for each seed: so many to learn from, a fifth as many (at least 100)
to choose the epoch, and 2000 to test, the same for all. Every plan of `kerasmtl.fine_tune` starts
from the embedded extractor and the same head, and keeps the epoch with the best validation AUC.
Runs are kept in a folder one by one, so that an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

HEADING = "## Plans: how much of the network to train"
PLANS = ("auto", "head", "last-layers", "full", "gradual")
SIZES = (100, 300, 1000, 10_000)
TEST = 2000
SEED_OF_TEST, SEED_OF_VALIDATION, SEED_OF_TRAINING = 940_000, 950_000, 960_000


# ---------------------------------------------------------------- images


def _draw(folder: Path, seed: int, index: int) -> str:
    from kerasmtl.datasets.street_scenes.draw import LABELS, draw_scene

    image, labels = draw_scene(np.random.default_rng([seed, index]))
    name = f"{seed}/{index}.png"
    image.save(folder / name)
    return ",".join([name, *(str(labels[label]) for label in LABELS)])


def drawn(folder: Path, seed: int, count: int, workers: int) -> Path:
    """A CSV of that many images, which are drawn if the folder has none of that seed."""
    from kerasmtl.datasets.street_scenes.draw import LABELS

    path = folder / f"{seed}_{count}.csv"
    if not path.exists():
        (folder / str(seed)).mkdir(parents=True, exist_ok=True)
        with multiprocessing.Pool(workers) as pool:
            rows = pool.map(partial(_draw, folder, seed), range(count), chunksize=50)
        made = path.with_suffix(".aside")
        made.write_text("\n".join([",".join(["image", *LABELS]), *rows]) + "\n")
        made.replace(path)
    return path


# ---------------------------------------------------------------- one run


def run(folder: Path, plan: str, size: int, seed: int, workers: int) -> dict:
    """Macro AUC on the test part after a plan, its epochs, and which plan went its whole way."""
    import keras

    import kerasmtl as kt

    paths = [
        drawn(folder, SEED_OF_TRAINING + seed, max(SIZES), workers),
        drawn(folder, SEED_OF_VALIDATION + seed, max(SIZES) // 5, workers),
        drawn(folder, SEED_OF_TEST, TEST, workers),
    ]
    train, validation, test = (kt.Manifest.from_csv(path) for path in paths)
    train = train.take(range(size))
    validation = validation.take(range(max(100, size // 5)))
    keras.utils.set_random_seed(seed)
    model = kt.build_model("tiny", train.tasks, hidden=[512], dropout=0.5)
    image_size = model.input_shape[1:3]
    data = kt.make_dataset(train, image_size, training=True, seed=seed)
    held = kt.make_dataset(validation, image_size, batch_size=100)
    chosen = kt.plans.plan_for(model, data, plan)
    history = kt.fine_tune(model, data, held, plan=plan, verbose=0)
    report = kt.evaluate(model, kt.make_dataset(test, image_size, batch_size=100), train.tasks)
    epochs = len(history.epoch)
    whole = chosen.name if epochs == chosen.epochs else None  # what patience ended is no such run
    return {"auc": report.macro_auc, "epochs": epochs, "whole": whole}


def measured(folder: Path, plan: str, size: int, seed: int, workers: int) -> dict:
    """A run, from the folder if it was made before.

    One of "auto" that its patience did not end is that of the plan that it chose.
    """
    path = folder / f"run_{plan}_{size}_{seed}.json"
    automatic = folder / f"run_auto_{size}_{seed}.json"
    if not path.exists():
        found = json.loads(automatic.read_text()) if automatic.exists() else {}
        if found.get("whole") != plan:
            found = run(folder, plan, size, seed, workers)
        made = path.with_suffix(".aside")
        made.write_text(json.dumps(found))
        made.replace(path)
        print(f"{plan}, {size}, seed {seed}: {found}", file=sys.stderr, flush=True)
    return json.loads(path.read_text())


# ---------------------------------------------------------------- the table


def section(results: dict[tuple[str, int], list[dict]], args: argparse.Namespace) -> str:
    """The section of RESULTS.md."""
    import keras
    import tensorflow as tf

    def mean(plan: str, size: int, key: str = "auc") -> float:
        return float(np.mean([found[key] for found in results[plan, size]]))

    lines = [
        "| plan | " + " | ".join(f"{size:,} images" for size in args.sizes) + " |",
        "| --- |" + " ---: |" * len(args.sizes),
    ]
    for plan in args.plans:
        cells = [
            f"{mean(plan, n):.3f} ({min(f['auc'] for f in results[plan, n]):.3f} to "
            f"{max(f['auc'] for f in results[plan, n]):.3f}), {mean(plan, n, 'epochs'):.0f} epochs"
            for n in args.sizes
        ]
        lines.append(f"| {plan} | " + " | ".join(cells) + " |")
    sizes = " ".join(map(str, args.sizes))
    fixed = [plan for plan in args.plans if plan != "auto"]
    behind = [max(mean(p, n) for p in fixed) - mean("auto", n) for n in args.sizes]
    verdict = "; ".join(f"{n:,}: {b:+.3f}" for n, b in zip(args.sizes, behind, strict=True))
    gains = "; ".join(
        f"{n:,}: {mean('gradual', n) - mean('head', n):+.3f}"
        for n in args.sizes[:: len(args.sizes) - 1 or 1]
    )
    return "\n\n".join(
        [
            HEADING,
            f"`python benchmarks/plans.py --sizes {sizes} --write`, "
            f"{time.strftime('%Y-%m-%d')}, {args.machine}, "
            f"Python {platform.python_version()}, TensorFlow {tf.__version__}, Keras "
            f"{keras.__version__}.",
            "Drawn street scenes, the embedded extractor, a head of 512 units; macro AUC on "
            f"{TEST:,} test images, mean and range of {args.seeds} seeds; epochs trained.",
            "\n".join(lines),
            f"The best fixed plan less `auto` (wanted: 0.01 or less): {verdict}.",
            f"`gradual` less `head` (wanted: not below 0 at the least, 0.02 or more at the most): "
            f"{gains}.",
        ]
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plans", nargs="+", default=list(PLANS))
    parser.add_argument("--folder", type=Path, help="where images and runs are kept")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores {platform.machine()}")
    parser.add_argument("--write", action="store_true", help="keep the table in RESULTS.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = args.folder or Path(made)
        results = {
            (plan, size): [
                measured(folder, plan, size, seed, args.workers) for seed in range(args.seeds)
            ]
            for size in args.sizes
            for plan in args.plans
        }
    text = section(results, args)
    print(text)
    if args.write:
        from results import keep

        keep(HEADING, text)


if __name__ == "__main__":
    main()
