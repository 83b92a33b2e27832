"""Streaming metrics over known labels, for `model.compile(metrics=…)`."""

from kerasmtl.metrics.base import MaskedMetric
from kerasmtl.metrics.calibration import MaskedBrier, MaskedECE
from kerasmtl.metrics.defaults import for_tasks
from kerasmtl.metrics.ranking import MaskedAUC, MaskedAveragePrecision, MaskedPrecisionAtRecall
from kerasmtl.metrics.regression import MaskedMAE, MaskedR2, MaskedRMSE
from kerasmtl.metrics.thresholded import MaskedBinaryAccuracy, MaskedCategoricalAccuracy, MaskedF1

__all__ = [
    "MaskedAUC",
    "MaskedAveragePrecision",
    "MaskedBinaryAccuracy",
    "MaskedBrier",
    "MaskedCategoricalAccuracy",
    "MaskedECE",
    "MaskedF1",
    "MaskedMAE",
    "MaskedMetric",
    "MaskedPrecisionAtRecall",
    "MaskedR2",
    "MaskedRMSE",
    "for_tasks",
]
