"""TensorFlow Serving's REST: what a request asks for, and how an answer is written.

Source: https://www.tensorflow.org/tfx/serving/api_rest
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kerasmtl.serving.batching import Arrays, Examples
from kerasmtl.serving.problems import BadRows, Refused
from kerasmtl.serving.served import DEFAULT, PICTURES, Served, Signature, Tensor
from kerasmtl.serving.values import array, picture_sizes, plain

ALLOWED = {"signature_name", "instances", "inputs"}


def read_predict(body: Mapping[str, Any], served: Served, most_pixels: int) -> Examples:
    """The examples of a `:predict` request, in rows (`instances`) or columns (`inputs`).

    Raises:
        Refused: anything in it that the signature does not take.
        BadRows: pictures that are none, or too large.
    """
    unknown = set(body) - ALLOWED
    if unknown or ("instances" in body) == ("inputs" in body):
        raise Refused(
            "The request has other keys. Expected `instances` or `inputs`, and perhaps "
            f"`signature_name`. Received: {sorted(body)}"
        )
    signature = chosen(served, body.get("signature_name", DEFAULT) or DEFAULT)
    if "instances" in body:
        given = _by_row(body["instances"], signature)
        where = "instances"
    else:
        given = _by_column(body["inputs"], signature)
        where = "inputs"
    arrays = {
        name: array(given[name], tensor, _place(where, name, signature))
        for name, tensor in signature.inputs.items()
    }
    return examples(signature, arrays, most_pixels)


def write_predict(body: Mapping[str, Any], outputs: Arrays) -> dict[str, Any]:
    """The answer, in rows or columns as the request; an output that is alone loses its name."""
    lists = {name: plain(name, values) for name, values in outputs.items()}
    if "inputs" in body:
        return {"outputs": lists if len(lists) > 1 else next(iter(lists.values()))}
    if len(lists) == 1:
        return {"predictions": next(iter(lists.values()))}
    return {
        "predictions": [
            dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)
        ]
    }


def status(versions: Sequence[int]) -> dict[str, Any]:
    """What GET /v1/models/<name> says."""
    fine = {"error_code": "OK", "error_message": ""}
    return {
        "model_version_status": [
            {"version": str(version), "state": "AVAILABLE", "status": fine} for version in versions
        ]
    }


def metadata(name: str, served: Served) -> dict[str, Any]:
    """What GET /v1/models/<name>/metadata says: each signature's tensors."""

    def tensors(found: Mapping[str, Tensor]) -> dict[str, Any]:
        return {key: _tensor_info(tensor) for key, tensor in found.items()}

    signatures = {
        key: {
            "inputs": tensors(signature.inputs),
            "outputs": tensors(signature.outputs),
            "method_name": "tensorflow/serving/predict",
        }
        for key, signature in served.signatures.items()
    }
    return {
        "model_spec": {"name": name, "signature_name": "", "version": str(served.version)},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


def chosen(served: Served, name: Any) -> Signature:
    """The signature of that name.

    Raises:
        Refused: there is none.
    """
    if not isinstance(name, str) or name not in served.signatures:
        raise Refused(
            "The signature is unknown. Expected one of "
            f"{', '.join(served.signatures)}. Received: {str(name)[:100]!r}"
        )
    return served.signatures[name]


def examples(signature: Signature, arrays: Arrays, most_pixels: int) -> Examples:
    """The arrays as examples, once their lengths agree and their pictures are pictures.

    Raises:
        Refused: no examples, or inputs of unequal lengths.
        BadRows: pictures that are none, or too large.
    """
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise Refused(f"The inputs differ in length. Received: {lengths}")
    rows = next(iter(lengths.values()))
    if rows == 0:
        raise Refused("The batch is empty. Expected at least one example.")
    if signature.takes_pictures:
        sizes = picture_sizes(arrays[PICTURES].tolist(), most_pixels)
    else:
        sizes = (0,) * rows
    return Examples(signature.name, arrays, sizes)


def _by_row(instances: Any, signature: Signature) -> dict[str, list[Any]]:
    if not isinstance(instances, list):
        raise Refused("`instances` is no list.")
    if not instances:
        raise Refused("`instances` is empty. Expected at least one example.")
    names, wrong = set(signature.inputs), {}
    alone = next(iter(names)) if len(names) == 1 else None
    rows = []
    for number, instance in enumerate(instances):
        named = isinstance(instance, dict) and set(instance) != {"b64"}
        row = instance if named else {alone: instance}
        if set(row) != names:
            shown = sorted(map(str, instance)) if named else type(instance).__name__
            wrong[number] = f"expected the keys {_few(sorted(names))}, received {_few(shown)}"
        rows.append(row)
    if wrong:
        raise BadRows(wrong)
    return {name: [row[name] for row in rows] for name in names}


def _by_column(inputs: Any, signature: Signature) -> dict[str, Any]:
    names = set(signature.inputs)
    if not isinstance(inputs, dict) and len(names) == 1:
        return {next(iter(names)): inputs}
    if not isinstance(inputs, dict) or set(inputs) != names:
        shown = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
        raise Refused(
            f"`inputs` has other keys. Expected {_few(sorted(names))}. Received: {_few(shown)}"
        )
    return inputs


def _place(where: str, name: str, signature: Signature) -> str:
    return f"`{where}`" if len(signature.inputs) == 1 else f"`{where}` {name!r}"


def _few(names: Any) -> str:
    return str(names) if isinstance(names, str) or len(names) <= 10 else f"{names[:10]} and more"


def _tensor_info(tensor: Tensor) -> dict[str, Any]:
    kind = np.dtype(tensor.dtype).name.upper() if tensor.dtype != "string" else "STRING"
    kind = {"FLOAT32": "FLOAT", "FLOAT64": "DOUBLE", "FLOAT16": "HALF"}.get(kind, kind)
    dims = [-1, *(-1 if length is None else length for length in tensor.shape)]
    return {
        "dtype": f"DT_{kind}",
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in dims],
            "unknown_rank": False,
        },
        "name": tensor.in_graph,
    }
