"""Stages of a training, plans made of them, and the plan that fits how much data.

A `Stage` is one `compile` and one `fit`; a `Plan` is a sequence of them with a name. `make_plan`
has the usual ones, `plan_for` chooses among them by `depth.choose_depth`. `fine_tune` and
`resume.Resume` take them, `Project.plan` makes one; everything a stage does is in its methods
`prepare`, `optimizer` and `data`, so that a custom loop needs nothing else.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import keras
import numpy as np
import pandas as pd

from kerasmtl.data.dataset import source_of
from kerasmtl.models.backbones import backbone_layers, backbones_in
from kerasmtl.models.layer_groups import freeze, unfreeze
from kerasmtl.training.depth import choose_depth, typical
from kerasmtl.training.feature_cache import cached_head
from kerasmtl.training.optimizers import layerwise_factors, optimizer_like
from kerasmtl.utils.validation import check_choice, check_count, check_number

SCHEDULES = ("constant", "cosine")
PLANS = ("head", "last-layers", "full", "gradual")
LAST_LAYERS = 0.3  # share of a backbone's groups that "last-layers" trains
BACKBONE_DECAY = 0.9  # per group
PATIENCE = 5
ENOUGH = 16  # batches of features, from which on several may run in one call of the graph
MOST_STEPS = 64  # of them in one call, during which Ctrl-C waits

CosineDecay = keras.optimizers.schedules.CosineDecay
Cache = Literal["auto"] | bool


@dataclass(frozen=True)
class Stage:
    """A part of a training: what is trained, for how long, and at which learning rate.

    Keras fixes what is trained when a model is compiled. A stage therefore is
    `stage.prepare(model)` (`kt.freeze` or `kt.unfreeze`),
    `model.compile(stage.optimizer(model, steps), …)` and `model.fit(…, epochs=stage.epochs)`;
    `kt.fine_tune` is a loop over stages.

    Args:
        train: "head" (what is outside of the backbone), "all", or the last groups of the backbone
            as in `kt.unfreeze(last=…)`: a number of them (2) or a share (0.3).
        epochs: at most that many.
        learning_rate: of the head, and of the backbone if `backbone_decay` is 1.
        patience: stop the stage after that many epochs in which `kt.callbacks.BestEpoch` has seen
            nothing better; None never stops it.
        normalization: train batch normalization as well, as in `kt.unfreeze`; that of a table's
            dense layers always is.
        backbone_decay: the update of the group nearest the head is multiplied by it, that of the
            next by its square, and so on towards the input (`kt.optimizers.LayerwiseDecay`).
        warmup: epochs in which the learning rate rises in a line.
        schedule: "constant", or "cosine", which falls to 0 at the end of the stage.

    Raises:
        ValueError: an argument out of range, or two that contradict each other.

    Example:
        >>> import keras
        >>> import kerasmtl as kt
        >>> backbone = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
        >>> model = kt.build_model(backbone, ["cat", "dog"])
        >>> stage = kt.plans.Stage("head", epochs=3, learning_rate=1e-3)
        >>> stage.prepare(model)
        >>> model.compile(stage.optimizer(model), kt.losses.MaskedBinaryCrossentropy())
        >>> len(model.trainable_variables)
        2
    """

    train: Literal["head", "all"] | int | float
    epochs: int
    learning_rate: float
    patience: int | None = None
    normalization: bool = False
    backbone_decay: float = 1.0
    warmup: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"

    def __post_init__(self) -> None:
        """Check the arguments, so that a wrong stage fails before any training."""
        if isinstance(self.train, str):
            check_choice("train", self.train, ("head", "all"))
        elif isinstance(self.train, Integral):
            check_count("train", self.train)
        else:
            check_number("train", self.train, 0.0, 1.0, open_low=True)
        check_count("epochs", self.epochs)
        check_number("learning_rate", self.learning_rate, 0.0, open_low=True)
        if self.patience is not None:
            check_count("patience", self.patience)
        check_number("backbone_decay", self.backbone_decay, 0.0, 1.0, open_low=True)
        check_number("warmup", self.warmup, 0.0, self.epochs)
        check_choice("schedule", self.schedule, SCHEDULES)

    def __str__(self) -> str:
        """Say what the stage trains."""
        if isinstance(self.train, str):
            return {"head": "the head", "all": "everything"}[self.train]
        if isinstance(self.train, float):
            return f"the head and the last {self.train:.0%} of the backbone"
        return f"the head and the last {self.train} groups of the backbone"

    def prepare(self, model: keras.Model) -> None:
        """Freeze and unfreeze as the stage wants it; compile the model afterwards.

        Args:
            model: as `kt.build_model` makes it; with "all", one without a backbone is left as it
                is.

        Raises:
            ValueError: the model has no backbone, no group matches, or nothing is left to train.
        """
        if self.train == "head":
            backbone_layers(model)  # raises if there is none to freeze
            freeze(model)
        elif self.train != "all" or backbones_in(model):
            backbone_layers(model)
            last = None if isinstance(self.train, str) else self.train
            # Where nothing was pretrained, as for tables, there are no statistics to keep.
            normalization = self.normalization or not backbone_parameters(model)
            unfreeze(model, last, normalization=normalization)
        if not model.trainable_variables:
            raise ValueError(
                f"`plan` must have stages that train something, got {self!r}, for which the model "
                "has no weights outside of the backbone"
            )

    def optimizer(
        self,
        model: keras.Model,
        steps_per_epoch: int | None = None,
        like: keras.optimizers.Optimizer | None = None,
    ) -> keras.optimizers.Optimizer:
        """Return a new optimizer with the learning rates of the stage.

        Args:
            model: whose backbone's groups `backbone_decay` slows down.
            steps_per_epoch: batches per epoch, `len(data)`; a warm-up and a cosine need it.
            like: an optimizer whose kind and settings it has; by default Adam.

        Returns:
            An optimizer that is not built, made in the scope of the model's distribution strategy.

        Raises:
            ValueError: `steps_per_epoch` is not known, and the stage has a schedule.
        """
        depth = self.backbone_decay != 1.0
        factors = layerwise_factors(model, self.backbone_decay) if depth else {}
        with model.distribute_strategy.scope():
            like = like or keras.optimizers.Adam()
            return optimizer_like(like, self.rate(steps_per_epoch), factors)

    def rate(self, steps_per_epoch: int | None) -> float | CosineDecay:
        """Return the learning rate, or the schedule of a stage that has one.

        A warm-up rises in a line to `learning_rate`, over `warmup` epochs; the cosine falls over
        the batches that are left.

        Args:
            steps_per_epoch: batches per epoch; None if that is not known.

        Raises:
            ValueError: it is not known, and the stage has a schedule.
        """
        if self.schedule == "constant" and not self.warmup:
            return float(self.learning_rate)
        if steps_per_epoch is None:
            raise ValueError(
                f"`train` must have a known number of batches for {self!r}. Expected "
                "train.apply(tf.data.experimental.assert_cardinality(…)), or stages with warmup=0 "
                "and schedule='constant'."
            )
        warm = round(self.warmup * steps_per_epoch)
        rest = max(self.epochs * steps_per_epoch - warm, 1)
        end = 0.0 if self.schedule == "cosine" else 1.0  # a share of the highest rate
        if not warm:
            return CosineDecay(self.learning_rate, rest, alpha=end)
        # From 1 / warm of the rate: a first step at a rate of 0 would be lost.
        first = self.learning_rate / warm
        return CosineDecay(
            first, rest, alpha=end, warmup_target=self.learning_rate, warmup_steps=warm
        )

    def data(
        self,
        model: keras.Model,
        train: Any,
        validation: Any = None,
        cache: Cache = "auto",
        verbose: bool = True,
    ) -> tuple[keras.Model, dict[str, Any]]:
        """Return what to fit in this stage: a model, and its data.

        A stage of the head has its own: the head as a model, which shares its layers with the whole
        one and is compiled as that is, and the frozen backbone's features, computed once. Several
        batches may run in one call of its graph (`steps_per_execution`). Other stages have the
        whole model and the data as they are.

        Args:
            model: compiled for this stage.
            train, validation: batches of (inputs, labels).
            cache: "auto" where features can be cached, else prints why not; True raises where they
                cannot; False never.
            verbose: whether to say what is computed, or why nothing is.

        Returns:
            The model; and arguments of its `fit`: "x", "validation_data" (None if there is none)
            and "steps_per_epoch".

        Raises:
            ValueError: `cache` is True, and the features cannot be cached.
        """
        check_choice("cache", cache, ("auto", True, False))
        whole = {"x": train, "validation_data": validation, "steps_per_epoch": None}
        if self.train != "head" or cache is False:
            return model, whole
        try:
            head, data = cached_head(model, train, validation, verbose, any_code=cache is True)
        except (ValueError, OSError) as error:  # not possible, or the disk is full
            if cache is True:
                raise
            if verbose:
                print(f"Features are not cached: {error}", flush=True)
            return model, whole
        # A call takes longer than a batch, but to trace one of several takes as long as a hundred.
        # It must not cross the end of an epoch: its size divides the number of batches.
        count = data["steps_per_epoch"] or len(data["x"])
        sizes = range(1, MOST_STEPS + 1) if count >= ENOUGH else [1]
        steps = max(size for size in sizes if count % size == 0)
        # XLA would take longer to compile so small a model than the model to train.
        compile_like(head, model, model.optimizer, jit_compile=False, steps_per_execution=steps)
        return head, data


def compile_like(
    target: keras.Model, model: keras.Model, optimizer: keras.optimizers.Optimizer, **changes: Any
) -> None:
    """Compile a model as another one, or itself, is compiled, with an optimizer.

    The loss is the same object, which may remember something; metrics are new ones.

    Args:
        target: is compiled.
        model: compiled; its configuration is taken.
        optimizer: of the target, in place of the model's.
        changes: further arguments of `compile`, which replace the model's.
    """
    config = model.get_compile_config()
    for key in ("metrics", "weighted_metrics"):
        config[key] = keras.saving.deserialize_keras_object(config[key])
    # The loss itself, not a copy from its config: a balancer's weights are learned over all stages.
    # New metrics, so that two models do not count into the same ones.
    target.compile(**{**config, "optimizer": optimizer, "loss": model.loss, **changes})


@dataclass(frozen=True)
class Plan(Sequence[Stage]):
    """Stages in their order, under a name; `why` says what it was chosen for.

    A plan without stages is that of a head that needs no more training (`kt.features.fit_head`).

    Raises:
        ValueError: something else among the stages.

    Example:
        >>> import kerasmtl as kt
        >>> plan = kt.plans.Plan(
        ...     "mine", (kt.plans.Stage("head", 5, 1e-3), kt.plans.Stage(2, 10, 1e-4)))
        >>> print(plan)
        Plan 'mine': the head, 5 epochs at 0.001; the head and the last 2 groups of the backbone,
        10 epochs at 0.0001.
    """

    name: str
    stages: tuple[Stage, ...]
    why: str = ""

    def __post_init__(self) -> None:
        if not all(isinstance(stage, Stage) for stage in self.stages):
            raise ValueError(f"`plan` must be stages, got {self.stages!r}")

    def __len__(self) -> int:
        return len(self.stages)

    def __getitem__(self, index: Any) -> Any:
        return self.stages[index]

    @property
    def epochs(self) -> int:
        """The epochs of all stages, if none ends early."""
        return sum(stage.epochs for stage in self.stages)

    def __str__(self) -> str:
        """Show the plan as people read it; with `why` on a line of its own."""
        shown = "; ".join(
            f"{stage}, {counted(stage.epochs, 'epoch')} at {stage.learning_rate:g}"
            for stage in self
        )
        shown = shown or "the head, chosen by folds, and nothing after it"
        return f"Plan {self.name!r}: {shown}." + (f"\n{self.why}" if self.why else "")

    def _repr_html_(self) -> str:
        rows = [[str(stage), stage.epochs, stage.learning_rate] for stage in self]
        table = pd.DataFrame(rows, columns=["train", "epochs", "learning rate"]).to_html(
            index=False
        )
        return f"<p>Plan {html.escape(repr(self.name))}. {html.escape(self.why)}</p>{table}"


def counted(number: int, what: str) -> str:
    """Return "1 epoch", "2 epochs"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def make_plan(
    name: str,
    head_epochs: int = 20,
    epochs: int = 20,
    learning_rate: float = 1e-3,
    fine_learning_rate: float = 1e-4,
    patience: int | None = None,
    normalization: bool = False,
    backbone_decay: float = BACKBONE_DECAY,
) -> Plan:
    """Return the plan of a name.

    "head": the new layers alone. "last-layers": then the last 30 % of the backbone's groups as
    well. "full": then everything. "gradual": then the last 30 %, then everything, which share
    `epochs`; a single one is everything's.
    A stage that trains some of the backbone warms up over its first epoch, in which the statistics
    of its new optimizer form, and falls along a cosine.

    Args:
        name: "head", "last-layers", "full" or "gradual".
        head_epochs: of the first stage.
        epochs: of the stages after it together.
        learning_rate: of the first stage.
        fine_learning_rate: of the stages after it.
        patience: of each stage; needs validation data.
        normalization, backbone_decay: of the stages after the first, as in `Stage`.

    Returns:
        The plan; its first stage is always the head.

    Raises:
        ValueError: an unknown name, or numbers that `Stage` does not take.

    Example:
        >>> import kerasmtl as kt
        >>> [stage.train for stage in kt.plans.make_plan("gradual")]
        ['head', 0.3, 'all']
    """
    check_choice("name", name, PLANS)
    check_count("epochs", epochs)
    head = Stage("head", head_epochs, learning_rate, patience)

    first = max(1, epochs // 3)
    parts: dict[str, list[tuple[Any, int]]] = {
        "head": [],
        "last-layers": [(LAST_LAYERS, epochs)],
        "full": [("all", epochs)],
        "gradual": [(LAST_LAYERS, first), ("all", epochs - first)],
    }
    if epochs == 1:
        parts["gradual"] = parts["full"]
    fine = {"normalization": normalization, "backbone_decay": backbone_decay, "schedule": "cosine"}
    stages = [
        Stage(train, count, fine_learning_rate, patience, warmup=min(1.0, count / 2), **fine)
        for train, count in parts[name]
    ]
    return Plan(name, (head, *stages))


def choose_plan(
    examples: int,
    known: Sequence[int],
    parameters: int,
    patience: int | None = PATIENCE,
    **settings: Any,
) -> Plan:
    """Return the plan that fits the data: little, the head alone; more, the last layers; much, all.

    Args:
        examples: rows of the training data.
        known: for each task, how many rows have a label.
        parameters: weights of the backbone; 0 if the model has none, and is trained as a whole.
        patience: of its stages; None without validation data.
        settings: of the plan, as in `make_plan`. Without a backbone there is one stage, of the
            epochs of all stages together, at the `learning_rate` of the first.

    Returns:
        The plan, which says in `why` on what numbers the choice rests.

    Raises:
        ValueError: no examples, or no task.
        TypeError: a setting of another name.
    """
    if examples < 1 or not known:
        raise ValueError(
            f"`train` must have examples with labels, got {examples} examples, {len(known)} tasks"
        )
    if parameters == 0:
        parts = make_plan("full", patience=patience, **settings)
        epochs, rate = parts.epochs, parts[0].learning_rate
        warmup = min(1.0, epochs / 2)
        whole = Stage("all", epochs, rate, patience, warmup=warmup, schedule="cosine")
        return Plan("all", (whole,), f"{examples:,} examples, and no backbone to keep frozen.")
    name, reason = choose_depth(known, parameters)
    counts = (
        f"{examples:,} examples, {typical(known):,} known labels in the median task, "
        f"{parameters / max(sum(known), 1):,.3g} weights of the backbone to a label"
    )
    made = make_plan(name, patience=patience, **settings)
    return Plan(name, made.stages, f"{counts}: {reason}.")


def plan_for(model: keras.Model, train: Any, name: str = "auto", **settings: Any) -> Plan:
    """Return the plan of a name; "auto" chooses one by the labels and the backbone, and says why.

    Args:
        model: as `kt.build_model` makes it.
        train: batches of (inputs, labels), NaN = missing, of which the labels are counted.
        name: "auto", or as in `make_plan`.
        settings: as in `make_plan`; with "auto" `patience` is 5 if it is not given.

    Returns:
        The plan. With "auto" the labels are counted, which goes through `train` once unless
        `kt.make_dataset` made it.

    Raises:
        ValueError: an unknown name, or data without labels.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import tensorflow as tf
        >>> import kerasmtl as kt
        >>> data = tf.data.Dataset.from_tensor_slices(
        ...     (np.zeros((9, 8, 8, 3)), np.ones((9, 1)))).batch(3)
        >>> backbone = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
        >>> print(kt.plans.plan_for(kt.build_model(backbone, ["cat"]), data, head_epochs=7))
        Plan 'head': the head, 7 epochs at 0.001.
        9 examples, 9 known labels in the median task, 12.4 weights of the backbone to a label:
        below 80 labels nothing shows whether more would help.
    """
    check_choice("name", name, ("auto", *PLANS))
    if name != "auto":
        return make_plan(name, **settings)
    examples, known = count_labels(train)
    return choose_plan(examples, known, backbone_parameters(model), **settings)


def as_plan(plan: Any) -> Plan:
    """Return a name, a Plan or stages as a Plan.

    Args:
        plan: a name of `make_plan`, a `Plan`, or stages.

    Raises:
        ValueError: an unknown name, or no stages.
    """
    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, str):
        return make_plan(check_choice("plan", plan, PLANS))
    stages = () if isinstance(plan, Stage) or not hasattr(plan, "__iter__") else tuple(plan)
    if not stages:
        raise ValueError(f"`plan` must be a list of stages, [Stage(…), …], got {plan!r}")
    return Plan("own", stages)


