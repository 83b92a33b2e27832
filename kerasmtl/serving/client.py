"""Predictions of a server for images or rows: TensorFlow Serving's REST, and KServe's V2.

`model_url` makes the URL of a model, `predict` asks it. For tables, `table_inputs` asks the server
which numbers a row has, and `read_rows` reads them; `kerasmtl client` does all of this. Which of
the two protocols is spoken follows from the URL of the model, …/v1/models/NAME or …/v2/models/NAME.
The module needs no TensorFlow, and works with any server of these protocols.

Sources: https://www.tensorflow.org/tfx/serving/api_rest,
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import numpy as np
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

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

INPUT = "image_bytes"
BATCH, TIMEOUT, RETRIES = 32, 60.0, 5
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
    """Return whether a file is a table, by its suffix.

    Example:
        >>> is_table("rows.CSV"), is_table("photo.jpg")
        (True, False)
    """
    return Path(path).suffix.lower() in FORMATS


def read_rows(path: str | os.PathLike[str], inputs: Inputs) -> tuple[list[str], list[Answer]]:
    """Read the rows of a table for a server; columns that belong to no input are left out.

    An input has the name of its column, with `_` for characters that TensorFlow does not accept.
    An input that takes whole rows takes all columns of the file, in their order.

    Args:
        path: of a CSV, Parquet or NPZ file.
        inputs: as `table_inputs` returns them.

    Returns:
        The name of each row, FILE:LINE, and its numbers by input, NaN = missing.

    Raises:
        FileNotFoundError, ValueError: absent, malformed, without a column, or with text in one.
    """
    source = Path(path)
    # One matrix of all columns is read, and cut into inputs after that: the file is parsed once.
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
        url: of the model, as `model_url` returns it.
        signature: by default `serving_default`, the only one that KServe's protocol describes.
        timeout: seconds to wait for the answer.

    Raises:
        ConnectionError, TimeoutError, ValueError: as `predict`, or the model takes no numbers.
    """
    kserve = protocol_of(url) == "kserve"
    if kserve and signature:
        raise ValueError(
            "`signature` with rows of a table must be used with TensorFlow Serving's protocol, "
            f"…/v1/models/NAME: KServe's describes one signature alone, got {url!r}"
        )
    with _Model(url, timeout) as model:
        try:
            # The two describe a type as FP32 and DT_FLOAT, and both give the batch as the first
            # length, -1.
            if kserve:
                given = {
                    one["name"]: (one["datatype"], one["shape"]) for one in model.ask()["inputs"]
                }
            else:
                given = {
                    name: (of["dtype"], [int(d["size"]) for d in of["tensor_shape"].get("dim", [])])
                    for name, of in model.signature(signature)["inputs"].items()
                }
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"`url` {url} must give metadata of a model, got {error!r}") from None
    for name, (kind, shape) in given.items():
        if kind not in ("FP32", "DT_FLOAT") or len(shape) not in (1, 2):
            raise ValueError(
                f"`files` must be images, since the model takes no rows of numbers: its input "
                f"{name!r} is {kind} {list(shape)}, got a table"
            )
    return {name: None if len(shape) == 1 else shape[1] for name, (_, shape) in given.items()}


def _matched(source: Path, inputs: Inputs) -> dict[str, list[str]]:
    """Return the columns of each input.

    Args:
        source: the table.
        inputs: as `table_inputs` returns them.

    Raises:
        ValueError: an input has no column or several, or the width of a matrix is another.
    """
    kind = file_format(source)
    if kind == ".csv":
        columns = next(iter_lines(source))[1]
    else:
        columns = list(read_npz(source).features if kind == ".npz" else read_frame(source))
    widths = [width for width in inputs.values() if width is not None]
    if widths:
        if len(inputs) > 1 or widths != [len(columns)]:
            raise ValueError(
                f"`files` must have exactly the {widths[0]} columns of the model, in their order, "
                f"which the server does not name, got {len(columns)} columns in {source}"
            )
        return {name: columns for name in inputs}
    found: dict[str, list[str]] = {name: [] for name in inputs}
    for column in columns:
        plain = re.sub(r"\W", "_", column, flags=re.ASCII)
        # As `Table.arguments` names those of an export: ASCII letters, digits and `_`, and
        # "column_" before what does not begin with a letter.
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


