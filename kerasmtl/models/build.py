"""Models for tasks: `build_model`, its heads, and `load_model`.

A model is one functional graph: inputs, `Rescaling` to the pixels that the backbone takes, the
backbone, `pool`, and `task_head`. Being a plain graph of layers, it can be compiled and fitted as
any Keras model, split into backbone and head by the feature cache, and traced by the export.
Outputs are laid out by `tasks.output_columns`; `check_outputs` is how the export and the predictor
make sure that a model has that layout.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kerasmtl.data.images import as_size
from kerasmtl.losses.defaults import target_scales
from kerasmtl.models.backbones import default_image_size, load_backbone
from kerasmtl.models.hub.cache import content_sha256, valid_sha256
from kerasmtl.models.hub.handles import resolve_handle
from kerasmtl.models.hub_layer import HubLayer, trusting
from kerasmtl.tasks import BINARY, Task, all_binary, as_tasks, output_columns
from kerasmtl.utils.text import warn
from kerasmtl.utils.validation import check_count, check_number

DEFAULT_SIZE = (224, 224)


def build_model(
    backbone: str | keras.Model | HubLayer,
    tasks: Iterable[Task | str],
    image_size: Any = None,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    trainable: bool | None = None,
    name: str = "kerasmtl",
    labels: np.ndarray | None = None,
) -> keras.Model:
    """Build one network for all tasks: a backbone with a new head.

    The result is a plain functional keras.Model. For images it takes float32 RGB (batch, height,
    width, 3) in [0, 1], and scales them to the range that the backbone takes. Any other backbone
    gets the inputs that it declares: rows of numbers (batch, columns) for `backbones.mlp`, text as
    strings (batch,), several inputs as a dict. Outputs: see `task_head`.

    Args:
        backbone: what `load_backbone` takes: "tiny", a keras.applications name, a hub handle, a
            `HubLayer`, or a keras.Model from images in [0, 1], or anything else, to features.
        tasks: what to predict; a string is the name of a binary task.
        image_size: (height, width) or one number; by default what the backbone was made for,
            224 x 224 if it takes any.
        hidden: widths of dense layers between features and outputs.
        dropout: fraction of features dropped in training, after each hidden layer.
        trainable: freeze (False) or unfreeze (True) the backbone; by default a handle is frozen
            and a layer or model is left as it is.
        name: of the model.
        labels: those of the training rows, (rows, tasks), NaN = missing, for regression tasks: the
            network then learns standardized labels, and predicts in the labels' unit. Its loss is
            `losses.for_tasks(tasks, labels)`.

    Returns:
        The model, not compiled. Its backbone is a layer, or a nested model, of it: `kt.freeze` and
        `kt.unfreeze` find it there.

    Raises:
        ValueError: unknown backbone, tasks that are not distinct, labels that do not fit them, a
            size that the backbone does not take, a backbone whose output is not a feature vector,
            or a multiclass task whose classes are not known.

    Example:
        >>> import kerasmtl as kt
        >>> model = kt.build_model("tiny", ["car", "person"], hidden=[64], dropout=0.5)
        >>> model.input_shape, model.output_shape
        ((None, 128, 128, 3), (None, 2))
        >>> grade = kt.Task("grade", kind="multiclass", classes=("A", "B", "C"))
        >>> sorted(kt.build_model("tiny", ["car", grade]).output)
        ['binary', 'grade']
    """
    chosen = as_tasks(tasks)
    layer = load_backbone(backbone, trainable=bool(trainable))
    if trainable is not None:
        layer.trainable = trainable
    if _takes_images(layer):
        size = as_size(image_size or default_image_size(layer) or DEFAULT_SIZE)
        inputs = keras.Input((*size, 3), name="image")
        features = _features(layer, inputs, size)
    else:
        if image_size is not None:
            raise ValueError(f"`image_size` must be None but for images, got {image_size!r}")
        inputs = _declared_inputs(layer)
        features = layer(inputs)
    outputs = task_head(pool(features), chosen, hidden, dropout, target_scales(chosen, labels))
    return keras.Model(inputs, outputs, name=name)


def load_model(
    path: str | os.PathLike[str],
    trust: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
    **kwargs: Any,
) -> keras.Model:
    """Load a .keras file as `keras.models.load_model` does, with a way to trust its SavedModel.

    The SavedModel of a `HubLayer` is part of the file; in Keras' safe mode it runs only if it is
    the embedded one or you trust it.

    Args:
        path: a .keras file.
        trust: handles of modules that may run, or "sha256:" and the hash of one's content.
        kwargs: as in `keras.models.load_model`; `safe_mode=False` trusts the whole file.

    Returns:
        The model, compiled if it was when it was saved, unless `compile=False` is passed on.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a model, contains a graph that is not trusted, lacks its
            backbone, or was written by a later kerasmtl.

    Example:
        >>> import tempfile
        >>> import kerasmtl as kt
        >>> model = kt.build_model("tiny", ["car", "person"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/model.keras")
        ...     loaded = kt.load_model(f"{folder}/model.keras")
        >>> loaded.output_shape
        (None, 2)
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"`path` must be a .keras file, got {os.fspath(path)!r}")
    handles = [trust] if isinstance(trust, str | os.PathLike) else list(trust)
    with trusting(_sha256_of(os.fspath(handle)) for handle in handles):
        return keras.models.load_model(path, **kwargs)


def _sha256_of(trusted: str) -> str:
    """Return the content hash of a module that is trusted, by handle or by hash.

    A handle is resolved, which may download it; then all of its files are hashed.
    """
    if trusted.startswith("sha256:"):
        return valid_sha256(trusted.removeprefix("sha256:"))
    return content_sha256(resolve_handle(trusted))


# ---------------------------------------------------------------- from inputs to features


def _takes_images(layer: keras.Model | HubLayer) -> bool:
    """Return whether a backbone takes a batch of RGB images.

    A Keras model takes images if it has one input of rank 4 with three channels, or with any
    number.
    """
    if isinstance(layer, HubLayer):
        return layer.spec.takes_images
    declared = getattr(layer, "inputs", None)
    if not declared:  # a subclassed model that was not called yet
        return True
    shape = declared[0].shape
    return len(declared) == 1 and len(shape) == 4 and shape[3] in (3, None)


def _features(layer: keras.Model | HubLayer, image: Any, size: tuple[int, int]) -> Any:
    """Call a backbone on images in [0, 1], scaled to what it takes.

    The error of a wrong image size comes from inside the backbone, and need not name a size; it is
    replaced where the size that the backbone was made for is known.
    """
    if isinstance(layer, HubLayer):
        if layer.range_source == "assumed":
            warn(
                f"`input_range` of the module {layer.handle!r} is not known: images are scaled to "
                "[0, 1], the convention of TF-Hub. If it was trained on other pixels, its features "
                'are wrong. Pass HubLayer(…, input_range=(low, high)), write "input_range = [low, '
                'high]" under [model] in project.toml, or confirm (0, 1) there.'
            )
        image = _in_range(image, *layer.input_range, layer.spec.inputs.dtype)
    try:
        return layer(image)
    except (ValueError, TypeError) as error:
        needed = default_image_size(layer)
        if needed in (None, size):
            raise
        raise ValueError(f"`image_size` must be {needed} for this backbone, got {size}") from error


def _in_range(image: Any, low: float, high: float, dtype: str) -> Any:
    """Scale images from [0, 1] to [low, high], and round them where the module takes integers.

    Args:
        image: (batch, height, width, 3) float32, symbolic.
        low, high: the pixels of black and of white that the backbone takes.
        dtype: of the pixels that the backbone takes, such as "uint8".
    """
    if (low, high) != (0.0, 1.0):
        # float32 under any policy: half precision cannot tell 255 levels apart near 255.
        scale = keras.layers.Rescaling(high - low, low, dtype="float32", name="to_backbone_range")
        image = scale(image)
    if "int" in dtype:
        image = keras.ops.cast(keras.ops.round(image), dtype)
    return image


def _declared_inputs(layer: keras.Model | HubLayer) -> Any:
    """Make inputs of the names, shapes and types that a backbone declares.

    Returns:
        A `keras.Input` or a nest of them as the backbone's own: of a `HubLayer` with several inputs
        a dict or a list, of a Keras model whatever nest it was built with.
    """

    def symbol(spec: keras.KerasTensor, name: str) -> Any:
        return keras.Input(spec.shape[1:], dtype=spec.dtype, name=name)

    if not isinstance(layer, HubLayer):
        # A Sequential that was never called has no `input`.
        declared = layer.inputs[0] if isinstance(layer, keras.Sequential) else layer.input
        return keras.tree.map_structure(lambda spec: symbol(spec, spec.name), declared)
    declared = layer.spec.inputs
    if isinstance(declared, Mapping):
        return {name: symbol(spec, name) for name, spec in declared.items()}
    if isinstance(declared, list | tuple):
        return [symbol(spec, f"input_{number}") for number, spec in enumerate(declared)]
    return symbol(declared, "text" if declared.dtype == "string" else "inputs")


# ---------------------------------------------------------------- from features to outputs


def pool(features: Any) -> Any:
    """Make features a vector per row: a map (batch, height, width, features) is averaged.

    Args:
        features: the output of a backbone, (batch, features) or (batch, height, width, features).

    Returns:
        (batch, features).

    Raises:
        ValueError: several outputs, or an output that is neither a vector nor a map.
    """
    rank = len(features.shape) if hasattr(features, "shape") else None
    if rank == 4:
        return keras.layers.GlobalAveragePooling2D(name="head_pool")(features)
    if rank != 2:
        received = features.shape if rank else type(features).__name__
        raise ValueError(
            f"`backbone` must have one output, a vector or map of features, got {received}. Of "
            "a module with named outputs, HubLayer(…, output_key=…) takes one."
        )
    return features


def task_head(
    features: Any,
    tasks: Sequence[Task],
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    scales: Mapping[str, tuple[float, float]] | None = None,
    skip: bool = False,
    dtype: str | None = None,
) -> Any:
    """Add dense layers with ReLU and dropout, then the outputs of all tasks.

    Args:
        features: (batch, features).
        tasks: in the order of the output's columns.
        hidden: widths of the dense layers.
        dropout: fraction dropped in training, after each hidden layer, or of the features.
        scales: by regression task, mean and standard deviation of its labels (`target_scales`): the
            network then learns the standardized label, and a last layer returns to its unit.
        skip: the outputs see the features beside the last dense layer.
        dtype: of the layers before the outputs; None: the global policy's.

    Returns:
        Binary tasks only: probabilities (batch, tasks). Other kinds among them: a dict as
        `output_columns` names it, "binary" (batch, binary tasks) probabilities, each multiclass
        task (batch, classes) probabilities that sum to 1, each regression task (batch, 1). float32
        under any global policy.

    Raises:
        ValueError: a hidden width below 1, dropout outside [0, 1), or a multiclass task whose
            classes are not known yet.
    """
    check_number("dropout", dropout, 0.0, 1.0, open_high=True)
    given = features
    for number, width in enumerate(hidden, start=1):
        units = check_count("hidden", width)
        name = f"head_dense_{number}"
        dense = keras.layers.Dense(units, activation="relu", name=name, dtype=dtype)
        features = keras.layers.Dropout(dropout, name=f"head_dropout_{number}")(dense(features))
    if not hidden and dropout:
        features = keras.layers.Dropout(dropout, name="head_dropout")(features)
    if skip and hidden:
        features = keras.layers.Concatenate(name="head_features", dtype=dtype)([given, features])
    if all_binary(tasks):
        return _output(features, len(tasks), "sigmoid", "head")
    # With other kinds among the tasks the outputs are a dict: Keras then looks up losses, metrics
    # and labels by its keys, which are those of `make_dataset`'s labels.
    outputs = {}
    for key, columns in output_columns(tasks).items():
        # Layers are numbered: a task's name may have characters that a layer's must not have.
        task, name = tasks[columns[0]], f"head_{columns[0]}"
        if task.kind == "binary":
            outputs[key] = _output(features, len(columns), "sigmoid", f"head_{BINARY}")
            continue
        activation = "softmax" if task.kind == "multiclass" else "linear"
        outputs[key] = _output(features, task.outputs, activation, name)
        if scales and key in scales:
            mean, std = scales[key]
            # The loss divides by the same deviation, so that tasks in different units weigh alike.
            rescale = keras.layers.Rescaling(std, mean, dtype="float32", name=f"{name}_scale")
            outputs[key] = rescale(outputs[key])
    return outputs


def _output(features: Any, units: int, activation: str, name: str) -> Any:
    """Add the last dense layer of an output."""
    # float32 under any policy: half-precision probabilities are 0 or 1 far too early.
    return keras.layers.Dense(units, activation=activation, dtype="float32", name=name)(features)


def check_outputs(model: keras.Model, tasks: Sequence[Task]) -> None:
    """Raise ValueError unless the model has the outputs that `task_head` makes for the tasks.

    Args:
        model: with a known `output_shape`.
        tasks: in the order of the output's columns.
    """
    widths = {
        key: (None, sum(tasks[column].outputs for column in columns))
        for key, columns in output_columns(tasks).items()
    }
    output = getattr(model, "output", None)  # a Sequential has none before its first call
    received: Any = model.output_shape
    if isinstance(output, dict):  # which `output_shape` flattens
        received = {key: tuple(each.shape) for key, each in output.items()}
    expected: Any = widths[BINARY] if all_binary(tasks) else widths
    if received == expected:
        return
    beyond: Any = ()
    if isinstance(received, dict):
        beyond = [key for key in received if key not in widths]
    elif all_binary(tasks) and isinstance(received, tuple) and len(received) == 2:
        beyond = list(range(expected[1], received[1] or 0))
    without = f". Outputs without a task: {beyond}" if beyond else ""
    raise ValueError(
        f"`tasks` must fit the model's outputs: {[task.name for task in tasks]} need {expected}, "
        f"got {received}{without}"
    )
