"""What `HubLayer` costs: a step through a SavedModel against the same network as plain Keras.

    python benchmarks/hub_speed.py [--rounds 20] [--write]

Both models stand in one process, with the same weights, head, optimizer and batch, and take turns;
each ratio is of two neighbouring turns. Memory is measured in processes of their own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HEADING = "## HubLayer: what a step costs"
MODULE = Path(__file__).resolve().parents[2] / "shared" / "models" / "mobilenet_v1_025_224"
BATCH, TASKS, STEPS = 32, 4, 3  # steps: in one turn
WARM_UP = 3

Step = Callable[[], Any]


# ---------------------------------------------------------------- the networks


def tiny(hub: bool, trainable: bool) -> tuple[Any, int]:
    """The embedded network and its image size: through `HubLayer`, or as plain Keras."""
    import kerasmtl as kt
    from kerasmtl.saved_models.tiny.network import tiny_network

    if hub:
        return kt.HubLayer("tiny", trainable=trainable), 128
    network = tiny_network()
    network.trainable = trainable
    return network, 128


def mobilenet(hub: bool, trainable: bool) -> tuple[Any, int]:
    """A published module and its image size, or the same network from Keras."""
    import keras

    import kerasmtl as kt

    if hub:
        return kt.HubLayer(MODULE, trainable=trainable), 224
    build = keras.applications.MobileNet
    network = build((224, 224, 3), alpha=0.25, include_top=False, weights=None, pooling="avg")
    image = keras.Input((224, 224, 3))
    peer = keras.Model(image, network(keras.layers.Rescaling(2.0, offset=-1.0)(image)))
    peer.trainable = trainable
    return peer, 224


def copy_weights(layer: Any, peer: Any, size: int) -> None:
    """Make a plain peer the layer's equal, and check that both give the same features."""
    stored = {variable.name: variable for variable in layer.variables}
    for weight in peer.weights:
        part, name = weight.path.split("/")[-2:]
        names = (f"{part}_{name}", f"{part}_depthwise_{name}")
        weight.assign(next(stored.pop(name) for name in names if name in stored))
    x = np.random.default_rng(0).random((2, size, size, 3), dtype="float32")
    np.testing.assert_allclose(layer(x), peer(x), rtol=0, atol=1e-3)


def tfsm(hub: bool, trainable: bool) -> tuple[Any, int]:
    """A published module and its image size, or the same in Keras' own layer for it."""
    import keras

    if hub:
        return mobilenet(True, False)
    return keras.layers.TFSMLayer(MODULE, call_endpoint="serving_default"), 224


@dataclass(frozen=True)
class Case:
    """Two backbones to compare, frozen or not, in training or in inference."""

    name: str
    backbones: Callable[[bool, bool], tuple[Any, int]]
    trainable: bool
    training: bool = True


CASES = (
    Case("`tiny`, frozen: training step", tiny, False),
    Case("`tiny`, trainable: training step", tiny, True),
    Case("MobileNetV1-0.25, frozen: training step", mobilenet, False),
    Case("MobileNetV1-0.25, trainable: training step", mobilenet, True),
    Case("MobileNetV1-0.25, against `TFSMLayer`: inference", tfsm, False, training=False),
)


def step_of(case: Case, backbone: Any, size: int) -> Step:
    """One step of a compiled model with a head of its own, on a batch made beforehand."""
    import keras
    import tensorflow as tf

    import kerasmtl as kt

    keras.utils.set_random_seed(0)
    image = keras.Input((size, size, 3))
    features = backbone(image)
    features = next(iter(features.values())) if isinstance(features, dict) else features
    outputs = keras.layers.Dense(TASKS, activation="sigmoid")(features)
    model = keras.Model(image, outputs)
    model.compile(keras.optimizers.Adam(1e-4), kt.losses.MaskedBinaryCrossentropy())
    rng = np.random.default_rng(0)
    x = tf.constant(rng.random((BATCH, size, size, 3), dtype="float32"))
    y = rng.integers(0, 2, (BATCH, TASKS)).astype("float32")
    y[rng.random(y.shape) < 1 / 3] = np.nan
    labels = tf.constant(y)
    if case.training:
        return lambda: model.train_on_batch(x, labels)
    return lambda: model.predict_on_batch(x)


