"""What requests may hold, and what they are answered, in both protocols."""

import re
import threading

import keras
import numpy as np
import pytest
import requests
import tensorflow as tf

import kerasmtl as kt
from kerasmtl.data.images import decode_image, resize_image

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from served import CLASSES, b64, held, mean_of, noise, predict, save_image_model, serving, tensor

GOOD = [noise(1), noise(2, kind="JPEG"), noise(3, (1, 1)), noise(4, kind="GIF")]
X = b64(GOOD[0])
V1, V2 = "/v1/models/street", "/v2/models/street"


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    base = tmp_path_factory.mktemp("street")
    save_image_model(base, 1)
    save_image_model(base, 3, shift=0.25)
    with serving(base) as running:
        yield running


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((24, 24, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
    return keras.Model(inputs, keras.layers.Dense(2, activation="sigmoid")(pooled))


@pytest.fixture(scope="module")
def cats(trained, tmp_path_factory):
    """The server of an export."""
    base = tmp_path_factory.mktemp("made") / "cats"
    kt.export_saved_model(trained, base, ["cat", "größe 2"], verify=False)
    with serving(base, "cats", batch_wait=50) as running:
        yield running


def get(running, path):
    answer = requests.get(running.url + path, timeout=60)
    return answer.status_code, answer.json()


# ------------------------------------------------------------------ answers


def test_both_protocols_equal_the_model(trained, cats):
    images = [resize_image(decode_image(tf.constant(data)), (24, 24)) for data in GOOD]
    expected = trained.predict(np.stack(images), verbose=0)
    rows = {"instances": [{"image_bytes": b64(data)} for data in GOOD]}
    found = predict(cats.url, rows, "/v1/models/cats:predict").json()["predictions"]
    received = [[one["cat"], one["größe 2"]] for one in found]
    np.testing.assert_allclose(received, expected, atol=1e-5)
    columns = {"inputs": {"image_bytes": [b64(data) for data in GOOD]}}
    found = predict(cats.url, columns, "/v1/models/cats/versions/1:predict").json()["outputs"]
    np.testing.assert_allclose(found["cat"], expected[:, 0], atol=1e-5)
    answer = predict(cats.url, tensor(*GOOD), "/v2/models/cats/infer").json()
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert outputs["cat"]["shape"] == [4] and outputs["cat"]["datatype"] == "FP32"
    np.testing.assert_allclose(outputs["größe 2"]["data"], expected[:, 1], atol=1e-5)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    """The server of rows (3,) in which NaN counts as -1, of columns, and of two words."""
    base = tmp_path_factory.mktemp("matrix")
    module = tf.Module()

    def outputs(rows):
        known = tf.where(tf.math.is_nan(rows), -1.0, rows)
        return {"sum": tf.reduce_sum(known, 1), "double": 2 * known}

    spec = tf.TensorSpec((None, 3), tf.float32, name="features")
    columns = {name: tf.TensorSpec((None,), tf.float32, name=name) for name in "abc"}
    module.matrix = tf.function(lambda features: outputs(features), input_signature=[spec])
    module.columns = tf.function(lambda a, b, c: outputs(tf.stack([a, b, c], axis=1)))
    pair = tf.TensorSpec((None, 2), tf.string, name="words")
    module.words = tf.function(
        lambda words: {"joined": tf.strings.reduce_join(words, 1)}, input_signature=[pair]
    )
    functions = {
        "words": module.words,
        "matrix": module.matrix,
        "serving_default": module.columns.get_concrete_function(**columns),
    }
    tf.saved_model.save(module, str(base / "1"), signatures=functions)
    with serving(base, "t") as running:
        yield running


def test_rows_of_numbers_with_null_for_missing(matrix):
    rows = [[1, 2.5, 3], [None, 5, 6]]
    sums, doubles = [6.5, 10], [[2, 5, 6], [-2, 10, 12]]
    named = [dict(zip("abc", row, strict=True)) for row in rows]
    expected = [{"double": d, "sum": s} for s, d in zip(sums, doubles, strict=True)]
    for body in (
        {"instances": named},
        {"signature_name": "matrix", "instances": rows},
        {"signature_name": "matrix", "instances": [{"features": row} for row in rows]},
    ):
        answer = predict(matrix.url, body, "/v1/models/t:predict").json()
        assert answer == {"predictions": expected}
    given = {"name": "features", "shape": [2, 3], "datatype": "FP32"}
    for data in (rows, sum(rows, [])):  # nested or flat
        body = {
            "parameters": {"signature_name": "matrix"},
            "inputs": [{**given, "data": data}],
            "outputs": [{"name": "sum"}],
        }
        (output,) = predict(matrix.url, body, "/v2/models/t/infer").json()["outputs"]
        assert output == {"name": "sum", "shape": [2], "datatype": "FP32", "data": sums}
    for wrong in (rows[0][:2], [1, 2, "3"], [1, 2, True, 4], [1e39, 2, 3]):
        body = {"signature_name": "matrix", "instances": [wrong]}
        assert predict(matrix.url, body, "/v1/models/t:predict").status_code == 400


def test_text_in_and_out(matrix):
    rows = [["größe", "x"], ["a", {"b64": "AGI="}]]
    body = {"signature_name": "words", "instances": rows}
    answer = predict(matrix.url, body, "/v1/models/t:predict").json()
    assert answer == {"predictions": ["größex", "a\0b"]}
    given = {"name": "words", "shape": [2, 2], "datatype": "BYTES"}
    of_words = {"parameters": {"signature_name": "words"}}
    for data in (["a", "b", "c", "d"], [["a", "b"], ["c", "d"]]):
        body = {**of_words, "inputs": [{**given, "data": data}]}
        (output,) = predict(matrix.url, body, "/v2/models/t/infer").json()["outputs"]
        assert output["data"] == ["ab", "cd"] and output["datatype"] == "BYTES"
    for wrong in ([["a"]], ["a", "b"], [["a", "b"], ["c"]], [["a", ["b"]]]):
        body = {"signature_name": "words", "instances": wrong}
        assert predict(matrix.url, body, "/v1/models/t:predict").status_code == 400


def test_decisions_and_classes_come_along(street):
    data = noise(5)
    one = predict(street.url, {"instances": [b64(data)]}).json()["predictions"][0]
    assert list(one) == ["night", "night_decision", "sign", "sign_decision"]
    np.testing.assert_allclose(one["night"], mean_of(data) + 0.25, atol=1e-5)
    assert one["night_decision"] == 1
    assert one["sign_decision"] == CLASSES[int(np.argmax(one["sign"]))]
    answer = predict(street.url, tensor(data, data, id="7"), V2 + "/infer").json()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "street", "3")
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert outputs["sign"]["shape"] == [2, 3] and len(outputs["sign"]["data"]) == 6
    assert outputs["sign_decision"]["datatype"] == "BYTES"
    decision = {"name": "night_decision", "shape": [2], "datatype": "INT32", "data": [1, 1]}
    assert outputs["night_decision"] == decision


def test_a_single_output_is_not_named(street):
    pixels = np.full((1, 2, 4, 3), 9).tolist()
    row = predict(street.url, {"signature_name": "pixels", "instances": pixels})
    assert row.json() == {"predictions": [9.0]}
    column = predict(street.url, {"signature_name": "pixels", "inputs": {"pixels": pixels}})
    assert column.json() == {"outputs": [9.0]}


def test_older_versions_have_their_own_paths(street):
    data = noise(6)
    for version, shift in ((1, 0), (3, 0.25)):
        path = f"{V1}/versions/{version}:predict"
        (one,) = predict(street.url, {"instances": [b64(data)]}, path).json()["predictions"]
        np.testing.assert_allclose(one["night"], mean_of(data) + shift, atol=1e-5)
        answer = predict(street.url, tensor(data), f"{V2}/versions/{version}/infer").json()
        assert answer["model_version"] == str(version)


def test_status_metadata_and_health(street):
    code, status = get(street, V1)
    states = [(s["version"], s["state"]) for s in status["model_version_status"]]
    assert code == 200 and states == [("3", "AVAILABLE"), ("1", "AVAILABLE")]
    assert len(get(street, V1 + "/versions/1")[1]["model_version_status"]) == 1
    found = get(street, V1 + "/metadata")[1]
    assert found["model_spec"] == {"name": "street", "signature_name": "", "version": "3"}
    signatures = found["metadata"]["signature_def"]["signature_def"]
    pixels = signatures["pixels"]["inputs"]["pixels"]
    assert pixels["dtype"] == "DT_UINT8"
    assert [d["size"] for d in pixels["tensor_shape"]["dim"]] == ["-1", "-1", "-1", "3"]
    assert signatures["serving_default"]["outputs"]["sign_decision"]["dtype"] == "DT_STRING"
    assert get(street, "/v2/health/live") == (200, {"live": True})
    assert get(street, "/v2/health/ready") == (200, {"ready": True})
    assert get(street, "/v2")[1]["name"] == "kerasmtl"
    model = get(street, V2)[1]
    assert model["versions"] == ["3", "1"] and model["platform"] == "tensorflow_savedmodel"
    assert model["inputs"] == [{"name": "image_bytes", "datatype": "BYTES", "shape": [-1]}]
    assert get(street, V2 + "/ready") == (200, {"name": "street", "ready": True})


def test_tensorflow_serving_s_own_messages_parse_the_metadata(street):
    pytest.importorskip("tensorflow_serving", reason="tensorflow-serving-api is not installed")
    from google.protobuf import json_format
    from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

    found = get(street, V1 + "/metadata")[1]
    signatures = get_model_metadata_pb2.SignatureDefMap()
    json_format.ParseDict(found["metadata"]["signature_def"], signatures)
    dtype = signatures.signature_def["serving_default"].inputs["image_bytes"].dtype
    assert dtype == tf.string.as_datatype_enum
    status = get_model_status_pb2.GetModelStatusResponse()
    json_format.ParseDict(get(street, V1)[1], status)
    assert [s.version for s in status.model_version_status] == [3, 1]


# ------------------------------------------------------------------ invalid requests


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", noise(7, (60, 60), "JPEG")[:1500], noise(7, (60, 60))[:1500]],
    ids=["empty", "text", "cut JPEG", "cut PNG"],
)
def test_an_invalid_image_is_named_by_its_number(street, cats, data):
    for running, name in ((street, "street"), (cats, "cats")):
        for path, body in (
            (f"/v1/models/{name}:predict", {"instances": [X, b64(data), X]}),
            (f"/v1/models/{name}:predict", {"inputs": [X, b64(data)]}),
            (f"/v2/models/{name}/infer", tensor(GOOD[0], data)),
        ):
            answer = predict(running.url, body, path)
            assert answer.status_code == 400
            error, reasons = answer.json()["error"], answer.json()["reasons"]
            assert [*reasons] == ["1"] and f"[1]: {reasons['1']}" in error
            assert "node" not in error and "[0]" not in error


