"""model.json: what an export says of itself."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import file_digest
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from kerasmtl._version import __version__
from kerasmtl.evaluation.calibration import Decision
from kerasmtl.export.golden import EXTRA
from kerasmtl.export.signatures import column_inputs
from kerasmtl.tasks import Task

MODEL_FILE = os.path.join(EXTRA, "model.json")
FORMAT = 1


def data_of(labels: str | os.PathLike[str], rows: int | None = None) -> dict[str, Any]:
    """What to remember of the labels file that a model was trained on: hash, rows, its name.

    `rows`: how many of them it was trained on.

    Raises:
        OSError: the file cannot be read.
    """
    with open(labels, "rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "rows": rows, "source": Path(labels).name}


def checked_data(data: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a caller says of the data; raises ValueError if it is no mapping."""
    if data is not None and not isinstance(data, Mapping):
        raise ValueError(
            "`data` is no description. Expected what data_of gives, a dict with sha256, rows and "
            f"source. Received: {str(data)[:80]!r}"
        )
    return None if data is None else dict(data)


def describe(
    folder: Path,
    name: str,
    version: int,
    tasks: Sequence[Task],
    decisions: Mapping[str, Decision],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of model.json, for the SavedModel in a folder.

    `about`: "kind", "image_size", "columns", "packed_bits", "max_pixels", "metrics", "data" and
    "licence".
    """
    columns = list(about["columns"] or [])
    return {
        **about,
        "format": FORMAT,
        "name": name,
        "version": version,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "columns": columns,
        "inputs": column_inputs(columns) if columns else None,
        "tasks": [_task(task, decisions[task.name]) for task in tasks],
        "signatures": signatures_in(folder),
        "versions": {
            "kerasmtl": __version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "python": platform.python_version(),
        },
    }


def write_description(folder: Path, content: Mapping[str, Any]) -> None:
    """Write model.json: UTF-8, sorted, strict JSON, in which what is not defined is null."""
    file = folder / MODEL_FILE
    file.parent.mkdir(exist_ok=True)
    text = json.dumps(
        _strict(content), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False
    )
    file.write_text(text + "\n", encoding="utf-8")


def read_description(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What model.json in an export says; None if there is none.

    Raises:
        ValueError: it is no such description, or of a later format.
    """
    file = Path(folder) / MODEL_FILE
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{file}` is no JSON. Received: {error}") from None
    received = found.get("format") if isinstance(found, dict) else found
    if received != FORMAT:
        raise ValueError(
            f"`{file}` has another format. Expected format {FORMAT}. Received: {str(received)[:80]}"
        )
    return found


def signatures_in(folder: Path) -> dict[str, Any]:
    """By signature, dtype and shape of its inputs and outputs; None = any length."""
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    return {
        name: {"inputs": _tensors(signature.inputs), "outputs": _tensors(signature.outputs)}
        for name, signature in sorted(saved.meta_graphs[0].signature_def.items())
        if not name.startswith("__")  # TensorFlow's own
    }


def _tensors(infos: Any) -> dict[str, Any]:
    return {
        name: {
            "dtype": tf.as_dtype(info.dtype).name,
            "shape": [None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim],
        }
        for name, info in sorted(infos.items())
    }


def _task(task: Task, decision: Decision) -> dict[str, Any]:
    rule = None
    if decision.rule is not None:
        rule = {
            "rule": decision.rule,
            "known": decision.known,
            "notes": list(decision.notes),
            **decision.scores,
        }
    return {
        "name": task.name,
        "kind": task.kind,
        "classes": list(task.classes),
        "threshold": decision.threshold,
        "temperature": decision.temperature,
        "decision": rule,
    }


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
