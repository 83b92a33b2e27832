"""HTTP as a client of a model's server needs it: patient, and with errors in sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import requests

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
