"""A generated project's decisions: project.toml, read and checked."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from kerasmtl.embedded import DATASETS, dataset_csv
from kerasmtl.modules.handles import from_folder
from kerasmtl.tasks import KINDS, Task
from kerasmtl.tasks import POLICIES as UNCERTAIN

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from kerasmtl.backbones import HubLayer
    from kerasmtl.manifest import Manifest
    from kerasmtl.table import Table

FILE = "project.toml"
Pixels = Annotated[int, Field(gt=0)]
Code = str | int | float
Codes = tuple[Code, ...] | Code


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskSettings(_Settings):
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


class DataSettings(_Settings):
    """Section [data]: the labels file, and how to read and split it."""

    labels: str
    tasks: list[str | TaskSettings] = []
    image_column: str = "image"
    split_column: str = "split"
    group_column: str | None = None
    split: Literal["stratified", "hash"] = "stratified"
    allow_outside: bool = False


class TableSettings(_Settings):
    """Section [table]: the labels file is a table of numbers, and these are what to learn from."""

    features: list[str] = []
    ignore: list[str] = []
    id_column: str | None = None
    packed_bits: bool = False


class ModelSettings(_Settings):
    """Section [model]: the backbone, and the head on top of it; or the layers, for a table."""

    backbone: str = "tiny"
    backbone_sha256: str | None = Field(None, pattern=r"^[0-9A-Fa-f]{64}$")
    image_size: Literal["auto"] | Pixels | tuple[Pixels, Pixels] = "auto"
    hidden: list[Annotated[int, Field(gt=0)]] = [512]
    dropout: float = Field(0.5, ge=0, lt=1)
    input_dropout: float = Field(0.0, ge=0, lt=1)
    batch_norm: bool = False
    indicators: bool = False


class TrainingSettings(_Settings):
    """Section [training]: the head alone first, then everything at a lower rate."""

    epochs: int = Field(20, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    fine_tune_epochs: int = Field(0, ge=0)
    fine_tune_learning_rate: float = Field(1e-4, gt=0)
    batch_size: int = Field(32, ge=1)
    seed: int = Field(0, ge=0)


# Settings that only one of the two kinds of projects reads, by section.
_OF_PICTURES = {
    "data": {"image_column", "allow_outside"},
    "model": {"backbone", "backbone_sha256", "image_size"},
    "training": {"fine_tune_epochs", "fine_tune_learning_rate"},
}
_OF_TABLES = {"model": {"input_dropout", "batch_norm", "indicators"}}


class Project(_Settings):
    """A folder with a project.toml.

    `Project.load(folder)` reads it; paths in it start from that folder.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    data: DataSettings
    table: TableSettings | None = None
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    _folder: Path = PrivateAttr(Path("."))

    @model_validator(mode="after")
    def _settings_are_read(self) -> Project:
        other, kind = (
            (_OF_TABLES, "tables, and there is no section [table]")
            if self.table is None
            else (_OF_PICTURES, "pictures, and this project has a section [table]")
        )
        for section, names in other.items():
            unread = sorted(names & getattr(self, section).model_fields_set)
            if unread:
                raise ValueError(f"[{section}] {unread} are for {kind}: leave them out")
        return self

    @classmethod
    def load(cls, folder: str | os.PathLike[str] = ".") -> Project:
        """Read `folder/project.toml`.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is no TOML, or a setting is unknown, absent or wrong; names each.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"`folder` {Path(folder).absolute()} has no {FILE}. Expected a generated project. "
                "Go to its folder, or make one: kerasmtl new multitask-image my_project."
            )
        try:
            project = cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"`{path}` is no TOML. Received: {error}") from None
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}, received "
                f"{fault['input']!r}"
                for fault in error.errors()
            )
            raise ValueError(f"`{path}` has wrong settings. {faults}.") from None
        project._folder = Path(folder).absolute()
        return project

    @property
    def labels_csv(self) -> Path:
        """The labels file; "street_scenes" stands for the embedded example data."""
        if self.data.labels in DATASETS:
            return dataset_csv(self.data.labels)
        return self._folder / Path(self.data.labels).expanduser()

    @property
    def backbone(self) -> str:
        """The backbone's handle; a path in it starts from the project's folder."""
        return from_folder(self.model.backbone, self._folder)

    @property
    def image_size(self) -> int | tuple[int, int] | None:
        """The picture size, or None: what the backbone was made for."""
        return None if self.model.image_size == "auto" else self.model.image_size

    @property
    def checkpoint(self) -> Path:
        """Where training leaves its model."""
        return self._folder / "runs" / "model.keras"

    @property
    def export_folder(self) -> Path:
        """Where the versions of the exported model go."""
        return self._folder / "saved_models" / self.name

    def load_backbone(self, trainable: bool = False) -> keras.Model | HubLayer:
        """The backbone itself, its content checked where `backbone_sha256` pins it.

        Args:
            trainable: whether fitting changes it.

        Raises:
            ValueError: it is unknown or unreachable, cannot be trained, or differs from the pin.
        """
        # Heavy: reading settings must stay quick.
        from kerasmtl.backbones import load_backbone

        return load_backbone(self.backbone, trainable=trainable, sha256=self.model.backbone_sha256)

    def manifest(self) -> Manifest:
        """The labels file, read and checked; a `Table` if there is a section [table]."""
        from kerasmtl.manifest import Manifest

        tasks = [task if isinstance(task, str) else task.task() for task in self.data.tasks]
        if self.table is not None:
            return self._table(self.table, tasks)
        return Manifest.from_csv(
            self.labels_csv,
            tasks=tasks or None,
            image_column=self.data.image_column,
            split_column=self.data.split_column,
            allow_outside=self.data.allow_outside,
            group_column=self.data.group_column,
            split_by=self.data.split,
        )

    def _table(self, table: TableSettings, tasks: list[str | Task]) -> Table:
        from kerasmtl.table import Table

        return Table.load(
            self.labels_csv,
            tasks=tasks or None,
            features=table.features or None,
            ignore=table.ignore,
            split_column=self.data.split_column,
            group_column=self.data.group_column,
            id_column=table.id_column,
            split_by=self.data.split,
            packed_bits=table.packed_bits,
        )

    def dataset(self, rows: Manifest, model: keras.Model) -> tf.data.Dataset:
        """Batches of rows of the manifest as this model takes them, in their order.

        Raises:
            ValueError: the model takes something else than the rows hold.
        """
        from kerasmtl.pipeline import make_dataset
        from kerasmtl.table import Table
        from kerasmtl.table_pipeline import make_table_dataset

        if not isinstance(rows, Table):
            return make_dataset(rows, model.input_shape[1:3], self.training.batch_size)
        if model.input_shape != (None, len(rows.columns)):
            raise ValueError(
                f"`model` does not fit {rows.source}. Expected input (batch, {len(rows.columns)}), "
                f"one number a column. Received: {model.input_shape}. Train again: python train.py"
            )
        return make_table_dataset(rows, self.training.batch_size)
