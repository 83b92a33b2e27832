"""How far a run of stages has come: what has to be known to go on with it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from kerasmtl.training.plans import Plan


@dataclass
class Progress:
    """Counters of a run: `epoch` epochs are finished, of which the stage's begin at `began`.

    `began_step` is the optimizer's step at which the stage began; ranks are those of `Monitor`.
    """

    stage: int = 0
    epoch: int = 0
    began: int = 0
    began_step: int = 0
    stage_rank: float | None = None
    waited: int = 0
    best_rank: float | None = None
    best_epoch: int | None = None
    stopped: bool = False
    finished: bool = False
    monitor: str | None = None
    history: dict[str, list[float]] = field(default_factory=dict)
    epochs: list[int] = field(default_factory=list)

    def record(self, rank: float | None) -> bool:
        """Count a finished epoch; True if it is the best of all stages so far."""
        self.epoch += 1
        better_in_stage = rank is not None and (self.stage_rank is None or rank > self.stage_rank)
        self.stage_rank = rank if better_in_stage else self.stage_rank
        self.waited = 0 if better_in_stage else self.waited + 1
        best = rank is not None and (self.best_rank is None or rank > self.best_rank)
        if best:
            self.best_rank, self.best_epoch = rank, self.epoch
        return best

    def out_of_patience(self, plan: Plan) -> bool:
        """Whether the stage has waited for something better as long as it may."""
        patience = plan[self.stage].patience
        return patience is not None and self.waited >= patience

    def stage_over(self, plan: Plan) -> bool:
        """Whether the stage has had all its epochs or its patience."""
        return self.epoch - self.began >= plan[self.stage].epochs or self.out_of_patience(plan)

    def next_stage(self, step: int) -> None:
        """The next stage begins, at that step of the optimizer."""
        self.stage, self.began, self.began_step = self.stage + 1, self.epoch, step
        self.stage_rank, self.waited = None, 0

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), default=float)

    @classmethod
    def from_json(cls, text: str) -> Progress:
        values: dict[str, Any] = json.loads(text)
        return cls(**values)
