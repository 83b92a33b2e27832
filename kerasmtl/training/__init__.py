"""Training in stages: first the new head, then the backbone at a lower rate."""

from kerasmtl.training.checkpoint import Checkpoint
from kerasmtl.training.freezing import freeze, unfreeze, variable_groups
from kerasmtl.training.stages import Stage, fine_tune

__all__ = ["Checkpoint", "Stage", "fine_tune", "freeze", "unfreeze", "variable_groups"]
