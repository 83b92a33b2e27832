"""The proof before publication: a process that knows neither kerasmtl nor Keras answers alike."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from kerasmtl.exporting.live import Arrays, Case

SCRIPT = Path(__file__).with_name("proof_process.py")
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
