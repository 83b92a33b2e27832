"""Predictions for pictures or rows from a server: TensorFlow Serving's REST, and KServe's V2.

Sources: https://www.tensorflow.org/tfx/serving/api_rest,
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from kerasmtl.client_http import post, reached, read, session

if TYPE_CHECKING:
    import requests

INPUT = "image_bytes"
BATCH = 32
TIMEOUT = 60.0
RETRIES = 5
_PATH = re.compile(
    r"(?P<root>https?://[^?#]*?)/(?P<protocol>v1|v2)/models/(?P<name>[^/:?#]+)"
    r"(?P<version>/(?:versions/\d+|labels/[^/:?#]+))?(?::predict|/infer)?/?"
)

Answer = dict[str, Any]  # output name → number, text, or a list of numbers
# A picture, its bytes or path; or a row of a table: input name → number, NaN = missing.
Example = bytes | str | os.PathLike[str] | Mapping[str, Any]


def predict_tfserving(
    url: str,
    examples: Sequence[Example],
    signature: str | None = None,
    batch_size: int = BATCH,
    timeout: float = TIMEOUT,
    retries: int = RETRIES,
) -> list[Answer]:
    """By picture or row, output name → value, over TensorFlow Serving's REST.

    Args:
        url: of the model, as `model_url` makes it: http://HOST:8501/v1/models/NAME, perhaps with
            /versions/N or /labels/LABEL.
        examples: pictures, as bytes or paths; or rows, by input name, as `read_rows` reads them.
        signature: which of the model's; by default `serving_default`.
        batch_size: examples in a request.
        timeout: seconds for an answer.
        retries: how often a request is sent again that was answered with 503.

    Raises:
        FileNotFoundError: a picture is absent.
        ConnectionError: no server, or one that fails; TimeoutError: one that is too slow.
        ValueError: a wrong URL, or a request or an answer that is refused, with what was said.
    """
    target = model_url(url, "tfserving")

    def ask(connection: requests.Session, some: Sequence[Any]) -> list[Answer]:
        rows = [
            {INPUT: {"b64": _base64(one)}} if isinstance(one, bytes) else dict(one) for one in some
        ]
        body: dict[str, Any] = {"instances": rows}
        if signature:
            body["signature_name"] = signature
        found = post(connection, f"{target}:predict", body, timeout).get("predictions")
        if not isinstance(found, list) or len(found) != len(some):
            raise ValueError(f"`url` {target} gave no `predictions` for {len(some)} examples.")
        if isinstance(found[0], dict) and set(found[0]) != {"b64"}:
            return found
        name = _only_output(connection, target, signature or "serving_default", timeout)
        return [{name: value} for value in found]

    return _in_batches(examples, batch_size, retries, ask)


def predict_kserve(
    url: str,
    examples: Sequence[Example],
    signature: str | None = None,
    batch_size: int = BATCH,
    timeout: float = TIMEOUT,
    retries: int = RETRIES,
) -> list[Answer]:
    """As `predict_tfserving`, over the Open Inference Protocol (KServe V2).

    `url` is http://HOST/v2/models/NAME, perhaps with /versions/N. `signature` becomes the
    parameter `signature_name`, which `kerasmtl serve` knows; the protocol has no such thing.
    """
    target = model_url(url, "kserve")

    def ask(connection: requests.Session, some: Sequence[Any]) -> list[Answer]:
        body: dict[str, Any] = {"inputs": _tensors(some)}
        if signature:
            body["parameters"] = {"signature_name": signature}
        outputs = post(connection, f"{target}/infer", body, timeout).get("outputs")
        try:
            columns = {output["name"]: _column(output, len(some)) for output in outputs}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"`url` {target} gave no outputs for {len(some)} examples. Received: {error!r}"
            ) from None
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    return _in_batches(examples, batch_size, retries, ask)


def model_url(
    url: str, protocol: str = "tfserving", name: str | None = None, version: str | None = None
) -> str:
    """The URL of a model, from that of its server or of any of its paths.

    Args:
        url: http://HOST:PORT, or one that names the model: …/v1/models/NAME, …/v2/models/NAME.
        protocol: "tfserving" or "kserve".
        name: of the model, if the URL does not say it.
        version: its number, or, for "tfserving", a label; by default what the URL says.

    Raises:
        ValueError: no URL, of another protocol, no name, or a label where there are none.
    """
    kind = {"tfserving": "v1", "kserve": "v2"}[protocol]
    found = _PATH.fullmatch(url)
    if not found and not re.fullmatch(r"https?://[^/?#]+(/[^?#]*)?", url):
        raise ValueError(
            f"`url` is no URL of a server. Expected http://HOST:PORT. Received: {url!r}"
        )
    if found and found["protocol"] != kind:
        raise ValueError(
            f"`url` is of another protocol than {protocol!r}. Expected …/{kind}/models/NAME. "
            f"Received: {url!r}"
        )
    chosen = quote(name, safe="") if name else (found["name"] if found else None)
    if not chosen:
        raise ValueError(
            f"`url` names no model. Expected {url.rstrip('/')}/{kind}/models/NAME, or name=… "
            "(command line: --name)."
        )
    root = found["root"] if found else url.rstrip("/")
    place = (found["version"] if found else None) or ""
    if version:
        place = (
            f"/versions/{version}" if version.isdecimal() else f"/labels/{quote(version, safe='')}"
        )
    if protocol == "kserve" and "/labels/" in place:
        raise ValueError(
            f"`version` of this protocol is a number. Expected digits. Received: {place[8:]!r}"
        )
    return f"{root}/{kind}/models/{chosen}{place}"


def protocol_of(url: str) -> str:
    """What a model's URL says: "kserve" if it has /v2/models/, else "tfserving"."""
    found = _PATH.fullmatch(url)
    return "kserve" if found and found["protocol"] == "v2" else "tfserving"


