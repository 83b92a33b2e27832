"""Files with which TensorFlow Serving or KServe serve the versions of an exported model.

Sources: https://www.tensorflow.org/tfx/serving/serving_config,
https://kserve.github.io/website/docs/model-serving/predictive-inference/frameworks/tensorflow
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

from kerasmtl.export.versions import missing, versions_in

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# Alive is not enough: the model must be there. The image has neither curl nor wget.
HEALTH = (
    "exec 3<>/dev/tcp/127.0.0.1/8501 && "
    "printf 'GET /v1/models/{name} HTTP/1.1\\r\\nHost: localhost\\r\\n"
    "Connection: close\\r\\n\\r\\n' >&3 && grep -q AVAILABLE <&3"
)
MONITORING = """\
prometheus_config {
  enable: true
  path: "/monitoring/prometheus/metrics"
}
"""

TFSERVING = """\
# $name on TensorFlow Serving

```
docker compose up -d --wait
kerasmtl client http://127.0.0.1:$port/v1/models/$name/labels/$label PICTURE.jpg
docker compose down
```

- `config/models.config` says which versions are loaded, and what they are called. After an edit the
  server follows within $poll seconds. A new version: add it to `versions`, wait until
  http://127.0.0.1:$port/v1/models/$name calls it AVAILABLE, then move a label to it. A label
  moves only to a version that is loaded; the way back is the same edit the other way round.
- http://127.0.0.1:$port/monitoring/prometheus/metrics is for Prometheus.
- The ports are open to this machine alone: the server asks nobody who they are.
- The image is built for x86-64 only.
"""
BATCHING = """\
- `config/batching.config`: requests that arrive together share a call of the model. A picture that
  cannot be decoded then fails the requests that share its call; `kerasmtl deploy --batch-size 1`
  leaves batching out.
"""
KSERVE = """\
# $name on KServe

1. Copy the folder of the versions, with its folders 1, 2, …, to $storage. The newest one is served.
2. ```
   kubectl apply -f inferenceservice.yaml
   kubectl get inferenceservice $name
   ```
3. With the URL that it shows:
   `kerasmtl client URL/v1/models/$name PICTURE.jpg`

KServe's TensorFlow runtime is TensorFlow Serving, which speaks protocol v1 and not v2. For a part
of the traffic on a new version, give the new one a storage of its own and set
`spec.predictor.canaryTrafficPercent`.
"""

TAG = "2.21.0"  # of the image tensorflow/serving
POLL = 30  # seconds between two looks at models.config


@dataclass(frozen=True)
class Deployment:
    """What is to be served, and how.

    Args:
        base: the folder of the versions.
        name: of the model in URLs.
        labels: by label the number of a version; those that have one are loaded, no other.
        tag: of the image tensorflow/serving.
        port: of REST on this machine; `grpc_port` of gRPC.
        batch_size: examples in one call of the model; 1 calls it for each request alone.
        storage_uri: where KServe finds the folder: gs://…, s3://…, pvc://CLAIM/PATH.

    Raises:
        ValueError: no versions, one that is not whole, a label of another, or a name, tag or URI
            that cannot be used.
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
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name):
            raise ValueError(
                "`name` is no name for a path. Expected letters, digits, . _ -. "
                f"Received: {self.name!r}"
            )
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", self.tag):
            raise ValueError(f"`tag` is no image's tag. Expected {TAG!r}. Received: {self.tag!r}")
        if self.batch_size < 1:
            raise ValueError(
                f"`batch_size` is too small. Expected at least 1. Received: {self.batch_size}"
            )
        if self.storage_uri is not None and not re.fullmatch(
            r"[a-z][a-z0-9]*://[^\s]+", self.storage_uri
        ):
            raise ValueError(
                "`storage_uri` is no URI. Expected gs://…, s3://… or pvc://CLAIM/PATH. "
                f"Received: {self.storage_uri!r}"
            )
        found = _versions(self.base)
        object.__setattr__(self, "labels", dict(self.labels) or {"stable": found[0]})
        for label, version in self.labels.items():
            if not LABEL.fullmatch(label) or version not in found:
                raise ValueError(
                    f"`labels` are wrong. Expected names for some of the versions {found} of "
                    f"{self.base}. Received: {label}={version}"
                )
            lacking = missing(self.base / str(version))
            if lacking:
                raise ValueError(f"`labels` {label}={version} is not whole: {lacking}.")


def for_tfserving(deployment: Deployment, out: str | os.PathLike[str]) -> Path:
    """Write compose.yaml, what TensorFlow Serving reads, and a README into a new folder, `out`.

    Raises:
        FileExistsError: the folder is there, and not empty; nothing is changed.
    """
    target = Path(out)
    files = {
        "compose.yaml": _yaml(_compose(deployment, target)),
        "config/models.config": models_config(deployment),
        "config/monitoring.config": MONITORING,
        "README.md": _readme("tfserving", deployment),
    }
    if deployment.batch_size > 1:
        files["config/batching.config"] = batching_config(deployment.batch_size)
    return _write(files, target)


