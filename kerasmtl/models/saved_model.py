"""Loaded SavedModels: their calls, variables and regularization losses."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from kerasmtl.models.graph import captured_as

SIGNATURES = ("default", "serving_default")  # TF1 Hub format, TF2
ENDPOINT = "serve"  # what keras.Model.export calls its function


@dataclass(frozen=True)
class Call:
    """One traced way to call a module.

    Attributes:
        inputs: nested `tf.TensorSpec`s by tensor argument.
        training: the mode it was traced for; a spec where the switch is a tensor, None where there
            is none.
        arguments: the other arguments, by name, with the values they were traced with.
        outputs: the nested outputs, as specs.
        function: the concrete function.
        layout: the names of the positional arguments.
        by_name: the names of the keyword arguments.
    """

    inputs: dict[str, Any]
    training: bool | tf.TensorSpec | None
    arguments: dict[str, Any]
    outputs: Any
    function: Any
    layout: tuple[str, ...]
    by_name: tuple[str, ...]

    @property
    def takes(self) -> str:
        """The inputs in words."""
        return describe(next(iter(self.inputs.values())) if len(self.inputs) == 1 else self.inputs)

    def trains(self, training: bool) -> bool:
        """Whether this call serves that mode."""
        return self.training is training or isinstance(self.training, tf.TensorSpec)

    def takes_value(self, name: str, value: Any) -> bool:
        """Whether the argument was traced with that value, or with a tensor of any value."""
        traced = self.arguments.get(name, self)  # self: no such argument, equal to no value
        return is_tensors(traced) or bool(traced == value)


def describe(specs: Any) -> str:
    """Describes shapes and types in words: float32 (None, 224, 224, 3)."""
    if isinstance(specs, Mapping):
        # Sorted: a SavedModel keeps no order, and gives another in each process.
        parts = [f"{name!r}: {describe(specs[name])}" for name in sorted(specs, key=str)]
        return "{" + ", ".join(parts) + "}"
    if isinstance(specs, list | tuple):
        return "[" + ", ".join(describe(s) for s in specs) + "]"
    shape, dtype = getattr(specs, "shape", None), getattr(specs, "dtype", None)
    if dtype is None:
        return type(specs).__name__
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", str(dtype))
    rank = getattr(shape, "rank", len(shape) if isinstance(shape, tuple) else None)
    return f"{name} {tuple(shape) if rank is not None else 'of any shape'}"


def is_tensors(spec: Any) -> bool:
    """Whether a nested value consists of tensor specs alone."""
    leaves = tf.nest.flatten(spec)
    return bool(leaves) and all(isinstance(leaf, tf.TypeSpec) for leaf in leaves)


class Module:
    """A loaded SavedModel, with the parts of the reusable-SavedModel interface that it has.

    The interface is described in https://www.tensorflow.org/hub/reusable_saved_models. A module is
    called through `__call__`; one that `keras.Model.export` wrote, through its `serve` function;
    any other, through a signature.

    Args:
        folder: of the SavedModel.
        handle: how the user named it, for messages.
        signature: the signature to run, though the module may be callable.
        arguments: values for further arguments of the call.
        given: variables to use in place of those that loading would create, by order of creation;
            their values are overwritten by those of the SavedModel.

    Attributes:
        loaded: what `tf.saved_model.load` returns.
        created: all variables that loading created, in order.
        calls: the traced calls that take the arguments.
        variables: the variables that a layer can hold: numeric, listed or used by a call.
        trainable: which of them the publisher lists as trainable.
        losses: each regularization loss, with the indices of the variables it depends on.

    Raises:
        ValueError: it cannot be read, or there is no such signature or argument.
    """

    def __init__(
        self,
        folder: Path,
        handle: str,
        signature: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        given: Mapping[int, tf.Variable] | None = None,
    ) -> None:
        self.folder = folder
        self.handle = handle
        self.arguments = dict(arguments or {})
        self.loaded, self.created = _load(folder, handle, given or {})
        self.signature, self._run = _find_call(self.loaded, handle, signature)
        self.calls = _calls_of(self._run, self.signature is not None, self.arguments)
        self._check_arguments()
        self.variables, self.trainable = self._find_variables()
        self.losses = [] if self.signature else self._find_losses()

    def _check_arguments(self) -> None:
        """Keeps the calls that take the arguments; refuses arguments that no call takes."""
        first = {call.layout[0] for call in self.calls if call.layout}
        known = {name for call in self.calls for name in (*call.arguments, *call.layout)} - first
        for name, value in self.arguments.items():
            if name not in known or name == "training":
                raise ValueError(
                    f"`arguments` must be among {sorted(known - {'training'})} for "
                    f"{self.handle!r}, got {name!r}. Training mode follows `trainable`."
                )
            if not any(call.takes_value(name, value) for call in self.calls):
                traced = [repr(c.arguments[name]) for c in self.calls if name in c.arguments]
                raise ValueError(
                    f"`arguments` must have a value that {self.handle!r} was traced with: one of "
                    f"{list(dict.fromkeys(traced))} for {name!r}, got {value!r}"
                )
        self.calls = [
            call
            for call in self.calls
            if all(call.takes_value(name, value) for name, value in self.arguments.items())
        ]

    def _find_variables(self) -> tuple[list[tf.Variable], list[bool]]:
        """Finds the variables that a layer can hold, and which ones the publisher trains."""
        listed = list(getattr(self.loaded, "variables", None) or [])
        trained = (
            [] if self.signature else list(getattr(self.loaded, "trainable_variables", None) or [])
        )
        captured = [c for call in self.calls for c in call.function.captured_inputs]
        used = [v for v in self.created if any(c is captured_as(v) for c in captured)]
        listed += [v for v in (*trained, *used) if not any(v is other for other in listed)]
        held = [
            v
            for v in listed
            if (v.dtype.is_floating or v.dtype.is_integer) and any(v is c for c in self.created)
        ]
        return held, [any(v is other for other in trained) for v in held]

    def _find_losses(self) -> list[tuple[Any, set[int]]]:
        """Finds the regularization losses, and the indices of the variables each depends on."""
        found = []
        for loss in getattr(self.loaded, "regularization_losses", None) or []:
            captured = [c for f in loss.concrete_functions for c in f.captured_inputs]
            used = {
                index
                for index, variable in enumerate(self.variables)
                if any(c is captured_as(variable) for c in captured)
            }
            found.append((loss, used))
        return found

    @property
    def why_not_trainable(self) -> str | None:
        """The reason why the module cannot be trained, or None if it can."""
        if self.signature:
            return (
                f"it runs through its signature {self.signature!r}, and signatures are for "
                "inference: they have no training mode and no regularization losses"
            )
        if not any(self.trainable):
            return "it declares no trainable variables"
        return None

    @property
    def inference_call(self) -> Call:
        """The call for inference."""
        return next((c for c in self.calls if not c.trains(True) or c.trains(False)), self.calls[0])

    @property
    def takes_images(self) -> bool:
        """Whether the one input is a batch of images, or its shape is undeclared."""
        specs = tf.nest.flatten(self.inference_call.inputs)
        unknown = len(specs) == 1 and specs[0].shape.rank is None and specs[0].dtype.is_floating
        return self.image is not None or unknown

    @property
    def image(self) -> tf.TensorSpec | None:
        """The one input, if it is a batch of images, or None."""
        specs = [s for c in self.calls for s in tf.nest.flatten(c.inputs)]
        rank = [s.shape.rank for s in specs]
        if not specs or any(len(tf.nest.flatten(c.inputs)) != 1 for c in self.calls):
            return None
        if any(r != 4 for r in rank) or any(s.shape[3] not in (None, 3) for s in specs):
            return None
        return specs[0]

    @property
    def image_size(self) -> tuple[int, int] | None:
        """The (height, width) that the module insists on, or None if it takes any."""
        if self.image is None or None in self.image.shape[1:3]:
            return None
        return tuple(self.image.shape[1:3])

    def __call__(self, inputs: Any, training: bool) -> Any:
        """Runs the module; without a call for training, the one for inference.

        Raises:
            ValueError: the inputs fit none of its calls.
        """
        of_mode = [call for call in self.calls if call.trains(training)]
        for call in ([] if training else [self.inference_call]) + of_mode + self.calls:
            bound = _bind(call, inputs)
            if bound is not None:
                return self._apply(call, bound, training)
        raise ValueError(
            f"`inputs` must be {' or '.join(dict.fromkeys(c.takes for c in self.calls))} for "
            f"{self.handle!r}, got {describe(inputs)}"
        )

    def _apply(self, call: Call, bound: dict[str, Any], training: bool) -> Any:
        values = {**call.arguments, **self.arguments, **bound}
        if call.training is not None:
            # A switch that was traced as a tensor has to be one again.
            tensor = isinstance(call.training, tf.TensorSpec)
            values["training"] = tf.constant(training) if tensor else call.training
        if self.signature:
            return self._run(**bound)
        by_name = {name: values[name] for name in call.by_name}
        return self._run(*(values[name] for name in call.layout), **by_name)

    def penalties(self, trained: set[int]) -> list[tf.Tensor]:
        """Computes the regularization losses that depend on one of these variables (indices)."""
        return [loss() for loss, used in self.losses if used & trained or not used]


def over_replicas(dtype: tf.DType) -> dict[str, Any]:
    """Returns how `tf.distribute` keeps moving statistics: one per device, read as their mean."""
    if not tf.distribute.has_strategy():
        return {}
    kinds = tf.VariableAggregation
    mean = tf.as_dtype(dtype).is_floating
    return {
        "synchronization": tf.VariableSynchronization.ON_READ,
        "aggregation": kinds.MEAN if mean else kinds.ONLY_FIRST_REPLICA,
    }


def _load(
    folder: Path, handle: str, given: Mapping[int, tf.Variable]
) -> tuple[Any, list[tf.Variable]]:
    created: list[tf.Variable] = []

    def creator(next_creator: Any, **kwargs: Any) -> tf.Variable:
        variable = given.get(len(created))
        if not kwargs.get("trainable", True):
            kwargs |= over_replicas(kwargs["dtype"])
        created.append(next_creator(**kwargs) if variable is None else variable)
        return created[-1]

    try:
        with tf.variable_creator_scope(creator), _without_slots(folder) as (place, options):
            return _load_any(str(place), options), created
    except (tf.errors.OpError, OSError, RuntimeError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "not registered" in first:
            raise ValueError(
                f"`handle` {handle!r} needs an operation that TensorFlow alone does not have. "
                f"Received: {first}. Import the package that has it before, for text modules: "
                "pip install tensorflow-text, and import tensorflow_text."
            ) from error
        raise ValueError(
            f"`handle` {handle!r} must be a complete SavedModel, and {folder} cannot be loaded: "
            f"{first}. Fetch the module again."
        ) from error


@contextmanager
def _without_slots(folder: Path) -> Iterator[tuple[Path, tf.saved_model.LoadOptions]]:
    """Yields the module's folder, or a copy of its object graph without optimizer state.

    TensorFlow cannot load an optimizer's slot variables (momentum and the like) unless tf_keras has
    registered the optimizer's class. A layer has no use for them, and leaving them out makes the
    variables that are created the same with and without tf_keras.
    """
    file = folder / "saved_model.pb"
    graph = saved_model_pb2.SavedModel()
    try:
        graph.ParseFromString(file.read_bytes())
    except (OSError, DecodeError):
        graph.Clear()  # another format, or a broken file: TensorFlow says what is wrong
    optimizers = [
        (meta.object_graph_def, node)
        for meta in graph.meta_graphs
        for node in meta.object_graph_def.nodes
        if node.slot_variables
    ]
    if not optimizers:
        yield folder, tf.saved_model.LoadOptions()
        return
    for objects, node in optimizers:
        for place in [slot.slot_variable_node_id for slot in node.slot_variables]:
            _make_plain(objects.nodes[place])
        _make_plain(node)
    for meta in graph.meta_graphs:  # assets stay where they are, and are read when the model runs
        for asset in meta.asset_file_def:
            asset.filename = str(folder.absolute() / "assets" / asset.filename)
    with tempfile.TemporaryDirectory() as aside:
        copy = Path(aside)
        for entry in folder.iterdir():
            if entry.name != file.name:
                (copy / entry.name).symlink_to(entry.absolute())
        (copy / file.name).write_bytes(graph.SerializeToString())
        # Partial: the checkpoint still holds the slots.
        yield copy, tf.saved_model.LoadOptions(allow_partial_checkpoint=True)


def _make_plain(node: Any) -> None:
    """Turns a node into an object without a type of its own; its children stay."""
    children = list(node.children)
    node.Clear()
    node.children.extend(children)
    node.user_object.identifier = "_generic_user_object"


def _load_any(folder: str, options: tf.saved_model.LoadOptions) -> Any:
    """Loads a SavedModel; of a TF1 module with a graph for training beside it, that for serving."""
    try:
        return tf.saved_model.load(folder, options=options)
    except ValueError as error:
        if "`tags=`" not in str(error):
            raise
    try:
        return tf.saved_model.load(folder, tags=[], options=options)
    except RuntimeError:
        return tf.saved_model.load(folder, tags=["serve"], options=options)


def _find_call(loaded: Any, handle: str, signature: str | None) -> tuple[str | None, Any]:
    signatures = getattr(loaded, "signatures", {})
    if signature is None:
        for run in (loaded.__call__ if callable(loaded) else None, getattr(loaded, ENDPOINT, None)):
            if getattr(run, "concrete_functions", None):
                return None, run
    for key in SIGNATURES if signature is None else [signature]:
        if key in signatures:
            return key, signatures[key]
    raise ValueError(
        f"`signature` must be one of {sorted(signatures)} for {handle!r}, got {signature!r}"
    )


def _calls_of(run: Any, is_signature: bool, arguments: Mapping[str, Any]) -> list[Call]:
    if is_signature:
        inputs = dict(run.structured_input_signature[1])
        return [Call(inputs, None, {}, run.structured_outputs, run, (), tuple(inputs))]
    names = inspect.getfullargspec(run).args
    return [_call(function, names, arguments) for function in run.concrete_functions]


def _call(function: Any, names: Sequence[str], arguments: Mapping[str, Any]) -> Call:
    positional, by_name = function.structured_input_signature
    layout = tuple(names[i] if i < len(names) else f"argument_{i}" for i in range(len(positional)))
    values = {**dict(zip(layout, positional, strict=True)), **by_name}
    training = values.pop("training", None)
    inputs = {
        name: spec for name, spec in values.items() if is_tensors(spec) and name not in arguments
    }
    others = {name: value for name, value in values.items() if name not in inputs}
    outputs = function.structured_outputs
    return Call(inputs, training, others, outputs, function, layout, tuple(by_name))


def _bind(call: Call, inputs: Any) -> dict[str, Any] | None:
    """Packs and casts inputs by argument, as they were traced; None if they do not fit."""
    names = list(call.inputs)
    if isinstance(inputs, Mapping) and set(inputs) == set(names):
        parts = dict(inputs)
    elif len(names) == 1:
        parts = {names[0]: inputs}
    elif isinstance(inputs, list | tuple) and len(inputs) == len(names):
        parts = dict(zip(names, inputs, strict=True))
    else:
        return None
    fitted = {name: _fit(call.inputs[name], part) for name, part in parts.items()}
    return None if any(part is None for part in fitted.values()) else fitted


def _fit(specs: Any, values: Any) -> Any | None:
    if isinstance(specs, Mapping) and (
        not isinstance(values, Mapping) or set(values) != set(specs)
    ):
        return None
    leaves, wanted = tf.nest.flatten(values), tf.nest.flatten(specs)
    if len(leaves) != len(wanted):
        return None
    cast = [_cast(leaf, spec) for leaf, spec in zip(leaves, wanted, strict=True)]
    return None if any(leaf is None for leaf in cast) else tf.nest.pack_sequence_as(specs, cast)


def _cast(tensor: Any, spec: tf.TensorSpec) -> Any | None:
    """Casts a tensor to the traced type, among floats or among integers; None if it differs."""
    tensor = tf.convert_to_tensor(tensor) if not tf.is_tensor(tensor) else tensor
    have, want = tensor.dtype, spec.dtype
    alike = (have.is_floating and want.is_floating) or (have.is_integer and want.is_integer)
    if (have != want and not alike) or not spec.shape.is_compatible_with(tensor.shape):
        return None
    return tensor if have == want else tf.cast(tensor, want)
