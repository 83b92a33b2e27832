"""What an export contains beside its graph: description, card, golden request and warm-up."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from exports import COLUMNS, export_table, mixed_model, small_model, validation

import kerasmtl as kt
from kerasmtl.export.description import GOLDEN_REQUEST, GOLDEN_RESPONSE, MODEL_CARD, WARM_UP
from kerasmtl.export.model_card import model_card


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_table(
        mixed_model(),
        tmp_path_factory.mktemp("served") / "pumps",
        version=4,
        validation=validation(),
        calibrate=True,
        card={
            "licence": "CC-BY-4.0",
            "data": {"sha256": "0" * 64, "rows": np.int64(120), "source": Path("labels.csv")},
        },
    )


@pytest.fixture(scope="module")
def about(exported):
    return kt.export.read_description(exported)


@pytest.fixture(scope="module")
def served(exported):
    return tf.saved_model.load(str(exported)).signatures


def read_json(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_the_description_is_complete_and_strict_json(about, exported):
    text = (exported / "assets.extra" / "model.json").read_text(encoding="utf-8")
    assert "NaN" not in text and "größe" in text
    assert json.dumps(about, indent=1, sort_keys=True, ensure_ascii=False) + "\n" == text
    assert (about["format"], about["name"], about["version"]) == (1, "pumps", 4)
    assert about["data"] == {"rows": 120, "sha256": "0" * 64, "source": "labels.csv"}
    assert about["licence"] == "CC-BY-4.0" and about["versions"]["tensorflow"] == tf.__version__
    wet, kind, hours = about["tasks"]
    assert wet["decision"]["rule"] == "f1" and 60 < wet["decision"]["known"] < 120
    assert 0 < wet["decision"]["precision"] <= 1 and 0 < wet["decision"]["recall"] <= 1
    assert kind["classes"] == ["low", "high", "größe"] and kind["temperature"] != 1
    assert hours["decision"] is hours["threshold"] is hours["temperature"] is None
    assert about["metrics"]["tasks"]["hours"]["mae"] > 0


def test_the_signatures_are_those_of_the_graph(about, served):
    def described(specs):
        return {
            key: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
            for key, spec in specs.items()
        }

    assert (
        set(about["signatures"])
        == set(served)
        == {*("serving_default", "columns", "matrix", "features")}
    )
    for name, signature in about["signatures"].items():
        assert signature["inputs"] == described(served[name].structured_input_signature[1])
        assert signature["outputs"] == described(served[name].structured_outputs)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}', '{"format": 1, "tasks": ["a"]}'])
def test_a_broken_description_is_named(tmp_path, text):
    assert kt.export.read_description(tmp_path) is None
    (tmp_path / "assets.extra").mkdir()
    Path(tmp_path, "assets.extra", "model.json").write_text(text)
    with pytest.raises(ValueError, match="model.json"):
        kt.export.read_description(tmp_path)


def test_decisions_are_read_from_a_version_only(exported, tmp_path):
    assert set(kt.export.read_decisions(exported)) == {"wet | dry", "kind", "hours"}
    with pytest.raises(ValueError, match="Pass one of its versions: .*4"):
        kt.export.read_decisions(exported.parent)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        kt.export.read_decisions(tmp_path / "none")
    tf.saved_model.save(tf.Module(), str(tmp_path / "1"))
    with pytest.raises(ValueError, match="model.json"):
        kt.export.read_decisions(tmp_path / "1")


def test_the_card_is_a_table_by_task_and_no_name_breaks_it(exported):
    card = (exported / MODEL_CARD).read_text(encoding="utf-8")
    assert r"| wet \| dry | binary |" in card and "CC-BY-4.0" in card and "labels.csv" in card
    assert "| regression task | known | mae | rmse | r2 |" in card
    widths = [line.replace(r"\|", "").count("|") for line in card.splitlines() if "---" in line]
    assert widths == [11, 4, *widths[2:]]


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("p_inter", r"p\_inter"),
        ("a*b|c", r"a\*b\|c"),
        ("a`b", r"a\`b"),
        ("two\nlines", "two lines"),
    ],
)
def test_a_name_is_escaped(about, name, title):
    card = model_card({**about, "name": name})
    assert card.startswith(f"# {title}, version") and f"POST /v1/models/{title}:predict" in card


def test_a_card_without_scores_says_so(about):
    assert "Not measured." in model_card({**about, "metrics": None, "data": None, "licence": None})


def test_the_golden_request_is_answered_as_written(exported, served):
    request, answer = read_json(exported, GOLDEN_REQUEST), read_json(exported, GOLDEN_RESPONSE)
    assert set(request) == {"signature_name", "instances"} and len(request["instances"]) == 3
    rows, predictions = request["instances"], answer["predictions"]
    inputs = {key: tf.constant([row[key] for row in rows]) for key in rows[0]}
    found = served[request["signature_name"]](**inputs)
    assert set(found) == set(predictions[0])
    for key in ("wet | dry", "kind", "hours"):
        np.testing.assert_allclose(found[key], [row[key] for row in predictions], atol=1e-5)
    words = [value.decode() for value in found["kind_decision"].numpy()]
    assert words == [row["kind_decision"] for row in predictions]


def test_a_single_output_has_no_name_in_rest(tmp_path):
    from kerasmtl.export.verify import Case, write_golden

    data, value = np.array([b"\xff\x00", b"a"], object), np.array([0.25, 0.5], "float32")
    write_golden(tmp_path, Case("features", {"image_bytes": data}, {"features": value}))
    rows = read_json(tmp_path, GOLDEN_REQUEST)["instances"]
    assert [base64.b64decode(row["image_bytes"]["b64"]) for row in rows] == data.tolist()
    assert read_json(tmp_path, GOLDEN_RESPONSE) == {"predictions": [0.25, 0.5]}


def test_warm_up_requests_are_those_of_tensorflow_serving(exported, served):
    reason = "tensorflow-serving-api is absent"
    logs = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2", reason=reason)
    asked = {}
    for record in tf.data.TFRecordDataset(str(exported / WARM_UP)):
        log = logs.PredictionLog.FromString(record.numpy())
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        assert request.model_spec.name == "pumps"
        name = request.model_spec.signature_name
        inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
        asked.setdefault(name, []).append(len(next(iter(served[name](**inputs).values()))))
        again = log.SerializeToString(deterministic=True)
        assert logs.PredictionLog.FromString(again) == log
    assert set(asked) == set(served) and all(sizes == [1, 3] for sizes in asked.values())


def test_an_export_is_named_after_its_folder_or_as_asked(tmp_path):
    model = small_model(len(COLUMNS))
    for card, name in ((None, "pumps"), ({"name": "mills"}, "mills")):
        folder = export_table(model, tmp_path / "pumps", ["a"], card=card)
        assert kt.export.read_description(folder)["name"] == name
