"""Requests and answers of TensorFlow Serving's REST and of the Open Inference Protocol.

What a request may contain follows from the signature alone. Values are strict: numbers of the
right type and range, in lists of the right shape; strings as text or base64. In inputs of decimals
null means "missing" and becomes NaN.

- TensorFlow Serving: `instances` (rows) or `inputs` (columns); bytes are `{"b64": "..."}`.
- Open Inference (KServe V2): JSON tensors; bytes are BYTES in base64 with
  `"parameters": {"content_type": "base64"}`, as in MLServer. A signature other than the default one
  is chosen by the request's parameter `signature_name`, an extension of ours.

Sources: https://www.tensorflow.org/tfx/serving/api_rest,
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import base64
import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kerasmtl.export.description import DEFAULT_SIGNATURE
from kerasmtl.serving.batching import Arrays, Examples
from kerasmtl.serving.errors import InvalidExamples, RequestError
from kerasmtl.serving.served_model import ServedModel, Signature, Tensor
from kerasmtl.utils.text import listed

KEYS = {"signature_name", "instances", "inputs"}
DATATYPES = {"string": "BYTES", "float16": "FP16", "float32": "FP32", "float64": "FP64"}
TF_TYPES = {"float16": "HALF", "float32": "FLOAT", "float64": "DOUBLE"}

# ------------------------------------------------------------------ what both protocols share


def parse_body(body: bytes) -> dict[str, Any]:
    """Parse the JSON object of a request.

    Args:
        body: as it arrived; deeply nested JSON is refused like malformed JSON, and not an error of
            the server.

    Raises:
        RequestError: the body is not JSON, or another value than an object.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"The body must be JSON, with bytes in base64, got {str(error)[:80]}"
        ) from None
    if not isinstance(found, dict):
        raise RequestError(f"The body must be a JSON object, got {_short(found)}")
    return found


def find_signature(model: ServedModel, name: Any) -> Signature:
    """Return the signature of that name.

    Args:
        model: the version that is asked.
        name: as the request gives it, which may be any JSON value.

    Raises:
        RequestError: the model has no such signature.
    """
    if not isinstance(name, str) or name not in model.signatures:
        raise RequestError(
            f"`signature_name` must be one of {', '.join(model.signatures)}, got {_short(name)}"
        )
    return model.signatures[name]


def to_strings(value: Any, where: str, depth: int, base64_text: bool = False) -> np.ndarray:
    """Convert text, {"b64": ...} or nested lists of them to an array of objects, bytes.

    Args:
        value: from JSON.
        where: the name of the value in messages.
        depth: how deep lists may be nested.
        base64_text: whether text is base64, too.

    Raises:
        RequestError: anything else, or lists of unequal lengths.

    Example:
        >>> to_strings(["a", {"b64": "AGI="}], "`instances`", 1)
        array([b'a', b'\\x00b'], dtype=object)
    """
    # Objects: NumPy's own strings would lose trailing zeros.
    found = np.array(_to_bytes(value, where, depth, base64_text), dtype=object)
    if any(isinstance(item, list) for item in found.flat):
        raise RequestError(f"{where} must hold lists of equal lengths.")
    return found


def _to_bytes(value: Any, where: str, depth: int, base64_text: bool) -> Any:
    """Return the same nesting of lists, with bytes in place of text; `where` grows to the place."""
    if isinstance(value, list) and depth:
        return [
            _to_bytes(item, f"{where}[{number}]", depth - 1, base64_text)
            for number, item in enumerate(value)
        ]
    if isinstance(value, dict) and set(value) == {"b64"}:
        return from_base64(value["b64"], where)
    if not isinstance(value, str):
        raise RequestError(f'{where} must be a string or {{"b64": "..."}}, got {_short(value)}')
    if base64_text:
        return from_base64(value, where)
    try:
        # JSON may hold half of a surrogate pair, "\ud800", which is not text in UTF-8.
        return value.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{where} must be valid text, got {value[:80]!a}") from None


