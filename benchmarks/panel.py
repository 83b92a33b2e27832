"""The default of a generated project against the usual methods, on nine real or drawn data sets.

    python benchmarks/panel.py [--sets flags,slump] [--hidden 0,90] [--seeds 1] [--write]

Each set with 0, 50 and 90 % of the training labels hidden. All contestants learn from the same
rows, train and validation together, and scikit-learn scores them on the same test rows: macro
ROC-AUC over the tasks with both classes there, or mean R². kerasmtl is what `kerasmtl new` makes
and its train.py trains, with no setting but the seed. Cells are kept in --folder as they finish: a
stopped run continues. What was measured with other code of kerasmtl is measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import gc
import hashlib
import importlib.util
import io
import json
import os
import platform
import re
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import kerasmtl as kt
from kerasmtl.cli.new import new_project
from kerasmtl.models.hub.embedded import dataset_csv
from kerasmtl.utils.files import write_text

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
HEADING = "## The panel: the default against linear models, forests and boosting"
PANEL = ("flags", "slump", "edm", "oes97", "birds", "medical")
REGRESSION = ("slump", "edm", "oes97")
SETS = (*PANEL, "street_photos", "street_scenes", "tox21")
HIDDEN = (0, 50, 90)
MARGIN = 0.01  # by which kerasmtl may be below the linear models


# ---------------------------------------------------------------- the sets


@dataclass(frozen=True, eq=False)
class Data:
    """A set: inputs (rows, columns), labels (rows, tasks) with NaN = missing, and its images."""

    tasks: tuple[str, ...]
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    regression: bool = False
    images: tuple[str, ...] = ()  # paths, train rows first; the inputs are then features of them
    splits: tuple[str, ...] = ()
    backbone: str = ""


def load(name: str, hidden: int, seed: int) -> tuple[Data, bool]:
    """Read a set with that percentage of its training labels hidden.

    Returns:
        The set, and whether the seed has chosen what is hidden.
    """
    if name in PANEL:
        train, test = (
            np.load(SHARED / "data" / "panel" / f"{name}_{part}.npz")
            for part in (f"train_{hidden}", "test")
        )
        tasks = tuple(map(str, train["tasks"]))
        data = Data(tasks, train["X"], train["Y"], test["X"], test["Y"], name in REGRESSION)
        return data, False
    data = whole(name)
    if not hidden:
        return data, False
    gone = np.random.default_rng(seed).random(data.y.shape) < hidden / 100
    return replace(data, y=np.where(gone, np.nan, data.y)), True


@functools.cache
def whole(name: str) -> Data:
    """Read a set that has no files with hidden labels: nothing is hidden."""
    if name == "tox21":
        train, test = (np.load(SHARED / "data" / "tox21" / f"{p}.npz") for p in ("train", "test"))
        bits = (np.unpackbits(file["X"], axis=1) for file in (train, test))
        x, x_test = (each.astype("float32") for each in bits)
        return Data(tuple(map(str, train["tasks"])), x, train["Y"], x_test, test["Y"])
    photos = name == "street_photos"
    folder = SHARED / "data" / "street_photos" if photos else dataset_csv("street_scenes").parent
    backbone = str(SHARED / "models" / "mobilenet_v1_025_224") if photos else "tiny"
    manifest = kt.Manifest.from_csv(folder / "labels_full.csv")
    test = manifest.splits == "test"
    manifest = manifest.take(np.concatenate([np.flatnonzero(~test), np.flatnonzero(test)]))
    layer = kt.load_backbone(backbone)
    batches = kt.make_dataset(manifest, layer.image_size)
    features = np.concatenate([np.asarray(layer(images)) for images, _ in batches])
    count = int((~test).sum())
    return Data(
        tuple(task.name for task in manifest.tasks),
        features[:count],
        manifest.labels[:count],
        features[count:],
        manifest.labels[count:],
        images=tuple(str(folder / path) for path in manifest.names),
        splits=tuple(manifest.splits),
        backbone=backbone,
    )


# ---------------------------------------------------------------- the contestants


def per_task(make: Callable[[np.ndarray, bool, int], Any]) -> Callable[[Data, int], np.ndarray]:
    """Turn a maker of scikit-learn's estimators into a contestant: one for each task.

    Args:
        make: called with the known labels of a task, whether they are classes, and the seed.
    """

    def predictions(data: Data, seed: int) -> np.ndarray:
        columns = []
        for y in data.y.T:
            known = ~np.isnan(y)
            learnt = y[known]
            if len(np.unique(learnt)) < 2 or (data.regression and len(learnt) < 3):
                columns.append(np.full(len(data.x_test), learnt.mean() if len(learnt) else 0.0))
                continue
            model = make(learnt, not data.regression, seed).fit(data.x[known], learnt)
            columns.append(
                model.predict(data.x_test)
                if data.regression
                else model.predict_proba(data.x_test)[:, 1]
            )
        return np.stack(columns, axis=1)

    return predictions


def linear(y: np.ndarray, binary: bool, seed: int) -> Any:
    """A logistic or ridge regression, its strength chosen among eight by three folds."""
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not binary:
        model = RidgeCV(alphas=np.logspace(-3, 4, 15))
    elif min((y == 0).sum(), (y == 1).sum()) < 3:
        model = LogisticRegression(C=0.01, max_iter=1000)
    else:
        model = LogisticRegressionCV(
            Cs=np.logspace(-4, 1, 8), cv=3, scoring="neg_log_loss", max_iter=1000, tol=1e-3
        )
    return make_pipeline(StandardScaler(), model)


def forest(y: np.ndarray, binary: bool, seed: int) -> Any:
    """A random forest of 300 trees with leaves of two rows or more."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    kind = RandomForestClassifier if binary else RandomForestRegressor
    return kind(n_estimators=300, min_samples_leaf=2, n_jobs=-1, random_state=seed)


