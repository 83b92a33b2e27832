"""What should an unknown label count for? Ten policies, positives only kept and at random.

    python benchmarks/positives_only.py [--seeds 5] [--write]

The set is `sklearn.datasets.make_multilabel_classification` with a fixed random state: documents as
counts of 100 words, 20 labels, 4.1 positives a row, every label known. Labels are taken away from
the training rows in two ways:

- positives only: one positive a row is kept, drawn at random, and no negative at all;
- at random: each label, 1 or 0, is kept with probability 1/2.

A seed draws the kept labels, the first weights of the head and the order of the rows; the rows
themselves stay. Head, optimizer, batches and epochs are the same for all contestants, and so is the
rule of choice, that of the papers: the epoch with the best mean average precision on a fully
labelled validation part. The test part is fully labelled and looked at once. The numbers of a
policy are its defaults, or those named in the table; none was tuned here. Only EPR is told more
than the labels: how many positives a row has on average.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from sklearn.datasets import make_multilabel_classification
from sklearn.metrics import average_precision_score, roc_auc_score

import kerasmtl as kt
from kerasmtl import losses

HEADING = "## Positives only: what should an unknown label count for?"
TRAINING, VALIDATION, TEST = 1000, 1000, 4000
TASKS, WORDS = 20, 100
HIDDEN, RATE, BATCH, EPOCHS, EVERY = 64, 3e-3, 100, 30, 3
FULL, IGNORE = "full labels (upper bound)", "ignore"

Part = tuple[np.ndarray, np.ndarray]


# ---------------------------------------------------------------- labels


def parts() -> tuple[Part, Part, Part]:
    """Training, validation and test rows with all their labels, as float32."""
    words, labels = make_multilabel_classification(
        n_samples=TRAINING + VALIDATION + TEST,
        n_features=WORDS,
        n_classes=TASKS,
        n_labels=4,
        length=100,
        allow_unlabeled=False,
        random_state=0,
    )
    inputs = np.log1p(words)
    inputs = (inputs - inputs[:TRAINING].mean(0)) / (inputs[:TRAINING].std(0) + 1e-6)
    cuts = [TRAINING, TRAINING + VALIDATION]
    pairs = zip(np.split(inputs, cuts), np.split(labels, cuts), strict=True)
    training, validation, test = ((x.astype("float32"), y.astype("float32")) for x, y in pairs)
    return training, validation, test


def one_positive_a_row(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Of each row one label 1 is kept, and nothing else."""
    chosen = np.argmax(np.where(y == 1, rng.random(y.shape), -1.0), axis=1)
    kept = np.full_like(y, np.nan)
    kept[np.arange(len(y)), chosen] = 1.0
    return kept


