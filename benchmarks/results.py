"""Keeps what a benchmark measured in RESULTS.md, section by section."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"


def keep(heading: str, section: str) -> None:
    """Put a section into RESULTS.md in place of its older self; leave the others alone."""
    old = RESULTS.read_text() if RESULTS.exists() else "# Results\n"
    before, found, after = old.partition(heading)
    following = after.find("\n## ")
    rest = after[following:] if found and following >= 0 else "\n"
    RESULTS.write_text(f"{before.rstrip()}\n\n{section}\n{rest}".rstrip() + "\n")
