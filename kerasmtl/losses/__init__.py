"""Losses that a missing label cannot touch, and policies for labels not missing at random."""

from kerasmtl.losses.asymmetric import AsymmetricLoss, HillLoss
from kerasmtl.losses.binary import MaskedBinaryCrossentropy
from kerasmtl.losses.kinds import (
    MaskedCategoricalCrossentropy,
    MaskedHuber,
    MaskedMeanAbsoluteError,
    MaskedMeanSquaredError,
)
from kerasmtl.losses.large_loss import LargeLoss, LargeLossSchedule
from kerasmtl.losses.partial import AssumeNegative, ExpectedPositives, PartialBinaryCrossentropy

__all__ = [
    "AssumeNegative",
    "AsymmetricLoss",
    "ExpectedPositives",
    "HillLoss",
    "LargeLoss",
    "LargeLossSchedule",
    "MaskedBinaryCrossentropy",
    "MaskedCategoricalCrossentropy",
    "MaskedHuber",
    "MaskedMeanAbsoluteError",
    "MaskedMeanSquaredError",
    "PartialBinaryCrossentropy",
]
