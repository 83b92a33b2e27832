"""What an artifact brings along to be tried with: warm-up requests and golden answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kerasmtl.serving.batching import predict_together
from kerasmtl.serving.folders import GOLDEN, WARM_UP
from kerasmtl.serving.served import DEFAULT, Served
from kerasmtl.serving.tfserving import read_predict, write_predict

MOST_WARM_UPS = 1000  # as TensorFlow Serving has it
TOLERANCE = 1e-4  # other processors add in another order


def prepare(served: Served) -> None:
    """Warm a version up, and compare its answers with those that were written beside it.

    Raises:
        ValueError: a request that it does not answer, or answers otherwise.
    """
    served.warm_up()
    try:
        for signature, inputs in _warm_ups(served):
            served.call(signature, inputs)
    except Exception as error:  # a foreign file: anything may be in there
        raise ValueError(f"its warm-up requests fail: {error}") from error
    for kind in ("rest_row", "rest_column"):
        _replay(served, served.folder / GOLDEN, kind)


def _replay(served: Served, folder: Path, kind: str) -> None:
    asked, expected = (folder / f"{kind}.{end}.json" for end in ("request", "response"))
    if not asked.is_file():
        if served.description.get("versions"):  # an export's, which has them always
            raise ValueError(f"it is not whole: {asked.relative_to(served.folder)} is not there")
        return
    try:
        body = json.loads(asked.read_text(encoding="utf-8"))
        wanted = json.loads(expected.read_text(encoding="utf-8"))
        result = predict_together(served, [read_predict(body, served, served.most_pixels())])[0]
    except (OSError, ValueError) as error:
        raise ValueError(f"its golden request {kind} fails: {error}") from error
    if isinstance(result, Exception):
        raise ValueError(f"its golden request {kind} fails: {result}")
    if not _alike(write_predict(body, result), wanted):
        raise ValueError(f"its golden request {kind} is answered otherwise than it was written")


def _alike(received: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(received, dict) and all(
            key in received and _alike(received[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(received, list)
            and len(received) == len(wanted)
            and all(_alike(*pair) for pair in zip(received, wanted, strict=True))
        )
    if isinstance(wanted, float) and isinstance(received, (int, float)):
        return bool(np.isclose(received, wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))
    return received == wanted


def _warm_ups(served: Served) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Signature and inputs of each request in assets.extra/tf_serving_warmup_requests."""
    import tensorflow as tf

    file = served.folder / WARM_UP
    if not file.is_file():
        return
    message = _prediction_log()
    for record in tf.data.TFRecordDataset(str(file)).take(MOST_WARM_UPS).as_numpy_iterator():
        request = message.FromString(record).predict_log.request
        if not request.inputs:
            continue  # another kind of request than predict
        name = request.model_spec.signature_name or DEFAULT
        tensors = served.signatures[name].inputs
        yield (
            name,
            {
                entry.key: tf.io.parse_tensor(entry.value, tensors[entry.key].dtype).numpy()
                for entry in request.inputs
            },
        )


def _prediction_log() -> Any:
    """The few fields of TensorFlow Serving's PredictionLog that name a signature and its inputs.

    Source: https://github.com/tensorflow/serving, apis/prediction_log.proto, predict.proto
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name="kerasmtl/prediction_log.proto", package="kerasmtl", syntax="proto3"
    )
    kinds = {"string": 9, "bytes": 12}
    for name, *members in (
        ("ModelSpec", ("signature_name", 3, "string")),
        ("Input", ("key", 1, "string"), ("value", 2, "bytes")),  # a map's entry; a TensorProto
        ("Request", ("model_spec", 1, "ModelSpec"), ("inputs", 2, "Input")),
        ("PredictLog", ("request", 1, "Request")),
        ("PredictionLog", ("predict_log", 6, "PredictLog")),
    ):
        message = file.message_type.add(name=name)
        for field, number, kind in members:
            label = 3 if field == "inputs" else 1  # repeated, optional
            added = message.field.add(name=field, number=number, label=label)
            added.type = kinds.get(kind, 11)
            if kind not in kinds:
                added.type_name = f".kerasmtl.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("kerasmtl.PredictionLog"))
