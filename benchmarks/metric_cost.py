"""What loss and metrics cost: the training step with them, against the step without.

    python benchmarks/metric_cost.py [--rounds 15] [--steps 20] [--write]

At 4 tasks, MaskedBinaryCrossentropy and MaskedAUC against stock BinaryCrossentropy and no metric,
on a network of two layers of 1024 units. At 600 tasks, MaskedAUC against 600 keras.metrics.AUC, on
a small network, so that the metrics are most of the step. Compiled `train_on_batch` steps, in turn
A B B A; medians, and the ratio pair by pair.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import kerasmtl as kt

HEADING = "## Cost of loss and metrics"
FEATURES = 801  # of Tox21's dense descriptors


class ManyAUCs(keras.metrics.Metric):
    """One keras.metrics.AUC for each task, as one had to do it."""

    def __init__(self, tasks: int) -> None:
        super().__init__(name="many")
        self.parts = [keras.metrics.AUC(name=f"auc_{task}") for task in range(tasks)]

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        for task, part in enumerate(self.parts):
            part.update_state(y_true[:, task], y_pred[:, task])

    def result(self) -> Any:
        return keras.ops.mean(keras.ops.stack([part.result() for part in self.parts]))

    def reset_state(self) -> None:
        for part in self.parts:
            part.reset_state()


def trainer(tasks: int, hidden: tuple[int, ...], loss: Any, metrics: list[Any]) -> keras.Model:
    """A compiled dense network with one sigmoid output a task."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(width, "relu") for width in hidden]
    model = keras.Sequential(
        [keras.Input((FEATURES,)), *layers, keras.layers.Dense(tasks, "sigmoid")]
    )
    model.compile("adam", loss=loss, metrics=metrics, jit_compile=False)
    return model


def batch(tasks: int, rows: int, missing: float) -> tuple[tf.Tensor, tf.Tensor]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (rows, tasks)).astype("float32")
    y[rng.random(y.shape) < missing] = np.nan
    x = rng.normal(size=(rows, FEATURES)).astype("float32")
    return tf.constant(x), tf.constant(y)


def stepper(model: keras.Model, x: tf.Tensor, y: tf.Tensor) -> Callable[[int], float]:
    """From a number of steps to the seconds of one, after a warm-up that compiles."""
    data = tf.data.Dataset.from_tensors((x, y)).repeat()
    steps = iter(data)
    function = model.make_train_function()
    function = function or model.train_function
    for _ in range(3):
        function(steps)

    def seconds(number: int) -> float:
        began = time.perf_counter()
        for _ in range(number):
            logs = function(steps)
        float(next(iter(logs.values())))
        return (time.perf_counter() - began) / number

    return seconds


def compare(
    first: Callable[[int], float], second: Callable[[int], float], rounds: int, steps: int
) -> tuple[float, float, float]:
    """Median seconds of both, and the median of the pairs' ratios first / second."""
    pairs = []
    for number in range(rounds):
        if number % 2:
            other = second(steps)
            pairs.append((first(steps), other))
        else:
            pairs.append((first(steps), second(steps)))
    ratio = statistics.median(a / b for a, b in pairs)
    return *(statistics.median(times) for times in zip(*pairs, strict=True)), ratio


def with_and_without(tasks: int, hidden: tuple[int, ...], rows: int, args: Any) -> str:
    """The line of masked loss and metric against stock loss and no metric."""
    x, holed = batch(tasks, rows, 0.3)
    ours = trainer(tasks, hidden, kt.losses.MaskedBinaryCrossentropy(), [kt.metrics.MaskedAUC()])
    stock = trainer(tasks, hidden, keras.losses.BinaryCrossentropy(), [])
    own, other, ratio = compare(
        stepper(ours, x, holed),
        stepper(stock, x, tf.where(tf.math.is_nan(holed), 0.0, holed)),
        args.rounds,
        args.steps,
    )
    network = "-".join(map(str, hidden))
    return (
        f"| {tasks} | {network}, batches of {rows} | masked loss + MaskedAUC: {1e3 * own:.2f} | "
        f"stock loss, no metric: {1e3 * other:.2f} | {ratio:.3f} |"
    )


