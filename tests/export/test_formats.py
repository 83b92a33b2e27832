"""Converted models: each in its own runtime against the model, and what is refused."""

import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from modules import save_arguments_module, save_reusable, save_text_module, shared
from pictures import write_picture_folder

import kerasmtl as kt
from kerasmtl.export import convert as converting
from kerasmtl.export.convert import compare, convert_model, decisions_agree
from kerasmtl.export.converted_model import ConvertedModel
from kerasmtl.export.formats import FORMATS
from kerasmtl.export.interface import Face
from kerasmtl.tasks import as_tasks, by_task

litert = pytest.importorskip(
    "ai_edge_litert.interpreter", reason="ai-edge-litert is absent: pip install 'kerasmtl[litert]'"
)
onnxruntime = pytest.importorskip(
    "onnxruntime", reason="onnxruntime is absent: pip install 'kerasmtl[onnx]'"
)
pytest.importorskip("tf2onnx", reason="tf2onnx is absent: pip install 'kerasmtl[onnx]'")

# Names that TensorFlow, ONNX or a file system could trip over; "pixels" is what the input is called
TASKS = ["pedestrian", "stop sign", "größe/2", "a:0", "pixels"]
MIXED = [
    kt.Task("cat"),
    kt.Task("colour", "multiclass", classes=("red", "green", "blue")),
    kt.Task("speed", "regression"),
    kt.Task("dog"),
]
FLOAT = ["litert", "onnx"]


def pictures(count=6, size=24, seed=0):
    """Smooth pictures with a gradient each, not noise: averages of noise are all alike."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, size, dtype="float32")[None, :, None, None]
    mixed = rng.random((count, 1, 1, 3)) * ramp + rng.random((count, 1, size, 3)) * (1 - ramp)
    return np.broadcast_to(mixed, (count, size, size, 3)).astype("float32")


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return save_reusable(tmp_path_factory.mktemp("module") / "reusable")


@pytest.fixture(scope="module")
def model(module):
    """A HubLayer, a SavedModel with variables, under a head of several probabilities."""
    keras.utils.set_random_seed(0)
    return kt.build_model(str(module), TASKS, 24, hidden=[8])


@pytest.fixture(scope="module")
def mixed(module):
    keras.utils.set_random_seed(1)
    labels = np.array([[1, 0, 30.0, 0], [0, 1, 50.0, 1]], "float32")
    return kt.build_model(str(module), MIXED, 24, hidden=[8], labels=labels)


@pytest.fixture(scope="module")
def network():
    """Enough weights for 8 bits to show, and batch statistics, which converters fold."""
    keras.utils.set_random_seed(2)
    image = keras.Input((24, 24, 3))
    x = keras.layers.Conv2D(32, 3, 2, use_bias=False)(image)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.SeparableConv2D(256, 3, activation="relu")(x)
    x = keras.layers.Conv2D(128, 1, activation="relu")(x)
    return kt.build_model(keras.Model(image, x), ["a", "b"], 24)


def file_for(folder, to):
    return folder / f"model-{to}{FORMATS[to].ending}"


def litert_outputs(path, **inputs):
    """By the runtime itself, without kerasmtl's reader."""
    return litert.Interpreter(str(path)).get_signature_runner("serving_default")(**inputs)


def onnx_outputs(path, **inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


OUTPUTS = {"litert": litert_outputs, "onnx": onnx_outputs}


@pytest.mark.parametrize("to", FLOAT)
@pytest.mark.parametrize("rows", [1, 6])
def test_float_files_give_the_models_probabilities_by_task(model, tmp_path, to, rows):
    made = convert_model(model, file_for(tmp_path, to), TASKS, to)
    images = pictures(rows)
    got, wanted = OUTPUTS[to](made.path, pixels_=images), model.predict(images, verbose=0)
    assert set(got) == set(TASKS)
    for column, name in enumerate(TASKS):
        assert got[name].shape == (rows,) and got[name].dtype == np.float32
        np.testing.assert_allclose(got[name], wanted[:, column], atol=1e-5)
        np.testing.assert_array_equal(made.predict(images)[name], got[name])


@pytest.mark.parametrize("to", FLOAT)
def test_tasks_of_several_kinds(mixed, tmp_path, to):
    made = convert_model(mixed, file_for(tmp_path, to), MIXED, to)
    images = pictures()
    wanted = by_task(mixed.predict(images, verbose=0), MIXED)
    got = OUTPUTS[to](made.path, pixels=images)
    assert {name: value.shape for name, value in got.items()} == {
        "cat": (6,),
        "colour": (6, 3),
        "speed": (6,),
        "dog": (6,),
    }
    for name, value in got.items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-5, atol=1e-5)
    assert 20 < got["speed"].mean() < 60  # in the unit of the labels