def table_inputs(
    url: str, signature: str | None = None, timeout: float = TIMEOUT
) -> dict[str, int | None]:
    """What the model at `url`, of either protocol, takes in a row, for `read_rows`.

    Raises:
        ConnectionError, TimeoutError, ValueError: as `predict_tfserving`, or it takes no rows.
    """
    from kerasmtl.client_rows import inputs_of_kserve, inputs_of_tfserving

    protocol = protocol_of(url)
    if protocol == "kserve" and signature:
        raise ValueError(
            "`signature` with rows of a table needs the protocol of TensorFlow Serving. Expected "
            f"…/v1/models/NAME: KServe's says the inputs of one signature only. Received: {url!r}"
        )
    target = model_url(url, protocol)
    place = target if protocol == "kserve" else f"{target}/metadata"
    with session(RETRIES) as connection, reached(place, timeout):
        found = read(connection.get(place, timeout=timeout), place)
    if protocol == "tfserving":
        return inputs_of_tfserving(found, signature or "serving_default")
    return inputs_of_kserve(found)


def _tensors(some: Sequence[Any]) -> list[dict[str, Any]]:
    if not isinstance(some[0], bytes):
        from kerasmtl.client_rows import tensor

        return [tensor(name, [row[name] for row in some]) for name in some[0]]
    return [
        {
            "name": INPUT,
            "shape": [len(some)],
            "datatype": "BYTES",
            "parameters": {"content_type": "base64"},
            "data": [_base64(data) for data in some],
        }
    ]


def _in_batches(
    examples: Sequence[Example],
    batch_size: int,
    retries: int,
    ask: Callable[[requests.Session, Sequence[Any]], list[Answer]],
) -> list[Answer]:
    if batch_size < 1:
        raise ValueError(f"`batch_size` is too small. Expected at least 1. Received: {batch_size}")
    answers: list[Answer] = []
    with session(retries) as connection:
        for start in range(0, len(examples), batch_size):
            some = examples[start : start + batch_size]
            data = [one if isinstance(one, bytes | Mapping) else _bytes(one) for one in some]
            try:
                answers += ask(connection, data)
            except ValueError as error:
                more = _named(str(error), some, start)
                if not more and len(some) == len(examples):
                    raise
                # The server counts from the start of the request.
                more = more or f"in the request of examples {start + 1} to {start + len(some)}"
                raise ValueError(f"{error} ({more})") from error
    return answers


def _bytes(path: str | os.PathLike[str]) -> bytes:
    if os.path.isdir(path):
        raise IsADirectoryError(f"`files` {path} is a folder. Expected pictures or tables.")
    return Path(path).read_bytes()


def _named(said: str, some: Sequence[Example], start: int) -> str:
    """The files that a server means, which counts from the start of the request."""
    found = []
    for number in dict.fromkeys(int(digits) for digits in re.findall(r"`\[(\d+)\]", said)):
        if number < len(some):
            one = some[number]
            path = f", {os.fspath(one)}" if isinstance(one, str | os.PathLike) else ""
            found.append(f"[{number}] is example {start + number + 1}{path}")
    return "; ".join(found)


def _only_output(connection: requests.Session, target: str, signature: str, timeout: float) -> str:
    """The name of an output that is alone, which the answer leaves out."""
    url = f"{target}/metadata"
    with reached(url, timeout):
        found = read(connection.get(url, timeout=timeout), url)
    try:
        (name,) = found["metadata"]["signature_def"]["signature_def"][signature]["outputs"]
    except (KeyError, TypeError, ValueError):
        return "output"
    return name


def _column(output: Mapping[str, Any], rows: int) -> list[Any]:
    """One value, or list of values, by example."""
    data = output["data"]
    if output["datatype"] == "BYTES":
        if output.get("parameters", {}).get("content_type") == "base64":
            data = [base64.b64decode(text).decode("utf-8", "replace") for text in data]
        data = np.array(data, object)
    values = np.asarray(data).reshape(output["shape"])
    if values.ndim == 0 or len(values) != rows:
        raise ValueError(f"{output['name']} of shape {output['shape']}")
    return values.tolist()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