def against_many(tasks: int, rows: int, args: Any) -> str:
    """The line of MaskedAUC against one keras.metrics.AUC a task."""
    x, holed = batch(tasks, rows, 0.3)
    full = tf.where(tf.math.is_nan(holed), 0.0, holed)
    ours = trainer(tasks, (64,), kt.losses.MaskedBinaryCrossentropy(), [kt.metrics.MaskedAUC()])
    many = trainer(tasks, (64,), keras.losses.BinaryCrossentropy(), [ManyAUCs(tasks)])
    other, own, ratio = compare(
        stepper(many, x, full), stepper(ours, x, holed), max(3, args.rounds // 3), 2
    )
    return (
        f"| {tasks} | 64, batches of {rows} | masked loss + MaskedAUC: {1e3 * own:.1f} | stock "
        f"loss, {tasks} keras.metrics.AUC: {1e3 * other:.1f} | 1/{ratio:.1f} |"
    )


def alone(metric: keras.metrics.Metric, y: tf.Tensor) -> Callable[[int], float]:
    """From a number of updates, each with its result as in `fit`, to the seconds of one."""
    p = tf.random.stateless_uniform(y.shape, (0, 0))

    @tf.function
    def update() -> Any:
        metric.update_state(y, p)
        return metric.result()

    for _ in range(3):
        update()

    def seconds(number: int) -> float:
        began = time.perf_counter()
        for _ in range(number):
            float(update())
        return (time.perf_counter() - began) / number

    return seconds


def metrics_alone(tasks: int, rows: int, args: Any) -> str:
    """The line of the metrics by themselves."""
    _, holed = batch(tasks, rows, 0.3)
    full = tf.where(tf.math.is_nan(holed), 0.0, holed)
    many, ours = alone(ManyAUCs(tasks), full), alone(kt.metrics.MaskedAUC(), holed)
    other, own, ratio = compare(many, ours, max(3, args.rounds // 3), 5)
    return (
        f"| {tasks} | none: update and result | MaskedAUC: {1e3 * own:.1f} | {tasks} "
        f"keras.metrics.AUC: {1e3 * other:.1f} | 1/{ratio:.1f} |"
    )


def state_bytes(tasks: int, rows: int) -> int:
    """Size of a MaskedAUC after that many rows."""
    metric = kt.metrics.MaskedAUC()
    rng = np.random.default_rng(0)
    for _ in range(0, rows, 1000):
        p = rng.random((1000, tasks)).astype("float32")
        metric.update_state((p > 0.5).astype("float32"), p)
    return sum(variable.numpy().nbytes for variable in metric.variables)


def section(args: Any) -> str:
    """The section of RESULTS.md."""
    lines = [
        "| tasks | network | ms a step | ms a step | ratio |",
        "| ---: | --- | --- | --- | ---: |",
        with_and_without(4, (1024, 1024), 128, args),
        with_and_without(600, (1024, 1024), 128, args),
        metrics_alone(600, 128, args),
        against_many(600, 128, args),
    ]
    sizes = [f"{state_bytes(t, n):,}" for t in (4, 600) for n in (1000, 10_000)]
    return "\n\n".join(
        [
            HEADING,
            f"`python benchmarks/metric_cost.py --write`, {time.strftime('%Y-%m-%d')}, "
            f"{args.machine}, Python {platform.python_version()}, TensorFlow {tf.__version__}, "
            f"Keras {keras.__version__}; {args.rounds} pairs of {args.steps} steps.",
            "\n".join(lines),
            "Wanted: 1.05 or less at 4 tasks; 1/10 or less against 600 keras.metrics.AUC.",
            f"State of MaskedAUC after 1,000 and 10,000 rows: {sizes[0]} and {sizes[1]} bytes at 4 "
            f"tasks, {sizes[2]} and {sizes[3]} bytes at 600.",
        ]
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores {platform.machine()}")
    parser.add_argument("--write", action="store_true", help="keep the table in RESULTS.md")
    args = parser.parse_args()
    text = section(args)
    print(text)
    if args.write:
        from results import keep

        keep(HEADING, text)


if __name__ == "__main__":
    main()
