"""The same predictions and missing labels, scored by kerasmtl and as others score them.

    python benchmarks/who_lies.py [--rows 4000] [--write]

A perfect model ranks every known positive of a task above every known negative of it; a noisy one
does not. 30 % of the labels are missing, and come coded as each contestant takes them: NaN, -1, or
0 with weight 0. The truth is scikit-learn, task by task, on cells from which the missing ones have
been deleted. The conventions of DeepChem and chemprop are computed here, with scikit-learn, as
their sources describe them:

- DeepChem: an empty cell is y = 0 with w = 0 (deepchem/data/data_loader.py), and a metric leaves
  w = 0 out only with use_sample_weights=True, not by default (deepchem/metrics/metric.py).
- chemprop: known cells of all tasks in one ranking (chemprop/nn/metrics.py, BinaryAUROC).
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable

import keras
import numpy as np
from sklearn.metrics import roc_auc_score

import kerasmtl as kt

HEADING = "## Who lies: one set of predictions with missing labels, scored by all"
TASKS, MISSING = 6, 0.3


def labels_and_predictions(rows: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Labels (rows, tasks) with NaN, and each model's probabilities (rows, tasks).

    Tasks differ in their share of positives and in their level of probability, as tasks do.
    """
    rng = np.random.default_rng(0)
    share = np.linspace(0.05, 0.5, TASKS)
    y = (rng.random((rows, TASKS)) < share).astype("float32")
    level = np.log(share / (1 - share))
    logits = {
        "perfect": level + 3.0 * y + rng.uniform(-1.4, 1.4, y.shape),
        "noisy": level + 1.5 * y + rng.normal(size=y.shape),
    }
    y[rng.random(y.shape) < MISSING] = np.nan
    return y, {name: (1 / (1 + np.exp(-z))).astype("float32") for name, z in logits.items()}


def truth(y: np.ndarray, p: np.ndarray) -> float:
    """Mean over tasks of scikit-learn's AUC on deleted cells."""
    known = [np.flatnonzero(~np.isnan(y[:, j])) for j in range(y.shape[1])]
    return float(np.mean([roc_auc_score(y[k, j], p[k, j]) for j, k in enumerate(known)]))


def kerasmtl_auc(code: float) -> Callable[[np.ndarray, np.ndarray], float]:
    """The streaming metric, missing labels coded as `code`."""

    def score(y: np.ndarray, p: np.ndarray) -> float:
        metric = kt.metrics.MaskedAUC(missing=None if np.isnan(code) else code)
        metric.update_state(np.where(np.isnan(y), np.float32(code), y), p)
        return float(metric.result())

    return score


def keras_auc(code: float) -> Callable[[np.ndarray, np.ndarray], float]:
    """keras.metrics.AUC(multi_label=True), missing labels coded as `code`."""

    def score(y: np.ndarray, p: np.ndarray) -> float:
        metric = keras.metrics.AUC(num_thresholds=1024, multi_label=True, num_labels=y.shape[1])
        metric.update_state(np.where(np.isnan(y), np.float32(code), y), p)
        return float(metric.result())

    return score


def exact(y: np.ndarray, p: np.ndarray) -> float:
    """kerasmtl.evaluate on a model that gives these predictions."""
    inputs = keras.Input(p.shape[1:])
    echo = keras.Model(inputs, keras.layers.Activation("linear")(inputs))
    return kt.evaluate(echo, [(p, y)], [f"task {j}" for j in range(y.shape[1])]).macro_auc


def filled_with_zero(y: np.ndarray, p: np.ndarray) -> float:
    """DeepChem's default: a missing label is y = 0, w = 0, and w is not used."""
    filled = np.nan_to_num(y)
    return float(np.mean([roc_auc_score(filled[:, j], p[:, j]) for j in range(y.shape[1])]))


def pooled(y: np.ndarray, p: np.ndarray) -> float:
    """chemprop's: known cells of all tasks in one ranking."""
    known = ~np.isnan(y)
    return float(roc_auc_score(y[known], p[known]))


def torchmetrics_auc(y: np.ndarray, p: np.ndarray) -> float:
    """torchmetrics' MultilabelAUROC, missing labels coded -1 and named in ignore_index."""
    import torch
    from torchmetrics.classification import MultilabelAUROC

    metric = MultilabelAUROC(num_labels=y.shape[1], ignore_index=-1)
    coded = torch.tensor(np.nan_to_num(y, nan=-1).astype("int64"))
    return float(metric(torch.tensor(p), coded))


CONTESTANTS = {
    "scikit-learn by task on deleted cells: the truth": truth,
    "`kerasmtl.evaluate`, NaN": exact,
    "`kerasmtl.metrics.MaskedAUC`, NaN (streaming)": kerasmtl_auc(float("nan")),
    "`kerasmtl.metrics.MaskedAUC(missing=-1)`, -1 (streaming)": kerasmtl_auc(-1.0),
    "`keras.metrics.AUC(multi_label=True)`, NaN": keras_auc(float("nan")),
    "`keras.metrics.AUC(multi_label=True)`, -1": keras_auc(-1.0),
    "DeepChem's default, 0 with unused weight 0": filled_with_zero,
    "chemprop's, all tasks pooled, NaN": pooled,
    "torchmetrics `MultilabelAUROC(ignore_index=-1)`, -1": torchmetrics_auc,
}
NEAR = 0.002  # what binning may cost the streaming metrics


def sections(rows: int, machine: str) -> str:
    """The section of RESULTS.md."""
    y, models = labels_and_predictions(rows)
    right = {name: truth(y, p) for name, p in models.items()}
    lines = [
        f"| scored by | {' | '.join(models)} | says the truth |",
        "| --- | ---: | ---: | --- |",
    ]
    skipped = []
    for who, score in CONTESTANTS.items():
        try:
            found = {name: score(y, p) for name, p in models.items()}
        except ImportError as error:
            skipped.append(f"Skipped: {who}: {error}.")
            continue
        honest = all(abs(found[name] - right[name]) <= NEAR for name in models)
        numbers = " | ".join(f"{value:.4f}" for value in found.values())
        lines.append(f"| {who} | {numbers} | {'yes' if honest else '**no**'} |")
    return "\n\n".join(
        [
            HEADING,
            f"`python benchmarks/who_lies.py --write`, {time.strftime('%Y-%m-%d')}, {machine}, "
            f"Python {platform.python_version()}, Keras {keras.__version__}; {rows} rows, {TASKS} "
            f"tasks, {np.isnan(y).mean():.0%} of the labels missing at random; mean area under the "
            f"ROC curve. The truth is said if both numbers are within {NEAR} of it.",
            "\n".join(lines),
            *skipped,
        ]
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores {platform.machine()}")
    parser.add_argument("--write", action="store_true", help="keep the table in RESULTS.md")
    args = parser.parse_args()
    text = sections(args.rows, args.machine)
    print(text)
    if args.write:
        from results import keep

        keep(HEADING, text)


if __name__ == "__main__":
    main()
