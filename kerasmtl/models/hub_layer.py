"""HubLayer: a reusable SavedModel as a Keras 3 layer that any optimizer can train."""

from __future__ import annotations

import atexit
import json
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from kerasmtl._version import __version__
from kerasmtl.models.graph import xla_obstacle
from kerasmtl.models.hub.cache import content_sha256, copy_module, holds, keep_module
from kerasmtl.models.hub.embedded import EXTRACTORS, extractor_folder
from kerasmtl.models.hub.handles import is_remote, resolve_handle
from kerasmtl.models.module_spec import FORMAT, Description, module_at_hand, runs_already
from kerasmtl.models.saved_model import Module
from kerasmtl.utils.files import is_module
from kerasmtl.utils.tf import as_written

if TYPE_CHECKING:
    from kerasmtl.models.layer_groups import LayerGroup

Step = str | int


def as_output_key(key: Any) -> Step | tuple[Step, ...] | None:
    """A key, an index, or a tuple of them.

    Raises:
        ValueError: anything else.
    """
    steps = (key,) if isinstance(key, str | int) else key
    whole = isinstance(steps, list | tuple) and len(steps) > 0
    if key is None or (
        whole and all(isinstance(s, str | int) and not isinstance(s, bool) for s in steps)
    ):
        return tuple(key) if isinstance(key, list) else key
    raise ValueError(
        "`output_key` is no key. Expected a string, an index, or several for a nested output, such "
        f"as ('boxes', 0). Received: {key!r}"
    )


def as_arguments(arguments: Any) -> dict[str, Any]:
    """Values by name, which can be saved.

    Raises:
        ValueError: no mapping, or a value that JSON cannot hold.
    """
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping) or not all(isinstance(k, str) for k in arguments):
        raise ValueError(
            "`arguments` is no mapping of names. Expected such as {'return_sequence': True}. "
            f"Received: {arguments!r}"
        )
    try:
        json.dumps(dict(arguments))
    except TypeError as error:
        raise ValueError(
            "`arguments` has a value that cannot be saved. Expected numbers, strings, booleans, "
            f"None, or lists of them; call .numpy().tolist() on a tensor. Received: {error}"
        ) from None
    return dict(arguments)


def as_output_shape(shape: Any) -> tuple[int | None, ...] | None:
    """A shape without the batch.

    Raises:
        ValueError: no sequence of positive numbers and None.
    """
    if shape is None:
        return None
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else None
    if sizes is None or not all(
        n is None or (isinstance(n, int) and not isinstance(n, bool) and n > 0) for n in sizes
    ):
        raise ValueError(
            "`output_shape` is no shape. Expected the sizes without the batch, such as (1280,). "
            f"Received: {shape!r}"
        )
    return sizes


def as_range(pixels: Any) -> tuple[float, float] | None:
    """(low, high).

    Raises:
        ValueError: no two finite numbers, the lower one first.
    """
    if pixels is None:
        return None
    try:
        low, high = (float(value) for value in pixels)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            "`input_range` is no range. Expected (low, high) of the pixels, such as (0, 255). "
            f"Received: {pixels!r}"
        )
    return low, high


_TRUSTED: ContextVar[frozenset[str]] = ContextVar("kerasmtl_trusted", default=frozenset())


@contextmanager
def trusting(hashes: Iterable[str]) -> Iterator[None]:
    """Within, modules with these SHA-256 sums run even in safe mode."""
    token = _TRUSTED.set(_TRUSTED.get() | frozenset(hashes))
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def refuse_in_safe_mode(handle: str, sha256: str) -> None:
    """Raise if Keras is loading a file in safe mode and nobody vouches for the module.

    Raises:
        ValueError: says how to trust the file knowingly.
    """
    if not _in_safe_mode() or sha256 in _TRUSTED.get() or _is_embedded(sha256):
        return
    if runs_already(sha256):  # Keras is in safe mode while it clones a nested model, too
        return
    raise ValueError(
        f"`safe_mode` is on, and this file runs the graph of a foreign SavedModel: {handle!r}, "
        f"SHA-256 {sha256}. A graph can read and write files. If you trust where the file comes "
        "from, call kerasmtl.load_model(path, safe_mode=False) or keras.models.load_model(path, "
        "safe_mode=False), or keras.config.enable_unsafe_deserialization() before; if you have "
        "the module yourself, kerasmtl.load_model(path, trust='its handle or sha256:…'). On the "
        "command line: --trust."
    )


