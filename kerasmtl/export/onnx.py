"""ONNX, by way of tf2onnx, which reads TensorFlow's graph and knows no Keras."""

from __future__ import annotations

import logging
import re

import tensorflow as tf

from kerasmtl.export.formats import needs
from kerasmtl.export.interface import Face, Model, serving_function

OPSET = 18  # the highest of tf2onnx 1.17


def onnx_bytes(model: Model, face: Face) -> bytes:
    """The model as an .onnx file: float32, one output per task, under its name.

    Args:
        model: what is converted.
        face: of the model.

    Raises:
        ImportError: tf2onnx is not installed.
        ValueError: ONNX has no such operation; the message names it.
    """
    try:
        import onnx
        import tf2onnx
    except ImportError as error:
        raise needs("onnx", error.name or "tf2onnx") from error
    # It logs that an operation is unsupported, and writes a file that nothing can read.
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    serve = tf.function(serving_function(model, face), input_signature=[face.spec], autograph=False)
    try:
        made, _ = tf2onnx.convert.from_function(serve, input_signature=[face.spec], opset=OPSET)
        onnx.checker.check_model(made, full_check=True)
    except (ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        found = sorted(set(re.findall(r"No Op registered for (\w+)", str(error))))
        reason = ", ".join(found) or str(error).strip().split("\n")[0][:300]
        raise ValueError(
            f"`model` cannot be converted to ONNX, which has no counterpart for: {reason}"
        ) from error
    finally:
        logger.setLevel(level)
    return made.SerializeToString()
