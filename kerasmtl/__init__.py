"""From a CSV with holes in it to a served model: transfer and multi-task learning on Keras 3.

Names are imported on first use, so that `import kerasmtl` and the command line start
without TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kerasmtl._version import __version__
from kerasmtl.registration import register_when_keras_is_imported

_HOME = {
    "Task": "kerasmtl.tasks",
    "Manifest": "kerasmtl.manifest",
    "Table": "kerasmtl.table",
    "default_augmentation": "kerasmtl.augmentation",
    "make_dataset": "kerasmtl.pipeline",
    "make_table_dataset": "kerasmtl.table_pipeline",
    "HubLayer": "kerasmtl.backbones.hub",
    "load_backbone": "kerasmtl.backbones",
    "image_size": "kerasmtl.backbones",
    "inspect": "kerasmtl.backbones.inspection",
    "mlp_backbone": "kerasmtl.backbones.mlp",
    "build_model": "kerasmtl.model",
    "load_model": "kerasmtl.model",
    "AssumeNegative": "kerasmtl.losses",
    "AsymmetricLoss": "kerasmtl.losses",
    "ExpectedPositives": "kerasmtl.losses",
    "HillLoss": "kerasmtl.losses",
    "LargeLoss": "kerasmtl.losses",
    "LargeLossSchedule": "kerasmtl.losses",
    "MaskedBinaryCrossentropy": "kerasmtl.losses",
    "MaskedCategoricalCrossentropy": "kerasmtl.losses",
    "MaskedHuber": "kerasmtl.losses",
    "MaskedMeanAbsoluteError": "kerasmtl.losses",
    "MaskedMeanSquaredError": "kerasmtl.losses",
    "PartialBinaryCrossentropy": "kerasmtl.losses",
    "DynamicWeightAverage": "kerasmtl.balancing",
    "FAMO": "kerasmtl.balancing",
    "RandomWeighting": "kerasmtl.balancing",
    "UncertaintyWeighting": "kerasmtl.balancing",
    "effective_number": "kerasmtl.counts",
    "inverse_known_count": "kerasmtl.counts",
    "mean_known": "kerasmtl.counts",
    "pos_weight": "kerasmtl.counts",
    "with_known": "kerasmtl.masking",
    "MaskedAUC": "kerasmtl.metrics",
    "MaskedAveragePrecision": "kerasmtl.metrics",
    "MaskedBinaryAccuracy": "kerasmtl.metrics",
    "MaskedBrier": "kerasmtl.metrics",
    "MaskedCategoricalAccuracy": "kerasmtl.metrics",
    "MaskedECE": "kerasmtl.metrics",
    "MaskedF1": "kerasmtl.metrics",
    "MaskedMAE": "kerasmtl.metrics",
    "MaskedPrecisionAtRecall": "kerasmtl.metrics",
    "MaskedR2": "kerasmtl.metrics",
    "MaskedRMSE": "kerasmtl.metrics",
    "default_losses": "kerasmtl.defaults",
    "default_metrics": "kerasmtl.defaults",
    "BestEpoch": "kerasmtl.training",
    "Checkpoint": "kerasmtl.training",
    "Plan": "kerasmtl.training",
    "RateCurve": "kerasmtl.training",
    "ScaledUpdates": "kerasmtl.training",
    "Stage": "kerasmtl.training",
    "TrainableGuard": "kerasmtl.training",
    "WarmupCosine": "kerasmtl.training",
    "WeightAverage": "kerasmtl.training",
    "cache_features": "kerasmtl.training",
    "depth_factors": "kerasmtl.training",
    "find_learning_rate": "kerasmtl.training",
    "fine_tune": "kerasmtl.training",
    "forget_run": "kerasmtl.training",
    "freeze": "kerasmtl.training",
    "make_plan": "kerasmtl.training",
    "plan_for": "kerasmtl.training",
    "save_model": "kerasmtl.training",
    "split_model": "kerasmtl.training",
    "unfreeze": "kerasmtl.training",
    "variable_groups": "kerasmtl.training",
    "evaluate": "kerasmtl.evaluation",
    "Report": "kerasmtl.report",
    "export_saved_model": "kerasmtl.export",
    "fit_decisions": "kerasmtl.export",
    "fit_temperatures": "kerasmtl.export",
    "fit_thresholds": "kerasmtl.export",
    "ConvertedModel": "kerasmtl.formats.runtimes",
    "convert_model": "kerasmtl.formats.convert",
    "Project": "kerasmtl.project",
    "quiet_tensorflow": "kerasmtl.quiet",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from kerasmtl.augmentation import default_augmentation
    from kerasmtl.backbones import image_size, load_backbone
    from kerasmtl.backbones.hub import HubLayer
    from kerasmtl.backbones.inspection import inspect
    from kerasmtl.backbones.mlp import mlp_backbone
    from kerasmtl.balancing import (
        FAMO,
        DynamicWeightAverage,
        RandomWeighting,
        UncertaintyWeighting,
    )
    from kerasmtl.counts import (
        effective_number,
        inverse_known_count,
        mean_known,
        pos_weight,
    )
    from kerasmtl.defaults import default_losses, default_metrics
    from kerasmtl.evaluation import evaluate
    from kerasmtl.export import (
        export_saved_model,
        fit_decisions,
        fit_temperatures,
        fit_thresholds,
    )
    from kerasmtl.formats.convert import convert_model
    from kerasmtl.formats.runtimes import ConvertedModel
    from kerasmtl.losses import (
        AssumeNegative,
        AsymmetricLoss,
        ExpectedPositives,
        HillLoss,
        LargeLoss,
        LargeLossSchedule,
        MaskedBinaryCrossentropy,
        MaskedCategoricalCrossentropy,
        MaskedHuber,
        MaskedMeanAbsoluteError,
        MaskedMeanSquaredError,
        PartialBinaryCrossentropy,
    )
    from kerasmtl.manifest import Manifest
    from kerasmtl.masking import with_known
    from kerasmtl.metrics import (
        MaskedAUC,
        MaskedAveragePrecision,
        MaskedBinaryAccuracy,
        MaskedBrier,
        MaskedCategoricalAccuracy,
        MaskedECE,
        MaskedF1,
        MaskedMAE,
        MaskedPrecisionAtRecall,
        MaskedR2,
        MaskedRMSE,
    )
    from kerasmtl.model import build_model, load_model
    from kerasmtl.pipeline import make_dataset
    from kerasmtl.project import Project
    from kerasmtl.quiet import quiet_tensorflow
    from kerasmtl.report import Report
    from kerasmtl.table import Table
    from kerasmtl.table_pipeline import make_table_dataset
    from kerasmtl.tasks import Task
    from kerasmtl.training import (
        BestEpoch,
        Checkpoint,
        Plan,
        RateCurve,
        ScaledUpdates,
        Stage,
        TrainableGuard,
        WarmupCosine,
        WeightAverage,
        cache_features,
        depth_factors,
        find_learning_rate,
        fine_tune,
        forget_run,
        freeze,
        make_plan,
        plan_for,
        save_model,
        split_model,
        unfreeze,
        variable_groups,
    )


register_when_keras_is_imported()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kerasmtl' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
