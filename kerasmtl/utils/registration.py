"""The names of registered classes, so that Keras finds them before their modules are imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

# Called with the function that executes a module and with the module; must call it on the module.
Around = Callable[[Callable[[ModuleType], None], ModuleType], None]


def wrap_import(name: str, around: Around) -> None:
    """Call `around(execute, module)` when the package is imported; it must not be imported yet."""
    sys.meta_path.insert(0, _Finder(name, around))


class _Finder(MetaPathFinder):
    """Finds one package as Python does, and wraps the execution of its module.

    Finding alone does not import: `importlib.util.find_spec` asks whether a package is installed.
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


PACKAGE = "kerasmtl"
# Every class with @keras.saving.register_keras_serializable(package="kerasmtl"), and its module.
REGISTERED = {
    "AssumeNegative": "kerasmtl.losses",
    "AsymmetricLoss": "kerasmtl.losses",
    "ColumnEncoding": "kerasmtl.models.mlp",
    "ColumnNormalization": "kerasmtl.models.mlp",
    "DynamicWeightAverage": "kerasmtl.losses.balancing",
    "ExpectedPositives": "kerasmtl.losses",
    "FAMO": "kerasmtl.losses.balancing",
    "HillLoss": "kerasmtl.losses",
    "HubLayer": "kerasmtl.models.hub_layer",
    "LargeLoss": "kerasmtl.losses",
    "MaskedAUC": "kerasmtl.metrics",
    "MaskedAveragePrecision": "kerasmtl.metrics",
    "MaskedBinaryAccuracy": "kerasmtl.metrics",
    "MaskedBinaryCrossentropy": "kerasmtl.losses",
    "MaskedBrier": "kerasmtl.metrics",
    "MaskedCategoricalAccuracy": "kerasmtl.metrics",
    "MaskedCategoricalCrossentropy": "kerasmtl.losses",
    "MaskedECE": "kerasmtl.metrics",
    "MaskedF1": "kerasmtl.metrics",
    "MaskedHuber": "kerasmtl.losses",
    "MaskedMAE": "kerasmtl.metrics",
    "MaskedMeanAbsoluteError": "kerasmtl.losses",
    "MaskedMeanSquaredError": "kerasmtl.losses",
    "MaskedPrecisionAtRecall": "kerasmtl.metrics",
    "MaskedR2": "kerasmtl.metrics",
    "MaskedRMSE": "kerasmtl.metrics",
    "PartialBinaryCrossentropy": "kerasmtl.losses",
    "RandomWeighting": "kerasmtl.losses.balancing",
    "ScaledUpdates": "kerasmtl.training.optimizers:LayerwiseDecay",
    "SmallChanges": "kerasmtl.data.augmentation",
    "UncertaintyWeighting": "kerasmtl.losses.balancing",
    "WarmupCosine": "kerasmtl.training.optimizers",
}


def register_when_keras_is_imported() -> None:
    """Make `keras.models.load_model` find kerasmtl's classes, now or as soon as Keras is imported.

    Nothing is imported for it: Keras gets a placeholder for each class, which the class itself
    replaces when its module is imported.
    """

    def register(execute: Callable[[Any], None], keras: Any) -> None:
        execute(keras)
        known = keras.saving.get_custom_objects()
        for name, module in REGISTERED.items():
            known.setdefault(f"{PACKAGE}>{name}", _placeholder(name, module))

    keras = sys.modules.get("keras")
    if hasattr(keras, "saving"):
        register(lambda module: None, keras)
    else:
        wrap_import("keras", register)


def _placeholder(name: str, module: str) -> type:
    def from_config(cls: type, config: dict[str, Any]) -> Any:
        home, _, own = module.partition(":")
        return getattr(importlib.import_module(home), own or name).from_config(config)

    return type(name, (), {"from_config": classmethod(from_config)})