@pytest.mark.parametrize("to", ["litert", "litert-dynamic", "onnx"])
def test_a_table_with_missing_cells(tmp_path, to):
    rng = np.random.default_rng(0)
    rows = rng.normal(5, 3, (40, 6)).astype("float32")
    rows[rng.random(rows.shape) < 0.3] = np.nan
    keras.utils.set_random_seed(0)
    backbone = kt.backbones.mlp(rows, [64, 64], batch_norm=True, indicators=True)
    model = kt.build_model(backbone, MIXED)
    columns = [f"sensor {number}" for number in range(6)]
    made = convert_model(model, file_for(tmp_path, to), MIXED, to, columns, samples=rows)
    wanted = by_task(model.predict(rows, verbose=0), MIXED)
    got = OUTPUTS[FORMATS[to].runtime](made.path, features=rows)
    for name, value in got.items():
        bound = 1e-5 if to in FLOAT else 0.05
        np.testing.assert_allclose(value, wanted[name], rtol=bound, atol=bound)
    assert made.description["columns"] == columns and made.description["image_size"] is None


def test_dynamic_range_is_a_third_of_the_size_or_less_and_near_the_model(network, tmp_path):
    whole = convert_model(network, tmp_path / "whole.tflite", ["a", "b"], "litert")
    small = convert_model(network, tmp_path / "small.tflite", ["a", "b"], "litert-dynamic")
    assert small.path.stat().st_size < 0.35 * whole.path.stat().st_size
    images = pictures(32)
    wanted = network.predict(images, verbose=0)
    got = litert_outputs(small.path, pixels=images)
    off = [np.abs(got[name] - wanted[:, column]).max() for column, name in enumerate("ab")]
    assert 0 < max(off) < 0.03
    assert small.description["check"]["largest_difference"].keys() == {"a", "b"}


@pytest.mark.parametrize("uint8", [False, True])
def test_int8_is_nearer_to_the_model_with_both_ends_in_float32(network, tmp_path, uint8):
    images, off = pictures(40, network.input_shape[1]), {}
    wanted = network.predict(images, verbose=0)
    for layers in (0, 2):
        made = convert_model(
            network,
            tmp_path / f"{layers}.tflite",
            ["a", "b"],
            "litert-int8",
            samples=images,
            uint8=uint8,
            float_layers=layers,
        )
        off[layers] = np.abs(made.predict(images)["a"] - wanted[:, 0]).mean()
    assert off[2] < off[0]


@pytest.mark.parametrize("uint8", [False, True])
def test_int8_is_integers_throughout_and_near_the_model(network, tmp_path, uint8):
    path = tmp_path / "int8.tflite"
    samples = pictures(60, seed=1) * 0.5 + 0.2  # which leave out the ends of [0, 1]
    made = convert_model(
        network, path, ["a", "b"], "litert-int8", samples=samples, uint8=uint8, float_layers=0
    )
    reader = litert.Interpreter(str(path))
    reader.allocate_tensors()
    floats = [d["name"] for d in reader.get_tensor_details() if d["dtype"] == np.float32]
    assert len(floats) <= (2 if uint8 else 3)  # the outputs, and the input
    (details,) = reader.get_input_details()
    assert details["dtype"] == (np.uint8 if uint8 else np.float32)
    if uint8:  # a pixel means what it does in a picture
        assert details["quantization"] == (pytest.approx(1 / 255, rel=1e-3), 0)
    images = pictures(40, seed=2)
    wanted = network.predict(images, verbose=0)
    got = made.predict(images)
    off = [np.abs(got[name] - wanted[:, column]).max() for column, name in enumerate("ab")]
    assert max(off) < 0.05
    check = made.description["check"]
    assert check["rows"] == 20 and check["on"] == "samples" and check["decisions_agree"] <= 1
    if uint8:
        whole = np.rint(images * 255).astype("uint8")
        np.testing.assert_array_equal(made.predict(whole)["a"], got["a"])


