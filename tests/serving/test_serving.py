"""`kerasmtl serve`: two protocols over HTTP, and everything that a request can do wrong."""

import json
import re
import socket
import struct
import threading
import zlib

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

from served import CLASSES, b64, held, mean_of, picture, predict, save_pictures, serving, tensor

from kerasmtl.serving.errors import BadRows

GOOD = [picture(1), picture(2, kind="JPEG"), picture(3, (1, 1)), picture(4, kind="GIF")]
V1, V2 = "/v1/models/street", "/v2/models/street"


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    base = tmp_path_factory.mktemp("street")
    save_pictures(base, 1)
    save_pictures(base, 3, shift=0.25)
    with serving(base, max_body=2**20, max_pixels=100_000) as running:
        yield running


def get(running, path):
    answer = requests.get(running.url + path, timeout=60)
    return answer.status_code, answer.json()


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((24, 24, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
    return keras.Model(inputs, keras.layers.Dense(2, activation="sigmoid")(pooled))


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    base = tmp_path_factory.mktemp("made") / "cats"
    kt.export_saved_model(trained, base, ["cat", "größe 2"])
    return base


@pytest.fixture(scope="module")
def cats(exported):
    with serving(exported, "cats", batch_wait=0.05) as running:
        yield running


def test_both_protocols_equal_the_model(trained, cats):
    images = [resize_image(decode_image(tf.constant(data)), (24, 24)) for data in GOOD]
    expected = trained.predict(np.stack(images), verbose=0)
    instances = [{"image_bytes": b64(data)} for data in GOOD]
    row = predict(cats.url, {"instances": instances}, "/v1/models/cats:predict").json()
    received = [[one["cat"], one["größe 2"]] for one in row["predictions"]]
    np.testing.assert_allclose(received, expected, atol=1e-5)
    body = {"inputs": {"image_bytes": [b64(data) for data in GOOD]}}
    column = predict(cats.url, body, "/v1/models/cats/versions/1:predict").json()["outputs"]
    np.testing.assert_allclose(column["cat"], expected[:, 0], atol=1e-5)
    answer = predict(cats.url, tensor(*GOOD), "/v2/models/cats/infer").json()
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert outputs["cat"]["shape"] == [4] and outputs["cat"]["datatype"] == "FP32"
    np.testing.assert_allclose(outputs["größe 2"]["data"], expected[:, 1], atol=1e-5)


@pytest.mark.parametrize(
    "columns", [["age", "body weight", "größe"], [f"c{i}" for i in range(101)]]
)
def test_a_table_is_served_with_null_for_what_is_missing(columns, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((len(columns),))
    known = keras.layers.Lambda(lambda x: keras.ops.where(keras.ops.isnan(x), 0.0, x))(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="sigmoid")(known))
    kt.export_saved_model(model, tmp_path / "t", ["a", "b"], columns=columns)
    rows = np.random.default_rng(0).normal(size=(3, len(columns))).astype("float32")
    rows[1, 1] = np.nan
    expected = model.predict(rows, verbose=0)
    nulls = [[None if np.isnan(x) else float(x) for x in row] for row in rows]
    with serving(tmp_path / "t", "t") as running:
        names = sorted(running.versions.get().signatures["serving_default"].inputs)
        body = {"signature_name": "matrix", "instances": nulls}
        found = predict(running.url, body, "/v1/models/t:predict").json()["predictions"]
        np.testing.assert_allclose([[r["a"], r["b"]] for r in found], expected, atol=1e-5)
        given = {"name": "features", "shape": list(rows.shape), "datatype": "FP32"}
        body = {
            "parameters": {"signature_name": "matrix"},
            "inputs": [{**given, "data": [x for row in nulls for x in row]}],
            "outputs": [{"name": "b"}],
        }
        (output,) = predict(running.url, body, "/v2/models/t/infer").json()["outputs"]
        np.testing.assert_allclose(output["data"], expected[:, 1], atol=1e-5)
        if len(columns) == 3:
            assert names == sorted(kt.export.column_inputs(columns).values())
            inputs = dict(zip(kt.export.column_inputs(columns).values(), nulls[1], strict=True))
            one = predict(running.url, {"instances": [inputs]}, "/v1/models/t:predict").json()
            np.testing.assert_allclose(one["predictions"][0]["a"], expected[1, 0], atol=1e-5)
        wrong = predict(running.url, {"instances": [nulls[0][:-1]]}, "/v1/models/t:predict")
        assert wrong.status_code == 400


def test_decisions_and_classes_come_along(street):
    data = picture(5)
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
    assert outputs["night_decision"] == {
        "name": "night_decision",
        "shape": [2],
        "datatype": "INT32",
        "data": [1, 1],
    }


def test_an_output_that_is_alone_has_no_name(street):
    pixels = np.full((1, 2, 4, 3), 9).tolist()
    row = predict(street.url, {"signature_name": "pixels", "instances": pixels})
    assert row.json() == {"predictions": [9.0]}
    column = predict(street.url, {"signature_name": "pixels", "inputs": {"pixels": pixels}})
    assert column.json() == {"outputs": [9.0]}


def test_older_versions_have_their_own_paths(street):
    data = picture(6)
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


def test_metadata_is_what_tensorflow_serving_parses(street):
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


def bomb():
    """A PNG whose header promises 50 000 × 50 000 pixels."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "empty"),
        (b"hello", "not an image: no JPEG, PNG, GIF, BMP or WebP"),
        (picture(7, (60, 60), "JPEG")[:1500], "truncated"),
        (picture(7, (60, 60), "PNG")[:1500], "truncated|damaged|unreadable"),
        (picture(7, (400, 400)), "too large: 400 × 400 pixels, more than the 100,000 allowed"),
        (bomb(), "pixels"),
        (picture(7, kind="TIFF"), "not an image"),
    ],
    ids=["empty", "text", "cut JPEG", "cut PNG", "large", "bomb", "TIFF"],
)
def test_a_bad_picture_is_named_by_its_number(street, data, message):
    assert len(data) < 2**20
    for path, body in (
        (V1 + ":predict", {"instances": [b64(GOOD[0]), b64(data), b64(GOOD[1])]}),
        (V1 + ":predict", {"inputs": [b64(GOOD[0]), b64(data)]}),
        (V2 + "/infer", tensor(GOOD[0], data)),
    ):
        answer = predict(street.url, body, path)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert "[1]: " in error and "[0]: " not in error and "[2]: " not in error
        assert re.search(message, error)
        assert [*answer.json()["reasons"]] == ["1"]
        assert answer.json()["reasons"]["1"] in error
    assert predict(street.url, {"instances": [b64(GOOD[0])]}).status_code == 200


X = b64(GOOD[0])
WRONG_ROWS = [
    ({"instances": []}, "`instances` is empty"),
    ({"inputs": {"image_bytes": []}}, "empty"),
    ({}, "other keys"),
    ({"instances": [X], "inputs": [X]}, "other keys"),
    ({"instances": [X], "batch": 3}, "other keys"),
    ({"instances": "abc"}, "no list"),
    ({"instances": [{"picture": X}]}, r"`instances`\[0\]: expected the keys \['image_bytes'\]"),
    ({"inputs": {"picture": [X]}}, "other keys"),
    ({"instances": [7]}, r"`instances`\[0\] is no string"),
    ({"instances": [{"b64": "###"}]}, r"`instances`\[0\] is no base64"),
    ({"instances": [{"b64": 7}]}, "no base64"),
    ({"instances": ["\ud800"]}, "no valid text"),
    ({"instances": [[X]]}, "no list of strings"),
    ({"signature_name": "nix", "instances": [X]}, "signature is unknown. Expected one of pixels"),
    ({"signature_name": ["x"], "instances": [X]}, "signature is unknown"),
    ({"signature_name": "pixels", "instances": [[[[1, 2]]]]}, "another shape"),
    ({"signature_name": "pixels", "instances": [[[[1, 2, 256]]]]}, "out of range"),
    ({"signature_name": "pixels", "instances": [[[[1, 2, 0.5]]]]}, "another type"),
    ({"signature_name": "pixels", "instances": [[[["1", "2", "3"]]]]}, "another type"),
    ({"signature_name": "pixels", "instances": [[[[1, 2, 3]]], [[[1, 2]]]]}, "unequal lengths"),
    ({"signature_name": "pixels", "instances": [[[[1, None, 3]]]]}, "another type"),
    ({"signature_name": "pixels", "instances": [{"a": 1}]}, "expected the keys"),
]


@pytest.mark.parametrize("body, message", WRONG_ROWS)
def test_what_tensorflow_serving_would_refuse_is_refused(street, body, message):
    answer = predict(street.url, body)
    assert answer.status_code == 400
    assert set(answer.json()) - {"reasons"} == {"error"}
    assert re.search(message, answer.json()["error"])


GIVEN = tensor(GOOD[0])["inputs"][0]
PIXELS = {"name": "pixels", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [1, 2, 3]}
OF_PIXELS = {"parameters": {"signature_name": "pixels"}}
WRONG_TENSORS = [
    ({}, "no list of tensors"),
    ({"inputs": []}, "other names"),
    ({"inputs": [{**GIVEN, "name": "x"}]}, "other names"),
    ({"inputs": [GIVEN, GIVEN]}, "other names"),
    ({"inputs": [{**GIVEN, "datatype": "FP32"}]}, "another datatype. Expected BYTES"),
    ({"inputs": [{**GIVEN, "shape": [2]}]}, "1 values. Expected as many as shape"),
    ({"inputs": [{**GIVEN, "shape": [1, 1]}]}, "another shape"),
    ({"inputs": [{**GIVEN, "shape": [-1]}]}, "no shape"),
    ({"inputs": [{**GIVEN, "shape": None}]}, "no shape"),
    ({"inputs": [{**GIVEN, "shape": [0], "data": []}]}, "batch is empty"),
    ({"inputs": [{**GIVEN, "data": None}]}, "no data"),
    ({"inputs": [{**GIVEN, "data": [5]}]}, "no string"),
    ({"inputs": [{**GIVEN, "data": ["#"]}]}, "no base64"),
    ({"inputs": [{**GIVEN, "parameters": {"content_type": "pd"}}]}, "takes pictures"),
    ({"inputs": [{**GIVEN, "parameters": {}}]}, "Expected base64.*content_type"),
    ({"inputs": [GIVEN], "parameters": {"signature_name": "nix"}}, "signature is unknown"),
    ({"inputs": [GIVEN], "parameters": []}, "no object"),
    ({"inputs": [GIVEN], "outputs": [{"name": "nix"}]}, "asks for others"),
    ({"inputs": [GIVEN], "outputs": "night"}, "asks for others"),
    ({"inputs": [GIVEN], "outputs": 7}, "asks for others"),
    ({"inputs": [GIVEN], "outputs": {"name": "night"}}, "asks for others"),
    ({"inputs": [GIVEN], "outputs": [{"name": ["night"]}]}, "asks for others"),
    ({**OF_PIXELS, "inputs": [{**PIXELS, "data": [1, 2, 300]}]}, "out of range"),
    ({**OF_PIXELS, "inputs": [{**PIXELS, "data": [1, 2, "3"]}]}, "another type"),
    ({**OF_PIXELS, "inputs": [{**PIXELS, "shape": [1, 1, 3, 1]}]}, "another shape"),
]


@pytest.mark.parametrize("body, message", WRONG_TENSORS)
def test_what_the_open_inference_protocol_would_refuse_is_refused(street, body, message):
    answer = predict(street.url, body, V2 + "/infer")
    assert answer.status_code == 400
    assert re.search(message, answer.json()["error"])


def test_nested_and_flat_data_mean_the_same(street):
    nested = {**PIXELS, "data": [[[[1, 2, 3]]]]}
    answers = [
        predict(street.url, {**OF_PIXELS, "inputs": [given]}, V2 + "/infer").json()["outputs"]
        for given in (PIXELS, nested)
    ]
    assert answers[0] == answers[1] and answers[0][0]["data"] == [2.0]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"a": 1}x'])
def test_a_body_that_is_no_json_object(street, body):
    for path in (V1 + ":predict", V2 + "/infer"):
        answer = requests.post(street.url + path, data=body, timeout=60)
        assert answer.status_code == 400
        assert "JSON" in answer.json()["error"]


@pytest.mark.parametrize(
    "method, path, code",
    [
        ("GET", "/v1/models/other", 404),
        ("POST", "/v1/models/other:predict", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("GET", V1 + "/versions/2", 404),
        ("POST", V1 + "/versions/2:predict", 404),
        ("GET", V2 + "/versions/99999999999999999999/ready", 404),
        ("GET", V1 + "/versions/x", 404),
        ("GET", V1 + ":predict", 405),
        ("POST", V1 + ":classify", 404),
        ("POST", "/", 405),
        ("GET", "/v3", 404),
    ],
)
def test_unknown_models_versions_and_paths(street, method, path, code):
    answer = requests.request(method, street.url + path, json={"instances": [X]}, timeout=60)
    assert answer.status_code == code
    assert answer.json()["error"]


def chunks(count):
    for _ in range(count):
        yield b" " * 2**16


@pytest.mark.parametrize("body", [b" " * (2**20 + 1), b" " * 2**23, chunks(17), chunks(99)])
def test_a_body_that_is_too_large(street, body):
    answer = requests.post(street.url + V1 + ":predict", data=body, timeout=60)
    assert answer.status_code == 413
    assert "too large" in answer.json()["error"]


def test_a_body_that_does_not_arrive(tmp_path):
    save_pictures(tmp_path)
    with serving(tmp_path, read=0.05) as running:
        with socket.create_connection(("127.0.0.1", running.port), 30) as slow:
            head = f"POST {V1}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{"
            slow.sendall(head.encode())
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
        assert predict(running.url, {"instances": [X]}).status_code == 200


def test_more_than_the_queue_holds_is_put_off(street, tmp_path, monkeypatch):
    save_pictures(tmp_path)
    with serving(tmp_path, max_queue=3) as running:
        inside, on = held(running, monkeypatch)
        codes = []
        clients = [
            threading.Thread(
                target=lambda: codes.append(predict(running.url, {"instances": [X]}).status_code)
            )
            for _ in range(3)
        ]
        for client in clients:
            client.start()
        assert inside.wait(30)
        while running.server.busy < 3:
            requests.get(running.url + "/v2/health/live", timeout=60)  # is answered all the while
        answer = predict(running.url, {"instances": [X]})
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1" and "busy" in answer.json()["error"]
        on.set()
        for client in clients:
            client.join()
        assert codes == [200] * 3
        assert predict(running.url, {"instances": [X]}).status_code == 200
        assert running.server.busy == 0


def test_requests_share_a_call_and_a_damaged_picture_spoils_no_answer(tmp_path, monkeypatch):
    save_pictures(tmp_path)
    pictures = [picture(n, (40, 40), "JPEG") for n in range(12)]
    pictures[5] = pictures[5][:900]  # its header is whole
    with serving(tmp_path, batch_wait=0) as running:
        served = running.versions.get()
        inside, on, sizes = threading.Event(), threading.Event(), []
        call = served.call

        def counting(signature, inputs):
            sizes.append(len(inputs["image_bytes"]))
            inside.set()
            assert on.wait(30)
            return call(signature, inputs)

        monkeypatch.setattr(served, "call", counting)
        answers = {}

        def client(number):
            body = {"instances": [b64(pictures[number])]}
            answers[number] = predict(running.url, body)

        clients = [threading.Thread(target=client, args=(number,)) for number in range(12)]
        clients[0].start()
        assert inside.wait(30)
        for one in clients[1:]:
            one.start()
        while sum(waiting.rows for waiting in running.server.batcher._waiting.values()) < 11:
            requests.get(running.url + "/v2/health/live", timeout=60)
        on.set()
        for one in clients:
            one.join()
    assert sizes[:2] == [1, 11] and len(sizes) < 12
    codes = [answers[number].status_code for number in range(12)]
    assert codes == [200] * 5 + [400] + [200] * 6
    assert "`instances`[0]: truncated" in answers[5].json()["error"]
    for number in set(range(12)) - {5}:
        night = answers[number].json()["predictions"][0]["night"]
        np.testing.assert_allclose(night, mean_of(pictures[number]), atol=1e-2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_pictures_damaged_inside_fail_alone(cats, kind):
    """Headers that are whole, in an exported model's own words."""
    whole = picture(5, (60, 80), kind)
    cut = whole[: len(whole) // 2]
    damaged = cut + bytes(len(whole) - len(cut)) if kind in ("JPEG", "PNG") else cut
    answers = {}

    def client(number):
        body = {"instances": [b64(damaged if number == 2 else GOOD[0])]}
        answers[number] = predict(cats.url, body, "/v1/models/cats:predict")

    clients = [threading.Thread(target=client, args=(number,)) for number in range(5)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    assert [answers[number].status_code for number in range(5)] == [200, 200, 400, 200, 200]
    said = answers[2].json()["error"]
    assert re.search(r"\[0\]: (truncated|unreadable|damaged|not an image|not a picture)", said), (
        said
    )


def test_an_export_says_which_picture_is_bad(cats):
    data = np.array([GOOD[0], GOOD[1], picture(5, (60, 80), "JPEG")[:1500], GOOD[2]], object)
    with pytest.raises(BadRows) as error:
        cats.versions.get().call("serving_default", {"image_bytes": data})
    assert error.value.reasons == {2: "truncated"}


def test_a_failing_model_is_our_fault_and_the_server_goes_on(tmp_path, monkeypatch):
    save_pictures(tmp_path)
    with serving(tmp_path) as running:
        with monkeypatch.context() as patch:
            patch.setattr(running.versions.get(), "call", lambda *_: 1 / 0)
            answer = predict(running.url, {"instances": [X]})
            assert answer.status_code == 500
            assert "ZeroDivision" not in answer.text and set(answer.json()) == {"error"}
        assert predict(running.url, {"instances": [X]}).status_code == 200


def test_without_model_json_everything_comes_from_the_signatures(tmp_path):
    folder = save_pictures(tmp_path, description=False)
    with serving(tmp_path) as running:
        assert [task["name"] for task in running.versions.get().tasks] == ["night", "sign"]
        one = predict(running.url, {"instances": [X]}).json()["predictions"][0]
        assert set(one) == {"night", "night_decision", "sign", "sign_decision"}
    (folder / "assets.extra").mkdir()
    (folder / "assets.extra" / "model.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(ValueError, match="Expected format 1. Received: 2"):
        with serving(tmp_path):
            pass
