"""Plans: which stages, in which order; and which plan fits how much data."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from kerasmtl.backbones import backbones_in
from kerasmtl.depth import choose_depth, typical
from kerasmtl.training.stages import Stage, check_count

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
