"""Beside an exported graph: description, card, golden requests, warm-up, gate and proof."""

import base64
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasmtl as kt
import kerasmtl.export.saved_model
from kerasmtl.export.description import data_of, read_description
from kerasmtl.export.model_card import model_card
from kerasmtl.export.saved_model import NotGoodEnough, check_gate
from kerasmtl.export.verify import ProofFailed
from kerasmtl.tasks import by_task

TASKS = [
    kt.Task("wet | dry"),
    kt.Task("kind", "multiclass", classes=("low", "high", "größe")),
    kt.Task("hours", "regression"),
]
COLUMNS = ["age", "body weight", "größe"]


def mixed_model(seed=0):
    keras.utils.set_random_seed(seed)
    return kt.build_model(kt.backbones.mlp(len(COLUMNS), [6]), TASKS)


def validation(rows=120, seed=0):
    """Rows, and labels of which the model knows nothing, with holes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, len(COLUMNS))).astype("float32")
    labels = {
        "binary": rng.integers(0, 2, (rows, 1)).astype("float32"),
        "kind": rng.integers(0, 3, (rows, 1)).astype("float32"),
        "hours": rng.normal(size=(rows, 1)).astype("float32"),
    }
    for values in labels.values():
        values[rng.random(values.shape) < 0.2] = np.nan
    return tf.data.Dataset.from_tensor_slices((x, labels)).batch(32)


@pytest.fixture(scope="module")
def model():
    return mixed_model()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return kt.export_saved_model(
        model,
        tmp_path_factory.mktemp("served") / "pumps",
        TASKS,
        version=4,
        columns=COLUMNS,
        validation=validation(),
        calibrate=True,
        require={"hours.mae": 100, "kind.accuracy": 0.01},
        data={"sha256": "0" * 64, "rows": 120, "source": "labels.csv"},
        licence="CC-BY-4.0",
    )


@pytest.fixture(scope="module")
def about(exported):
    return read_description(exported)


@pytest.fixture(scope="module")
def served(exported):
    return tf.saved_model.load(str(exported)).signatures


def golden(folder, name):
    return json.loads((folder / "assets.extra" / "golden" / name).read_text(encoding="utf-8"))


def test_the_description_says_all(about, exported):
    text = (exported / "assets.extra" / "model.json").read_text(encoding="utf-8")
    assert "NaN" not in text and "größe" in text
    assert json.dumps(about, indent=1, sort_keys=True, ensure_ascii=False) + "\n" == text
    assert (about["format"], about["name"], about["version"]) == (1, "pumps", 4)
    assert (about["kind"], about["columns"]) == ("table", COLUMNS)
    assert about["inputs"]["body weight"] == "body_weight" and about["packed_bits"] is False
    assert about["data"]["rows"] == 120 and about["licence"] == "CC-BY-4.0"
    assert about["versions"]["tensorflow"] == tf.__version__
    wet, kind, hours = about["tasks"]
    assert wet["decision"]["rule"] == "f1" and 60 < wet["decision"]["known"] < 120
    assert 0 < wet["decision"]["precision"] <= 1 and 0 < wet["decision"]["recall"] <= 1
    assert kind["classes"] == ["low", "high", "größe"] and kind["temperature"] != 1
    assert hours["decision"] is hours["threshold"] is hours["temperature"] is None
    assert about["metrics"]["tasks"]["hours"]["mae"] > 0


def test_signatures_are_those_of_the_graph(about, served):
    assert set(about["signatures"]) == set(served)
    for name, signature in about["signatures"].items():
        for key, spec in served[name].structured_input_signature[1].items():
            given = {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
            assert signature["inputs"].pop(key) == given
        for key, spec in served[name].structured_outputs.items():
            given = {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
            assert signature["outputs"].pop(key) == given
        assert signature == {"inputs": {}, "outputs": {}}


def test_the_graph_calibrates_and_decides_as_described(model, about, served):
    rows = np.random.default_rng(3).normal(size=(40, 3)).astype("float32")
    rows[0, 0] = np.nan
    raw = by_task(model.predict(rows, verbose=0), TASKS)
    found = {k: v.numpy() for k, v in served["matrix"](features=tf.constant(rows)).items()}
    wet, kind, _ = about["tasks"]
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


def test_the_card_is_a_table_by_task_and_lets_no_name_break_it(exported):
    card = (exported / "assets.extra" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert r"| wet \| dry | binary |" in card and "CC-BY-4.0" in card and "labels.csv" in card
    assert "largest" not in card and "| regression task | known | mae | rmse | r2 |" in card
    widths = [line.replace(r"\|", "").count("|") for line in card.splitlines() if "---" in line]
    assert widths == [11, 4, *widths[2:]]
    assert "of 120 rows of the validation part, before calibration; accuracy and F1" in card


@pytest.mark.parametrize(
    ("name", "title", "shown"),
    [
        ("p_inter", r"p\_inter", "`POST /v1/models/p_inter:predict`"),
        ("a*b|c", r"a\*b\|c", "`POST /v1/models/a*b|c:predict`"),
        ("a`b``c", r"a\`b\`\`c", "```POST /v1/models/a`b``c:predict```"),
        ("two\nlines", "two lines", "`POST /v1/models/two lines:predict`"),
    ],
)
def test_a_name_is_escaped_in_text_and_left_alone_in_code(about, name, title, shown):
    card = model_card({**about, "name": name})
    assert card.startswith(f"# {title}, version") and shown in card
    assert shown.replace("v1", "v2").replace(":predict", "/infer") in card


def test_a_card_without_scores_says_so(about):
    assert "Not measured." in model_card({**about, "metrics": None, "data": None, "licence": None})


def test_golden_rest_requests_are_answered_as_written(exported, served):
    rows, columns = (
        golden(exported, "rest_row.request.json"),
        golden(exported, "rest_column.request.json"),
    )
    assert set(rows) == {"signature_name", "instances"} and len(rows["instances"]) == 3
    given = {key: tf.constant(values) for key, values in columns["inputs"].items()}
    assert [row["age"] for row in rows["instances"]] == columns["inputs"]["age"]
    found = served[columns["signature_name"]](**given)
    answers = golden(exported, "rest_column.response.json")["outputs"]
    predictions = golden(exported, "rest_row.response.json")["predictions"]
    for key in ("wet | dry", "kind", "hours"):
        np.testing.assert_allclose(found[key], answers[key], atol=1e-5)
        np.testing.assert_allclose(found[key], [row[key] for row in predictions], atol=1e-5)
    words = [value.decode() for value in found["kind_decision"].numpy()]
    assert words == answers["kind_decision"] == [row["kind_decision"] for row in predictions]


def test_golden_kserve_request_has_shapes_and_types(exported):
    asked = golden(exported, "kserve_v2.request.json")
    assert {tensor["name"] for tensor in asked["inputs"]} == {"age", "body_weight", "gr__e"}
    for tensor in [*asked["inputs"], *golden(exported, "kserve_v2.response.json")["outputs"]]:
        assert np.prod(tensor["shape"]) == len(tensor["data"])
    kinds = {
        t["name"]: t["datatype"] for t in golden(exported, "kserve_v2.response.json")["outputs"]
    }
    assert kinds["wet | dry"] == "FP32" and kinds["wet | dry_decision"] == "INT32"
    assert kinds["kind_decision"] == "BYTES"
    assert golden(exported, "kserve_v2.response.json")["model_version"] == "4"


def test_messages_are_those_of_tensorflow_serving(exported, served):
    apis = pytest.importorskip("tensorflow_serving.apis", reason="tensorflow-serving-api is absent")
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    assert apis
    folder = exported / "assets.extra"
    request = predict_pb2.PredictRequest.FromString(
        (folder / "golden/grpc.request.pb").read_bytes()
    )
    answer = predict_pb2.PredictResponse.FromString(
        (folder / "golden/grpc.response.pb").read_bytes()
    )
    assert (request.model_spec.name, request.model_spec.version.value) == ("pumps", 4)
    assert request.model_spec == answer.model_spec
    found = called(served, request)
    for key, value in answer.outputs.items():
        wanted = tf.make_ndarray(value)
        if wanted.dtype == object:
            assert found[key].numpy().tolist() == wanted.tolist()
        else:
            np.testing.assert_allclose(found[key], wanted, atol=1e-5)
    asked = {}
    for record in tf.data.TFRecordDataset(str(folder / "tf_serving_warmup_requests")):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        assert log.WhichOneof("log_type") == "predict_log"
        spec = log.predict_log.request.model_spec
        asked.setdefault(spec.signature_name, []).append(
            len(next(iter(called(served, log.predict_log.request).values())))
        )
        again = log.SerializeToString(deterministic=True)
        assert prediction_log_pb2.PredictionLog.FromString(again) == log
    assert set(asked) == set(served) and all(sizes == [1, 3] for sizes in asked.values())


def called(served, request):
    inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
    return served[request.model_spec.signature_name](**inputs)


def test_an_export_that_answers_otherwise_is_not_published(model, tmp_path, monkeypatch):
    base = tmp_path / "pumps"
    (base / "1").mkdir(parents=True)
    live = kerasmtl.export.saved_model.Live

    class Skewed(live):
        def answers(self, inputs):
            found = super().answers(inputs)
            return {**found, "hours": found["hours"] + 0.01}

    monkeypatch.setattr(kerasmtl.export.saved_model, "Live", Skewed)
    with pytest.raises(ProofFailed, match="'hours' differs from the model"):
        kt.export_saved_model(model, base, TASKS, columns=COLUMNS)
    assert [p.name for p in base.iterdir()] == ["1"]


def test_a_half_written_graph_is_not_published(model, tmp_path, monkeypatch):
    write = kerasmtl.export.saved_model._write

    def torn(model, folder, endpoints):
        write(model, folder, endpoints)
        index = folder / "variables" / "variables.index"
        index.write_bytes(index.read_bytes()[:20])

    monkeypatch.setattr(kerasmtl.export.saved_model, "_write", torn)
    with pytest.raises(ProofFailed, match="Nothing was published"):
        kt.export_saved_model(model, tmp_path / "pumps", TASKS, columns=COLUMNS)
    assert list((tmp_path / "pumps").iterdir()) == []


def test_a_worse_model_is_refused_and_the_former_version_stays(model, tmp_path):
    base = tmp_path / "pumps"
    (base / "1").mkdir(parents=True)
    wanted = {"macro_auc": 0.99, "hours.rmse": 0.001, "kind.accuracy": 0.0}
    with pytest.raises(NotGoodEnough, match=r"macro_auc is 0\.\d+, at least 0.99; hours.rmse is"):
        kt.export_saved_model(
            model, base, TASKS, columns=COLUMNS, validation=validation(), require=wanted
        )
    assert [p.name for p in base.iterdir()] == ["1"]


METRICS = {
    "macro_auc": 0.8,
    "tasks": {"a.b": {"kind": "binary", "auc": 0.8, "f1": None, "brier": 0.2}},
    "macro": {"binary": {"f1": {"mean": 0.6}, "brier": {"mean": 0.2}}},
}


@pytest.mark.parametrize(
    "require",
    [{}, None, {"macro_auc": 0.8}, {"a.b.auc": 0.8}, {"macro_f1": 0.5, "a.b.brier": 0.2}],
)
def test_the_gate_lets_pass(require):
    check_gate(METRICS, require)


@pytest.mark.parametrize(
    ("require", "message"),
    [
        ({"macro_auc": 0.81}, "macro_auc is 0.8000, at least 0.81"),
        ({"a.b.f1": 0.1}, "a.b.f1 is not defined"),
        ({"macro_brier": 0.1}, "at most 0.1"),
        ({"a.auc": 0.1}, "names no score"),
        ({"a.b.kind": 0.1}, "names no score"),
        ({"auc": 0.1}, "names no score"),
        ({"macro_auc": "0.8"}, "is no number"),
        ({"a.b.acc": 0.1}, r"a score of 'a.b': \['auc', 'f1', 'brier'\]"),
        ({"a.b.auc": float("nan")}, "is no number"),
        ({"a.b.auc": float("inf")}, "is no number"),
    ],
)
def test_the_gate_stops(require, message):
    with pytest.raises(ValueError, match=message):
        check_gate(METRICS, require)


def test_data_of_a_file(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"image,a\n")
    found = data_of(tmp_path / "labels.csv", 7)
    done = subprocess.run(["sha256sum", tmp_path / "labels.csv"], capture_output=True, text=True)
    assert found == {"sha256": done.stdout.split()[0], "rows": 7, "source": "labels.csv"}


def test_what_a_killed_export_left_behind_is_removed_later(model, tmp_path):
    old, new = tmp_path / "m" / ".export-old", tmp_path / "m" / ".export-new"
    old.mkdir(parents=True)
    new.mkdir()
    os.utime(old, (time.time() - 90_000,) * 2)
    kt.export_saved_model(model, tmp_path / "m", TASKS, columns=COLUMNS, proof=False)
    assert {p.name for p in (tmp_path / "m").iterdir()} == {".export-new", "1"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["write_card", "write_warm_up", "prove"])
def test_a_killed_export_leaves_no_version(tmp_path, stage):
    code = f"""
        import os, signal
        import kerasmtl as kt, kerasmtl.export.saved_model
        def kill(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGKILL)
        kerasmtl.export.saved_model.{stage} = kill
        model = kt.build_model(kt.backbones.mlp(2, [3]), ["a"])
        kt.export_saved_model(model, {str(tmp_path / "m")!r}, ["a"], columns=["x", "y"])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    left = [p.name for p in (tmp_path / "m").iterdir()]
    assert len(left) == 1 and left[0].startswith(".export-")


