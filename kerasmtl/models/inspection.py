"""Summaries of backbones: inputs, outputs, weights, and whether they can be trained.

What `kerasmtl inspect` prints, so that a backbone can be judged before anything is trained on it.

It reads what `HubLayer`, `Module` and `layer_groups` know, and computes nothing on images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import keras

from kerasmtl.models.applications import application, application_size, parse_application
from kerasmtl.models.backbones import default_image_size, load_backbone
from kerasmtl.models.hub.cache import module_files
from kerasmtl.models.hub_layer import HubLayer
from kerasmtl.models.layer_groups import groups_of
from kerasmtl.models.saved_model import Call, Module, describe

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class Summary:
    """Facts about a backbone; `to_dict` for JSON, `table` for the terminal.

    Attributes:
        inputs, outputs: of the call for inference, by name: type and shape.
        image_size: the (height, width) it was made for, if any.
        input_range: the pixels it takes; None if it does not take images.
        range_source: how the range is known; see `HubLayer.range_source`.
        groups: name, depth, parameters and trainable parameters of each layer group, from input to
            output, if all of the backbone were trained.
        parameters, trainable_parameters, regularization_losses: counts.
        can_be_trained, why_not: whether it can be trained, or the reason why not.
        folder, sha256, size: of a SavedModel; the size in bytes.
        calls: of a SavedModel: the arguments of each traced call.
        signatures: of a SavedModel.
    """

    handle: str
    kind: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    image_size: tuple[int, int] | None
    input_range: tuple[float, float] | None
    range_source: str | None
    groups: list[dict[str, Any]]
    parameters: int
    trainable_parameters: int
    regularization_losses: int
    can_be_trained: bool
    why_not: str | None
    folder: str | None = None
    sha256: str | None = None
    size: int | None = None
    calls: Sequence[str] = ()
    signatures: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON.

        Tuples become lists once it is written as JSON; nothing in it is an array.
        """
        return asdict(self)

    def table(self) -> Group:
        """Return tables for the terminal.

        Two of them: the facts, and the layer groups if there are any. Facts that are unknown or do
        not apply are left out.

        Returns:
            A renderable of rich, for `Console.print`.
        """
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        pixels = "{:g} to {:g} ({})".format(*(self.input_range or (0, 0)), self.range_source)
        trained = f"yes, {self.trainable_parameters:,} parameters in {len(self.groups)} groups"
        facts = Table(show_header=False)
        for name, text in [
            ("handle", self.handle),
            ("kind", self.kind),
            ("folder", self.folder),
            ("sha256", self.sha256),
            ("size", self.size and f"{self.size / 1e6:.1f} MB"),
            *((f"input {name}".strip(), text) for name, text in self.inputs.items()),
            ("pixels", self.input_range and pixels),
            ("image size", self.image_size and "{} x {}".format(*self.image_size)),
            *((f"output {name}".strip(), text) for name, text in self.outputs.items()),
            *(("call", call) for call in self.calls),
            ("signatures", ", ".join(self.signatures)),
            ("parameters", f"{self.parameters:,}"),
            ("regularization losses", str(self.regularization_losses)),
            ("can be trained", trained if self.can_be_trained else f"no: {self.why_not}"),
        ]:
            if text:
                facts.add_row(name, Text(text, overflow="fold"))
        groups = Table("depth", "group", "parameters", "can be trained")
        for group in self.groups:
            counts = [f"{group[key]:,}" for key in ("parameters", "trainable")]
            groups.add_row(str(group["depth"]), Text(group["name"], overflow="fold"), *counts)
        return Group(facts, groups) if self.groups else Group(facts)


def summary(backbone: str | HubLayer | keras.Model) -> Summary:
    """Summarize a backbone's inputs, outputs and weights.

    A handle is fetched and loaded; its calls are not run, but loading a SavedModel runs what it
    does to restore itself: vendor what you do not trust, and look at it elsewhere.

    Args:
        backbone: what `load_backbone` takes. For a keras.applications name no weights are
            downloaded.

    Returns:
        The facts. Counts of trainable parameters are those if all of the backbone were trained,
        whatever is frozen now.

    Raises:
        ValueError: the handle is unknown or unreachable, or contains no SavedModel.

    Example:
        >>> import kerasmtl as kt
        >>> facts = kt.backbones.summary("tiny")
        >>> facts.kind, facts.image_size, facts.outputs
        ('TF2 reusable SavedModel', (128, 128), {'': 'float32 (None, 192)'})
        >>> facts.groups[0]
        {'name': 'block_1/conv', 'depth': 1, 'parameters': 496, 'trainable': 464}
    """
    named = parse_application(backbone) if isinstance(backbone, str) else None
    if named:
        model = application(named[0], weights=None if named[1] == "imagenet" else named[1])
        return _of_model(model, backbone, "keras.applications model", application_size(named[0]))
    loaded = load_backbone(backbone)
    if isinstance(loaded, HubLayer):
        return _of_layer(loaded)
    handle = backbone if isinstance(backbone, str) else loaded.name
    return _of_model(loaded, handle, "Keras model", default_image_size(loaded))


