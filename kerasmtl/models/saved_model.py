"""Loaded SavedModels (their calls, variables and losses), and the description of one in a file.

`Module` is what TensorFlow loads, seen through the reusable-SavedModel interface: which of the
traced calls fits given inputs and a mode, and which variables a layer holds. `ModuleSpec` is what a
`HubLayer` must know of it while the SavedModel itself is not at hand.

`HubLayer` is the caller of both; `inspection` shows what a `Module` has. Functions further down
deal with what differs from publisher to publisher: optimizer state that only tf_keras can load, TF1
modules with several graphs, training switches that are tensors or Python values, and inputs that
are positional, by name, or nested.
"""

from __future__ import annotations

import inspect
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from kerasmtl._version import __version__
from kerasmtl.models.graph import captured_as, variable_order

SIGNATURES = ("default", "serving_default")  # TF1 Hub format, TF2
ENDPOINT = "serve"  # what keras.Model.export calls its function
FORMAT = 1  # of `ModuleSpec` in a .keras file
MOST_CALLS = 32  # how many calls are remembered, by shapes


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
    def nested_inputs(self) -> Any:
        """The inputs as the module takes them: of one argument its specs alone."""
        return next(iter(self.inputs.values())) if len(self.inputs) == 1 else self.inputs

    def trains(self, training: bool) -> bool:
        """Return whether this call serves that mode.

        A call that was traced without a switch serves neither mode: `Module.__call__` falls back on
        it.
        """
        return self.training is training or isinstance(self.training, tf.TensorSpec)

    def takes_values(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether the arguments were traced with these values, or with tensors.

        Args:
            arguments: values by name of an argument, as the user gave them.
        """
        traced = {name: self.arguments.get(name, self) for name in arguments}  # self: of no value
        return all(is_tensors(t) or bool(t == arguments[name]) for name, t in traced.items())


def describe(specs: Any) -> str:
    """Describe shapes and types in words: float32 (None, 224, 224, 3).

    Args:
        specs: tensors, symbolic tensors or specs, nested in dicts and lists.
    """
    if isinstance(specs, Mapping):
        # Sorted: a SavedModel keeps no order, and gives another in each process.
        parts = [f"{name!r}: {describe(specs[name])}" for name in sorted(specs, key=str)]
        return "{" + ", ".join(parts) + "}"
    if isinstance(specs, list | tuple):
        return "[" + ", ".join(map(describe, specs)) + "]"
    if not hasattr(specs, "dtype"):
        return type(specs).__name__
    unknown = isinstance(specs.shape, tf.TensorShape) and specs.shape.rank is None
    name = getattr(specs.dtype, "name", specs.dtype)
    return f"{name} {'of any shape' if unknown else tuple(specs.shape)}"


def is_tensors(spec: Any) -> bool:
    """Return whether a nested value consists of tensor specs alone."""
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
        self.calls = self._find_calls()
        self.variables, self.trainable = self._find_variables()
        losses = [] if self.signature else self._listed("regularization_losses")
        self.losses = [(loss, self._used(loss.concrete_functions)) for loss in losses]

    def _listed(self, name: str) -> list[Any]:
        """Return an attribute of the publisher's, or an empty list."""
        return list(getattr(self.loaded, name, None) or [])

    def _used(self, functions: Sequence[Any]) -> set[int]:
        """Return the indices of the variables that functions use."""
        captured = {id(tensor) for f in functions for tensor in f.captured_inputs}
        return {i for i, v in enumerate(self.variables) if id(captured_as(v)) in captured}

    def _find_calls(self) -> list[Call]:
        """Find the calls that take the arguments; refuse arguments that no call takes.

        Returns:
            The calls in the order of the module's traces; a signature is a single one.

        Raises:
            ValueError: an argument that the module does not have, or that no trace has with this
                value.
        """
        if self.signature:
            inputs = dict(self._run.structured_input_signature[1])
            outputs = self._run.structured_outputs
            calls = [Call(inputs, None, {}, outputs, self._run, (), tuple(inputs))]
        else:
            names = inspect.getfullargspec(self._run).args
            calls = [_call(f, names, self.arguments) for f in self._run.concrete_functions]
        first = {call.layout[0] for call in calls if call.layout}
        known = {name for call in calls for name in (*call.arguments, *call.layout)}
        known -= first | {"training"}
        for name, value in self.arguments.items():
            if name in known and any(call.takes_values({name: value}) for call in calls):
                continue
            traced = [repr(c.arguments[name]) for c in calls if name in c.arguments]
            raise ValueError(
                f"`arguments` must be among {sorted(known)}, with values of the module's traces, "
                f"{list(dict.fromkeys(traced))} for {name!r}, got {value!r}"
            )
        return [call for call in calls if call.takes_values(self.arguments)]

    def _find_variables(self) -> tuple[list[tf.Variable], list[bool]]:
        """Find the variables that a layer can hold, and which ones the publisher trains.

        Returns:
            The variables, each once, and for each whether it is in the publisher's
            `trainable_variables`. Lookup tables and other resources are left out; so are variables
            that loading did not create.
        """
        trained = [] if self.signature else self._listed("trainable_variables")
        captured = {id(t) for call in self.calls for t in call.function.captured_inputs}
        used = [v for v in self.created if id(captured_as(v)) in captured]
        # By identity, and each once: variables have no hash.
        every = {id(v): v for v in [*self._listed("variables"), *trained, *used]}
        created, declared = set(map(id, self.created)), set(map(id, trained))
        numeric = [v for v in every.values() if v.dtype.is_floating or v.dtype.is_integer]
        held = [variable for variable in numeric if id(variable) in created]
        return held, [id(variable) in declared for variable in held]

    @property
    def why_not_trainable(self) -> str | None:
        """The reason why the module cannot be trained, or None if it can."""
        if self.signature:
            return f"it runs its signature {self.signature!r}, and signatures are for inference"
        return None if any(self.trainable) else "it declares no trainable variables"

    @property
    def inference_call(self) -> Call:
        """The call for inference.

        The first that serves inference or has no switch; where all were traced for training, the
        first.
        """
        return next((c for c in self.calls if not c.trains(True) or c.trains(False)), self.calls[0])

    @property
    def image(self) -> tf.TensorSpec | None:
        """The one input, if it is a batch of images, or None.

        "Images" are a tensor of rank 4 with three channels or any number, in every one of the
        calls.
        """
        inputs = [tf.nest.flatten(call.inputs) for call in self.calls]
        shapes = [specs[0].shape if len(specs) == 1 else tf.TensorShape(()) for specs in inputs]
        images = all(shape.rank == 4 and shape[3] in (None, 3) for shape in shapes)
        return inputs[0][0] if images else None

    def __call__(self, inputs: Any, training: bool) -> Any:
        """Run the module; without a call for training, the one for inference.

        Args:
            inputs: nested as the module takes them, first axis = batch.
            training: the mode; a module that was traced for one mode only runs in that one.

        Returns:
            The outputs, nested as the module gives them.

        Raises:
            ValueError: the inputs fit none of its calls.
        """
        of_mode = [call for call in self.calls if call.trains(training)]
        for call in ([] if training else [self.inference_call]) + of_mode + self.calls:
            bound = _bind(call, inputs)
            if bound is not None:
                return self._apply(call, bound, training)
        takes = " or ".join(dict.fromkeys(describe(call.nested_inputs) for call in self.calls))
        raise ValueError(f"`inputs` must be {takes} for {self.handle!r}, got {describe(inputs)}")

    def _apply(self, call: Call, bound: dict[str, Any], training: bool) -> Any:
        """Run a call on bound inputs.

        Args:
            call: of this module.
            bound: the inputs by argument, as `_bind` returns them.
            training: passed on only where the call has a switch.
        """
        values = {**call.arguments, **self.arguments, **bound}
        if call.training is not None:
            # A switch that was traced as a tensor has to be one again.
            tensor = isinstance(call.training, tf.TensorSpec)
            values["training"] = tf.constant(training) if tensor else call.training
        by_name = {name: values[name] for name in call.by_name}
        return self._run(*(values[name] for name in call.layout), **by_name)

    def penalties(self, trained: set[int]) -> list[tf.Tensor]:
        """Compute the regularization losses that depend on one of these variables (indices).

        Those that depend on no variable at all count as well.

        Returns:
            A scalar for each loss that counts.
        """
        return [loss() for loss, used in self.losses if used & trained or not used]


def over_replicas(dtype: tf.DType) -> dict[str, Any]:
    """Return how `tf.distribute` keeps moving statistics: one per device, read as their mean.

    Args:
        dtype: of the statistics. Those that are not floating-point, such as counters, have no mean,
            and are read from the first replica.

    Returns:
        Keyword arguments of `tf.Variable`; none outside of a strategy's scope.
    """
    if not tf.distribute.has_strategy():
        return {}
    kinds = tf.VariableAggregation
    mean = tf.as_dtype(dtype).is_floating
    return {
        "synchronization": tf.VariableSynchronization.ON_READ,
        "aggregation": kinds.MEAN if mean else kinds.ONLY_FIRST_REPLICA,
    }


# ---------------------------------------------------------------- loading


def _load(
    folder: Path, handle: str, given: Mapping[int, tf.Variable]
) -> tuple[Any, list[tf.Variable]]:
    """Load a SavedModel; return it and the variables that were created, in order.

    Variables are told apart by the order in which they are created: names need not be unique, and
    may be lost in loading. `ModuleSpec.order` refers to that order.

    Args:
        folder: of the SavedModel.
        handle: for messages.
        given: variables to use in place of new ones, by order of creation.

    Raises:
        ValueError: TensorFlow cannot load it; with a hint where an operation is not registered.
    """
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
        hint = "Fetch the module again."
        if "not registered" in first:
            hint = (
                "Import the package that has the operation before, for text modules: pip install "
                "tensorflow-text, and import tensorflow_text."
            )
        raise ValueError(
            f"`handle` {handle!r} must be a complete SavedModel, and {folder} cannot be loaded: "
            f"{first}. {hint}"
        ) from error


@contextmanager
def _without_slots(folder: Path) -> Iterator[tuple[Path, tf.saved_model.LoadOptions]]:
    """Yield the module's folder, or a copy of its object graph without optimizer state.

    TensorFlow cannot load an optimizer's slot variables (momentum and the like) unless tf_keras has
    registered the optimizer's class. A layer has no use for them, and leaving them out makes the
    variables that are created the same with and without tf_keras.

    Yields:
        The folder to load, and the options to load it with.
    """
    file = folder / "saved_model.pb"
    graph = saved_model_pb2.SavedModel()
    try:
        graph.ParseFromString(file.read_bytes())
    except (OSError, DecodeError):
        graph.Clear()  # another format, or a broken file: TensorFlow says what is wrong
    plain = []  # nodes that lose their type, but keep their children
    for meta in graph.meta_graphs:
        nodes = meta.object_graph_def.nodes
        for node in nodes:
            slots = [nodes[slot.slot_variable_node_id] for slot in node.slot_variables]
            plain += [*slots, node] if slots else []
    if not plain:
        yield folder, tf.saved_model.LoadOptions()
        return
    for node in plain:
        children = list(node.children)
        node.Clear()
        node.children.extend(children)
        node.user_object.identifier = "_generic_user_object"
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


def _load_any(folder: str, options: tf.saved_model.LoadOptions) -> Any:
    """Load a SavedModel; of a TF1 module with a graph for training beside it, that for serving.

    `tags=[]` picks the graph without tags, which is the one for inference of a TF1 Hub module.
    """
    try:
        return tf.saved_model.load(folder, options=options)
    except ValueError as error:
        if "`tags=`" not in str(error):
            raise
    try:
        return tf.saved_model.load(folder, tags=[], options=options)
    except RuntimeError:
        return tf.saved_model.load(folder, tags=["serve"], options=options)


# ---------------------------------------------------------------- calls


def _find_call(loaded: Any, handle: str, signature: str | None) -> tuple[str | None, Any]:
    """Return the name of the signature, None for a call, and what runs."""
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


def _call(function: Any, names: Sequence[str], arguments: Mapping[str, Any]) -> Call:
    """Describe a concrete function; what `arguments` names is not among its inputs.

    Args:
        function: a concrete function of the module's call.
        names: of the positional arguments of the Python function that was traced.
        arguments: what the user gave for further arguments.
    """
    positional, by_name = function.structured_input_signature
    layout = tuple(names[i] if i < len(names) else f"argument_{i}" for i in range(len(positional)))
    values = {**dict(zip(layout, positional, strict=True)), **by_name}
    training = values.pop("training", None)
    taken = [name for name in values if is_tensors(values[name]) and name not in arguments]
    inputs = {name: values.pop(name) for name in taken}
    outputs = function.structured_outputs
    return Call(inputs, training, values, outputs, function, layout, tuple(by_name))


def _bind(call: Call, inputs: Any) -> dict[str, Any] | None:
    """Pack and cast inputs by argument, as they were traced; None if they do not fit.

    Inputs may come as the module declares them, by name or in order; a single argument also bare.
    """
    names, parts = list(call.inputs), inputs
    if not isinstance(inputs, Mapping) or set(inputs) != set(names):
        if len(names) == 1:
            inputs = [inputs]
        if not isinstance(inputs, list | tuple) or len(inputs) != len(names):
            return None
        parts = dict(zip(names, inputs, strict=True))
    fitted = {name: _fit(call.inputs[name], parts[name]) for name in names}
    return None if any(part is None for part in fitted.values()) else fitted


def _fit(specs: Any, values: Any) -> Any | None:
    """Cast nested tensors to the traced types, among floats or among integers; None if not so.

    Floats are not cast to integers, nor integers to floats: pixels of 0 to 255 would be taken for
    numbers in [0, 1], or the reverse.
    """
    if isinstance(specs, Mapping) and not (
        isinstance(values, Mapping) and specs.keys() == {*values}
    ):
        return None
    leaves, wanted = tf.nest.flatten(values), tf.nest.flatten(specs)
    if len(leaves) != len(wanted):
        return None
    cast = []
    for leaf, spec in zip(leaves, wanted, strict=True):
        tensor = leaf if tf.is_tensor(leaf) else tf.convert_to_tensor(leaf)
        have, want = tensor.dtype, spec.dtype
        alike = (have.is_floating and want.is_floating) or (have.is_integer and want.is_integer)
        if not (have == want or alike) or not spec.shape.is_compatible_with(tensor.shape):
            return None
        cast.append(tf.cast(tensor, want))
    return tf.nest.pack_sequence_as(specs, cast)


# ---------------------------------------------------------------- the description in a file


@dataclass
class ModuleSpec:
    """A module without its graph, as a `.keras` file describes it.

    Keras builds a loaded model before it hands out the files that travel with it. From this a
    `HubLayer` is built, with its variables and the shapes of its outputs, before its module is
    there.

    Attributes:
        sha256: the hash of the module's content.
        paths: the names of the variables, as the publisher wrote them.
        shapes, dtypes: of the variables.
        trainable: which variables the publisher lists as trainable.
        order: which of the variables that loading creates each one is.
        depths: the rank of each variable in the order of first use, from input to output.
        inputs: a `keras.KerasTensor` for each input, nested as the module takes them.
        takes_images: whether the one input is a batch of RGB images, or undeclared.
        image_size: the (height, width) that the module insists on, if any.
        input_range: the (low, high) of the pixels where the module itself tells it.
        why_not_trainable: the reason why the module cannot be trained, or None.
        calls: inputs and outputs seen so far, as pairs of nested `keras.KerasTensor`s.
    """

    sha256: str
    paths: list[str]
    shapes: list[list[int]]
    dtypes: list[str]
    trainable: list[bool]
    order: list[int]
    depths: list[int]
    inputs: Any
    takes_images: bool
    image_size: tuple[int, int] | None
    input_range: tuple[float, float] | None
    why_not_trainable: str | None
    calls: list[tuple[Any, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, module: Module, sha256: str) -> ModuleSpec:
        """Describe a loaded module."""
        held = module.variables
        depths = [0] * len(held)
        for depth, index in enumerate(variable_order(module.inference_call.function, held)):
            depths[index] = depth
        inputs = module.inference_call.nested_inputs
        image, specs = module.image, tf.nest.flatten(inputs)
        undeclared = len(specs) == 1 and specs[0].shape.rank is None and specs[0].dtype.is_floating
        size = None if image is None else tuple(image.shape[1:3])
        created = {id(variable): number for number, variable in enumerate(module.created)}
        return cls(
            sha256=sha256,
            paths=[v.name.removesuffix(":0") for v in held],
            shapes=[list(v.shape) for v in held],
            dtypes=[v.dtype.name for v in held],
            trainable=list(module.trainable),
            order=[created[id(v)] for v in held],
            depths=depths,
            inputs=tf.nest.map_structure(_symbol, inputs),
            takes_images=image is not None or undeclared,
            image_size=None if size is None or None in size else size,
            input_range=(0.0, 255.0) if image is not None and image.dtype.is_integer else None,
            why_not_trainable=module.why_not_trainable,
        )

    @property
    def names(self) -> list[str]:
        """The variables' paths, in letters that every optimizer accepts."""
        return [re.sub(r"[^0-9A-Za-z_.-]", "_", path) for path in self.paths]

    def empty_variables(self) -> list[tf.Variable]:
        """Make variables of zeros, to be filled when the module is there."""
        found = []
        for k, (dtype, trained) in enumerate(zip(self.dtypes, self.trainable, strict=True)):
            options = {} if trained else over_replicas(dtype)
            zeros = tf.zeros(self.shapes[k], dtype)
            found.append(tf.Variable(zeros, trainable=trained, name=self.names[k], **options))
        return found

    def remember(self, inputs: Any, outputs: Any) -> None:
        """Keep the shapes of a call, for a loaded model whose module is not there yet.

        At most `MOST_CALLS` are kept: text or images of many sizes would fill the file's config.

        Args:
            inputs, outputs: tensors or symbols, nested, of one call.
        """
        new = all(_shapes(inputs) != _shapes(known) for known, _ in self.calls)
        if new and len(self.calls) < MOST_CALLS:
            pair = (tf.nest.map_structure(_bare, each) for each in (inputs, outputs))
            self.calls.append(tuple(pair))

    def outputs_of(self, inputs: Any, name: str) -> Any:
        """Return the outputs that a call with inputs of these shapes gave.

        Returns:
            Nested `keras.KerasTensor`s with the batch size of the inputs.

        Raises:
            ValueError: there was no such call.
        """
        batch = tf.nest.flatten(inputs)[0].shape[0]
        for known, outputs in self.calls:
            if _shapes(inputs) == _shapes(known):
                return tf.nest.map_structure(lambda output: _bare(output, batch), outputs)
        raise ValueError(
            f"`inputs` must have shapes that `HubLayer` {name!r} was called with before it was "
            "saved, until its module is loaded"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the description for JSON.

        `format` is raised when an older kerasmtl could not read it; `version` says which one can.
        """
        plain = {key: value for key, value in vars(self).items() if key not in ("inputs", "calls")}
        return {
            "format": FORMAT,
            "version": __version__,
            **plain,
            "inputs": keras.saving.serialize_keras_object(self.inputs),
            "calls": [keras.saving.serialize_keras_object(list(pair)) for pair in self.calls],
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> ModuleSpec:
        """Read what `to_dict` wrote; keys of later versions are ignored."""
        known = {key: saved[key] for key in cls.__dataclass_fields__ if key in saved}
        if "takes_pictures" in saved:  # its name in files of kerasmtl 0.1
            known["takes_images"] = saved["takes_pictures"]
        known["inputs"] = keras.saving.deserialize_keras_object(saved["inputs"])
        known["calls"] = [
            tuple(keras.saving.deserialize_keras_object(pair)) for pair in saved["calls"]
        ]
        for key in ("image_size", "input_range"):
            known[key] = known[key] and tuple(known[key])
        return cls(**known)


def _symbol(spec: Any) -> keras.KerasTensor:
    """Return the symbol of an input of a call; unknown shapes count as (batch,)."""
    shape = (None,) if spec.shape.rank is None else tuple(spec.shape)
    return keras.KerasTensor(shape, dtype=spec.dtype.name)


def _bare(tensor: Any, batch: int | None = None) -> keras.KerasTensor:
    """Return shape and type alone, for any batch or for one."""
    shape = tuple(tensor.shape)
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return keras.KerasTensor((batch, *shape[1:]) if shape else shape, dtype=dtype)


def _shapes(inputs: Any) -> list[tuple[Any, str]]:
    """Return shapes without the batch, and types."""
    return [
        (tuple(t.shape)[1:], keras.backend.standardize_dtype(t.dtype))
        for t in tf.nest.flatten(inputs)
    ]