# ---------------------------------------------------------------- what is measured


def turn(step: Step) -> float:
    """Seconds of one step, median of a few in a row."""
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def pairs(case: Case, rounds: int) -> list[tuple[float, float]]:
    """Seconds of a step through `HubLayer` and of its peer, round by round, in changing order."""
    (layer, size), (peer, _) = (case.backbones(hub, case.trainable) for hub in (True, False))
    if case.training:
        copy_weights(layer, peer, size)
    steps = [step_of(case, backbone, size) for backbone in (layer, peer)]
    for step in steps * WARM_UP:
        step()
    times = []
    for number in range(rounds):
        order = (0, 1) if number % 2 else (1, 0)
        taken = {which: turn(steps[which]) for which in order}
        times.append((taken[0], taken[1]))
    return times


def _peak(number: int, hub: bool) -> int:
    """Bytes by which building a model and a few steps raise the process' peak."""
    import keras  # noqa: F401
    import tensorflow as tf

    tf.zeros(1)  # TensorFlow's own start is not counted
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    case = CASES[number]
    step = step_of(case, *case.backbones(hub, case.trainable))
    for _ in range(WARM_UP + STEPS):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def peaks(number: int, repeats: int) -> list[tuple[int, int]]:
    """What `_peak` gives through `HubLayer` and of its peer, every one in a new process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        return [
            (pool.apply(_peak, (number, True)), pool.apply(_peak, (number, False)))
            for _ in range(repeats)
        ]


# ---------------------------------------------------------------- the table


def row(case: Case, times: list[tuple[float, float]], memory: list[tuple[int, int]]) -> str:
    """One line of the table."""
    own, peer = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    ratios = [first / second for first, second in times]
    sizes = [statistics.median(column) / 2**20 for column in zip(*memory, strict=True)]
    return (
        f"| {case.name} | {own:.1f} | {peer:.1f} | **{statistics.median(ratios):.3f}** | "
        f"{min(ratios):.3f} to {max(ratios):.3f} | {sizes[0]:.0f} | {sizes[1]:.0f} | "
        f"{sizes[0] / sizes[1]:.2f} |"
    )


def section(rows: list[str], args: argparse.Namespace) -> str:
    """The section of RESULTS.md."""
    import keras
    import tensorflow as tf

    head = (
        "| step | HubLayer (ms) | peer (ms) | ratio, median of pairs | min to max | "
        "HubLayer (MiB) | peer (MiB) | ratio |\n| --- |" + " ---: |" * 7
    )
    parts = [
        HEADING,
        f"`python benchmarks/hub_speed.py --write`, {time.strftime('%Y-%m-%d')}, {args.machine}, "
        f"Python {platform.python_version()}, TensorFlow {tf.__version__}, Keras "
        f"{keras.__version__}.",
        f"{args.rounds} rounds of {STEPS} steps each in turn, batches of {BATCH}, Adam, "
        f"`MaskedBinaryCrossentropy`, `jit_compile` as Keras chooses; the peer is plain Keras "
        "unless named. A ratio of times of 1.05 or less is wanted. MiB: by how much building the "
        f"model and {WARM_UP + STEPS} steps raise the peak of a new process, median of "
        f"{args.repeats}; what a layer holds beyond its peer is the SavedModel's graph.",
        "\n".join([head, *rows]),
    ]
    if not MODULE.is_dir():
        parts.append(f"Skipped: the rows of MobileNetV1, whose module {MODULE.name} is not here.")
    return "\n\n".join(parts)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="processes for each peak of memory")
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores {platform.machine()}")
    parser.add_argument("--write", action="store_true", help="keep the table in RESULTS.md")
    args = parser.parse_args()
    there = [k for k, case in enumerate(CASES) if case.backbones is tiny or MODULE.is_dir()]
    # First, while this process is small: on Linux a child's peak begins with its parent's size.
    memory = {number: peaks(number, args.repeats) for number in there}
    rows = [row(CASES[k], pairs(CASES[k], args.rounds), memory[k]) for k in there]
    text = section(rows, args)
    print(text)
    if args.write:
        from results import keep

        keep(HEADING, text)


if __name__ == "__main__":
    main()
