"""Plans: which stages, in which order; and which plan fits how much data."""

from __future__ import annotations

import inspect
import math
import numbers
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras

from kerasmtl.models.backbones import backbone_layers, backbones_in
from kerasmtl.models.layer_groups import freeze, unfreeze
from kerasmtl.training.optimizers import WarmupCosine

# Known labels of the median task, and weights of the backbone for each known label of all tasks;
# from benchmarks/plans.py, and street photographs with 70 labels a task, on which the head alone
# was 0.005 better.
LITTLE = 80
HEAD_ALONE = 20_000
LAST_ALONE = 5_000


def typical(known: Sequence[int]) -> int:
    """Return the known labels of the median task."""
    return int(statistics.median(known))


def choose_depth(known: Sequence[int], parameters: int) -> tuple[str, str]:
    """Return the name of the plan that fits, and why.

    Args:
        known: of each task, how many rows of the train part have a label.
        parameters: weights of the backbone, 1 or more.
    """
    share = parameters / max(sum(known), 1)
    if typical(known) < LITTLE:
        return (
            "head",
            f"below {LITTLE} labels nothing shows whether more would help",
        )
    if share > HEAD_ALONE:
        return "head", f"above {HEAD_ALONE:,} the backbone would overfit them"
    if share > LAST_ALONE:
        return "last-layers", f"above {LAST_ALONE:,} the last layers are enough"
    return "gradual", "enough to train everything, from the last layers on"


def advice(known: Sequence[int]) -> str:
    """Say what `choose_depth` does with these labels, for whatever backbone.

    Args:
        known: of each task, how many rows of the train part have a label.
    """
    if typical(known) < LITTLE:
        return (
            f'plan="auto" trains the head alone: the median task has {typical(known)} known labels '
            f"in the train part, below {LITTLE}."
        )
    total = sum(known)
    return (
        f'plan="auto" trains the head, and then everything if the backbone has at most '
        f"{LAST_ALONE * total:,} weights, or its last layers if at most {HEAD_ALONE * total:,}; "
        f"the train part has {total:,} known labels."
    )


SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class Stage:
    """A stretch of training: the head alone, the last groups of the backbone as well, or all.

    A stage is two plain lines of Keras, `kt.freeze(model)` or `kt.unfreeze(model, …)` and
    `model.compile(…)`, and a `model.fit` of its own; `fine_tune` carries over what those lose.

    Args:
        train: "head" (what is outside of the backbone), "all", or the last groups of the backbone
            as in `unfreeze(last=…)`: a number of them (2) or a share (0.3).
        epochs: at most that many.
        learning_rate: of the head, and of the backbone if `backbone_decay` is 1.
        patience: stop the stage after that many epochs without a better value of the monitor.
        match: with "all", only groups that match, as in `unfreeze(match=…)`.
        normalization: train batch normalization as well, as in `unfreeze`.
        backbone_decay: the update of the group nearest the head is multiplied by it, that of the
            next by its square, and so on towards the input.
        warmup: epochs in which the rate rises linearly from 0.
        schedule: "constant", or "cosine", which falls to 0 at the end of the stage.

    Raises:
        ValueError: an argument out of range, or two that contradict each other.
    """

    train: Literal["head", "all"] | int | float
    epochs: int
    learning_rate: float
    patience: int | None = None
    match: str | None = None
    normalization: bool = False
    backbone_decay: float = 1.0
    warmup: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"

    def __post_init__(self) -> None:
        _check_train(self.train)
        check_count("epochs", self.epochs)
        if not _is_number(self.learning_rate) or not 0.0 < self.learning_rate < math.inf:
            raise ValueError(
                "`learning_rate` is not positive. Expected a finite number above 0, such as "
                f"Stage({self.train!r}, {self.epochs}, 0.001). Received: {self.learning_rate!r}"
            )
        if self.patience is not None:
            check_count("patience", self.patience, ", or None")
        if self.match is not None:
            _check_match(self.match)
        if self.match is not None and self.train != "all":
            raise ValueError(
                f"`match` chooses among all groups. Expected train='all'. Received: {self.train!r}"
            )
        if not isinstance(self.normalization, bool):
            raise ValueError(
                "`normalization` is no switch. Expected True or False. Received: "
                f"{self.normalization!r}"
            )
        if not _is_number(self.backbone_decay) or not 0.0 < self.backbone_decay <= 1.0:
            raise ValueError(
                "`backbone_decay` is no factor. Expected a number above 0 and up to 1. Received: "
                f"{self.backbone_decay!r}"
            )
        if not _is_number(self.warmup) or not 0.0 <= self.warmup <= self.epochs:
            raise ValueError(
                f"`warmup` is out of range. Expected 0 to {self.epochs} epochs, those of the "
                f"stage. Received: {self.warmup!r}"
            )
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"`schedule` is unknown. Expected one of {SCHEDULES}. Received: {self.schedule!r}"
            )

    def apply(self, model: keras.Model) -> None:
        """Freeze and unfreeze as the stage wants it; compile the model afterwards.

        Raises:
            ValueError: a backbone is needed and there is none, no group matches, or nothing is
                left to train.
        """
        if self.train == "head":
            backbone_layers(model)  # raises if there is none to freeze
            freeze(model)
        elif self.train != "all" or self.match is not None or backbones_in(model):
            backbone_layers(model)
            last = None if self.train == "all" else self.train
            unfreeze(model, last, self.match, self.normalization)  # type: ignore[arg-type]
        if not model.trainable_variables:
            raise ValueError(
                f"`plan` has a stage that trains nothing: {self}. Expected weights outside of the "
                "backbone, or a stage that trains some of it."
            )

    def steady(self) -> bool:
        """Whether the rate stays the same over all of the stage."""
        return self.schedule == "constant" and not self.warmup

    def rate(self, steps_per_epoch: int, begin: int = 0) -> WarmupCosine:
        """The schedule of the stage, whose first step is the optimizer's step `begin`."""
        warm = round(self.warmup * steps_per_epoch)
        rest = max(self.epochs * steps_per_epoch - warm, 1)
        decay = rest if self.schedule == "cosine" else None
        return WarmupCosine(self.learning_rate, warm, decay, begin=begin)


