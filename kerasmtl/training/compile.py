"""One optimizer for all stages, and the compiling of a model as it was compiled before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from kerasmtl.losses import MaskedBinaryCrossentropy
from kerasmtl.metrics import MaskedAUC, MaskedBinaryAccuracy
from kerasmtl.training.optimizers import LayerwiseDecay, layerwise_factors
from kerasmtl.training.plans import Stage

LossScale = keras.optimizers.LossScaleOptimizer


class Compilation:
    """A model's loss, metrics and optimizer, kept while what is trained changes.

    The optimizer is made once, over all variables that any stage trains, so that its slots last.
    Its kind and settings are those that the model was compiled with; by default Adam,
    `MaskedBinaryCrossentropy`, `MaskedAUC` and `MaskedBinaryAccuracy`. It is wrapped in
    `LayerwiseDecay` if a stage has a schedule or a decay by depth.

    Raises:
        ValueError: an optimizer that averages weights itself.
    """

    def __init__(self, model: keras.Model, stages: Sequence[Stage]) -> None:
        self.model = model
        self._config = model.get_compile_config() if model.compiled else {}
        self.loss = model.loss if model.compiled else MaskedBinaryCrossentropy()
        before = model.optimizer if model.compiled else keras.optimizers.Adam()
        own = _scaled_in(before)
        self._factors = own.factors if own is not None else {}
        scaled = any(not s.steady() or s.backbone_decay != 1.0 for s in stages)
        with model.distribute_strategy.scope():
            self.optimizer = _fresh(before, stages[0].learning_rate, scaled)

    def build(self, variables: Sequence[Any]) -> None:
        """Compile the model once, and make the optimizer's slots for all that will be trained."""
        self.compile(self.model)
        self.optimizer = self.model.optimizer  # Keras wraps it under mixed float16
        with self.model.distribute_strategy.scope():
            self.optimizer.build(list(variables))

    def compile(self, target: keras.Model, **changes: Any) -> None:
        """Compile a model, or its head, with this optimizer and loss, and metrics of its own."""
        config = {**self._config, "optimizer": self.optimizer, "loss": self.loss, **changes}
        for key in ("metrics", "weighted_metrics"):
            if config.get(key):
                config[key] = keras.saving.deserialize_keras_object(config[key])
        if not self._config:
            config["metrics"] = [MaskedAUC(), MaskedBinaryAccuracy()]
        target.compile(**config)

    def set_rate(
        self, stage: Stage, steps_per_epoch: int | None, begin: int, anew: bool = True
    ) -> None:
        """The learning rate of a stage that began at that step of the optimizer.

        A stage that goes on (not `anew`) keeps a constant rate as a callback may have set it.

        Raises:
            ValueError: a schedule, and data of unknown length.
        """
        scaled = _scaled_in(self.optimizer)
        if scaled is not None:
            depth = layerwise_factors(self.model, stage.backbone_decay)
            scaled.factors = {
                **self._factors,
                **{path: self._factors.get(path, 1.0) * factor for path, factor in depth.items()},
            }
        if stage.steady():
            if anew and scaled is not None:
                scaled.set_rate(stage.learning_rate)
            elif anew:
                self.optimizer.learning_rate = stage.learning_rate
            return
        if steps_per_epoch is None:
            raise ValueError(
                "`train` has an unknown number of batches, on which a warm-up and a cosine depend. "
                "Expected train.apply(tf.data.experimental.assert_cardinality(…)), or stages with "
                "warmup=0 and schedule='constant'."
            )
        assert scaled is not None  # as a stage with a schedule makes it
        scaled.set_rate(stage.rate(steps_per_epoch, begin))

    def steps(self) -> int:
        """How many steps the optimizer has made."""
        scaled = _scaled_in(self.optimizer)
        return int((scaled.steps if scaled is not None else self.optimizer.iterations).numpy())

    def variables_of_loss(self) -> list[keras.Variable]:
        """What the losses remember: the state of balancers, and thresholds."""
        found: dict[int, keras.Variable] = {}
        _collect(self.loss, found, set())
        return list(found.values())


def _collect(value: Any, found: dict[int, keras.Variable], seen: set[int]) -> None:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, keras.Variable):
        found[id(value)] = value
    elif isinstance(value, dict):
        for inner in value.values():
            _collect(inner, found, seen)
    elif isinstance(value, list | tuple):
        for inner in value:
            _collect(inner, found, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type | keras.layers.Layer):
        if hasattr(value, "get_config"):  # a loss, or a part of one
            _collect(vars(value), found, seen)


def _scaled_in(optimizer: Any) -> LayerwiseDecay | None:
    if isinstance(optimizer, LossScale):
        optimizer = optimizer.inner_optimizer
    return optimizer if isinstance(optimizer, LayerwiseDecay) else None


def _fresh(optimizer: Any, rate: float, scaled: bool) -> Any:
    """An optimizer of the same kind and settings, with no steps behind it."""
    if isinstance(optimizer, LossScale):
        config = optimizer.get_config()
        inner = _fresh(optimizer.inner_optimizer, rate, scaled)
        return LossScale(inner, **{k: v for k, v in config.items() if k != "inner_optimizer"})
    if isinstance(optimizer, LayerwiseDecay):
        inner = optimizer.get_config()["inner_optimizer"]
        inner["config"]["learning_rate"] = float(rate)
        return LayerwiseDecay(keras.saving.deserialize_keras_object(inner), name=optimizer.name)
    config = {**optimizer.get_config(), "learning_rate": float(rate)}
    if config.get("use_ema"):
        raise ValueError(
            "`model` has an optimizer with use_ema, whose averages Keras pairs with what is "
            "trained at the end. Expected use_ema=False, and fine_tune(ema=0.99)."
        )
    made = type(optimizer).from_config(config)
    return LayerwiseDecay(made) if scaled else made
