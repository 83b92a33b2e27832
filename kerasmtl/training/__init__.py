"""Training in stages: first the new head, then the backbone at a lower rate."""

from kerasmtl.training.checkpoint import Checkpoint
from kerasmtl.training.fine_tuning import fine_tune
from kerasmtl.training.freezing import freeze, unfreeze, variable_groups
from kerasmtl.training.guards import LossNotFinite, TrainableGuard
from kerasmtl.training.plans import Plan, choose_plan, make_plan
from kerasmtl.training.stages import Stage

__all__ = [
    "Checkpoint",
    "LossNotFinite",
    "Plan",
    "Stage",
    "TrainableGuard",
    "choose_plan",
    "fine_tune",
    "freeze",
    "make_plan",
    "unfreeze",
    "variable_groups",
]