def test_pictures_are_golden_too(tmp_path):
    keras.utils.set_random_seed(0)
    model = kt.build_model("tiny", ["a"], 32)
    folder = kt.export_saved_model(model, tmp_path / "street", ["a"], proof=False)
    asked, answered = (golden(folder, f"rest_row.{end}.json") for end in ("request", "response"))
    data = [base64.b64decode(row["image_bytes"]["b64"]) for row in asked["instances"]]
    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    found = served(image_bytes=tf.constant(data))["a"]
    np.testing.assert_allclose(found, [row["a"] for row in answered["predictions"]], atol=1e-5)
    v2 = golden(folder, "kserve_v2.request.json")["inputs"][0]
    assert (v2["datatype"], v2["parameters"]) == ("BYTES", {"content_type": "base64"})
    assert [base64.b64decode(text) for text in v2["data"]] == data
    about = read_description(folder)
    assert (about["kind"], about["image_size"]) == ("pictures", [32, 32])
    assert set(about["signatures"]) == {"serving_default", "pixels", "pixels_float", "features"}


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}'])
def test_a_broken_description_is_named(tmp_path, text):
    assert read_description(tmp_path) is None
    (tmp_path / "assets.extra").mkdir()
    Path(tmp_path, "assets.extra", "model.json").write_text(text)
    with pytest.raises(ValueError, match="model.json"):
        read_description(tmp_path)


