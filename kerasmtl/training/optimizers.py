"""A learning rate for each depth: an optimizer whose updates are scaled by variable."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasmtl.models.hub_layer import HubLayer
from kerasmtl.models.layer_groups import backbones_of, groups_of


@keras.saving.register_keras_serializable(package="kerasmtl")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises in a line and then falls along half a cosine.

    With `s = max(step - begin, 0)`, W = `warmup_steps`, D = `decay_steps`, f = `final`:
    `rate · (s + 1) / W` while s < W, then with `t = min((s - W) / D, 1)`
    `rate · (f + (1 - f) (1 + cos πt) / 2)`; without `decay_steps` constantly `rate`.

    Shapes: a step is a whole number of batches, the rate a float32 scalar. Batches whose labels are
    all missing are steps like others.

    The warm-up is that of Goyal et al. 2017, section 2.2 (https://arxiv.org/abs/1706.02677), from
    rate / W, since a first step of 0 would be lost; the cosine that of Loshchilov & Hutter 2017,
    equation 5, without restarts (https://arxiv.org/abs/1608.03983).

    Args:
        learning_rate: the highest rate.
        warmup_steps: steps until it is reached; 0, for none.
        decay_steps: steps from there to the end of the cosine; None for a constant rate.
        final: the share of the rate that is left at the end, from 0 to 1.
        begin: the step at which this schedule starts, for an optimizer that has been used before;
            before it the rate is that of its first step.

    Raises:
        ValueError: a rate that is not positive, steps that are not whole or below 0 (`decay_steps`:
            below 1), or a share outside [0, 1].
    """

    def __init__(
        self,
        learning_rate: float,
        warmup_steps: int = 0,
        decay_steps: int | None = None,
        final: float = 0.0,
        begin: int = 0,
    ) -> None:
        super().__init__()
        self.rate = positive_number("learning_rate", learning_rate)
        self.warmup_steps = _steps("warmup_steps", warmup_steps, 0)
        self.decay_steps = None if decay_steps is None else _steps("decay_steps", decay_steps, 1)
        if isinstance(final, bool) or not 0.0 <= final <= 1.0:
            raise ValueError(f"`final` is no share. Expected 0 to 1. Received: {final!r}")
        self.final = float(final)
        self.begin = _steps("begin", begin, 0)

    def __call__(self, step: Any) -> Any:
        # Subtracted as whole numbers: float32 cannot tell steps beyond 2^24 apart.
        passed = ops.cast(step, "int64") - self.begin
        passed = ops.cast(ops.maximum(passed, 0), "float32")
        share = self._cosine(passed)
        if self.warmup_steps:
            rising = (passed + 1.0) / float(self.warmup_steps)
            share = ops.where(passed < self.warmup_steps, rising, share)
        return self.rate * share

    def _cosine(self, passed: Any) -> Any:
        if self.decay_steps is None:
            return ops.ones_like(passed)
        done = ops.clip((passed - self.warmup_steps) / float(self.decay_steps), 0.0, 1.0)
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + ops.cos(math.pi * done))

    def get_config(self) -> dict[str, Any]:
        return {
            "learning_rate": self.rate,
            "warmup_steps": self.warmup_steps,
            "decay_steps": self.decay_steps,
            "final": self.final,
            "begin": self.begin,
        }