def test_the_file_describes_itself(mixed, tmp_path):
    for to in FLOAT:
        path = file_for(tmp_path, to)
        made = convert_model(mixed, path, MIXED, to, thresholds={"dog": 0.3}, samples=pictures())
        said = ConvertedModel(path).description
        assert said == made.description and said["to"] == to and said["image_size"] == [24, 24]
        assert said["inputs"] == {
            "pixels": {"dtype": "float32", "range": [0, 1], "shape": [None, 24, 24, 3]}
        }
        assert [task["threshold"] for task in said["tasks"]] == [0.5, None, None, 0.3]
        assert said["tasks"][1]["classes"] == ["red", "green", "blue"]
        assert said["check"]["decisions_agree"] == 1 and said["check"]["rows"] == 2
    with zipfile.ZipFile(file_for(tmp_path, "litert")) as archive:  # with any tool
        assert json.loads(archive.read("model.json"))["kind"] == "pictures"


def test_samples_may_be_a_data_set_a_manifest_or_a_file(network, tmp_path):
    folder = write_picture_folder(tmp_path)
    manifest = kt.Manifest.from_csv(folder / "labels.csv")
    given = [kt.make_dataset(manifest, 24, 5), manifest, folder / "labels.csv"]
    for number, samples in enumerate(given):
        path = tmp_path / f"{number}.tflite"
        made = convert_model(
            network, path, ["a", "b"], "litert-int8", samples=samples, sample_count=9
        )
        assert made.description["check"]["rows"] == 3


@pytest.mark.parametrize("to", FLOAT)
def test_photographs_that_are_resized_are_samples(network, tmp_path, to):
    labels = shared("data", "street_photos", "labels.csv")
    made = convert_model(network, file_for(tmp_path, to), ["a", "b"], to, samples=labels)
    assert made.description["check"]["rows"] > 50


def test_rows_called_test_are_no_samples(network, tmp_path):
    from kerasmtl.export.convert import draw_samples

    folder = write_picture_folder(tmp_path)
    lines = (folder / "labels.csv").read_text().splitlines()
    parts = ["split", *["test"] * 8, *["train"] * 3, "val"]
    text = "\n".join(f"{line},{part}" for line, part in zip(lines, parts, strict=True))
    (folder / "labels.csv").write_text(text + "\n")
    face = Face.of(network, as_tasks(["a", "b"]), None)
    drawn = draw_samples(folder / "labels.csv", face)
    manifest = kt.Manifest.from_csv(folder / "labels.csv")
    known = np.concatenate([x for x, _ in kt.make_dataset(manifest.take(range(8, 12)), 24)])
    assert drawn.shape == (4, 24, 24, 3)
    np.testing.assert_array_equal(np.sort(drawn.sum((1, 2, 3))), np.sort(known.sum((1, 2, 3))))
    (folder / "labels.csv").write_text(text.replace("train", "test").replace("val", "test") + "\n")
    with pytest.raises(ValueError, match="test rows only"):
        draw_samples(folder / "labels.csv", face)


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(model, tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="never overwritten"):
        convert_model(model, path, TASKS)
    assert path.read_bytes() == b"mine"

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(converting, "describe", fail)
    with pytest.raises(OSError, match="disk full"):
        convert_model(model, tmp_path / "other.tflite", TASKS)
    assert [p.name for p in tmp_path.iterdir()] == ["model.tflite"]


def test_what_comes_meanwhile_is_kept(model, tmp_path, monkeypatch):
    path, describe = tmp_path / "model.onnx", converting.describe

    def slow(file, description):
        describe(file, description)
        path.write_bytes(b"another's")

    monkeypatch.setattr(converting, "describe", slow)
    with pytest.raises(FileExistsError, match="never overwritten"):
        convert_model(model, path, TASKS, "onnx")
    assert path.read_bytes() == b"another's" and len(list(tmp_path.iterdir())) == 1


