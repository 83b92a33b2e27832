"""Every loss: how it is made, what it costs in NumPy, and what it is called in Keras.

A reference takes the known labels of a row, their predictions, and the predictions of its unknown
cells; probabilities in float64. Nothing in it knows of masks."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import reference
from reference import sigmoid

from kerasmtl import losses

ROWS, TASKS = 6, 4  # of four classes, if it is one multiclass task
PER_TASK = np.array([0.5, 2.0, 0.0, 1.25])
POS = np.array([3.0, 1.0, 0.5, 10.0])


def bce(y, p):
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


def no(p):
    return -np.log(1 - p)


def asl(y, p, plus, minus, margin):
    shifted = np.maximum(p - margin, 0)
    return y * (1 - p) ** plus * -np.log(p) + (1 - y) * shifted**minus * no(shifted)


def hill(y, p, lam=1.5):
    shifted = sigmoid(np.log(p / (1 - p)) - 1)
    return y * (1 - shifted) ** 2 * -np.log(shifted) + (1 - y) * (lam - p) * p**2


def huber(r, delta):
    return np.where(abs(r) <= delta, r**2 / 2, delta * abs(r) - delta**2 / 2)


def smooth(y, e=0.1):
    return y * (1 - e) + e / 2


def large(p, threshold, above):
    return np.where(p > threshold, above(p), no(p))


@dataclass(frozen=True)
class Row:
    """A row from which the unknown labels have been deleted; `at` are the tasks that were known."""

    y: np.ndarray
    p: np.ndarray
    at: np.ndarray
    unknown: np.ndarray
    all_p: np.ndarray
    positives: float  # expected a row of the batch


@dataclass(frozen=True)
class Case:
    make: Any  # the loss, from keyword arguments
    cost: Any  # the loss of a Row
    kind: str = "binary"  # or "numbers", "classes"
    ignores: bool = True  # what is predicted under a missing label
    by_batch: bool = False  # the cost of a row depends on its batch
    stock: Any = None  # equal to it in Keras, times `factor`, if nothing is missing
    factor: float = 1.0

    @property
    def binary(self):
        return self.kind == "binary"

    def data(self, seed, share, logits=False, rows=ROWS):
        """Labels (rows, TASKS), or (rows, 1) of classes, and predictions (rows, TASKS), float32."""
        y, p = reference.case(seed, rows, TASKS, share, logits)
        if self.kind != "classes":
            return y, p
        chosen = np.random.default_rng(seed).integers(0, TASKS, (rows, 1))
        p = p if logits else p / p.sum(1, keepdims=True)
        return np.where(np.isnan(y[:, :1]), np.nan, chosen).astype("float32"), p


def binary(**options):
    return lambda **more: losses.MaskedBinaryCrossentropy(**options, **more)


def of(kind, *arguments, **options):
    return lambda **more: kind(*arguments, **options, **more)


def stock(kind, **options):
    return lambda logits: kind(**({"from_logits": logits} if logits is not None else {}), **options)


BCE, MSE = keras.losses.BinaryCrossentropy, keras.losses.MeanSquaredError
CASES = {
    "binary": Case(binary(), lambda r: bce(r.y, r.p).sum(), stock=stock(BCE), factor=TASKS),
    "binary-mean": Case(
        binary(normalization="mean"),
        lambda r: bce(r.y, r.p).mean() if len(r.y) else 0,
        stock=stock(BCE),
    ),
    "binary-constant": Case(
        binary(normalization=2.5), lambda r: bce(r.y, r.p).sum() / 2.5, stock=stock(BCE), factor=1.6
    ),
    "binary-weighted": Case(
        binary(task_weights=PER_TASK, normalization="mean"),
        lambda r: (bce(r.y, r.p) * PER_TASK[r.at]).sum() / w if (w := PER_TASK[r.at].sum()) else 0,
    ),
    "binary-pos-weight": Case(
        binary(pos_weight=POS),
        lambda r: (np.where(r.y == 1, POS[r.at], 1) * bce(r.y, r.p)).sum(),
    ),
    "binary-smooth": Case(
        binary(label_smoothing=0.1),
        lambda r: bce(smooth(r.y), r.p).sum(),
        stock=stock(BCE, label_smoothing=0.1),
        factor=TASKS,
    ),
    "binary-focal": Case(
        binary(gamma=2.0, alpha=0.25),
        lambda r: asl(r.y, r.p, 2, 2, 0) @ np.where(r.y == 1, 0.25, 0.75),
        stock=stock(
            keras.losses.BinaryFocalCrossentropy, apply_class_balancing=True, alpha=0.25, gamma=2.0
        ),
        factor=TASKS,
    ),
    "partial": Case(
        of(losses.PartialBinaryCrossentropy),
        lambda r: (5.45 - 4.45 * len(r.y) / TASKS) / TASKS * bce(r.y, r.p).sum(),
        stock=stock(BCE),
    ),
    "partial-mean": Case(
        of(losses.PartialBinaryCrossentropy, 1.0, 0.0, -1.0),
        lambda r: bce(r.y, r.p).mean() if len(r.y) else 0,
        stock=stock(BCE),
    ),
    "asl": Case(of(losses.AsymmetricLoss), lambda r: asl(r.y, r.p, 1, 4, 0.05).sum()),
    "asl-plain": Case(
        of(losses.AsymmetricLoss, 0.0, 0.0, 0.0),
        lambda r: bce(r.y, r.p).sum(),
        stock=stock(BCE),
        factor=TASKS,
    ),
    "asl-partial": Case(
        of(losses.AsymmetricLoss, gamma_unknown=5.0, unknown_weight=0.3),
        lambda r: asl(r.y, r.p, 1, 4, 0.05).sum() + 0.3 * asl(0, r.unknown, 1, 5, 0.05).sum(),
        ignores=False,
    ),
    "hill": Case(
        of(losses.HillLoss),
        lambda r: hill(r.y, r.p).sum() + hill(0, r.unknown).sum(),
        ignores=False,
    ),
    "an": Case(
        of(losses.AssumeNegative),
        lambda r: bce(r.y, r.p).sum() + no(r.unknown).sum(),
        ignores=False,
        stock=stock(BCE),
        factor=TASKS,
    ),
    "an-smooth": Case(
        of(losses.AssumeNegative, label_smoothing=0.1, normalization="mean"),
        lambda r: (bce(smooth(r.y), r.p).sum() + bce(0.05, r.unknown).sum()) / TASKS,
        ignores=False,
        stock=stock(BCE, label_smoothing=0.1),
    ),
    "wan": Case(
        of(losses.AssumeNegative, "weak"),
        lambda r: bce(r.y, r.p).sum() + no(r.unknown).sum() / (TASKS - 1),
        ignores=False,
        stock=stock(BCE),
        factor=TASKS,
    ),
    "epr": Case(
        of(losses.ExpectedPositives, 1.5, weight=0.7),
        lambda r: bce(r.y, r.p).sum() + 0.7 * TASKS * ((r.all_p.sum() - 1.5) / TASKS) ** 2,
        ignores=False,
    ),
    "epr-batch": Case(
        of(losses.ExpectedPositives, 1.5, weight=0.7, level="batch"),
        lambda r: bce(r.y, r.p).sum() + 0.7 * TASKS * ((r.positives - 1.5) / TASKS) ** 2,
        ignores=False,
        by_batch=True,
    ),
    "ll-reject": Case(
        of(losses.LargeLoss, "reject", 0.6),
        lambda r: bce(r.y, r.p).sum() + large(r.unknown, 0.6, np.zeros_like).sum(),
        ignores=False,
        stock=stock(BCE),
        factor=TASKS,
    ),
    "ll-correct": Case(
        of(losses.LargeLoss, "correct", 0.6),
        lambda r: bce(r.y, r.p).sum() + large(r.unknown, 0.6, lambda p: -np.log(p)).sum(),
        ignores=False,
        stock=stock(BCE),
        factor=TASKS,
    ),
    "squared": Case(
        of(losses.MaskedMeanSquaredError, normalization="mean"),
        lambda r: ((r.y - r.p) ** 2).mean() if len(r.y) else 0,
        kind="numbers",
        stock=stock(MSE),
    ),
    "absolute": Case(
        of(losses.MaskedMeanAbsoluteError, task_weights=PER_TASK),
        lambda r: abs(r.y - r.p) @ PER_TASK[r.at],
        kind="numbers",
    ),
    "huber": Case(
        of(losses.MaskedHuber, 0.7),
        lambda r: huber(r.y - r.p, 0.7).sum(),
        kind="numbers",
        stock=stock(keras.losses.Huber, delta=0.7),
        factor=TASKS,
    ),
    "categorical": Case(
        of(losses.MaskedCategoricalCrossentropy, task_weights=[2.0]),
        lambda r: -2 * np.log(r.all_p[int(r.y[0])] / r.all_p.sum()) if len(r.y) else 0,
        kind="classes",
        stock=stock(keras.losses.SparseCategoricalCrossentropy),
        factor=2.0,
    ),
}


def row_costs(case, y, p, logits=False):
    """Shape (rows,), float64."""
    p = np.asarray(p, "float64")
    if logits:
        p = np.exp(p) / np.exp(p).sum(1, keepdims=True) if case.kind == "classes" else sigmoid(p)
    positives, costs = p.sum(1).mean(), []
    for labels, predicted in zip(y, p, strict=True):
        at = np.flatnonzero(~np.isnan(labels))
        rest = np.flatnonzero(np.isnan(labels))
        row = Row(
            labels[at].astype("float64"), predicted[at], at, predicted[rest], predicted, positives
        )
        costs.append(float(case.cost(row)))
    return np.array(costs)