def check_count(name: str, value: Any, other: str = "") -> None:
    """Raise ValueError if this is no whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(
            f"`{name}` is too small, or no whole number. Expected a whole number from 1{other}. "
            f"Received: {value!r}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check_match(match: Any) -> None:
    if not isinstance(match, str):
        raise ValueError(
            f"`match` is no text. Expected a regular expression, such as match='block5'. "
            f"Received: {match!r}"
        )
    try:
        re.compile(match)
    except re.error as error:
        raise ValueError(
            f"`match` is no regular expression ({error}). Expected one, such as "
            f"match={re.escape(match)!r} for this very text. Received: {match!r}"
        ) from error


def _check_train(train: Any) -> None:
    if train in ("head", "all") and isinstance(train, str):
        return
    if isinstance(train, bool) or not isinstance(train, numbers.Real):
        raise ValueError(
            "`train` is unknown. Expected 'head' or 'all', a number of groups or a share of them. "
            f"Received: {train!r}"
        )
    whole = isinstance(train, numbers.Integral)
    if not train > 0 or (not whole and train > 1):
        raise ValueError(
            "`train` is no number of groups. Expected a whole number from 1, or a share such as "
            f"0.3. Received: {train!r}"
        )


def trained_by(model: keras.Model, stages: Sequence[Stage]) -> list[Any]:
    """The variables that any of the stages trains; the model is left as in the first stage.

    Those of the last stage come first, in the order of `model.trainable_variables`: where it trains
    them all, a saved model finds its optimizer's state again.

    Raises:
        ValueError: as in `Stage.apply`, before anything is trained.
    """
    found: dict[int, Any] = {}
    for stage in reversed(stages):
        stage.apply(model)
        for variable in model.trainable_variables:
            found.setdefault(id(variable), variable)
    return list(found.values())


PLANS = ("head", "last-layers", "full", "gradual")

LAST_LAYERS = 0.3  # of the groups of a backbone
BACKBONE_DECAY = 0.9  # by group
PATIENCE = 5


@dataclass(frozen=True)
class Plan(Sequence[Stage]):
    """Stages in their order, under a name; `why` says what it was chosen for.

    Raises:
        ValueError: no stages, or something else among them.
    """

    name: str
    stages: tuple[Stage, ...]
    why: str = ""

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("`plan` is empty. Expected at least one Stage.")
        for stage in self.stages:
            if not isinstance(stage, Stage):
                raise ValueError(f"`plan` holds what is no Stage. Received: {stage!r}")

    def __len__(self) -> int:
        return len(self.stages)

    def __getitem__(self, index: Any) -> Any:
        return self.stages[index]

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    @property
    def epochs(self) -> int:
        """The epochs of all stages, if none ends early."""
        return sum(stage.epochs for stage in self.stages)

    def __str__(self) -> str:
        shown = "; ".join(
            f"{meaning(stage)}, {counted(stage.epochs, 'epoch')} at {stage.learning_rate:g}"
            for stage in self
        )
        return f"Plan {self.name!r}: {shown}." + (f"\n{self.why}" if self.why else "")


def counted(number: int, what: str) -> str:
    """Write 1 epoch, 2 epochs."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def meaning(stage: Stage) -> str:
    """Say in words what a stage trains."""
    if stage.match is not None:
        return f"what matches {stage.match!r}"
    if isinstance(stage.train, str):
        return {"head": "the head", "all": "everything"}[stage.train]
    if isinstance(stage.train, float):
        return f"the head and the last {stage.train:.0%} of the backbone"
    return f"the head and the last {stage.train} groups of the backbone"


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
    """A plan by its name.

    "head": the new layers alone. "last-layers": then the last 30% of the backbone's groups as well.
    "full": then everything. "gradual": then the last 30%, then everything, which share `epochs`;
    a single one is everything's.
    A stage that trains some of the backbone warms up over its first epoch, in which the statistics
    of the optimizer form for what it has not trained before, and falls along a cosine.

    Args:
        name: of the plan.
        head_epochs: of the first stage.
        epochs: of the stages after it together.
        learning_rate: of the first stage.
        fine_learning_rate: of the stages after it.
        patience: of each stage; needs validation data.
        normalization, backbone_decay: of the stages after the first, as in `Stage`.

    Raises:
        ValueError: an unknown name, or numbers that `Stage` does not take.
    """
    if name not in PLANS:
        raise ValueError(f"`name` is no plan. Expected one of {PLANS}. Received: {name!r}")
    head = Stage("head", head_epochs, learning_rate, patience)
    if name != "head":
        check_count("epochs", epochs)

    def fine(train: Any, count: int) -> Stage:
        return Stage(
            train,
            count,
            fine_learning_rate,
            patience,
            normalization=normalization,
            backbone_decay=backbone_decay,
            warmup=min(1.0, count / 2),
            schedule="cosine",
        )

    if name == "head":
        return Plan(name, (head,))
    if name == "last-layers":
        return Plan(name, (head, fine(LAST_LAYERS, epochs)))
    if name == "full":
        return Plan(name, (head, fine("all", epochs)))
    if epochs == 1:
        return Plan(name, (head, fine("all", 1)))
    first = max(1, epochs // 3)
    return Plan(name, (head, fine(LAST_LAYERS, first), fine("all", epochs - first)))


def choose_plan(
    examples: int,
    known: Sequence[int],
    parameters: int,
    patience: int | None = PATIENCE,
    **settings: Any,
) -> Plan:
    """The plan that fits the data: little, the head alone; more, the last layers; much, all.

    Args:
        examples: rows of the training data.
        known: of each task, how many rows have a label.
        parameters: weights of the backbone; 0 if the model has none, and is trained as a whole.
        patience: of its stages; None without validation data.
        settings: of the plan, as in `make_plan`. Without a backbone there is one stage, of the
            epochs of all stages together, at the `learning_rate` of the first.

    Raises:
        ValueError: no examples, or no task.
        TypeError: a setting of another name.
    """
    defaults = _defaults()
    for setting in settings:
        if setting not in defaults:
            raise TypeError(
                f"`{setting}` is no setting of a plan. Expected one of {tuple(defaults)}. "
                f"Received: {setting}={settings[setting]!r}"
            )
    if examples < 1 or not known:
        raise ValueError(
            "`train` is empty. Expected examples with labels. Received: "
            f"{examples} examples, {len(known)} tasks"
        )
    if parameters == 0:
        stage = _alone(patience, **{**defaults, **settings})
        return Plan("all", (stage,), f"{examples:,} examples, and no backbone to keep frozen.")
    name, reason = choose_depth(known, parameters)
    counts = (
        f"{examples:,} examples, {typical(known):,} known labels in the median task, "
        f"{parameters / max(sum(known), 1):,.3g} weights of the backbone to a label"
    )
    made = make_plan(name, patience=patience, **settings)
    return Plan(name, made.stages, f"{counts}: {reason}.")


def _defaults() -> dict[str, Any]:
    parameters = inspect.signature(make_plan).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ("name", "patience")}