def predict(
    url: str,
    examples: Sequence[Example],
    signature: str | None = None,
    batch_size: int = BATCH,
    timeout: float = TIMEOUT,
    retries: int = RETRIES,
) -> list[Answer]:
    """Predict with a server.

    Args:
        url: of the model, as `model_url` returns it; perhaps with /versions/N or /labels/LABEL.
        examples: images, as bytes or paths; or rows, by input name, as `read_rows` returns them.
        signature: by default `serving_default`. For KServe's protocol, which has no signatures, it
            becomes the parameter `signature_name`, which `kerasmtl serve` understands.
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
    check_count("batch_size", batch_size)
    ask = _ask_kserve if protocol_of(url) == "kserve" else _ask_tfserving
    answers: list[Answer] = []
    with _Model(url, timeout, retries) as model:
        for start in range(0, len(examples), batch_size):
            some = examples[start : start + batch_size]
            data = [one if isinstance(one, bytes | Mapping) else _bytes(one) for one in some]
            try:
                answers += ask(model, data, signature)
            except ValueError as error:
                # The server counts from the start of the request.
                numbers = {int(number) for number in re.findall(r"`\[(\d+)\]", str(error))}
                named = [
                    f"; [{n}] is {one}"
                    for n, one in enumerate(some)
                    if n in numbers and isinstance(one, str | os.PathLike)
                ]
                request = f"in the request of examples {start + 1} to {start + len(some)}"
                raise ValueError(f"{error} ({request}{''.join(named)})") from error
    return answers


def _ask_tfserving(model: _Model, some: Sequence[Any], signature: str | None) -> list[Answer]:
    """Send one `:predict` request, and return the outputs by name per example."""
    rows = [{INPUT: {"b64": _base64(one)}} if isinstance(one, bytes) else one for one in some]
    body = {"instances": rows, **({"signature_name": signature} if signature else {})}
    found = model.ask(":predict", body).get("predictions")
    if not isinstance(found, list) or len(found) != len(some):
        raise ValueError(f"`url` {model.url} must give {len(some)} predictions, got {found!r:.200}")
    if isinstance(found[0], dict) and set(found[0]) != {"b64"}:
        return found
    try:  # a single output comes without its name
        (name,) = model.signature(signature)["outputs"]
    except (KeyError, TypeError, ValueError):
        name = "output"
    return [{name: value} for value in found]


def _ask_kserve(model: _Model, some: Sequence[Any], signature: str | None) -> list[Answer]:
    """Send one `infer` request, and return the outputs by name per example."""
    body: dict[str, Any] = {"inputs": _tensors(some)}
    if signature:
        body["parameters"] = {"signature_name": signature}
    outputs = model.ask("/infer", body).get("outputs")
    try:
        columns = {output["name"]: _column(output, len(some)) for output in outputs}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`url` {model.url} must give outputs for {len(some)} examples, got {error!r}"
        ) from None
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _tensors(some: Sequence[Any]) -> list[dict[str, Any]]:
    """Return examples as V2's inputs."""
    if isinstance(some[0], bytes):
        encoded = {"datatype": "BYTES", "parameters": {"content_type": "base64"}}
        data = [_base64(one) for one in some]
        return [{"name": INPUT, "shape": [len(some)], **encoded, "data": data}]
    found = {name: np.array([row[name] for row in some], "float64") for name in some[0]}
    return [
        {"name": n, "shape": list(v.shape), "datatype": "FP32", "data": v.ravel().tolist()}
        for n, v in found.items()
    ]


def _column(output: Mapping[str, Any], rows: int) -> list[Any]:
    """Return one of V2's outputs as one value, or list of values, per example."""
    data = output["data"]
    if output.get("parameters", {}).get("content_type") == "base64":
        data = [base64.b64decode(text).decode("utf-8", "replace") for text in data]
    kind = object if output["datatype"] == "BYTES" else None
    # Data may be flat or nested: as in requests, the shape decides. Text stays text as objects.
    values = np.array(data, kind).reshape(output["shape"])
    if values.ndim == 0 or len(values) != rows:
        raise ValueError(f"{output['name']} of shape {output['shape']}")
    return values.tolist()