def from_base64(text: Any, where: str) -> bytes:
    """Decode base64 of the standard alphabet.

    Args:
        text: from JSON, of any type.
        where: the name of the value in messages.

    Raises:
        RequestError: anything else.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        raise RequestError(f"{where} must be base64 text, got {_short(text)}") from None


def to_numbers(value: Any, dtype: np.dtype, where: str) -> np.ndarray:
    """Convert nested lists of numbers to an array of that type; null becomes NaN in decimals.

    Args:
        value: from JSON.
        dtype: of the input.
        where: the name of the value in messages.

    Raises:
        RequestError: other values, numbers out of range, or lists of unequal lengths.

    Example:
        >>> to_numbers([1, None], np.dtype("float32"), "`inputs`")
        array([ 1., nan], dtype=float32)
    """
    try:
        # NumPy finds the type: numbers among which there is text become text, with null among them
        # they become objects, and lists of unequal lengths raise. So the kind of the array says
        # whether all values are numbers, where true and false among numbers count as 1 and 0.
        found = np.asarray(value)
    except (ValueError, OverflowError):
        raise RequestError(f"{where} must hold numbers, in lists of equal lengths.") from None
    if dtype.kind == "f" and found.dtype == object:
        found = _with_nan(found)
    kinds = {"f": "fiu", "b": "b"}.get(dtype.kind, "iu")
    if found.size and found.dtype.kind not in kinds:
        raise RequestError(f"{where} must hold numbers of type {dtype}, got {_short(value)}")
    # The cast is compared with what was given, which catches overflow to infinity and wrapped
    # integers, but allows decimals to be rounded to float32, and Infinity itself.
    with np.errstate(over="ignore", invalid="ignore"):
        cast = found.astype(dtype)
    if dtype.kind == "f":
        fits = np.array_equal(np.isinf(cast), np.isinf(found.astype(float)))
    else:
        fits = np.array_equal(cast, found)  # what does not fit wraps around
    if not fits:
        raise RequestError(f"{where} is out of the range of {dtype}, got {_short(value)}")
    return cast


def to_json(name: str, array: np.ndarray, mark_bytes: bool = True) -> list[Any]:
    """Convert an output to lists; bytes to text, or to {"b64": ...} if the name ends in _bytes.

    Args:
        name: of the output.
        array: (examples, ...).
        mark_bytes: False makes text of all bytes.
    """

    def text(value: Any) -> Any:
        if mark_bytes and name.endswith("_bytes"):
            return {"b64": base64.b64encode(value).decode()}
        return value.decode("utf-8", "replace")

    if array.dtype == object and array.size:
        array = np.frompyfunc(text, 1, 1)(array)
    return array.tolist()


def to_examples(signature: Signature, inputs: Arrays) -> Examples:
    """Combine inputs to examples.

    Args:
        signature: what they are for.
        inputs: by name, arrays (examples, ...).

    Raises:
        RequestError: no examples, inputs of different lengths, or of another shape than the
            signature's.
    """
    for name, array in inputs.items():
        wanted = _dims(signature.inputs[name])
        if len(wanted) != array.ndim or any(
            size not in (-1, got) for size, got in zip(wanted, array.shape, strict=True)
        ):
            raise RequestError(
                f"`inputs` {name!r} must have the shape {wanted}, got {list(array.shape)}"
            )
    lengths = {name: len(array) for name, array in inputs.items()}
    if len(set(lengths.values())) != 1:
        raise RequestError(f"The inputs must have the same length, got {_few(lengths)}")
    if not next(iter(lengths.values())):
        raise RequestError("The request must have at least one example, got none.")
    return Examples(signature.name, inputs)


def _values(value: Any, tensor: Tensor, where: str, base64_text: bool = False) -> np.ndarray:
    """Convert the JSON value of an input by its type; its shape is checked by `to_examples`."""
    if tensor.dtype == "string":
        return to_strings(value, where, 1 + len(tensor.shape), base64_text)
    return to_numbers(value, np.dtype(tensor.dtype), where)


def _with_nan(found: np.ndarray) -> np.ndarray:
    """Replace None by NaN among numbers; anything else stays an array of objects."""
    flat = found.ravel().tolist()
    if not all(item is None or type(item) in (int, float) for item in flat):
        return found
    try:
        return np.array([np.nan if n is None else float(n) for n in flat]).reshape(found.shape)
    except OverflowError:
        return found


def _dims(tensor: Tensor) -> list[int]:
    """Return the shape with the batch, -1 = any length."""
    return [-1, *(-1 if length is None else length for length in tensor.shape)]


def _short(value: Any) -> str:
    """Return a value cut to some words: it is hostile, and may be as large as the request."""
    return reprlib.repr(value)


def _few(names: Iterable[str]) -> str:
    """Return sorted names for a message, in ASCII, so that they cannot forge lines or hide."""
    return listed(sorted(map(ascii, names)))


# ------------------------------------------------------------------ TensorFlow Serving's REST


def read_predict(body: Mapping[str, Any], model: ServedModel) -> Examples:
    """Read a `:predict` request, in rows (`instances`) or columns (`inputs`).

    Args:
        body: the parsed request.
        model: the version that is asked.

    Raises:
        RequestError: the signature does not take what the request holds.
        InvalidExamples: some rows have other keys than the signature's inputs.
    """
    if set(body) - KEYS or ("instances" in body) == ("inputs" in body):
        raise RequestError(
            "The request must have `instances` or `inputs`, and perhaps `signature_name`, "
            f"got {_few(body)}"
        )
    signature = find_signature(model, body.get("signature_name") or DEFAULT_SIGNATURE)
    where = "instances" if "instances" in body else "inputs"
    given = (_rows if where == "instances" else _columns)(body[where], signature)
    alone = len(signature.inputs) == 1
    arrays = {
        name: _values(given[name], tensor, f"`{where}`" if alone else f"`{where}` {name!r}")
        for name, tensor in signature.inputs.items()
    }
    return to_examples(signature, arrays)


def write_predict(body: Mapping[str, Any], outputs: Arrays) -> dict[str, Any]:
    """Write the answer in rows or columns as the request; a single output is not named.

    Args:
        body: the parsed request.
        outputs: by name, arrays (examples, ...).

    Example:
        >>> write_predict({"instances": [1, 2]}, {"sum": np.array([1.5, 2.0])})
        {'predictions': [1.5, 2.0]}
    """
    lists = {name: to_json(name, array) for name, array in outputs.items()}
    if "inputs" in body:
        return {"outputs": lists if len(lists) > 1 else next(iter(lists.values()))}
    if len(lists) == 1:
        return {"predictions": next(iter(lists.values()))}
    rows = zip(*lists.values(), strict=True)
    return {"predictions": [dict(zip(lists, row, strict=True)) for row in rows]}


def write_status(versions: Sequence[int]) -> dict[str, Any]:
    """Write the answer to GET /v1/models/NAME: the state of each version.

    Example:
        >>> write_status([3])["model_version_status"][0]["state"]
        'AVAILABLE'
    """
    ok = {"error_code": "OK", "error_message": ""}
    return {
        "model_version_status": [
            {"version": str(version), "state": "AVAILABLE", "status": ok} for version in versions
        ]
    }


def write_metadata(name: str, model: ServedModel) -> dict[str, Any]:
    """Write the answer to GET /v1/models/NAME/metadata: the tensors of each signature.

    Args:
        name: of the model.
        model: the version that is asked.
    """

    def tensors(found: Mapping[str, Tensor]) -> dict[str, Any]:
        return {key: _tensor_info(tensor) for key, tensor in found.items()}

    signatures = {
        key: {
            "inputs": tensors(signature.inputs),
            "outputs": tensors(signature.outputs),
            "method_name": "tensorflow/serving/predict",
        }
        for key, signature in model.signatures.items()
    }
    return {
        "model_spec": {"name": name, "signature_name": "", "version": str(model.version)},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


def _rows(instances: Any, signature: Signature) -> dict[str, list[Any]]:
    """Return the values of each input from a list of rows."""
    if not isinstance(instances, list) or not instances:
        raise RequestError(f"`instances` must be a list with examples, got {_short(instances)}")
    names, wrong = set(signature.inputs), {}
    alone = next(iter(names)) if len(names) == 1 else None
    rows = []
    for number, instance in enumerate(instances):
        named = isinstance(instance, dict) and set(instance) != {"b64"}
        row = instance if named else {alone: instance}  # a single input need not be named
        if set(row) != names:
            shown = _few(instance) if named else type(instance).__name__
            wrong[number] = f"the keys must be {_few(names)}, got {shown}"
        rows.append(row)
    if wrong:
        raise InvalidExamples(wrong)
    return {name: [row[name] for row in rows] for name in names}


def _columns(inputs: Any, signature: Signature) -> dict[str, Any]:
    """Return the values of each input from columns."""
    names = set(signature.inputs)
    if not isinstance(inputs, dict) and len(names) == 1:
        return {next(iter(names)): inputs}
    if not isinstance(inputs, dict) or set(inputs) != names:
        shown = _few(inputs) if isinstance(inputs, dict) else type(inputs).__name__
        raise RequestError(f"The keys of `inputs` must be {_few(names)}, got {shown}")
    return inputs


def _tensor_info(tensor: Tensor) -> dict[str, Any]:
    """Return a tensor as TensorFlow's TensorInfo in JSON, in which lengths are strings."""
    return {
        "dtype": f"DT_{TF_TYPES.get(tensor.dtype, tensor.dtype.upper())}",
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in _dims(tensor)],
            "unknown_rank": False,
        },
        "name": tensor.graph_name,
    }


