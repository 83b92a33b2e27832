"""Predictions for pictures or rows from a server: TensorFlow Serving's REST, and KServe's V2.

Sources: https://www.tensorflow.org/tfx/serving/api_rest,
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

if TYPE_CHECKING:
    import requests

Inputs = Mapping[str, int | None]  # input name → numbers in a row, or None if it takes one number
Row = dict[str, Any]  # input name → number, or list of numbers; NaN = missing
ENDINGS = (".csv", ".parquet", ".npz")
_SHOWN = 20


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a file's ending is that of a table."""
    return Path(path).suffix.lower() in ENDINGS


def read_rows(path: str | os.PathLike[str], inputs: Inputs) -> tuple[list[str], list[Row]]:
    """Each row's name, FILE:LINE, and its numbers by input; columns of no input are left out.

    An input is called as its column, with `_` for what a name in TensorFlow cannot have. One that
    takes all numbers of a row as a matrix takes the file's columns as they stand.

    Raises:
        FileNotFoundError, ValueError: absent, malformed, without a column, or with text in one.
    """
    from kerasmtl.data.readers import read_features

    source = Path(path)
    columns = _columns(source)
    chosen = _matched(source, columns, inputs)
    values, numbers = read_features(source, [name for names in chosen.values() for name in names])
    rows: list[Row] = []
    for row in values.tolist():
        at, found = 0, {}
        for name, names in chosen.items():
            part = row[at : at + len(names)]
            found[name] = part[0] if inputs[name] is None else part
            at += len(names)
        rows.append(found)
    return [f"{source}:{number}" for number in numbers], rows


