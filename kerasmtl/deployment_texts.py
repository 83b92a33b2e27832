"""What `kerasmtl deploy` writes for people to read, and for a shell and a monitor."""

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
- `kerasmtl serve --models-config config/models.config` serves the same names, versions and labels
  without Docker, to try an edit.
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
