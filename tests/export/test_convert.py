"""`convert_model`: each format in its own runtime against the model, and what is refused."""

import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from exports import small_model, table_options
from image_folder import write_image_folder
from modules import save_reusable, save_text_module

import kerasmtl as kt
from kerasmtl.evaluation.calibration import Decision, decide
from kerasmtl.export import convert
from kerasmtl.export.convert import compare, convert_model, decisions_agree, draw_samples
from kerasmtl.export.converted_model import FORMATS, ConvertedModel
from kerasmtl.export.signatures import ModelInterface
from kerasmtl.export.verify import reference_answers
from kerasmtl.tasks import as_tasks, by_task

litert = pytest.importorskip(
    "ai_edge_litert.interpreter", reason="ai-edge-litert is absent: pip install 'kerasmtl[litert]'"
)
onnxruntime = pytest.importorskip(
    "onnxruntime", reason="onnxruntime is absent: pip install 'kerasmtl[onnx]'"
)
pytest.importorskip("tf2onnx", reason="tf2onnx is absent: pip install 'kerasmtl[onnx]'")

# Names that TensorFlow, ONNX or a file system could trip over; "pixels" is the input's name, too.
NAMES = ["stop sign", "größe/2", "a:0", "pixels"]
MIXED = [
    kt.Task("cat"),
    kt.Task("colour", "multiclass", classes=("red", "green", "blue")),
    kt.Task("speed", "regression"),
    kt.Task("dog"),
]
DECISIONS = {
    "cat": Decision(0.3, 2.5),
    "colour": Decision(None, 0.4),
    "speed": Decision(),
    "dog": Decision(0.6, 1.0),
}
FLOAT = ["litert", "onnx"]


def images(count=6, size=24, seed=0):
    """Smooth images, each with a gradient, not noise: averages of noise are all alike."""
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
    return kt.build_model(str(module), NAMES, 24, hidden=[8])


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


def interface_of(model, tasks, decisions=None):
    found = decide(as_tasks(tasks), None, decisions, False)
    return ModelInterface.of(model, as_tasks(tasks), None, found)


def file_for(folder, to):
    return folder / f"model-{to}{FORMATS[to].suffix}"


def run_litert(path, **inputs):
    """By the runtime itself, without kerasmtl's reader."""
    return litert.Interpreter(str(path)).get_signature_runner("serving_default")(**inputs)