class Singular(keras.layers.Layer):
    """Singular values, which neither format has."""

    def call(self, inputs):
        return tf.linalg.svd(tf.reduce_mean(inputs, -1), compute_uv=False)


@pytest.mark.parametrize("to", ["litert", "litert-dynamic", "litert-int8", "onnx"])
def test_an_operation_that_a_format_lacks_is_named(tmp_path, to):
    image = keras.Input((24, 24, 3))
    model = kt.build_model(keras.Model(image, Singular()(image)), ["a"], 24)
    with pytest.raises(ValueError, match="no counterpart.*Svd"):
        convert_model(model, file_for(tmp_path, to), ["a"], to, samples=pictures())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "save, shown", [(save_text_module, "string"), (save_arguments_module, "several inputs")]
)
def test_models_of_neither_pictures_nor_rows_are_refused(tmp_path, save, shown):
    model = kt.build_model(str(save(tmp_path / "module")), ["a"])
    with pytest.raises(ValueError, match=shown):
        convert_model(model, tmp_path / "model.onnx", ["a"], "onnx")


def test_a_file_with_other_numbers_is_refused(model):
    face = Face.of(model, as_tasks(TASKS), None)

    def wrong(rows):
        values = by_task(model.predict(rows, verbose=0), face.tasks)
        return {**values, "a:0": values["a:0"] + 0.01}

    limits = dict.fromkeys(TASKS, 0.5)
    with pytest.raises(ValueError, match="other numbers once converted.*'a:0': 0.0"):
        compare(model, wrong, face, pictures(), limits, False, True)
    found = compare(model, wrong, face, pictures(), limits, False, False)
    assert found["largest_difference"]["a:0"] == pytest.approx(0.01, rel=1e-3)
    assert found["largest_difference"]["pixels"] == 0


