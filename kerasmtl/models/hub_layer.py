"""HubLayer: a reusable SavedModel as a Keras 3 layer that any optimizer can train.

The layer is made in two ways. From a handle, the SavedModel is loaded at once. From a .keras file,
Keras first builds the whole model, and hands out the files that travel with it last: until then,
unless the module is found on this machine, the layer has only a `ModuleSpec`, with empty variables
and remembered output shapes. What runs and loads the graph is `saved_model.Module`; what finds the
folder is the package `hub`.

A SavedModel can contain any operation of TensorFlow, file access included, so that loading a file
of somebody else's is guarded by Keras' safe mode: see `refuse_in_safe_mode` and `trusting`.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kerasmtl.models.hub.cache import content_sha256, copy_module, holds, keep_module, kept_module
from kerasmtl.models.hub.embedded import EXTRACTORS, extractor_folder
from kerasmtl.models.hub.handles import is_published, is_remote, resolve_handle
from kerasmtl.models.saved_model import FORMAT, Module, ModuleSpec
from kerasmtl.utils.validation import check_number

# Of images, by the convention of TF-Hub:
# https://www.tensorflow.org/hub/common_signatures/images#input
UNIT_RANGE = (0.0, 1.0)

_loaded: dict[str, Path] = {}  # of the modules of this process: SHA-256 → folder
_temporary: list[tempfile.TemporaryDirectory] = []  # removed when the process ends
_TRUSTED: ContextVar[frozenset[str]] = ContextVar("kerasmtl_trusted", default=frozenset())


@keras.saving.register_keras_serializable(package="kerasmtl")
class HubLayer(keras.layers.Layer):
    """A SavedModel of TF-Hub, Kaggle or your own as a layer, frozen or trainable.

    Shapes: as the module declares, nested inputs and outputs included; for an image feature vector
    float32 (batch, height, width, 3) in, (batch, features) out. Always float32, under any global
    policy.

    Follows the reusable-SavedModel interface
    (https://www.tensorflow.org/hub/reusable_saved_models): the module is called in training mode,
    its moving statistics change, and its regularization losses count only while the layer is
    trainable. Only its `trainable_variables` are trained; `kerasmtl.unfreeze` trains a part of
    them. Modules with signatures only (such as the TF1 Hub format) run, but cannot be trained.

    A `.keras` file contains the module itself, under its SHA-256, and loads without the original
    folder, by `kerasmtl.load_model` or, after `import kerasmtl`, `keras.models.load_model`.

    Args:
        handle: what `resolve_handle` takes: "tiny" (embedded), a folder, an archive, a URL,
            "kaggle:…", "hf:…", "gs://…".
        trainable: whether fitting changes the module, as a whole and in training mode.
        signature: the signature to run, for inference only.
        output_key: which output to take: a key, an index, or several for a nested output.
        arguments: values for further arguments of the module's call.
        output_shape: without the batch, for modules that do not declare theirs.
        input_range: (low, high) of the pixels the module takes; by default [0, 1], the convention
            of TF-Hub, or [0, 255] for integer pixels. The layer itself does not rescale:
            `build_model` does, and warns where the range of a float module is only assumed.
        sha256: of the module's content, as `kerasmtl vendor` and `kerasmtl inspect` print it;
            anything else is refused.
        jit: whether XLA may compile a model with this layer (`jit_compile` of `compile`, which is
            on by default with a GPU only). Off by default, since XLA lacks operations for text,
            tables and image files, and compiles some gradients again for every batch, which takes
            seconds per step. Worth a try for a module that is called with one fixed shape.
        name: of the layer.

    Raises:
        ValueError: the handle is unknown or unreachable, contains no SavedModel or another content,
            has no such signature, argument or output, or `trainable=True` for a module that
            cannot be trained.

    Example:
        >>> import keras, numpy as np
        >>> import kerasmtl as kt
        >>> layer = kt.HubLayer("tiny")
        >>> images = np.zeros((2, 128, 128, 3), "float32")
        >>> layer(images).shape
        TensorShape([2, 192])
        >>> len(layer.trainable_variables)
        0
        >>> layer.trainable = True  # or kt.unfreeze(layer, last=2); then compile the model
        >>> len(layer.trainable_variables)
        24
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
        jit: bool = False,
        name: str | None = None,
        _spec: ModuleSpec | None = None,
        _folder: Path | None = None,
    ) -> None:
        super().__init__(name=name, dtype="float32")
        self.supports_jit = bool(jit)  # Keras asks for it when a model is compiled
        local = os.fspath(handle) not in EXTRACTORS and not is_remote(os.fspath(handle))
        # Absolute, so that a saved model loads from any working folder.
        self.handle = os.path.abspath(os.path.expanduser(handle)) if local else os.fspath(handle)
        self.signature = signature
        self.output_key = tuple(output_key) if isinstance(output_key, list) else output_key
        self.arguments = _as_arguments(arguments)
        if not isinstance(output_shape, list | tuple | None):
            raise ValueError(f"`output_shape` must be sizes such as (1280,), got {output_shape!r}")
        self.declared_shape = None if output_shape is None else tuple(output_shape)
        self._given_range = _as_range(input_range)
        self._module: Module | None = None
        self._trains_mode = False
        if _folder is None and _spec is not None:
            self.spec = _spec  # among others names and depths of `module_variables`
            variables = _spec.empty_variables()
        else:
            folder = _folder or resolve_handle(handle, sha256=sha256)
            self._open(folder, _spec.sha256 if _spec else content_sha256(folder))
            variables = self._module.variables
        # The module's own variables, under names that every optimizer accepts.
        each = zip(variables, self.spec.trainable, self.spec.names, strict=True)
        self._adopted = [
            keras.Variable(variable, trainable=trained, dtype=variable.dtype.name, name=name)
            for variable, trained, name in each
        ]
        self.trainable = trainable
        self.built = True

    def _open(self, folder: Path, sha256: str, given: dict[int, tf.Variable] | None = None) -> None:
        """Load the module; `given` are variables to use, by order of creation.

        In a process that has opened a module, the same content counts as trusted and is found again
        by its hash, which is why its folder is recorded.

        Args:
            folder: of the SavedModel.
            sha256: the hash of its content.
            given: variables to use in place of new ones, by order of creation.
        """
        self._module = Module(folder, self.handle, self.signature, self.arguments, given)
        self._loaded_module = self._module.loaded  # an export looks for its tables here
        self.signature = self._module.signature
        self.spec = ModuleSpec.of(self._module, sha256)
        _loaded[sha256] = folder

    @property
    def module(self) -> Module:
        """The SavedModel, loaded.

        Raises:
            ValueError: the layer comes from a file that is not loaded yet.
        """
        if self._module is None:
            raise ValueError(
                f"`HubLayer` {self.name!r} waits for its module, {self.handle!r}, SHA-256 "
                f"{self.sha256}. Load the .keras file that contains it with kerasmtl.load_model."
            )
        return self._module

    @property
    def sha256(self) -> str:
        """The hash of the module's content."""
        return self.spec.sha256

    @property
    def image_size(self) -> tuple[int, int] | None:
        """The (height, width) the module was made for, or None if it takes any."""
        embedded = EXTRACTORS.get(self.handle)
        return embedded.image_size if embedded else self.spec.image_size

    @property
    def input_range(self) -> tuple[float, float]:
        """The (low, high) of the pixels that the module takes."""
        # Integers are 0 to 255, also where [0, 1] is given: `kerasmtl vendor` writes it unseen.
        given = self._given_range or UNIT_RANGE
        return self.spec.input_range or given if given == UNIT_RANGE else given

    @property
    def range_source(self) -> str:
        """How `input_range` is known: "as given", "by the pixels' type", …, or "assumed"."""
        if self.spec.input_range == self.input_range:
            return "by the pixels' type"
        if self._given_range:
            return "as given"
        known = self.handle in EXTRACTORS or is_published(self.handle)
        return "convention of TF-Hub" if known else "assumed"

    @property
    def module_variables(self) -> list[keras.Variable]:
        """The module's variables in the order of its publisher.

        Trained or not; their `trainable` says which ones fitting changes.
        """
        return list(self._adopted)

    # TensorFlow's attribute tracking drops the assignment of a value that is there already, so that
    # a partly unfrozen layer could not be unfrozen as a whole.
    def __setattr__(self, name: str, value: Any) -> None:
        """Set `trainable` by its property, whatever its value; other attributes as Keras does."""
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
        """Raise ValueError, with the reason, if the module cannot be trained."""
        reason = self.spec.why_not_trainable
        if reason is not None:
            raise ValueError(
                f"`trainable` must be False for {self.handle!r}, got True: {reason}. Training "
                "needs a TF2 reusable SavedModel with trainable_variables."
            )

    def select_variables(self, trained: Sequence[bool], training_mode: bool) -> None:
        """Train exactly these of `module_variables`.

        Args:
            trained: whether each of `module_variables` is trained; none: the layer is frozen.
            training_mode: whether fitting calls the module in training mode, which updates its
                moving statistics and switches its dropout on.

        Raises:
            ValueError: the module cannot be trained.
        """
        self.trainable = any(trained)
        for variable, value in zip(self._adopted, trained, strict=True):
            variable.trainable = value
        self._trains_mode = training_mode and self.trainable

    # ------------------------------------------------------------ calls

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Run the module, and add the regularization losses of what is trained.

        Args:
            inputs: nested as the module declares them; the first axis is the batch.
            training: as Keras passes it. The module itself runs in training mode only if the layer
                is trainable as well, and `select_variables` has not turned that mode off.

        Returns:
            The module's outputs, nested as it gives them, or the one that `output_key` names.

        Raises:
            ValueError: the inputs do not fit, or `output_key` names no output.
        """
        if self._module is None and not tf.executing_eagerly():
            return self._placeholders(inputs)
        outputs = self._outputs(inputs, training)
        self.spec.remember(inputs, outputs)
        if self.trainable:
            trained = {i for i, variable in enumerate(self._adopted) if variable.trainable}
            for loss in self._module.penalties(trained):
                self.add_loss(loss)
        return outputs

    def _outputs(self, inputs: Any, training: bool | None) -> Any:
        """Run the module, and choose among its outputs."""
        outputs = self.module(inputs, bool(training) and self.trainable and self._trains_mode)
        outputs = self._pick(outputs)
        if self.declared_shape is None or isinstance(outputs, Mapping | list | tuple):
            return outputs
        return tf.ensure_shape(outputs, (None, *self.declared_shape))

    def _placeholders(self, inputs: Any) -> Any:
        """Return zeros: Keras traces a model to build it before the module is loaded.

        The values are never used: the model is called for real when its module is there.
        """
        batch = tf.shape(tf.nest.flatten(inputs)[0])[0]
        return tf.nest.map_structure(
            lambda o: tf.zeros([batch, *o.shape[1:]], o.dtype),
            self.spec.outputs_of(inputs, self.name),
        )

    def _pick(self, outputs: Any) -> Any:
        """Return the output that `output_key` names.

        A signature gives a dict even for one output; without `output_key` that output is taken out
        of it.
        """
        if self.output_key is None:
            single = self.signature and isinstance(outputs, Mapping) and len(outputs) == 1
            return next(iter(outputs.values())) if single else outputs
        steps = [self.output_key] if isinstance(self.output_key, str | int) else self.output_key
        for step in steps:
            try:
                outputs = outputs[step]
            except (KeyError, IndexError, TypeError, ValueError):
                several = isinstance(outputs, list | tuple)
                known = range(len(outputs)) if several else outputs
                known = sorted(known) if several or isinstance(outputs, Mapping) else []
                raise ValueError(
                    f"`output_key` must be one of {known}, got {self.output_key!r}"
                ) from None
        return outputs

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the outputs' shapes and types; `training` does not change them.

        Args:
            inputs: nested symbolic tensors.
            training: as of `call`.

        Returns:
            Nested `keras.KerasTensor`s.

        Raises:
            ValueError: an output has no known rank, or is not a dense tensor.
        """
        if self._module is None:
            return self.spec.outputs_of(inputs, self.name)
        specs = [tf.TensorSpec(leaf.shape, leaf.dtype) for leaf in tf.nest.flatten(inputs)]
        # Traced, and not run: a module may count its calls.
        traced = tf.function(
            lambda *given: self._outputs(tf.nest.pack_sequence_as(inputs, given), training),
            autograph=False,
        ).get_concrete_function(*specs)
        outputs = tf.nest.map_structure(self._symbol, traced.structured_outputs)
        self.spec.remember(inputs, outputs)
        return outputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the outputs' shapes, nested as the outputs are.

        Args:
            input_shape: with the batch, nested as the inputs are.
        """
        inputs = keras.tree.map_structure_up_to(
            self.spec.inputs,
            lambda spec, shape: keras.KerasTensor(tuple(shape), dtype=spec.dtype),
            self.spec.inputs,
            input_shape,
        )
        return tf.nest.map_structure(lambda o: tuple(o.shape), self.compute_output_spec(inputs))

    def _symbol(self, tensor: Any) -> keras.KerasTensor:
        """Return what Keras knows of an output: shape and type.

        Raises:
            ValueError: the output is sparse or ragged, or its rank is not known.
        """
        if not isinstance(tensor, tf.Tensor | tf.TensorSpec):
            raise ValueError(
                f"`output_key` must choose a dense tensor, got a {type(tensor).__name__}"
            )
        if tensor.shape.rank is None:
            raise ValueError(
                f"`output_shape` must be given for {self.handle!r}, which does not declare it"
            )
        return keras.KerasTensor(tuple(tensor.shape), dtype=tensor.dtype.name)

    # ------------------------------------------------------------ saving and loading
    #
    # Keras loads a file in this order: `from_config` of every layer, a trace of the model that
    # builds it, the weights, and only then the assets, among them our module. So that a layer can
    # be built and take weights before its module is there, its config carries a `ModuleSpec`, from
    # which come empty variables and the shapes of outputs; `load_assets` then loads the module
    # around these variables, which optimizer and model refer to already.

    def save_assets(self, dir_path: str) -> None:
        """Copy the module into the file that Keras is writing.

        If it was changed or deleted since it was loaded, the file is written without it, with a
        warning, so that the trained weights are not lost.

        Args:
            dir_path: a folder of the layer's own, which Keras packs into the file.
        """
        folder = _module_at_hand(self.handle, self.sha256, self.module.folder)
        if folder is not None:
            copy_module(folder, Path(dir_path) / "module")
            return
        warnings.warn(
            f"`handle` {self.handle!r} was changed or deleted since it was loaded. The file is "
            f"saved without it, and loads where the module with SHA-256 {self.sha256} is in its "
            "place. Restore the module and save again for a file that loads everywhere.",
            stacklevel=2,
        )

    def load_assets(self, dir_path: str) -> None:
        """Take the module from the file that Keras is reading, unless it is loaded already.

        Keras calls it after it has assigned the weights. Loading the module overwrites the
        variables that it is given with the publisher's values, so the trained values are read
        before and assigned again after.

        Args:
            dir_path: the layer's folder of the unpacked file; None if it has none.

        Raises:
            ValueError: the file's module is absent or not what the layer was saved with.
        """
        if self._module is not None:
            return
        carried = Path(dir_path or os.devnull, "module")  # None: Keras found no folder
        if not holds(carried, self.sha256):
            changed = "a module that was changed since it was saved"
            received = changed if carried.is_dir() else "no module"
            raise ValueError(
                f"`handle` {self.handle!r} is gone, and the file contains {received}. Expected "
                f"SHA-256 {self.sha256}. Restore the folder, or get the file again."
            )
        # Keras deletes its folder once the file is loaded, and assets may be read only when the
        # model runs.
        folder = _kept(carried, self.sha256)
        values = [variable.numpy() for variable in self._adopted]
        adopted = [variable.value for variable in self._adopted]
        expected = self.spec
        self._open(folder, self.sha256, dict(zip(expected.order, adopted, strict=True)))
        self.spec = expected  # the given variables lack their publisher's names
        if list(map(id, self._module.variables)) != list(map(id, adopted)):
            raise ValueError(
                f"`handle` {self.handle!r} was saved with a TensorFlow that orders variables "
                f"unlike {tf.__version__}. Load it with the folder of the module in place."
            )
        for variable, value in zip(self._adopted, values, strict=True):
            variable.assign(value)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, and the description of the module under "module".

        "module" is enough to build the layer without its SavedModel, and to know which of its
        variables were trained.
        """
        return {
            "name": self.name,
            "handle": self.handle,
            "trainable": self.trainable,
            "signature": self.signature,
            "output_key": self.output_key,
            "arguments": dict(self.arguments),
            "output_shape": self.declared_shape,
            "input_range": self._given_range,
            "jit": self.supports_jit,
            "module": {
                **self.spec.to_dict(),
                "trained": [variable.trainable for variable in self._adopted],
                "training_mode": self._trains_mode,
            },
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> HubLayer:
        """Make a layer from its config; a module that is not at hand comes with the file.

        Raises:
            ValueError: Keras' safe mode is on and the module is not trusted, or the config is of a
                later kerasmtl.
        """
        config = dict(config)
        module = config.pop("module", None)
        if module is None:
            refuse_in_safe_mode(config["handle"], "unknown")
            return cls(**config)
        if module.get("format") != FORMAT:
            raise ValueError(
                f"`HubLayer` {config['name']!r} was saved in format {module.get('format')}. "
                f"Expected format {FORMAT}. pip install 'kerasmtl=={module.get('version')}'."
            )
        spec = ModuleSpec.from_dict(module)
        refuse_in_safe_mode(config["handle"], spec.sha256)
        folder = _module_at_hand(config["handle"], spec.sha256)
        trainable = config.pop("trainable")
        layer = cls(**config, _spec=spec, _folder=folder)
        layer.spec.calls = spec.calls
        if trainable:
            layer.select_variables(module["trained"], module["training_mode"])
        return layer


# ---------------------------------------------------------------- safe mode


@contextmanager
def trusting(hashes: Iterable[str]) -> Iterator[None]:
    """Let modules with these SHA-256 sums run in safe mode, inside the block.

    It holds for the thread or task that has entered the block, and ends with it.

    Args:
        hashes: content hashes, as `content_sha256` returns them.
    """
    token = _TRUSTED.set(_TRUSTED.get() | frozenset(hashes))
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def refuse_in_safe_mode(handle: str, sha256: str) -> None:
    """Raise if Keras is loading a file in safe mode and the module is not trusted.

    A SavedModel is a program: like the Python code of a lambda, for which Keras has its safe mode,
    it must not run unasked from a file of somebody else.

    Trusted are the embedded modules, those that `trusting` names, and those that this process has
    loaded already.

    Args:
        handle: of the module, for the message.
        sha256: the hash of its content.

    Raises:
        ValueError: says how to trust the file knowingly.
    """
    embedded = (content_sha256(extractor_folder(name)) for name in EXTRACTORS)
    # Keras is in safe mode while it clones a nested model, too, which runs already.
    if sha256 in _TRUSTED.get() or sha256 in _loaded or sha256 in embedded or not _in_safe_mode():
        return
    raise ValueError(
        f"`safe_mode` is on, and this file runs the graph of a foreign SavedModel: {handle!r}, "
        f"SHA-256 {sha256}. A graph can read and write files. If you trust the file's source, call "
        "kerasmtl.load_model(path, safe_mode=False); if you have the module yourself, "
        "kerasmtl.load_model(path, trust='its handle or sha256:…'). On the command line: --trust."
    )


def _in_safe_mode() -> bool:
    """Return whether Keras is loading a file in safe mode.

    Keras has no public name for it; but then, and only then, it refuses a lambda.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of every lambda
        harmless = keras.saving.serialize_keras_object(lambda: None)
        try:
            keras.saving.deserialize_keras_object(harmless, safe_mode=False)
        except ValueError:
            return True
    return False


# ---------------------------------------------------------------- helpers


def _module_at_hand(handle: str, sha256: str, loaded: Path | None = None) -> Path | None:
    """Find the folder of a module with that content, or None; nothing is downloaded.

    Args:
        handle: as the user wrote it; a remote one is not asked.
        sha256: the hash that the content must have. A folder that was changed since does not count.
        loaded: the folder that the layer has loaded, if any, which is looked at first.
    """
    candidates = [loaded, _loaded.get(sha256)]
    if not is_remote(handle):
        with suppress(ValueError):  # the folder is gone: the copy in the file is for that
            candidates.append(resolve_handle(handle))
    found = (folder for folder in candidates if folder is not None and holds(folder, sha256))
    return next(found, None) or kept_module(sha256)


def _kept(carried: Path, sha256: str) -> Path:
    """Copy a module to where it outlives the loading: the cache, or else a temporary folder.

    Args:
        carried: the module's folder in the unpacked file, which Keras deletes.
        sha256: the hash of its content.

    Returns:
        A folder that is there as long as this process, at least.
    """
    try:
        return keep_module(carried, sha256)
    except OSError:  # no cache that can be written to
        _temporary.append(tempfile.TemporaryDirectory(prefix="kerasmtl-"))
        place = Path(_temporary[-1].name)
        copy_module(carried, place)
        return place


def _as_arguments(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return further arguments of a call, which must fit into a file.

    Raises:
        ValueError: not a mapping, or a value that JSON cannot hold.
    """
    try:
        found = dict(arguments or {})
        json.dumps(found)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`arguments` must be a dict of numbers, strings, booleans, None or lists of them (call "
            f".numpy().tolist() on a tensor), got {arguments!r}: {error}"
        ) from None
    return found


def _as_range(pixels: Sequence[float] | None) -> tuple[float, float] | None:
    """Return (low, high) as floats, or None.

    Raises:
        ValueError: not two numbers, or the second is not above the first.
    """
    if pixels is None:
        return None
    if not isinstance(pixels, list | tuple) or len(pixels) != 2:
        raise ValueError(f"`input_range` must be (low, high), such as (0, 255), got {pixels!r}")
    low = check_number("input_range", pixels[0])
    return low, check_number("input_range", pixels[1], low, open_low=True)
