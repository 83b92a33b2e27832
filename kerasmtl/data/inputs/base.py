"""`Input`, the base class of all kinds of model input, from a labels file to a served model.

`Image` and `Table` are the kinds that the library brings; a user's subclass is found by its `kind`
as they are. Who calls what:

- `Manifest.from_csv`: `open`, `claimed`, `infer_tasks`, `read`, `known_by`, `columns`;
- `Manifest`, for its checks: `identical`, `identities`, `near_duplicates`, `absent`, `faults`;
- `make_dataset`: `sized`, `batches`, `augmentation`, and `load` and `prepare` by way of `batches`;
- exports and predictors: `for_model`, `signatures`, `load`, `prepare`, `described`, `config`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, get_type_hints

import numpy as np
import pandas as pd

from kerasmtl.data.labels import infer_tasks
from kerasmtl.data.readers import LabelsFile, read_labels_file
from kerasmtl.tasks import Task
from kerasmtl.utils.tf import as_written
from kerasmtl.utils.validation import check_choice

if TYPE_CHECKING:
    import keras
    import tensorflow as tf
    from pydantic import ConfigDict

_ANY_TYPE: ConfigDict = {"arbitrary_types_allowed": True, "protected_namespaces": ()}


@dataclass(frozen=True)
class Fault:
    """A row that cannot be used: its line in the file, its name, and why."""

    line: int
    name: str
    reason: str


class Rows(NamedTuple):
    """The rows that `Input.read` finds in a labels file.

    Attributes:
        input: completed by what the file says, such as the names of its columns.
        values: (rows, …), one input per row.
        names: (rows,) str, by which a row is known wherever it is listed; None if rows are
            numbered.
    """

    input: Input
    values: np.ndarray
    names: np.ndarray | None = None


class Signature(NamedTuple):
    """One way to ask an exported model.

    Attributes:
        name: of the signature.
        specs: of the arguments by name, first axis = batch.
        to_input: from the arguments to the model's input, in the graph.
        sample: from a seed to arguments without a meaning, for golden requests.

    Example:
        >>> import kerasmtl as kt
        >>> signature = kt.data.Table(["age", "load"]).signatures()[0]
        >>> signature.name, sorted(signature.specs)
        ('serving_default', ['age', 'load'])
    """

    name: str
    specs: dict[str, tf.TensorSpec]
    to_input: Callable[[dict[str, tf.Tensor]], tf.Tensor]
    sample: Callable[[int], dict[str, np.ndarray]]


class Input(ABC):
    """One kind of model input: how it is read, checked, loaded, prepared and served.

    Subclasses are frozen dataclasses with a `kind`, by which `Input.from_config` finds them. Their
    fields are what a user chooses; what a file or a model decides is filled in by `read`, `adopt`,
    `sized` and `for_model`, each of which returns a new object. A subclass must define `read`,
    `spec` and `signatures`; the other methods have defaults for values that are the raw input
    itself, such as texts or numbers.

    Attributes:
        kind: the name in model.json and project.toml.
        noun: what rows are called in messages, in the plural.
        suffixes: lower-case endings of files that are inputs, for which `kerasmtl predict` searches
            folders; lists name them in the column `column`. None if inputs are rows of tables.
        in_memory: whether the values are the raw inputs, so that `make_dataset` need not cache.
        raw_signature: the signature of an export that takes what `load` returns.
        model_signature: the one that takes model input itself, from which converters start; None
            if there is none.
        has_backbone: whether models of this kind are usually built on a pretrained network.
        settings: of [model] and [training] in project.toml, those that only such kinds have.
        ignore: columns of a labels file that the user leaves out.
        bounds: the least and the largest number of model input, if there are any.

    Example:
        >>> import kerasmtl as kt
        >>> input = kt.data.Input.from_config({"kind": "table", "features": ["age", "load"]})
        >>> input.spec.shape
        TensorShape([None, 2])
    """

    kind: ClassVar[str]
    noun: ClassVar[str] = "rows"
    suffixes: ClassVar[tuple[str, ...]] = ()
    in_memory: ClassVar[bool] = True
    raw_signature: ClassVar[str] = "serving_default"
    model_signature: ClassVar[str | None] = None
    has_backbone: ClassVar[bool] = False
    settings: ClassVar[frozenset[str]] = frozenset()
    bounds: ClassVar[tuple[float, float] | None] = None
    ignore: ClassVar[Sequence[str]] = ()
    _kinds: ClassVar[dict[str, type[Input]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in cls.__dict__:
            # A subclass without a `kind` of its own must not take the place of its parent.
            Input._kinds[cls.kind] = cls

    # From a labels file to values.

    def open(self, source: Path, encoding: str = "utf-8") -> LabelsFile:
        """Read the cells of a labels file.

        Args:
            source: the file.
            encoding: of a CSV.

        Raises:
            FileNotFoundError: the file is absent.
            ValueError: it is malformed.
        """
        return read_labels_file(source, encoding)

    def claimed(self) -> dict[str, tuple[str, ...]]:
        """Return the columns that the user named for this input.

        Returns:
            By the name of the argument, for messages. These columns are not tasks, and cannot be
            splits or groups as well.
        """
        return {}

    def infer_tasks(self, cells: pd.DataFrame, source: Path) -> tuple[Task, ...]:
        """Find the tasks, where the user names none, among columns that nothing else claims.

        Args:
            cells: (rows, columns) of these columns.
            source: the file, for messages.

        Raises:
            ValueError: no column looks like a task.
        """
        return infer_tasks(cells, source)

    @abstractmethod
    def read(self, file: LabelsFile, taken: set[str]) -> Rows:
        """Return the values of all rows of a labels file.

        Args:
            file: its cells.
            taken: its columns that are tasks, splits or groups.

        Raises:
            ValueError: a cell is not an input; names file, line and column.
        """

    def adopt(self, values: Any) -> tuple[Self, np.ndarray]:
        """Check values in memory, which do not come from a file.

        Args:
            values: (rows, …), what the user gives `Manifest.from_arrays`.

        Returns:
            This input, completed by what the values say, and the values, (rows, …).

        Raises:
            ValueError: the values are not inputs of this kind.
        """
        return self, np.asarray(values)

    def like(self, trained: Input) -> Input:
        """Return this input as a trained model takes it, with what the model has fixed.

        Args:
            trained: the input that the model was trained with.

        Raises:
            ValueError: it is of another kind.
        """
        if trained.kind != self.kind:
            raise ValueError(
                f"`input` must be of kind {trained.kind!r}, as of the model, got {self!r}. Train "
                "again, or give the model's kind of input"
            )
        return trained

    def select(self, values: np.ndarray, trained: Input) -> np.ndarray:
        """Return the part of these values that a trained model's input takes.

        Args:
            values: (rows, …) of this input.
            trained: the input of the model.
        """
        return values

    # Rows and their content.

    def known_by(self, names: np.ndarray) -> np.ndarray:
        """Return one key for all ways to write the name of a row.

        Args:
            names: (rows,) str.

        Returns:
            (rows,), the same for rows that are the same; it must not depend on the machine, as a
            split by hash and the record of a run go by it.
        """
        return names

    def identical(self, values: np.ndarray) -> np.ndarray:
        """Return a key of the content of each row, (rows,): the same for identical content."""
        if values.ndim == 1:
            return values

        def content(row: np.ndarray) -> bytes:
            if row.dtype == object:  # its bytes are addresses
                return b"".join(str(cell).encode() + b"\0" for cell in row.ravel())
            return row.tobytes()

        return np.array([hashlib.blake2b(content(row)).hexdigest() for row in values], object)

    def identities(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Return keys that should not be in two parts of a split, (rows,) each, by kind of leak."""
        return {"same row": self.identical(values)}

    def near_duplicates(
        self, values: np.ndarray, parts: np.ndarray, progress: Callable[[], None] | None
    ) -> Iterable[tuple[int, int]]:
        """Find pairs of rows in different parts that are nearly the same.

        Args:
            values: (rows, …).
            parts: (rows,), the part of each row.
            progress: called once per row that is looked at; None where nobody looks.

        Returns:
            Pairs of row numbers.
        """
        return ()

    def columns(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Return numbers that must agree in rows of the same name.

        Args:
            values: (rows, …).

        Returns:
            By the name of a column, (rows,); none for files, which the name itself identifies.
        """
        return {}

    def absent(self, values: np.ndarray) -> dict[int, str]:
        """Say why rows cannot be used, as far as no file must be opened for it.

        Args:
            values: (rows, …).

        Returns:
            By row, the reason; other rows are left out.
        """
        return {}

    def faults(
        self, values: np.ndarray, progress: Callable[[], None] | None = None
    ) -> dict[int, str]:
        """Say why rows cannot be used; opens every file.

        Args:
            values: (rows, …).
            progress: called per row.

        Returns:
            By row, the reason, which completes "the file is …"; other rows are left out.
        """
        return {}

    def content_sha256(self, values: np.ndarray) -> str:
        """Hash the content of all rows, in order, and what prepares them.

        The hash is the key of cached inputs and features, and tells a resumed run whether its data
        are the same.

        Args:
            values: (rows, …).
        """
        whole = hashlib.sha256(repr((self.config(), values.shape, str(values.dtype))).encode())
        if values.dtype == object:
            for row in values.ravel():
                whole.update(str(row).encode() + b"\0")
        else:
            whole.update(np.ascontiguousarray(values))
        return whole.hexdigest()

    # From values to model input.

    def sized(self, size: Any) -> Input:
        """Return this input at a size, of kinds that have one.

        Args:
            size: as the user gives it to `make_dataset`; None for the default.

        Raises:
            ValueError: an invalid size, or any for a kind without one.
        """
        if size is not None:
            raise ValueError(f"`size` must be None for {self.noun}, got {size!r}")
        return self

    def for_model(self, model: keras.Model) -> Input:
        """Return this input as a model takes it.

        Args:
            model: with one input.

        Raises:
            ValueError: the model takes something else.
        """
        shape = model.input_shape
        if not isinstance(shape, tuple) or tuple(self.spec.shape) != shape:
            raise ValueError(
                f"`model` must take {self.noun} of shape {tuple(self.spec.shape)}, got a model of "
                f"input shape {shape}. Train again, or pass another input=…"
            )
        return self

    @property
    @abstractmethod
    def spec(self) -> tf.TensorSpec:
        """The shape and dtype of one batch of model input; the first axis is None."""

    def load(self, values: np.ndarray) -> np.ndarray:
        """Read raw inputs, as a client sends them.

        Args:
            values: (rows, …), as `read` or `adopt` returned them.

        Returns:
            (rows, …), such as the bytes of files as objects.
        """
        return values

    def prepare(self, raw: tf.Tensor) -> tf.Tensor:
        """Turn raw inputs into model input, in the graph of training and of exports alike.

        Args:
            raw: (batch, …), a tensor of what `load` returns.

        Returns:
            A tensor of the shape and dtype of `spec`.
        """
        return raw

    def batches(
        self,
        values: np.ndarray,
        rows: tf.data.Dataset,
        batch_size: int,
        deterministic: bool,
        where: Callable[[tf.Tensor], tf.Tensor],
    ) -> tf.data.Dataset:
        """Return batches of (epochs, model input, row numbers).

        Args:
            values: of all rows.
            rows: batches of epochs and row numbers, (batch,) int64 each.
            batch_size: rows per batch; the last may be smaller.
            deterministic: whether the order must be kept.
            where: from the number of a row to its file, line and name, in the graph, for messages.
        """
        import tensorflow as tf

        raw = tf.constant(self.load(values))

        # Whole batches are gathered: rows one by one would cost far more.
        def gather(epochs: tf.Tensor, chosen: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return epochs, self.prepare(tf.gather(raw, chosen)), chosen

        return rows.map(as_written(gather), tf.data.AUTOTUNE, deterministic=deterministic)

    def augmentation(self, augment: Any) -> keras.layers.Layer | None:
        """Return the layer that varies model input in training; None for None.

        Args:
            augment: as the user gives it to `make_dataset`.

        Raises:
            TypeError, ValueError: this kind cannot be augmented like that.
        """
        if augment is not None:
            raise ValueError(f"`augment` must be None for {self.noun}, got {augment!r}")
        return None

    # Export.

    @abstractmethod
    def signatures(self) -> list[Signature]:
        """Return the signatures of an exported model, "serving_default" first."""

    def signature(self, name: str) -> Signature:
        """Return the signature of an exported model by its name, one of `signatures`."""
        return next(each for each in self.signatures() if each.name == name)

    @property
    def arguments(self) -> dict[str, str] | None:
        """The argument of each column in the default signature, where it has one per column."""
        return None

    def described(self) -> str:
        """Say what clients send, in a sentence for the model card."""
        return f"{self.noun.capitalize()}; the signatures below list shapes and dtypes."

    # Persistence.

    def config(self) -> dict[str, Any]:
        """Return this input as JSON takes it, for model.json and a run's record.

        `from_config` makes the same input of it; "arguments" is for servers, and not read again.
        """
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}
        return {"kind": self.kind, **plain, "arguments": self.arguments}

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Input:
        """Return the input that `config` describes.

        Raises:
            ValueError: an unknown kind or option, or a value of another type.
        """
        if not isinstance(config, Mapping):
            raise ValueError(f"`input` must be a table with a `kind`, got {config!r}")
        given = {key: value for key, value in config.items() if key != "arguments"}
        kind = given.pop("kind", None)
        known = Input.options(kind)
        if wrong := sorted(set(given) - set(known)):
            raise ValueError(f"`input` of kind {kind!r} must have options of {known}, got {wrong}")
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        return Input._kinds[kind](**_checked(Input._kinds[kind], plain))

    @staticmethod
    def options(kind: str | None) -> tuple[str, ...]:
        """Return the names of the options of a kind, which are the fields of its class.

        Args:
            kind: such as "image".

        Raises:
            ValueError: the kind is unknown.
        """
        check_choice("kind", kind, Input._kinds)
        return tuple(field.name for field in fields(Input._kinds[kind]))

    @staticmethod
    def settings_of_others(kind: str) -> frozenset[str]:
        """Return the settings of project.toml that other kinds have, and this one has not."""
        every = frozenset().union(*(each.settings for each in Input._kinds.values()))
        return every - Input._kinds[kind].settings


def _checked(kind: type[Input], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as their types want them; raises ValueError for what they do not take."""
    from pydantic import ValidationError, create_model

    try:
        hints = get_type_hints(kind)
    except NameError:  # a kind with types that only type checkers import
        return dict(given)
    types: dict[str, Any] = {name: (hints[name], ...) for name in given}
    try:
        return dict(create_model(kind.__name__, __config__=_ANY_TYPE, **types)(**given))
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        written = next(field.type for field in fields(kind) if field.name == name)
        wanted = getattr(written, "__name__", written)
        raise ValueError(f"`{name}` must be {wanted}, got {given[name]!r}") from None
