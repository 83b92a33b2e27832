"""The versions that are served: looked for on disk, loaded, warmed up, proved, then swapped in."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kerasmtl.export.description import GOLDEN, WARM_UP
from kerasmtl.export.versions import Stamp, missing, stamp, versions_in
from kerasmtl.serving.batching import predict_together
from kerasmtl.serving.errors import Refused
from kerasmtl.serving.protocols import read_predict, write_predict
from kerasmtl.serving.served_model import DEFAULT, Served

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


MOST_WARM_UPS = 1000  # as TensorFlow Serving has it
TOLERANCE = 1e-4  # other processors add in another order


def prepare(served: Served) -> None:
    """Warm a version up, and compare its answers with those that were written beside it.

    Raises:
        ValueError: a request that it does not answer, or answers otherwise.
    """
    served.warm_up()
    try:
        for signature, inputs in _warm_ups(served):
            served.call(signature, inputs)
    except Exception as error:  # a foreign file: anything may be in there
        raise ValueError(f"its warm-up requests fail: {error}") from error
    _replay(served, served.folder / GOLDEN, "rest_row")


def _replay(served: Served, folder: Path, kind: str) -> None:
    asked, expected = (folder / f"{kind}.{end}.json" for end in ("request", "response"))
    if not asked.is_file():
        if served.description.get("versions"):  # an export's, which has them always
            raise ValueError(f"it is not whole: {asked.relative_to(served.folder)} is not there")
        return
    try:
        body = json.loads(asked.read_text(encoding="utf-8"))
        wanted = json.loads(expected.read_text(encoding="utf-8"))
        result = predict_together(served, [read_predict(body, served, served.most_pixels())])[0]
    except (OSError, ValueError) as error:
        raise ValueError(f"its golden request {kind} fails: {error}") from error
    if isinstance(result, Exception):
        raise ValueError(f"its golden request {kind} fails: {result}")
    if not _alike(write_predict(body, result), wanted):
        raise ValueError(f"its golden request {kind} is answered otherwise than it was written")


def _alike(received: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(received, dict) and all(
            key in received and _alike(received[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(received, list)
            and len(received) == len(wanted)
            and all(_alike(*pair) for pair in zip(received, wanted, strict=True))
        )
    if isinstance(wanted, float) and isinstance(received, (int, float)):
        return bool(np.isclose(received, wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))
    return received == wanted


def _warm_ups(served: Served) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Signature and inputs of each request in assets.extra/tf_serving_warmup_requests."""
    import tensorflow as tf

    file = served.folder / WARM_UP
    if not file.is_file():
        return
    message = _prediction_log()
    for record in tf.data.TFRecordDataset(str(file)).take(MOST_WARM_UPS).as_numpy_iterator():
        request = message.FromString(record).predict_log.request
        if not request.inputs:
            continue  # another kind of request than predict
        name = request.model_spec.signature_name or DEFAULT
        tensors = served.signatures[name].inputs
        yield (
            name,
            {
                entry.key: tf.io.parse_tensor(entry.value, tensors[entry.key].dtype).numpy()
                for entry in request.inputs
            },
        )


