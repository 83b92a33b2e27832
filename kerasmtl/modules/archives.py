"""Archives: tar and tar.gz, unpacked without leaving their folder or filling the disk."""

from __future__ import annotations

import gzip
import os
import platform
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

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
