"""Downloads: a file by HTTP, whole or not at all."""

from __future__ import annotations

import gzip
import os
import platform
import sys
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import requests
import urllib3

from kerasmtl._version import __version__

SUFFIXES = (".tar.gz", ".tgz", ".tar")
MAX_BYTES = 20 * 10**9
MAX_MEMBERS = 100_000
# What names, links and paddings may take, for each member and at most.
_HEADER = 2**20
_MEAN_HEADER = 4096
_CHUNK = 2**20


class _Refused(Exception):
    """An archive that must not be unpacked; says why."""


def max_bytes() -> int:
    """The most bytes that a module may have: `KERASMTL_MAX_BYTES`, or 20 GB.

    Raises:
        ValueError: `KERASMTL_MAX_BYTES` is no positive number.
    """
    text = os.environ.get("KERASMTL_MAX_BYTES") or str(MAX_BYTES)
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(
            "`KERASMTL_MAX_BYTES` is no size. Expected a positive number of bytes, such as "
            f"{MAX_BYTES}. Received: {text!r}"
        )
    return int(text)


def unpack(
    archive: Path,
    folder: Path,
    handle: str,
    limit: int | None = None,
    members: int = MAX_MEMBERS,
) -> None:
    """Unpack an archive into an empty folder.

    Args:
        archive: tar or tar.gz, whatever its name.
        folder: gets the files; may be left half-filled if this raises.
        handle: what the user named, for messages.
        limit: the most bytes to unpack; by default `max_bytes()`.
        members: the most files and folders to unpack.

    Raises:
        ValueError: the archive is truncated or tampered with, too big, or leaves its folder.
    """
    limit = max_bytes() if limit is None else limit
    if not hasattr(tarfile, "data_filter"):
        raise ValueError(
            f"`handle` {handle!r} cannot be unpacked safely by this Python. Expected 3.11.4 or "
            f"newer, which refuses what leads out of the folder. Received: "
            f"{platform.python_version()}."
        )
    try:
        with archive.open("rb") as raw:
            gzipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if gzipped else raw as stream:
                _unpack(_Bounded(stream, limit + members * _MEAN_HEADER), folder, limit, members)
    except (_Refused, tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        raise ValueError(
            f"`handle` {handle!r} cannot be unpacked. Expected a whole .tar or .tar.gz archive "
            f"that stays inside its folder. Received: {str(error).rstrip('.')}. Fetch the archive "
            "again, or pass the folder of a module that you trust."
        ) from error


class _Bounded:
    """A stream that counts what it gives, in all and since the last step, and refuses too much.

    What a member declares is not all that it can cost: names have no bound of their own, and
    neither has what follows the last member.
    """

    def __init__(self, stream: BinaryIO, total: int) -> None:
        self._stream = stream
        self._total = total
        self._step = total
        self.tail = b""

    def allow(self, step: int | None = None) -> None:
        """Until the next call, give at most this many bytes; None: what is left in all."""
        self._step = self._total if step is None else step

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._total -= len(data)
        self._step -= len(data)
        if min(self._total, self._step) < 0:
            raise _Refused("more bytes than its members declare, or than are allowed in all")
        self.tail = (self.tail + data)[-512:]
        return data


def _unpack(stream: _Bounded, folder: Path, limit: int, members: int) -> None:
    stream.allow(_HEADER)
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        size = 0
        for count, member in enumerate(tar, start=1):
            size += member.size
            _check_amount(count, members, size, limit)
            _check_place(member, folder)
            stream.allow(member.size + _HEADER)  # with the header of the next
            tar.extract(member, folder, filter="data")
    # The checksum of a gzip file is behind the end of the tar in it.
    stream.allow()
    while stream.read(_CHUNK):
        pass
    if stream.tail.strip(b"\0") or len(stream.tail) < 512:
        raise _Refused("an archive without its end, as a broken download leaves it")


def _check_amount(count: int, members: int, size: int, limit: int) -> None:
    if count > members:
        raise _Refused(f"more than {members} files and folders")
    if size > limit:
        raise _Refused(
            f"at least {size} bytes, and {limit} are allowed. If you trust it, set the environment "
            f"variable KERASMTL_MAX_BYTES={size} or more"
        )


def _check_place(member: tarfile.TarInfo, folder: Path) -> None:
    """What the "data" filter leaves open; devices and links that lead out are refused by it."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise _Refused(f"a file outside of its folder, {member.name!r}")
    # Releases of Python before 2025-06 can be led out of the folder through chains of links.
    steps = [folder / path, *(folder / parent for parent in path.parents)]
    if any(step.is_symlink() for step in steps if step != folder):
        raise _Refused(f"a file behind a link, {member.name!r}")


CONNECT_TIMEOUT = 10  # seconds
READ_TIMEOUT = 30  # seconds without a byte
OFFLINE = (
    "Offline: download the module's .tar.gz on a connected machine, and pass the file or its "
    "unpacked folder as the handle."
)
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
