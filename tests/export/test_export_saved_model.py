"""`export_saved_model`: signatures equal the model, decisions, minimum scores, arguments."""

import io
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from exports import TASKS, export_table, mixed_model, small_model, validation
from modules import save_reusable
from PIL import Image

import kerasmtl as kt
from kerasmtl.data.images import prepare_image, resize_image
from kerasmtl.export.saved_model import ScoreTooLow, check_scores
from kerasmtl.tasks import by_task

NAMES = ["pedestrian", "stop sign", "größe 2"]
OUTPUTS = {*NAMES, *(f"{name}_decision" for name in NAMES)}


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return save_reusable(tmp_path_factory.mktemp("module") / "reusable")


@pytest.fixture(scope="module")
def model(module):
    keras.utils.set_random_seed(0)
    return kt.build_model(str(module), NAMES, 24, hidden=[8])


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """Published without verification, which the example of README.md has; tests only read it."""
    path = tmp_path_factory.mktemp("served") / "street"
    return kt.export_saved_model(model, path, NAMES, verify=False)


@pytest.fixture(scope="module")
def served(exported):
    return tf.saved_model.load(str(exported)).signatures


@pytest.fixture(scope="module")
def table():
    return mixed_model()


@pytest.fixture(scope="module")
def calibrated(table, tmp_path_factory):
    """A table's export with thresholds and temperatures far from the defaults."""
    return export_table(
        table,
        tmp_path_factory.mktemp("served") / "pumps",
        version=4,
        validation=validation(),
        calibrate=True,
        require={"hours.mae": 100, "kind.accuracy": 0.01},
    )


def encoded(mode="RGB", kind="JPEG", size=(50, 30), seed=0, **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), "uint8")
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def oriented(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return encoded(exif=tags, seed=orientation)


FILES = [
    encoded(seed=1),
    encoded("RGBA", "PNG", seed=2),
    encoded("P", "PNG", (20, 90), seed=3),
    encoded("L", "JPEG", seed=4),
    encoded("RGB", "BMP", seed=5),
    encoded("P", "GIF", seed=6),
    encoded("CMYK", "JPEG", seed=7),
    encoded("RGB", "WEBP", seed=8),
    encoded("RGB", "PNG", (1, 1), seed=9),
    encoded(progressive=True, seed=12),
    oriented(6),
]


def expected(model, files):
    """As `model.predict` sees the files in training."""
    images = tf.data.Dataset.from_tensor_slices(files).map(lambda d: prepare_image(d, (24, 24)))
    return model.predict(images.batch(4), verbose=0)


def check(outputs, wanted):
    assert set(outputs) == OUTPUTS
    for column, name in enumerate(NAMES):
        assert outputs[name].shape == (len(wanted),) and outputs[name].dtype == tf.float32
        np.testing.assert_allclose(outputs[name], wanted[:, column], atol=1e-5)
        decided = outputs[f"{name}_decision"]
        assert decided.dtype == tf.int32
        np.testing.assert_array_equal(decided, outputs[name].numpy() >= 0.5)


# Parity, image by image and through every signature.


def test_files_of_every_format_give_the_models_probabilities(model, exported, served):
    assert exported.name == "1" and exported.parent.name == "street"
    check(served["serving_default"](image_bytes=tf.constant(FILES)), expected(model, FILES))


@pytest.mark.parametrize("shape", [(2, 31, 45, 3), (1, 1, 1, 3), (3, 24, 24, 3)])
def test_pixels_of_any_size_give_the_models_probabilities(model, served, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    wanted = model.predict(np.stack([resize_image(one, (24, 24)) for one in pixels]), verbose=0)
    check(served["pixels"](pixels=tf.constant(pixels)), wanted)
    check(served["pixels_float"](pixels=tf.constant(pixels / 255, tf.float32)), wanted)


def test_features_are_what_the_head_is_given(model, served):
    found = served["features"](image_bytes=tf.constant(FILES[:2]))
    assert set(found) == {"features"}
    head = keras.Model(model.get_layer("head_dense_1").input, model.output)
    np.testing.assert_allclose(head(found["features"]), expected(model, FILES[:2]), atol=1e-5)


@pytest.mark.parametrize(
    "data, reason",
    [
        (FILES[0][:-40], "truncated"),
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), ""),
        (b"GIF89a" + b"\xff" * 40, ""),
        (np.random.default_rng(0).bytes(5000), "not a"),
    ],
)
def test_hostile_bytes_give_an_error_that_names_the_image(served, data, reason):
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"image_bytes\[1\] is .*{reason}"):
        served["serving_default"](image_bytes=tf.constant([FILES[0], data]))