def half_at_random(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each label is kept with probability 1/2."""
    return np.where(rng.random(y.shape) < 0.5, y, np.float32(np.nan))


# The policies whose scores are compared under each way of taking labels away.
MECHANISMS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "positives only": one_positive_a_row,
    "at random": half_at_random,
}


# ---------------------------------------------------------------- contestants

# A loss on logits, from the mean number of positives a row.
POLICIES: dict[str, Callable[[float], losses.MaskedBinaryCrossentropy]] = {
    IGNORE: lambda k: losses.MaskedBinaryCrossentropy(from_logits=True),
    "AN": lambda k: losses.AssumeNegative(from_logits=True),
    "AN-LS (0.1)": lambda k: losses.AssumeNegative(label_smoothing=0.1, from_logits=True),
    "WAN": lambda k: losses.AssumeNegative("weak", from_logits=True),
    "EPR (k given)": lambda k: losses.ExpectedPositives(k, from_logits=True),
    "ASL, unknown as 0 (γ 1, 4, 4)": lambda k: losses.AsymmetricLoss(
        gamma_unknown=4.0, from_logits=True
    ),
    "P-ASL (γ 0, 1, 4)": lambda k: losses.AsymmetricLoss(0.0, 1.0, gamma_unknown=4.0,
                                                         from_logits=True),
    "Hill": lambda k: losses.HillLoss(from_logits=True),
    "LL-R (0.2 % an epoch)": lambda k: losses.LargeLoss("reject", from_logits=True),
    "LL-Ct (0.2 % an epoch)": lambda k: losses.LargeLoss("correct", from_logits=True),
}  # fmt: skip


def scores(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
    """Mean average precision and mean area under the ROC curve, over tasks."""
    columns = list(zip(y.T, p.T, strict=True))
    return (
        float(np.mean([average_precision_score(truth, seen) for truth, seen in columns])),
        float(np.mean([roc_auc_score(truth, seen) for truth, seen in columns])),
    )


class BestEpoch(keras.callbacks.Callback):
    """Keeps the weights with the best mean average precision on the validation part."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part, self.best, self.weights = part, -1.0, None

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if (epoch + 1) % EVERY:
            return
        x, y = self.part
        score, _ = scores(y, self.model.predict_on_batch(x))
        if score > self.best:
            self.best, self.weights = score, self.model.get_weights()


class Learner:
    """A head and its loss, compiled once and started afresh for every seed."""

    def __init__(self, loss: keras.losses.Loss, validation: Part, test: Part) -> None:
        self.validation, self.test, self.loss = validation, test, loss
        self.model = keras.Sequential(
            [
                keras.Input((WORDS,)),
                keras.layers.Dense(HIDDEN, activation="relu"),
                keras.layers.Dense(TASKS),
            ]
        )
        optimizer = keras.optimizers.Adam(RATE)
        optimizer.build(self.model.trainable_variables)
        self.model.compile(optimizer, loss, steps_per_execution=TRAINING // BATCH)
        self._start = [keras.ops.convert_to_numpy(variable) for variable in optimizer.variables]

    def run(self, x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, float]:
        """Scores on the test part of the best epoch."""
        keras.utils.set_random_seed(seed)
        for layer in self.model.layers:
            kernel = keras.initializers.GlorotUniform()(layer.kernel.shape)
            layer.set_weights([np.array(kernel), np.zeros(layer.bias.shape)])
        for variable, value in zip(self.model.optimizer.variables, self._start, strict=True):
            variable.assign(value)
        keeper = BestEpoch(self.validation)
        callbacks = [keeper]
        if isinstance(self.loss, losses.LargeLoss):
            callbacks.append(kt.callbacks.LargeLossSchedule(x, y, batch_size=len(x)))
        self.model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0, callbacks=callbacks)
        self.model.set_weights(keeper.weights)
        return scores(self.test[1], self.model.predict_on_batch(self.test[0]))


# ---------------------------------------------------------------- the tables


@dataclass(frozen=True)
class Outcome:
    """Scores (mechanism, contestant) -> (seeds, 2), the seconds, and the positives a row."""

    found: dict[tuple[str, str], np.ndarray]
    seconds: float
    positives: float


def measure(seeds: int) -> Outcome:
    """Every contestant under both mechanisms."""
    began = time.perf_counter()
    (x, y), validation, test = parts()
    positives = float(y.sum(axis=1).mean())
    found = {}
    learner = Learner(POLICIES[IGNORE](positives), validation, test)
    full = np.array([learner.run(x, y, seed) for seed in range(seeds)])
    for mechanism in MECHANISMS:
        found[mechanism, FULL] = full
    for name, policy in POLICIES.items():
        learner = Learner(policy(positives), validation, test)
        for mechanism, take_away in MECHANISMS.items():
            found[mechanism, name] = np.array(
                [
                    learner.run(x, take_away(y, np.random.default_rng(seed)), seed)
                    for seed in range(seeds)
                ]
            )
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return Outcome(found, time.perf_counter() - began, positives)


def table(found: dict[tuple[str, str], np.ndarray], mechanism: str) -> str:
    """One mechanism in Markdown; the difference from "ignore" is taken seed by seed."""
    lines = [
        "| unknown labels | mAP | over the seeds | macro AUC | over the seeds | "
        "mAP less that of ignore | over the seeds |",
        "| --- |" + " ---: |" * 6,
    ]
    for name in (FULL, *POLICIES):
        rows = found[mechanism, name]
        gain = rows[:, 0] - found[mechanism, IGNORE][:, 0]
        cells = [_mean_and_range(rows[:, 0]), _mean_and_range(rows[:, 1])]
        cells.append("| |" if name == IGNORE else _mean_and_range(gain, "+"))
        lines.append(f"| {name} | {' | '.join(cells)} |".replace("| | | |", "| | |"))
    return "\n".join(lines)


def _mean_and_range(values: np.ndarray, sign: str = "") -> str:
    shape = f"{{:{sign}.3f}}"
    low, high = shape.format(values.min()), shape.format(values.max())
    return f"{shape.format(values.mean())} | {low} to {high}"


def verdict(found: dict[tuple[str, str], np.ndarray], mechanism: str) -> str:
    """How "ignore" does against the policies, mean average precision, seed by seed."""
    ignored = found[mechanism, IGNORE][:, 0]
    gains = {n: found[mechanism, n][:, 0] - ignored for n in POLICIES if n != IGNORE}
    ahead = [name for name, gain in gains.items() if gain.min() > 0]
    behind = [name for name, gain in gains.items() if gain.max() < 0]
    best = max(gains, key=lambda name: gains[name].mean())
    return (
        f"In every seed {len(ahead)} of {len(gains)} policies beat ignore, and {len(behind)} lose "
        f"to it; the best of them by mean, {best}, is {gains[best].mean():+.3f} mAP from it."
    )


def sections(seeds: int, machine: str) -> str:
    """The section of RESULTS.md."""
    outcome = measure(seeds)
    titles = {
        "positives only": "One positive a row kept, no negative (5 % of the labels). Wanted: "
        "ignore loses to at least one policy.",
        "at random": "Half of the labels kept, at random. Wanted: ignore wins, or ties with the "
        "best.",
    }
    blocks = []
    for mechanism, title in titles.items():
        blocks += [title, table(outcome.found, mechanism), verdict(outcome.found, mechanism)]
    return "\n\n".join(
        [
            HEADING,
            f"`python benchmarks/positives_only.py --seeds {seeds} --write`, "
            f"{time.strftime('%Y-%m-%d')}, {machine}, Python {platform.python_version()}, Keras "
            f"{keras.__version__}; {outcome.seconds:.0f} s in all.",
            f"`sklearn.datasets.make_multilabel_classification`: {TASKS} labels, "
            f"{outcome.positives:.1f} positives a row; {TRAINING} rows to learn from, {VALIDATION} "
            f"fully labelled ones to choose the epoch (the same rule for all), {TEST} fully "
            f"labelled ones to test. One hidden layer of {HIDDEN}, Adam at {RATE:g}, batches of "
            f"{BATCH}, {EPOCHS} epochs for all; mean and range of {seeds} seeds, which draw the "
            "kept labels, the first weights and the order.",
            *blocks,
        ]
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores {platform.machine()}")
    parser.add_argument("--write", action="store_true", help="keep the tables in RESULTS.md")
    args = parser.parse_args()
    text = sections(args.seeds, args.machine)
    print(text)
    if args.write:
        from results import keep

        keep(HEADING, text)


if __name__ == "__main__":
    main()
