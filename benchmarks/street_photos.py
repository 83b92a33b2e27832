"""A project with default settings on real photographs, against one logistic regression per task.

    python benchmarks/street_photos.py --labels LABELS.csv --backbone FOLDER [--seeds 5] [--write]

Both learn from the same frozen backbone's features of the CSV's training rows; scikit-learn scores
both on its test rows. The regressions see all training rows; the project keeps some of them for
validation, and each seed keeps others. A last line has the same project with the embedded backbone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import kerasmtl as kt
from kerasmtl.cli.new import new_project

HERE = Path(__file__).resolve().parent
HEADING = "## Street photos: default settings on real photographs"
SHARED = HERE.parents[1] / "shared"


def project(labels: str, backbone: str, seed: int, folder: Path) -> tuple[dict, float]:
    """Train a generated project with this seed; its report, and the seconds of `train.py`."""
    made = new_project("multitask-image", folder, {"labels": labels, "backbone": backbone})
    settings = made / "project.toml"
    settings.write_text(re.sub(r"(?m)^seed = \d+", f"seed = {seed}", settings.read_text()))
    began = time.perf_counter()
    subprocess.run([sys.executable, "train.py"], cwd=made, check=True, capture_output=True)
    seconds = time.perf_counter() - began
    command = [sys.executable, "-c", "from kerasmtl.cli import main; main()", "evaluate", "--json"]
    done = subprocess.run(command, cwd=made, check=True, capture_output=True, text=True)
    return json.loads(done.stdout), seconds


def regressions(labels: str, backbone: str) -> dict[str, float]:
    """AUC by task of one logistic regression per task on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    manifest = kt.Manifest.from_csv(labels)
    layer = kt.HubLayer(backbone)
    dataset = kt.make_dataset(manifest, layer.image_size)
    features = np.concatenate([np.asarray(layer(images)) for images, _ in dataset])
    train, test = manifest.splits == "train", manifest.splits == "test"
    scores = {}
    for column, task in enumerate(manifest.tasks):
        y = manifest.labels[:, column]
        learn, judge = train & ~np.isnan(y), test & ~np.isnan(y)
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        model.fit(features[learn], y[learn])
        scores[task.name] = roc_auc_score(y[judge], model.decision_function(features[judge]))
    return scores


def section(
    reports: list[tuple[dict, float]],
    peer: dict[str, float],
    toy: list[tuple[dict, float]],
    cores: str,
) -> str:
    """The section of RESULTS.md."""
    import keras
    import tensorflow as tf

    names = list(peer)
    own = {n: [report["tasks"][n]["auc"] for report, _ in reports] for n in names}
    drawn = {n: [report["tasks"][n]["auc"] for report, _ in toy] for n in names}
    macro = [report["macro_auc"] for report, _ in reports]
    macro_drawn = [report["macro_auc"] for report, _ in toy]
    seconds = [taken for _, taken in reports]
    rows = [
        ("logistic regressions, one a task", [*peer.values()], np.mean([*peer.values()]), ""),
        (
            f"project, mean of seeds 0 to {len(reports) - 1}",
            [np.mean(own[n]) for n in names],
            np.mean(macro),
            f"{min(macro):.3f} to {max(macro):.3f}",
        ),
        ("project, seed 0 (the default)", [own[n][0] for n in names], macro[0], ""),
        (
            "project with the embedded backbone, trained on drawings",
            [np.mean(drawn[n]) for n in names],
            np.mean(macro_drawn),
            f"{min(macro_drawn):.3f} to {max(macro_drawn):.3f}",
        ),
    ]
    table = [
        f"| | {' | '.join(names)} | macro AUC | over the seeds |",
        "| --- |" + " ---: |" * (len(names) + 2),
        *(
            f"| {name} | {' | '.join(f'{a:.3f}' for a in aucs)} | **{mean:.3f}** | {span} |"
            for name, aucs, mean, span in rows
        ),
    ]
    return "\n\n".join(
        [
            HEADING,
            f"`python benchmarks/street_photos.py --write`, {time.strftime('%Y-%m-%d')}, {cores}, "
            f"Python {platform.python_version()}, TensorFlow {tf.__version__}, Keras "
            f"{keras.__version__}; 230 photographs, backbone MobileNetV1-0.25 at 224.",
            "\n".join(table),
            f"`python train.py`, a whole process: {min(seconds):.0f} to {max(seconds):.0f} s.",
        ]
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--labels", default=str(SHARED / "data" / "street_photos" / "labels.csv"))
    parser.add_argument("--backbone", default=str(SHARED / "models" / "mobilenet_v1_025_224"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores {platform.machine()}")
    parser.add_argument("--write", action="store_true", help="keep the table in RESULTS.md")
    args = parser.parse_args()
    if not Path(args.labels).is_file() or not Path(args.backbone).is_dir():
        print(f"skipped: {args.labels} or {args.backbone} is not at hand")
        return
    with tempfile.TemporaryDirectory() as folder:
        reports, toy = (
            [
                project(args.labels, backbone, seed, Path(folder) / f"{Path(backbone).name}_{seed}")
                for seed in range(args.seeds)
            ]
            for backbone in (args.backbone, "tiny")
        )
    text = section(reports, regressions(args.labels, args.backbone), toy, args.machine)
    print(text)
    if args.write:
        from results import keep

        keep(HEADING, text)


if __name__ == "__main__":
    main()