def run_onnx(path, **inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


RUN = {"litert": run_litert, "onnx": run_onnx}


# Parity.


@pytest.mark.parametrize("to", FLOAT)
def test_float_files_give_the_models_probabilities_by_task(model, tmp_path, to):
    made = convert_model(model, file_for(tmp_path, to), NAMES, to)
    for rows in (images(1), images(6)):
        got, wanted = RUN[to](made.path, pixels_=rows), model.predict(rows, verbose=0)
        assert set(got) == set(NAMES)
        for column, name in enumerate(NAMES):
            assert got[name].shape == (len(rows),) and got[name].dtype == np.float32
            np.testing.assert_allclose(got[name], wanted[:, column], atol=1e-5)
            np.testing.assert_array_equal(made.predict(rows)[name], got[name])


@pytest.mark.parametrize("to", FLOAT)
def test_tasks_of_all_kinds_with_temperatures_and_thresholds(mixed, tmp_path, to):
    path = file_for(tmp_path, to)
    made = convert_model(mixed, path, MIXED, to, samples=images(), decisions=DECISIONS)
    raw = by_task(mixed.predict(images(), verbose=0), MIXED)
    got = RUN[to](made.path, pixels=images())
    assert got["cat"].shape == (6,) and got["colour"].shape == (6, 3)
    logit = np.log(raw["cat"]) - np.log1p(-raw["cat"])
    np.testing.assert_allclose(got["cat"], 1 / (1 + np.exp(-logit / 2.5)), atol=1e-5)
    power = raw["colour"] ** (1 / 0.4)
    np.testing.assert_allclose(got["colour"], power / power.sum(1)[:, None], atol=1e-5)
    np.testing.assert_allclose(got["dog"], raw["dog"], atol=1e-5)
    np.testing.assert_allclose(got["speed"], raw["speed"], rtol=1e-5)
    assert 20 < got["speed"].mean() < 60  # in the unit of the labels
    said = ConvertedModel(path).description
    assert said == made.description and said["to"] == to
    assert said["inputs"] == {
        "pixels": {"dtype": "float32", "range": [0, 1], "shape": [None, 24, 24, 3]}
    }
    assert [task["threshold"] for task in said["tasks"]] == [0.3, None, None, 0.6]
    assert [task["temperature"] for task in said["tasks"]] == [2.5, 0.4, None, 1.0]
    assert said["tasks"][1]["classes"] == ["red", "green", "blue"]
    check = said["check"]
    assert (check["decisions_agree"], check["rows"], check["on"]) == (1, 2, "samples")


def test_a_file_decides_as_the_exported_version(tmp_path):
    columns = ["x", "y", "z"]
    model = small_model(3, ["up", "down"])
    decisions = {"up": Decision(0.2, 3.0, "fixed"), "down": Decision(0.55, 1.0, "fixed")}
    options = table_options(columns)
    folder = kt.export_saved_model(
        model, tmp_path / "m", ["up", "down"], decisions=decisions, verify=False, **options
    )
    made = convert_model(
        model,
        tmp_path / "model.onnx",
        ["up", "down"],
        "onnx",
        decisions=kt.export.read_decisions(folder),
        **options,
    )
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
    rows[1, 2] = np.nan
    wanted = tf.saved_model.load(str(folder)).signatures["matrix"](features=tf.constant(rows))
    got = made.predict(rows)
    for task in made.description["tasks"]:
        values = got[task["name"]]
        np.testing.assert_allclose(values, wanted[task["name"]], atol=1e-5)
        decided = wanted[task["name"] + "_decision"]
        np.testing.assert_array_equal(values >= task["threshold"], decided)


@pytest.mark.parametrize("to", ["litert-dynamic", "onnx"])
def test_a_table_with_missing_values(tmp_path, to):
    rng = np.random.default_rng(0)
    rows = rng.normal(5, 3, (40, 6)).astype("float32")
    rows[rng.random(rows.shape) < 0.3] = np.nan
    keras.utils.set_random_seed(0)
    backbone = kt.backbones.mlp(rows, [64, 64], batch_norm=True, indicators=True)
    model = kt.build_model(backbone, MIXED)
    options = table_options([f"sensor {number}" for number in range(6)])
    made = convert_model(model, file_for(tmp_path, to), MIXED, to, samples=rows, **options)
    wanted = by_task(model.predict(rows, verbose=0), MIXED)
    got = RUN[FORMATS[to].runtime](made.path, features=rows)
    for name, value in got.items():
        bound = 1e-5 if to in FLOAT else 0.05
        np.testing.assert_allclose(value, wanted[name], rtol=bound, atol=bound)


def test_8_bit_weights_take_a_third_of_the_size_and_are_near(network, tmp_path):
    whole = convert_model(network, tmp_path / "whole.tflite", ["a", "b"], "litert")
    small = convert_model(network, tmp_path / "small.tflite", ["a", "b"], "litert-dynamic")
    assert small.path.stat().st_size < 0.35 * whole.path.stat().st_size
    wanted = network.predict(images(32), verbose=0)
    got = run_litert(small.path, pixels=images(32))
    off = [np.abs(got[name] - wanted[:, column]).max() for column, name in enumerate("ab")]
    assert 0 < max(off) < 0.03
    assert small.description["check"]["largest_difference"].keys() == {"a", "b"}


@pytest.mark.parametrize("uint8", [False, True])
def test_int8_is_integers_throughout_and_near(network, tmp_path, uint8):
    path = tmp_path / "int8.tflite"
    samples = images(60, seed=1) * 0.5 + 0.2  # which leave out the ends of [0, 1]
    made = convert_model(network, path, ["a", "b"], "litert-int8", samples=samples, uint8=uint8)
    reader = litert.Interpreter(str(path))
    reader.allocate_tensors()
    floats = [d["name"] for d in reader.get_tensor_details() if d["dtype"] == np.float32]
    assert len(floats) <= (2 if uint8 else 3)  # the outputs, and the input
    (details,) = reader.get_input_details()
    assert details["dtype"] == (np.uint8 if uint8 else np.float32)
    if uint8:  # means what it does in an image
        assert details["quantization"] == (pytest.approx(1 / 255, rel=1e-3), 0)
    rows = images(40, seed=2)
    wanted, got = network.predict(rows, verbose=0), made.predict(rows)
    off = [np.abs(got[name] - wanted[:, column]).max() for column, name in enumerate("ab")]
    assert max(off) < 0.05
    check = made.description["check"]
    assert check["rows"] == 20 and check["on"] == "samples" and check["decisions_agree"] <= 1
    if uint8:
        whole = np.rint(rows * 255).astype("uint8")
        np.testing.assert_array_equal(made.predict(whole)["a"], got["a"])


@pytest.mark.slow
@pytest.mark.parametrize("to", ["litert", "litert-dynamic", "litert-int8", "onnx"])
def test_the_embedded_extractor(tmp_path, to):
    keras.utils.set_random_seed(0)
    model = kt.build_model("tiny", ["a", "b"])
    rows = images(12, model.input_shape[1])
    made = convert_model(model, file_for(tmp_path, to), ["a", "b"], to, samples=rows)
    off = np.abs(made.predict(rows)["a"] - model.predict(rows, verbose=0)[:, 0]).max()
    assert off < (1e-5 if to in FLOAT else 0.1)


@pytest.mark.slow
def test_files_run_without_tensorflow_and_kerasmtl(model, tmp_path):
    np.save(tmp_path / "pixels.npy", images(2))
    for to in FLOAT:
        convert_model(model, file_for(tmp_path, to), NAMES, to)
    with zipfile.ZipFile(file_for(tmp_path, "litert")) as archive:  # with any tool
        assert json.loads(archive.read("model.json"))["to"] == "litert"
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
    wanted = model.predict(images(2), verbose=0)
    found = np.stack([received[name] for name in NAMES], axis=1)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


# The check in the target runtime.


def test_a_file_with_other_numbers_is_refused(mixed):
    interface = interface_of(mixed, MIXED, DECISIONS)

    def wrong(rows):
        found = reference_answers(mixed(rows), MIXED, DECISIONS)
        return {**found, "dog": found["dog"] + 0.01}

    with pytest.raises(ValueError, match="same numbers once converted.*'dog': 0.0"):
        compare(mixed, wrong, interface, images(), False, True)
    found = compare(mixed, wrong, interface, images(), False, False)["largest_difference"]
    assert found["dog"] == pytest.approx(0.01, rel=1e-3) and found["cat"] < 1e-6


def test_decisions_agree_counts_rows_and_tasks(mixed):
    decisions = {"cat": 0.5, "dog": 0.1}  # which a probability of 0.1 reaches
    wanted = {
        "cat": np.array([0.4, 0.6]),
        "dog": np.array([0.1, 0.2]),
        "colour": np.eye(3)[[0, 2]],
        "speed": np.array([1.0, 2.0]),
    }
    got = {**wanted, "cat": np.array([0.5, 0.7]), "colour": np.eye(3)[[0, 1]], "speed": -np.ones(2)}
    interface = interface_of(mixed, MIXED, decisions)
    assert decisions_agree(got, wanted, interface) == pytest.approx(4 / 6)


def test_changed_decisions_give_a_warning(model, tmp_path, monkeypatch):
    found = {"rows": 9, "largest_difference": dict.fromkeys(NAMES, 0.2), "decisions_agree": 0.9}
    monkeypatch.setattr(convert, "compare", lambda *args: dict(found))
    with pytest.warns(UserWarning, match="in 10.0% of the cases"):
        convert_model(model, tmp_path / "m.onnx", NAMES, "onnx", samples=images())


# Samples.


def test_samples_are_drawn_from_a_data_set_a_manifest_or_a_file(network, tmp_path):
    folder = write_image_folder(tmp_path)
    lines = (folder / "labels.csv").read_text().splitlines()
    parts = ["split", *["test"] * 8, *["train"] * 3, "val"]
    text = "\n".join(f"{line},{part}" for line, part in zip(lines, parts, strict=True)) + "\n"
    (folder / "labels.csv").write_text(text)
    manifest = kt.Manifest.from_csv(folder / "labels.csv", tasks=["cat", "dog"])
    interface = interface_of(network, ["cat", "dog"])
    rest = np.concatenate([x for x, _ in kt.make_dataset(manifest.take(range(8, 12)), 24)])
    for source in (manifest, folder / "labels.csv"):  # rows of the test split are not drawn
        drawn = draw_samples(source, interface)
        assert drawn.shape == (4, 24, 24, 3) and drawn.dtype == np.float32
        np.testing.assert_array_equal(np.sort(drawn.sum((1, 2, 3))), np.sort(rest.sum((1, 2, 3))))
    assert draw_samples(kt.make_dataset(manifest, 24, 5), interface, 9).shape == (9, 24, 24, 3)
    (folder / "labels.csv").write_text(text.replace("train", "test").replace("val", "test"))
    with pytest.raises(ValueError, match="`samples`.*test"):
        draw_samples(folder / "labels.csv", interface)


# What is refused.


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(model, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="`path`"):
        convert_model(model, path, NAMES, "onnx")
    assert path.read_bytes() == b"mine"

    def fail(*args, **kwargs):
        raise OSError("disk full")

    def slow(file, description):
        (tmp_path / "other.onnx").write_bytes(b"another's")

    for replacement, error in ((fail, OSError), (slow, FileExistsError)):
        monkeypatch.setattr(convert, "write_file_description", replacement)
        with pytest.raises(error):
            convert_model(model, tmp_path / "other.onnx", NAMES, "onnx")
    assert (tmp_path / "other.onnx").read_bytes() == b"another's"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "other.onnx"]


