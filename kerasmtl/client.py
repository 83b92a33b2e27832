"""Predictions for pictures from a server: TensorFlow Serving's REST, and KServe's V2.

Sources: https://www.tensorflow.org/tfx/serving/api_rest,
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import requests

INPUT = "image_bytes"
BATCH = 32
TIMEOUT = 60.0
RETRIES = 5
_LONGEST_WAIT = 30  # seconds before a retry, whatever the server says
_PATH = re.compile(
    r"(?P<root>https?://[^?#]*?)/(?P<protocol>v1|v2)/models/(?P<name>[^/:?#]+)"
    r"(?P<version>/(?:versions/\d+|labels/[^/:?#]+))?(?::predict|/infer)?/?"
)

Answer = dict[str, Any]  # output name → number, text, or a list of numbers
Picture = bytes | str | os.PathLike[str]


def predict_tfserving(
    url: str,
    pictures: Sequence[Picture],
    signature: str | None = None,
    batch_size: int = BATCH,
    timeout: float = TIMEOUT,
    retries: int = RETRIES,
) -> list[Answer]:
    """By picture, output name → value, over TensorFlow Serving's REST.

    Args:
        url: of the model, as `model_url` makes it: http://HOST:8501/v1/models/NAME, perhaps with
            /versions/N or /labels/LABEL.
        pictures: bytes, or paths.
        signature: which of the model's; by default `serving_default`.
        batch_size: pictures in a request.
        timeout: seconds for an answer.
        retries: how often a request is sent again that was answered with 503.

    Raises:
        FileNotFoundError: a picture is absent.
        ConnectionError: no server, or one that fails; TimeoutError: one that is too slow.
        ValueError: a wrong URL, or a request or an answer that is refused, with what was said.
    """
    target = model_url(url, "tfserving")

    def ask(session: requests.Session, some: Sequence[bytes]) -> list[Answer]:
        body: dict[str, Any] = {"instances": [{INPUT: {"b64": _base64(data)}} for data in some]}
        if signature:
            body["signature_name"] = signature
        found = _post(session, f"{target}:predict", body, timeout).get("predictions")
        if not isinstance(found, list) or len(found) != len(some):
            raise ValueError(f"`url` {target} gave no `predictions` for {len(some)} pictures.")
        if isinstance(found[0], dict) and set(found[0]) != {"b64"}:
            return found
        name = _only_output(session, target, signature or "serving_default", timeout)
        return [{name: value} for value in found]

    return _in_batches(pictures, batch_size, retries, ask)


def predict_kserve(
    url: str,
    pictures: Sequence[Picture],
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

    def ask(session: requests.Session, some: Sequence[bytes]) -> list[Answer]:
        tensor = {
            "name": INPUT,
            "shape": [len(some)],
            "datatype": "BYTES",
            "parameters": {"content_type": "base64"},
            "data": [_base64(data) for data in some],
        }
        body: dict[str, Any] = {"inputs": [tensor]}
        if signature:
            body["parameters"] = {"signature_name": signature}
        outputs = _post(session, f"{target}/infer", body, timeout).get("outputs")
        try:
            columns = {output["name"]: _column(output, len(some)) for output in outputs}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"`url` {target} gave no outputs for {len(some)} pictures. Received: {error!r}"
            ) from None
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    return _in_batches(pictures, batch_size, retries, ask)


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
    chosen = name or (found["name"] if found else None)
    if not chosen:
        raise ValueError(
            f"`url` names no model. Expected {url.rstrip('/')}/{kind}/models/NAME, or name=… "
            "(command line: --name)."
        )
    root = found["root"] if found else url.rstrip("/")
    place = (found["version"] if found else None) or ""
    if version:
        place = f"/versions/{version}" if version.isdecimal() else f"/labels/{version}"
    if protocol == "kserve" and "/labels/" in place:
        raise ValueError(
            f"`version` of this protocol is a number. Expected digits. Received: {place[8:]!r}"
        )
    return f"{root}/{kind}/models/{chosen}{place}"


def protocol_of(url: str) -> str:
    """What a model's URL says: "kserve" if it has /v2/models/, else "tfserving"."""
    found = _PATH.fullmatch(url)
    return "kserve" if found and found["protocol"] == "v2" else "tfserving"


def _in_batches(
    pictures: Sequence[Picture],
    batch_size: int,
    retries: int,
    ask: Callable[[requests.Session, Sequence[bytes]], list[Answer]],
) -> list[Answer]:
    if batch_size < 1:
        raise ValueError(f"`batch_size` is too small. Expected at least 1. Received: {batch_size}")
    answers: list[Answer] = []
    with _session(retries) as session:
        for start in range(0, len(pictures), batch_size):
            some = pictures[start : start + batch_size]
            data = [one if isinstance(one, bytes) else Path(one).read_bytes() for one in some]
            try:
                answers += ask(session, data)
            except ValueError as error:
                if len(some) == len(pictures):
                    raise
                # The server counts from the start of the request.
                raise ValueError(
                    f"{error} (in the request of pictures {start + 1} to {start + len(some)})"
                ) from error
    return answers


def _session(retries: int) -> requests.Session:
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
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=policy))
    return session


def _post(
    session: requests.Session, url: str, body: Mapping[str, Any], timeout: float
) -> dict[str, Any]:
    with _reached(url, timeout):
        return _read(session.post(url, json=body, timeout=timeout), url)


def _read(answer: requests.Response, url: str) -> dict[str, Any]:
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
def _reached(url: str, timeout: float) -> Iterator[None]:
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


def _only_output(session: requests.Session, target: str, signature: str, timeout: float) -> str:
    """The name of an output that is alone, which the answer leaves out."""
    url = f"{target}/metadata"
    with _reached(url, timeout):
        found = _read(session.get(url, timeout=timeout), url)
    try:
        (name,) = found["metadata"]["signature_def"]["signature_def"][signature]["outputs"]
    except (KeyError, TypeError, ValueError):
        return "output"
    return name


def _column(output: Mapping[str, Any], rows: int) -> list[Any]:
    """One value, or list of values, by picture."""
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
