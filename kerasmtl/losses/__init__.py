"""Losses that ignore missing labels, task balancers, and weights from label counts."""

from kerasmtl.losses.asymmetric import AsymmetricLoss, HillLoss
from kerasmtl.losses.balancing import (
    FAMO,
    Balancer,
    DynamicWeightAverage,
    RandomWeighting,
    UncertaintyWeighting,
)
from kerasmtl.losses.binary import MaskedBinaryCrossentropy
from kerasmtl.losses.defaults import for_tasks
from kerasmtl.losses.large_loss import LargeLoss
from kerasmtl.losses.multiclass_regression import (
    MaskedCategoricalCrossentropy,
    MaskedHuber,
    MaskedMeanAbsoluteError,
    MaskedMeanSquaredError,
)
from kerasmtl.losses.partial import AssumeNegative, ExpectedPositives, PartialBinaryCrossentropy
from kerasmtl.losses.weights import effective_number, inverse_known_count, mean_known, pos_weight

__all__ = [
    "FAMO",
    "AssumeNegative",
    "AsymmetricLoss",
    "Balancer",
    "DynamicWeightAverage",
    "ExpectedPositives",
    "HillLoss",
    "LargeLoss",
    "MaskedBinaryCrossentropy",
    "MaskedCategoricalCrossentropy",
    "MaskedHuber",
    "MaskedMeanAbsoluteError",
    "MaskedMeanSquaredError",
    "PartialBinaryCrossentropy",
    "RandomWeighting",
    "UncertaintyWeighting",
    "effective_number",
    "for_tasks",
    "inverse_known_count",
    "mean_known",
    "pos_weight",
]
