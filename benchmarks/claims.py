"""What the advice rests on: three claims of transfer and multi-task learning, measured.

    python benchmarks/claims.py [--sizes 300 10000] [--seeds 1] [--write]

1. A pretrained backbone gains much with few images, and less the more there are: street scenes,
   the embedded extractor against the same network from random weights, equal steps, the best epoch
   by validation on both sides.
2. One network for all tasks is better than one for each where each task alone has little to learn
   from: Tox21, twelve assays, single networks.
3. One network that is too small is worse than one for each task: `kt.compare(…, "size")` on the
   street scenes of the demo.

Trainings of the first claim are kept in --folder: a stopped run continues.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from plans import SEED_OF_TEST, SEED_OF_TRAINING, SEED_OF_VALIDATION, TEST, drawn

import kerasmtl as kt
from kerasmtl.utils.files import write_text

HEADING = "## Claims: when transfer and several tasks pay"
STEPS = 1200  # of each training; batches of 32
TOX21 = Path(__file__).resolve().parents[2] / "shared" / "data" / "tox21"


# ---------------------------------------------------------------- transfer


def trained(folder: Path, transfer: bool, size: int, seed: int, most: int) -> float:
    """Macro AUC on test images of the embedded extractor, fine-tuned or from random weights."""
    import keras

    from kerasmtl.advice.transfer import forget
    from kerasmtl.models.backbones import backbones_in

    workers = os.cpu_count() or 1
    train = kt.Manifest.from_csv(drawn(folder, SEED_OF_TRAINING + seed, most, workers))
    held = kt.Manifest.from_csv(
        drawn(folder, SEED_OF_VALIDATION + seed, max(100, most // 5), workers)
    )
    test = kt.Manifest.from_csv(drawn(folder, SEED_OF_TEST, TEST, workers))
    train, held = train.take(range(size)), held.take(range(max(100, size // 5)))
    keras.utils.set_random_seed(seed)
    model = kt.build_model("tiny", train.tasks)
    data = kt.make_dataset(
        train, model.input_shape[1:3], training=True, seed=seed, augment="default"
    )
    judge = kt.make_dataset(held, model.input_shape[1:3], batch_size=100)
    epochs = max(2, round(STEPS * 32 / size))
    options = {"normalization": True, "schedule": "cosine", "warmup": 1.0}
    if transfer:  # the head, and then everything, with the same steps together
        plan = [
            kt.plans.Stage("head", epochs // 2, 1e-3),
            kt.plans.Stage("all", epochs - epochs // 2, 1e-4, **options),
        ]
    else:
        forget([weight for part in backbones_in(model) for weight in part.weights], seed)
        plan = [kt.plans.Stage("all", epochs, 1e-3, **options)]
    kt.fine_tune(model, data, judge, plan=plan, verbose=0)
    dataset = kt.make_dataset(test, model.input_shape[1:3], batch_size=100)
    return kt.evaluate(model, dataset, train.tasks).macro_auc


def transfer(folder: Path, sizes: list[int], seeds: int) -> list[str]:
    """Lines of the table: from random weights, transfer, and the gain by size."""
    lines = []
    for size in sizes:
        found: dict[bool, list[float]] = {False: [], True: []}
        for seed in range(seeds):
            for pretrained in found:
                file = folder / f"claim_{size}_{seed}_{pretrained}_{STEPS}_linear.json"
                if not file.is_file():
                    score = trained(folder, pretrained, size, seed, max(sizes))
                    write_text(file, json.dumps(score))
                    print(f"{file.stem}: {score:.3f}", file=sys.stderr, flush=True)
                found[pretrained].append(json.loads(file.read_text()))
        scratch, own = (np.array(found[key]) for key in (False, True))
        gains = ", ".join(f"{gain:+.3f}" for gain in own - scratch)
        lines.append(
            f"| a pretrained backbone, {size:,} images | {own.mean():.3f} | from random weights "
            f"{scratch.mean():.3f} | **{(own - scratch).mean():+.3f}** ({gains}) |"
        )
    return lines


# ---------------------------------------------------------------- several tasks, size


def one_against_each() -> list[str]:
    """The line of Tox21: one network for twelve assays against twelve networks."""
    from kerasmtl.advice.statistics import Bootstrap, estimate
    from kerasmtl.models.mlp import columns
    from kerasmtl.tasks import by_task
    from kerasmtl.training.auto import encoded_views
    from kerasmtl.training.heads import MANY_ROWS

    train, test = (np.load(TOX21 / f"{part}.npz") for part in ("train", "test"))
    tasks = tuple(kt.Task(str(name)) for name in train["tasks"])
    x, x_test = (np.unpackbits(part["X"], axis=1).astype("float32") for part in (train, test))
    encoding = columns(x)
    x, x_test = (np.asarray(encoding(values)) for values in (x, x_test))
    options: dict[str, Any] = {
        "candidates": [replace(MANY_ROWS, ensemble=False)],
        "views": encoded_views(encoding),
    }
    whole = kt.features.fit_head(x, train["Y"], tasks, **options)
    each = {}
    for task, labels in zip(tasks, train["Y"].T, strict=True):
        head = kt.features.fit_head(x, labels[:, None], [task], **options)
        each |= by_task(head.predict(x_test), [task])
        print(f"{task.name} alone", file=sys.stderr, flush=True)
    bootstrap = Bootstrap(tasks, test["Y"], None, 1)
    one, alone = (
        bootstrap.macro(bootstrap.scores([found]))
        for found in (by_task(whole.predict(x_test), tasks), each)
    )
    return [
        f"| one network for 12 assays, Tox21 | {one[0]:.3f} | one for each {alone[0]:.3f} | "
        f"**{estimate(one - alone)}** |"
    ]


def sizes_of_one() -> list[str]:
    """The lines of widths: one network against one per task, on the street scenes of the demo."""
    with tempfile.TemporaryDirectory() as folder:
        toml = 'name = "street"\n[data]\nlabels = "street_scenes"\n'
        (Path(folder) / "project.toml").write_text(toml)
        found = kt.compare(kt.Project.load(folder), "size", minutes=60)
    print(found, file=sys.stderr)
    return [
        f"| one network of width {row['width']}, street scenes | {row['one network']:.3f} | one a "
        f"task of that width {row['one per task']:.3f} | **{row['difference']}** |"
        for _, row in found.table.iterrows()
    ]


def section(args: argparse.Namespace, lines: list[str]) -> str:
    """The section of RESULTS.md."""
    import keras
    import tensorflow as tf

    return "\n\n".join(
        [
            HEADING,
            f"`python benchmarks/claims.py --sizes {' '.join(map(str, args.sizes))} --seeds "
            f"{args.seeds} --write`, {time.strftime('%Y-%m-%d')}, {args.machine}, Python "
            f"{platform.python_version()}, TensorFlow {tf.__version__}, Keras {keras.__version__}.",
            "Macro ROC-AUC on test rows. Images: drawn street scenes, the embedded extractor with "
            f"a linear head, augmented, {STEPS:,} steps of 32 on both sides, the best epoch by "
            f"validation; seeds: {args.seeds}, with the gain of each. Tox21 and widths: "
            "single networks, their steps by folds on both sides; intervals of 95 % over "
            "test rows (and three seeds).",
            "\n".join(
                ["| | score | against | difference |", "| --- | ---: | ---: | ---: |", *lines]
            ),
            "Wanted: 0.05 or more at 300 images and less at 10,000; 0.02 or more on Tox21; a loss "
            "at width 4 and none at 256.",
        ]
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[300, 10_000])
    parser.add_argument("--seeds", type=int, default=1, help="of the trainings on images")
    parser.add_argument("--folder", type=Path, default=Path(".plans"), help="of images and runs")
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores {platform.machine()}")
    parser.add_argument("--write", action="store_true", help="keep the table in RESULTS.md")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    lines = transfer(args.folder, args.sizes, args.seeds)
    lines += one_against_each() if TOX21.is_dir() else []
    text = section(args, [*lines, *sizes_of_one()])
    print(text)
    if args.write:
        from results import keep

        keep(HEADING, text)


if __name__ == "__main__":
    kt.quiet_tensorflow()
    main()
