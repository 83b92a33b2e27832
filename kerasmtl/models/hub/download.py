"""Downloads by HTTP and from buckets, and archives, each with one bound on its size.

Servers and archives are not trusted: sizes are checked while bytes arrive, archives may not leave
their folder, and messages do not repeat queries, which may have signatures or tokens in them.
"""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from pathlib import Path
from urllib.parse import urlsplit

import requests
import urllib3
from rich.markup import escape

from kerasmtl._version import __version__
from kerasmtl.utils.progress import progress_bar

SUFFIXES = (".tar.gz", ".tgz", ".tar")
MAX_BYTES = 20 * 10**9
TIMEOUT = (10, 30)  # seconds to connect, and without a byte
OFFLINE = (
    "Offline, or where the server refuses: download the module's .tar.gz with a browser, and pass "
    "the file or its unpacked folder as the handle."
)
_CHUNK = 2**20


def check_size(size: int, handle: str) -> None:
    """Check that a module has no more bytes than `KERASMTL_MAX_BYTES` permits, by default 20 GB.

    Args:
        size: in bytes, announced or received so far.
        handle: as the user wrote it, for the message.

    Raises:
        ValueError: it has, or `KERASMTL_MAX_BYTES` is not a positive number.
    """
    text = os.environ.get("KERASMTL_MAX_BYTES") or str(MAX_BYTES)
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"`KERASMTL_MAX_BYTES` must be a positive number, got {text!r}")
    if size > int(text):
        raise ValueError(
            f"`handle` must have at most {text} bytes, got {handle!r} with {size} or more. If you "
            "trust it, set KERASMTL_MAX_BYTES."
        )


def unpack(archive: Path, folder: Path, handle: str) -> None:
    """Unpack an archive into an empty folder.

    Args:
        archive: tar or tar.gz, whatever its name.
        folder: gets the files; may be left half-filled if this raises.
        handle: as the user wrote it, for messages.

    Raises:
        ValueError: the archive is damaged, unpacks to too many bytes, or has files, links or
            devices outside its folder (the "data" filter of `tarfile` refuses them).
    """
    size = 0
    try:
        with archive.open("rb") as raw:
            gzipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if gzipped else raw as stream:
                # As a stream, "r|": sizes add up member by member, before the next one is written
                # to disk.
                with tarfile.open(fileobj=stream, mode="r|") as tar:
                    for member in tar:
                        size += member.size
                        check_size(size, handle)
                        tar.extract(member, folder, filter="data")
                # The checksum of a gzip file comes after the end of the tar in it.
                while stream.read(_CHUNK):
                    pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            "`handle` must be a whole .tar or .tar.gz archive that stays inside its folder, got "
            f"{handle!r}: {error}"
        ) from error


def download(url: str, file: Path, handle: str) -> None:
    """Download a URL into a file that does not exist yet, with a progress bar on a terminal.

    Args:
        url: http or https; redirects are followed.
        file: gets the bytes as they are sent; may be left half-written if this raises.
        handle: as the user wrote it, for messages.

    Raises:
        ValueError: the server cannot be reached, refuses, answers with a web page, or sends too
            many bytes or fewer than it announced.
    """
    headers = {"Accept-Encoding": "identity", "User-Agent": f"kerasmtl/{__version__}"}
    place = _without_secrets(url)
    try:
        with requests.get(url, stream=True, timeout=TIMEOUT, headers=headers) as response:
            place = _without_secrets(response.url)
            fault = _fault(response) or _write(response, file, handle)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        fault = type(error).__name__
    if fault is None:
        with file.open("rb") as start:
            if start.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html")):
                fault = "a web page"
    if fault:
        raise ValueError(
            "`handle` must lead to a .tar.gz archive of a SavedModel, got "
            f"{fault} from {place}, for {handle!r}. {OFFLINE}"
        )


def _without_secrets(url: str) -> str:
    """Return a URL without user, password and query, as signed addresses have them."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _fault(response: requests.Response) -> str | None:
    """Return what is wrong with an answer, before its content is read.

    Of redirects only those to http after https are refused.

    Returns:
        What the answer is, for a message, or None if it may be read.
    """
    hops = [urlsplit(answer.url).scheme for answer in (*response.history, response)]
    if response.status_code >= 400:
        return f"HTTP {response.status_code} {response.reason}"
    if hops[0] == "https" and "http" in hops:  # where anyone on the way can change the module
        return "a redirect from https to http"
    is_page = response.headers.get("Content-Type", "").startswith("text/html")
    return "a web page" if is_page else None


def _write(response: requests.Response, file: Path, handle: str) -> str | None:
    """Write the raw bytes: a server may call the archive's own compression that of the transfer.

    Returns:
        What is wrong, for a message: fewer bytes than announced. None if all came.
    """
    announced = response.headers.get("Content-Length", "")
    total = int(announced) if announced.isdecimal() else None
    check_size(total or 0, handle)
    received = 0
    with file.open("xb") as out, progress_bar(escape(handle), total) as advance:
        for chunk in response.raw.stream(_CHUNK, decode_content=False):
            received += len(chunk)
            check_size(received, handle)
            out.write(chunk)
            advance(len(chunk))
    return f"{received} of {total} bytes" if total not in (None, received) else None


def copy_from_bucket(handle: str, folder: Path) -> None:
    """Copy a folder or archive behind gs:// or another scheme that tf.io.gfile knows.

    Args:
        handle: of a folder, or of a .tar.gz archive.
        folder: gets the files; may be left half-filled if this raises.

    Raises:
        ValueError: the scheme is unknown, there is no such module, or it is too big.
    """
    import tensorflow as tf  # heavy, and needed for nothing else

    gfile = tf.io.gfile
    try:
        if handle.endswith(SUFFIXES):
            check_size(gfile.stat(handle).length, handle)
            archive = folder.with_name("archive")
            gfile.copy(handle, str(archive))
            unpack(archive, folder, handle)
        elif gfile.isdir(handle):
            _copy_folder(gfile, handle.rstrip("/"), folder)
        else:
            gfile.stat(handle)  # says more where the scheme is unknown or access denied
            raise tf.errors.NotFoundError(None, None, "no such folder or archive")
    except tf.errors.OpError as error:
        raise ValueError(
            "`handle` must be a SavedModel's folder or archive, behind http or a scheme that "
            f"tf.io.gfile knows, got {handle!r}: {type(error).__name__}: {error.message}. {OFFLINE}"
        ) from error


def _copy_folder(gfile: type, source: str, folder: Path) -> None:
    """Copy a folder of a bucket, whose names must not lead out of it."""
    size = 0
    for place, _, names in gfile.walk(source):
        for name in names:
            path = f"{place.rstrip('/')}/{name}"
            target = folder / path.removeprefix(source).strip("/")
            if not target.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"`handle` {source!r} must have files inside it, got {path!r}")
            size += gfile.stat(path).length
            check_size(size, source)
            target.parent.mkdir(parents=True, exist_ok=True)
            gfile.copy(path, str(target))
