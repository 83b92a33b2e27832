"""The file formats of `convert_model`, and `ConvertedModel`, which runs such a file.

Needs neither TensorFlow nor Keras.

A file describes itself, so that `ConvertedModel` needs nothing besides it and its runtime: an .onnx
file in its metadata, a .tflite file in a zip archive at its end, which readers of the flatbuffer
ignore. `convert.convert_model` writes and returns it; on a device the file is used by the runtime
alone.
"""

from __future__ import annotations

import importlib
import json
import os
import zipfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BATCH = 32
DESCRIPTION = "model.json"  # in the zip archive at the end of a .tflite file
PROPERTY = "kerasmtl"  # among the metadata of an .onnx file
_MODULES = {"litert": ("ai_edge_litert.interpreter",), "onnx": ("onnx", "onnxruntime")}

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


class Format(NamedTuple):
    """One file format.

    `runtime` is "litert" or "onnx", and also the extra of kerasmtl that installs what writes and
    runs it; `suffix` of its files; `exact`, whether the file must give the model's numbers (if
    not, how far it is off is measured and reported).
    """

    runtime: str
    suffix: str
    exact: bool


FORMATS = {
    "litert": Format("litert", ".tflite", True),
    "litert-dynamic": Format("litert", ".tflite", False),
    "litert-int8": Format("litert", ".tflite", False),
    "onnx": Format("onnx", ".onnx", True),
}


class ConvertedModel:
    """A file of `convert_model`, run by LiteRT or ONNX Runtime.

    Args:
        path: the .tflite or .onnx file.
        threads: for the runtime; by default its own choice.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: its runtime is not installed.

    Example:
        >>> import tempfile
        >>> import kerasmtl as kt, numpy as np
        >>> model = kt.build_model(kt.backbones.mlp(2, [4]), ["leak", "wear"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = folder + "/pumps.onnx"
        ...     _ = kt.export.convert_model(
        ...         model, file, ["leak", "wear"], "onnx", kt.data.Table(["age", "load"])
        ...     )
        ...     probabilities = kt.export.ConvertedModel(file).predict(np.ones((3, 2)))
        >>> {name: values.shape for name, values in probabilities.items()}
        {'leak': (3,), 'wear': (3,)}
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"`path` must be a converted model, but {path} is not a file")
        self.runtime = "onnx" if self.path.suffix == FORMATS["onnx"].suffix else "litert"
        check_runtime(self.runtime)
        self.threads = threads

    @cached_property
    def description(self) -> dict[str, Any]:
        """Format, input, tasks with classes, thresholds and temperatures, and the check.

        Raises:
            ValueError: the file is not one of `convert_model`.
        """
        try:
            if self.runtime == "onnx":
                import onnx

                properties = onnx.load(str(self.path)).metadata_props
                text = {entry.key: entry.value for entry in properties}[PROPERTY]
            else:
                with zipfile.ZipFile(self.path) as archive:
                    text = archive.read(DESCRIPTION).decode()
        except Exception as error:  # each reader has its own errors for a damaged file
            raise ValueError(
                f"`path` must be a file of `convert_model`, got {self.path}: {error}"
            ) from error
        return json.loads(text)

    def predict(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by task, float32.

        Inputs are run in batches of 32, so that the activations of all of them are never in memory
        at once.

        Args:
            inputs: (batch, height, width, 3) float in [0, 1], or uint8 0 to 255 if the file takes
                uint8 (floats are then rounded to it); or (batch, columns) numbers, NaN = missing.

        Returns:
            (batch,) probability or number, (batch, classes) of a multiclass task.

        Raises:
            ValueError: inputs of another shape or dtype.
        """
        given = self._checked(np.asarray(inputs))
        parts = [self._run(given[start : start + BATCH]) for start in range(0, len(given), BATCH)]
        names = [task["name"] for task in self.description["tasks"]]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    @cached_property
    def _run(self) -> Run:
        """The file as a function."""
        (name,) = self.description["inputs"]
        return runner(self.path, name, self.threads)

    def _checked(self, inputs: np.ndarray) -> np.ndarray:
        """Return inputs in the file's dtype; raise ValueError if they do not fit."""
        (takes,) = self.description["inputs"].values()
        wanted, shape = takes["dtype"], tuple(takes["shape"][1:])
        floats = inputs.dtype.kind == "f"
        # Integers may be pixels of 0 to 255, which would be taken for numbers of 0 to 1.
        plain = "range" not in takes and inputs.dtype.kind in "biu"
        fits = floats or plain or inputs.dtype == wanted
        if inputs.shape[1:] != shape or not len(inputs) or not fits:
            raise ValueError(
                f"`inputs` must be (batch, {', '.join(map(str, shape))}) {wanted}, got "
                f"{inputs.shape} {inputs.dtype}"
            )
        if wanted == "uint8" and floats:
            inputs = np.rint(np.clip(inputs, 0, 1) * 255)
        return np.ascontiguousarray(inputs, dtype=wanted)


def check_runtime(runtime: str, *modules: str) -> None:
    """Check that what a runtime needs is installed, or else these of its modules.

    Args:
        runtime: "litert" or "onnx".
        modules: what is needed instead of the modules that run a file, for example those that write
            one.

    Raises:
        ImportError: a module is absent; says what to install.
    """
    for module in modules or _MODULES[runtime]:
        try:
            importlib.import_module(module)
        except ImportError as error:
            package = module.split(".")[0].replace("_", "-")
            raise ImportError(
                f"`to` needs the package {package}: pip install 'kerasmtl[{runtime}]'"
            ) from error


def runner(path: Path, name: str, threads: int | None = None) -> Run:
    """Return a file as a function of its input, which is called `name`.

    Args:
        path: of the file.
        name: of its input.
        threads: for the runtime; None: its own choice.

    Returns:
        From (batch, *shape) in the file's own type to arrays by output.
    """
    if path.suffix == FORMATS["onnx"].suffix:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = threads or 0  # 0: the runtime chooses
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        names = [output.name for output in session.get_outputs()]
        return lambda inputs: dict(zip(names, session.run(names, {name: inputs}), strict=True))
    from ai_edge_litert.interpreter import Interpreter

    serve = Interpreter(str(path), num_threads=threads).get_signature_runner("serving_default")
    return lambda inputs: serve(**{name: inputs})


def write_file_description(path: Path, description: dict[str, Any]) -> None:
    """Add a description to a file; its runtime ignores it.

    Args:
        path: of the file, which is changed in place: one that is not yet at its final path.
        description: for JSON, without NaN.
    """
    text = json.dumps(description, sort_keys=True, ensure_ascii=False, allow_nan=False)
    if path.suffix == FORMATS["onnx"].suffix:
        import onnx

        made = onnx.load(str(path))
        onnx.helper.set_model_props(made, {PROPERTY: text})
        onnx.save(made, str(path))
        return
    # TensorFlow Lite's own metadata tool packs associated files in the same way.
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(DESCRIPTION), text)
