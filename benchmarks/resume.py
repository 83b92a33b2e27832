"""Killed at random moments: are the final weights those of the uninterrupted run, bit for bit?

    python benchmarks/resume.py [--kills 20] [--write]

A script trains on 300 of the embedded street scenes by the plan "gradual", with kept features in
the stage of the head, dropout and deterministic operations. It is run once in one go, and once
more with `kill -9` at moments drawn from the whole run (importing, computing features, epochs,
between stages, saving), each time started again.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HEADING = "## Resume: killed at random moments"
PROGRAM = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np, tensorflow as tf
import kerasmtl as kt
from kerasmtl.models.hub.embedded import dataset_csv

tf.config.experimental.enable_op_determinism()
keras.utils.set_random_seed(0)
print("ready", flush=True)
train, validation, _ = kt.Manifest.from_csv(dataset_csv("street_scenes")).split()
model = kt.build_model("tiny", train.tasks, hidden=[64], dropout=0.5)
model.compile("adam", kt.losses.MaskedBinaryCrossentropy(), metrics=[kt.metrics.MaskedAUC()])
size = model.input_shape[1:3]
history = kt.fine_tune(
    model,
    kt.make_dataset(train.take(range(300)), size, training=True),
    kt.make_dataset(validation.take(range(100)), size),
    plan=kt.plans.make_plan("gradual", head_epochs=6, epochs=6),
    callbacks=[kt.callbacks.Checkpoint("runs/model.keras")],
    directory="runs/state",
    verbose=0,
)
np.savez("weights.npz", *[variable.numpy() for variable in model.variables])
np.savez("history.npz", **{name: np.array(values) for name, values in history.history.items()})
"""


def started(folder: Path) -> subprocess.Popen[str]:
    """The script in a folder of its own, at the point where it has imported everything."""
    environment = {**os.environ, "TFHUB_CACHE_DIR": str(folder / "cache")}
    running = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert running.stdout is not None and running.stdout.readline() == "ready\n"
    return running


def whole(folder: Path) -> float:
    """Seconds of the run in one go."""
    began = time.perf_counter()
    if started(folder).wait():
        raise RuntimeError("the uninterrupted run failed")
    return time.perf_counter() - began


def killed(folder: Path, kills: int, seconds: float) -> tuple[int, int]:
    """Kill that many times, starting anew if a run is whole before; kills, and runs finished."""
    choice, done, finished = random.Random(0), 0, 0
    while done < kills:
        running = started(folder)
        try:
            running.wait(choice.uniform(0.0, seconds))
            finished += 1
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.wait()
            done += 1
        if (folder / "weights.npz").exists() and done < kills:
            # Whole already: the same weights are asked of the next one.
            (folder / "weights.npz").rename(folder / f"weights-{finished}.npz")
            for path in sorted((folder / "runs" / "state").iterdir()):
                path.unlink()
    if started(folder).wait():
        raise RuntimeError("the last run failed")
    return done, finished + 1


def apart(one: Path, other: Path) -> tuple[int, int]:
    """How many arrays of two files there are, and how many differ in a bit."""
    with np.load(one) as left, np.load(other) as right:
        names = sorted({*left.files, *right.files})
        unlike = [
            name
            for name in names
            if name not in left
            or name not in right
            or left[name].tobytes() != right[name].tobytes()
        ]
    return len(names), len(unlike)


def section(kills: int, machine: str) -> str:
    """The section of RESULTS.md."""
    import keras
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as made:
        folders = [Path(made) / name for name in ("whole", "killed")]
        for folder in folders:
            folder.mkdir()
        seconds = whole(folders[0])
        done, finished = killed(folders[1], kills, seconds)
        results = sorted(folders[1].glob("weights*.npz"))
        weights = [apart(folders[0] / "weights.npz", result) for result in results]
        history = apart(folders[0] / "history.npz", folders[1] / "history.npz")
    return "\n\n".join(
        [
            HEADING,
            f"`python benchmarks/resume.py --write`, {time.strftime('%Y-%m-%d')}, {machine}, "
            f"Python {platform.python_version()}, TensorFlow {tf.__version__}, Keras "
            f"{keras.__version__}; CPU, deterministic operations.",
            f"One run in one go took {seconds:.0f} s. Killed with SIGKILL {done} times, the same "
            f"script was finished {finished} times: of {weights[0][0]} variables "
            f"{sum(unlike for _, unlike in weights)} differ in a bit from those of the run in one "
            f"go, and of {history[0]} curves of the history {history[1]}.",
        ]
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores {platform.machine()}")
    parser.add_argument("--write", action="store_true", help="keep the text in RESULTS.md")
    args = parser.parse_args()
    text = section(args.kills, args.machine)
    print(text)
    if args.write:
        from results import keep

        keep(HEADING, text)


if __name__ == "__main__":
    main()