def test_a_fine_tuned_backbone_is_exported_as_it_is_now(module, tmp_path):
    keras.utils.set_random_seed(0)
    model = kt.build_model(str(module), NAMES, 24)
    kt.unfreeze(model)
    model.compile("adam", kt.losses.MaskedBinaryCrossentropy())
    rng = np.random.default_rng(0)
    images, labels = rng.random((8, 24, 24, 3), dtype="float32"), rng.integers(0, 2, (8, 3)) * 1.0
    before = model.predict(images, verbose=0)
    model.fit(images, labels, verbose=0)
    folder = kt.export_saved_model(model, tmp_path / "street", NAMES, verify=False)
    signatures = tf.saved_model.load(str(folder)).signatures
    found = signatures["pixels_float"](pixels=tf.constant(images))
    wanted = model.predict(images, verbose=0)
    check(found, wanted)
    assert np.abs(wanted - before).max() > 1e-3


@pytest.mark.slow
def test_twenty_megapixels_give_the_models_probabilities(model, served):
    large = [encoded(size=(4000, 5000)), encoded("RGB", "PNG", (4000, 5000))]
    check(served["serving_default"](image_bytes=tf.constant(large)), expected(model, large))


@pytest.mark.slow
def test_tensorflows_own_command_runs_it(model, exported, tmp_path):
    np.save(tmp_path / "images.npy", np.array([FILES[0]]))
    command = [
        *(sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "run"),
        *("--dir", str(exported), "--tag_set", "serve", "--signature_def", "serving_default"),
        *("--inputs", "image_bytes=images.npy", "--outdir", "out"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    value = np.load(tmp_path / "out" / "pedestrian.npy")
    np.testing.assert_allclose(value, expected(model, FILES[:1])[:, 0], atol=1e-5)


# Calibration and decisions.


def test_the_graph_calibrates_and_decides_as_described(table, calibrated):
    rows = np.random.default_rng(3).normal(size=(40, 3)).astype("float32")
    rows[0, 0] = np.nan
    raw = by_task(table.predict(rows, verbose=0), TASKS)
    signatures = tf.saved_model.load(str(calibrated)).signatures
    found = {k: v.numpy() for k, v in signatures["matrix"](features=tf.constant(rows)).items()}
    wet, kind, _ = kt.export.read_description(calibrated)["tasks"]
    assert wet["temperature"] != 1 and kind["temperature"] != 1
    logit = np.log(raw["wet | dry"]) - np.log1p(-raw["wet | dry"])
    wanted = 1 / (1 + np.exp(-logit / wet["temperature"]))
    np.testing.assert_allclose(found["wet | dry"], wanted, atol=1e-5)
    np.testing.assert_array_equal(
        found["wet | dry_decision"], found["wet | dry"] >= np.float32(wet["threshold"])
    )
    power = raw["kind"] ** (1 / kind["temperature"])
    np.testing.assert_allclose(found["kind"], power / power.sum(axis=1)[:, None], atol=1e-5)
    names = np.array(kind["classes"])[found["kind"].argmax(axis=1)]
    assert [name.decode() for name in found["kind_decision"]] == names.tolist()
    np.testing.assert_allclose(found["hours"], raw["hours"], atol=1e-5)
    assert "hours_decision" not in found


def test_named_columns_and_the_matrix_answer_alike(calibrated):
    signatures = tf.saved_model.load(str(calibrated)).signatures
    rows = np.random.default_rng(1).normal(size=(5, 3)).astype("float32")
    named = dict(zip(["age", "body_weight", "gr__e"], tf.constant(rows.T), strict=True))
    by_name, whole = signatures["serving_default"](**named), signatures["matrix"](features=rows)
    assert set(by_name) == set(whole)
    for key, values in whole.items():
        np.testing.assert_array_equal(by_name[key], values)


def test_decisions_that_were_fitted_before_are_kept(table, calibrated, tmp_path):
    decisions = kt.export.read_decisions(calibrated)
    folder = export_table(table, tmp_path / "m", decisions=decisions)
    assert kt.export.read_decisions(folder) == decisions
    assert kt.export.read_description(folder)["metrics"] is None


def test_validation_is_read_once(tmp_path):
    y = np.random.default_rng(0).integers(0, 2, (64, 1)).astype("float32")
    x = np.random.default_rng(1).normal(size=(64, 2)).astype("float32")
    batches = iter([(x[:32], y[:32]), (x[32:], y[32:])])
    folder = export_table(small_model(), tmp_path / "m", ["a"], ["x", "y"], validation=batches)
    about = kt.export.read_description(folder)
    assert about["metrics"]["rows"] == about["tasks"][0]["decision"]["known"] == 64


def test_too_few_labels_give_the_default_with_a_warning(tmp_path):
    y = np.repeat([[1.0], [0.0]], [3, 61], axis=0).astype("float32")
    x = np.random.default_rng(1).normal(size=(64, 2)).astype("float32")
    options = {"validation": [(x, y)], "decisions": ("precision", 0.9)}
    with pytest.warns(UserWarning, match="'a'.*too few"):
        folder = export_table(small_model(), tmp_path / "m", ["a"], ["x", "y"], **options)
    assert kt.export.read_decisions(folder)["a"].threshold == 0.5


# Minimum scores.


def test_a_worse_model_is_refused_and_the_former_version_stays(table, tmp_path):
    base = tmp_path / "pumps"
    (base / "1").mkdir(parents=True)
    wanted = {"macro_auc": 0.99, "hours.rmse": 0.001, "kind.accuracy": 0.0}
    with pytest.raises(ScoreTooLow, match=r"macro_auc at least 0.99, got 0\.\d+; hours.rmse at mo"):
        export_table(table, base, validation=validation(), require=wanted)
    assert [path.name for path in base.iterdir()] == ["1"]


SCORES = {
    "macro_auc": 0.8,
    "tasks": {"a.b": {"kind": "binary", "auc": 0.8, "f1": None, "brier": 0.2}},
    "macro": {"binary": {"f1": {"mean": 0.6}, "brier": {"mean": 0.2}}},
}


@pytest.mark.parametrize(
    "require",
    [{}, None, {"macro_auc": 0.8}, {"a.b.auc": 0.8}, {"macro_f1": 0.5, "a.b.brier": 0.2}],
)
def test_scores_that_are_reached_pass(require):
    check_scores(SCORES, require)


@pytest.mark.parametrize(
    "require",
    [{"macro_auc": 0.81}, {"a.b.f1": 0.1}, {"macro_brier": 0.1}, {"a.b.brier": 0.1}],
)
def test_scores_that_are_not_reached_are_refused(require):
    with pytest.raises(ScoreTooLow, match=next(iter(require))):
        check_scores(SCORES, require)


@pytest.mark.parametrize("name", ["a.auc", "a.b.kind", "a.b.acc", "auc", "macro_acc"])
def test_an_unknown_score_is_named(name):
    with pytest.raises(ValueError, match=f"`require`.*{name!r}") as refused:
        check_scores(SCORES, {name: 0.1})
    assert not isinstance(refused.value, ScoreTooLow)


# Arguments.


def never():
    raise AssertionError("validation was read")
    yield


@pytest.mark.parametrize(
    "change, argument",
    [
        ({"tasks": ["one"]}, "tasks"),
        ({"tasks": ["a", "b", "a_decision"]}, "tasks"),
        ({"model": "tiny"}, "model"),
        ({"model": keras.Sequential([keras.layers.Dense(3)])}, "model"),
        ({"model": keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])}, ""),
        ({"version": 0}, "version"),
        ({"version": True}, "version"),
        ({"version": "1"}, "version"),
        ({"card": {"license": "MIT"}}, "card"),
        ({"card": {"data": "labels.csv"}}, "card"),
        ({"metrics": 0.9}, "metrics"),
        ({"require": {"macro_auc": 0.5}}, "require"),
        ({"require": ["macro_auc"]}, "require"),
        ({"require": {"macro_auc": "0.5"}}, "require"),
        ({"require": {"macro_auc": float("nan")}}, "require"),
        ({"require": {"pedestrian.acc": 1}, "validation": never()}, "require"),
        ({"metrics": {"macro_auc": float("nan")}, "require": {"macro_auc": 0.5}}, "require"),
        ({"decisions": "f1"}, "validation"),
        ({"decisions": "best"}, ""),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_written(model, tmp_path, change, argument):
    given = {"model": model, "tasks": NAMES, **change}
    with pytest.raises(ValueError, match=f"`{argument}" if argument else ""):
        kt.export_saved_model(path=tmp_path / "street", **given)
    assert not (tmp_path / "street").exists()


def test_a_model_that_predicts_nan_is_refused(tmp_path):
    model = small_model()
    model.set_weights([weight * np.nan for weight in model.get_weights()])
    with pytest.raises(ValueError, match=r"`model`.*NaN.*\['a'\]"):
        export_table(model, tmp_path / "m", ["a"], ["x", "y"])
    assert not (tmp_path / "m").exists()


def test_keywords_of_python_can_be_columns(tmp_path):
    columns = ["class", "self", "if", "values"]
    folder = export_table(small_model(4), tmp_path / "m", ["a"], columns)
    signatures = tf.saved_model.load(str(folder)).signatures
    inputs = {"column_class", "column_self", "column_if", "values"}
    assert set(signatures["columns"].structured_input_signature[1]) == inputs


def test_an_export_without_a_head_has_no_features(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, "sigmoid")])
    folder = export_table(model, tmp_path / "m", ["a"], ["x", "y"])
    assert set(kt.export.read_description(folder)["signatures"]) == {
        "serving_default",
        "columns",
        "matrix",
    }


def test_a_disk_error_of_tensorflow_is_an_oserror(tmp_path, monkeypatch):
    def full(*arguments):
        raise tf.errors.ResourceExhaustedError(None, None, "{{node x}} No space left on device")

    monkeypatch.setattr("kerasmtl.export.verify.write_warm_up", full)
    with pytest.raises(OSError, match=r"`path` .*m cannot take.*: No space left on device"):
        export_table(small_model(), tmp_path / "m", ["a"], ["x", "y"])
    assert list((tmp_path / "m").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("place", ["verify.write_warm_up", "versions.os.rename"])
def test_a_killed_export_leaves_no_version(tmp_path, place):
    code = f"""
        import os, pkgutil, signal
        import kerasmtl.export.saved_model
        from exports import export_table, small_model

        model = small_model()
        owner, _, name = "kerasmtl.export.{place}".rpartition(".")
        kill = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
        setattr(pkgutil.resolve_name(owner), name, kill)
        export_table(model, {str(tmp_path / "m")!r}, ["a"], ["x", "y"])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert [path.name for path in (tmp_path / "m").iterdir()] == [".export-1"]
    assert export_table(small_model(), tmp_path / "m", ["a"], ["x", "y"]).name == "2"
