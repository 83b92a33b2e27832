"""Files with which TensorFlow Serving or KServe serve the versions of an exported model.

`kerasmtl deploy` makes a `Deployment`, which checks itself, and gives it to `write_deployment`. The
texts are the templates `deploy-tfserving` and `deploy-kserve`, rendered with Jinja2: names and tags
are matched against patterns first, since most of them stand there unquoted.

Sources: https://www.tensorflow.org/tfx/serving/serving_config,
https://kserve.github.io/website/docs/model-serving/predictive-inference/frameworks/tensorflow
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kerasmtl.export.versions import missing, versions_in
from kerasmtl.utils.files import atomic_folder
from kerasmtl.utils.validation import check_count

TAG = "2.21.0"  # of the image tensorflow/serving
POLL = 30  # seconds after which the server reads models.config again
_PATTERNS = {
    "name": (r"[A-Za-z0-9_][A-Za-z0-9_.-]*", "letters, digits, '.', '_' and '-'"),
    "tag": (r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", f"a tag of an image, such as {TAG!r}"),
    "storage_uri": (r"[a-z][a-z0-9]*://\S+", "a URI: gs://…, s3://… or pvc://CLAIM/PATH"),
}
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Deployment:
    """Describes what is to be served, and how.

    Args:
        base: the folder of the versions.
        name: of the model in URLs.
        labels: by label the number of a version; the versions that have one are loaded. By default
            "stable", the newest version.
        tag: of the image tensorflow/serving.
        port: of REST on this machine.
        grpc_port: of gRPC on this machine.
        batch_size: examples in one call of the model; 1 calls it for each request alone.
        storage_uri: where KServe finds the folder: gs://…, s3://…, pvc://CLAIM/PATH.

    Raises:
        ValueError: no versions, a label of one that is absent or incomplete, or an invalid name,
            tag or URI.
    """

    base: Path
    name: str
    labels: Mapping[str, int] = field(default_factory=dict)
    tag: str = TAG
    port: int = 8501
    grpc_port: int = 8500
    batch_size: int = 32
    storage_uri: str | None = None

    def __post_init__(self) -> None:
        for argument, (pattern, expected) in _PATTERNS.items():
            value = getattr(self, argument)
            if value is not None and not re.fullmatch(pattern, value):
                raise ValueError(f"`{argument}` must be {expected}, got {value!r}")
        check_count("batch_size", self.batch_size)
        found = versions_in(self.base)
        if not found:
            raise ValueError(
                f"`base` must have folders 1, 2, … of versions, got {self.base}. Run `kerasmtl "
                "export`, or pass the folder above that of a version."
            )
        # The class is frozen; a default that depends on the folder can only be set this way.
        object.__setattr__(self, "labels", dict(self.labels) or {"stable": found[0]})
        for label, version in self.labels.items():
            lacking = missing(self.base / str(version))
            if not _LABEL.fullmatch(label) or version not in found or lacking:
                raise ValueError(
                    f"`labels` must name complete versions of {found}, got {label}={version}"
                    + (f": {lacking}" if lacking else "")
                )


def write_deployment(deployment: Deployment, target: str, out: str | os.PathLike[str]) -> Path:
    """Write the files with which a server serves the versions of a model into a new folder.

    Args:
        deployment: what is served.
        target: "tfserving": compose.yaml, the configuration of TensorFlow Serving and a README;
            "kserve": inferenceservice.yaml and a README. KServe serves the newest version in the
            storage, without labels.
        out: the folder, new or empty.

    Raises:
        FileExistsError: the folder is not empty; nothing is changed.
        ValueError: a name that Kubernetes does not accept.
    """
    result, name = Path(out), deployment.name
    if target == "kserve" and not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name):
        raise ValueError(
            f"`name` must be at most 63 lower-case letters, digits and '-' for Kubernetes, got "
            f"{name!r}"
        )
    if result.exists() and (not result.is_dir() or any(result.iterdir())):
        raise FileExistsError(f"`out` must be a new or an empty folder, got {out}")
    models = os.path.relpath(deployment.base.resolve(), result.resolve())
    values = asdict(deployment) | {
        # "./", or Compose takes it for the name of a volume; "$$", or "$" for a variable.
        "models": (models if models.startswith(".") else f"./{models}").replace("$", "$$"),
        "label": min(deployment.labels),
        "poll": POLL,
        "storage": deployment.storage_uri or f"pvc://{name}-models/{name}",
    }
    source = Path(str(files("kerasmtl.templates"))) / f"deploy-{target}"
    engine = Environment(
        loader=FileSystemLoader(source), undefined=StrictUndefined, keep_trailing_newline=True
    )
    with atomic_folder(result) as folder:
        for path in sorted(path for path in source.rglob("*.*") if path.is_file()):
            if path.name == "batching.config" and deployment.batch_size == 1:
                continue
            file = path.relative_to(source)
            (folder / file).parent.mkdir(exist_ok=True)
            text = engine.get_template(file.as_posix()).render(values)
            (folder / file).write_text(text, encoding="utf-8")
    return result