def test_an_export_bounds_the_pixels_of_an_image(cats):
    header = noise(7)[:16] + (50_000).to_bytes(4, "big") * 2 + noise(7)[24:]
    body = {"instances": [X, b64(header)]}
    answer = predict(cats.url, body, "/v1/models/cats:predict")
    assert answer.status_code == 400 and "pixels" in answer.json()["reasons"]["1"]


PIXELS = {"signature_name": "pixels"}
WRONG_ROWS = [
    ({"instances": []}, "`instances`"),
    ({"inputs": {"image_bytes": []}}, "at least one"),
    ({}, "`instances` or `inputs`"),
    ({"instances": [X], "inputs": [X]}, "`instances` or `inputs`"),
    ({"instances": [X], "batch": 3}, "`instances` or `inputs`"),
    ({"instances": "abc"}, "`instances`"),
    ({"instances": [{"photo": X}]}, r"`instances`\[0\]: the keys must be 'image_bytes'"),
    ({"inputs": {"photo": [X]}}, "`inputs`"),
    ({"inputs": None}, "`inputs`"),
    ({"instances": [7]}, r"`instances`\[0\]"),
    ({"instances": [{"b64": "###"}]}, r"`instances`\[0\] must be base64"),
    ({"instances": [{"b64": 7}]}, "base64"),
    ({"instances": ["\ud800"]}, r"`instances`\[0\] must be valid text"),
    ({"instances": [[X]]}, r"`instances`\[0\]"),
    ({"signature_name": "nix", "instances": [X]}, "`signature_name` must be one of pixels"),
    ({"signature_name": ["x"], "instances": [X]}, "`signature_name`"),
    ({**PIXELS, "instances": [[[[1, 2]]]]}, "'pixels' must have the shape"),
    ({**PIXELS, "instances": 5}, "`instances`"),
    ({**PIXELS, "inputs": 5}, "'pixels' must have the shape"),
    ({**PIXELS, "instances": [[[[1, 2, 256]]]]}, "range of uint8"),
    ({**PIXELS, "instances": [[[[-1, 1, 2]]]]}, "range of uint8"),
    ({**PIXELS, "instances": [[[[1, 2, 0.5]]]]}, "type uint8"),
    ({**PIXELS, "instances": [[[["1", "2", "3"]]]]}, "type uint8"),
    ({**PIXELS, "instances": [[[[1, 2, 3]]], [[[1, 2]]]]}, "equal lengths"),
    ({**PIXELS, "instances": [[[[1, None, 3]]]]}, "type uint8"),
    ({**PIXELS, "instances": [{"a": 1}]}, "the keys must be 'pixels'"),
]
GIVEN = tensor(GOOD[0])["inputs"][0]
FLAT = {"name": "pixels", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [1, 2, 3]}
OF_PIXELS = {"parameters": {"signature_name": "pixels"}}
WRONG_TENSORS = [
    ({}, "`inputs` must be a list of tensors"),
    ({"inputs": []}, "names of `inputs`"),
    ({"inputs": [{**GIVEN, "name": "x"}]}, "names of `inputs`"),
    ({"inputs": [GIVEN, GIVEN]}, "names of `inputs`"),
    ({"inputs": [{**GIVEN, "datatype": "FP32"}]}, "the datatype BYTES"),
    ({"inputs": [{**GIVEN, "shape": [2]}]}, r"the shape \[2\], got 1 values"),
    ({"inputs": [{**GIVEN, "shape": [1, 1]}]}, r"the shape \[-1\]"),
    ({"inputs": [{**GIVEN, "shape": [-1]}]}, "a shape of whole numbers"),
    ({"inputs": [{**GIVEN, "shape": [0], "data": []}]}, "at least one"),
    ({"inputs": [{**GIVEN, "data": None}]}, "its data in a list"),
    ({"inputs": [{**GIVEN, "data": [5]}]}, "must be a string"),
    ({"inputs": [{**GIVEN, "data": ["#"]}]}, "must be base64"),
    ({"inputs": [{**GIVEN, "parameters": {}}]}, "content_type"),
    ({"inputs": [GIVEN], "parameters": {"signature_name": "nix"}}, "`signature_name`"),
    ({"inputs": [GIVEN], "parameters": []}, "`parameters`"),
    ({"inputs": [GIVEN], "outputs": [{"name": "nix"}]}, "`outputs`"),
    ({"inputs": [GIVEN], "outputs": "night"}, "`outputs`"),
    ({"inputs": [GIVEN], "outputs": {"name": "night"}}, "`outputs`"),
    ({"inputs": [GIVEN], "outputs": [{"name": ["night"]}]}, "`outputs`"),
    ({**OF_PIXELS, "inputs": [{**FLAT, "data": [1, 2, 300]}]}, "range of uint8"),
    ({**OF_PIXELS, "inputs": [{**FLAT, "data": [1, 2, "3"]}]}, "type uint8"),
    ({**OF_PIXELS, "inputs": [{**FLAT, "shape": [1, 1, 3, 1]}]}, "the shape"),
]


