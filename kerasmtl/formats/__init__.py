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
        bound: how far an output may be from the model's own, as a share of it where it is above 1;
            None: it loses precision, and how much is measured and told.
    """

    runtime: str
    ending: str
    extra: str
    bound: float | None


FORMATS = {
    "litert": Format("litert", ".tflite", "litert", 1e-4),
    "litert-dynamic": Format("litert", ".tflite", "litert", None),
    "litert-int8": Format("litert", ".tflite", "litert", None),
    "onnx": Format("onnx", ".onnx", "onnx", 1e-4),
}


def needs(extra: str, module: str) -> ImportError:
    """The error for a package that an extra brings, and that is absent."""
    return ImportError(
        f"`to` needs the package {module}, which is not installed. Install it: pip install "
        f"'kerasmtl[{extra}]'"
    )