def _prediction_log() -> Any:
    """The few fields of TensorFlow Serving's PredictionLog that name a signature and its inputs.

    Source: https://github.com/tensorflow/serving, apis/prediction_log.proto, predict.proto
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name="kerasmtl/prediction_log.proto", package="kerasmtl", syntax="proto3"
    )
    kinds = {"string": 9, "bytes": 12}
    for name, *members in (
        ("ModelSpec", ("signature_name", 3, "string")),
        ("Input", ("key", 1, "string"), ("value", 2, "bytes")),  # a map's entry; a TensorProto
        ("Request", ("model_spec", 1, "ModelSpec"), ("inputs", 2, "Input")),
        ("PredictLog", ("request", 1, "Request")),
        ("PredictionLog", ("predict_log", 6, "PredictLog")),
    ):
        message = file.message_type.add(name=name)
        for member, number, kind in members:
            label = 3 if member == "inputs" else 1  # repeated, optional
            added = message.field.add(name=member, number=number, label=label)
            added.type = kinds.get(kind, 11)
            if kind not in kinds:
                added.type_name = f".kerasmtl.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("kerasmtl.PredictionLog"))


log = logging.getLogger("kerasmtl.serving")


@dataclass(frozen=True)
class _State:
    """What is served, by number, and what is called how: replaced, never changed."""

    served: Mapping[int, Served] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)


class Versions:
    """The newest versions in a folder, and those that have labels.

    A request keeps the version that it began with; one that has been taken out of service stays in
    memory until its last request is answered.

    Args:
        base: the folder of all versions of a model.
        wanted: how many versions are served, or, asked again at each look, which and their labels.
        prepare: what a version has to pass before it is served; raises ValueError.
    """

    def __init__(
        self,
        base: Path,
        wanted: int | Callable[[], Wanted],
        prepare: Callable[[Served], None],
    ) -> None:
        self.base = base
        self._wanted = (lambda: Wanted(wanted)) if isinstance(wanted, int) else wanted
        self._prepare = prepare
        self._state = _State()  # read from other threads
        self._seen: dict[int, Stamp] = {}  # new ones, as they were at the last look
        self._refused: dict[int, Stamp] = {}
        self._said = ""

    def load(self) -> None:
        """Load what is there now.

        Raises:
            ValueError: no version that can be served, each with the reason, or a label of one that
                cannot.
        """
        wanted = self._wanted()
        reasons = self._look(wanted, settled=False)
        shown = "; ".join(f"{version}: {why}" for version, why in reasons.items())
        if not self._state.served:
            raise ValueError(
                f"`folder` {self.base} has no version to serve. Expected folders named 1, 2, … as "
                f"`kerasmtl export` writes them. Received: {shown or self._what_is_there()}"
            )
        if self._unmet(wanted):
            raise ValueError(
                f"Some labels are of versions that cannot be served. Expected some of "
                f"{self.numbers}. Received: {self._unmet(wanted)}{shown and f' ({shown})'}"
            )
        self._report(reasons)

    def refresh(self) -> None:
        """Look again, and swap; a folder that is still being written to waits for the next look."""
        try:
            wanted = self._wanted()
        except (OSError, ValueError) as error:
            self._say(f"{error}; {self.numbers} go on being served")
            return
        self._report(self._look(wanted, settled=True))
        unmet = self._unmet(wanted)
        self._say(
            f"labels of versions that are not served stay as they were: {unmet}" * bool(unmet)
        )

    @property
    def numbers(self) -> list[int]:
        """The versions that are served, the newest first."""
        return sorted(self._state.served, reverse=True)

    @property
    def labels(self) -> dict[str, int]:
        """The version that each label stands for."""
        return dict(self._state.labels)

    def get(self, version: int | None = None, label: str | None = None) -> Served:
        """A version, by its number or label; by default the newest.

        Raises:
            Refused: it is not served, or there is no such label.
        """
        state = self._state
        if label is not None:
            if label not in state.labels:
                raise Refused(
                    f"The label is unknown. Expected one of {sorted(state.labels)}. "
                    f"Received: {label[:100]!r}",
                    404,
                )
            return state.served[state.labels[label]]
        number = max(state.served) if version is None else version
        if number not in state.served:
            raise Refused(
                f"Version {number} is not served. Expected one of {self.numbers}",
                404,
            )
        return state.served[number]

    def _look(self, wanted: Wanted, settled: bool) -> dict[int, str]:
        """Load what is new, drop what is old; by version, why it is refused."""
        there = versions_in(self.base)
        kept: dict[int, Served] = {}
        reasons: dict[int, str] = {}
        seen: dict[int, Stamp] = {}
        for version in there:
            if len(kept) >= wanted.keep and not wanted.includes(version):
                continue
            if version in self._state.served:
                kept[version] = self._state.served[version]
                continue
            seen[version] = stamp(self.base / str(version))
            writing = settled and self._seen.get(version) != seen[version]
            if writing or self._refused.get(version) == seen[version]:
                continue
            try:
                kept[version] = self._loaded(version)
            except Exception as error:  # whatever is wrong with it, the others go on
                self._refused[version] = seen[version]
                reasons[version] = str(error)
        self._seen = seen
        self._refused = {v: s for v, s in self._refused.items() if v in there}
        self._swap(kept, wanted.labels)
        return reasons

    def _report(self, reasons: dict[int, str]) -> None:
        for version, why in reasons.items():
            log.error("version %d is refused: %s; %s is served", version, why, self.numbers)

    def _say(self, trouble: str) -> None:
        """Once, not at every look."""
        if trouble and trouble != self._said:
            log.error(trouble)
        self._said = trouble

    def _unmet(self, wanted: Wanted) -> dict[str, int]:
        """The labels that do not stand for what they should."""
        return {k: v for k, v in wanted.labels.items() if self._state.labels.get(k) != v}

    def _loaded(self, version: int) -> Served:
        folder = self.base / str(version)
        lacking = missing(folder)
        if lacking:
            raise ValueError(f"it is not whole: {lacking}")
        served = Served(folder)
        self._prepare(served)
        return served

    def _swap(self, kept: dict[int, Served], wanted: Mapping[str, int]) -> None:
        """A label moves only to a version that is there; until then, its former one stays."""
        before = self._state
        if not kept:
            return  # a folder that was emptied stops nothing
        labels = {}
        for label, version in wanted.items():
            former = before.labels.get(label)
            if version in kept:
                labels[label] = version
            elif former is not None:
                labels[label] = former
                kept.setdefault(former, before.served[former])
        if kept.keys() == before.served.keys() and labels == before.labels:
            return
        self._state = _State(kept, labels)
        if before.served:
            shown = f", labels {labels}" if labels or before.labels else ""
            log.warning(
                "now serving %s%s, before %s", self.numbers, shown, sorted(before.served)[::-1]
            )

    def _what_is_there(self) -> str:
        if (self.base / "saved_model.pb").is_file():
            return f"one version itself; serve its parent, {self.base.parent}"
        return "a folder without any" if self.base.is_dir() else "no folder"
