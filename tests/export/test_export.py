"""The exported SavedModel: image bytes in, named probabilities out, no Keras needed."""

import io
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from modules import save_reusable
from PIL import Image

import kerasmtl as kt
import kerasmtl.export.saved_model
from kerasmtl.data.images import prepare_image, resize_image

TASKS = ["pedestrian", "stop sign", "größe 2"]
OUTPUTS = {*TASKS, *(f"{name}_decision" for name in TASKS)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    keras.utils.set_random_seed(0)
    folder = save_reusable(tmp_path_factory.mktemp("module") / "reusable")
    return kt.build_model(str(folder), TASKS, 24, hidden=[8])


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """Published with its proof; tests only read it."""
    return kt.export_saved_model(model, tmp_path_factory.mktemp("served") / "street", TASKS)


@pytest.fixture(scope="module")
def signatures(exported):
    return tf.saved_model.load(str(exported)).signatures


def export(model, path, **options):
    """Without the proof, which takes a process."""
    return kt.export_saved_model(model, path, TASKS, proof=False, **options)


def picture_bytes(mode="RGB", kind="JPEG", size=(50, 30), seed=0, **options):
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), "uint8")).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return picture_bytes(exif=tags, seed=orientation)


BYTES = [
    picture_bytes(seed=1),
    picture_bytes("RGBA", "PNG", seed=2),
    picture_bytes("P", "PNG", (20, 90), seed=3),
    picture_bytes("L", "JPEG", seed=4),
    picture_bytes("RGB", "BMP", seed=5),
    picture_bytes("P", "BMP", seed=5),
    picture_bytes("P", "GIF", seed=6),
    picture_bytes("CMYK", "JPEG", seed=7),
    picture_bytes("RGB", "WEBP", seed=8),
    picture_bytes("RGB", "PNG", (1, 1), seed=9),
    picture_bytes("LA", "PNG", seed=10),
    picture_bytes("RGBA", "WEBP", seed=11, lossless=True),
    picture_bytes(progressive=True, seed=12),
    *(turned(orientation) for orientation in range(2, 9)),
]