def tabular(seed=0, tasks=("a",), columns=2):
    keras.utils.set_random_seed(seed)
    return kt.build_model(kt.backbones.mlp(columns, [3]), list(tasks))


def labelled(y, seed=0):
    x = np.random.default_rng(seed).normal(size=(len(y), 2)).astype("float32")
    return [(x[at : at + 32], y[at : at + 32]) for at in range(0, len(y), 32)]


def test_validation_is_read_once(tmp_path):
    y = np.random.default_rng(0).integers(0, 2, (64, 1)).astype("float32")
    folder = kt.export_saved_model(
        tabular(),
        tmp_path / "m",
        ["a"],
        columns=["x", "y"],
        validation=iter(labelled(y)),
        proof=False,
    )
    about = read_description(folder)
    assert about["metrics"]["rows"] == about["tasks"][0]["decision"]["known"] == 64


@pytest.mark.parametrize("positives", [0, 3, 64])
def test_labels_that_say_too_little_give_the_default_aloud(tmp_path, positives):
    y = np.repeat([[1.0], [0.0]], [positives, 64 - positives], axis=0).astype("float32")
    with pytest.warns(UserWarning, match=r"'a': . known labels of one class are too few for prec"):
        folder = kt.export_saved_model(
            tabular(),
            tmp_path / "m",
            ["a"],
            columns=["x", "y"],
            validation=labelled(y),
            thresholds=("precision", 0.9),
            proof=False,
        )
    assert read_description(folder)["tasks"][0]["threshold"] == 0.5


