"""The versions that are served: found on disk, loaded, warmed up, checked, then swapped in.

`run` loads them once, and `ModelServer.watch` refreshes them on a thread of its own, while requests
are answered on others. What they share is `Versions._served`, a mapping that is replaced in one
assignment: readers see all of the former versions or all of the new ones, without locks.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kerasmtl.export.description import GOLDEN_REQUEST, GOLDEN_RESPONSE
from kerasmtl.export.versions import Stamp, stamp, versions_in
from kerasmtl.serving.batching import predict_together
from kerasmtl.serving.errors import RequestError
from kerasmtl.serving.protocols import read_predict, write_predict
from kerasmtl.serving.served_model import ServedModel

TOLERANCE = 1e-4  # other processors add in another order

log = logging.getLogger("kerasmtl.serving")


def prepare(model: ServedModel) -> None:
    """Warm a version up, and compare its answer with the golden request beside it.

    Exports always bring a golden request along; of other SavedModels none is expected. A copy that
    is damaged, or a TensorFlow that computes something else, is so found before it answers anyone.

    Args:
        model: the version, which has been loaded.

    Raises:
        ValueError: the golden request fails, gets another answer, or is missing.
    """
    model.warm_up()
    asked, expected = model.folder / GOLDEN_REQUEST, model.folder / GOLDEN_RESPONSE
    if not asked.is_file():
        if model.description.get("versions"):  # an export's model.json
            raise ValueError(f"the folder is incomplete: {GOLDEN_REQUEST} is not there")
        return
    try:
        body = json.loads(asked.read_text(encoding="utf-8"))
        wanted = json.loads(expected.read_text(encoding="utf-8"))
        (result,) = predict_together(model, [read_predict(body, model)])
    except (OSError, ValueError) as error:
        raise ValueError(f"its golden request fails: {error}") from error
    if isinstance(result, Exception):
        raise ValueError(f"its golden request fails: {result}")
    if not _close(write_predict(body, result), wanted):
        raise ValueError("its golden request gets another answer than when it was exported")


def _close(received: Any, wanted: Any) -> bool:
    """Return whether JSON values agree, numbers within TOLERANCE; further outputs do not matter."""
    try:
        if isinstance(wanted, dict):
            return all(_close(received[key], value) for key, value in wanted.items())
        if isinstance(wanted, list):
            return all(_close(*pair) for pair in zip(received, wanted, strict=True))
        if isinstance(wanted, float):
            return bool(np.isclose(received, wanted, TOLERANCE, TOLERANCE, equal_nan=True))
    except (KeyError, TypeError, ValueError):  # of another structure
        return False
    return received == wanted


class Versions:
    """The newest versions in a folder.

    They are looked for again with `refresh`, and swapped in when they are loaded and checked. A
    request keeps the version that it began with: one that is no longer served stays in memory
    until its last request is answered.

    Args:
        base: the folder of all versions of a model.
        keep: how many of the newest versions are served.
        prepare: checks a version before it is served; raises ValueError.
    """

    def __init__(
        self, base: Path, keep: int, prepare: Callable[[ServedModel], None] = prepare
    ) -> None:
        self.base, self.keep, self._prepare = base, keep, prepare
        # Replaced as a whole, never changed: other threads read it.
        self._served: Mapping[int, ServedModel] = {}
        self._seen: dict[int, Stamp] = {}  # versions not loaded yet, as they were at the last look
        self._refused: dict[int, Stamp] = {}

    def load(self) -> None:
        """Load the versions that are there now.

        Raises:
            ValueError: none of them can be served; says why, version by version.
        """
        reasons = self._look(wait=False)
        if not self._served:
            shown = "; ".join(f"{version}: {why}" for version, why in reasons.items())
            raise ValueError(
                f"`folder` {self.base} has no version to serve. Expected folders named 1, 2, ... "
                f"as `kerasmtl export` writes them, got {shown or self._contents()}"
            )

    def refresh(self) -> None:
        """Look again: load new versions, drop old ones.

        A new folder is loaded once it is the same at two looks: until then it is being copied.
        """
        self._look(wait=True)

    @property
    def numbers(self) -> list[int]:
        """The versions that are served, the newest first."""
        return sorted(self._served, reverse=True)

    def get(self, version: int | None = None) -> ServedModel:
        """Return a version.

        Args:
            version: its number; None for the newest.

        Raises:
            RequestError: with status 404, if it is not served.
        """
        # Read once: another thread may replace the mapping between two lines.
        served = self._served
        number = max(served) if version is None else version
        if number not in served:
            raise RequestError(f"The version must be one of {self.numbers}, got {number}", 404)
        return served[number]

    def _look(self, wait: bool) -> dict[int, str]:
        """Load and swap; return by version why it is refused, each reason once."""
        there = versions_in(self.base)
        kept: dict[int, ServedModel] = {}
        reasons: dict[int, str] = {}
        before, self._seen = self._seen, {}
        for version in there:
            if len(kept) >= self.keep:
                break
            if version in self._served:
                kept[version] = self._served[version]
                continue
            state = self._seen[version] = stamp(self.base / str(version))
            # A version that was refused is tried again only when its folder has changed, for
            # instance because it was being copied slowly.
            still_written = wait and before.get(version) != state
            if still_written or self._refused.get(version) == state:
                continue
            try:
                model = ServedModel(self.base / str(version))
                self._prepare(model)
                kept[version] = model
            except Exception as error:  # whatever is wrong with it, the others stay in service
                self._refused[version], reasons[version] = state, str(error)
        # Swapped only after all are ready: that the newest fails leaves what is served as it was.
        former = self.numbers
        if kept and kept.keys() != self._served.keys():  # a folder that was emptied stops nothing
            self._served = kept
            if former:
                log.warning("now serving %s instead of %s", self.numbers, former)
        if self._served:
            for version, why in reasons.items():
                log.error("version %d is refused: %s; serving %s", version, why, self.numbers)
        return reasons

    def _contents(self) -> str:
        """Say what the folder has in place of versions, for the error of `load`."""
        if (self.base / "saved_model.pb").is_file():
            return f"a version itself; serve its parent, {self.base.parent}"
        return "a folder without any" if self.base.is_dir() else "no folder"