def backbone_parameters(model: keras.Model) -> int:
    """Return how many weights the backbones of a model have, those for images and the like.

    Dense layers over rows of numbers, such as `kt.backbones.mlp`, were never trained on anything
    else: there is nothing in them to keep, and they count 0.
    """
    found = backbones_in(model)
    ranks = [[len(each.shape) for each in getattr(part, "inputs", None) or ()] for part in found]
    return sum(p.count_params() for p, rank in zip(found, ranks, strict=True) if rank != [2])


def count_labels(data: Any) -> tuple[int, list[int]]:
    """Return how many rows a data set has, and how many of them have a label, by task.

    Args:
        data: batches of (inputs, labels), labels (batch, columns) or a dict of them, NaN = missing.

    Returns:
        The number of rows, and the known labels of each column.

    Raises:
        ValueError: it is not a tf.data.Dataset of (inputs, labels).
    """
    source = source_of(data)
    if source is not None:
        batches = iter([source.labels])
    elif isinstance(getattr(data, "element_spec", None), tuple):
        batches = data.map(lambda *batch: batch[1]).as_numpy_iterator()
    else:
        raise ValueError(
            "`train` must be a tf.data.Dataset of (inputs, labels) for plan='auto', got "
            f"{type(data).__name__}. Pass another plan, such as 'head'."
        )
    examples, known = 0, np.zeros(1, int)
    for labels in batches:
        arrays = labels.values() if isinstance(labels, dict) else [labels]
        columns = [np.asarray(each, "float64").reshape(len(each), -1) for each in arrays]
        there = ~np.isnan(np.hstack(columns))
        examples, known = examples + len(there), known + there.sum(axis=0)
    return examples, known.tolist()
