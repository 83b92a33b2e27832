"""Code that runs when a heavy package is imported, by whomever, without importing it for that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

# Gets the function that executes the module, and the module; has to call the one with the other.
Around = Callable[[Callable[[ModuleType], None], ModuleType], None]


def wrap_import(name: str, around: Around) -> None:
    """Call `around(execute, module)` when the package is imported; it must not be imported yet."""
    sys.meta_path.insert(0, _Finder(name, around))


class _Finder(MetaPathFinder):
    """Finds one package as Python does, and wraps the execution of its module.

    Finding alone is no import: `importlib.util.find_spec` asks whether a package is installed.
    """

    def __init__(self, name: str, around: Around) -> None:
        self.name, self.around, self._asking = name, around, False

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name or self._asking:
            return None
        self._asking = True  # the other finders
        try:
            spec = find_spec(name)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def wrapped(module: ModuleType) -> None:
                sys.meta_path.remove(self)
                self.around(execute, module)

            spec.loader.exec_module = wrapped  # type: ignore[method-assign]
        return spec
