"""Requests and answers in the words of the servers: to try a server with, and to warm it up."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kerasmtl.export.verify import Case, as_lists

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


EXTRA = "assets.extra"  # the folder that TensorFlow leaves to us
GOLDEN = f"{EXTRA}/golden"
WARM_UP = f"{EXTRA}/tf_serving_warmup_requests"
DATATYPES = {"float32": "FP32", "int32": "INT32", "uint8": "UINT8", "object": "BYTES"}


def write_golden(folder: Path, case: Case, name: str, version: int) -> None:
    """A request to the default signature and its answer in four protocols, into `GOLDEN`.

    TensorFlow Serving's REST by row and by column, KServe's V2 (Open Inference Protocol), and
    TensorFlow Serving's messages for gRPC.
    """
    target = folder / GOLDEN
    target.mkdir(parents=True, exist_ok=True)
    pairs = {
        "rest_row": (rest_row_request(case), rest_row_response(case)),
        "rest_column": (rest_column_request(case), rest_column_response(case)),
        "kserve_v2": (kserve_request(case), kserve_response(case, name, version)),
    }
    for kind, pair in pairs.items():
        for end, content in zip(("request", "response"), pair, strict=True):
            text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
            (target / f"{kind}.{end}.json").write_text(text + "\n", encoding="utf-8")
    spec = (name, version, case.signature)
    (target / "grpc.request.pb").write_bytes(predict_request(*spec, case.inputs))
    (target / "grpc.response.pb").write_bytes(predict_response(*spec, case.outputs))


def write_warm_up(folder: Path, cases: Sequence[Case], name: str) -> None:
    """`WARM_UP`: a request to each signature, of one example and of several.

    Source: https://github.com/tensorflow/serving, g3doc/saved_model_warmup.md
    """
    with tf.io.TFRecordWriter(str(folder / WARM_UP)) as writer:
        for case in cases:
            one = {key: values[:1] for key, values in case.inputs.items()}
            for inputs in (one, case.inputs):
                request = predict_request(name, None, case.signature, inputs)
                writer.write(prediction_log(request))


def rest_row_request(case: Case) -> dict[str, Any]:
    rows = zip(*(_rest(values) for values in case.inputs.values()), strict=True)
    instances = [dict(zip(case.inputs, row, strict=True)) for row in rows]
    return {"signature_name": case.signature, "instances": instances}


def rest_row_response(case: Case) -> dict[str, Any]:
    lists = {key: as_lists(values) for key, values in case.outputs.items()}
    if len(lists) == 1:  # then REST leaves the name out
        return {"predictions": next(iter(lists.values()))}
    rows = zip(*lists.values(), strict=True)
    return {"predictions": [dict(zip(lists, row, strict=True)) for row in rows]}


def rest_column_request(case: Case) -> dict[str, Any]:
    inputs = {key: _rest(values) for key, values in case.inputs.items()}
    return {"signature_name": case.signature, "inputs": inputs}


def rest_column_response(case: Case) -> dict[str, Any]:
    lists = {key: as_lists(values) for key, values in case.outputs.items()}
    return {"outputs": lists if len(lists) > 1 else next(iter(lists.values()))}


def kserve_request(case: Case) -> dict[str, Any]:
    tensors = []
    for key, values in case.inputs.items():
        tensor = _tensor(key, values)
        if values.dtype == object:
            tensor["parameters"] = {"content_type": "base64"}
            tensor["data"] = [_base64(value) for value in values]
        tensors.append(tensor)
    return {"id": "golden", "inputs": tensors}


def kserve_response(case: Case, name: str, version: int) -> dict[str, Any]:
    return {
        "id": "golden",
        "model_name": name,
        "model_version": str(version),
        "outputs": [
            {**_tensor(key, values), "data": as_lists(values.ravel())}
            for key, values in case.outputs.items()
        ],
    }


def _tensor(name: str, values: np.ndarray) -> dict[str, Any]:
    datatype = DATATYPES[values.dtype.name]
    data = [] if values.dtype == object else values.ravel().tolist()
    return {"name": name, "shape": list(values.shape), "datatype": datatype, "data": data}


def _rest(values: np.ndarray) -> list[Any]:
    if values.dtype == object:
        return [{"b64": _base64(value)} for value in values]
    return values.tolist()


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")
