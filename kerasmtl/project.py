"""A generated project's decisions: project.toml, read and checked."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from kerasmtl.embedded import DATASETS, dataset_csv
from kerasmtl.modules.handles import from_folder

if TYPE_CHECKING:
    import keras

    from kerasmtl.backbones import HubLayer
    from kerasmtl.manifest import Manifest

FILE = "project.toml"
Pixels = Annotated[int, Field(gt=0)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSettings(_Settings):
    """Section [data]: the labels file, and how to read it."""

    labels: str
    tasks: list[str] = []
    image_column: str = "image"
    split_column: str = "split"
    allow_outside: bool = False


class ModelSettings(_Settings):
    """Section [model]: the backbone, and the head on top of it."""

    backbone: str = "tiny"
    backbone_sha256: str | None = Field(None, pattern=r"^[0-9A-Fa-f]{64}$")
    image_size: Literal["auto"] | Pixels | tuple[Pixels, Pixels] = "auto"
    hidden: list[Annotated[int, Field(gt=0)]] = [512]
    dropout: float = Field(0.5, ge=0, lt=1)


class TrainingSettings(_Settings):
    """Section [training]: the head alone first, then everything at a lower rate."""

    epochs: int = Field(20, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    fine_tune_epochs: int = Field(0, ge=0)
    fine_tune_learning_rate: float = Field(1e-4, gt=0)
    batch_size: int = Field(32, ge=1)
    seed: int = Field(0, ge=0)


class Project(_Settings):
    """A folder with a project.toml.

    `Project.load(folder)` reads it; paths in it start from that folder.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    data: DataSettings
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    _folder: Path = PrivateAttr(Path("."))

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
        """The labels file, read and checked."""
        from kerasmtl.manifest import Manifest

        return Manifest.from_csv(
            self.labels_csv,
            tasks=self.data.tasks or None,
            image_column=self.data.image_column,
            split_column=self.data.split_column,
            allow_outside=self.data.allow_outside,
        )