def test_values_are_strict(street):
    for bodies, path in ((WRONG_ROWS, V1 + ":predict"), (WRONG_TENSORS, V2 + "/infer")):
        for body, message in bodies:
            answer = predict(street.url, body, path)
            assert answer.status_code == 400, body
            assert set(answer.json()) - {"reasons"} == {"error"}
            assert re.search(message, answer.json()["error"]), answer.json()["error"]


def nested(depth, name="pixels"):
    return f'{{"signature_name": "{name}", "instances": {"[" * depth}{"]" * depth}}}'.encode()


HOSTILE = [
    *(b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"a": 1}x', b"a=1&b=2", noise(2)),
    *(nested(70), nested(900), nested(900, "serving_default"), b"[" * 100_000),
    b'{"a":' * 900 + b"1" + b"}" * 900,
    b'{"signature_name": "pixels", "instances": [[[[' + b"9" * 4000 + b"]]]]}",
    b'{"signature_name": "pixels", "instances": [[[[Infinity, 1, 2]]]]}',
    b'{"signature_name": "pixels", "instances": [[[[1e999, 1, 2]]]]}',
    b'{"signature_name": "\\ud800", "instances": [1]}',
    b'{"\\ud800": 1, "instances": [1]}',
    b'{"instances": [{"b64": 1}]}',
]