def expected(model, data):
    """As `model.predict` sees the files in training."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, str(number)) for number in range(len(data))]
        for path, content in zip(paths, data, strict=True):
            path.write_bytes(content)
        images = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
        images = images.map(lambda path: prepare_image(tf.io.read_file(path), (24, 24)))
        return model.predict(images.batch(4), verbose=0)


def check(outputs, wanted):
    assert set(outputs) == OUTPUTS
    for column, name in enumerate(TASKS):
        assert outputs[name].shape == (len(wanted),) and outputs[name].dtype == tf.float32
        np.testing.assert_allclose(outputs[name], wanted[:, column], atol=1e-5)
        decided = outputs[f"{name}_decision"]
        assert decided.dtype == tf.int32
        np.testing.assert_array_equal(decided, outputs[name].numpy() >= 0.5)


def test_outputs_are_named_by_task_and_equal_the_model(model, exported, signatures):
    assert exported.name == "1" and exported.parent.name == "street"
    check(signatures["serving_default"](image_bytes=tf.constant(BYTES)), expected(model, BYTES))


@pytest.mark.parametrize("shape", [(2, 31, 45, 3), (1, 1, 1, 3), (3, 24, 24, 3)])
def test_pixels_of_any_size_equal_the_model(model, signatures, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    wanted = model.predict(np.stack([resize_image(one, (24, 24)) for one in pixels]), verbose=0)
    check(signatures["pixels"](pixels=tf.constant(pixels)), wanted)
    floats = tf.constant(pixels / 255, tf.float32)
    check(signatures["pixels_float"](pixels=floats), wanted)


def test_features_are_what_the_head_takes(model, signatures):
    found = signatures["features"](image_bytes=tf.constant(BYTES[:2]))
    assert set(found) == {"features"}
    head = keras.Model(model.get_layer("head_dense_1").input, model.output)
    wanted = expected(model, BYTES[:2])
    np.testing.assert_allclose(head(found["features"]), wanted, atol=1e-5)


def test_a_bad_picture_is_named_by_its_number(signatures):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image_bytes\[1\] is truncated"):
        signatures["serving_default"](image_bytes=tf.constant([BYTES[0], BYTES[0][:-40]]))


@pytest.mark.slow
def test_saved_model_cli_runs_it(model, exported, tmp_path):
    np.save(tmp_path / "pictures.npy", np.array([BYTES[0]]))
    command = [
        *(sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "run"),
        *("--dir", str(exported), "--tag_set", "serve", "--signature_def", "serving_default"),
        *("--inputs", "image_bytes=pictures.npy", "--outdir", "out"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    value = np.load(tmp_path / "out" / "pedestrian.npy")
    np.testing.assert_allclose(value, expected(model, BYTES[:1])[:, 0], atol=1e-5)


@pytest.mark.slow
def test_twenty_megapixels_equal_the_model(model, signatures):
    large = [picture_bytes(size=(4000, 5000)), picture_bytes("RGB", "PNG", (4000, 5000))]
    found = signatures["serving_default"](image_bytes=tf.constant(large))
    check(found, expected(model, large))


def test_versions_count_up_and_are_never_overwritten(model, tmp_path):
    base = tmp_path / "street"
    (base / "7").mkdir(parents=True)
    (base / "7" / "mine").write_text("kept")
    assert export(model, base).name == "8"
    with pytest.raises(FileExistsError, match="never overwritten"):
        export(model, base, version=7)
    assert [p.name for p in (base / "7").iterdir()] == ["mine"]


@pytest.mark.slow
def test_the_process_of_the_proof_has_an_end(model, tmp_path, monkeypatch):
    monkeypatch.setattr(kerasmtl.export.verify, "TIMEOUT", 0.01)
    with pytest.raises(kerasmtl.export.verify.ProofFailed, match="within 0.01 seconds"):
        kt.export_saved_model(model, tmp_path / "street", TASKS)
    assert list((tmp_path / "street").iterdir()) == []


def test_a_failed_export_leaves_nothing(model, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(tf, "map_fn", fail)
    with pytest.raises(OSError, match="disk full"):
        export(model, tmp_path / "street")
    assert list((tmp_path / "street").iterdir()) == []


def test_a_fine_tuned_backbone_is_exported_as_it_is_now(tmp_path):
    keras.utils.set_random_seed(0)
    model = kt.build_model(str(save_reusable(tmp_path / "reusable")), TASKS, 24)
    kt.unfreeze(model)
    model.compile("adam", kt.losses.MaskedBinaryCrossentropy())
    rng = np.random.default_rng(0)
    model.fit(
        rng.random((8, 24, 24, 3), dtype="float32"), rng.integers(0, 2, (8, 3)) * 1.0, verbose=0
    )
    folder = export(model, tmp_path / "street")
    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    check(served(image_bytes=tf.constant(BYTES)), expected(model, BYTES))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tasks": ["one"]}, r"Expected output \(batch, 1\)"),
        ({"tasks": ["a", "b", "a_decision"]}, "decisions of other tasks"),
        ({"max_pixels": 0}, "`max_pixels` is no number"),
        ({"max_pixels": True}, "`max_pixels` is no number"),
        ({"version": True}, "`version` is no version"),
        ({"model": "tiny"}, "`model` is no keras.Model"),
        ({"model": keras.Sequential([keras.layers.Dense(3)])}, "neither built with an Input"),
        ({"data": "labels.csv"}, "`data` is no description"),
        ({"require": ["macro_auc"]}, "`require` is no dict"),
        ({"metrics": {"macro_auc": 0.1}, "require": {"macro_auc": float("nan")}}, "is no number"),
        ({"metrics": {"macro_auc": float("nan")}, "require": {"macro_auc": 0.5}}, "not defined"),
        ({"require": {"macro_auc": 0.5}}, "`require` needs scores"),
        ({"thresholds": "f1"}, "`validation` is absent"),
        ({"metrics": 0.9}, "`metrics` is no report"),
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
