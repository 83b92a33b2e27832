"""Predictions of a server for images or rows: TensorFlow Serving's REST, and KServe's V2.

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

from kerasmtl.data.readers import (
    FORMATS,
    file_format,
    iter_lines,
    read_features,
    read_frame,
    read_npz,
)
from kerasmtl.utils.text import listed
from kerasmtl.utils.validation import check_count

if TYPE_CHECKING:
    import requests

INPUT = "image_bytes"
BATCH, TIMEOUT, RETRIES = 32, 60.0, 5
_LONGEST_WAIT = 30  # seconds before a retry, whatever the server says
_PATH = re.compile(
    r"(?P<root>https?://[^?#]*?)/(?P<protocol>v1|v2)/models/(?P<name>[^/:?#]+)"
    r"(?P<version>/(?:versions/\d+|labels/[^/:?#]+))?(?::predict|/infer)?/?"
)

Inputs = dict[str, int | None]  # input name → numbers per row, None if it takes one number
Answer = dict[str, Any]  # output name → number, text, or a list of numbers
# An image, its bytes or path; or a row of a table: input name → number or numbers, NaN = missing.
Example = bytes | str | os.PathLike[str] | Mapping[str, Any]

# ------------------------------------------------------------------ rows of tables


def is_table(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a table, by its suffix."""
    return Path(path).suffix.lower() in FORMATS


def read_rows(path: str | os.PathLike[str], inputs: Inputs) -> tuple[list[str], list[Answer]]:
    """Read the rows of a table for a server; columns that belong to no input are left out.

    An input has the name of its column, with `_` for characters that TensorFlow does not accept.
    An input that takes whole rows takes all columns of the file, in their order.

    Returns:
        Each row's name, FILE:LINE, and its numbers by input.

    Raises:
        FileNotFoundError, ValueError: absent, malformed, without a column, or with text in one.
    """
    source = Path(path)
    chosen = _matched(source, inputs)
    values, lines = read_features(source, [name for names in chosen.values() for name in names])
    ends = np.cumsum([len(names) for names in chosen.values()])[:-1]
    parts = dict(zip(chosen, np.split(values, ends, axis=1), strict=True))
    plain = {n: (p[:, 0] if inputs[n] is None else p).tolist() for n, p in parts.items()}
    rows = [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
    return [f"{source}:{line}" for line in lines], rows


def table_inputs(url: str, signature: str | None = None, timeout: float = TIMEOUT) -> Inputs:
    """Ask which numbers a model takes per row, for `read_rows`.

    Args:
        url: of the model, for either protocol.
        signature: by default `serving_default`, the only one that KServe's protocol describes.
        timeout: seconds to wait for the answer.

    Raises:
        ConnectionError, TimeoutError, ValueError: as `predict_tfserving`, or it takes no numbers.
    """
    kserve = protocol_of(url) == "kserve"
    if kserve and signature:
        raise ValueError(
            "`signature` with rows of a table must be used with TensorFlow Serving's protocol, "
            f"…/v1/models/NAME: KServe's describes one signature alone, got {url!r}"
        )
    target = model_url(url, protocol_of(url))
    with _session(RETRIES) as connection:
        found = _get(connection, target if kserve else f"{target}/metadata", timeout)
    expected = "FP32" if kserve else "DT_FLOAT"
    try:
        if kserve:
            given = {one["name"]: (one["datatype"], one["shape"]) for one in found["inputs"]}
        else:
            signatures = found["metadata"]["signature_def"]["signature_def"]
            name = signature or "serving_default"
            if name not in signatures:
                raise ValueError(f"`signature` must be one of {sorted(signatures)}, got {name!r}")
            given = {
                name: (of["dtype"], [int(dim["size"]) for dim in of["tensor_shape"].get("dim", [])])
                for name, of in signatures[name]["inputs"].items()
            }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"`url` must give metadata of a model, got {error!r} from {url}") from None
    for name, (kind, shape) in given.items():
        if kind != expected or len(shape) not in (1, 2):
            raise ValueError(
                f"`files` must be images, since the model takes no rows of numbers: its input "
                f"{name!r} is {kind} {list(shape)}, got a table"
            )
    return {name: None if len(shape) == 1 else shape[1] for name, (_, shape) in given.items()}


def _columns(source: Path) -> list[str]:
    kind = file_format(source)
    if kind == ".csv":
        return next(iter_lines(source))[1]
    return list(read_npz(source).columns) if kind == ".npz" else list(read_frame(source).columns)


def _matched(source: Path, inputs: Inputs) -> dict[str, list[str]]:
    """Return the columns of each input."""
    columns = _columns(source)
    for name, width in inputs.items():
        if width is not None:
            if len(inputs) > 1 or len(columns) != width:
                raise ValueError(
                    f"`files` must have exactly the {width} columns of the model, in their order, "
                    f"which the server does not name, got {len(columns)} columns in {source}"
                )
            return {name: columns}
    found: dict[str, list[str]] = {name: [] for name in inputs}
    for column in columns:
        plain = re.sub(r"\W", "_", column, flags=re.ASCII)
        name = next((n for n in (column, plain, f"column_{plain}") if n in inputs), None)
        if name is not None:
            found[name].append(column)
    for names in found.values():
        if len(names) > 1:
            raise ValueError(f"`files` must have one column per input, got {names} in {source}")
    if absent := sorted(name for name, names in found.items() if not names):
        raise ValueError(
            f"`files` must have the columns {listed(absent)} of the model, got {listed(columns)} "
            f"in {source}"
        )
    return found