def test_decisions_agree_counts_rows_and_tasks(mixed):
    face = Face.of(mixed, as_tasks(MIXED), None)
    wanted = {
        "cat": np.array([0.4, 0.6]),
        "dog": np.array([0.1, 0.2]),
        "colour": np.eye(3)[[0, 2]],
        "speed": np.array([1.0, 2.0]),
    }
    got = {**wanted, "cat": np.array([0.5, 0.7]), "colour": np.eye(3)[[0, 1]], "speed": -np.ones(2)}
    limits = {"cat": 0.5, "dog": 0.1}  # which a probability of 0.1 reaches
    assert decisions_agree(got, wanted, limits, face) == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"to": "coreml"}, "`to` is no format"),
        ({"to": "onnx"}, r"Expected .onnx"),
        ({"tasks": ["one"]}, r"Expected output \(batch, 1\)"),
        ({"columns": ["a", "b"]}, "the model takes pictures"),
        ({"to": "litert-int8"}, "`samples` are missing"),
        ({"uint8": True}, "`uint8` is for litert-int8"),
        ({"samples": np.zeros((3, 5, 5, 3))}, r"Expected \(rows, 24, 24, 3\)"),
        ({"samples": pictures() * 255}, r"pixels in \[0, 1\]"),
        ({"samples": pictures(), "sample_count": 0}, "`sample_count` is too small"),
        ({"thresholds": {"pedestrian": 1.5}}, "`thresholds` do not fit"),
        ({"thresholds": {"zebra": 0.5}}, "`thresholds` do not fit"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_written(model, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        convert_model(**{"model": model, "path": tmp_path / "m.tflite", "tasks": TASKS, **change})
    assert list(tmp_path.iterdir()) == []


def test_tables_are_not_made_integers_and_need_their_columns(tmp_path):
    model = kt.build_model(kt.backbones.mlp(3, [4]), ["a"])
    with pytest.raises(ValueError, match="litert-int8 is for pictures"):
        convert_model(model, tmp_path / "m.tflite", ["a"], "litert-int8", list("xyz"))
    with pytest.raises(ValueError, match="`columns` is missing"):
        convert_model(model, tmp_path / "m.tflite", ["a"])
    with pytest.raises(ValueError, match="Expected 3 distinct names"):
        convert_model(model, tmp_path / "m.tflite", ["a"], columns=["x", "x", "y"])


@pytest.mark.parametrize(
    "to, absent, package",
    [
        ("litert", "ai_edge_litert.interpreter", "ai-edge-litert"),
        ("onnx", "onnxruntime", "onnxruntime"),
        ("onnx", "tf2onnx", "tf2onnx"),
    ],
)
def test_an_absent_extra_is_named(model, tmp_path, monkeypatch, to, absent, package):
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ImportError, match=rf"{package}.*pip install 'kerasmtl\[{to}\]'"):
        convert_model(model, file_for(tmp_path, to), TASKS, to)


def test_a_reader_refuses_what_is_no_such_file(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="is no file"):
        ConvertedModel(tmp_path / "absent.onnx")
    for name in ("m.tflite", "m.onnx"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match="is no converted model"):
            ConvertedModel(tmp_path / name).predict(pictures())
    made = convert_model(model, tmp_path / "good.tflite", TASKS)
    with pytest.raises(ValueError, match=r"Expected \(batch, 24, 24, 3\) float32"):
        made.predict(pictures(size=20))
    with pytest.raises(ValueError, match="float32. Received: .*uint8"):
        made.predict((pictures() * 255).astype("uint8"))


def test_a_warning_where_decisions_change(model, tmp_path, monkeypatch):
    found = {"rows": 9, "largest_difference": dict.fromkeys(TASKS, 0.2), "decisions_agree": 0.9}
    monkeypatch.setattr(converting, "compare", lambda *args: dict(found))
    with pytest.warns(UserWarning, match="in 10.0% of the cases"):
        convert_model(model, tmp_path / "m.tflite", TASKS, samples=pictures())


def test_files_run_without_tensorflow_and_kerasmtl(model, tmp_path):
    images = pictures(2)
    np.save(tmp_path / "pixels.npy", images)
    for to in FLOAT:
        convert_model(model, file_for(tmp_path, to), TASKS, to)
    code = """
import json, sys
import numpy as np
pixels = np.load("pixels.npy")
import onnxruntime
session = onnxruntime.InferenceSession("model-onnx.onnx")
names = [output.name for output in session.get_outputs()]
first = dict(zip(names, session.run(None, {"pixels_": pixels})))
from ai_edge_litert.interpreter import Interpreter
second = Interpreter("model-litert.tflite").get_signature_runner()(pixels_=pixels)
assert not {"tensorflow", "keras", "kerasmtl"} & set(sys.modules)
for key in names:
    np.testing.assert_allclose(first[key], second[key], atol=1e-5)
print(json.dumps({key: value.tolist() for key, value in first.items()}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    received = json.loads(done.stdout.splitlines()[-1])
    wanted = model.predict(images, verbose=0)
    np.testing.assert_allclose(
        np.stack([received[name] for name in TASKS], axis=1), wanted, atol=1e-5
    )


@pytest.mark.slow  # MobileNet is converted in tests/wheel
@pytest.mark.parametrize("to", ["litert", "litert-dynamic", "litert-int8", "onnx"])
def test_the_embedded_extractor(tmp_path, to):
    keras.utils.set_random_seed(0)
    model = kt.build_model("tiny", ["a", "b"])
    images = pictures(12, model.input_shape[1])
    made = convert_model(model, file_for(tmp_path, to), ["a", "b"], to, samples=images)
    off = np.abs(made.predict(images)["a"] - model.predict(images, verbose=0)[:, 0]).max()
    assert off < (1e-5 if to in FLOAT else 0.1)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_is_refused_by_litert_with_a_way_out(tmp_path, policy):
    def build():
        image = keras.Input((24, 24, 3))
        x = keras.layers.Conv2D(8, 3, activation="relu", name="first")(image)
        return kt.build_model(keras.Model(image, x), ["a"], 24)

    keras.config.set_dtype_policy(policy)
    try:
        model = build()
    finally:
        keras.config.set_dtype_policy("float32")
    half = policy.removeprefix("mixed_")
    with pytest.raises(ValueError, match=rf"'first' computes in {half}.*set_dtype_policy"):
        convert_model(model, tmp_path / "m.tflite", ["a"])
    again = build()  # as the message says
    again.set_weights(model.get_weights())
    made = convert_model(again, tmp_path / "m.tflite", ["a"])
    near = model.predict(pictures(), verbose=0)[:, 0]
    np.testing.assert_allclose(made.predict(pictures())["a"], near, atol=0.02)
