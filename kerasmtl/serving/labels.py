"""Which versions are asked for, and what they are called: on the command line, or as TensorFlow
Serving's model configuration says.

Source: https://www.tensorflow.org/tfx/serving/serving_config
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
ALL = 2**31  # versions; as many as there are


@dataclass(frozen=True)
class Wanted:
    """The newest `keep` versions, those in `pinned`, and those that have a label."""

    keep: int
    labels: Mapping[str, int] = field(default_factory=dict)
    pinned: frozenset[int] = frozenset()

    def includes(self, version: int) -> bool:
        """Whether a version is served however old it is."""
        return version in self.pinned or version in self.labels.values()


def read_label(text: str) -> tuple[str, int]:
    """NAME=VERSION.

    Raises:
        ValueError: anything else.
    """
    label, _, version = text.partition("=")
    if not LABEL.fullmatch(label) or not (version.isascii() and version.isdigit()):
        raise ValueError(
            f"`--label` is no label. Expected NAME=VERSION, such as stable=3. Received: {text!r}"
        )
    return label, int(version)


def model_names(file: Path) -> list[str]:
    """The models that a configuration names.

    Raises:
        ValueError: no such configuration; OSError: it cannot be read.
    """
    return [config.name for config in _configs(file)]


def read_models_config(file: Path, name: str) -> Wanted:
    """What a model configuration, protobuf's text, says of the model of that name.

    The model's base_path is left unread: it is that of another machine.

    Raises:
        ValueError: no such configuration, or none of that model; OSError: it cannot be read.
    """
    configs = {config.name: config for config in _configs(file)}
    if name not in configs:
        raise ValueError(
            f"`--models-config` {file} lacks the model. Expected {name!r}. "
            f"Received: {sorted(configs)}"
        )
    config = configs[name]
    labels, policy = dict(config.version_labels), config.model_version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "specific":
        return Wanted(0, labels, frozenset(policy.specific.versions))
    if kind == "all":
        return Wanted(ALL, labels)
    return Wanted(policy.latest.num_versions or 1, labels)


def _configs(file: Path) -> Any:
    from google.protobuf import text_format

    text = file.read_text(encoding="utf-8")
    try:
        found = text_format.Parse(text, _message()(), allow_unknown_field=True)
    except text_format.ParseError as error:
        raise ValueError(
            f"`--models-config` {file} is no ModelServerConfig in protobuf's text format. "
            f"Received: {error}"
        ) from None
    if not found.model_config_list.config:
        raise ValueError(f"`--models-config` {file} names no model. Expected model_config_list.")
    return found.model_config_list.config


@cache
def _message() -> Any:
    """The fields of TensorFlow Serving's ModelServerConfig that say versions and labels.

    Source: https://github.com/tensorflow/serving, config/model_server_config.proto
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name="kerasmtl/model_server_config.proto", package="kerasmtl", syntax="proto3"
    )
    kinds = {"int64": 3, "uint32": 13, "string": 9}

    def message(name: str, *fields: tuple[str, int, str], into: Any = file.message_type) -> Any:
        made = into.add(name=name)
        for field_name, number, kind in fields:
            repeated = kind.startswith("*")
            added = made.field.add(name=field_name, number=number, label=3 if repeated else 1)
            added.type = kinds.get(kind.lstrip("*"), 11)
            if added.type == 11:
                added.type_name = f".kerasmtl.{kind.lstrip('*')}"
        return made

    message("Latest", ("num_versions", 1, "uint32"))
    message("All")
    message("Specific", ("versions", 1, "*int64"))
    choices = (("latest", 100, "Latest"), ("all", 101, "All"), ("specific", 102, "Specific"))
    policy = message("Policy", *choices)
    policy.oneof_decl.add(name="policy_choice")
    for choice in policy.field:
        choice.oneof_index = 0
    config = message(
        "Config",
        ("name", 1, "string"),
        ("model_version_policy", 7, "Policy"),
        ("version_labels", 8, "*Config.VersionLabelsEntry"),
    )
    entry = message(
        "VersionLabelsEntry", ("key", 1, "string"), ("value", 2, "int64"), into=config.nested_type
    )
    entry.options.map_entry = True
    message("ConfigList", ("config", 1, "*Config"))
    message("ModelServerConfig", ("model_config_list", 1, "ConfigList"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName("kerasmtl.ModelServerConfig")
    return message_factory.GetMessageClass(found)
