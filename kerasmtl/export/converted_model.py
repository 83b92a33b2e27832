"""Converted models run in their own runtimes, and the description that each file carries."""

from __future__ import annotations

import importlib
import json
import zipfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kerasmtl.export.formats import FORMATS, needs

BATCH = 32
DESCRIPTION = "model.json"  # in the archive behind a .tflite file
PROPERTY = "kerasmtl"  # among the metadata of an .onnx file
_MODULES = {"litert": ("ai_edge_litert.interpreter",), "onnx": ("onnx", "onnxruntime")}

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


class ConvertedModel:
    """A file of `convert_model`, run by its own runtime, without TensorFlow or Keras.

    Args:
        path: the file.
        threads: for the runtime; by default its own choice.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: its runtime is not installed.
        ValueError: it is no file of `convert_model`.
    """

    def __init__(self, path: Path | str, threads: int | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"`path` {path} is no file. Expected a converted model.")
        self.runtime = "onnx" if self.path.suffix == FORMATS["onnx"].ending else "litert"
        check_runtime(self.runtime)
        self.threads = threads

    @cached_property
    def description(self) -> dict[str, Any]:
        """What the file says of itself: format, input, tasks with kinds and classes, check."""
        try:
            text = _READERS[self.runtime](self.path)
        except Exception as error:  # each reader has its own errors for a damaged file
            raise ValueError(
                f"`path` {self.path} is no converted model. Expected a file of `convert_model`, "
                f"which describes itself. Received: {error}"
            ) from error
        return json.loads(text)

    def predict(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs by task, float32: shapes as `kerasmtl.tasks.by_task`.

        Shapes: inputs (batch, height, width, 3) float in [0, 1], or uint8 from 0 to 255 if the
        file takes uint8, which floats are rounded to; or (batch, columns).

        Raises:
            ValueError: inputs of another shape or type.
        """
        given = self._checked(np.asarray(inputs))
        parts = [self._run(given[start : start + BATCH]) for start in range(0, len(given), BATCH)]
        names = [task["name"] for task in self.description["tasks"]]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    @cached_property
    def _run(self) -> Run:
        (name,) = self.description["inputs"]
        return runner(self.path, name, self.threads)

    def _checked(self, inputs: np.ndarray) -> np.ndarray:
        (takes,) = self.description["inputs"].values()
        wanted, shape = takes["dtype"], tuple(takes["shape"][1:])
        floats = inputs.dtype.kind == "f"
        fits = floats or inputs.dtype == wanted or (len(shape) == 1 and inputs.dtype.kind in "biu")
        if inputs.shape[1:] != shape or not len(inputs) or not fits:
            raise ValueError(
                f"`inputs` do not fit the model. Expected (batch, {', '.join(map(str, shape))}) "
                f"{wanted}. Received: {inputs.shape}, {inputs.dtype}"
            )
        if wanted == "uint8" and floats:
            inputs = np.rint(np.clip(inputs, 0, 1) * 255)
        return np.ascontiguousarray(inputs, dtype=wanted)


def check_runtime(runtime: str) -> None:
    """Raise ImportError, with what to install, unless a runtime is there."""
    for module in _MODULES[runtime]:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise needs(runtime, module.split(".")[0].replace("_", "-")) from error


def runner(path: Path, name: str, threads: int | None = None) -> Run:
    """A file as a function of its input, which is called `name`."""
    if path.suffix == FORMATS["onnx"].ending:
        return _onnx_runner(path, name, threads)
    from ai_edge_litert.interpreter import Interpreter

    serve = Interpreter(str(path), num_threads=threads).get_signature_runner("serving_default")
    return lambda inputs: serve(**{name: inputs})


def describe(path: Path, description: dict[str, Any]) -> None:
    """Add a description to a file, which its runtime passes over."""
    text = json.dumps(description, sort_keys=True, ensure_ascii=False, allow_nan=False)
    if path.suffix == FORMATS["onnx"].ending:
        import onnx

        made = onnx.load(str(path))
        onnx.helper.set_model_props(made, {PROPERTY: text})
        onnx.save(made, str(path))
        return
    # As TensorFlow Lite's own metadata tool packs the files that belong to a model.
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(DESCRIPTION), text)


def _onnx_runner(path: Path, name: str, threads: int | None) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, {name: inputs}), strict=True))


def _read_litert(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return archive.read(DESCRIPTION).decode()


def _read_onnx(path: Path) -> str:
    import onnx

    made = onnx.load(str(path))
    return {entry.key: entry.value for entry in made.metadata_props}[PROPERTY]


_READERS = {"litert": _read_litert, "onnx": _read_onnx}
