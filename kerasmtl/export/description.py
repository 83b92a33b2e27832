"""The layout of an exported version, and `model.json`, which describes it.

A version is a SavedModel folder; everything below `assets.extra` is ours, and TensorFlow ignores
it. This module is the one definition of that layout: the server, the client's page and the
predictor read exports through it.

`signatures_in` reads types and shapes from the SavedModel itself, so that the description cannot
contradict it. Later formats are refused (`FORMAT`), unknown keys are ignored.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from kerasmtl._version import __version__
from kerasmtl.evaluation.calibration import Decision
from kerasmtl.tasks import Task

EXTRA = "assets.extra"
MODEL_JSON = f"{EXTRA}/model.json"
MODEL_CARD = f"{EXTRA}/MODEL_CARD.md"
GOLDEN = f"{EXTRA}/golden"
GOLDEN_REQUEST = f"{GOLDEN}/rest_row.request.json"
GOLDEN_RESPONSE = f"{GOLDEN}/rest_row.response.json"
WARM_UP = f"{EXTRA}/tf_serving_warmup_requests"
DEFAULT_SIGNATURE = "serving_default"
DECISION = "_decision"  # the output with a task's decision is named after the task and this
FORMAT = 1


def package_versions() -> dict[str, str]:
    """Return the versions of what writes an export.

    They help to find out later why an export behaves as it does; no code depends on the numbers.
    """
    return {
        "kerasmtl": __version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "python": platform.python_version(),
    }


def describe_task(task: Task, decision: Decision) -> dict[str, Any]:
    """Return what a description says of a task; "decision" is how its threshold was fitted.

    Args:
        task: with its classes, if it has some.
        decision: its threshold and temperature; without a rule, nothing was fitted.

    Returns:
        A dict for JSON: numbers, text, lists and None.
    """
    fitted = {"rule": decision.rule, "known": decision.known, "notes": list(decision.notes)}
    return {
        "name": task.name,
        "kind": task.kind,
        "classes": list(task.classes),
        "threshold": decision.threshold,
        "temperature": decision.temperature,
        "decision": {**fitted, **decision.scores} if decision.rule else None,
    }


def write_description(folder: Path, content: Mapping[str, Any]) -> None:
    """Write model.json: UTF-8, sorted, strict JSON (NaN and infinity become null).

    Args:
        folder: of the version.
        content: nested dicts and lists; numbers of NumPy become plain ones, other objects text.
    """
    file = folder / MODEL_JSON
    file.parent.mkdir(exist_ok=True)

    def plain(value: Any) -> Any:
        return value.item() if isinstance(value, np.generic) else str(value)

    # NaN and infinity are written as such, and read as None.
    strict = json.loads(json.dumps(content, default=plain), parse_constant=lambda name: None)
    text = json.dumps(strict, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    file.write_text(text + "\n", encoding="utf-8")


def read_description(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read the model.json of an exported version.

    Args:
        folder: of the version, such as saved_models/NAME/1.

    Returns:
        Name, version, input, tasks, signatures, metrics and more; None without a model.json, as in
        a SavedModel that something else wrote.

    Raises:
        ValueError: the file is not such a description, or of a later format.

    Example:
        >>> import json, pathlib, tempfile
        >>> import kerasmtl as kt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "assets.extra", "model.json")
        ...     file.parent.mkdir()
        ...     _ = file.write_text(json.dumps({"format": 1, "tasks": [{"name": "car"}]}))
        ...     kt.export.read_description(folder)["tasks"]
        [{'name': 'car'}]
    """
    file = Path(folder) / MODEL_JSON
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"`{file}` must be JSON, got an error: {error}") from None
    try:
        known = found["format"] == FORMAT and all(task["name"] for task in found["tasks"])
    except (KeyError, TypeError):
        known = False
    if not known:
        raise ValueError(
            f"`{file}` must have format {FORMAT} and tasks with names, got {str(found)[:80]!r}"
        )
    return found


def check_version_folder(folder: str | os.PathLike[str]) -> Path:
    """Check that a path is one version of an exported model.

    Args:
        folder: such as saved_models/NAME/1.

    Returns:
        The folder as a `Path`.

    Raises:
        FileNotFoundError: the path is absent.
        ValueError: it is not a SavedModel; names the newest version below it, if there are any.
    """
    path = Path(folder)
    if (path / "saved_model.pb").is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(
            f"`export` must be a version such as saved_models/NAME/1, {folder} does not exist"
        )
    below = [int(p.parent.name) for p in path.glob("*/saved_model.pb") if p.parent.name.isdigit()]
    hint = f" Pass one of its versions: {path / str(max(below))}" if below else ""
    raise ValueError(f"`export` must have a saved_model.pb, got {folder}, which has none.{hint}")


def read_decisions(folder: str | os.PathLike[str]) -> dict[str, Decision]:
    """Read the thresholds and temperatures of an exported version.

    Args:
        folder: of the version, such as saved_models/NAME/1.

    Returns:
        A `Decision` by task: for `decisions=` of `export_saved_model` and `convert_model`, and for
        `threshold=` of `evaluate`.

    Raises:
        FileNotFoundError, ValueError: the folder is not a version with a model.json.

    Example:
        >>> import tempfile
        >>> import kerasmtl as kt
        >>> model = kt.build_model(kt.backbones.mlp(2, [4]), ["leak"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     version = kt.export_saved_model(
        ...         model, folder, ["leak"], kt.data.Table(["x", "y"]), decisions=0.3, verify=False
        ...     )
        ...     kt.export.read_decisions(version)["leak"].threshold
        0.3
    """
    described = read_description(check_version_folder(folder))
    if described is None:
        raise ValueError(f"`folder` must contain {MODEL_JSON}, got {folder}")
    found = {}
    for task in described["tasks"]:
        fitted = dict(task.get("decision") or {})
        found[task["name"]] = Decision(
            threshold=task.get("threshold"),
            temperature=task.get("temperature"),
            rule=fitted.pop("rule", None),
            known=fitted.pop("known", 0),
            notes=tuple(fitted.pop("notes", ())),
            scores=fitted,
        )
    return found


def signatures_in(folder: Path) -> dict[str, Any]:
    """Return dtype and shape of all inputs and outputs, by signature; None = any length.

    Nothing is loaded or run: only the protobuf in saved_model.pb is read.

    Args:
        folder: of a SavedModel.
    """
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    return {
        name: {"inputs": _tensors(signature.inputs), "outputs": _tensors(signature.outputs)}
        for name, signature in sorted(saved.meta_graphs[0].signature_def.items())
        if not name.startswith("__")  # TensorFlow's own
    }


def _tensors(infos: Any) -> dict[str, Any]:
    """Return dtype and shape of tensors by name."""
    return {
        name: {
            "dtype": tf.as_dtype(info.dtype).name,
            "shape": [None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim],
        }
        for name, info in sorted(infos.items())
    }
