"""The proof before publication: a process that knows neither kerasmtl nor Keras answers alike."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.data.images import prepare_image, resize_image
from kerasmtl.evaluation.calibration import Decision, calibrated
from kerasmtl.export.signatures import DECISION, column_inputs, embedding_model
from kerasmtl.tasks import Task, by_task

EXAMPLES = 3
ATTEMPTS = 8
MARGIN = 1e-3  # an example must be further than that from a decision's edge

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A request to a signature, and what the live model answers."""

    signature: str
    inputs: Arrays
    outputs: Arrays


class Live:
    """The model outside the export: Keras on the CPU, then calibration and decisions by NumPy."""

    def __init__(
        self, model: keras.Model, tasks: Sequence[Task], decisions: Mapping[str, Decision]
    ) -> None:
        self.model = model
        self.tasks = tasks
        self.decisions = decisions
        self._embedding = embedding_model(model)

    def answers(self, inputs: np.ndarray) -> Arrays:
        """Outputs by name, as `signatures.answers` has them."""
        with tf.device("/CPU:0"):
            outputs = self.model(inputs, training=False)
        raw = by_task(tf.nest.map_structure(np.asarray, outputs), self.tasks)
        found: Arrays = {}
        for task, values in zip(self.tasks, raw.values(), strict=True):
            decision = self.decisions[task.name]
            several = task.kind == "multiclass"
            if task.kind != "regression":
                values = calibrated(values, decision.temperature, several)
            found[task.name] = values.astype("float32")
            if several:
                names = np.array([name.encode() for name in task.classes], object)
                found[task.name + DECISION] = names[values.argmax(axis=1)]
            elif task.kind == "binary":
                decided = found[task.name] >= np.float32(decision.threshold)
                found[task.name + DECISION] = decided.astype("int32")
        return found

    def features(self, inputs: np.ndarray) -> np.ndarray | None:
        """The embedding, (batch, features); None if the export has none."""
        if self._embedding is None:
            return None
        with tf.device("/CPU:0"):
            return np.asarray(self._embedding(inputs, training=False))

    def clear(self, answers: Arrays) -> bool:
        """Whether no decision hangs on the last digits."""
        for task in self.tasks:
            values = answers[task.name]
            if task.kind == "binary":
                gaps = np.abs(values - self.decisions[task.name].threshold)
            elif task.kind == "multiclass":
                first = np.sort(values, axis=1)
                gaps = first[:, -1] - first[:, -2]
            else:
                continue
            if gaps.min() < MARGIN:
                return False
        return True


def check_answers(case: Case) -> None:
    """Raise ValueError if the model has no numbers to say: then nothing of it can be served."""
    broken = [
        name
        for name, values in case.outputs.items()
        if values.dtype.kind == "f" and not np.isfinite(values).all()
    ]
    if broken:
        raise ValueError(
            "`model` predicts NaN or infinity. Expected numbers; its training has diverged. "
            f"Received: tasks {broken[:10]}"
        )


def picture_cases(live: Live) -> list[Case]:
    """A case for each signature of a model of pictures, the default one first."""
    size = live.model.input_shape[1:3]
    prepare = tf.function(
        lambda data: prepare_image(data, size),
        input_signature=[tf.TensorSpec((), tf.string)],
        autograph=False,
    ).get_concrete_function()

    def cases(seed: int) -> list[Case]:
        data = example_pictures(seed)
        images = np.stack([prepare(tf.constant(one)) for one in data])
        given: Arrays = {"image_bytes": np.array(data, object)}
        pixels = np.random.default_rng(seed).integers(0, 256, (2, 33, 47, 3), "uint8")
        whole = np.stack([resize_image(one, size) for one in pixels])
        of_pixels = live.answers(whole)
        floats = {"pixels": (pixels / 255).astype("float32")}
        found = [
            Case("serving_default", given, live.answers(images)),
            Case("pixels", {"pixels": pixels}, of_pixels),
            Case("pixels_float", floats, of_pixels),
        ]
        features = live.features(images)
        return (
            found if features is None else [*found, Case("features", given, {"features": features})]
        )

    return _clearest(live, cases)