def inputs_of_tfserving(metadata: Any, signature: str) -> dict[str, int | None]:
    """What a signature takes, as `…/metadata` says it.

    Raises:
        ValueError: no such signature, or one that takes other than numbers.
    """
    try:
        signatures = metadata["metadata"]["signature_def"]["signature_def"]
        if signature not in signatures:
            raise ValueError(
                f"`signature` is unknown to the server. Expected one of {sorted(signatures)}. "
                f"Received: {signature!r}"
            )
        found = {
            name: (
                tensor["dtype"],
                [int(dim["size"]) for dim in tensor["tensor_shape"].get("dim", [])],
            )
            for name, tensor in signatures[signature]["inputs"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"`url` gave no metadata of a model. Received: {error!r}") from None
    return {name: _width(name, kind, shape, "DT_FLOAT") for name, (kind, shape) in found.items()}


def inputs_of_kserve(metadata: Any) -> dict[str, int | None]:
    """What the default signature takes, as `GET …/v2/models/NAME` says it.

    Raises:
        ValueError: it takes other than numbers.
    """
    try:
        found = {one["name"]: (one["datatype"], one["shape"]) for one in metadata["inputs"]}
        return {name: _width(name, kind, shape, "FP32") for name, (kind, shape) in found.items()}
    except (KeyError, TypeError) as error:
        raise ValueError(f"`url` gave no metadata of a model. Received: {error!r}") from None


def _width(name: str, kind: str, shape: Sequence[int], expected: str) -> int | None:
    if kind != expected or len(shape) not in (1, 2):
        raise ValueError(
            f"`signature` takes no rows of a table. Expected inputs of {expected}. Received: "
            f"{name!r} of {kind} {list(shape)}"
        )
    return None if len(shape) == 1 else shape[1]


def _columns(source: Path) -> list[str]:
    from kerasmtl.data.readers import file_format, iter_lines, read_frame, read_npz

    kind = file_format(source)
    if kind == ".csv":
        return next(iter_lines(source))[1]
    return list(read_npz(source).columns) if kind == ".npz" else list(read_frame(source).columns)


def _matched(source: Path, columns: Sequence[str], inputs: Inputs) -> dict[str, list[str]]:
    widths = [width for width in inputs.values() if width is not None]
    if widths:
        if len(inputs) > 1 or len(columns) != widths[0]:
            raise ValueError(
                f"`files` {source} does not fit. The server takes {widths[0]} numbers a row, and "
                f"does not say of which columns. Expected a file of these alone, in their order. "
                f"Received: {len(columns)} columns"
            )
        return {next(iter(inputs)): list(columns)}
    by_name: dict[str, list[str]] = {}
    for column in columns:
        plain = re.sub(r"\W", "_", column, flags=re.ASCII)
        name = column if column in inputs else plain if plain in inputs else f"column_{plain}"
        by_name.setdefault(name, []).append(column)
    lacking = sorted(set(inputs) - set(by_name))
    if lacking:
        raise ValueError(
            f"`files` {source} lacks columns that the server takes. Expected {lacking[:_SHOWN]}"
            f"{' and more' * (len(lacking) > _SHOWN)}. Received: {list(columns)[:_SHOWN]}"
        )
    twice = {name: by_name[name] for name in inputs if len(by_name[name]) > 1}
    if twice:
        raise ValueError(
            f"`files` {source} has several columns for one input. Expected one. Received: {twice}"
        )
    return {name: by_name[name] for name in inputs}


def tensor(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """Numbers of an input, one or a list by row, for KServe's V2."""
    data = np.asarray(values, "float64")
    return {
        "name": name,
        "shape": list(data.shape),
        "datatype": "FP32",
        "data": data.ravel().tolist(),
    }


_LONGEST_WAIT = 30  # seconds before a retry, whatever the server says


def session(retries: int) -> requests.Session:
    """A connection that asks again, at most so often, if the server is busy (503)."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    class Patient(Retry):
        def get_retry_after(self, response: Any) -> float | None:
            asked = super().get_retry_after(response)
            return None if asked is None else min(asked, _LONGEST_WAIT)

    policy = Patient(
        total=retries,
        connect=0,
        read=False,
        status_forcelist=[503],
        allowed_methods=None,  # a prediction changes nothing: POST, too
        backoff_factor=0.2,
        raise_on_status=False,
    )
    made = requests.Session()
    for scheme in ("http://", "https://"):
        made.mount(scheme, HTTPAdapter(max_retries=policy))
    return made


def post(
    connection: requests.Session, url: str, body: Mapping[str, Any], timeout: float
) -> dict[str, Any]:
    """The answer to a body, as `read`; numbers may be NaN, as TensorFlow Serving takes them."""
    with reached(url, timeout):
        # NaN as TensorFlow Serving reads it, which `requests` would refuse.
        data = json.dumps(body).encode()
        head = {"Content-Type": "application/json"}
        return read(connection.post(url, data=data, headers=head, timeout=timeout), url)


def read(answer: requests.Response, url: str) -> dict[str, Any]:
    """An answer's JSON object.

    Raises:
        ValueError: the request is refused, or the answer is no object; ConnectionError: the server
            fails.
    """
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not answer.ok:
        said = found.get("error") if isinstance(found, dict) else None
        message = f"`url` {url} answered {answer.status_code}: {said or answer.text[:500]}"
        raise ValueError(message) if answer.status_code < 500 else ConnectionError(message)
    if not isinstance(found, dict):
        raise ValueError(f"`url` {url} answered no JSON object. Received: {answer.text[:200]!r}")
    return found


@contextmanager
def reached(url: str, timeout: float) -> Iterator[None]:
    """What can go wrong on the way, in a sentence."""
    import requests

    try:
        yield
    except requests.Timeout as error:
        raise TimeoutError(f"`url` {url} gave no answer within {timeout:g} seconds.") from error
    except requests.ConnectionError as error:
        reason = getattr(error.args[0] if error.args else error, "reason", error)
        raise ConnectionError(
            f"`url` {url} cannot be reached: {str(reason).rpartition(': ')[2]}. Expected a server "
            "there, such as that of `kerasmtl serve`."
        ) from error
    except requests.RequestException as error:
        raise ValueError(f"`url` {url} cannot be asked. Received: {error}") from error


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
