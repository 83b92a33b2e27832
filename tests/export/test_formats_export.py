"""Exported versions in other runtimes: their probabilities, temperatures and thresholds."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

import kerasmtl as kt
from kerasmtl.cli.export import convert
from kerasmtl.export.convert import convert_model
from kerasmtl.export.converted_model import ConvertedModel
from kerasmtl.export.litert import _in_float

for module in ("ai_edge_litert", "tf2onnx", "onnxruntime"):
    pytest.importorskip(module, reason=f"{module} is absent: pip install 'kerasmtl[litert,onnx]'")

SIZE = 24
TASKS = [
    kt.Task("cat"),
    kt.Task("dog"),
    kt.Task("colour", kind="multiclass", classes=("red", "green", "blue")),
]
COLUMNS = ("a", "b", "c")


def pictures(count):
    return np.random.default_rng(1).random((count, SIZE, SIZE, 3), dtype="float32")


def labels(count):
    rng = np.random.default_rng(2)
    return {
        "binary": rng.integers(0, 2, (count, 2)).astype("float32"),
        "colour": rng.integers(0, 3, (count, 1)).astype("float32"),
    }


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A version of a model of pictures, with temperatures far from 1."""
    keras.utils.set_random_seed(3)
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(8, 3, 2, activation="relu")(image)
    x = keras.layers.Conv2D(8, 3, 2, activation="relu")(x)
    model = kt.build_model(keras.Model(image, x), TASKS, SIZE, hidden=[32])
    for layer in model.layers[-2:]:
        layer.set_weights([8 * value for value in layer.get_weights()])
    data = tf.data.Dataset.from_tensor_slices((pictures(40), labels(40))).batch(20)
    folder = kt.export_saved_model(
        model,
        tmp_path_factory.mktemp("exports") / "pets",
        TASKS,
        validation=data,
        calibrate=True,
        thresholds={"cat": 0.3},
        proof=False,
    )
    said = kt.export.read_description(folder)
    assert all(task["temperature"] > 1.5 for task in said["tasks"])
    return folder, said


def answered(folder, rows, signature="pixels_float", argument="pixels"):
    found = tf.saved_model.load(str(folder)).signatures[signature](**{argument: tf.constant(rows)})
    return {name: values.numpy() for name, values in found.items()}


@pytest.mark.parametrize("to", ["litert", "litert-dynamic", "litert-int8", "onnx"])
def test_a_file_gives_the_probabilities_of_the_version_that_it_comes_from(calibrated, tmp_path, to):
    folder, said = calibrated
    ending = "onnx" if to == "onnx" else "tflite"
    made = convert_model(folder, tmp_path / f"m.{ending}", to=to, samples=pictures(30))
    rows = pictures(37)
    got, wanted = made.predict(rows), answered(folder, rows)
    assert list(got) == ["cat", "dog", "colour"]
    for name, values in got.items():
        off = 1e-5 if to in ("litert", "onnx") else 0.05
        np.testing.assert_allclose(values, wanted[name], atol=off, err_msg=name)
    kept = made.description
    for task, other in zip(kept["tasks"], said["tasks"], strict=True):
        assert task["threshold"] == other["threshold"]
        assert task["temperature"] == other["temperature"]
    assert kept["tasks"][0]["threshold"] == pytest.approx(0.3)
    assert (kept["export"]["name"], kept["export"]["version"]) == ("pets", 1)


@pytest.mark.parametrize("to", ["litert", "onnx"])
def test_a_version_with_a_module_of_tensorflow(tmp_path, to):
    model = kt.build_model("tiny", ["cat", "dog"], 64)
    folder = kt.export_saved_model(model, tmp_path / "t", ["cat", "dog"], proof=False)
    made = convert_model(folder, tmp_path / f"m.{'onnx' if to == 'onnx' else 'tflite'}", to=to)
    rows = np.random.default_rng(0).random((3, 64, 64, 3), dtype="float32")
    wanted = model.predict(rows, verbose=0)
    np.testing.assert_allclose(made.predict(rows)["dog"], wanted[:, 1], atol=1e-5)


@pytest.mark.parametrize("to", ["litert", "litert-dynamic", "onnx"])
def test_an_exported_table_with_missing_values(tmp_path, to):
    keras.utils.set_random_seed(0)
    model = kt.build_model(kt.backbones.mlp(3, [8]), ["up", "down"])
    folder = kt.export_saved_model(
        model, tmp_path / "t", ["up", "down"], columns=COLUMNS, thresholds=0.2, proof=False
    )
    made = convert_model(folder, tmp_path / f"m.{'onnx' if to == 'onnx' else 'tflite'}", to=to)
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    rows[1, 2] = np.nan
    wanted = answered(folder, rows, "matrix", "features")
    for name in ("up", "down"):
        off = 0.02 if to == "litert-dynamic" else 1e-5
        np.testing.assert_allclose(made.predict(rows)[name], wanted[name], atol=off)
    assert made.description["columns"] == list(COLUMNS)
    assert [task["threshold"] for task in made.description["tasks"]] == [pytest.approx(0.2)] * 2


def test_the_command_converts_a_version_without_a_project(calibrated, tmp_path):
    folder, _ = calibrated
    words = ["--to", "onnx", "--model", str(folder), "--project", str(tmp_path)]
    done = CliRunner().invoke(convert, words)
    assert done.exit_code == 0, done.output
    file = tmp_path / "converted" / "pets-onnx.onnx"
    assert ConvertedModel(file).description["export"]["version"] == 1
    versions = CliRunner().invoke(convert, [*words[:3], str(folder.parent), *words[4:]])
    assert versions.exit_code == 1 and "Expected one of them" in versions.output
    none = CliRunner().invoke(convert, [*words[:3], str(tmp_path / "none"), *words[4:]])
    assert none.exit_code == 1 and "does not exist" in none.output


def test_what_does_not_go_with_an_export_is_refused(calibrated, tmp_path):
    with pytest.raises(ValueError, match="those of the export"):
        convert_model(calibrated[0], tmp_path / "m.onnx", ["cat"], "onnx")
    with pytest.raises(ValueError, match="`tasks` are missing"):
        convert_model(keras.Sequential([keras.Input((2,))]), tmp_path / "m.onnx", to="onnx")
    with pytest.raises(ValueError, match="`float_layers` is for litert-int8"):
        convert_model(calibrated[0], tmp_path / "m.onnx", to="onnx", float_layers=2)
    (tmp_path / "1").mkdir()
    tf.saved_model.save(tf.Module(), str(tmp_path / "1"))
    with pytest.raises(ValueError, match="does not say what it is"):
        convert_model(tmp_path / "1", tmp_path / "m.onnx", to="onnx")


def test_both_ends_compute_in_float32():
    kinds = ["MUL", *["CONV_2D"] * 8, "MEAN", "FULLY_CONNECTED", "FULLY_CONNECTED", "LOGISTIC"]
    assert _in_float(kinds, None) == [0, 1, 2, 3, 4, 5, 11, 12]
    assert _in_float(kinds, 0) == [11, 12]
    assert _in_float(kinds, 99) == [*range(9), 11, 12]
    assert _in_float(["MUL", "MEAN"], None) == []