# ------------------------------------------------------------------ Open Inference Protocol


def read_infer(body: Mapping[str, Any], model: ServedModel) -> Examples:
    """Read an `infer` request.

    Args:
        body: the parsed request.
        model: the version that is asked.

    Raises:
        RequestError: the signature does not take what the request holds.
    """
    signature = find_signature(model, _parameters(body).get("signature_name", DEFAULT_SIGNATURE))
    given = body.get("inputs")
    if not isinstance(given, list) or not all(
        isinstance(tensor, dict) and isinstance(tensor.get("name"), str) for tensor in given
    ):
        raise RequestError("`inputs` must be a list of tensors with name, shape, datatype, data.")
    names = [tensor["name"] for tensor in given]
    if sorted(names) != sorted(signature.inputs):
        raise RequestError(
            f"The names of `inputs` must be {_few(signature.inputs)}, got {_few(names)}"
        )
    arrays = {tensor["name"]: _array(tensor, signature.inputs[tensor["name"]]) for tensor in given}
    _outputs(body, signature.outputs)
    return to_examples(signature, arrays)


def write_infer(
    name: str, model: ServedModel, body: Mapping[str, Any], outputs: Arrays
) -> dict[str, Any]:
    """Write the answer, with the outputs that the request names, or all.

    Args:
        name: of the model.
        model: the version that answered.
        body: the parsed request; its `id` is sent back.
        outputs: by name, arrays (examples, ...).
    """
    answer = {
        "model_name": name,
        "model_version": str(model.version),
        "outputs": [
            {
                "name": key,
                "shape": list(outputs[key].shape),
                "datatype": _datatype(outputs[key].dtype.name),
                "data": to_json(key, outputs[key].ravel(), mark_bytes=False),
            }
            for key in _outputs(body, outputs)
        ],
    }
    return {"id": body["id"], **answer} if isinstance(body.get("id"), str) else answer


