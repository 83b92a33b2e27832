"""The versions that are served: looked for on disk, loaded, warmed up, proved, then swapped in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kerasmtl.serving.folders import Stamp, missing, stamp, versions_in
from kerasmtl.serving.labels import Wanted
from kerasmtl.serving.problems import Refused
from kerasmtl.serving.served import Served

log = logging.getLogger("kerasmtl.serving")


@dataclass(frozen=True)
class _State:
    """What is served, by number, and what is called how: replaced, never changed."""

    served: Mapping[int, Served] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)


class Versions:
    """The newest versions in a folder, and those that have labels.

    A request keeps the version that it began with; one that has been taken out of service stays in
    memory until its last request is answered.

    Args:
        base: the folder of all versions of a model.
        wanted: how many versions are served, or, asked again at each look, which and their labels.
        prepare: what a version has to pass before it is served; raises ValueError.
    """

    def __init__(
        self,
        base: Path,
        wanted: int | Callable[[], Wanted],
        prepare: Callable[[Served], None],
    ) -> None:
        self.base = base
        self._wanted = (lambda: Wanted(wanted)) if isinstance(wanted, int) else wanted
        self._prepare = prepare
        self._state = _State()  # read from other threads
        self._seen: dict[int, Stamp] = {}  # new ones, as they were at the last look
        self._refused: dict[int, Stamp] = {}
        self._said = ""

    def load(self) -> None:
        """Load what is there now.

        Raises:
            ValueError: no version that can be served, each with the reason, or a label of one that
                cannot.
        """
        wanted = self._wanted()
        reasons = self._look(wanted, settled=False)
        shown = "; ".join(f"{version}: {why}" for version, why in reasons.items())
        if not self._state.served:
            raise ValueError(
                f"`folder` {self.base} has no version to serve. Expected folders named 1, 2, … as "
                f"`kerasmtl export` writes them. Received: {shown or self._what_is_there()}"
            )
        if self._unmet(wanted):
            raise ValueError(
                f"Some labels are of versions that cannot be served. Expected some of "
                f"{self.numbers}. Received: {self._unmet(wanted)}{shown and f' ({shown})'}"
            )
        self._report(reasons)

    def refresh(self) -> None:
        """Look again, and swap; a folder that is still being written to waits for the next look."""
        try:
            wanted = self._wanted()
        except (OSError, ValueError) as error:
            self._say(f"{error}; {self.numbers} go on being served")
            return
        self._report(self._look(wanted, settled=True))
        unmet = self._unmet(wanted)
        self._say(
            f"labels of versions that are not served stay as they were: {unmet}" * bool(unmet)
        )

    @property
    def numbers(self) -> list[int]:
        """The versions that are served, the newest first."""
        return sorted(self._state.served, reverse=True)

    @property
    def labels(self) -> dict[str, int]:
        """The version that each label stands for."""
        return dict(self._state.labels)

    def get(self, version: int | None = None, label: str | None = None) -> Served:
        """A version, by its number or label; by default the newest.

        Raises:
            Refused: it is not served, or there is no such label.
        """
        state = self._state
        if label is not None:
            if label not in state.labels:
                raise Refused(
                    f"The label is unknown. Expected one of {sorted(state.labels)}. "
                    f"Received: {label[:100]!r}",
                    404,
                )
            return state.served[state.labels[label]]
        number = max(state.served) if version is None else version
        if number not in state.served:
            raise Refused(
                f"Version {number} is not served. Expected one of {self.numbers}",
                404,
            )
        return state.served[number]

    def _look(self, wanted: Wanted, settled: bool) -> dict[int, str]:
        """Load what is new, drop what is old; by version, why it is refused."""
        there = versions_in(self.base)
        kept: dict[int, Served] = {}
        reasons: dict[int, str] = {}
        seen: dict[int, Stamp] = {}
        for version in there:
            if len(kept) >= wanted.keep and not wanted.includes(version):
                continue
            if version in self._state.served:
                kept[version] = self._state.served[version]
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
        self._swap(kept, wanted.labels)
        return reasons

    def _report(self, reasons: dict[int, str]) -> None:
        for version, why in reasons.items():
            log.error("version %d is refused: %s; %s is served", version, why, self.numbers)

    def _say(self, trouble: str) -> None:
        """Once, not at every look."""
        if trouble and trouble != self._said:
            log.error(trouble)
        self._said = trouble

    def _unmet(self, wanted: Wanted) -> dict[str, int]:
        """The labels that do not stand for what they should."""
        return {k: v for k, v in wanted.labels.items() if self._state.labels.get(k) != v}

    def _loaded(self, version: int) -> Served:
        folder = self.base / str(version)
        lacking = missing(folder)
        if lacking:
            raise ValueError(f"it is not whole: {lacking}")
        served = Served(folder)
        self._prepare(served)
        return served

    def _swap(self, kept: dict[int, Served], wanted: Mapping[str, int]) -> None:
        """A label moves only to a version that is there; until then, its former one stays."""
        before = self._state
        if not kept:
            return  # a folder that was emptied stops nothing
        labels = {}
        for label, version in wanted.items():
            former = before.labels.get(label)
            if version in kept:
                labels[label] = version
            elif former is not None:
                labels[label] = former
                kept.setdefault(former, before.served[former])
        if kept.keys() == before.served.keys() and labels == before.labels:
            return
        self._state = _State(kept, labels)
        if before.served:
            shown = f", labels {labels}" if labels or before.labels else ""
            log.warning(
                "now serving %s%s, before %s", self.numbers, shown, sorted(before.served)[::-1]
            )

    def _what_is_there(self) -> str:
        if (self.base / "saved_model.pb").is_file():
            return f"one version itself; serve its parent, {self.base.parent}"
        return "a folder without any" if self.base.is_dir() else "no folder"