@pytest.mark.parametrize("name", ["a.acc", "b.auc", "macro_acc", "auc"])
def test_an_unknown_score_is_named_before_anything_is_measured(tmp_path, name):
    def never():
        raise AssertionError("read")
        yield

    with pytest.raises(ValueError, match="`require` names no score"):
        kt.export_saved_model(
            tabular(),
            tmp_path / "m",
            ["a"],
            columns=["x", "y"],
            validation=never(),
            require={name: 1},
        )


def test_a_model_that_predicts_nan_is_refused(tmp_path):
    model = tabular()
    model.set_weights([weight * np.nan for weight in model.get_weights()])
    with pytest.raises(ValueError, match=r"predicts NaN or infinity.*\['a'\]"):
        kt.export_saved_model(model, tmp_path / "m", ["a"], columns=["x", "y"])
    assert list((tmp_path / "m").iterdir()) == []


def test_columns_called_as_words_of_python_have_inputs(tmp_path):
    columns = ["class", "self", "if", "values"]
    folder = kt.export_saved_model(
        tabular(columns=4), tmp_path / "m", ["a"], columns=columns, proof=False
    )
    served = tf.saved_model.load(str(folder)).signatures["columns"]
    inputs = read_description(folder)["inputs"]
    assert list(inputs) == sorted(columns) and inputs["class"] == "column_class"
    assert set(served.structured_input_signature[1]) == set(inputs.values())