def write_model(name: str, model: ServedModel, versions: Sequence[int]) -> dict[str, Any]:
    """Write the answer to GET /v2/models/NAME: the tensors of the default signature.

    Args:
        name: of the model.
        model: the version whose tensors are described.
        versions: all that are served.
    """

    def tensors(found: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        return [
            {"name": key, "datatype": _datatype(tensor.dtype), "shape": _dims(tensor)}
            for key, tensor in found.items()
        ]

    signature = model.signatures[DEFAULT_SIGNATURE]
    return {
        "name": name,
        "versions": [str(version) for version in versions],
        "platform": "tensorflow_savedmodel",
        "inputs": tensors(signature.inputs),
        "outputs": tensors(signature.outputs),
    }


def _array(given: Mapping[str, Any], tensor: Tensor) -> np.ndarray:
    """Convert one of V2's tensors to an array of its own shape; raises RequestError."""
    where = f"`inputs` {tensor.name!r}"
    if given.get("datatype") != _datatype(tensor.dtype):
        raise RequestError(
            f"{where} must have the datatype {_datatype(tensor.dtype)}, "
            f"got {_short(given.get('datatype'))}"
        )
    shape, data = given.get("shape"), given.get("data")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise RequestError(f"{where} must have a shape of whole numbers, got {_short(shape)}")
    if not isinstance(data, list):
        raise RequestError(f"{where} must have its data in a list, got {_short(data)}")
    # Flat or nested: the shape decides how the data are meant.
    found = _values(data, tensor, where, _is_base64(given, tensor))
    # Python's integers: a hostile shape could overflow NumPy's to the number of values.
    if found.size != int(np.prod(shape, dtype=object)):
        raise RequestError(f"{where} must have the shape {shape}, got {found.size} values")
    return found.reshape(shape)


def _is_base64(given: Mapping[str, Any], tensor: Tensor) -> bool:
    """Return whether the strings of a tensor are base64, as its content_type says."""
    kind = _parameters(given).get("content_type", "str")
    # Names that end in _bytes hold bytes, as in TensorFlow Serving: as text they would be garbage.
    allowed = ("base64",) if tensor.name.endswith("_bytes") else ("base64", "str")
    if tensor.dtype == "string" and kind not in allowed:
        raise RequestError(
            f"The content_type of `inputs` {tensor.name!r} must be {' or '.join(allowed)}, as in "
            f'"parameters": {{"content_type": "base64"}}, got {_short(kind)}'
        )
    return kind == "base64"


def _outputs(body: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Return the names of the outputs that a request asks for; by default all."""
    asked = body.get("outputs")
    if not asked:
        return list(known)
    listed = isinstance(asked, list) and all(isinstance(output, dict) for output in asked)
    names = [output.get("name") for output in asked] if listed else []
    if not names or not all(isinstance(name, str) and name in known for name in names):
        raise RequestError(
            f"`outputs` must be a list of objects with names of {_few(known)}, got {_short(asked)}"
        )
    return names


def _parameters(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters of a request or tensor; raises RequestError if they are malformed."""
    parameters = found.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestError(f"`parameters` must be an object, got {_short(parameters)}")
    return parameters


def _datatype(dtype: str) -> str:
    """Return V2's name of a TensorFlow or NumPy type; arrays of objects hold bytes."""
    return DATATYPES.get("string" if dtype == "object" else dtype, dtype.upper())
