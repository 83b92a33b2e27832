"""The file formats that `convert_model` writes: LiteRT (TensorFlow Lite) and ONNX."""

from __future__ import annotations

from typing import NamedTuple


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


def missing_package(runtime: str, module: str) -> ImportError:
    """Return the error for a package that an extra installs, and that is absent."""
    return ImportError(
        f"`to` needs the package {module}, which is not installed. Install it: pip install "
        f"'kerasmtl[{runtime}]'"
    )