# ------------------------------------------------------------------ predictions


def predict_tfserving(
    url: str,
    examples: Sequence[Example],
    signature: str | None = None,
    batch_size: int = BATCH,
    timeout: float = TIMEOUT,
    retries: int = RETRIES,
) -> list[Answer]:
    """Predict with TensorFlow Serving's REST.

    Args:
        url: of the model, as `model_url` returns it: http://HOST:8501/v1/models/NAME, perhaps with
            /versions/N or /labels/LABEL.
        examples: images, as bytes or paths; or rows, by input name, as `read_rows` returns them.
        signature: by default `serving_default`.
        batch_size: examples per request.
        timeout: seconds to wait for an answer.
        retries: how often a request that was answered with 503 is sent again.

    Returns:
        By example, output name → value.

    Raises:
        FileNotFoundError: an image is absent.
        ConnectionError: no server, or one that fails; TimeoutError: one that is too slow.
        ValueError: a wrong URL, or a request or an answer that is refused; says what was answered.
    """
    target = model_url(url, "tfserving")

    def ask(connection: requests.Session, some: Sequence[Any]) -> list[Answer]:
        rows = [{INPUT: {"b64": _base64(x)}} if isinstance(x, bytes) else dict(x) for x in some]
        body = {"instances": rows, **({"signature_name": signature} if signature else {})}
        found = _post(connection, f"{target}:predict", body, timeout).get("predictions")
        if not isinstance(found, list) or len(found) != len(some):
            raise ValueError(
                f"`url` {target} must give {len(some)} predictions, got {found!r:.200}"
            )
        if isinstance(found[0], dict) and set(found[0]) != {"b64"}:
            return found
        # A single output comes without its name.
        said = _get(connection, f"{target}/metadata", timeout)
        try:
            signatures = said["metadata"]["signature_def"]["signature_def"]
            (name,) = signatures[signature or "serving_default"]["outputs"]
        except (KeyError, TypeError, ValueError):
            name = "output"
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
    """Predict with the Open Inference Protocol (KServe V2); see `predict_tfserving`.

    `url` is http://HOST/v2/models/NAME, perhaps with /versions/N. `signature` becomes the
    parameter `signature_name`, which `kerasmtl serve` understands; the protocol has none.
    """
    target = model_url(url, "kserve")

    def ask(connection: requests.Session, some: Sequence[Any]) -> list[Answer]:
        body: dict[str, Any] = {"inputs": _tensors(some)}
        if signature:
            body["parameters"] = {"signature_name": signature}
        outputs = _post(connection, f"{target}/infer", body, timeout).get("outputs")
        try:
            columns = {output["name"]: _column(output, len(some)) for output in outputs}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"`url` {target} must give outputs for {len(some)} examples, got {error!r}"
            ) from None
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    return _in_batches(examples, batch_size, retries, ask)


def _in_batches(
    examples: Sequence[Example],
    batch_size: int,
    retries: int,
    ask: Callable[[requests.Session, Sequence[Any]], list[Answer]],
) -> list[Answer]:
    check_count("batch_size", batch_size)
    answers: list[Answer] = []
    with _session(retries) as connection:
        for start in range(0, len(examples), batch_size):
            some = examples[start : start + batch_size]
            data = [one if isinstance(one, bytes | Mapping) else _bytes(one) for one in some]
            try:
                answers += ask(connection, data)
            except ValueError as error:
                # The server counts from the start of the request.
                named = [
                    f"[{number}] is example {start + number + 1}"
                    + (f", {some[number]}" if isinstance(some[number], str | os.PathLike) else "")
                    for number in dict.fromkeys(map(int, re.findall(r"`\[(\d+)\]", str(error))))
                    if number < len(some)
                ]
                request = f"in the request of examples {start + 1} to {start + len(some)}"
                raise ValueError(f"{error} ({'; '.join(named) or request})") from error
    return answers


def _bytes(path: str | os.PathLike[str]) -> bytes:
    if os.path.isdir(path):
        raise IsADirectoryError(f"`files` must be images or tables, got the folder {path}")
    return Path(path).read_bytes()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _tensors(some: Sequence[Any]) -> list[dict[str, Any]]:
    """Return examples as V2's inputs."""
    if not isinstance(some[0], bytes):
        found = {name: np.array([row[name] for row in some], "float64") for name in some[0]}
        return [
            {"name": n, "shape": list(v.shape), "datatype": "FP32", "data": v.ravel().tolist()}
            for n, v in found.items()
        ]
    data = [_base64(one) for one in some]
    encoded = {"datatype": "BYTES", "parameters": {"content_type": "base64"}}
    return [{"name": INPUT, "shape": [len(some)], **encoded, "data": data}]