class Singular(keras.layers.Layer):
    """Singular values, which neither format has."""

    def call(self, inputs):
        return tf.linalg.svd(tf.reduce_mean(inputs, -1), compute_uv=False)


@pytest.mark.parametrize("to", ["litert", "litert-int8", "onnx"])
def test_an_operation_that_a_format_lacks_is_named(tmp_path, to):
    image = keras.Input((24, 24, 3))
    model = kt.build_model(keras.Model(image, Singular()(image)), ["a"], 24)
    with pytest.raises(ValueError, match="`model`.*Svd"):
        convert_model(model, file_for(tmp_path, to), ["a"], to, samples=images())
    assert list(tmp_path.iterdir()) == []


def test_litert_refuses_half_precision_with_a_way_out(tmp_path):
    def build():
        image = keras.Input((24, 24, 3))
        x = keras.layers.Conv2D(8, 3, activation="relu", name="first")(image)
        return kt.build_model(keras.Model(image, x), ["a"], 24)

    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build()
    finally:
        keras.config.set_dtype_policy("float32")
    with pytest.raises(ValueError, match="'first' in float16.*set_dtype_policy"):
        convert_model(model, tmp_path / "m.tflite", ["a"])
    again = build()  # as the message says
    again.set_weights(model.get_weights())
    made = convert_model(again, tmp_path / "m.tflite", ["a"])
    near = model.predict(images(), verbose=0)[:, 0]
    np.testing.assert_allclose(made.predict(images())["a"], near, atol=0.02)


