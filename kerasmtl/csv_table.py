"""A CSV as a table of text, strictly: every line has the header's cells, and keeps its number."""

from __future__ import annotations

import codecs
import csv
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd


def read_table(source: Path, encoding: str) -> pd.DataFrame:
    """All cells as text, indexed by the line they start in; blank lines are left out.

    Raises:
        FileNotFoundError, ValueError: as `iter_lines`, or it has no rows.
    """
    shared = {}.setdefault  # one string for all cells of the same text
    found = iter_lines(source, encoding)
    _, names = next(found)
    rows, lines = [], []
    for line, row in found:
        rows.append(tuple(map(shared, row, row)))
        lines.append(line)
    if not rows:
        raise ValueError(f"`path` {source} has no rows. Expected at least one below the header.")
    return pd.DataFrame(rows, columns=names, index=lines, dtype=object)


def iter_lines(source: Path, encoding: str = "utf-8") -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of each line, the header first; blank lines are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, in another encoding, not comma-separated, has two columns of one
            name, or a line with too few or too many cells; names the line.
    """
    if not source.is_file():
        raise FileNotFoundError(f"`path` {source} is no file. Expected a CSV with a header.")
    utf8 = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    line = 1
    try:
        with source.open(newline="", encoding="utf-8-sig" if utf8 else encoding) as file:
            # Not pandas: it fills short lines up, and counts a cell of two lines as one.
            reader = csv.reader(file, strict=True)
            names = [name.strip() for name in next((row for row in reader if any(row)), [])]
            _check_header(names, source)
            yield reader.line_num, names
            line = reader.line_num + 1
            for row in reader:
                if len(row) != len(names):
                    _check_blank(row, len(names), line, source)
                elif any(row):
                    yield line, row
                line = reader.line_num + 1
    except (UnicodeError, LookupError) as error:
        raise _wrong_encoding(source, encoding, error) from None
    except csv.Error as error:
        raise ValueError(
            f"`path` {source}, line {line} is malformed: {error}. Expected comma-separated cells, "
            "with every quote closed."
        ) from None


def place(source: str | os.PathLike[str]) -> str:
    """What a row is called in messages: the line of a CSV, else the row, counted from 0."""
    return "line" if os.fspath(source).lower().endswith(".csv") else "row"


def _check_blank(row: list[str], expected: int, line: int, source: Path) -> None:
    if "".join(row).strip():
        raise ValueError(
            f"`path` {source}, line {line} has too {'few' if len(row) < expected else 'many'} "
            f"cells. Expected {expected}, as in the header. Received {len(row)}: {row[:5]}"
        )


def _wrong_encoding(source: Path, encoding: str, error: Exception) -> ValueError:
    data = source.read_bytes()
    if isinstance(error, UnicodeDecodeError):  # its position is that in a block of the file
        try:
            data.decode(encoding)
        except UnicodeDecodeError as again:
            line = data.count(b"\n", 0, again.start) + 1
            error = ValueError(f"line {line}, byte {again.start}: {again.reason}")
    likely = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "latin-1"
    return ValueError(
        f"`encoding` {encoding!r} does not read {source} ({error}). Expected the encoding the "
        f"file was written in. Call with encoding={likely!r}, or save the file as UTF-8."
    )


def _check_header(names: list[str], source: Path) -> None:
    if not any(names):
        raise ValueError(f"`path` {source} is empty. Expected a CSV with a header.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"`path` {source} has columns of the same name. Expected distinct names in its header. "
            f"Received twice: {twice}"
        )
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        raise ValueError(
            f"`path` {source} is not comma-separated. Expected commas. Received: {names[0]!r}"
        )