def positive_number(name: str, value: Any) -> float:
    """A finite number above 0, of Python, NumPy or Keras; ValueError otherwise."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not (number > 0 and math.isfinite(number)):
        raise ValueError(f"`{name}` is not positive. Expected a finite number. Received: {value!r}")
    return number


def _steps(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(
            f"`{name}` is no number of steps. Expected a whole number from {least}. "
            f"Received: {value!r}"
        )
    return int(value)


Schedule = keras.optimizers.schedules.LearningRateSchedule


class _RateOf(Schedule):
    """The rate of the optimizer around: it alone is set, and its variables stay the same ones."""

    def __init__(self, owner: LayerwiseDecay) -> None:
        self.owner = owner

    def __call__(self, step: Any) -> Any:
        return self.owner.learning_rate

    def get_config(self) -> dict[str, Any]:
        return {}


@keras.saving.register_keras_serializable(package="kerasmtl", name="ScaledUpdates")
class LayerwiseDecay(keras.optimizers.Optimizer):
    """Any Keras optimizer, with the learning rate of each variable multiplied by its factor.

    `w ← w - factor(w) · (η · direction(w) + η · weight_decay · w)`: the update is scaled, weight
    decay with it, not the gradient, since Adam and its like divide a factor of the gradient out
    again. With all factors 1 the weights are those of the wrapped optimizer, bit for bit.
    Clipping, gradient accumulation and moving averages of the weights (`use_ema`) work as they do
    without. Where the rate is in the slots, as in the momentum of SGD, a new factor acts from the
    next gradient on, as a new rate does.

    A learning rate that is a number may be set at any time, as callbacks do. `set_rate` goes from a
    number to a schedule and back between `compile`s, and the optimizer's variables stay what they
    are; Keras' own refuse the second and lose one by the first. So one instance lasts through
    several `compile`s: build it over all variables that will ever be trained, and it updates those
    that are trainable. (A model file holds its slots, but `load_model` builds an optimizer for what
    is trainable in the file alone: if that is less, Keras warns and starts with empty slots.)

    Shapes: as in the wrapped optimizer. Missing labels: as the loss has them.
    Under mixed float16, `keras.optimizers.LossScaleOptimizer` goes around it. Howard & Ruder 2018,
    section 3.2, discriminative fine-tuning (https://arxiv.org/abs/1801.06146).

    Args:
        inner_optimizer: a new Keras optimizer, of which this one has another of the same settings
            (`self.inner_optimizer`). Not Adafactor with `relative_step`, whose step ignores the
            rate, nor Muon with weight decay of its own.
        factors: by the `path` of a variable; 1 for others. Fixed in a graph when it is traced: call
            `compile` after setting them.

    Raises:
        ValueError: no optimizer, one that wraps another, was built already, or has a function for
            its rate; factors that are not positive; a path that several variables share.
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        factors: Mapping[str, float] | None = None,
        name: str = "scaled_updates",
    ) -> None:
        rate = _rate_of(_checked(inner_optimizer))
        scheduled = isinstance(rate, Schedule)
        super().__init__(float(rate(0)) if scheduled else rate, name=name)
        # Made anew: setting the rate of one that is there removes a variable from a list that
        # TensorFlow then refuses to export.
        config = {**inner_optimizer.get_config(), "learning_rate": _RateOf(self)}
        inner = type(inner_optimizer).from_config(config)
        # What the wrapped one would do for all variables alike is done here, by variable.
        self.weight_decay, inner.weight_decay = inner.weight_decay, None
        self.loss_scale_factor, inner.loss_scale_factor = inner.loss_scale_factor, None
        self._schedule: Schedule | None = rate if scheduled else None
        self._plain_step = inner.update_step
        inner.update_step = self._scaled_step
        # What was excluded before is in no config.
        self._given_decays = inner_optimizer._use_weight_decay
        self.inner_optimizer = inner
        self._by_index: tuple[float, ...] = ()
        self.factors = factors or {}

    @property
    def factors(self) -> dict[str, float]:
        """The factors by path."""
        return dict(self._factors)

    @factors.setter
    def factors(self, value: Mapping[str, float]) -> None:
        checked = {path: positive_number(f"factors[{path!r}]", f) for path, f in value.items()}
        if self.built:
            self._by_index = _in_order(checked, self._built_for.values())
        # Keras would take a plain dictionary apart to look for variables of its own.
        self._factors = MappingProxyType(checked)

    @property
    def learning_rate(self) -> Any:
        """The rate now: a variable, or what the schedule makes of `steps`."""
        return super().learning_rate if self._schedule is None else self._schedule(self.steps)

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        # A step that was traced holds the schedule, or the variable, that there was then.
        if self._schedule is not None:
            raise TypeError(
                f"`learning_rate` follows a schedule, {type(self._schedule).__name__}, which a "
                "step that was compiled keeps. Expected no other rate while it does: in a stage "
                "warmup=0 and schedule='constant', or set_rate(…) and then compile. "
                f"Received: {value!r}"
            )
        if callable(value) and not isinstance(value, keras.Variable):
            raise TypeError(
                "`learning_rate` is a number, which a step that was compiled keeps. Expected "
                f"another number, or set_rate(…) and then compile. Received: {value!r}"
            )
        super().learning_rate.assign(value)

    def set_rate(self, rate: Any) -> None:
        """Another number or schedule, between `fit`s: call `compile` after it.

        Raises:
            ValueError: neither a positive number nor a schedule.
        """
        if isinstance(rate, Schedule):
            self._schedule = rate
            return
        super().learning_rate.assign(positive_number("rate", rate))
        self._schedule = None

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
        return super().variables + self.inner_optimizer.variables

    def build(self, variables: Sequence[Any]) -> None:
        """Make the slots of all variables that will be trained; a second call changes nothing.

        Raises:
            ValueError: a path with a factor belongs to several of them.
        """
        if self.built:
            return
        variables = list(variables)
        self._by_index = _in_order(self._factors, variables)
        self._built_for = MappingProxyType(dict(enumerate(variables)))
        self.inner_optimizer.build(variables)
        super().build(variables)

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """One step for these variables, by default all that it was built for."""
        if not len(grads):
            return
        if not self.built and trainable_variables is not None:
            self.build(trainable_variables)
        if self.loss_scale_factor is not None:
            grads = [g if g is None else g / self.loss_scale_factor for g in grads]
        self.inner_optimizer.apply(grads, trainable_variables)
        self.steps.assign_add(1)

    def _scaled_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        inner = self.inner_optimizer
        # The one way from what `update_step` receives to its variable, also on several replicas;
        # the docstring of keras.Optimizer shows it to those who write optimizers.
        factor = self._by_index[inner._get_variable_index(variable)]
        rate = learning_rate if factor == 1.0 else learning_rate * factor
        if self.weight_decay is not None and self._decays(variable):
            decay = keras.ops.cast(self.weight_decay, variable.dtype)
            share = keras.ops.cast(rate, variable.dtype)
            variable.assign_sub(variable * decay * share)
        self._plain_step(gradient, variable, rate)

    def _decays(self, variable: Any) -> bool:
        return self._given_decays(variable) and self.inner_optimizer._use_weight_decay(variable)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """As in Keras; before `build`."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """With `use_ema`, the averages replace the values of these variables and of no others."""
        if not self.inner_optimizer.use_ema:
            return
        # Keras pairs the list with the averages of all by position.
        wanted = {id(variable) for variable in var_list}
        built_for = list(self._built_for.values())
        kept = [(v, np.array(v.numpy())) for v in built_for if id(v) not in wanted]
        self.inner_optimizer.finalize_variable_values(built_for)
        for variable, value in kept:
            variable.assign(value)

    def get_config(self) -> dict[str, Any]:
        inner = keras.saving.serialize_keras_object(self.inner_optimizer)
        rate = self._schedule
        inner["config"].update(
            learning_rate=float(super().learning_rate.numpy())
            if rate is None
            else keras.saving.serialize_keras_object(rate),
            weight_decay=self.weight_decay,
            loss_scale_factor=self.loss_scale_factor,
        )
        return {"inner_optimizer": inner, "factors": self.factors, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> LayerwiseDecay:
        inner = keras.saving.deserialize_keras_object(config["inner_optimizer"], custom_objects)
        return cls(**{**config, "inner_optimizer": inner})


def layerwise_factors(target: keras.Model | HubLayer, decay: float) -> dict[str, float]:
    """The factors of a backbone's weights by depth, for `LayerwiseDecay`.

    `decay ** n` for the n-th group from the output, n = 1, 2, …; heads and other layers outside of
    the backbone are not in it, and so have 1. Groups are those of `layer_groups`. With several
    backbones each counts from its own output. Layer-wise decay as in Clark et al. 2020, appendix
    A (https://arxiv.org/abs/2003.10555).

    Args:
        target: as for `layer_groups`.
        decay: above 0, at most 1; 1 gives each variable 1.

    Returns:
        Factors by the variables' paths.

    Raises:
        ValueError: a decay out of range.
    """
    if positive_number("decay", decay) > 1.0:
        raise ValueError(f"`decay` is too large. Expected at most 1. Received: {decay!r}")
    factors: dict[str, float] = {}
    for part in backbones_of(target):
        for distance, group in enumerate(reversed(groups_of(part)), start=1):
            factors |= {v.path: float(decay) ** distance for v in group.variables}
    return factors


def _checked(optimizer: Any) -> keras.optimizers.Optimizer:
    base = keras.optimizers.Optimizer
    if not isinstance(optimizer, base) or type(optimizer).update_step is base.update_step:
        raise ValueError(
            "`inner_optimizer` has no step of its own. Expected a Keras optimizer that wraps no "
            f"other, such as keras.optimizers.Adam(1e-3). Received: {optimizer!r}"
        )
    if optimizer.built:
        raise ValueError(
            "`inner_optimizer` was built already. Expected a new one: "
            "type(optimizer).from_config(optimizer.get_config()). "
            f"Received: {optimizer.name!r}"
        )
    return optimizer


def _rate_of(optimizer: keras.optimizers.Optimizer) -> Any:
    rate = optimizer.get_config()["learning_rate"]
    if isinstance(rate, dict):
        rate = keras.saving.deserialize_keras_object(rate)
    if not isinstance(rate, float | Schedule):
        raise ValueError(
            "`inner_optimizer` has a function for its learning rate. Expected a number or a "
            f"LearningRateSchedule. Received: {rate!r}"
        )
    return rate


def _in_order(factors: Mapping[str, float], variables: Iterable[Any]) -> tuple[float, ...]:
    paths = [variable.path for variable in variables]
    shared = sorted({path for path in paths if path in factors and paths.count(path) > 1})
    if shared:
        raise ValueError(
            f"`factors` names {shared[0]!r}, which is the path of several variables. "
            "Expected layers with names of their own: rename one."
        )
    return tuple(factors.get(path, 1.0) for path in paths)
