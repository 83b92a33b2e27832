"""Training in stages: first the new head, then, with more data, the backbone as well."""

from kerasmtl.training.averaging import WeightAverage
from kerasmtl.training.best_epoch import BestEpoch
from kerasmtl.training.checkpoint import Checkpoint, save_model
from kerasmtl.training.feature_cache import cache_features
from kerasmtl.training.features import split_model
from kerasmtl.training.finder import RateCurve, find_learning_rate
from kerasmtl.training.fine_tuning import fine_tune, plan_for
from kerasmtl.training.freezing import freeze, unfreeze, variable_groups
from kerasmtl.training.guards import LossNotFinite, TrainableGuard
from kerasmtl.training.plans import Plan, choose_plan, make_plan
from kerasmtl.training.rates import ScaledUpdates, depth_factors
from kerasmtl.training.schedules import WarmupCosine
from kerasmtl.training.stages import Stage
from kerasmtl.training.state import forget_run

__all__ = [
    "BestEpoch",
    "Checkpoint",
    "LossNotFinite",
    "Plan",
    "RateCurve",
    "ScaledUpdates",
    "Stage",
    "TrainableGuard",
    "WarmupCosine",
    "WeightAverage",
    "cache_features",
    "choose_plan",
    "depth_factors",
    "find_learning_rate",
    "fine_tune",
    "forget_run",
    "freeze",
    "make_plan",
    "plan_for",
    "save_model",
    "split_model",
    "unfreeze",
    "variable_groups",
]
