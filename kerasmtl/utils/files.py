"""Files and folders that appear whole or not at all: atomic writes, shards, locks and hashes.

All of it is done with renames, which are atomic on one file system: whoever reads a path sees what
was there before, or what is there afterwards, also when the writing process is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

# Prefix of the hidden folders to write in; one that a killed process left may be removed.
WRITING = ".writing-"


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path to write to; when the block ends without an error, it is renamed to `path`.

    The file that was there is replaced, and its permissions are kept. If the block raises, nothing
    changes.

    Args:
        path: of the file; its folder is made if it is absent. The path to write to has the same
            name, in a hidden folder beside it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_file(Path(folder) / "a.txt") as written:
        ...         _ = written.write_text("whole")
        ...     (Path(folder) / "a.txt").read_text()
        'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=WRITING) as folder:
        written = Path(folder) / path.name
        yield written
        if path.is_file():
            shutil.copymode(path, written)
        os.replace(written, path)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically, its line breaks as they are in the text."""
    with atomic_file(path) as written:
        written.write_text(text, encoding="utf-8", newline="")


@contextlib.contextmanager
def atomic_folder(
    target: str | os.PathLike[str], valid: Callable[[Path], bool] | None = None
) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends without an error, it is renamed.

    If the block raises, the folder is removed and `target` is left as it was.

    Args:
        target: where the folder goes; the folders above it are made.
        valid: judges a folder that is at `target` by then. If it is valid, it stays, and what was
            filled is dropped; otherwise it is replaced. None never replaces anything.

    Raises:
        FileExistsError: `valid` is None, and something other than an empty folder is at `target`.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Only its owner may enter what mkdtemp makes; the folder inside has the usual permissions.
    holder = Path(tempfile.mkdtemp(dir=target.parent, prefix=WRITING))
    try:
        made = holder / target.name
        made.mkdir()
        yield made
        _settle(made, target, valid)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _settle(made: Path, target: Path, valid: Callable[[Path], bool] | None) -> None:
    """Rename `made` to `target`, as `atomic_folder` says, however many processes do the same."""
    for _ in range(5):
        try:
            os.rename(made, target)
            return
        except OSError:
            if not os.path.lexists(target):
                raise
        if valid is None:
            raise FileExistsError(f"{target} exists, and is not overwritten. Use another name.")
        if valid(target):
            return
        with contextlib.suppress(FileNotFoundError):  # another process may have moved it first
            os.rename(target, made.parent / uuid.uuid4().hex)
    raise OSError(f"{target} keeps being changed by other processes. Try again.")


class Shards:
    """The numbered parts of a result that takes long to compute, each a file of its own.

    A shard is there whole or not at all, so that an interrupted run continues with `missing()`.

    Args:
        folder: of the shards; made when the first one is written.
        count: how many shards there are.
        suffix: of the files, such as ".npy".

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     shards = Shards(folder, 3, ".txt")
        ...     with shards.write(1) as file:
        ...         _ = file.write_text("second")
        ...     shards.missing(), shards.path(1).name
        ([0, 2], '00001.txt')
    """

    def __init__(self, folder: str | os.PathLike[str], count: int, suffix: str = "") -> None:
        self.folder = Path(folder)
        self.count = count
        self.suffix = suffix

    def path(self, number: int) -> Path:
        """Return the path of a shard, counted from 0."""
        return self.folder / f"{number:05d}{self.suffix}"

    def paths(self) -> list[Path]:
        """Return the paths of all shards in order."""
        return [self.path(number) for number in range(self.count)]

    def missing(self) -> list[int]:
        """Return the numbers of the shards that are not there yet, in order."""
        return [number for number, path in enumerate(self.paths()) if not path.is_file()]

    def write(self, number: int) -> contextlib.AbstractContextManager[Path]:
        """Return the context of `atomic_file` for a shard."""
        return atomic_file(self.path(number))


@contextlib.contextmanager
def file_lock(
    path: str | os.PathLike[str], wait: bool = True, message: str | None = None
) -> Iterator[None]:
    """Hold a lock that one process at a time can have; the system frees it if that is killed.

    Where there are no locks (Windows, some network file systems, folders that are read-only) the
    block runs without one: what it writes has to be written atomically anyway.

    Args:
        path: of the lock file, which is made, and removed at the end.
        wait: whether to wait while another process holds the lock.
        message: printed before waiting.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is False.
    """
    path = Path(path)
    with contextlib.ExitStack() as held:
        while True:
            try:
                import fcntl  # not on Windows

                file = held.enter_context(path.open("a"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                if message:
                    print(message, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            except (ImportError, OSError):
                break
            if _is_at(path, file.fileno()):
                held.callback(path.unlink, missing_ok=True)
                break
        yield


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still at its path: who held the lock before may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
