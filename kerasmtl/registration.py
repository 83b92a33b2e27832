"""Classes that Keras finds by their registered names, before their modules are imported."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from kerasmtl.import_hooks import wrap_import

PACKAGE = "kerasmtl"
# Every class with @keras.saving.register_keras_serializable(package="kerasmtl"), and its module.
REGISTERED = {
    "AssumeNegative": "kerasmtl.losses",
    "AsymmetricLoss": "kerasmtl.losses",
    "ColumnNormalization": "kerasmtl.backbones.mlp",
    "DynamicWeightAverage": "kerasmtl.balancing",
    "ExpectedPositives": "kerasmtl.losses",
    "FAMO": "kerasmtl.balancing",
    "HillLoss": "kerasmtl.losses",
    "HubLayer": "kerasmtl.backbones.hub",
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
    "RandomWeighting": "kerasmtl.balancing",
    "ScaledUpdates": "kerasmtl.training",
    "SmallChanges": "kerasmtl.small_changes",
    "UncertaintyWeighting": "kerasmtl.balancing",
    "WarmupCosine": "kerasmtl.training",
}


def register_when_keras_is_imported() -> None:
    """Make `keras.models.load_model` find kerasmtl's classes, now or as soon as Keras is imported.

    Nothing is imported for it: Keras gets a placeholder for each class, which the class itself
    replaces when its module is imported.
    """
    keras = sys.modules.get("keras")
    if hasattr(keras, "saving"):
        _register(keras)
    else:
        wrap_import("keras", _execute_and_register)


def _execute_and_register(execute: Any, keras: Any) -> None:
    execute(keras)
    _register(keras)


def _register(keras: Any) -> None:
    known = keras.saving.get_custom_objects()
    for name, module in REGISTERED.items():
        known.setdefault(f"{PACKAGE}>{name}", _placeholder(name, module))


def _placeholder(name: str, module: str) -> type:
    def from_config(cls: type, config: dict[str, Any]) -> Any:
        return getattr(importlib.import_module(module), name).from_config(config)

    return type(name, (), {"from_config": classmethod(from_config)})
