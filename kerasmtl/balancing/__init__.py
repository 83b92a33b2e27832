"""Balancers: how much each task counts, learnt while the model is.

A balancer is given to the loss, `MaskedBinaryCrossentropy(balancer=UncertaintyWeighting(tasks=4))`,
and needs nothing else: no callback, no layer, no other `fit`. Weights that stay are `task_weights`.

- It weighs the gradient of each task. The value of the loss stays that without a balancer, so that
  curves, early stopping and models compare, whatever the weights are by then.
- It steps when the gradient is taken, hence in training and not in `evaluate`, at a rate of its
  own, since Keras' optimizers know nothing of a loss' variables. So their momentum, weight decay
  and loss scale cannot move a task that is absent.
- Its state is a part of its config: Keras writes it into the .keras file with the compiled loss,
  and `get_compile_config` copies it. Files of weights alone do not hold it, those of
  `save_weights`, `ModelCheckpoint(save_weights_only=True)` and `BackupAndRestore`: after these it
  starts anew.
- It serves one loss, of one (batch, tasks) output. Between outputs of several kinds weigh with
  `Task(weight=…)` or `loss_weights`.
"""

from kerasmtl.balancing.base import Balancer
from kerasmtl.balancing.by_step import RandomWeighting, UncertaintyWeighting
from kerasmtl.balancing.by_window import FAMO, DynamicWeightAverage

__all__ = ["FAMO", "Balancer", "DynamicWeightAverage", "RandomWeighting", "UncertaintyWeighting"]
