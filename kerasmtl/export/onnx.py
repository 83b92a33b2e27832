"""Conversion to ONNX by tf2onnx, which reads TensorFlow's graph and does not need Keras.

`convert.convert_model` calls it, verifies the file in ONNX Runtime, and adds the description.
"""

from __future__ import annotations

import logging
import re

import keras
import tensorflow as tf

from kerasmtl.export.converted_model import check_runtime
from kerasmtl.export.signatures import ModelInterface

OPSET = 18  # the highest of tf2onnx 1.17


def onnx_bytes(model: keras.Model, interface: ModelInterface) -> bytes:
    """Return the model as the content of an .onnx file: float32, one output per task.

    Args:
        model: what is converted.
        interface: of the model.

    Returns:
        The serialized ModelProto, checked by onnx, with its shapes inferred.

    Raises:
        ImportError: tf2onnx is not installed.
        ValueError: ONNX lacks an operation; the message names it.
    """
    check_runtime("onnx", "onnx", "tf2onnx")
    import onnx
    import tf2onnx

    # tf2onnx logs that an operation is unsupported, and writes a file that nothing can read.
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    _, serve, spec = interface.endpoint(model)
    traced = tf.function(serve, input_signature=spec, autograph=False)
    try:
        made, _ = tf2onnx.convert.from_function(traced, input_signature=spec, opset=OPSET)
        onnx.checker.check_model(made, full_check=True)
    except (ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        found = sorted(set(re.findall(r"No Op registered for (\w+)", str(error))))
        reason = ", ".join(found) or str(error).strip().split("\n")[0][:300]
        raise ValueError(f"`model` cannot be converted to ONNX, which lacks: {reason}") from error
    finally:
        logger.setLevel(level)
    return made.SerializeToString()
