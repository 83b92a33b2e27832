"""TensorFlow Serving's messages in protocol buffers, without its package.

Source: https://github.com/tensorflow/serving, tensorflow_serving/apis: model.proto, predict.proto,
prediction_log.proto; https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

_VARINT, _BYTES = 0, 2


def predict_request(
    name: str, version: int | None, signature: str, inputs: Mapping[str, np.ndarray]
) -> bytes:
    """A PredictRequest."""
    return _field(1, _model_spec(name, version, signature)) + _tensors(2, inputs)


def predict_response(
    name: str, version: int | None, signature: str, outputs: Mapping[str, np.ndarray]
) -> bytes:
    """A PredictResponse."""
    return _tensors(1, outputs) + _field(2, _model_spec(name, version, signature))


def prediction_log(request: bytes) -> bytes:
    """A PredictionLog with this PredictRequest, as a warm-up file has it."""
    return _field(6, _field(1, request))


def _model_spec(name: str, version: int | None, signature: str) -> bytes:
    wrapped = b"" if version is None else _field(2, _varint(1 << 3 | _VARINT) + _varint(version))
    return _field(1, name.encode()) + wrapped + _field(3, signature.encode())


def _tensors(number: int, tensors: Mapping[str, np.ndarray]) -> bytes:
    """A map<string, TensorProto>: one message a pair."""
    return b"".join(
        _field(
            number,
            _field(1, key.encode()) + _field(2, tf.make_tensor_proto(value).SerializeToString()),
        )
        for key, value in tensors.items()
    )


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
