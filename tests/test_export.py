"""The exported SavedModel: image bytes in, named probabilities out, no Keras needed."""

import io
import json
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from modules import save_reusable
from PIL import Image

import kerasmtl as kt
from kerasmtl.inputs import decode_image, resize_image

TASKS = ["pedestrian", "stop sign", "größe 2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    keras.utils.set_random_seed(0)
    folder = save_reusable(tmp_path_factory.mktemp("module") / "reusable")
    return kt.build_model(str(folder), TASKS, 24, hidden=[8])


def picture_bytes(mode="RGB", kind="JPEG", size=(50, 30), seed=0):
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, channels), "uint8")
    image = Image.fromarray(pixels.squeeze(), mode)
    buffer = io.BytesIO()
    (image.quantize(16) if kind == "PNG8" else image).save(buffer, kind.removesuffix("8"))
    return buffer.getvalue()


BYTES = [
    picture_bytes(seed=1),
    picture_bytes("RGBA", "PNG", seed=2),
    picture_bytes("RGB", "PNG8", (20, 90), seed=3),
    picture_bytes("L", "JPEG", seed=4),
    picture_bytes("RGB", "BMP", seed=5),
    picture_bytes("RGB", "GIF", seed=6),
]


def expected(model, data):
    images = [resize_image(decode_image(tf.constant(d)), (24, 24)) for d in data]
    return model.predict(np.stack(images), verbose=0)


def test_outputs_are_named_by_task_and_equal_the_model(model, tmp_path):
    folder = kt.export_saved_model(model, tmp_path / "street", TASKS)
    assert folder == tmp_path / "street" / "1"
    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    outputs = served(image_bytes=tf.constant(BYTES))
    assert set(outputs) == set(TASKS)
    for column, name in enumerate(TASKS):
        assert outputs[name].shape == (len(BYTES),)
        np.testing.assert_allclose(outputs[name], expected(model, BYTES)[:, column], atol=1e-5)


def test_a_fresh_process_needs_neither_keras_nor_kerasmtl(model, tmp_path):
    folder = kt.export_saved_model(model, tmp_path / "street", TASKS)
    for number, data in enumerate(BYTES):
        (tmp_path / f"{number}.bin").write_bytes(data)
    code = f"""
        import json, sys
        import tensorflow as tf

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("keras", "tf_keras", "kerasmtl"):
                    raise ImportError(name)

        # TensorFlow imports Keras where it can; take it away again.
        for name in [name for name in sys.modules if name.split(".")[0] == "keras"]:
            del sys.modules[name]
        sys.meta_path.insert(0, Refuse())
        data = [open(f"{{i}}.bin", "rb").read() for i in range({len(BYTES)})]
        served = tf.saved_model.load({str(folder)!r}).signatures["serving_default"]
        out = served(image_bytes=tf.constant(data))
        assert not {{"keras", "kerasmtl"}} & set(sys.modules)
        print(json.dumps({{k: v.numpy().tolist() for k, v in out.items()}}))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    received = json.loads(done.stdout)
    np.testing.assert_allclose(
        np.stack([received[name] for name in TASKS], axis=1), expected(model, BYTES), atol=1e-5
    )


def test_saved_model_cli_runs_it(model, tmp_path):
    folder = kt.export_saved_model(model, tmp_path / "street", TASKS)
    np.save(tmp_path / "pictures.npy", np.array([BYTES[0]]))
    command = [
        *(sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "run"),
        *("--dir", str(folder), "--tag_set", "serve", "--signature_def", "serving_default"),
        *("--inputs", "image_bytes=pictures.npy", "--outdir", "out"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    value = np.load(tmp_path / "out" / "pedestrian.npy")
    np.testing.assert_allclose(value, expected(model, BYTES[:1])[:, 0], atol=1e-5)


def test_versions_count_up_and_are_never_overwritten(model, tmp_path):
    base = tmp_path / "street"
    (base / "7").mkdir(parents=True)
    (base / "7" / "mine").write_text("kept")
    assert kt.export_saved_model(model, base, TASKS).name == "8"
    with pytest.raises(FileExistsError, match="never overwritten"):
        kt.export_saved_model(model, base, TASKS, version=7)
    assert [p.name for p in (base / "7").iterdir()] == ["mine"]
    assert kt.export_saved_model(model, base, TASKS, version=3).name == "3"


def test_a_failed_export_leaves_nothing(model, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(tf, "map_fn", fail)
    with pytest.raises(OSError, match="disk full"):
        kt.export_saved_model(model, tmp_path / "street", TASKS)
    assert list((tmp_path / "street").iterdir()) == []


def test_a_fine_tuned_backbone_is_exported_as_it_is_now(model, tmp_path):
    kt.unfreeze(model)
    model.compile("adam", kt.MaskedBinaryCrossentropy())
    rng = np.random.default_rng(0)
    model.fit(
        rng.random((8, 24, 24, 3), dtype="float32"), rng.integers(0, 2, (8, 3)) * 1.0, verbose=0
    )
    folder = kt.export_saved_model(model, tmp_path / "street", TASKS)
    outputs = tf.saved_model.load(str(folder)).signatures["serving_default"](
        image_bytes=tf.constant(BYTES)
    )
    np.testing.assert_allclose(outputs[TASKS[0]], expected(model, BYTES)[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tasks": ["one"]}, r"Expected output \(batch, 1\)"),
        ({"version": 0}, "`version` is no version"),
        ({"version": "1"}, "`version` is no version"),
        ({"model": keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])}, "no pictures"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_written(model, tmp_path, change, message):
    given = {"model": model, "tasks": TASKS, **change}
    with pytest.raises(ValueError, match=message):
        kt.export_saved_model(path=tmp_path / "street", **given)
    assert not (tmp_path / "street").exists()
