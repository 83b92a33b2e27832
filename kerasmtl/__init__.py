"""From a CSV with holes in it to a served model: transfer and multi-task learning on Keras 3.

Names are imported on first use, so that `import kerasmtl` and the command line start
without TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kerasmtl._version import __version__

_HOME = {
    "Task": "kerasmtl.tasks",
    "Manifest": "kerasmtl.manifest",
    "make_dataset": "kerasmtl.pipeline",
    "HubLayer": "kerasmtl.backbones.hub",
    "load_backbone": "kerasmtl.backbones",
    "image_size": "kerasmtl.backbones",
    "inspect": "kerasmtl.backbones.inspection",
    "build_model": "kerasmtl.model",
    "load_model": "kerasmtl.model",
    "MaskedBinaryCrossentropy": "kerasmtl.losses",
    "MaskedAUC": "kerasmtl.metrics",
    "MaskedBinaryAccuracy": "kerasmtl.metrics",
    "Checkpoint": "kerasmtl.training",
    "Stage": "kerasmtl.training",
    "fine_tune": "kerasmtl.training",
    "freeze": "kerasmtl.training",
    "unfreeze": "kerasmtl.training",
    "variable_groups": "kerasmtl.training",
    "evaluate": "kerasmtl.evaluation",
    "Report": "kerasmtl.report",
    "export_saved_model": "kerasmtl.export",
    "Project": "kerasmtl.project",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from kerasmtl.backbones import image_size, load_backbone
    from kerasmtl.backbones.hub import HubLayer
    from kerasmtl.backbones.inspection import inspect
    from kerasmtl.evaluation import evaluate
    from kerasmtl.export import export_saved_model
    from kerasmtl.losses import MaskedBinaryCrossentropy
    from kerasmtl.manifest import Manifest
    from kerasmtl.metrics import MaskedAUC, MaskedBinaryAccuracy
    from kerasmtl.model import build_model, load_model
    from kerasmtl.pipeline import make_dataset
    from kerasmtl.project import Project
    from kerasmtl.report import Report
    from kerasmtl.tasks import Task
    from kerasmtl.training import (
        Checkpoint,
        Stage,
        fine_tune,
        freeze,
        unfreeze,
        variable_groups,
    )


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kerasmtl' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
