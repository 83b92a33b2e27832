"""The rows, the network and the features of a project, as its train.py has them."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import keras
import numpy as np

from kerasmtl.data.manifest import Manifest
from kerasmtl.models.build import build_model
from kerasmtl.models.mlp import columns
from kerasmtl.tasks import Task
from kerasmtl.training.auto import encoded_views, features_of

if TYPE_CHECKING:
    from kerasmtl.project import Project

MOST_TEST = 5000  # rows that comparisons are scored on


def network(project: Project, train: Manifest) -> keras.Model:
    """Return the network of a project, not compiled: that of `build` in its model.py.

    Without such a file it is that of the templates: the frozen backbone (of a table the encoded
    columns) and the head of project.toml.
    """
    file = project.folder / "model.py"
    if file.is_file():
        spec = importlib.util.spec_from_file_location("kerasmtl_model_of_project", file)
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        return module.build(project, train)
    of, pretrained = project.model, project.input.has_backbone
    backbone = project.load_backbone() if pretrained else columns(train.values)
    size = project.image_size if pretrained else None
    return build_model(backbone, train.tasks, size, project.hidden, of.dropout, labels=train.labels)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a project by part, and their features, which are computed once and kept.

    Attributes:
        project: whose rows they are.
        train, val, test: the parts of train.py; of more than `MOST_TEST` test rows as many.
    """

    project: Project
    train: Manifest
    val: Manifest
    test: Manifest

    @classmethod
    def of(cls, project: Project) -> Rows:
        """Divide the rows of a project.

        Raises:
            ValueError: as `Manifest.from_csv` and `Manifest.split`.
        """
        train, val, test = project.manifest().split(seed=project.training.seed)
        if len(test) > MOST_TEST:
            drawn = np.random.default_rng(0).permutation(len(test))[:MOST_TEST]
            test = test.take(np.sort(drawn))
        return cls(project, train, val, test)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of all parts."""
        return self.train.tasks

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels of the rows to learn from, train and validation, (rows, tasks)."""
        return np.concatenate([self.train.labels, self.val.labels])

    @cached_property
    def groups(self) -> np.ndarray | None:
        """What belongs together among the rows to learn from, (rows,), or None."""
        if self.train.groups is None:
            return None
        return np.concatenate([self.train.groups, self.val.groups]).astype(str)

    @cached_property
    def model(self) -> keras.Model:
        """The network of the project, its backbone frozen."""
        return network(self.project, self.train)

    @cached_property
    def _encoding(self) -> keras.Model | None:
        """What encodes the columns of a table; None of other kinds."""
        return None if self.project.input.has_backbone else columns(self.train.values)

    @cached_property
    def features(self) -> np.ndarray:
        """Features of the rows to learn from, (rows, columns) float32.

        Those of the frozen backbone, from the cache that training uses; of tables the columns, as
        `kt.backbones.columns` encodes them.

        Raises:
            ValueError: the network has no frozen part.
        """
        return np.concatenate([self._features_of(part) for part in (self.train, self.val)])

    @cached_property
    def test_features(self) -> np.ndarray:
        """Features of the test rows, (rows, columns) float32."""
        return self._features_of(self.test)

    def _features_of(self, part: Manifest) -> np.ndarray:
        """Return the features of a part."""
        if self._encoding is not None:
            return np.asarray(self._encoding(part.values))
        return features_of(self.model, part, self.project.dataset(part, self.model))

    @property
    def views(self) -> dict[str, slice] | None:
        """The ways to see the features of a table; None of a backbone's."""
        return encoded_views(self._encoding) if self._encoding is not None else None

    @cached_property
    def sha256(self) -> str:
        """The hash of features, labels, groups and tasks: of what a result depends on."""
        groups = None if self.groups is None else self.groups.tolist()
        whole = hashlib.sha256(repr((self.tasks, len(self.train), groups)).encode())
        for array in (self.features, self.test_features, self.labels, self.test.labels):
            whole.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return whole.hexdigest()


def with_backbone(rows: Rows, handle: str) -> Rows:
    """Return the same rows for another backbone, whose pin and range of pixels are not known."""
    changes = {"backbone": handle, "backbone_sha256": None, "input_range": None}
    model = rows.project.model.model_copy(update=changes)
    return replace(rows, project=rows.project.model_copy(update={"model": model}))
