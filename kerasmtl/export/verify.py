"""Requests with the model's answers: replayed in a fresh process, and kept in the export.

For each signature a request is drawn, and answered by the Keras model with calibration and
decisions in NumPy (`make_cases`). The export must give the same answers in a process that has
neither kerasmtl nor Keras (`verify`), so that what a server will load is known to work there. A
golden request with its answer is kept in TensorFlow Serving's REST format; its warm-up file has
all requests.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.data.inputs import Signature
from kerasmtl.evaluation.calibration import Decision, calibrated
from kerasmtl.export.description import DECISION, GOLDEN_REQUEST, GOLDEN_RESPONSE, WARM_UP
from kerasmtl.export.signatures import embedding_model
from kerasmtl.tasks import Task, by_task

SCRIPT = Path(__file__).with_name("verify_process.py")
TIMEOUT = 900  # seconds, for a model of any size on a busy machine
ATTEMPTS = 8
MARGIN = 1e-3  # an example must be further than that from a decision's threshold

Arrays = dict[str, np.ndarray]

_BYTES = 2  # wire type of protobuf: length-delimited


class VerificationError(ValueError):
    """The export does not answer as the model does; no version was published.

    The message has the first difference that was found, or the end of what the process printed.
    """


@dataclass(frozen=True)
class Case:
    """A request to a signature, and what the model answers outside the export.

    Attributes:
        signature: its name.
        inputs: arrays by argument, first axis = batch; text and image files as object arrays of
            bytes.
        outputs: arrays by output, likewise.
    """

    signature: str
    inputs: Arrays
    outputs: Arrays


def reference_answers(
    outputs: Any, tasks: Sequence[Task], decisions: Mapping[str, Decision]
) -> Arrays:
    """Calibrate a model's outputs and decide, in NumPy, as `signatures.answers` does in the graph.

    Deliberately an implementation of its own: an export is compared with it.

    Args:
        outputs: of the Keras model.
        tasks: of the outputs, in order.
        decisions: threshold and temperature by task.

    Returns:
        "<task>" and "<task>_decision" as `signatures.answers` returns them, as arrays; text is
        bytes.
    """
    found: Arrays = {}
    raw = by_task(tf.nest.map_structure(np.asarray, outputs), tasks)
    for task, values in zip(tasks, raw.values(), strict=True):
        decision, several = decisions[task.name], task.kind == "multiclass"
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


def is_clear(found: Arrays, tasks: Sequence[Task], decisions: Mapping[str, Decision]) -> bool:
    """Return whether no decision depends on the last digits.

    A probability at the threshold, or two classes that are equally probable, could be decided
    either way by rounding, and would let a correct export fail.

    Args:
        found: as `reference_answers` returns it.
        tasks: of the outputs, in order.
        decisions: threshold by task.
    """
    gaps = [np.inf]
    for task in tasks:
        values = found[task.name]
        if task.kind == "binary":
            gaps.append(np.abs(values - decisions[task.name].threshold).min())
        elif task.kind == "multiclass":
            first = np.sort(values, axis=1)
            gaps.append((first[:, -1] - first[:, -2]).min())
    return min(gaps) >= MARGIN


def make_cases(
    model: keras.Model,
    signatures: Sequence[Signature],
    tasks: Sequence[Task],
    decisions: Mapping[str, Decision],
) -> list[Case]:
    """Make a case for each signature, the default one first, and one for `features`.

    Of several draws, takes the first in which no decision depends on the last digits. The model
    answers on the CPU, where the export is verified.

    Args:
        model: the Keras model, whose answers are expected of the export.
        signatures: as `traced_signatures` returns them.
        tasks: of the outputs, in order.
        decisions: threshold and temperature by task.

    Returns:
        A case per signature. If no draw is clear, the last one is used as it is.

    Raises:
        ValueError: the model predicts NaN or infinity.
    """

    def predict(network: keras.Model, inputs: tf.Tensor) -> Any:
        with tf.device("/CPU:0"):
            return network(inputs, training=False)

    for seed in range(ATTEMPTS):
        given = [each.sample(seed) for each in signatures]
        inputs = [
            each.to_input({name: _tensor(drawn[name]) for name in each.specs})
            for each, drawn in zip(signatures, given, strict=True)
        ]
        cases = [
            Case(each.name, drawn, reference_answers(predict(model, x), tasks, decisions))
            for each, drawn, x in zip(signatures, given, inputs, strict=True)
        ]
        if all(is_clear(case.outputs, tasks, decisions) for case in cases):
            break
    # Added last, and not part of the draws: features have no decisions that could be unclear.
    embedding = embedding_model(model)
    if embedding is not None:
        features = np.asarray(predict(embedding, inputs[0]))
        cases.append(Case("features", given[0], {"features": features}))
    outputs = cases[0].outputs
    broken = [k for k, v in outputs.items() if v.dtype.kind == "f" and not np.isfinite(v).all()]
    if broken:
        raise ValueError(
            f"`model` must predict finite numbers, got NaN or infinity for {broken[:10]}"
        )
    return cases


def verify(folder: Path, cases: Sequence[Case], scratch: Path) -> None:
    """Load an export in a fresh process, and compare its answers with the model's.

    The process runs on the CPU with TensorFlow alone; importing kerasmtl or Keras fails there.

    Args:
        folder: the export, not yet published.
        cases: requests, and the model's answers, which the export must give to 1e-5.
        scratch: a folder for the file of cases.

    Raises:
        VerificationError: the export does not load, or answers differently.
    """
    file = scratch / "cases.pickle"
    file.write_bytes(pickle.dumps([(c.signature, c.inputs, c.outputs) for c in cases]))
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    # By its text, not its path: the folder of a script is the first that imports look in.
    command = [sys.executable, "-c", SCRIPT.read_text(encoding="utf-8"), str(folder.absolute())]
    try:
        done = subprocess.run(
            [*command, str(file.absolute())],
            cwd=scratch,  # not where a folder kerasmtl may be
            env={**os.environ, **quiet},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise VerificationError(
            f"The export of `model` must answer within {error.timeout:g} seconds in a fresh "
            "process, and did not. No version was published."
        ) from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        fault = next((line for line in lines[::-1] if line.startswith("Fault: ")), None)
        shown = fault.removeprefix("Fault: ") if fault else " ".join(lines[-3:])[-1000:]
        raise VerificationError(
            "The export of `model` must answer as the model does in a fresh process with "
            f"TensorFlow alone. No version was published. Got: {shown}"
        )


def _tensor(values: np.ndarray) -> tf.Tensor:
    """Return a tensor, also of an array of byte strings."""
    return tf.constant(values.tolist() if values.dtype == object else values)


# ---------------------------------------------------------------- requests that an export carries


def write_golden(folder: Path, case: Case) -> None:
    """Write a request and its answer, for people and for servers that check a version.

    Source: https://www.tensorflow.org/tfx/serving/api_rest, "Specifying input tensors in row
    format".

    Args:
        folder: of the version.
        case: of the default signature.
    """
    (folder / GOLDEN_REQUEST).parent.mkdir(parents=True, exist_ok=True)
    inputs = {key: _as_rest(values) for key, values in case.inputs.items()}
    outputs = {key: _as_lists(values) for key, values in case.outputs.items()}
    request = {"signature_name": case.signature, "instances": _rows(inputs)}
    # Of a single output REST leaves the name out.
    answer = {"predictions": _rows(outputs) if len(outputs) > 1 else next(iter(outputs.values()))}
    for file, content in ((GOLDEN_REQUEST, request), (GOLDEN_RESPONSE, answer)):
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / file).write_text(text + "\n", encoding="utf-8")


def write_warm_up(folder: Path, cases: Sequence[Case], name: str) -> None:
    """Write TensorFlow Serving's warm-up file: to each signature a single example, then several.

    Source: https://github.com/tensorflow/serving, g3doc/saved_model_warmup.md. The messages
    (apis/prediction_log.proto, predict.proto, model.proto) are encoded here, since the package
    that has them, tensorflow-serving-api, needs gRPC.

    A server sends them to a new version before it takes requests, so that the first user does not
    wait for the graph to be prepared.

    Args:
        folder: of the version.
        cases: one for each signature.
        name: of the model, by which the server addresses it.
    """
    with tf.io.TFRecordWriter(str(folder / WARM_UP)) as writer:
        for case in cases:
            one = {key: values[:1] for key, values in case.inputs.items()}
            for inputs in (one, case.inputs):
                request = _predict_request(name, case.signature, inputs)
                writer.write(_field(6, _field(1, request)))  # PredictionLog.predict_log.request


def _rows(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Return a dict for each row."""
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _as_rest(values: np.ndarray) -> list[Any]:
    """Return the rows of an input as JSON; binary strings need an object around them."""
    if values.dtype == object:
        return [{"b64": base64.b64encode(value).decode("ascii")} for value in values]
    return values.tolist()


def _as_lists(values: np.ndarray) -> list[Any]:
    """Return the rows of an output as JSON."""
    return [value.decode() for value in values] if values.dtype == object else values.tolist()


def _predict_request(name: str, signature: str, inputs: Mapping[str, np.ndarray]) -> bytes:
    """Encode tensorflow.serving.PredictRequest."""
    spec = _field(1, name.encode()) + _field(3, signature.encode())
    tensors = (
        _field(1, key.encode()) + _field(2, tf.make_tensor_proto(value).SerializeToString())
        for key, value in inputs.items()
    )
    return _field(1, spec) + b"".join(_field(2, entry) for entry in tensors)


def _field(number: int, content: bytes) -> bytes:
    """Encode a field of a protobuf message: its number, its length and its content.

    Only fields of bytes, text and messages are needed, all of which have the same wire type.
    """
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Encode a number in groups of seven bits, the lowest first."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
