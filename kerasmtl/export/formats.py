"""A trained model for runtimes other than TensorFlow's: LiteRT (TensorFlow Lite) and ONNX."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """One way to write a model.

    Args:
        runtime: "litert" or "onnx".
        ending: of its files.
        extra: of kerasmtl, which brings what writes and runs it.
        exact: whether it gives the model's numbers; if not, how far it is off is measured and told.
    """

    runtime: str
    ending: str
    extra: str
    exact: bool


NEAR = {"probability": 1e-5, "number": 1e-4}  # how far it may be off; a number above 1, as a share

FORMATS = {
    "litert": Format("litert", ".tflite", "litert", True),
    "litert-dynamic": Format("litert", ".tflite", "litert", False),
    "litert-int8": Format("litert", ".tflite", "litert", False),
    "onnx": Format("onnx", ".onnx", "onnx", True),
}


def needs(extra: str, module: str) -> ImportError:
    """The error for a package that an extra brings, and that is absent."""
    return ImportError(
        f"`to` needs the package {module}, which is not installed. Install it: pip install "
        f"'kerasmtl[{extra}]'"
    )
