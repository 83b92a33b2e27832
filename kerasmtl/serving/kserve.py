"""The Open Inference Protocol (KServe V2): requests read, answers written.

Pictures are BYTES in base64 with `parameters: {"content_type": "base64"}`, as MLServer's codec
has them. A signature other than the default one is named by the request's parameter
`signature_name`, an extension.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kerasmtl.serving.batching import Arrays, Examples
from kerasmtl.serving.problems import Refused
from kerasmtl.serving.served import DEFAULT, Served, Tensor
from kerasmtl.serving.tfserving import chosen, examples
from kerasmtl.serving.values import numbers, plain, strings

NAMES = {"string": "BYTES", "bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64"}


def read_infer(body: Mapping[str, Any], served: Served, most_pixels: int) -> Examples:
    """The examples of an `infer` request.

    Raises:
        Refused: anything in it that the signature does not take.
        BadRows: pictures that are none, or too large.
    """
    signature = chosen(served, _parameters(body).get("signature_name", DEFAULT))
    given = body.get("inputs")
    if not isinstance(given, list) or not all(
        isinstance(tensor, dict) and isinstance(tensor.get("name"), str) for tensor in given
    ):
        raise Refused("`inputs` is no list of tensors. Expected objects with name, shape, datatype")
    names = [tensor["name"] for tensor in given]
    if sorted(names) != sorted(signature.inputs):
        expected = sorted(signature.inputs)
        raise Refused(
            f"`inputs` has other names. Expected {expected[:10]}. Received: {sorted(names)[:10]}"
        )
    if signature.takes_pictures and _parameters(given[0]).get("content_type") != "base64":
        raise Refused(
            f"`inputs` {names[0]!r} takes pictures. Expected base64 text and "
            '"parameters": {"content_type": "base64"}'
        )
    arrays = {tensor["name"]: _array(tensor, signature.inputs[tensor["name"]]) for tensor in given}
    _asked(body, signature.outputs)
    return examples(signature, arrays, most_pixels)


def write_infer(
    name: str, served: Served, body: Mapping[str, Any], outputs: Arrays
) -> dict[str, Any]:
    """The answer, with the outputs that were asked for, or all."""
    answer = {
        "model_name": name,
        "model_version": str(served.version),
        "outputs": [
            {
                "name": key,
                "shape": list(outputs[key].shape),
                "datatype": _datatype(outputs[key].dtype.name),
                "data": plain(key, outputs[key].ravel(), mark_bytes=False),
            }
            for key in _asked(body, outputs)
        ],
    }
    return {"id": body["id"], **answer} if isinstance(body.get("id"), str) else answer


def metadata(name: str, served: Served, versions: list[int]) -> dict[str, Any]:
    """What GET /v2/models/<name> says of the default signature's tensors."""
    signature = served.signatures[DEFAULT]

    def tensors(found: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        return [
            {
                "name": key,
                "datatype": _datatype(tensor.dtype),
                "shape": [-1, *(-1 if length is None else length for length in tensor.shape)],
            }
            for key, tensor in found.items()
        ]

    return {
        "name": name,
        "versions": [str(version) for version in versions],
        "platform": "tensorflow_savedmodel",
        "inputs": tensors(signature.inputs),
        "outputs": tensors(signature.outputs),
    }


def _array(given: Mapping[str, Any], tensor: Tensor) -> np.ndarray:
    where = f"`inputs` {tensor.name!r}"
    wanted = _datatype(tensor.dtype)
    if given.get("datatype") != wanted:
        raise Refused(
            f"{where} has another datatype. Expected {wanted}. "
            f"Received: {str(given.get('datatype'))[:50]!r}"
        )
    shape, data = given.get("shape"), given.get("data")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise Refused(f"{where} has no shape. Expected a list of whole numbers.")
    if not isinstance(data, list):
        raise Refused(f"{where} has no data. Expected a list; the binary extension is not spoken.")
    if tensor.dtype == "string":
        found = strings(_texts(data, _parameters(given), where), where)
    else:  # flat or nested: the shape says how it is meant
        found = numbers(data, np.dtype(tensor.dtype), where)
    if found.size != int(np.prod(shape, dtype=object)):
        raise Refused(f"{where} has {found.size} values. Expected as many as shape {shape} has.")
    right = len(shape) == 1 + len(tensor.shape) and all(
        expected in (None, size) for expected, size in zip(tensor.shape, shape[1:], strict=True)
    )
    if not right:
        expected = [-1, *(-1 if length is None else length for length in tensor.shape)]
        raise Refused(f"{where} has another shape. Expected {expected}. Received: {shape}")
    return found.reshape(shape)


def _texts(data: list[Any], parameters: Mapping[str, Any], where: str) -> list[Any]:
    kind = parameters.get("content_type", "str")
    if kind not in ("base64", "str"):
        raise Refused(
            f"{where} has another content_type. Expected base64 or str. "
            f"Received: {str(kind)[:50]!r}"
        )
    for number, item in enumerate(data):
        if not isinstance(item, str):
            raise Refused(f"{where}[{number}] is no string. Received: {type(item).__name__}")
    if kind == "str":
        return data
    return [{"b64": item} for item in data]


def _asked(body: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    asked = body.get("outputs")
    if not asked:
        return list(known)
    listed = asked if isinstance(asked, list) else [asked]
    names = [output.get("name") if isinstance(output, dict) else output for output in listed]
    objects = listed is asked and all(isinstance(output, dict) for output in listed)
    if not objects or not all(isinstance(name, str) and name in known for name in names):
        raise Refused(
            f"`outputs` asks for others than there are. Expected names of {sorted(known)[:10]}. "
            f"Received: {str(names)[:200]}"
        )
    return names


def _parameters(found: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = found.get("parameters", {})
    if not isinstance(parameters, dict):
        raise Refused("`parameters` is no object.")
    return parameters


def _datatype(dtype: str) -> str:
    return NAMES.get("string" if dtype == "object" else dtype, dtype.upper())
