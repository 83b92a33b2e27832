"""Learning rates by layer: an optimizer whose updates are scaled per variable.

A stage makes its optimizer with `optimizer_like`, and, if it has a `backbone_decay`, the factors
with `layerwise_factors`. `LayerwiseDecay` is an optimizer around an optimizer: the inner one has
the slots and the update rule, the outer one the learning rate, weight decay, loss scale and the
factors. `WarmupCosine` is there only so that files of version 0.1 load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasmtl.models.hub_layer import HubLayer
from kerasmtl.models.layer_groups import backbones_of, groups_of
from kerasmtl.utils.validation import check_number

Schedule = keras.optimizers.schedules.LearningRateSchedule


class _RateOf(Schedule):
    """Read the rate of the optimizer around, the only one that is ever set."""

    def __init__(self, owner: LayerwiseDecay) -> None:
        self.owner = owner

    def __call__(self, step: Any) -> Any:
        return self.owner.learning_rate

    def get_config(self) -> dict[str, Any]:
        """Return nothing: the inner optimizer is never saved with this schedule."""
        return {}


@keras.saving.register_keras_serializable(package="kerasmtl", name="ScaledUpdates")
class LayerwiseDecay(keras.optimizers.Optimizer):
    """Wrap a Keras optimizer, and multiply the learning rate of each variable by a factor.

    With rate η and factor f of a variable w: `w ← w - f · (η · direction(w) + η · decay · w)`. The
    update is scaled, weight decay with it, and not the gradient, since Adam and its like divide a
    factor of the gradient out again. With all factors 1 the weights are those of the wrapped
    optimizer, bit for bit; clipping, gradient accumulation and `use_ema` work as they do without.
    Under mixed float16, `keras.optimizers.LossScaleOptimizer` goes around it.

    Discriminative fine-tuning: Howard & Ruder 2018, section 3.2 (https://arxiv.org/abs/1801.06146).

    Args:
        inner_optimizer: a new Keras optimizer, of which this one makes another with the same
            settings (`self.inner_optimizer`). Adafactor with `relative_step` ignores the rate and
            is not scaled.
        factors: by the `path` of a variable, above 0; 1 for others.

    Raises:
        ValueError: `inner_optimizer` is not a Keras optimizer, wraps another one, was built
            already, or has a function for its rate; a factor is not positive; or (when it is
            built) a path with a factor belongs to several variables.

    Example:
        >>> import keras
        >>> import kerasmtl as kt
        >>> model = keras.Sequential(
        ...     [keras.Input((2,)), keras.layers.Dense(3, name="deep"), keras.layers.Dense(1)])
        >>> optimizer = kt.optimizers.LayerwiseDecay(
        ...     keras.optimizers.Adam(1e-3), {"deep/kernel": 0.1, "deep/bias": 0.1})
        >>> model.compile(optimizer, "mse")
        >>> optimizer.factors["deep/kernel"]
        0.1
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        factors: Mapping[str, float] | None = None,
        name: str = "scaled_updates",
    ) -> None:
        rate = _checked_rate(inner_optimizer)
        schedule = rate if isinstance(rate, Schedule) else None
        super().__init__(rate if schedule is None else float(schedule(0)), name=name)
        self._schedule = schedule
        config = {**inner_optimizer.get_config(), "learning_rate": _RateOf(self)}
        inner = type(inner_optimizer).from_config(config)
        # What the wrapped one would do for all variables alike is done here, per variable.
        self.weight_decay, inner.weight_decay = inner.weight_decay, None
        self.loss_scale_factor, inner.loss_scale_factor = inner.loss_scale_factor, None
        self._plain_step = inner.update_step
        inner.update_step = self._scaled_step
        # Variables excluded from weight decay before are not in the config.
        self._given_decays = inner_optimizer._use_weight_decay
        self.inner_optimizer = inner
        checked = {
            path: check_number(f"factors[{path!r}]", factor, 0.0, open_low=True)
            for path, factor in (factors or {}).items()
        }
        # Keras would search a plain dictionary for variables of its own.
        self._factors = MappingProxyType(checked)
        self._by_index: tuple[float, ...] = ()

    @property
    def factors(self) -> dict[str, float]:
        """The factors by path of a variable."""
        return dict(self._factors)

    @property
    def learning_rate(self) -> Any:
        """The rate now: a variable, or what the schedule says for `steps`."""
        return super().learning_rate if self._schedule is None else self._schedule(self.steps)

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        # As Keras' own optimizers do: a traced step would keep the schedule it has seen.
        if self._schedule is not None or isinstance(value, Schedule):
            raise TypeError(
                f"`learning_rate` must be a number, and set where no schedule is, got {value!r}. "
                "Pass a schedule to a new optimizer, and compile the model with it."
            )
        super().learning_rate.assign(value)

    @property
    def steps(self) -> Any:
        """Batches so far, which is what a schedule counts."""
        return super().iterations

    @property
    def iterations(self) -> Any:
        """Updates so far; fewer than `steps` with gradient accumulation."""
        return self.inner_optimizer.iterations

    @property
    def variables(self) -> list[Any]:
        """The outer optimizer's variables, then the inner one's; a run's state has this order."""
        return super().variables + self.inner_optimizer.variables

    def build(self, variables: Sequence[Any]) -> None:
        """Make the slots of all variables that will be trained; a second call changes nothing.

        Args:
            variables: those that are trained; `factors` may name others as well, which are ignored.

        Raises:
            ValueError: a path with a factor belongs to several of them.
        """
        if self.built:
            return
        variables = list(variables)
        paths = [variable.path for variable in variables]
        shared = sorted({path for path in paths if path in self._factors and paths.count(path) > 1})
        if shared:
            raise ValueError(
                f"`factors` must name one variable by each path, got {shared[0]!r}, the path of "
                "several. Rename a layer."
            )
        self._by_index = tuple(self._factors.get(path, 1.0) for path in paths)
        self._built_for = MappingProxyType(dict(enumerate(variables)))
        self.inner_optimizer.build(variables)
        super().build(variables)

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """Update these variables once, by default all that the optimizer was built for.

        Args:
            grads: one for each variable, or None where it has none.
            trainable_variables: in the order of `grads`.
        """
        if not len(grads):
            return
        if not self.built and trainable_variables is not None:
            self.build(trainable_variables)
        if self.loss_scale_factor is not None:
            grads = [g if g is None else g / self.loss_scale_factor for g in grads]
        self.inner_optimizer.apply(grads, trainable_variables)
        self.steps.assign_add(1)

    def _scaled_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable, in place of the inner optimizer's `update_step`.

        Args:
            gradient: of the loss with respect to the variable, not scaled.
            variable: as the inner optimizer passes it.
            learning_rate: of this step, before the factor.
        """
        inner = self.inner_optimizer
        # The one way from what `update_step` receives to its variable, also on several replicas;
        # the docstring of keras.Optimizer shows it to those who write optimizers.
        factor = self._by_index[inner._get_variable_index(variable)]
        rate = learning_rate if factor == 1.0 else learning_rate * factor
        # Decoupled decay, as Keras' optimizers apply it: before the update, and not through the
        # slots.
        if self.weight_decay is not None and (
            self._given_decays(variable) and inner._use_weight_decay(variable)
        ):
            decay = ops.cast(self.weight_decay, variable.dtype)
            variable.assign_sub(variable * decay * ops.cast(rate, variable.dtype))
        self._plain_step(gradient, variable, rate)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Exclude variables from weight decay, as in Keras; before `build`."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """With `use_ema`, replace the values of these variables, and of no others, by averages.

        Keras calls it at the end of `fit`.

        Args:
            var_list: variables that this optimizer was built for.
        """
        if not self.inner_optimizer.use_ema:
            return
        # Keras pairs the list with the averages of all variables by position.
        wanted = {id(variable) for variable in var_list}
        built_for = list(self._built_for.values())
        kept = [(v, np.array(v.numpy())) for v in built_for if id(v) not in wanted]
        self.inner_optimizer.finalize_variable_values(built_for)
        for variable, value in kept:
            variable.assign(value)

    def get_config(self) -> dict[str, Any]:
        """Return the settings, the inner optimizer's with what was taken from it put back."""
        inner = keras.saving.serialize_keras_object(self.inner_optimizer)
        inner["config"].update(
            learning_rate=float(super().learning_rate.numpy())
            if self._schedule is None
            else keras.saving.serialize_keras_object(self._schedule),
            weight_decay=self.weight_decay,
            loss_scale_factor=self.loss_scale_factor,
        )
        return {"inner_optimizer": inner, "factors": self.factors, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> LayerwiseDecay:
        """Make an optimizer from its config; it is not built."""
        inner = keras.saving.deserialize_keras_object(config["inner_optimizer"], custom_objects)
        return cls(**{**config, "inner_optimizer": inner})


def _checked_rate(optimizer: Any) -> float | Schedule:
    """Return the learning rate of an optimizer that can be wrapped.

    Returns:
        A number, or a schedule as a new object.

    Raises:
        ValueError: as in `LayerwiseDecay`.
    """
    base = keras.optimizers.Optimizer
    if not isinstance(optimizer, base) or type(optimizer).update_step is base.update_step:
        raise ValueError(
            "`inner_optimizer` must be a Keras optimizer that wraps no other one, such as "
            f"keras.optimizers.Adam(1e-3), got {optimizer!r}"
        )
    if optimizer.built:
        raise ValueError(
            f"`inner_optimizer` must be new, got {optimizer.name!r}, which was built already. Pass "
            "type(optimizer).from_config(optimizer.get_config())."
        )
    rate = optimizer.get_config()["learning_rate"]
    if isinstance(rate, dict):
        rate = keras.saving.deserialize_keras_object(rate)
    if not isinstance(rate, float | Schedule):
        raise ValueError(
            "`inner_optimizer` must have a number or a LearningRateSchedule as its learning rate, "
            f"got {rate!r}"
        )
    return rate


def layerwise_factors(target: keras.Model | HubLayer, decay: float) -> dict[str, float]:
    """Return the factors of a backbone's weights by depth, for `LayerwiseDecay`.

    `decay ** n` for the n-th group from the output, n = 1, 2, …; heads and other layers outside of
    the backbone are not in it, and so have factor 1. Groups are those of
    `kt.backbones.layer_groups`; each of several backbones counts from its own output. Clark et al.
    2020, appendix A (https://arxiv.org/abs/2003.10555).

    Args:
        target: a model with a backbone, or a backbone.
        decay: above 0, at most 1; 1 gives each variable 1.

    Returns:
        Factors by the variables' paths.

    Raises:
        ValueError: a decay out of range.

    Example:
        >>> import keras
        >>> import kerasmtl as kt
        >>> layers = [keras.layers.Dense(3, name=name) for name in ("a", "b")]
        >>> backbone = keras.Sequential([keras.Input((2,)), *layers])
        >>> list(kt.optimizers.layerwise_factors(backbone, 0.5).values())
        [0.5, 0.5, 0.25, 0.25]
    """
    check_number("decay", decay, 0.0, 1.0, open_low=True)
    factors: dict[str, float] = {}
    for part in backbones_of(target):
        for distance, group in enumerate(reversed(groups_of(part)), start=1):
            factors |= {v.path: float(decay) ** distance for v in group.variables}
    return factors


def optimizer_like(
    optimizer: keras.optimizers.Optimizer,
    learning_rate: float | Schedule,
    factors: Mapping[str, float] | None = None,
) -> keras.optimizers.Optimizer:
    """Return a new optimizer of the same kind and settings, with another learning rate.

    Args:
        optimizer: whose kind and settings it has; also one that wraps another.
        learning_rate: its learning rate.
        factors: by path of a variable; if there are any, it is wrapped in `LayerwiseDecay`. They
            replace those of an optimizer that is wrapped already.

    Returns:
        An optimizer that is not built: its slots are new, and its count of steps begins at 0.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        inner = optimizer_like(optimizer.inner_optimizer, learning_rate, factors)
        config = {k: v for k, v in optimizer.get_config().items() if k != "inner_optimizer"}
        return keras.optimizers.LossScaleOptimizer(inner, **config)
    if isinstance(optimizer, LayerwiseDecay):
        config = optimizer.get_config()["inner_optimizer"]
        optimizer = keras.saving.deserialize_keras_object(config)
    config = {**optimizer.get_config(), "learning_rate": learning_rate}
    made = type(optimizer).from_config(config)
    return LayerwiseDecay(made, factors) if factors else made


@keras.saving.register_keras_serializable(package="kerasmtl")
class WarmupCosine(Schedule):
    """The schedule of files that version 0.1 has saved; new ones have Keras' `CosineDecay`.

    With `s = max(step - begin, 0)`, W = `warmup_steps`, D = `decay_steps`, f = `final`:
    `rate · (s + 1) / W` while s < W, then with `t = min((s - W) / D, 1)`
    `rate · (f + (1 - f) (1 + cos πt) / 2)`; without `decay_steps` constantly `rate`.
    """

    def __init__(self, **config: Any) -> None:
        self.config = config

    def __call__(self, step: Any) -> Any:
        rate, warmup = self.config["learning_rate"], self.config["warmup_steps"]
        final, decay = self.config["final"], self.config["decay_steps"]
        # Subtracted as integers: float32 cannot tell steps beyond 2^24 apart.
        passed = ops.maximum(ops.cast(step, "int64") - self.config["begin"], 0)
        passed = ops.cast(passed, "float32")
        done = ops.clip((passed - warmup) / float(decay or 1), 0.0, 1.0) if decay else 0.0 * passed
        share = final + (1.0 - final) * 0.5 * (1.0 + ops.cos(math.pi * done))
        rising = (passed + 1.0) / float(max(warmup, 1))
        return rate * ops.where(passed < warmup, rising, share)

    def get_config(self) -> dict[str, Any]:
        """Return what the file had."""
        return dict(self.config)
