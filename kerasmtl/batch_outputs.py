"""What a batch prediction writes: finished blocks aside, then the whole file at once."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from kerasmtl.batch_formats import Columns, append, csv_lines, writer_of
from kerasmtl.feature_store import locked

BAD = ("path", "line", "reason")
_RUN = "run.json"
_PUBLISHED = "published.json"


class Unfinished:
    """The blocks of a prediction that is under way, in a folder beside the file to be.

    They belong to one model and one list of inputs, which `identity` tells. Open with
    `unfinished`.
    """

    def __init__(self, out: Path, columns: Columns) -> None:
        self.out = out
        self.folder = folder_of(out)
        self._columns = columns
        self._writer = writer_of(out, columns)
        self._identity: dict[str, Any] = {}

    def begin(self, identity: Mapping[str, Any], resume: bool, total: int) -> int:
        """How many blocks are finished; without `resume` they are removed first.

        Raises:
            ValueError: they belong to another model, or to other inputs.
        """
        record, self._identity = self.folder / _RUN, dict(identity)
        if resume and record.is_file():
            self._compare(json.loads(record.read_text(encoding="utf-8")), dict(identity))
        else:
            self._clear()
            _put(record, json.dumps({**identity, "inputs_found": total}, indent=2))
        return len(self._blocks())

    def published(
        self, identity: Mapping[str, Any], overwrite: bool
    ) -> tuple[Path | None, int] | None:
        """What `publish` returned, where it was killed once the file had its name; else None.

        Raises:
            FileExistsError: the file is of another model, or of other inputs.
        """
        if not _is_published(self.out):
            return None
        said = json.loads((self.folder / _PUBLISHED).read_text(encoding="utf-8"))
        same = said["identity"] == json.loads(json.dumps(identity))
        if overwrite and not same:
            self._clear()
            return None
        shutil.rmtree(self.folder)
        if not same:
            check_free(self.out)
        return (quarantine_of(self.out) if said["bad"] else None), said["bad"]

    def write(
        self, number: int, values: Mapping[str, Any], bad: Sequence[tuple[str, int | None, str]]
    ) -> None:
        """Keep a block, once it is whole: its predictions, and path, line and reason of others."""
        if bad:
            rows = pd.DataFrame(bad, columns=list(BAD), dtype=object)
            _put(self._bad(number), csv_lines(rows))
        path = self._block(number)
        aside = path.with_name(path.name + ".part")
        self._writer.write(aside, values)
        _settle(aside, path)

    def publish(self, overwrite: bool) -> tuple[Path | None, int]:
        """Make the file and, if there are bad inputs, their list; return the list, and its length.

        Raises:
            FileExistsError: another process made the file meanwhile.
        """
        whole = self.folder / f"whole{self.out.suffix}"
        self._writer.join(self._blocks(), whole)
        listed, count = quarantine_of(self.out), 0
        found = sorted(self.folder.glob("*.bad"))
        if found:
            aside = self.folder / "quarantine.csv"
            count = _join_lists(found, aside)
            _settle(aside, listed)
        elif overwrite:
            listed.unlink(missing_ok=True)  # it would be taken for this file's
        if not overwrite:
            check_free(self.out)
        # From here to the end a killed call is one that is done: see `published`.
        said = {"file": _mark(whole), "identity": self._identity, "bad": count}
        _put(self.folder / _PUBLISHED, json.dumps(said))
        _settle(whole, self.out)
        self._clear(but=_PUBLISHED)
        shutil.rmtree(self.folder)
        return (listed if found else None), count

    def _compare(self, found: dict[str, Any], now: dict[str, Any]) -> None:
        for key, value in now.items():
            if found.get(key) != value:
                raise ValueError(
                    f"`out` {self.out} was begun with other {key}. Expected the same model, inputs "
                    f"and options, to go on from the blocks in {self.folder}. To begin anew, call "
                    "with resume=False (command line: --no-resume)."
                )

    def _clear(self, but: str = "") -> None:
        for path in self.folder.glob("*.*"):  # all but the lock
            if path.name != but:
                path.unlink()

    def _blocks(self) -> list[Path]:
        """Those that are finished, without a gap from the first on."""
        found = []
        while self._block(len(found)).is_file():
            found.append(self._block(len(found)))
        return found

    def _block(self, number: int) -> Path:
        return self.folder / f"{number:08d}{self.out.suffix.lower()}"

    def _bad(self, number: int) -> Path:
        return self.folder / f"{number:08d}.bad"


@contextmanager
def unfinished(out: Path, columns: Columns) -> Iterator[Unfinished]:
    """The blocks of a file to be, for one process at a time.

    Raises:
        ValueError: an unknown ending, no pyarrow, or another process is at it.
    """
    made = Unfinished(out, columns)
    made.folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(made.folder / "lock", wait=False):
            yield made
    except BlockingIOError:
        raise ValueError(
            f"`out` {out} is being written by another process. Expected one at a time."
        ) from None


def check_out(out: Path, overwrite: bool) -> None:
    """Raise unless the file, and its list of bad inputs, can be written.

    Raises:
        FileExistsError: one is there; without `overwrite` neither is touched.
        ValueError: an unknown ending, or no pyarrow.
    """
    writer_of(out, ())
    if not overwrite:
        if not _is_published(out):
            check_free(out)
        if not folder_of(out).exists():  # else the list is of the run that goes on
            check_free(quarantine_of(out))


def check_free(path: Path) -> None:
    """Raise FileExistsError if there is such a file."""
    if path.exists():
        raise FileExistsError(
            f"`out` {path} exists, and is not overwritten unasked. Call with overwrite=True "
            "(command line: --overwrite), or with another name."
        )


def _is_published(out: Path) -> bool:
    """Whether the file is that of a call which was killed before it could tidy up."""
    try:
        said = json.loads((folder_of(out) / _PUBLISHED).read_text(encoding="utf-8"))
        return said["file"] == _mark(out)
    except OSError:
        return False


def _mark(path: Path) -> list[int]:
    """What a file keeps when it is renamed, and another one does not have."""
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def quarantine_of(out: Path) -> Path:
    """The list of the inputs that could not be used."""
    return out.with_name(out.name + ".quarantine.csv")


def folder_of(out: Path) -> Path:
    """Where blocks are until all are there."""
    return out.with_name(out.name + ".unfinished")


def _join_lists(found: Sequence[Path], path: Path) -> int:
    path.write_text(",".join(BAD) + "\n", encoding="utf-8")
    append(found, path)
    with path.open(newline="", encoding="utf-8") as file:
        return sum(1 for _ in csv.reader(file)) - 1


def _put(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8", newline="")
    _settle(aside, path)


def _settle(aside: Path, path: Path) -> None:
    """Rename, once the disk has it: after a power failure, too, what has the name is whole."""
    with aside.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)
