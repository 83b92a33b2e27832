"""LiteRT, formerly TensorFlow Lite: in float32, with weights of 8 bits, or in integers."""

from __future__ import annotations

import csv
import io
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.export.interface import SIGNATURE, Face, Model, write_saved_model

FLOAT_SHARE = 5 / 8  # of the convolutions of int8, in float32
# What calibration is made of: its operations share ranges that integers cannot.
_TEMPERATURE = tuple("STRIDED_SLICE LOGISTIC SOFTMAX LOG NEG DIV MAXIMUM MINIMUM".split())
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")


def litert_bytes(
    model: Model,
    face: Face,
    quantize: str | None = None,
    samples: np.ndarray | None = None,
    uint8: bool = False,
    float_layers: int | None = None,
) -> bytes:
    """The model as a .tflite file.

    Args:
        model: what is converted.
        face: of the model.
        quantize: None: float32. "dynamic": weights of 8 bits, and numbers in between of 8 bits
            where the runtime computes faster with them. "int8": integers of 8 bits, with float32
            outputs.
        samples: for "int8", inputs (rows, *face.shape) that set the ranges.
        uint8: for "int8" of pictures, the input is uint8 pixels 0 to 255, not float32 in [0, 1].
        float_layers: for "int8", how many convolutions compute in float32, counted from the input,
            with what is before them; the last dense layer and what follows it then do, too. By
            default five eighths; 0: none.

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
        if quantize == "int8" and (float_layers != 0 or getattr(model, "calibrated", False)):
            write_saved_model(model, face, folder, uint8)
            given = np.rint(samples * 255).astype("uint8") if uint8 else samples
            warm = _TEMPERATURE if getattr(model, "calibrated", False) else ()
            return _converted(
                lambda: _mixed(_converter(folder), face, given, float_layers, warm), model
            )
        write_saved_model(model, face, folder)
        converter = _converter(folder)
        if quantize:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "int8":
            _set_int8(converter, lambda: _one_by_one(face, samples))
            if uint8:
                converter.inference_input_type = tf.uint8
        return _converted(converter.convert, model, quantize)


def _converter(folder: str) -> Any:
    return tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])


def _set_int8(converter: Any, samples: Callable[[], Iterator[Any]]) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.representative_dataset = samples


def _mixed(
    converter: Any,
    face: Face,
    samples: np.ndarray,
    float_layers: int | None,
    never: Sequence[str],
) -> bytes:
    """Integers in the middle, float32 at both ends: there the 8 bits cost most decisions.

    The first maps are large and have the widest ranges; what they lose goes through all layers.
    """
    _set_int8(converter, lambda: ((SIGNATURE, {face.name: row[None]}) for row in samples))
    options = tf.lite.experimental.QuantizationDebugOptions
    debugger = tf.lite.experimental.QuantizationDebugger(
        converter=converter,
        debug_dataset=lambda: iter([[samples[:1]]]),
        debug_options=options(denylisted_ops=list(never)),
    )
    debugger.run()
    found = io.StringIO()
    debugger.layer_statistics_dump(found)
    found.seek(0)
    nodes = [(row["op_name"], row["tensor_name"]) for row in csv.DictReader(found)]
    kept = _in_float([kind for kind, _ in nodes], float_layers)
    debugger.options = options(
        denylisted_ops=list(never), denylisted_nodes=[nodes[place][1] for place in kept]
    )
    return debugger.get_nondebug_quantized_model()


def _in_float(kinds: Sequence[str], float_layers: int | None) -> list[int]:
    """Which operations of a graph compute in float32: those up to a convolution, and the last."""
    convolutions = [place for place, kind in enumerate(kinds) if kind in _CONVOLUTIONS]
    count = int(len(convolutions) * FLOAT_SHARE) if float_layers is None else float_layers
    count = min(count, len(convolutions))
    first = convolutions[count - 1] + 1 if count else 0
    dense = [place for place, kind in enumerate(kinds) if kind == "FULLY_CONNECTED"]
    last = max(dense[-1] if dense else len(kinds), first)
    return [*range(first), *range(last, len(kinds))]


def _one_by_one(face: Face, samples: np.ndarray) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for number in range(len(samples)):
        row = samples[number : number + 1]
        if number == 0 and face.columns is None:
            # Two pixels make the range of the input [0, 1] whatever the samples hold, so that
            # its scale is 1/255 and a uint8 pixel means what it does in a picture.
            row = row.copy()
            row[0, 0, 0], row[0, 0, 1] = 0.0, 1.0
        yield SIGNATURE, {face.name: row}


def _converted(convert: Callable[[], bytes], model: Model, quantize: str | None = "int8") -> bytes:
    try:
        return convert()
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


def _half_precision(model: Model) -> keras.Layer | None:
    """A layer that computes in 16 bits, if there is one."""
    for layer in model.layers:
        inner = isinstance(layer, keras.Model)
        halves = layer.compute_dtype in ("float16", "bfloat16")
        found = _half_precision(layer) if inner else layer if halves else None
        if found is not None and not isinstance(found, keras.layers.InputLayer):
            return found
    return None
