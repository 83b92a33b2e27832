"""Conversion to LiteRT, formerly TensorFlow Lite: float32, 8-bit weights, or 8-bit integers.

`convert.convert_model` calls it, and verifies the file in the interpreter of LiteRT. TensorFlow's
converter reads a SavedModel from a temporary folder, whose signature has the names of the input and
the outputs.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.export.description import DEFAULT_SIGNATURE
from kerasmtl.export.signatures import ModelInterface, write_saved_model
from kerasmtl.models.layer_groups import sublayers


def litert_bytes(
    model: keras.Model,
    interface: ModelInterface,
    quantize: str | None = None,
    samples: np.ndarray | None = None,
    uint8: bool = False,
) -> bytes:
    """Return the model as the content of a .tflite file.

    Args:
        model: what is converted.
        interface: of the model.
        quantize: None: float32. "dynamic": weights of 8 bits, and activations of 8 bits where the
            runtime computes faster with them. "int8": integers of 8 bits throughout, with float32
            outputs.
        samples: for "int8", inputs (rows, *interface.shape) that set the ranges of the integers.
        uint8: for "int8", the input is uint8 pixels 0 to 255, not float32 in [0, 1].

    Returns:
        The file's content, with one signature, `serving_default`.

    Raises:
        ValueError: LiteRT lacks an operation, or has it not in the precision of a layer; the
            message names it.
    """
    if getattr(tf, "lite", None) is None:
        raise ValueError(
            f"`to` needs tf.lite, which TensorFlow {tf.__version__} lacks: install TensorFlow 2.21"
        )
    with tempfile.TemporaryDirectory(prefix="kerasmtl-") as folder, warnings.catch_warnings():
        # The calibrator runs tf.lite.Interpreter, which warns that it will move to LiteRT.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"tensorflow\.lite")
        write_saved_model(model, folder, [interface.endpoint(model)])
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=[DEFAULT_SIGNATURE]
        )
        if quantize:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "int8":
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: _one_by_one(interface, samples)
            if uint8:
                converter.inference_input_type = tf.uint8
        try:
            return converter.convert()
        except Exception as error:  # ConverterError is of a module that is not public
            raise ValueError(_reason(error, model, quantize)) from error


def _one_by_one(
    interface: ModelInterface, samples: np.ndarray
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield samples as the calibrator takes them.

    Args:
        interface: whose input's `bounds` the first row is made to reach.
        samples: (rows, *interface.shape) float32.
    """
    for number in range(len(samples)):
        row = samples[number : number + 1]
        if number == 0:
            # Two numbers make the range of the input that of its kind, whatever the samples
            # contain: for pixels in [0, 1] the scale is 1/255, so that uint8 means what it does in
            # an image.
            row = row.copy()
            row.flat[0], row.flat[-1] = interface.input.bounds
        yield DEFAULT_SIGNATURE, {interface.name: row}


def _reason(error: Exception, model: keras.Model, quantize: str | None) -> str:
    """Explain a failed conversion: half precision, or the operations that LiteRT lacks.

    Args:
        error: of the converter, whose text lists operations as 'tf.Name' op.
        model: what was converted.
        quantize: as in `litert_bytes`.
    """
    for layer in sublayers(model):
        containers = keras.layers.InputLayer | keras.Model
        if "float16" in layer.compute_dtype and not isinstance(layer, containers):
            return (
                f"`model` must compute in float32 for LiteRT, got layer {layer.name!r} in "
                f"{layer.compute_dtype}. Build the same model after "
                "keras.config.set_dtype_policy('float32'), and give it the weights: "
                "again.set_weights(model.get_weights())"
            )
    kind = "8-bit integer operation" if quantize == "int8" else "operation"
    found = sorted(set(re.findall(r"'(tf[a-z]*\.[A-Za-z0-9_]+)' op", str(error))))
    reason = ", ".join(found) or str(error).strip().split("\n")[0][:300]
    return f"`model` cannot be converted to LiteRT, which has no {kind} for: {reason}"
