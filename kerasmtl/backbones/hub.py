"""HubLayer: a reusable SavedModel as a Keras 3 layer that any optimizer can train."""

from __future__ import annotations

import inspect
import os
import re
from typing import Any

import keras
import tensorflow as tf

from kerasmtl.backbones.handles import is_remote, resolve_handle
from kerasmtl.embedded import EXTRACTORS


@keras.saving.register_keras_serializable(package="kerasmtl")
class HubLayer(keras.layers.Layer):
    """A SavedModel of TF-Hub, Kaggle or your own as a layer, frozen or trainable.

    Shapes: as the module declares; for an image feature vector float32 (batch, height, width, 3)
    in [0, 1] in, (batch, features) out. Always float32, under any global policy.

    Follows the reusable-SavedModel interface
    (https://www.tensorflow.org/hub/reusable_saved_models): the module is called in training mode,
    its moving statistics change, and its regularization losses count only while the layer is
    trainable. Its `trainable_variables` alone are trained. Modules that are not callable (TF1 Hub
    format) run through their signature and cannot be trained.

    Args:
        handle: "tiny" (embedded), a folder, a .tar.gz archive or a URL.
        trainable: whether fitting changes the module.
        signature: the signature to run, for modules that are not callable.
        output_key: which output to take, for modules that return a dict.
        name: of the layer.

    Raises:
        ValueError: the handle is unknown or unreachable, holds no SavedModel, has no such output,
            or `trainable=True` for a module that cannot be trained.
    """

    def __init__(
        self,
        handle: str | os.PathLike[str],
        trainable: bool = False,
        signature: str | None = None,
        output_key: str | None = None,
        name: str | None = None,
    ) -> None:
        # Variables are adopted while trainable, and frozen after: a layer that starts frozen
        # would skip the setter below (the value is unchanged) and train on.
        super().__init__(trainable=True, name=name, dtype="float32")
        self.handle = _portable(handle)
        self.signature = signature
        self.output_key = output_key
        self._can_train = True
        self._module = tf.saved_model.load(str(resolve_handle(handle)))
        self._call = self._find_call()
        self._adopted = self._adopt_variables()
        self._can_train = any(variable.trainable for variable in self._adopted)
        if trainable:
            self._refuse_untrainable()  # the setter is skipped for an unchanged True as well
        self.trainable = trainable
        self.built = True

    def _find_call(self) -> Any:
        if self.signature is None and callable(self._module):
            return self._module.__call__
        signatures = getattr(self._module, "signatures", {})
        wanted = [self.signature] if self.signature else ["default", "serving_default"]
        for key in wanted:
            if key in signatures:
                self.signature = key
                return signatures[key]
        raise ValueError(
            f"`signature` {self.signature!r} is not in {self.handle!r}. Expected one of "
            f"{sorted(signatures)}."
        )

    def _adopt_variables(self) -> list[keras.Variable]:
        """The module's own variables, under names that every optimizer accepts."""
        found = list(getattr(self._module, "variables", None) or [])
        trained = [] if self.signature else getattr(self._module, "trainable_variables", None) or []
        found += [v for v in trained if not any(v is other for other in found)]
        return [
            keras.Variable(
                variable,
                trainable=any(variable is other for other in trained),
                dtype=variable.dtype.name,
                name=re.sub(r"[^0-9A-Za-z_.-]", "_", variable.name.removesuffix(":0")),
            )
            for variable in found
            if variable.dtype.is_floating or variable.dtype.is_integer
        ]

    @property
    def trainable(self) -> bool:
        """Whether fitting changes the module."""
        return keras.layers.Layer.trainable.fget(self)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        if value:
            self._refuse_untrainable()
        keras.layers.Layer.trainable.fset(self, bool(value))

    def _refuse_untrainable(self) -> None:
        if getattr(self, "_can_train", True):  # not set yet while Keras' own constructor runs
            return
        reason = (
            f"it runs through its signature {self.signature!r}, and signatures are for inference: "
            "they have no training mode and no gradients to rely on"
            if self.signature
            else "it declares no trainable variables"
        )
        raise ValueError(
            f"`trainable` cannot be True for {self.handle!r}: {reason}. Expected a TF2 reusable "
            "SavedModel with trainable_variables. Call with trainable=False."
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        training = bool(training) and self.trainable
        outputs = self._run(inputs, training)
        if self.trainable:
            for loss in getattr(self._module, "regularization_losses", None) or []:
                self.add_loss(loss())
        return self._pick(outputs)

    def _run(self, inputs: Any, training: bool) -> Any:
        if self.signature:
            names = list(self._call.structured_input_signature[1])
            return self._call(**{names[0]: inputs})
        arguments = inspect.getfullargspec(self._call).args
        named = {"training": training} if "training" in arguments else {}
        if "mask" in arguments:
            named["mask"] = None
        return self._call(inputs, **named)

    def _pick(self, outputs: Any) -> Any:
        if self.output_key is None:
            single = isinstance(outputs, dict) and len(outputs) == 1 and self.signature
            return next(iter(outputs.values())) if single else outputs
        if not isinstance(outputs, dict) or self.output_key not in outputs:
            has = sorted(outputs) if isinstance(outputs, dict) else "a single, unnamed output"
            raise ValueError(
                f"`output_key` {self.output_key!r} is not among the outputs of {self.handle!r}. "
                f"Expected one of: {has}"
            )
        return outputs[self.output_key]

    @property
    def image_size(self) -> tuple[int, int] | None:
        """The (height, width) the module insists on, or None if it takes any."""
        if self.signature:
            specs = list(self._call.structured_input_signature[1].values())
        else:
            calls = self._call.concrete_functions
            specs = [f.structured_input_signature[0][0] for f in calls]
        for spec in specs:
            shape = getattr(spec, "shape", None)
            if shape is not None and shape.rank == 4 and None not in shape[1:3]:
                return tuple(shape[1:3])
        return None

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "handle": self.handle,
            "trainable": self.trainable,
            "signature": self.signature,
            "output_key": self.output_key,
        }


def _portable(handle: str | os.PathLike[str]) -> str:
    """A local path made absolute, so that a saved model loads from any working folder."""
    handle = os.fspath(handle)
    if handle in EXTRACTORS or is_remote(handle):
        return handle
    return os.path.abspath(os.path.expanduser(handle))