def _column(output: Mapping[str, Any], rows: int) -> list[Any]:
    """Return one of V2's outputs as one value, or list of values, per example."""
    data = output["data"]
    if output["datatype"] == "BYTES":
        if output.get("parameters", {}).get("content_type") == "base64":
            data = [base64.b64decode(text).decode("utf-8", "replace") for text in data]
        data = np.array(data, object)
    values = np.asarray(data).reshape(output["shape"])
    if values.ndim == 0 or len(values) != rows:
        raise ValueError(f"{output['name']} of shape {output['shape']}")
    return values.tolist()


# ------------------------------------------------------------------ URLs and requests


def model_url(
    url: str, protocol: str = "tfserving", name: str | None = None, version: str | None = None
) -> str:
    """Return the URL of a model, from that of its server or of any of its paths.

    Args:
        url: http://HOST:PORT, or one that names the model: …/v1/models/NAME, …/v2/models/NAME.
        protocol: "tfserving" or "kserve".
        name: of the model, if the URL does not say it.
        version: its number, or, for "tfserving", a label; by default what the URL says.

    Raises:
        ValueError: not a URL, of another protocol, without a name, or a label for "kserve".
    """
    kind = {"tfserving": "v1", "kserve": "v2"}[protocol]
    found = _PATH.fullmatch(url)
    if not found and not re.fullmatch(r"https?://[^/?#]+(/[^?#]*)?", url):
        raise ValueError(f"`url` must be that of a server, http://HOST:PORT, got {url!r}")
    if found and found["protocol"] != kind:
        raise ValueError(f"`url` must be …/{kind}/models/NAME for {protocol}, got {url!r}")
    chosen = quote(name, safe="") if name else (found["name"] if found else None)
    if not chosen:
        raise ValueError(
            f"`name` must be that of the model, or `url` {url.rstrip('/')}/{kind}/models/NAME, got "
            "neither"
        )
    root = found["root"] if found else url.rstrip("/")
    place = (found["version"] if found else None) or ""
    if version:
        place = f"/{'versions' if version.isdecimal() else 'labels'}/{quote(version, safe='')}"
    if protocol == "kserve" and "/labels/" in place:
        raise ValueError(f"`version` must be a number for kserve, got {place[8:]!r}")
    return f"{root}/{kind}/models/{chosen}{place}"


def protocol_of(url: str) -> str:
    """Return the protocol of a model's URL: "kserve" if it has /v2/models/, else "tfserving"."""
    found = _PATH.fullmatch(url)
    return "kserve" if found and found["protocol"] == "v2" else "tfserving"


def _session(retries: int) -> requests.Session:
    """Return a connection that asks again, so many times, while the server is busy (503)."""
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
        allowed_methods=None,  # POST, too: a prediction changes nothing
        backoff_factor=0.2,
        raise_on_status=False,
    )
    made = requests.Session()
    for scheme in ("http://", "https://"):
        made.mount(scheme, HTTPAdapter(max_retries=policy))
    return made


def _post(
    connection: requests.Session, url: str, body: Mapping[str, Any], timeout: float
) -> Answer:
    # NaN as TensorFlow Serving reads it, which `requests` itself would refuse.
    sent = {"data": json.dumps(body).encode(), "headers": {"Content-Type": "application/json"}}
    with _reached(url, timeout):
        return _read(connection.post(url, timeout=timeout, **sent), url)


def _get(connection: requests.Session, url: str, timeout: float) -> Answer:
    with _reached(url, timeout):
        return _read(connection.get(url, timeout=timeout), url)


def _read(answer: requests.Response, url: str) -> Answer:
    """Return the JSON object of an answer; raises what it refuses (ValueError) or fails at."""
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not answer.ok:
        said = found.get("error") if isinstance(found, dict) else None
        message = f"`url` {url} answered {answer.status_code}: {said or answer.text[:500]}"
        raise ValueError(message) if answer.status_code < 500 else ConnectionError(message)
    if not isinstance(found, dict):
        raise ValueError(f"`url` {url} must answer a JSON object, got {answer.text[:200]!r}")
    return found


@contextmanager
def _reached(url: str, timeout: float) -> Iterator[None]:
    """Say in a sentence what can go wrong on the way."""
    import requests

    try:
        yield
    except requests.Timeout as error:
        raise TimeoutError(f"`url` {url} gave no answer within {timeout:g} seconds") from error
    except requests.ConnectionError as error:
        reason = getattr(error.args[0] if error.args else error, "reason", error)
        raise ConnectionError(
            f"`url` {url} cannot be reached: {str(reason).rpartition(': ')[2]}. Start a server, "
            "such as `kerasmtl serve`, or correct the URL."
        ) from error
    except requests.RequestException as error:
        raise ValueError(f"`url` must be one that can be asked, got {url}: {error}") from error