def test_hostile_json_is_refused_in_a_sentence(street):
    for body in HOSTILE:
        for path in (V1 + ":predict", V2 + "/infer"):
            answer = requests.post(street.url + path, data=body, timeout=60)
            assert answer.status_code == 400, body[:100]
            assert 10 < len(answer.json()["error"]) < 600
    assert predict(street.url, {"instances": [X]}).status_code == 200


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_requests_share_a_call_and_a_damaged_image_costs_no_other_its_answer(
    cats, monkeypatch, kind
):
    """The headers of the image are whole, and the rest of it is zeros."""
    whole = noise(5, (60, 80), kind)
    cut = whole[: len(whole) // 2]
    data = [*GOOD, cut if kind == "GIF" else cut + bytes(len(whole) - len(cut)), *GOOD]
    inside, on = held(cats, monkeypatch)
    answers = {}

    def client(number):
        body = {"instances": [b64(data[number])]}
        answers[number] = predict(cats.url, body, "/v1/models/cats:predict")

    clients = [threading.Thread(target=client, args=(number,)) for number in range(len(data))]
    clients[0].start()
    assert inside.wait(30)
    for one in clients[1:]:
        one.start()
    while cats.server.batcher.waiting < len(data) - 1:
        requests.get(cats.url + "/v2/health/live", timeout=60)
    on.set()
    for one in clients:
        one.join()
    assert [answers[n].status_code for n in range(len(data))] == [200] * 4 + [400] + [200] * 4
    assert "`instances`[0]: " in answers[4].json()["error"]
    for number in range(4):
        first, second = (answers[n].json()["predictions"][0]["cat"] for n in (number, number + 5))
        assert first == pytest.approx(second, abs=1e-5)