def _bytes(path: str | os.PathLike[str]) -> bytes:
    """Read an image; a folder gets a plain message instead of the system's."""
    if os.path.isdir(path):
        raise IsADirectoryError(f"`files` must be images or tables, got the folder {path}")
    return Path(path).read_bytes()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


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

    Example:
        >>> model_url("http://127.0.0.1:8501", name="street", version="3")
        'http://127.0.0.1:8501/v1/models/street/versions/3'
    """
    kind = {"tfserving": "v1", "kserve": "v2"}[protocol]
    found = _PATH.fullmatch(url)
    if not found and not re.fullmatch(r"https?://[^/?#]+(/[^?#]*)?", url):
        raise ValueError(f"`url` must be that of a server, http://HOST:PORT, got {url!r}")
    root, given, chosen, place = (
        found.group("root", "protocol", "name", "version")
        if found
        else (url.rstrip("/"), kind, None, None)
    )
    if given != kind:
        raise ValueError(f"`url` must be …/{kind}/models/NAME for {protocol}, got {url!r}")
    chosen = quote(name, safe="") if name else chosen
    if not chosen:
        raise ValueError(
            f"`name` must be that of the model, or `url` {root}/{kind}/models/NAME, got neither"
        )
    if version:
        place = f"/{'versions' if version.isdecimal() else 'labels'}/{quote(version, safe='')}"
    if protocol == "kserve" and place and "/labels/" in place:
        raise ValueError(f"`version` must be a number for kserve, got {place[8:]!r}")
    return f"{root}/{kind}/models/{chosen}{place or ''}"


def protocol_of(url: str) -> str:
    """Return the protocol of a model's URL: "kserve" if it has /v2/models/, else "tfserving"."""
    found = _PATH.fullmatch(url)
    return "kserve" if found and found["protocol"] == "v2" else "tfserving"


class _Model:
    """A model on a server, and a session that asks again while the server is busy (503).

    Args:
        url: of the model.
        timeout: seconds to wait for an answer.
        retries: how often a request is sent again.
    """

    def __init__(self, url: str, timeout: float, retries: int = RETRIES) -> None:
        self.url, self.timeout = url, timeout
        # Only 503 is tried again: a server that is down should be said at once, and a request that
        # timed out may still be computed, so that to repeat it makes a slow server slower.
        policy = Retry(
            total=retries,
            connect=0,
            read=False,
            status_forcelist=[503],
            allowed_methods=None,  # POST, too: a prediction changes nothing
            backoff_factor=0.2,
            respect_retry_after_header=False,  # a server could ask to wait for hours
            raise_on_status=False,
        )
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=policy))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._session.close()

    def ask(self, path: str = "", body: Mapping[str, Any] | None = None) -> Answer:
        """Send a request, and return the JSON object of the answer.

        Args:
            path: what follows the URL of the model, such as ":predict"; "" for the model's own.
            body: sent with POST; None for GET.

        Raises:
            TimeoutError: no answer in time.
            ConnectionError: the server cannot be reached, or answers a status of 500 or more.
            ValueError: any other status than success, an answer that is not a JSON object, or a URL
                that cannot be asked.
        """
        url = self.url + path
        # NaN as TensorFlow Serving reads it, which `requests` itself would refuse.
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        method = "GET" if data is None else "POST"
        try:
            answer = self._session.request(
                method, url, data=data, headers=headers, timeout=self.timeout
            )
        except requests.Timeout as error:
            raise TimeoutError(
                f"`url` {url} gave no answer within {self.timeout:g} seconds"
            ) from error
        except requests.ConnectionError as error:
            # The cause is wrapped twice, by requests and urllib3: "Connection refused" is its last
            # words.
            reason = getattr(error.args[0] if error.args else error, "reason", error)
            raise ConnectionError(
                f"`url` {url} cannot be reached: {str(reason).rpartition(': ')[2]}. Start a "
                "server, such as `kerasmtl serve`, or correct the URL."
            ) from error
        except requests.exceptions.ChunkedEncodingError as error:
            raise ConnectionError(
                f"`url` {url} broke off in the middle of its answer. Ask again, or look at the "
                "log of the server."
            ) from error
        except requests.RequestException as error:
            raise ValueError(f"`url` must be one that can be asked, got {url}: {error}") from error
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

    def signature(self, name: str | None) -> dict[str, Any]:
        """Return what TensorFlow Serving's metadata say of a signature; KeyError if they do not."""
        found = self.ask("/metadata")["metadata"]["signature_def"]["signature_def"]
        name = name or "serving_default"
        if name not in found:
            raise ValueError(f"`signature` must be one of {sorted(found)}, got {name!r}")
        return found[name]