def boosting(y: np.ndarray, binary: bool, seed: int) -> Any:
    """scikit-learn's histogram gradient boosting, as it is by default."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingClassifier if binary else HistGradientBoostingRegressor
    return kind(random_state=seed)


def lightgbm(y: np.ndarray, binary: bool, seed: int) -> Any:
    """LightGBM, as it is by default."""
    from lightgbm import LGBMClassifier, LGBMRegressor

    return (LGBMClassifier if binary else LGBMRegressor)(random_state=seed, verbose=-1)


def project(data: Data, seed: int) -> np.ndarray:
    """Train a generated project by its own train.py; return what its model says of the test rows.

    The process stays the same for all projects, which saves the start of TensorFlow, and no
    SavedModel is written; neither changes a prediction.
    """
    import keras

    kind = "multitask-image" if data.images else "multitask-tabular"
    with tempfile.TemporaryDirectory() as folder:
        answers = write_labels(data, Path(folder))
        made = new_project(kind, Path(folder) / "panel", answers)
        settings = made / "project.toml"
        settings.write_text(re.sub(r"(?m)^seed = \d+", f"seed = {seed}", settings.read_text()))
        keras.backend.clear_session()
        loaded = kt.Project.load(made)
        train = imported(made / "train.py")
        with printed_aside(), exports_left_out():
            train.main(loaded)
        model = kt.load_model(loaded.checkpoint)
        test = loaded.part("test")
        if not np.array_equal(test.labels, data.y_test.astype("float32"), equal_nan=True):
            raise AssertionError("the test rows of the project must be those of the set")
        found = model.predict(loaded.dataset(test, model), verbose=0)
    gc.collect()
    if isinstance(found, dict):
        found = np.column_stack([np.ravel(found[name]) for name in data.tasks])
    return found


def write_labels(data: Data, folder: Path) -> dict[str, Any]:
    """Write the labels file of a set; return the answers for `new_project`."""
    labels, rows = np.concatenate([data.y, data.y_test]), (len(data.y), len(data.y_test))
    if data.images:
        path = folder / "labels.csv"
        with path.open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["image", "split", *data.tasks])
            for image, split, row in zip(data.images, data.splits, labels, strict=True):
                cells = ["?" if np.isnan(cell) else f"{cell:.0f}" for cell in row]
                out.writerow([image, split, *cells])
        return {"labels": str(path), "backbone": data.backbone, "_allow_outside": True}
    path = folder / "labels.npz"
    np.savez(
        path,
        X=np.concatenate([data.x, data.x_test]),
        Y=labels,
        tasks=np.array(data.tasks),
        split=np.repeat(["train", "test"], rows),
    )
    kinds = [kt.Task(name, "regression") for name in data.tasks] if data.regression else None
    return {"labels": str(path), **({"_tasks": kinds} if kinds else {})}


def imported(file: Path) -> Any:
    """Import a project's train.py, which imports the model.py beside it."""
    sys.modules.pop("model", None)
    sys.path.insert(0, str(file.parent))
    try:
        spec = importlib.util.spec_from_file_location("panel_train", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module


@contextlib.contextmanager
def printed_aside() -> Any:
    """Hide what a training prints, unless it fails: then the end of it is shown."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception:
        print(said.getvalue()[-2000:], file=sys.stderr)
        raise


@contextlib.contextmanager
def exports_left_out() -> Any:
    """Let `project.export` of a train.py write nothing."""
    kept = kt.Project.export
    kt.Project.export = lambda self, *args, **options: "left out"
    try:
        yield
    finally:
        kt.Project.export = kept


@dataclass(frozen=True)
class Contestant:
    """What fits and predicts; whether it draws anything, and so has a result for each seed."""

    predict: Callable[[Data, int], np.ndarray]
    draws: bool


CONTESTANTS = {
    "linear": Contestant(per_task(linear), False),
    "forest": Contestant(per_task(forest), True),
    "boosting": Contestant(per_task(boosting), False),
    "lightgbm": Contestant(per_task(lightgbm), False),
    "kerasmtl": Contestant(project, True),
}


# ---------------------------------------------------------------- cells


def score(data: Data, predictions: np.ndarray) -> float:
    """Macro ROC-AUC over tasks with both classes in the test rows, or mean R²."""
    from sklearn.metrics import r2_score, roc_auc_score

    found = []
    for y, values in zip(data.y_test.T, predictions.T, strict=True):
        known = ~np.isnan(y)
        if data.regression:
            found.append(r2_score(y[known], values[known]))
        elif len(np.unique(y[known])) == 2:
            found.append(roc_auc_score(y[known], values[known]))
    return float(np.mean(found))


def code_sha256() -> str:
    """Hash what decides the cells of kerasmtl: the package's and the templates' files."""
    package = Path(kt.__file__).resolve().parent
    digest = hashlib.sha256()
    for root in (package, package.parent / "templates"):
        for file in sorted(root.rglob("*")):
            if file.is_file() and file.suffix in (".py", ".toml", ".json"):
                digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


Cells = dict[str, dict[str, Any]]

ABOUT = {
    "linear": "linear: logistic regression (strength of 8 by 3 folds, log loss; C = 0.01 with "
    "fewer than 3 labels of a class) or RidgeCV per task on standardised columns;",
    "forest": "forest: 300 trees, leaves of 2, per task;",
    "boosting, lightgbm": "boosting, lightgbm: HistGradientBoosting and LightGBM as they are by "
    "default, per task;",
}


def measure(args: argparse.Namespace) -> Cells:
    """Run the cells that are not kept yet; return all that were asked for."""
    path, code = Path(args.folder) / "cells.json", code_sha256()
    kept: Cells = json.loads(path.read_text()) if path.is_file() else {}
    wanted = [
        (name, hidden, seed, who)
        for name in args.sets
        for hidden in args.hidden
        for seed in range(args.seeds)
        for who in args.contestants
    ]
    result: Cells = {}
    for number, (name, hidden, seed, who) in enumerate(wanted, start=1):
        data, drawn = load(name, hidden, seed)
        of = CONTESTANTS[who]
        one = seed if of.draws or drawn else 0  # the same for all seeds
        key = f"{name}/{hidden}/{one}/{who}"
        found = kept.get(key, {})
        stale = who == "kerasmtl" and found.get("code") != code and not args.any_code
        if "score" not in found or stale:
            began = time.perf_counter()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = {"score": score(data, of.predict(data, one))}
            except Exception as error:  # a cell that fails is a result, and is tried again
                found = {"error": f"{type(error).__name__}: {error}"[:300]}
            found |= {"seconds": round(time.perf_counter() - began, 1), "code": code}
            kept[key] = found
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(kept, indent=1, sort_keys=True))
            said = f"{found['score']:.3f}" if "score" in found else found["error"]
            print(
                f"[{number}/{len(wanted)}] {key}: {said} ({found['seconds']:.1f} s)",
                file=sys.stderr,
                flush=True,
            )
        result[f"{name}/{hidden}/{seed}/{who}"] = found
    return result


# ---------------------------------------------------------------- the table


def section(cells: Cells, args: argparse.Namespace) -> str:
    """The section of RESULTS.md."""
    import keras
    import sklearn
    import tensorflow as tf

    who = args.contestants
    head = [f"| set | hidden | {' | '.join(who)} | kerasmtl − linear |"]
    head.append("| --- | ---: |" + " ---: |" * (len(who) + 1))
    means: dict[tuple[str, int], dict[str, float]] = {}
    misses, lines = [], []
    for name in args.sets:
        for hidden in args.hidden:
            runs = {w: [cells[f"{name}/{hidden}/{s}/{w}"] for s in range(args.seeds)] for w in who}
            failed = [w for w, found in runs.items() if any("error" in each for each in found)]
            mean = {
                w: float("nan")
                if w in failed
                else float(np.mean([each["score"] for each in found]))
                for w, found in runs.items()
            }
            shown = [f"{mean[w]:.3f}" if w not in failed else "failed" for w in who]
            gain, counts = mean.get("kerasmtl", np.nan) - mean.get("linear", np.nan), True
            if name in REGRESSION and not mean.get("linear", 1.0) > 0:
                counts = False
            verdict = "" if np.isnan(gain) else f"{gain:+.3f}"
            if counts and (gain < -MARGIN or "kerasmtl" in failed):
                verdict = f"**{verdict or 'failed'}, below**"
                misses.append(f"{name} at {hidden} % ({gain:+.3f})")
            if counts:
                means[name, hidden] = mean
            verdict = verdict if counts else f"{verdict}, not counted".removeprefix(", ")
            label = f"{name} (R²)" if name in REGRESSION else name
            lines.append(f"| {label} | {hidden} % | {' | '.join(shown)} | {verdict} |")
    groups = {
        "mean of all counted cells": list(means),
        "mean, ROC-AUC only": [key for key in means if key[0] not in REGRESSION],
        "mean at 90 % hidden": [key for key in means if key[1] == 90],
    }
    for label, keys in groups.items():
        if not keys:
            continue
        of = {w: float(np.mean([means[key][w] for key in keys])) for w in who}
        shown = " | ".join(f"**{of[w]:.3f}**" for w in who)
        verdict = ""
        if {"kerasmtl", "linear", "forest"} <= set(who):
            gain = of["kerasmtl"] - max(of["linear"], of["forest"])
            verdict = f"{gain:+.3f} over the better of linear and forest"
        lines.append(f"| {label} | {len(keys)} cells | {shown} | {verdict} |")
    seconds: dict[str, float] = {
        w: float(np.mean([found["seconds"] for key, found in cells.items() if key.endswith(w)]))
        for w in who
    }
    codes = {f["code"] for key, f in cells.items() if key.endswith("kerasmtl")}
    mixed = len(codes) > 1
    missed = "; ".join(misses) if misses else "none"
    errors = sorted({f"{key}: {f['error']}" for key, f in cells.items() if "error" in f})
    return "\n\n".join(
        [
            HEADING,
            f"`python benchmarks/panel.py {shlex.join(sys.argv[1:])}`, "
            f"{time.strftime('%Y-%m-%d')}, {args.machine}, Python {platform.python_version()}, "
            f"TensorFlow {tf.__version__}, Keras {keras.__version__}, scikit-learn "
            f"{sklearn.__version__}.",
            "Macro ROC-AUC, or mean R² for regression, on test rows; mean of "
            f"{args.seeds} seed(s). Hidden: the share of the training labels that nobody sees. All "
            "learn from training and validation rows together. "
            + " ".join(text for names, text in ABOUT.items() if {*names.split(", ")} & {*who})
            + " kerasmtl: a new project, no setting changed. Image sets: frozen features of "
            "MobileNetV1-0.25 (street_photos) and of the embedded extractor (street_scenes); "
            "kerasmtl may fine-tune them. The default was chosen with these test scores in view, "
            "so that they flatter it: other data are the test.",
            "\n".join([*head, *lines]),
            f"Cells where kerasmtl is more than {MARGIN} below linear (R² counts where linear is "
            f"above 0): {missed}. Seconds a cell, on the mean: "
            + ", ".join(f"{w} {taken:.1f}" for w, taken in seconds.items())
            + ".",
            *(["The cells of kerasmtl were measured with several states of its code."] * mixed),
            *(f"Failed: {error}" for error in errors),
        ]
    )


def chosen(text: str, known: Any, kind: Callable[[str], Any], name: str) -> list[Any]:
    """Parse an option that lists some of what is known."""
    found = [kind(word) for word in text.split(",")]
    if wrong := [each for each in found if each not in known]:
        raise SystemExit(f"--{name} must be of {', '.join(map(str, known))}, got {wrong[0]}")
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sets", default=",".join(SETS), help="separated by commas")
    parser.add_argument("--hidden", default=",".join(map(str, HIDDEN)), help="percent")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", default=".panel", help="where finished cells are kept")
    parser.add_argument("--any-code", action="store_true", help="take cells of older code, too")
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores {platform.machine()}")
    parser.add_argument("--write", action="store_true", help="keep the table in RESULTS.md")
    args = parser.parse_args()
    args.sets = chosen(args.sets, SETS, str, "sets")
    args.hidden = chosen(args.hidden, HIDDEN, int, "hidden")
    args.contestants = chosen(args.contestants, CONTESTANTS, str, "contestants")
    if "lightgbm" in args.contestants and not importlib.util.find_spec("lightgbm"):
        print("lightgbm is not installed, and left out", file=sys.stderr)
        args.contestants.remove("lightgbm")
    if not (SHARED / "data" / "panel").is_dir():
        print(f"skipped: {SHARED / 'data' / 'panel'} is not at hand")
        return
    try:
        cells = measure(args)
    except KeyboardInterrupt:
        raise SystemExit("Stopped. The same command continues; finished cells are kept.") from None
    text = section(cells, args)
    print(text)
    if args.write:
        from results import keep

        keep(HEADING, text)


if __name__ == "__main__":
    kt.quiet_tensorflow()
    main()
