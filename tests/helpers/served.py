"""Small models on disk, and the server in a thread of the test's own process."""

import base64
import contextlib
import io
import json
import os
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import requests
from PIL import Image

TASKS = ["night", "sign"]
CLASSES = ["none", "stop", "größe"]


def noise(seed=0, size=(30, 40), kind="PNG"):
    """The bytes of an image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), "uint8")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def b64(data):
    return {"b64": base64.b64encode(data).decode()}


def described(name="street", version=1):
    """A model.json for the model of `save_image_model`."""
    return {
        "format": 1,
        "name": name,
        "version": version,
        "kind": "image",
        "tasks": [
            {"name": "night", "kind": "binary", "classes": [], "threshold": 0.4},
            {"name": "sign", "kind": "multiclass", "classes": CLASSES, "threshold": None},
        ],
    }


def save_image_model(base, version=1, shift=0.0, description=True):
    """A SavedModel of images; `night` is the mean of the pixels in [0, 1], plus `shift`."""
    import tensorflow as tf

    def answers(means):
        share = tf.nn.softmax(tf.stack([means, 1 - means, means * 0], axis=1))
        return {
            "night": means + shift,
            "night_decision": tf.cast(means + shift >= 0.4, tf.int32),
            "sign": share,
            "sign_decision": tf.gather(CLASSES, tf.argmax(share, axis=1)),
        }

    def mean(data):
        decoded = tf.io.decode_image(data, channels=3, expand_animations=False)
        return tf.reduce_mean(tf.cast(decoded, tf.float32)) / 255

    module = tf.Module()
    module.scale = tf.Variable(1.0)
    module.images = tf.function(
        lambda image_bytes: answers(
            tf.map_fn(mean, image_bytes, fn_output_signature=tf.float32) * module.scale
        ),
        input_signature=[tf.TensorSpec((None,), tf.string, name="image_bytes")],
    )
    module.pixels = tf.function(
        lambda pixels: {"mean": tf.reduce_mean(tf.cast(pixels, tf.float32), axis=(1, 2, 3))},
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8, name="pixels")],
    )
    folder = Path(base) / str(version)
    signatures = {"serving_default": module.images, "pixels": module.pixels}
    tf.saved_model.save(module, str(folder), signatures=signatures)
    if description:
        (folder / "assets.extra").mkdir()
        text = json.dumps(described(version=version))
        (folder / "assets.extra" / "model.json").write_text(text)
    return folder


def mean_of(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), "float32").mean() / 255


@contextlib.contextmanager
def serving(base, name="street", watching=False, **settings):
    """Serve `base` on a free port; yields url, server (what the application keeps), versions."""
    import uvicorn

    from kerasmtl.serving.config import ServerConfig
    from kerasmtl.serving.server import create_app, uvicorn_config
    from kerasmtl.serving.versions import Versions

    config = ServerConfig(**{"poll": 0.02 if watching else 1e6, **settings})
    versions = Versions(Path(base), config.keep)
    versions.load()
    up = threading.Event()
    app = create_app(name, versions, config, up.set)
    server = uvicorn.Server(uvicorn_config(app, config))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        assert up.wait(30)
        port = listener.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        try:
            yield SimpleNamespace(url=url, port=port, server=app.state.server, versions=versions)
        finally:
            server.should_exit = True
            thread.join()


def held(running, monkeypatch):
    """Two events: that the served model is inside a call, and that it may continue."""
    served = running.versions.get()
    inside, on = threading.Event(), threading.Event()
    call = served.call

    def slow(*arguments):
        inside.set()
        assert on.wait(30)
        return call(*arguments)

    monkeypatch.setattr(served, "call", slow)
    return inside, on


def predict(url, body, path="/v1/models/street:predict"):
    return requests.post(url + path, json=body, timeout=60)


def tensor(*images, **more):
    """An Open Inference request with these images."""
    data = [base64.b64encode(data).decode() for data in images]
    kind = {"content_type": "base64"}
    given = {"name": "image_bytes", "shape": [len(data)], "datatype": "BYTES", "parameters": kind}
    return {"inputs": [{**given, "data": data}], **more}


def environment():
    """A quiet one for a process of its own."""
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
