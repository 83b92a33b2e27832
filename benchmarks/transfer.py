"""Is the embedded extractor worth it? Five ways to learn from 300 labelled street scenes.

    python benchmarks/transfer.py            # prints a table
    python benchmarks/transfer.py --write    # and keeps it in benchmarks/RESULTS.md

Every contestant sees the same images, and takes the epoch that is best on the validation set.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from kerasmtl.datasets.street_scenes.draw import LABELS, draw_scene

HERE = Path(__file__).resolve().parent
EXTRACTOR = HERE.parent / "saved_models" / "tiny" / "1"
HEADING = "## Transfer: is the embedded extractor worth it?"
SEED_OF_TEST, SEED_OF_VALIDATION, SEED_OF_TRAINING = 910_000, 920_000, 930_000

Images = np.ndarray
Labels = np.ndarray
Part = tuple[Images, Labels]
Contestant = Callable[[Part, Part, Part, int], np.ndarray]


# ---------------------------------------------------------------- images


def _one(seed: int, index: int) -> tuple[np.ndarray, list[int]]:
    image, labels = draw_scene(np.random.default_rng([seed, index]))
    return np.asarray(image), [labels[name] for name in LABELS]


def draw(seed: int, count: int, workers: int) -> Part:
    """Images in [0, 1] and their full labels."""
    with multiprocessing.Pool(workers) as pool:
        pairs = pool.map(partial(_one, seed), range(count), chunksize=20)
    images, labels = zip(*pairs, strict=True)
    return np.stack(images).astype(np.float32) / 255.0, np.array(labels)


def areas(truth: Labels, scores: np.ndarray) -> np.ndarray:
    """The area under the ROC curve of each label."""
    return np.array([roc_auc_score(t, s) for t, s in zip(truth.T, scores.T, strict=True)])


# ---------------------------------------------------------------- the contestants


def mean_colours(train: Part, validation: Part, test: Part, seed: int) -> np.ndarray:
    """Logistic regression on the mean and the spread of each colour channel."""

    def describe(images: Images) -> np.ndarray:
        return np.hstack([images.mean((1, 2)), images.std((1, 2))])

    inputs, unseen = _standardised(describe(train[0]), describe(test[0]))
    models = [LogisticRegression().fit(inputs, truth) for truth in train[1].T]
    return areas(test[1], np.stack([m.decision_function(unseen) for m in models], axis=1))


def head_on_extractor(train: Part, validation: Part, test: Part, seed: int) -> np.ndarray:
    """A new head on the frozen embedded extractor."""
    import tensorflow as tf

    return _head(tf.saved_model.load(str(EXTRACTOR)), train, validation, test, seed)


def head_on_random(train: Part, validation: Part, test: Part, seed: int) -> np.ndarray:
    """A new head on the same network, frozen with random weights."""
    import keras

    from kerasmtl.saved_models.tiny.network import tiny_network

    keras.utils.set_random_seed(seed)
    network = tiny_network()
    # Without statistics of its own the random network's activations would be badly scaled.
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5
    for start in range(0, 300, 30):
        network(train[0][start : start + 30], training=True)
    return _head(network, train, validation, test, seed)


def from_random_weights(train: Part, validation: Part, test: Part, seed: int) -> np.ndarray:
    """The same network trained as a whole from random weights."""
    import keras

    from kerasmtl.saved_models.tiny.network import tiny_network

    keras.utils.set_random_seed(seed)
    network = tiny_network()
    return _whole(network, train, validation, test, epochs=60, learning_rate=1e-3)


def fine_tuned(train: Part, validation: Part, test: Part, seed: int) -> np.ndarray:
    """The same network trained as a whole from the weights of the extractor."""
    import keras
    import tensorflow as tf

    from kerasmtl.saved_models.tiny.network import tiny_network

    keras.utils.set_random_seed(seed)
    network = tiny_network()
    stored = {v.name.split(":")[0]: v for v in tf.saved_model.load(str(EXTRACTOR)).variables}
    for layer in network.layers:
        block, _, part = layer.name.rpartition("_")
        for weight in layer.weights:
            weight.assign(stored[f"{block}/{part}/{weight.name}"])
    return _whole(network, train, validation, test, epochs=40, learning_rate=3e-4)


# ---------------------------------------------------------------- how they are trained


def _standardised(inputs: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    mean, spread = inputs.mean(0), inputs.std(0) + 1e-6
    return [(values - mean) / spread for values in (inputs, *others)]


def _head(extractor: Callable, train: Part, validation: Part, test: Part,
          seed: int) -> np.ndarray:  # fmt: skip
    import keras

    def features(images: Images) -> np.ndarray:
        parts = [extractor(images[k : k + 100]) for k in range(0, len(images), 100)]
        return np.concatenate([np.asarray(part) for part in parts])

    # Each image and its mirror image: what random flips are to the contestants trained whole.
    both = np.concatenate([train[0], train[0][:, :, ::-1]])
    inputs, held, unseen = _standardised(*map(features, (both, validation[0], test[0])))
    truth = np.concatenate([train[1], train[1]])
    keras.utils.set_random_seed(seed)
    head = keras.Sequential(
        [
            keras.Input(inputs.shape[1:]),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(len(LABELS), kernel_regularizer=keras.regularizers.L2(3e-3)),
        ]
    )
    _fit(head, (inputs, truth), (held, validation[1]), epochs=60, learning_rate=2e-3)
    return areas(test[1], head.predict(unseen, verbose=0, batch_size=500))


def _whole(network: Callable, train: Part, validation: Part, test: Part, *, epochs: int,
           learning_rate: float) -> np.ndarray:  # fmt: skip
    import keras

    image = keras.Input(train[0].shape[1:])
    x = keras.layers.RandomFlip("horizontal")(image)
    x = keras.layers.RandomTranslation(0.06, 0.06, fill_mode="reflect")(x)
    x = keras.layers.RandomBrightness(0.1, value_range=(0.0, 1.0))(x)
    x = keras.layers.Dropout(0.3)(network(x))
    model = keras.Model(image, keras.layers.Dense(len(LABELS))(x))
    _fit(model, train, validation, epochs=epochs, learning_rate=learning_rate)
    return areas(test[1], model.predict(test[0], verbose=0, batch_size=100))


def _fit(model: Callable, train: Part, validation: Part, *, epochs: int,
         learning_rate: float) -> None:  # fmt: skip
    """Adam on the binary cross-entropy; the weights of the best validation epoch are kept."""
    import keras

    class KeepBest(keras.callbacks.Callback):
        best, weights = -1.0, None

        def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
            scores = self.model.predict(validation[0], verbose=0, batch_size=100)
            score = areas(validation[1], scores).mean()
            if score > self.best:
                self.best, self.weights = score, self.model.get_weights()

    keeper = KeepBest()
    steps = epochs * -(-len(train[0]) // 16)
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps, alpha=0.05)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss=loss)
    model.fit(*train, batch_size=16, epochs=epochs, verbose=0, callbacks=[keeper])
    model.set_weights(keeper.weights)


CONTESTANTS: dict[str, Contestant] = {
    "mean colours, logistic regression": mean_colours,
    "head on random frozen features": head_on_random,
    "same network from random weights": from_random_weights,
    "head on the frozen extractor": head_on_extractor,
    "extractor fine-tuned as a whole": fine_tuned,
}


# ---------------------------------------------------------------- the table


def measure(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """For every contestant its areas, one row for each seed."""
    test = draw(SEED_OF_TEST, args.test, args.workers)
    sets = [
        (draw(SEED_OF_TRAINING + seed, args.train, args.workers),
         draw(SEED_OF_VALIDATION + seed, args.validation, args.workers))
        for seed in range(args.seeds)
    ]  # fmt: skip
    results = {}
    for name, contestant in CONTESTANTS.items():
        began = time.time()
        rows = [contestant(*pair, test, seed) for seed, pair in enumerate(sets)]
        results[name] = np.array(rows)
        figures = ", ".join(f"{row.mean():.3f}" for row in rows)
        print(f"{name}: {figures} ({time.time() - began:.0f} s)", file=sys.stderr, flush=True)
    return results


def table(results: dict[str, np.ndarray]) -> str:
    """The results in Markdown."""
    lines = [
        "| contestant | " + " | ".join(LABELS) + " | macro AUC | over the seeds |",
        "| --- |" + " ---: |" * (len(LABELS) + 2),
    ]
    for name, rows in results.items():
        macro = rows.mean(axis=1)
        cells = [f"{value:.3f}" for value in rows.mean(axis=0)]
        span = f"{macro.min():.3f} to {macro.max():.3f}"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | **{macro.mean():.3f}** | {span} |")
    return "\n".join(lines)


def section(results: dict[str, np.ndarray], args: argparse.Namespace) -> str:
    """The section of RESULTS.md."""
    import keras
    import tensorflow as tf

    mean = {name: rows.mean() for name, rows in results.items()}
    _, random, scratch, frozen, _ = mean.values()
    versions = f"Python {platform.python_version()}, TensorFlow {tf.__version__}, "
    return "\n\n".join(
        [
            HEADING,
            f"`python benchmarks/transfer.py --write`, {args.date}, {args.machine}, "
            f"{versions}Keras {keras.__version__}.",
            f"{args.train} fully labelled street scenes to learn from, {args.validation} to choose "
            f"the epoch (the same rule for all), {args.test} to test; area under the ROC curve, "
            f"mean of {args.seeds} seeds, each with training and validation images of its own.",
            table(results),
            f"The frozen extractor gains {frozen - scratch:+.3f} macro AUC over the same network "
            f"from random weights (wanted: 0.05 or more), and {frozen - random:+.3f} over its own "
            "random features (wanted: 0.10 or more).",
        ]
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--train", type=int, default=300, help="labelled images to learn from")
    parser.add_argument("--validation", type=int, default=300)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores {platform.machine()}")
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"))
    parser.add_argument("--write", action="store_true", help="keep the table in RESULTS.md")
    args = parser.parse_args()
    results = measure(args)
    print(table(results))
    if args.write:
        from results import keep

        keep(HEADING, section(results, args))


if __name__ == "__main__":
    main()