def table_cases(live: Live, columns: Sequence[str]) -> list[Case]:
    """A case for each signature of a model of rows, the default one first.

    A missing value is in the last one only: JSON has no word for it that all servers take.
    """
    inputs = column_inputs(columns)

    def cases(seed: int) -> list[Case]:
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(EXAMPLES, len(columns))).round(3).astype("float32")
        answers = live.answers(rows)
        named = inputs and {inputs[name]: rows[:, at] for at, name in enumerate(columns)}
        given: Arrays = named or {"features": rows}
        found = [Case("serving_default", given, answers)]
        found += [Case("columns", given, answers)] if inputs else []
        features = live.features(rows)
        if features is not None:
            found.append(Case("features", given, {"features": features}))
        holes = np.where(rng.random(rows.shape) < 0.3, np.float32("nan"), rows)
        return [*found, Case("matrix", {"features": holes}, live.answers(holes))]

    return _clearest(live, cases)


def example_pictures(seed: int) -> list[bytes]:
    """A JPEG, a PNG with an alpha channel and a grey JPEG, of no meaning: noise on colours."""
    rng = np.random.default_rng(seed)

    def pixels(height: int, width: int, channels: int) -> np.ndarray:
        coarse = rng.integers(0, 256, (3, 4, channels)).astype("float32")
        smooth = np.asarray(tf.image.resize(coarse, (height, width)))
        return (smooth + rng.normal(0, 4, smooth.shape)).clip(0, 255).astype("uint8")

    return [
        tf.io.encode_jpeg(pixels(48, 64, 3), quality=90).numpy(),
        tf.io.encode_png(pixels(40, 30, 4)).numpy(),
        tf.io.encode_jpeg(pixels(31, 57, 1), quality=90).numpy(),
    ]


def _clearest(live: Live, cases: Callable[[int], list[Case]]) -> list[Case]:
    """The first of several draws in which no decision hangs on the last digits, or the last one."""
    for seed in range(ATTEMPTS):
        found = cases(seed)
        if all(live.clear(case.outputs) for case in found if case.signature != "features"):
            break
    return found


def as_lists(values: np.ndarray) -> list[Any]:
    """An array for JSON; bytes as UTF-8 text."""
    if values.dtype == object:
        return [value.decode() for value in values]
    return values.tolist()


SCRIPT = Path(__file__).with_name("verify_process.py")
TIMEOUT = 900  # seconds, for a model of any size on a busy machine


class ProofFailed(ValueError):
    """The export answers otherwise than the model; nothing was published."""


def prove(folder: Path, cases: Sequence[Case], aside: Path) -> None:
    """Load an export in a fresh process, and let it answer the golden requests and all cases.

    The process runs on the CPU and refuses to import kerasmtl and Keras.

    Args:
        folder: the export, not yet in its place.
        cases: requests and the live model's answers, to be met to 1e-5.
        aside: a folder for what the process needs to know.

    Raises:
        ProofFailed: it does not load, or answers otherwise.
    """
    file = aside / "cases.json"
    file.write_text(json.dumps([_packed(case) for case in cases]), encoding="utf-8")
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", SCRIPT.read_text(encoding="utf-8"), str(folder.absolute())]
    try:
        done = subprocess.run(
            [*command, str(file.absolute())],
            cwd=aside,  # not where a folder kerasmtl may lie
            env={**os.environ, **quiet},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise ProofFailed(
            "`model` was exported, but a fresh process did not answer the golden requests within "
            f"{error.timeout:g} seconds. Nothing was published."
        ) from None
    file.unlink()
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        fault = next((line for line in lines[::-1] if line.startswith("Fault: ")), None)
        shown = fault.removeprefix("Fault: ") if fault else " ".join(lines[-3:])[-1000:]
        raise ProofFailed(
            "`model` was exported, but a fresh process with TensorFlow alone does not answer as "
            f"the model does. Nothing was published. Received: {shown}"
        )


def _packed(case: Case) -> dict[str, object]:
    def tensors(arrays: Arrays) -> dict[str, list[str]]:
        found = {}
        for key, values in arrays.items():
            tensor = tf.constant(values.tolist() if values.dtype == object else values)
            content = base64.b64encode(tf.io.serialize_tensor(tensor).numpy()).decode("ascii")
            found[key] = [tensor.dtype.name, content]
        return found

    return {
        "signature": case.signature,
        "inputs": tensors(case.inputs),
        "outputs": tensors(case.outputs),
    }