def test_numbers_of_numpy_can_be_said_of_the_data(tmp_path):
    folder = kt.export_saved_model(
        tabular(),
        tmp_path / "m",
        ["a"],
        columns=["x", "y"],
        metrics={"macro_auc": np.float32(0.5)},
        data={"rows": np.int64(3), "source": Path("t.csv"), "sha256": None},
        proof=False,
    )
    about = read_description(folder)
    assert about["data"] == {"rows": 3, "source": "t.csv", "sha256": None}
    assert about["metrics"] == {"macro_auc": 0.5}


@pytest.mark.parametrize("bias", [-0.7371, 0.0, 2.123])
def test_a_model_that_always_says_the_same_decides_alike_everywhere(bias):
    from kerasmtl.evaluation.calibration import Decision, decide
    from kerasmtl.export.signatures import answers

    task = kt.Task("a")
    p = np.full((100, 1), 1 / (1 + np.exp(-bias)), "float32")
    y = (np.arange(100) % 3 == 0).astype("float32")
    decision = decide([task], {"a": (y, p[:, 0])}, None, calibrate=True)["a"]
    assert isinstance(decision, Decision)
    for nudge in (-1e-5, 0.0, 1e-5):
        found = answers(tf.constant(p + np.float32(nudge)), [task], {"a": decision})
        assert found["a_decision"].numpy().all()
