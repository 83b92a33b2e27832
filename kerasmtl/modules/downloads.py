"""Downloads: a file by HTTP, whole or not at all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from kerasmtl._version import __version__
from kerasmtl.modules.archives import max_bytes

CONNECT_TIMEOUT = 10  # seconds
READ_TIMEOUT = 30  # seconds without a byte
OFFLINE = (
    "Offline: download the module's .tar.gz on a connected machine, and pass the file or its "
    "unpacked folder as the handle."
)
_CHUNK = 2**20
_HTML = (b"<!doctype html", b"<html")
_REASONS = {
    401: "the server wants credentials, or does not accept those that were sent. For Kaggle, set "
    "KAGGLE_USERNAME and KAGGLE_KEY, or KAGGLE_API_TOKEN",
    403: "the publisher or the host refuses. Accept the conditions on the module's page, set "
    "credentials, or download it with a browser and pass the file as the handle",
    404: "there is no such module. Compare the handle with the module's page, version included",
    429: "too many requests. Wait, and call again",
}


def download(url: str, file: Path, handle: str, auth: Any = None) -> None:
    """Download a URL into a file that does not exist yet.

    Redirects are followed; credentials stay with the host they are for. On a terminal a progress
    bar is shown.

    Args:
        url: http or https.
        file: gets the bytes as they are sent; may be left half-written if this raises.
        handle: what the user named, for messages.
        auth: credentials for the host of `url`, as requests takes them.

    Raises:
        ValueError: the server cannot be reached, refuses, answers with a web page, or sends more
            than `max_bytes()` or less than it announced.
    """
    headers = {"Accept-Encoding": "identity", "User-Agent": f"kerasmtl/{__version__}"}
    timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)
    try:
        with requests.get(
            url, stream=True, timeout=timeout, headers=headers, auth=auth
        ) as response:
            _check_answer(response, handle)
            _write(response, file, handle)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise unreachable(handle, f"{_reason(error)}, from {_place(url)}") from error
    with file.open("rb") as start:
        if start.read(512).lstrip().lower().startswith(_HTML):
            raise unreachable(handle, _page(url))


def unreachable(handle: str, reason: str) -> ValueError:
    """The error for a handle that cannot be fetched."""
    return ValueError(
        f"`handle` {handle!r} cannot be reached. Expected a .tar.gz archive of a SavedModel behind "
        f"it. Received: {reason}. {OFFLINE}"
    )


def _place(url: str) -> str:
    """A URL without user, password and query: signed addresses are secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _page(url: str) -> str:
    return (
        f"a web page, from {_place(url)}: the address of a page, or of a login, and not of an "
        "archive. Copy the address of the download instead"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, requests.TooManyRedirects):
        return "redirects without an end"
    if isinstance(error, requests.exceptions.SSLError):
        return "a certificate that does not hold (for one of your own, set REQUESTS_CA_BUNDLE)"
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return f"no answer within {READ_TIMEOUT} seconds"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "a connection that broke off before the end"
    return f"an error of the connection, {type(error).__name__}"


def _check_answer(response: requests.Response, handle: str) -> None:
    status = response.status_code
    if status >= 400:
        trouble = "the server is in trouble. Try again later" if status >= 500 else response.reason
        reason = _REASONS.get(status, trouble)
        raise unreachable(handle, f"HTTP {status} from {_place(response.url)}: {reason}")
    hops = [urlsplit(answer.url).scheme for answer in (*response.history, response)]
    if hops[0] == "https" and "http" in hops:
        raise unreachable(
            handle,
            f"a redirect from https to http, {_place(response.url)}, where anyone on the way can "
            "change the module",
        )
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise unreachable(handle, _page(response.url))


def _write(response: requests.Response, file: Path, handle: str) -> None:
    """The raw bytes: a server may announce an archive's own compression as that of the transfer."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    announced = response.headers.get("Content-Length", "")
    total = int(announced) if announced.isdecimal() else None
    limit = max_bytes()
    _check_size(total or 0, limit, handle)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    received = 0
    console = Console(stderr=True)
    quiet = not sys.stderr.isatty()
    with file.open("xb") as out, Progress(*columns, console=console, disable=quiet) as progress:
        bar = progress.add_task(escape(handle), total=total)
        for chunk in response.raw.stream(_CHUNK, decode_content=False):
            received += len(chunk)
            _check_size(received, limit, handle)
            out.write(chunk)
            progress.advance(bar, len(chunk))
    if total is not None and received != total:
        raise unreachable(handle, f"{received} of the {total} bytes that the server announced")


def _check_size(size: int, limit: int, handle: str) -> None:
    if size > limit:
        raise ValueError(
            f"`handle` {handle!r} is too big. Expected at most {limit} bytes. Received: {size} or "
            "more. If you trust it, set the environment variable KERASMTL_MAX_BYTES."
        )