def for_kserve(deployment: Deployment, out: str | os.PathLike[str]) -> Path:
    """Write inferenceservice.yaml and a README into a new folder, `out`.

    KServe's TensorFlow runtime is TensorFlow Serving: its protocol is v1, and it serves the newest
    version in the storage.

    Raises:
        FileExistsError: the folder is there, and not empty; nothing is changed.
        ValueError: a name that Kubernetes does not take.
    """
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", deployment.name):
        raise ValueError(
            "`name` is no name for Kubernetes. Expected lower-case letters, digits and -, at most "
            f"63. Received: {deployment.name!r}"
        )
    files = {
        "inferenceservice.yaml": _yaml(inference_service(deployment)),
        "README.md": _readme("kserve", deployment),
    }
    return _write(files, Path(out))


def models_config(deployment: Deployment) -> str:
    """A ModelServerConfig in protobuf's text format: the labelled versions, and their labels."""
    versions = "\n".join(
        f"        versions: {version}" for version in sorted(set(deployment.labels.values()))
    )
    labels = "\n".join(
        f"    version_labels {{\n      key: {_quoted(label)}\n      value: {version}\n    }}"
        for label, version in sorted(deployment.labels.items())
    )
    return f"""\
model_config_list {{
  config {{
    name: {_quoted(deployment.name)}
    base_path: {_quoted("/models/" + deployment.name)}
    model_platform: "tensorflow"
    model_version_policy {{
      specific {{
{versions}
      }}
    }}
{labels}
  }}
}}
"""


def batching_config(batch_size: int) -> str:
    """BatchingParameters in protobuf's text format."""
    return f"""\
max_batch_size {{ value: {batch_size} }}
batch_timeout_micros {{ value: 2000 }}
max_enqueued_batches {{ value: 100 }}
"""


def inference_service(deployment: Deployment) -> dict[str, Any]:
    """An InferenceService, serving.kserve.io/v1beta1."""
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": deployment.name},
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "timeout": 60,
                "model": {
                    "modelFormat": {"name": "tensorflow", "version": "2"},
                    "protocolVersion": "v1",
                    "runtimeVersion": deployment.tag,
                    "storageUri": _storage(deployment),
                    "resources": {
                        "requests": {"cpu": "1", "memory": "2Gi"},
                        "limits": {"cpu": "2", "memory": "4Gi"},
                    },
                },
            }
        },
    }


def _compose(deployment: Deployment, out: Path) -> dict[str, Any]:
    name = deployment.name
    flags = [
        "--port=8500",
        "--rest_api_port=8501",
        "--model_config_file=/config/models.config",
        f"--model_config_file_poll_wait_seconds={POLL}",
        # At the start nothing is loaded yet, and a label would be refused.
        "--allow_version_labels_for_unavailable_models=true",
        "--monitoring_config_file=/config/monitoring.config",
    ]
    if deployment.batch_size > 1:
        flags += ["--enable_batching", "--batching_parameters_file=/config/batching.config"]
    models = os.path.relpath(deployment.base.resolve(), out.resolve())
    return {
        "services": {
            "tfserving": {
                "image": f"tensorflow/serving:{deployment.tag}",
                "platform": "linux/amd64",
                # The image's own adds --model_name.
                "entrypoint": ["tensorflow_model_server"],
                "command": flags,
                "ports": [
                    f"127.0.0.1:{deployment.port}:8501",
                    f"127.0.0.1:{deployment.grpc_port}:8500",
                ],
                "volumes": [_mounted(models, f"/models/{name}"), _mounted("./config", "/config")],
                "healthcheck": {
                    "test": ["CMD", "bash", "-c", HEALTH.format(name=name)],
                    "interval": "10s",
                    "timeout": "5s",
                    "start_period": "60s",
                },
                "restart": "unless-stopped",
            }
        }
    }


def _mounted(source: str, target: str) -> dict[str, Any]:
    path = source if source.startswith(".") else f"./{source}"
    return {
        "type": "bind",
        "source": path.replace("$", "$$"),  # Compose would look for a variable
        "target": target,
        "read_only": True,
        "bind": {"create_host_path": False},
    }


def _storage(deployment: Deployment) -> str:
    return deployment.storage_uri or f"pvc://{deployment.name}-models/{deployment.name}"


def _versions(base: Path) -> list[int]:
    found = versions_in(base)
    if found:
        return found
    if (base / "saved_model.pb").is_file():
        raise ValueError(
            f"`base` {base} is one version. Expected the folder of all versions: {base.parent}"
        )
    raise ValueError(
        f"`base` {base} has no exported versions. Expected folders 1, 2, …. Run: kerasmtl export"
    )


def _readme(kind: str, deployment: Deployment) -> str:
    text = TFSERVING if kind == "tfserving" else KSERVE
    if kind == "tfserving" and deployment.batch_size > 1:
        text += BATCHING
    return Template(text).substitute(
        name=deployment.name,
        port=deployment.port,
        poll=POLL,
        storage=_storage(deployment),
        label=sorted(deployment.labels)[0],
    )


def _write(files: Mapping[str, str], out: Path) -> Path:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"`out` {out} exists, and is not overwritten. Expected a new or an empty folder."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".deploy-") as aside:
        whole = Path(aside) / "whole"
        for name, text in files.items():
            path = whole / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        os.rename(whole, out)
    return out


def _yaml(content: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)


def _quoted(text: str) -> str:
    """A string of protobuf's text format; names here are ASCII, where JSON's is the same."""
    return json.dumps(text)