@pytest.mark.parametrize(
    "change, argument",
    [
        ({"to": "coreml"}, "to"),
        ({"to": "onnx"}, "path"),
        ({"tasks": ["one"]}, "tasks"),
        ({"to": "litert-int8"}, "samples"),
        ({"uint8": True}, "uint8"),
        ({"samples": np.zeros((3, 5, 5, 3))}, "samples"),
        ({"samples": np.zeros((0, 24, 24, 3))}, "samples"),
        ({"samples": images() * 255}, "samples"),
        ({"samples": images(), "sample_count": 0}, "sample_count"),
        ({"decisions": {"zebra": 0.5}}, "thresholds"),
        (
            {
                "to": "litert-int8",
                "samples": images(),
                "decisions": {"pixels": Decision(0.5, 2.0)},
            },
            "decisions",
        ),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_written(model, tmp_path, change, argument):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        convert_model(**{"model": model, "path": tmp_path / "m.tflite", "tasks": NAMES, **change})
    assert list(tmp_path.iterdir()) == []


def test_int8_is_not_for_tables_and_models_of_text_are_refused(tmp_path):
    options = table_options(list("xyz"))
    with pytest.raises(ValueError, match="`to` must be litert, litert-dynamic or onnx"):
        convert_model(small_model(3), tmp_path / "m.tflite", ["a"], "litert-int8", **options)
    model = kt.build_model(str(save_text_module(tmp_path / "module")), ["a"])
    with pytest.raises(ValueError, match="`model` must"):
        convert_model(model, tmp_path / "model.onnx", ["a"], "onnx")


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
        convert_model(model, file_for(tmp_path, to), NAMES, to)


def test_a_reader_refuses_other_files_and_other_inputs(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="`path`"):
        ConvertedModel(tmp_path / "absent.onnx")
    for name in ("m.tflite", "m.onnx"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match="`path` must be a file of `convert_model`"):
            ConvertedModel(tmp_path / name).predict(images())
    made = convert_model(model, tmp_path / "good.onnx", NAMES, "onnx")
    for wrong in (images(size=20), (images() * 255).astype("uint8")):
        with pytest.raises(ValueError, match=r"`inputs` must be \(batch, 24, 24, 3\) float32"):
            made.predict(wrong)
