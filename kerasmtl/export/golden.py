"""Golden requests with their answers in TensorFlow Serving's REST format, and its warm-up file."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kerasmtl.export.description import GOLDEN_REQUEST, GOLDEN_RESPONSE, WARM_UP
from kerasmtl.export.verify import Case

_BYTES = 2  # wire type of protobuf: length-delimited


def write_golden(folder: Path, case: Case) -> None:
    """Write a request and its answer, for people and for servers that check a version.

    Source: https://www.tensorflow.org/tfx/serving/api_rest, "Specifying input tensors in row
    format".
    """
    (folder / GOLDEN_REQUEST).parent.mkdir(parents=True, exist_ok=True)
    inputs = {key: _as_rest(values) for key, values in case.inputs.items()}
    outputs = {key: _as_lists(values) for key, values in case.outputs.items()}
    request = {"signature_name": case.signature, "instances": _rows(inputs)}
    # Of a single output REST leaves the name out.
    answer = {"predictions": _rows(outputs) if len(outputs) > 1 else next(iter(outputs.values()))}
    for file, content in ((GOLDEN_REQUEST, request), (GOLDEN_RESPONSE, answer)):
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / file).write_text(text + "\n", encoding="utf-8")


def write_warm_up(folder: Path, cases: Sequence[Case], name: str) -> None:
    """Write TensorFlow Serving's warm-up file: to each signature a single example, then several.

    Source: https://github.com/tensorflow/serving, g3doc/saved_model_warmup.md. The messages
    (apis/prediction_log.proto, predict.proto, model.proto) are encoded here, since the package
    that has them, tensorflow-serving-api, needs gRPC.
    """
    with tf.io.TFRecordWriter(str(folder / WARM_UP)) as writer:
        for case in cases:
            one = {key: values[:1] for key, values in case.inputs.items()}
            for inputs in (one, case.inputs):
                request = _predict_request(name, case.signature, inputs)
                writer.write(_field(6, _field(1, request)))  # PredictionLog.predict_log.request


def _rows(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _as_rest(values: np.ndarray) -> list[Any]:
    if values.dtype == object:
        return [{"b64": base64.b64encode(value).decode("ascii")} for value in values]
    return values.tolist()


def _as_lists(values: np.ndarray) -> list[Any]:
    return [value.decode() for value in values] if values.dtype == object else values.tolist()


def _predict_request(name: str, signature: str, inputs: Mapping[str, np.ndarray]) -> bytes:
    spec = _field(1, name.encode()) + _field(3, signature.encode())
    tensors = (
        _field(1, key.encode()) + _field(2, tf.make_tensor_proto(value).SerializeToString())
        for key, value in inputs.items()
    )
    return _field(1, spec) + b"".join(_field(2, entry) for entry in tensors)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
