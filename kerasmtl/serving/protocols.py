"""The Open Inference Protocol (KServe V2): requests read, answers written.

Pictures are BYTES in base64 with `parameters: {"content_type": "base64"}`, as MLServer's codec
has them. A signature other than the default one is named by the request's parameter
`signature_name`, an extension.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kerasmtl.serving.batching import Arrays, Examples
from kerasmtl.serving.errors import BadRows, Refused
from kerasmtl.serving.served_model import DEFAULT, PICTURES, Served, Signature, Tensor

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")  # Pillow knows dozens more, which nobody needs here
SHOWN = 80


def parsed(body: bytes) -> dict[str, Any]:
    """A request's JSON object.

    Raises:
        Refused: no JSON, or no object.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(
            f"The body is no JSON: {str(error)[:SHOWN]}. Expected an object, pictures in base64"
        ) from None
    if not isinstance(found, dict):
        raise Refused(f"The body is no JSON object. Received: {_shown(found)}")
    return found


def array(value: Any, tensor: Tensor, where: str) -> np.ndarray:
    """Nested lists as an array of the tensor's type: (batch, …).

    Of decimals, null and NaN both are "missing". Strings are UTF-8, or {"b64": …}.

    Raises:
        Refused: another type, range or shape, or lists of unequal lengths.
    """
    if tensor.dtype == "string":
        found = strings(value, where)
    else:
        found = numbers(value, np.dtype(tensor.dtype), where)
    fits = found.ndim == 1 + len(tensor.shape) and all(
        wanted in (None, length)
        for wanted, length in zip(tensor.shape, found.shape[1:], strict=True)
    )
    if not fits:
        wanted = ["batch", *("any" if length is None else length for length in tensor.shape)]
        raise Refused(
            f"{where} has another shape. Expected [{', '.join(map(str, wanted))}]. "
            f"Received: {list(found.shape)}"
        )
    return found


def from_base64(text: Any, where: str) -> bytes:
    """The bytes that base64 text stands for, standard alphabet.

    Raises:
        Refused: no such text.
    """
    if not isinstance(text, str):
        raise Refused(f"{where} is no base64 text. Received: {_shown(text)}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(f"{where} is no base64 text. Received: {_shown(text)}") from None


def picture_sizes(pictures: Sequence[bytes], most: int) -> tuple[int, ...]:
    """How many pixels each picture has, as its header says: nothing is decoded.

    Raises:
        BadRows: those that are no pictures, or have more than `most` pixels.
    """
    sizes, reasons = [], {}
    for row, data in enumerate(pictures):
        size = _header(data)
        if isinstance(size, str):
            reasons[row] = size
        elif size[0] * size[1] > most:
            reasons[row] = (
                f"too large: {size[0]} × {size[1]} pixels, more than the {most:,} allowed"
            )
        else:
            sizes.append(size[0] * size[1])
    if reasons:
        raise BadRows(reasons)
    return tuple(sizes)


def plain(name: str, values: np.ndarray, mark_bytes: bool = True) -> list[Any]:
    """An output as JSON takes it; bytes as UTF-8 text, or, if the name says so, as {"b64": …}."""
    if values.dtype != object:
        return values.tolist()

    def text(value: Any) -> Any:
        if isinstance(value, list):
            return [text(item) for item in value]
        if mark_bytes and name.endswith("_bytes"):
            return {"b64": base64.b64encode(value).decode()}
        return value.decode("utf-8", "replace")

    return text(values.tolist())


def strings(value: Any, where: str) -> np.ndarray:
    """Text, or {"b64": …}, as an array (batch,) of bytes.

    Raises:
        Refused: anything else.
    """
    if isinstance(value, list) and not any(isinstance(item, list) for item in value):
        found = np.empty(len(value), object)  # NumPy's own strings would lose trailing zeros
        for number, item in enumerate(value):
            found[number] = _string(item, f"{where}[{number}]")
        return found
    raise Refused(f"{where} is no list of strings. Received: {_shown(value)}")


def numbers(value: Any, dtype: np.dtype, where: str) -> np.ndarray:
    """Nested lists of numbers as an array of that type; null, for decimals, is "missing".

    Raises:
        Refused: anything else, or numbers out of the type's range.
    """
    try:
        found = np.asarray(value)
    except (ValueError, OverflowError):
        raise Refused(f"{where} has lists of unequal lengths, or no numbers.") from None
    if dtype.kind == "f" and found.dtype == object:
        found = _with_missing(found)
    kinds = {"f": "fiu", "b": "b"}.get(dtype.kind, "iu")
    if found.size and found.dtype.kind not in kinds:
        raise Refused(f"{where} has another type. Expected {dtype}. Received: {_shown(value)}")
    if found.size and dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        if found.min() < bounds.min or found.max() > bounds.max:
            raise Refused(
                f"{where} is out of range. Expected {dtype}. "
                f"Received: {found.min()} to {found.max()}"
            )
    with np.errstate(over="ignore"):
        cast = found.astype(dtype)
    if dtype.kind == "f" and not np.array_equal(np.isinf(cast), np.isinf(found.astype(float))):
        raise Refused(f"{where} is out of range. Expected {dtype}. Received: {_shown(value)}")
    return cast


def _header(data: bytes) -> tuple[int, int] | str:
    from PIL import Image

    if not data:
        return "empty"
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return picture.size
    except Image.DecompressionBombError:
        return "more pixels than any image may have"
    except Exception:  # whatever a parser of hostile headers comes upon
        return f"not an image: no {', '.join(FORMATS[:-1])} or WebP"


def _string(item: Any, where: str) -> bytes:
    if isinstance(item, str):
        try:
            return item.encode()
        except UnicodeEncodeError:
            raise Refused(f"{where} is no valid text. Received: {item[:SHOWN]!a}") from None
    if isinstance(item, dict) and set(item) == {"b64"}:
        return from_base64(item["b64"], where)
    raise Refused(
        f'{where} is no string. Expected text or {{"b64": "…"}}. Received: {_shown(item)}'
    )


def _with_missing(found: np.ndarray) -> np.ndarray:
    """Numbers among which some are null; anything else is left as it is."""
    flat = found.ravel().tolist()
    if all(item is None or type(item) in (int, float) for item in flat):
        try:
            numbers = [np.nan if item is None else float(item) for item in flat]
        except OverflowError:
            return found
        return np.array(numbers).reshape(found.shape)
    return found


def _shown(value: Any) -> str:
    return reprlib.repr(value)


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


def metadata_kserve(name: str, served: Served, versions: list[int]) -> dict[str, Any]:
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
