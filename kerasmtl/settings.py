"""The sections of a project.toml, each with its settings and their limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kerasmtl.tasks import KINDS, Task
from kerasmtl.tasks import POLICIES as UNCERTAIN

Pixels = Annotated[int, Field(gt=0)]
Code = str | int | float
Codes = tuple[Code, ...] | Code


class Settings(BaseModel):
    """A section: what it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskSettings(Settings):
    """One of [data] tasks, written {name = "grade", kind = "multiclass"}: see `kerasmtl.Task`."""

    name: str
    kind: Literal[KINDS] = "binary"
    classes: Codes = ()
    weight: float = 1.0
    missing: Codes = ()
    uncertain: Codes = ()
    uncertain_as: Literal[UNCERTAIN] | float = "ignore"

    @model_validator(mode="after")
    def _is_a_task(self) -> TaskSettings:
        self.task()  # whose messages pydantic passes on
        return self

    def task(self) -> Task:
        """The task that it describes."""
        return Task(**self.model_dump())


def _named(task: Any) -> Any:
    return {"name": task} if isinstance(task, str) else task


class DataSettings(Settings):
    """Section [data]: the labels file, and how to read and split it."""

    labels: str
    tasks: list[Annotated[TaskSettings, BeforeValidator(_named)]] = []
    image_column: str = "image"
    split_column: str | None = None
    group_column: str | None = None
    split: Literal["stratified", "hash"] = "stratified"
    allow_outside: bool = False
    on_invalid_image: Literal["error", "skip"] = "error"


class TableSettings(Settings):
    """Section [table]: the labels file is a table of numbers, and these are what to learn from."""

    features: list[str] = []
    ignore: list[str] = []
    id_column: str | None = None
    packed_bits: bool = False


class ModelSettings(Settings):
    """Section [model]: the backbone, and the head on top of it; or the layers, for a table."""

    backbone: str = "tiny"
    backbone_sha256: str | None = Field(None, pattern=r"^[0-9A-Fa-f]{64}$")
    image_size: Literal["auto"] | Pixels | tuple[Pixels, Pixels] = "auto"
    hidden: list[Annotated[int, Field(gt=0)]] = [512]
    dropout: float = Field(0.5, ge=0, lt=1)
    input_dropout: float = Field(0.0, ge=0, lt=1)
    batch_norm: bool = False
    indicators: bool = False


class TrainingSettings(Settings):
    """Section [training]: the head first, then as much more as the plan says, at a lower rate."""

    plan: Literal["auto", "head", "last-layers", "full", "gradual"] = "auto"
    epochs: int = Field(20, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    fine_tune_epochs: int = Field(20, ge=1)
    fine_tune_learning_rate: float = Field(1e-4, gt=0)
    augment: bool = False
    flip: bool = True
    batch_size: int = Field(32, ge=1)
    tracking: Literal["none", "tensorboard", "mlflow"] = "none"
    seed: int = Field(0, ge=0)
