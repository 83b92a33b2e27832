"""LiteRT, formerly TensorFlow Lite: in float32, with weights of 8 bits, or in integers only."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.formats.face import SIGNATURE, Face, write_saved_model


def litert_bytes(
    model: keras.Model,
    face: Face,
    quantize: str | None = None,
    samples: np.ndarray | None = None,
    uint8: bool = False,
) -> bytes:
    """The model as a .tflite file.

    Args:
        model: what is converted.
        face: of the model.
        quantize: None: float32. "dynamic": weights of 8 bits, and numbers in between of 8 bits
            where the runtime computes faster with them. "int8": integers of 8 bits throughout,
            with float32 outputs.
        samples: for "int8", inputs (rows, *face.shape) that set the ranges.
        uint8: for "int8" of pictures, the input is uint8 pixels 0 to 255, not float32 in [0, 1].

    Raises:
        ValueError: LiteRT has no such operation, or none in the precision of a layer; the message
            names it.
    """
    if getattr(tf, "lite", None) is None:
        raise ValueError(
            f"`to` needs tf.lite, which TensorFlow {tf.__version__} no longer has. Expected "
            "TensorFlow 2.21: pip install 'tensorflow==2.21.*'"
        )
    with tempfile.TemporaryDirectory(prefix="kerasmtl-") as folder, warnings.catch_warnings():
        # What it warns of is its own: the calibrator runs tf.lite.Interpreter.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"tensorflow\.lite")
        write_saved_model(model, face, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
        if quantize:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "int8":
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: _one_by_one(face, samples)
            if uint8:
                converter.inference_input_type = tf.uint8
        return _converted(converter, quantize, model)


def _one_by_one(face: Face, samples: np.ndarray) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for number in range(len(samples)):
        row = samples[number : number + 1]
        if number == 0 and face.columns is None:
            # Two pixels make the range of the input [0, 1] whatever the samples hold, so that
            # its scale is 1/255 and a uint8 pixel means what it does in a picture.
            row = row.copy()
            row[0, 0, 0], row[0, 0, 1] = 0.0, 1.0
        yield SIGNATURE, {face.name: row}


def _converted(converter: Any, quantize: str | None, model: keras.Model) -> bytes:
    try:
        return converter.convert()
    except Exception as error:  # the ConverterError of a module that is not public, and others
        half = _half_precision(model)
        if half is not None:
            raise ValueError(
                f"`model` cannot be converted to LiteRT: layer {half.name!r} computes in "
                f"{half.compute_dtype}. Expected float32. Build the same model after "
                "keras.config.set_dtype_policy('float32'), and give it the weights: "
                "again.set_weights(model.get_weights())"
            ) from error
        kind = "integers of 8 bits" if quantize == "int8" else "its own operations"
        found = sorted(set(re.findall(r"'(tf[a-z]*\.[A-Za-z0-9_]+)' op", str(error))))
        reason = ", ".join(found) or str(error).strip().split("\n")[0][:300]
        raise ValueError(
            f"`model` cannot be converted to LiteRT, which has no counterpart in {kind} for: "
            f"{reason}"
        ) from error


def _half_precision(model: keras.Model) -> keras.Layer | None:
    """A layer that computes in 16 bits, if there is one."""
    for layer in model.layers:
        inner = isinstance(layer, keras.Model)
        halves = layer.compute_dtype in ("float16", "bfloat16")
        found = _half_precision(layer) if inner else layer if halves else None
        if found is not None and not isinstance(found, keras.layers.InputLayer):
            return found
    return None