def _is_embedded(sha256: str) -> bool:
    return any(content_sha256(extractor_folder(name)) == sha256 for name in EXTRACTORS)


def _in_safe_mode() -> bool:
    """Whether Keras is loading a file in safe mode: then, and only then, it refuses a lambda."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of every lambda
        harmless = keras.saving.serialize_keras_object(lambda: None)
        try:
            keras.saving.deserialize_keras_object(harmless, safe_mode=False)
        except ValueError:
            return True
    return False


PARAMETER = re.compile(r"= (?:pred|[a-z]+\d+)\[([\d,]*)\]\S* parameter\(\d+\)")


def obstacle(
    function: Any,
    call: Callable[[Any], Any],
    example: Any,
    variables: Sequence[tf.Variable],
) -> str:
    """Why training a model with a module should not be compiled by XLA, or "" if it may.

    Where the shapes in a gradient are computed from the inputs, XLA takes the inputs themselves for
    constants, and compiles anew for every batch: seconds a step. It shows in the compiled program,
    which then has no parameter for the inputs.

    Args:
        function: the concrete function of the call, looked through for what XLA lacks.
        call: the module, inputs → outputs.
        example: inputs of shapes that the module takes; no values are computed from them.
        variables: those that a gradient tape watches.
    """
    known = xla_obstacle(function)
    if known:
        return known
    inputs = tf.nest.flatten(example)

    @as_written
    def step(*flat: Any) -> Any:
        with tf.GradientTape() as tape:
            outputs = tf.nest.flatten(call(tf.nest.pack_sequence_as(example, flat)))
            loss = tf.add_n([tf.reduce_sum(tf.cast(o, tf.float32)) for o in outputs])
        return loss, [g for g in tape.gradient(loss, list(variables)) if g is not None]

    try:
        compiled = tf.function(step, jit_compile=True)
        program = compiled.experimental_get_compiler_ir(*inputs)(stage="hlo")
    except (tf.errors.OpError, ValueError, TypeError, NotImplementedError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    found = PARAMETER.findall(program[program.index("ENTRY") :])
    expected = [shape for t in (*inputs, *variables) if (shape := _text(t.shape)) in _texts(inputs)]
    if any(found.count(shape) < expected.count(shape) for shape in expected):
        return "its gradient would be compiled anew for every batch"
    return ""


def _texts(tensors: Sequence[tf.Tensor]) -> set[str]:
    return {_text(tensor.shape) for tensor in tensors}


def _text(shape: Any) -> str:
    return ",".join(str(int(n)) for n in shape)


UNIT_RANGE = (0.0, 1.0)  # of pictures, by the convention of TF-Hub


@keras.saving.register_keras_serializable(package="kerasmtl")
class HubLayer(keras.layers.Layer):
    """A SavedModel of TF-Hub, Kaggle or your own as a layer, frozen or trainable.

    Shapes: as the module declares, nested inputs and outputs included; for an image feature vector
    float32 (batch, height, width, 3) in, (batch, features) out. Always float32, under any global
    policy.

    Follows the reusable-SavedModel interface
    (https://www.tensorflow.org/hub/reusable_saved_models): the module is called in training mode,
    its moving statistics change, and its regularization losses count only while the layer is
    trainable. Its `trainable_variables` alone are trained; `unfreeze` trains a part of them.
    Modules that have signatures only (TF1 Hub format among them) run, and cannot be trained.

    A `.keras` file holds the module itself, under its SHA-256, and loads without the original
    folder, by `kerasmtl.load_model` or, after `import kerasmtl`, `keras.models.load_model`.

    Args:
        handle: what `resolve_handle` takes: "tiny" (embedded), a folder, an archive, a URL,
            "kaggle:…", "hf:…", "gs://…".
        trainable: whether fitting changes the module, as a whole and in training mode.
        signature: the signature to run, for inference only.
        output_key: which output to take: a key, an index, or several for a nested output.
        arguments: values for further arguments of the module's call.
        output_shape: without the batch, for modules that do not declare theirs.
        input_range: (low, high) of the pixels the module takes; by default found in its graph, or
            else [0, 1].
        sha256: of the module's content, as `kerasmtl vendor` and `kerasmtl inspect` print it;
            anything else is refused.
        name: of the layer.

    Raises:
        ValueError: the handle is unknown or unreachable, holds no SavedModel or another content,
            has no such signature, argument or output, or `trainable=True` for a module that
            cannot be trained.
    """

    def __init__(
        self,
        handle: str | os.PathLike[str],
        trainable: bool = False,
        signature: str | None = None,
        output_key: str | int | Sequence[str | int] | None = None,
        arguments: Mapping[str, Any] | None = None,
        output_shape: Sequence[int | None] | None = None,
        input_range: tuple[float, float] | None = None,
        sha256: str | None = None,
        name: str | None = None,
        _description: Description | None = None,
        _folder: Path | None = None,
    ) -> None:
        super().__init__(name=name, dtype="float32")
        self.handle = _portable(handle)
        self.signature = signature
        self.output_key = as_output_key(output_key)
        self.arguments = as_arguments(arguments)
        self.declared_shape = as_output_shape(output_shape)
        self._given_range = as_range(input_range)
        self._module: Module | None = None
        self._trains_mode = False
        if _folder is None and _description is not None:
            self._description = _description
            self._adopted = _adopt(_description.empty_variables(), _description)
        else:
            folder = _folder or resolve_handle(handle, sha256=sha256)
            known = _description.sha256 if _description else sha256 and sha256.lower()
            self._open(folder, known or content_sha256(folder))
            self._adopted = _adopt(self._module.variables, self._description)
        self.trainable = trainable
        self.built = True

    def _open(self, folder: Path, sha256: str, given: dict[int, tf.Variable] | None = None) -> None:
        self._module = Module(folder, self.handle, self.signature, self.arguments, given)
        self._loaded_module = self._module.loaded  # an export looks for its tables here
        self.signature = self._module.signature
        self._description = Description.of(self._module, sha256)

    @property
    def module(self) -> Module:
        """The SavedModel, loaded.

        Raises:
            ValueError: the layer comes from a file that is not loaded yet.
        """
        if self._module is None:
            raise ValueError(
                f"`HubLayer` {self.name!r} waits for its module, which comes with the file it is "
                f"loaded from. Expected a .keras file with {self.handle!r} in it, SHA-256 "
                f"{self.sha256}. Load that file with kerasmtl.load_model, or put the module back "
                "and build the layer anew."
            )
        return self._module

    @property
    def sha256(self) -> str:
        """Of the module's content."""
        return self._description.sha256

    @property
    def image_size(self) -> tuple[int, int] | None:
        """The (height, width) the module was made for, or None if it takes any."""
        embedded = EXTRACTORS.get(self.handle)
        return embedded.image_size if embedded else self._description.image_size

    @property
    def input_range(self) -> tuple[float, float]:
        """The (low, high) of the pixels that the module takes."""
        return self._given_range or self._description.input_range or UNIT_RANGE

    @property
    def range_source(self) -> str:
        """How `input_range` is known."""
        if self._given_range:
            return "as given"
        return "found in the graph" if self._description.input_range else "convention of TF-Hub"

    @property
    def takes_pictures(self) -> bool:
        """Whether the module takes RGB pictures, or does not say what it takes."""
        return self._description.takes_pictures

    @property
    def module_inputs(self) -> Any:
        """What the module takes, nested: a `keras.KerasTensor` for each input."""
        return self._description.inputs

    @property
    def module_variables(self) -> list[keras.Variable]:
        """The module's variables as its publisher lists them."""
        return list(self._adopted)

    @property
    def variable_paths(self) -> list[str]:
        """The names of `module_variables` as the publisher wrote them."""
        return self._description.paths

    @property
    def variable_depths(self) -> list[int]:
        """The place of each of `module_variables` in the order of first use."""
        return self._description.depths

    @property
    def variable_declared(self) -> list[bool]:
        """Which of `module_variables` the publisher lists as trainable."""
        return self._description.trainable

    # Keras' attribute tracking skips the setter of `trainable` when the value seems unchanged, so
    # that a partly unfrozen layer could not be unfrozen as a whole.
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "trainable":
            type(self).trainable.fset(self, value)
        else:
            super().__setattr__(name, value)

    @property
    def trainable(self) -> bool:
        """Whether fitting changes the module. Setting it freezes or unfreezes the whole."""
        return keras.layers.Layer.trainable.fget(self)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        if value:
            self.check_trainable()
        keras.layers.Layer.trainable.fset(self, bool(value))
        self._trains_mode = bool(value)

    def check_trainable(self) -> None:
        """Raise if the module cannot be trained.

        Raises:
            ValueError: says why.
        """
        reason = self._description.why_not_trainable
        if reason is not None:
            raise ValueError(
                f"`trainable` cannot be True for {self.handle!r}: {reason}. Expected a TF2 "
                "reusable SavedModel with trainable_variables. Call with trainable=False."
            )

    def layer_groups(self) -> list[LayerGroup]:
        """The module's layers with weights, from input to output; see `kerasmtl.unfreeze`."""
        from kerasmtl.models.layer_groups import hub_units

        return [unit.group() for unit in hub_units(self)]

    def unfreeze(
        self,
        last: int | float | None = None,
        match: str | None = None,
        normalization: bool = False,
    ) -> list[LayerGroup]:
        """Train a part of the module and freeze the rest; see `kerasmtl.unfreeze`."""
        self.check_trainable()
        from kerasmtl.models.layer_groups import hub_units, unfreeze_units

        return unfreeze_units(hub_units(self), last, match, normalization, self.name)

    def freeze(self) -> None:
        """Train nothing of the module."""
        self.trainable = False

    def select_variables(self, trained: Sequence[bool], training_mode: bool) -> None:
        """Train exactly these of `variables`, in training mode or in inference mode.

        Raises:
            ValueError: the module cannot be trained.
        """
        self.trainable = any(trained)
        for variable, value in zip(self._adopted, trained, strict=True):
            variable.trainable = value
        self._trains_mode = training_mode and self.trainable

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if self._module is None and not tf.executing_eagerly():
            return self._awaited(inputs)
        outputs = self._outputs(inputs, training)
        self._description.remember(inputs, outputs)
        if self.trainable:
            trained = {i for i, variable in enumerate(self._adopted) if variable.trainable}
            for loss in self._module.penalties(trained):
                self.add_loss(loss)
        return outputs

    def _outputs(self, inputs: Any, training: bool | None) -> Any:
        outputs = self.module(inputs, bool(training) and self.trainable and self._trains_mode)
        return self._shaped(self._pick(outputs))

    def _awaited(self, inputs: Any) -> Any:
        """Zeros in the place of outputs: Keras traces a model to build it before it is loaded."""
        batch = tf.shape(tf.nest.flatten(inputs)[0])[0]
        return tf.nest.map_structure(
            lambda o: tf.zeros([batch, *o.shape[1:]], o.dtype),
            self._description.outputs_of(inputs, self.name),
        )

    def _pick(self, outputs: Any) -> Any:
        if self.output_key is None:
            single = self.signature and isinstance(outputs, Mapping) and len(outputs) == 1
            return next(iter(outputs.values())) if single else outputs
        steps = [self.output_key] if isinstance(self.output_key, str | int) else self.output_key
        for step in steps:
            try:
                outputs = outputs[step]
            except (KeyError, IndexError, TypeError, ValueError):
                keys = (
                    sorted(outputs)
                    if isinstance(outputs, Mapping)
                    else list(range(len(outputs)))
                    if isinstance(outputs, list | tuple)
                    else "none: the output has no parts"
                )
                raise ValueError(
                    f"`output_key` {self.output_key!r} is not among the outputs of "
                    f"{self.handle!r}. Expected one of: {keys}"
                ) from None
        return outputs

    def _shaped(self, outputs: Any) -> Any:
        if self.declared_shape is None or isinstance(outputs, Mapping | list | tuple):
            return outputs
        return tf.ensure_shape(outputs, (None, *self.declared_shape))

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        if self._module is None:
            return self._description.outputs_of(inputs, self.name)
        leaves = tf.nest.flatten(inputs)
        specs = [tf.TensorSpec(leaf.shape, leaf.dtype) for leaf in leaves]
        traced = tf.function(
            lambda *given: self._outputs(tf.nest.pack_sequence_as(inputs, given), training),
            autograph=False,
        ).get_concrete_function(*specs)
        outputs = tf.nest.map_structure(self._symbol, traced.structured_outputs)
        self._description.remember(inputs, outputs)
        return outputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        inputs = keras.tree.map_structure_up_to(
            self.module_inputs,
            lambda spec, shape: keras.KerasTensor(tuple(shape), dtype=spec.dtype),
            self.module_inputs,
            input_shape,
        )
        return tf.nest.map_structure(lambda o: tuple(o.shape), self.compute_output_spec(inputs))

    def _symbol(self, tensor: Any) -> keras.KerasTensor:
        if not isinstance(tensor, tf.Tensor | tf.TensorSpec):
            raise ValueError(
                f"`handle` {self.handle!r} gives a {type(tensor).__name__}. Expected dense "
                "tensors. Choose another output with output_key=…."
            )
        if tensor.shape.rank is None:
            raise ValueError(
                f"`output_shape` is needed: {self.handle!r} does not declare the shape of its "
                "output. Call HubLayer(…, output_shape=(features,))."
            )
        return keras.KerasTensor(tuple(tensor.shape), dtype=tensor.dtype.name)

    @property
    def supports_jit(self) -> bool:
        """Whether XLA can compile the module; Keras asks when a model is compiled."""
        found = self._description.xla
        if found is None and self._module is not None:
            found = self._description.xla = self._xla_obstacle()
            if found:
                warnings.warn(
                    f"jit_compile is off: {self.handle!r} cannot be compiled by XLA: {found}",
                    stacklevel=2,
                )
        return found == ""

    def _xla_obstacle(self) -> str:
        example = self._description.example(self.image_size)
        watched = [v.value for v in self._adopted if v.value.trainable]
        for training in (False, True) if self._description.why_not_trainable is None else (False,):
            found = obstacle(
                self.module.call_for(training).function,
                lambda inputs, training=training: self._shaped(
                    self._pick(self.module(inputs, training))
                ),
                example,
                watched,
            )
            if found:
                return found
        return ""

    @supports_jit.setter
    def supports_jit(self, value: bool) -> None:
        pass  # Keras' constructor sets True

    def save_assets(self, dir_path: str) -> None:
        """Put the module into the file that Keras is writing.

        Where it has changed or gone since it was loaded, the file is written without it, with a
        warning: what was learnt is not lost.
        """
        folder = self.module.folder
        if not (is_module(folder) and holds(folder, self.sha256)):
            folder = module_at_hand(self.handle, self.sha256)
        if folder is None:
            warnings.warn(
                f"`handle` {self.handle!r} has changed or gone since it was loaded. The file is "
                f"saved without it, and loads where the module with SHA-256 {self.sha256} is in "
                "its place. Put the module back and save again for a file that loads everywhere.",
                stacklevel=2,
            )
            return
        copy_module(folder, Path(dir_path) / "module")

    def load_assets(self, dir_path: str) -> None:
        """Take the module from the file that Keras is reading, if it is not at hand already.

        Raises:
            ValueError: the file's module is absent or not what the layer was saved with.
        """
        if self._module is not None:
            return
        carried = Path(dir_path) / "module" if dir_path else None  # Keras found no folder
        if carried is None or not carried.is_dir():
            raise ValueError(
                f"`handle` {self.handle!r} is gone, and the file holds no module in its place. "
                f"Expected SHA-256 {self.sha256}. Put the folder back, or set TFHUB_CACHE_DIR to "
                "where it is kept."
            )
        if not holds(carried, self.sha256):
            raise ValueError(
                f"`handle` {self.handle!r} is gone, and the module that the file holds in its "
                f"place was changed since it was saved. Expected SHA-256 {self.sha256}. Get the "
                "file anew from where it came, or put the module back."
            )
        folder = _kept(carried, self.sha256)
        values = [variable.numpy() for variable in self._adopted]
        given = {
            order: variable.value
            for order, variable in zip(self._description.order, self._adopted, strict=True)
        }
        expected = self._description
        self._open(folder, self.sha256, given)
        self._description = expected  # the given variables lack their publisher's names
        if any(
            a is not b.value for a, b in zip(self._module.variables, self._adopted, strict=True)
        ):
            raise ValueError(
                f"`handle` {self.handle!r} was saved with another TensorFlow, which creates "
                f"variables in another order. Received: TensorFlow {tf.__version__}. Load it with "
                "the folder of the module in place."
            )
        for variable, value in zip(self._adopted, values, strict=True):
            variable.assign(value)

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "handle": self.handle,
            "trainable": self.trainable,
            "signature": self.signature,
            "output_key": self.output_key,
            "arguments": dict(self.arguments),
            "output_shape": self.declared_shape,
            "input_range": self._given_range,
            "module": {
                **self._description.to_dict(),
                "trained": [variable.trainable for variable in self._adopted],
                "training_mode": self._trains_mode,
            },
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> HubLayer:
        """A layer from its config; a module that is not at hand is awaited from the file.

        Raises:
            ValueError: Keras' safe mode is on and nobody vouches for the module, or the config is
                of a later kerasmtl.
        """
        config = dict(config)
        module = config.pop("module", None)
        if module is None:
            refuse_in_safe_mode(config["handle"], "unknown")
            return cls(**config)
        if module.get("format") != FORMAT:
            raise ValueError(
                f"`HubLayer` {config['name']!r} ({config['handle']!r}) was saved by kerasmtl "
                f"{module.get('version')}, in format {module.get('format')}. Expected format "
                f"{FORMAT}, that of kerasmtl {__version__}. pip install "
                f"'kerasmtl=={module.get('version')}'."
            )
        description = Description.from_dict(module)
        refuse_in_safe_mode(config["handle"], description.sha256)
        folder = module_at_hand(config["handle"], description.sha256)
        trainable = config.pop("trainable")
        layer = cls(**config, _description=description, _folder=folder)
        layer._description.calls = description.calls
        if trainable:
            layer.select_variables(module["trained"], module["training_mode"])
        return layer


def _kept(carried: Path, sha256: str) -> Path:
    """A copy of a module that outlives the loading: in the cache, or else with the process."""
    try:
        return keep_module(carried, sha256)
    except OSError:  # no cache that can be written to
        place = Path(tempfile.mkdtemp(prefix="kerasmtl-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        copy_module(carried, place)
        return place


def _adopt(variables: Sequence[tf.Variable], description: Description) -> list[keras.Variable]:
    """The module's own variables, under names that every optimizer accepts."""
    return [
        keras.Variable(variable, trainable=trained, dtype=variable.dtype.name, name=name)
        for variable, trained, name in zip(
            variables, description.trainable, description.names, strict=True
        )
    ]


def _portable(handle: str | os.PathLike[str]) -> str:
    """A local path made absolute, so that a saved model loads from any working folder."""
    handle = os.fspath(handle)
    if handle in EXTRACTORS or is_remote(handle):
        return handle
    return os.path.abspath(os.path.expanduser(handle))
