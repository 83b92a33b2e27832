"""Reads project.toml, the settings of a generated project, and finds its data and models.

A template's train.py and model.py ask a `Project` for manifest, backbone, data sets, plan and run;
the loop of the training stays there. The commands `check`, `evaluate`, `predict`, `export`,
`convert` and `serve` start from the same object: what they say about a model goes by the record of
its run (`Project.trained`, `Project.part`), and not by what project.toml says by now.

pydantic checks the settings, so that a typing error is a message before anything slow begins.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, PlainValidator, ValidationError, model_validator

from kerasmtl.data.inputs import Fault, Image, Input
from kerasmtl.models.hub.embedded import DATASETS, TOY, dataset_csv
from kerasmtl.models.hub.handles import from_folder
from kerasmtl.tasks import Task
from kerasmtl.training.runs import (
    CHECKPOINT,
    HEADS,
    LATEST,
    REPORT,
    Run,
    begin_run,
    last_run,
)
from kerasmtl.utils.files import write_text
from kerasmtl.utils.progress import progress_bar
from kerasmtl.utils.text import shortened, warn

if TYPE_CHECKING:  # Keras and TensorFlow are imported in methods: settings are read without them
    import keras
    import tensorflow as tf

    from kerasmtl.data.manifest import Manifest
    from kerasmtl.evaluation.evaluate import Known
    from kerasmtl.evaluation.report import Report
    from kerasmtl.models.hub_layer import HubLayer
    from kerasmtl.training.heads import FittedHead
    from kerasmtl.training.plans import Plan
    from kerasmtl.training.record import TrainingRecord

Pixels = Annotated[int, Field(gt=0)]
FILE = "project.toml"


class Settings(BaseModel):
    """A section of project.toml; unknown settings are errors."""

    model_config = {"extra": "forbid", "frozen": True, "arbitrary_types_allowed": True}


def _task(value: Any) -> Task:
    """Make a task of a name, or of {name = "grade", kind = "multiclass"}."""
    given = {"name": value} if isinstance(value, str) else value
    known = [field.name for field in fields(Task)]
    if not isinstance(given, dict) or "name" not in given or set(given) - set(known):
        raise ValueError(
            f"must be a name, or a table with a name and more of {known[1:]}, got {value!r}"
        )
    return Task(**given)


def _hidden(value: Any) -> str | list[int]:
    """Return "auto" or widths of layers."""
    widths = isinstance(value, list) and all(type(each) is int and each > 0 for each in value)
    if value != "auto" and not widths:
        raise ValueError(f'must be "auto" or the widths of layers, such as [512], got {value!r}')
    return value


class DataSettings(Settings):
    """Section [data]: the labels file, and how it is read and split."""

    labels: str
    tasks: list[Annotated[Task, PlainValidator(_task)]] = []
    split_column: str = "split"
    group_column: str | None = None
    split: Literal["stratified", "hash"] = "stratified"
    on_invalid_image: Literal["error", "skip"] = "error"


class ModelSettings(Settings):
    """Section [model]: the backbone and the head on top of it, or the layers for a table."""

    backbone: str = "tiny"
    backbone_sha256: str | None = Field(None, pattern=r"^[0-9A-Fa-f]{64}$")
    input_range: tuple[float, float] | None = None
    image_size: Literal["auto"] | Pixels | tuple[Pixels, Pixels] = "auto"
    hidden: Annotated[Any, PlainValidator(_hidden)] = "auto"
    dropout: float = Field(0.5, ge=0, lt=1)
    input_dropout: float = Field(0.0, ge=0, lt=1)
    batch_norm: bool = False
    indicators: bool = False


class TrainingSettings(Settings):
    """Section [training]: first the head, then what the plan says, at a lower rate."""

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


class Project(Settings):
    """A folder with a project.toml; `Project.load(folder)` reads it.

    Paths in it start from that folder. The attributes are its name and its sections.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import kerasmtl as kt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     toml = 'name = "street"\\n[data]\\nlabels = "street_scenes"\\n'
        ...     _ = (Path(folder) / "project.toml").write_text(toml)
        ...     project = kt.Project.load(folder)
        >>> project.model.backbone, project.training.epochs
        ('tiny', 20)
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    data: DataSettings
    input: Annotated[Input, PlainValidator(Input.from_config)] = Image()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    tune: dict[str, list[Any] | dict[str, Any]] = {}  # what `kerasmtl tune` searches
    _folder: Path = Path(".")
    _stand_in: Any = None
    _skipped: list[Fault] = []
    _parts: dict[str, Manifest] | None = None

    @model_validator(mode="after")
    def _settings_are_read(self) -> Project:
        """Refuse settings of another kind of input, which nothing would read."""
        given = self.model.model_fields_set | self.training.model_fields_set
        if wrong := sorted(given & Input.settings_of_others(self.input.kind)):
            raise ValueError(
                f"`{wrong[0]}` must be left out for input of kind {self.input.kind!r}, which has "
                "no such setting"
            )
        return self

    @classmethod
    def load(cls, folder: str | os.PathLike[str] = ".") -> Project:
        """Read `folder/project.toml`.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not TOML, or a setting is unknown, absent or wrong; names each.
        """
        # Not searched for in the folders above: a command in the wrong folder should not use
        # another project.
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"`folder` must have a {FILE}, got {Path(folder).absolute()}. Go to a project's "
                "folder, or make one: kerasmtl new multitask-image my_project."
            )
        try:
            project = cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"`{path}` must be TOML, got: {error}") from None
        except ValidationError as error:
            found = []
            for fault in error.errors():
                said = fault["msg"].removeprefix("Value error, ")
                got = "" if fault["type"] == "value_error" else f", got {fault['input']!r}"
                found.append(f"{'.'.join(map(str, fault['loc']))}: {said}{got}")
            raise ValueError(f"`{path}` must have valid settings: {'; '.join(found)}.") from None
        project._folder = Path(folder).absolute()
        return project

    @classmethod
    @contextmanager
    def script(cls, file: str) -> Iterator[Project]:
        """Load the project that a script is in, and end the script in plain words where it fails.

        An error of wrong input, files or packages is one line instead of a traceback, and Ctrl-C
        says how to resume.

        Args:
            file: of the script: `__file__`.

        Example: see train.py of a generated project.
        """
        try:
            yield cls.load(Path(file).parent)
        except KeyboardInterrupt:
            raise SystemExit(
                f"\nStopped. `python {Path(file).name}` resumes after the last finished epoch. If "
                "there was one, it is in runs/latest/model.keras: kerasmtl evaluate, export and "
                "predict use it."
            ) from None
        except (ValueError, OSError, ImportError, FloatingPointError) as error:
            raise SystemExit(f"Error: {error}") from None

    @property
    def folder(self) -> Path:
        """The folder of project.toml."""
        return self._folder

    def changed(self, settings: Mapping[str, Any], backbone: Any = None) -> Project:
        """Return this project with other settings of [model] and [training]; no file changes.

        Args:
            settings: by name.
            backbone: what `load_backbone` returns then, in place of that of project.toml.

        Raises:
            ValueError: a setting is unknown or wrong.
        """
        parts = {name: getattr(self, name) for name in ("model", "training")}
        own = {
            name: {k: settings[k] for k in settings if hasattr(of, k)} for name, of in parts.items()
        }
        if unknown := sorted(set(settings) - set(own["model"]) - set(own["training"])):
            raise ValueError(f"`settings` must be of [model] or [training], got {unknown[0]!r}")
        made = self.model_copy(
            update={n: type(of)(**{**of.model_dump(), **own[n]}) for n, of in parts.items()}
        )
        made._stand_in = backbone
        return made

    @property
    def labels_csv(self) -> Path:
        """The labels file; "street_scenes" means the embedded example data."""
        if self.data.labels in DATASETS:
            return dataset_csv(self.data.labels)
        return Path(os.path.abspath(self._folder / Path(self.data.labels).expanduser()))

    @property
    def backbone(self) -> str:
        """The backbone's handle; a path in it starts from the project's folder."""
        return from_folder(self.model.backbone, self._folder)

    @property
    def image_size(self) -> int | tuple[int, int] | None:
        """The image size, or None for the one that the backbone was made for."""
        return None if self.model.image_size == "auto" else self.model.image_size

    @property
    def hidden(self) -> list[int]:
        """The widths of the head's dense layers; none with "auto"."""
        return [] if self.model.hidden == "auto" else self.model.hidden

    @property
    def run(self) -> Run:
        """The newest run that has a model; without one, what will be runs/latest."""
        return last_run(self._folder, with_model=True) or Run(self._folder / "runs" / LATEST)

    def run_of(self, name: str | None) -> Run:
        """Return the run of a name, the folder's in runs/; for None the newest with a model.

        Raises:
            FileNotFoundError: no run of that name has a model.
        """
        run = self.run if name is None else Run(self._folder / "runs" / name)
        if name is not None and not run.checkpoint.is_file():
            raise FileNotFoundError(f"`run` must be a folder in runs/ with a model, got {name!r}")
        return run

    @property
    def checkpoint(self) -> Path:
        """The model of the newest run that has one."""
        return self.run.checkpoint

    @property
    def export_folder(self) -> Path:
        """The folder of the versions of the exported model."""
        return self._folder / "saved_models" / self.name

    def load_backbone(self, trainable: bool = False) -> keras.Model | HubLayer:
        """Load the backbone; its content is checked where `backbone_sha256` pins it.

        Args:
            trainable: whether fitting changes it.

        Returns:
            A `HubLayer` of a SavedModel, or a model of keras.applications or KerasHub.

        Raises:
            ValueError: it is unknown or unreachable, cannot be trained, or differs from the pin.
        """
        from kerasmtl.models.backbones import load_backbone

        if self._stand_in is not None:
            return self._stand_in
        return load_backbone(
            self.backbone,
            trainable=trainable,
            sha256=self.model.backbone_sha256,
            input_range=self.model.input_range,
        )

    def manifest(self, trained: TrainingRecord | None = None, every_row: bool = False) -> Manifest:
        """Read and check the labels file.

        With `on_invalid_image = "skip"` every image is read once, and the rows of those that are
        absent or broken are left out, with a warning that counts and names them.

        Args:
            trained: whose tasks, classes and columns are read, by name, instead of those that
                project.toml and the file have now.
            every_row: keep the rows of such images nevertheless.

        Raises:
            FileNotFoundError: the labels file is absent.
            ValueError: a row or a setting is wrong, as `Manifest.from_csv` says it.
        """
        from kerasmtl.data.manifest import Manifest

        read = Manifest.from_csv(
            self.labels_csv,
            tasks=(trained.tasks if trained else self.data.tasks) or None,
            input=self.input.like(trained.input) if trained else self.input,
            split_column=self.data.split_column,
            group_column=self.data.group_column,
            split_by=self.data.split,
        )
        if every_row or self.data.on_invalid_image == "error":
            return read
        with progress_bar(f"checking {read.input.noun}", len(read)) as advance:
            self._skipped = read.faults(advance)
        if not self._skipped:
            return read
        shown = shortened([f"{fault.name} ({fault.reason})" for fault in self._skipped], 3)
        warn(
            f"{len(self._skipped)} of {len(read)} {read.input.noun} cannot be used and are "
            f"skipped: {shown}. `kerasmtl check` lists all."
        )
        lines = {fault.line for fault in self._skipped}
        return read.take([row for row, line in enumerate(read.lines) if line not in lines])

    def start_run(self, train: Manifest, val: Manifest, test: Manifest) -> Run:
        """Open a folder in runs/ for a training on these rows; resume one that was interrupted.

        The folder keeps the tasks, the columns and the rows of this training. `kerasmtl evaluate`,
        `export` and `predict` use them, so that later changes of the labels file or the settings
        cannot mix up the parts. runs/latest points to the folder.

        Args:
            train, val, test: the rows of each part, as `Manifest.split` gives them.

        Raises:
            ValueError: `tracking` needs a package that is not installed, or images are absent.

        Example: see train.py of a generated project.
        """
        from kerasmtl.data.manifest import SPLITS
        from kerasmtl.training.record import TrainingRecord

        parts, pretrained = (train, val, test), self.input.has_backbone
        absent = sorted((f.line, f.name) for part in parts for f in part.missing_files())
        if absent:
            shown = shortened([f"line {line}: {name!r}" for line, name in absent], 3)
            raise ValueError(
                f"`labels` {self.labels_csv} must name images that exist, got {shown}. Correct the "
                'file, or write on_invalid_image = "skip" in project.toml.'
            )
        backbone = self._backbone_identity() if pretrained else None
        record = TrainingRecord.of(parts, self.training.seed, self.labels_csv, backbone)
        run = begin_run(self._folder, record, self.training.tracking)
        self._parts = dict(zip(SPLITS, parts, strict=True))
        if self._skipped:
            skipped = pd.DataFrame([asdict(fault) for fault in self._skipped])
            write_text(run.folder / "skipped.csv", skipped.to_csv(index=False))
        if pretrained and self.model.backbone == "tiny" and self.data.labels not in DATASETS:
            run.notes.append(TOY)
        return run

    def _backbone_identity(self) -> dict[str, str]:
        """Return the handle of the backbone and the hash of its content, "" without one.

        The record of a run keeps it, so that commands notice a backbone that has changed since.
        """
        from kerasmtl.models.hub.cache import content_sha256
        from kerasmtl.models.hub.handles import resolve_handle

        try:
            sha256 = self.model.backbone_sha256 or content_sha256(resolve_handle(self.backbone))
        except ValueError:  # no SavedModel: a model of keras.applications
            sha256 = ""
        return {"handle": self.model.backbone, "sha256": sha256}

    def trained(self, run: str | None = None) -> TrainingRecord:
        """Return what a model was trained on: that of `checkpoint`, or of the run of that name.

        Raises:
            FileNotFoundError: the run has no record, so that nothing says which rows the model
                has seen.
            ValueError: the record is broken.
        """
        from kerasmtl.training.record import load_record, record_file

        kept = self.checkpoint if run is None else self._folder / "runs" / run / CHECKPOINT
        if found := load_record(kept):
            return found
        raise FileNotFoundError(
            f"`run` must have listed the rows of its training in {record_file(kept)}, and there is "
            "no such file. Call project.start_run(train, val, test) in train.py."
        )

    def part(self, name: str, run: str | None = None) -> Manifest:
        """Return the rows of a part, "train", "val" or "test", as a training had them.

        Rows that the model has seen never come into its test part. Warns of rows that are new, or
        that the labels file now puts into another part.

        Args:
            name: of the part.
            run: the name of the training's folder in runs/; by default the newest one with a model.

        Raises:
            ValueError: the part is empty, or the labels file lacks a task or column of the model.
        """
        trained = self.trained(run)
        parts, notes = trained.parts_of(self.manifest(trained))
        for note in notes:
            warn(note)
        of = self.run if run is None else Run(self._folder / "runs" / run)
        if name == "val" and of.saw_validation:
            warn(
                "the head of this model has learned from the validation rows as well: what is "
                f"measured on them is too good. {of.folder / HEADS} has its scores out of fold."
            )
        if not len(parts[name]):
            raise ValueError(
                f"`part` {name} is empty: {self.labels_csv} has none of the rows that were in it "
                "when the model was trained, and no new one for it."
            )
        return parts[name]

    def dataset(
        self, rows: Manifest, model: keras.Model, training: bool = False
    ) -> tf.data.Dataset:
        """Make a data set of rows of the manifest, as this model takes them.

        Args:
            rows: of the manifest.
            model: whose input decides the size of images.
            training: shuffle them, and augment them if project.toml says so.

        Returns:
            Batches of inputs and labels, as `make_dataset` describes them.

        Raises:
            ValueError: the model takes another kind of input.
        """
        from kerasmtl.data.augmentation import default_augmentation
        from kerasmtl.data.dataset import make_dataset

        of = self.training
        augment = default_augmentation(of.flip) if training and of.augment else None
        # The model decides the size, not project.toml, which may have changed since it was built.
        rows = replace(rows, input=rows.input.for_model(model))
        return make_dataset(
            rows, batch_size=of.batch_size, training=training, seed=of.seed, augment=augment
        )

    def fit_head(
        self, model: keras.Model, train: Manifest, validation: Manifest, run: Run | None = None
    ) -> FittedHead | None:
        """Choose a head by folds, on the features of the frozen part of a model.

        Args:
            model: as model.py builds it.
            train, validation: rows. Where the validation part is too small to judge epochs, its
                labels take part in the folds.
            run: gets the table of candidates, heads.json.

        Returns:
            The head; None where project.toml gives the widths of `hidden`, or the features of the
            model cannot be computed once, which is said.
        """
        from kerasmtl.training.auto import head_for

        if self.model.hidden != "auto":
            return None
        parts = [
            (part, self.dataset(part, model) if len(part) else None) for part in (train, validation)
        ]
        try:
            head = head_for(model, *parts, self.training.seed, self.training.plan)
        except (ValueError, OSError) as error:
            print(f"The head is not chosen by folds: {error}", flush=True)
            return None
        print(head, "\n", flush=True)
        if run is not None:
            told = {"folds": head.folds, "why": head.why, "rows": len(head.labels)}
            told |= {"validation": "unseen" if head.tune else "learned"}
            told |= {
                "scores": {k: None if v != v else v for k, v in head.scores().items()},
                "candidates": head.table(),
            }
            write_text(run.folder / HEADS, json.dumps(told, indent=1) + "\n")
        return head

    def plan(
        self,
        model: keras.Model,
        train: Any,
        validation: Any = None,
        head: FittedHead | None = None,
    ) -> Plan:
        """Return the stages of the training, as [training] of project.toml says.

        Args:
            model: the network; one without a pretrained backbone has one stage.
            train: batches, of which plan = "auto" counts the labels.
            validation: batches; with them a stage ends early if its epochs no longer improve. Where
                they cannot judge what more than the head would bring, "auto" trains the head alone.
            head: of the model, chosen by folds: the plan has no stage for it.
        """
        from kerasmtl.data.dataset import source_of
        from kerasmtl.training.depth import UNJUDGED, can_judge
        from kerasmtl.training.plans import PATIENCE, Plan, Stage, plan_for

        of = self.training
        if head is not None and not head.tune:
            why = f"Nothing after it: {head.next}." if head.next else ""
            idle = " `augment` has no effect: the head is fitted to images as they are."
            return Plan(of.plan, (), why + idle if of.augment else why)
        if not self.input.has_backbone:
            return Plan("all", (Stage("all", of.epochs, of.learning_rate, schedule="cosine"),))
        name, why, held = of.plan, "", getattr(source_of(validation), "manifest", None)
        if name == "auto" and head is None:
            if validation is None or held is not None and not can_judge(held.labels, held.tasks):
                name, why = "head", f"{UNJUDGED[0].upper()}{UNJUDGED[1:]}."
        found = plan_for(
            model,
            train,
            name,
            head_epochs=of.epochs,
            epochs=of.fine_tune_epochs,
            learning_rate=of.learning_rate,
            fine_learning_rate=of.fine_tune_learning_rate,
            patience=None if validation is None else PATIENCE,
        )
        return Plan(found.name, found.stages[1 if head else 0 :], why or found.why)

    def finish(
        self,
        run: Run,
        model: keras.Model,
        test: Manifest,
        validation: Any = None,
        head: FittedHead | None = None,
    ) -> Report:
        """Score a trained model, print its report and write it as HTML, and close its run.

        Args:
            run: of the training; gets the scores, and the thresholds for the commands.
            model: as trained.
            test: the rows that it is scored on.
            validation: batches on which the threshold of each task is fitted; without them it is
                0.5.
            head: that the model ends with as it was fitted: thresholds are then fitted on the
                predictions of its folds, and not on rows that it has seen.

        Returns:
            The report, as `kt.evaluate` makes it.
        """
        from kerasmtl.evaluation.calibration import decide, fit_decisions
        from kerasmtl.evaluation.evaluate import evaluated

        if head is None or not head.folds:
            decisions = fit_decisions(model, validation, test.tasks)
        else:
            decisions = decide(test.tasks, head.cells(), None, calibrate=False)
        report, cells = evaluated(model, self.dataset(test, model), test.tasks, decisions)
        print(report)
        run.finish(report, decisions)
        if head is not None and head.folds:
            keys = [part.keys() for part in (self._parts["train"], self._parts["val"])]
            run.keep_out_of_fold(head, np.concatenate(keys))
        try:
            print("Report:", os.path.relpath(self.write_report(model, run, scored=(report, cells))))
        except Exception as error:  # the training is worth more than its report
            print(f"Note: report.html was not written: {type(error).__name__}: {error}")
        return report

    def write_report(
        self,
        model: keras.Model,
        run: Run | None = None,
        output: str | os.PathLike[str] | None = None,
        compare: bool = False,
        scored: tuple[Report, Mapping[str, Known]] | None = None,
    ) -> Path:
        """Write the report of a training as one HTML file, which needs no other.

        Args:
            model: as trained.
            run: of the training; by default the newest one with a model.
            output: the file; by default report.html in the folder of the run.
            compare: include what `kerasmtl compare` has kept in runs/compare.
            scored: the scores and cells of the test part, as `evaluated` returns them, where they
                are known.

        Returns:
            The file. What could not be shown is printed, a line for each section.
        """
        from kerasmtl.evaluation.evaluate import evaluated
        from kerasmtl.evaluation.html_report import Results, render_report

        run = run or self.run
        of, decisions = self.trained(run.folder.name), run.decisions()
        parts = (scored and self._parts) or of.parts_of(self.manifest(of))[0]
        if scored is None:
            batches = self.dataset(parts["test"], model)
            scored = evaluated(model, batches, of.tasks, decisions)
        kept = sorted((self._folder / "runs" / "compare").glob("*.json")) if compare else []
        unseen, learned = [], run.out_of_fold(of.tasks)
        if learned is not None:  # rows may have gone from the labels file, or moved in it, since
            place = {key: row for row, key in enumerate(learned[0])}
            keys = [key for name in ("train", "val") for key in parts[name].keys().astype(str)]
            at = np.array([place.get(key, len(place)) for key in keys], int)
            for p in learned[2].values():
                unseen.append(np.concatenate([p, np.full_like(p[:1], np.nan)])[at])
        about = {"run": run.folder.name, "seed of the split": of.seed, **(of.data or {})}
        if of.backbone:  # without the folders of this machine
            handle = of.backbone["handle"]
            about["backbone"] = Path(handle).name if os.path.isabs(handle) else handle
            about["backbone: sha256"] = of.backbone["sha256"]
        page, failed = render_report(
            Results(
                name=self.name,
                model=model,
                parts=parts,
                report=scored[0],
                cells=scored[1],
                decisions=decisions,
                inputs=lambda rows: self.dataset(rows, model),
                about=about,
                folder=run.folder,
                out_of_fold=unseen,
                comparisons=[json.loads(file.read_text(encoding="utf-8")) for file in kept],
            )
        )
        for section in failed:
            print(f"Note: left out of the report: {section}")
        file = run.folder / REPORT if output is None else Path(output)
        write_text(file, page)
        return file

    def export(
        self,
        model: keras.Model,
        validation: Any = None,
        folder: str | os.PathLike[str] | None = None,
        card: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Path:
        """Export the model of the newest run as the next version.

        Args:
            model: as trained.
            validation: batches, whose scores come into its description; by default, of a head
                that has learned from the validation rows, its predictions out of fold.
            folder: of the versions; `export_folder` by default.
            card: more for the model card than the project's name and its data.
            options: further ones of `kt.export_saved_model`. By default `decisions` are the
                thresholds of the training; with `calibrate` new ones are fitted, since those do
                not hold for calibrated probabilities.

        Returns:
            The folder of the version.

        Raises:
            ValueError, OSError: as `kt.export_saved_model`.
        """
        from kerasmtl.evaluation.evaluate import known_cells
        from kerasmtl.export.saved_model import export_saved_model

        of = self.trained()
        fitted = None if options.get("calibrate") else self.run.decisions() or None
        if validation is None and self.run.saw_validation:
            if learned := self.run.out_of_fold(of.tasks):
                validation = known_cells(of.tasks, *learned[1:])
        return export_saved_model(
            model,
            folder or self.export_folder,
            of.tasks,
            input=of.input,
            validation=validation,
            card={"name": self.name, "data": of.data, **(card or {})},
            **{"decisions": fitted, **options},
        )
