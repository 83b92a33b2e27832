"""Names that are imported on first use, so that heavy packages load only when needed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


def lazy_names(
    module: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a module whose names live elsewhere.

    Args:
        module: the name of the module.
        homes: the home of each name, "package.module", or "package.module:name" where the name
            differs there.
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, own = homes[name].partition(":")
        value = getattr(importlib.import_module(home), own or name)
        setattr(sys.modules[module], name, value)
        return value

    return __getattr__, lambda: sorted(homes)


def namespace(name: str, doc: str, homes: Mapping[str, str]) -> ModuleType:
    """Make a module of lazy names, importable as `name`."""
    made = ModuleType(name, doc)
    made.__getattr__, made.__dir__ = lazy_names(name, homes)  # type: ignore[method-assign]
    made.__all__ = sorted(homes)  # type: ignore[attr-defined]
    sys.modules[name] = made
    return made