def _of_layer(layer: HubLayer) -> Summary:
    """Summarize a SavedModel: as the layer sees it, plus what is in its folder.

    Of several traced calls, inputs and outputs are those of the call for inference.
    """
    module, spec = layer.module, layer.spec
    call = module.inference_call
    return Summary(
        handle=layer.handle,
        kind=_kind(module),
        folder=str(module.folder),
        sha256=layer.sha256,
        size=sum(path.stat().st_size for path in module_files(module.folder).values()),
        inputs={name: describe(spec) for name, spec in call.inputs.items()},
        outputs=_outputs(call.outputs),
        image_size=layer.image_size,
        input_range=layer.input_range if spec.takes_images else None,
        range_source=layer.range_source if spec.takes_images else None,
        calls=list(dict.fromkeys(map(_call, module.calls))),
        signatures=sorted(getattr(module.loaded, "signatures", {})),
        regularization_losses=len(module.losses),
        **_counts(layer, spec.why_not_trainable),
    )


def _of_model(
    model: keras.Model, handle: str, kind: str, image_size: tuple[int, int] | None
) -> Summary:
    """Summarize a Keras model."""
    images = len(getattr(model, "input_shape", ())) == 4
    return Summary(
        handle=handle,
        kind=kind,
        inputs={t.name: describe(t) for t in model.inputs},
        outputs=_outputs(model.output),
        image_size=image_size,
        input_range=(0.0, 1.0) if images else None,
        range_source="as every Keras model" if images else None,
        regularization_losses=len(model.losses),
        **_counts(model, None if model.weights else "it has no weights"),
    )


def _counts(backbone: HubLayer | keras.Model, why_not: str | None) -> dict[str, Any]:
    """Count parameters, in all and by layer group; `why_not` says why none can be trained.

    Args:
        backbone: whose groups are listed, including batch normalization.
        why_not: None if the backbone can be trained.

    Returns:
        The fields of `Summary` of these names.
    """
    groups = [
        {
            **{key: getattr(group, key) for key in ("name", "depth", "parameters")},
            "trainable": sum(math.prod(v.shape) for v in group.learnable()),
        }
        for group in groups_of(backbone)
    ]
    return {
        "can_be_trained": why_not is None,
        "why_not": why_not,
        "groups": groups,
        "parameters": backbone.count_params(),
        "trainable_parameters": sum(group["trainable"] for group in groups),
    }


def _kind(module: Module) -> str:
    """Name the form in which a module was published.

    The file tfhub_module.pb marks the TF1 Hub format; without it, only the signature says how it is
    run.
    """
    if module.signature is None:
        return "TF2 reusable SavedModel" if callable(module.loaded) else "export of a Keras model"
    if (module.folder / "tfhub_module.pb").is_file():
        return "TF1 Hub format"
    return f"SavedModel with signatures only, {module.signature!r} is run"


def _outputs(outputs: Any, name: str = "") -> dict[str, str]:
    """Describe nested outputs by the path to each: "['steps'][0]"."""
    if not isinstance(outputs, Mapping | list | tuple):
        return {name: describe(outputs)}
    parts = outputs.items() if isinstance(outputs, Mapping) else enumerate(outputs)
    return {
        path: text
        for key, part in parts
        for path, text in _outputs(part, f"{name}[{key!r}]").items()
    }


def _call(call: Call) -> str:
    """Describe the arguments of a traced call; a training mode only where it serves just one."""
    parts = [f"{name}: {describe(spec)}" for name, spec in call.inputs.items()]
    parts += [f"training={call.training}"] if isinstance(call.training, bool) else []
    others = call.arguments.items()
    parts += [f"{name}={value!r}" for name, value in others if value is not None]
    return f"({', '.join(parts)})"
