"""The versions that are served: looked for on disk, loaded, warmed up, proved, then swapped in."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from kerasmtl.serving.folders import Stamp, missing, stamp, versions_in
from kerasmtl.serving.problems import Refused
from kerasmtl.serving.served import Served

log = logging.getLogger("kerasmtl.serving")


class Versions:
    """The newest versions in a folder, `keep` of them.

    A request keeps the version that it began with; one that has been taken out of service stays in
    memory until its last request is answered.

    Args:
        base: the folder of all versions of a model.
        keep: how many versions are served.
        prepare: what a version has to pass before it is served; raises ValueError.
    """

    def __init__(self, base: Path, keep: int, prepare: Callable[[Served], None]) -> None:
        self.base = base
        self.keep = keep
        self._prepare = prepare
        self._served: dict[int, Served] = {}  # replaced, never changed: read from other threads
        self._seen: dict[int, Stamp] = {}  # new ones, as they were at the last look
        self._refused: dict[int, Stamp] = {}

    def load(self) -> None:
        """Load what is there now.

        Raises:
            ValueError: no version that can be served, each with the reason.
        """
        reasons = self._look(settled=False)
        if self._served:
            self._report(reasons)
        else:
            shown = "; ".join(f"{version}: {why}" for version, why in reasons.items())
            raise ValueError(
                f"`folder` {self.base} has no version to serve. Expected folders named 1, 2, … as "
                f"`kerasmtl export` writes them. Received: {shown or self._what_is_there()}"
            )

    def refresh(self) -> None:
        """Look again, and swap; a folder that is still being written to waits for the next look."""
        self._report(self._look(settled=True))

    @property
    def numbers(self) -> list[int]:
        """The versions that are served, the newest first."""
        return sorted(self._served, reverse=True)

    def get(self, version: int | None = None) -> Served:
        """A version, by default the newest.

        Raises:
            Refused: it is not served.
        """
        served = self._served
        number = max(served) if version is None else version
        if number not in served:
            raise Refused(
                f"Version {number} is not served. Expected one of {sorted(served, reverse=True)}",
                404,
            )
        return served[number]

    def _look(self, settled: bool) -> dict[int, str]:
        """Load what is new, drop what is old; by version, why it is refused."""
        there = versions_in(self.base)
        kept: dict[int, Served] = {}
        reasons: dict[int, str] = {}
        seen: dict[int, Stamp] = {}
        for version in there:
            if len(kept) == self.keep:
                break
            if version in self._served:
                kept[version] = self._served[version]
                continue
            seen[version] = stamp(self.base / str(version))
            writing = settled and self._seen.get(version) != seen[version]
            if writing or self._refused.get(version) == seen[version]:
                continue
            try:
                kept[version] = self._loaded(version)
            except Exception as error:  # whatever is wrong with it, the others go on
                self._refused[version] = seen[version]
                reasons[version] = str(error)
        self._seen = seen
        self._refused = {v: s for v, s in self._refused.items() if v in there}
        self._swap(kept)
        return reasons

    def _report(self, reasons: dict[int, str]) -> None:
        for version, why in reasons.items():
            log.error("version %d is refused: %s; %s is served", version, why, self.numbers)

    def _loaded(self, version: int) -> Served:
        folder = self.base / str(version)
        lacking = missing(folder)
        if lacking:
            raise ValueError(f"it is not whole: {lacking}")
        served = Served(folder)
        self._prepare(served)
        return served

    def _swap(self, kept: dict[int, Served]) -> None:
        if not kept or kept.keys() == self._served.keys():
            return  # a folder that was emptied stops nothing
        before, self._served = self.numbers, kept
        if before:
            log.warning("now serving %s, before %s", self.numbers, before)

    def _what_is_there(self) -> str:
        if (self.base / "saved_model.pb").is_file():
            return f"one version itself; serve its parent, {self.base.parent}"
        return "a folder without any" if self.base.is_dir() else "no folder"
