"""What a run depends on, so that it is never gone on with on other data or settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import keras
import numpy as np

from kerasmtl.sources import source_of
from kerasmtl.training.compilation import Compilation
from kerasmtl.training.plans import Plan, counted

# Of the configurations of losses and optimizers: what training or Keras itself changes.
CHANGING = ("state", "threshold", "learning_rate", "factors", "name")


def settings_of(
    compilation: Compilation, plan: Plan, train: Any, validation: Any, others: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a run by name, as values that JSON knows."""
    return {
        "plan": [_shown(asdict(stage)) for stage in plan],
        **{f"train: {key}": value for key, value in data_settings(train).items()},
        **{f"validation: {key}": value for key, value in data_settings(validation).items()},
        "loss": _configuration(compilation.loss),
        "optimizer": _configuration(compilation.optimizer),
        "model": model_sha256(compilation.model),
        **{key: _shown(value) for key, value in others.items()},
    }


def data_settings(data: Any) -> dict[str, Any]:
    """What is known of a data set; its content if `sources.source_of` knows that."""
    if data is None:
        return {"data": None}
    source = source_of(data)
    if source is None:
        # Nothing but its form can be seen without reading all of it.
        spec = getattr(data, "element_spec", None)
        batches = int(data.cardinality()) if hasattr(data, "cardinality") else None
        return {"data": f"{type(data).__name__} of {spec}", "batches": batches}
    labels = source.labels if isinstance(source.labels, dict) else {"": source.labels}
    digest = hashlib.sha256()
    for name in sorted(labels):
        digest.update(name.encode() + np.ascontiguousarray(labels[name], "float32").tobytes())
    return {
        "rows": source.count,
        "content": source.content_sha256(),
        "labels": digest.hexdigest(),
        "batch_size": source.batch_size,
        "seed": source.seed,
        "augmentation": source.random,
    }


def model_sha256(model: keras.Model) -> str:
    """A hash over a model's architecture, whatever number Keras has given its layers' names."""
    config = json.loads(model.to_json())["config"]
    names: dict[str, str] = {}
    _names_in(config, names)
    text = json.dumps(_renamed(config, names), sort_keys=True)
    shapes = [(list(v.shape), str(v.dtype)) for v in model.variables]
    return hashlib.sha256((text + json.dumps(shapes)).encode()).hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed, by name, with both values where they are short.

    Of plans, losses and optimizers, whose values are long, that within them which has changed.
    """
    now = json.loads(json.dumps(now))
    changed: list[str] = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if name == "plan" and isinstance(old, list) and isinstance(new, list):
            changed += _of_plans(old, new)
        elif name in ("loss", "optimizer"):
            changed += _within(name, _parsed(old), _parsed(new))
        else:
            changed.append(_both(name, old, new))
    return changed


def _of_plans(old: list[Any], new: list[Any]) -> list[str]:
    changed = []
    if len(old) != len(new):
        changed.append(f"plan (was {counted(len(old), 'stage')}, is {counted(len(new), 'stage')})")
    for number, (one, other) in enumerate(zip(old, new, strict=False), start=1):
        changed += _within(f"plan, stage {number}:", one, other)
    return changed


def _within(name: str, old: Any, new: Any) -> list[str]:
    """The parts that differ, each under the names that lead to it."""
    if isinstance(old, dict) and isinstance(new, dict):
        if old.get("class_name") != new.get("class_name"):
            return [_both(name, old.get("class_name"), new.get("class_name"))]
        keys = sorted({*old, *new})
        # What leads to each setting of what Keras has serialized says nothing.
        parts = [(name if key == "config" else f"{name} {key}", key) for key in keys]
        return [
            change
            for path, key in parts
            if old.get(key) != new.get(key)
            for change in _within(path, old.get(key), new.get(key))
        ]
    return [_both(name, old, new)]


def _both(name: str, old: Any, new: Any) -> str:
    short = len(f"{old}{new}") <= 200 and not _is_hash(old)
    return f"{name} (was {old!r}, is {new!r})" if short else name


def _parsed(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _configuration(thing: Any) -> str:
    serialized = keras.tree.map_structure(
        lambda part: part if isinstance(part, str) else keras.saving.serialize_keras_object(part),
        thing,
    )
    return json.dumps(_without(serialized), sort_keys=True, default=str)


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get("class_name") == "ScaledUpdates":  # there or not as the stages need it
            return _without(value["config"]["inner_optimizer"])
        return {key: _without(inner) for key, inner in value.items() if key not in CHANGING}
    if isinstance(value, list | tuple):
        return [_without(inner) for inner in value]
    return value


def _shown(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _names_in(config: Any, names: dict[str, str]) -> None:
    if isinstance(config, dict):
        name = config.get("name")
        if isinstance(name, str):
            names.setdefault(name, f"#{len(names)}")
        for inner in config.values():
            _names_in(inner, names)
    elif isinstance(config, list):
        for inner in config:
            _names_in(inner, names)


def _renamed(config: Any, names: Mapping[str, str]) -> Any:
    if isinstance(config, dict):
        return {key: _renamed(inner, names) for key, inner in config.items()}
    if isinstance(config, list):
        return [_renamed(inner, names) for inner in config]
    return names.get(config, config) if isinstance(config, str) else config