def _alone(
    patience: int | None, head_epochs: Any, epochs: Any, learning_rate: float, **others: Any
) -> Stage:
    """The stage of a model that is trained as a whole; the others are about a backbone."""
    check_count("head_epochs", head_epochs)
    check_count("epochs", epochs)
    count = head_epochs + epochs
    warmup = min(1.0, count / 2)
    return Stage("all", count, learning_rate, patience, warmup=warmup, schedule="cosine")


def as_plan(plan: Any) -> Plan:
    """A name, a Plan or stages, as a Plan.

    Raises:
        ValueError: an unknown name, or no stages.
    """
    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, str):
        if plan not in PLANS:
            raise ValueError(
                f"`plan` is unknown. Expected 'auto', one of {PLANS}, a Plan or stages. "
                f"Received: {plan!r}"
            )
        return make_plan(plan)
    if isinstance(plan, Stage) or not hasattr(plan, "__iter__"):
        raise ValueError(f"`plan` is no list of stages. Expected [Stage(…), …]. Received: {plan!r}")
    return Plan("own", tuple(plan))


def backbone_parameters(model: keras.Model) -> int:
    """How many weights the backbones of a model have; 0 if there is none, or none for pictures.

    Dense layers over rows of numbers, such as `mlp_backbone`, were never trained on anything else:
    there is nothing in them to keep.
    """
    return sum(part.count_params() for part in backbones_in(model) if not _takes_rows(part))


def _takes_rows(part: Any) -> bool:
    shape = getattr(part, "input_shape", None) if isinstance(part, keras.Model) else None
    return isinstance(shape, tuple) and len(shape) == 2
