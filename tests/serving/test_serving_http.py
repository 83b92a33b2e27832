"""`kerasmtl serve` as HTTP: packed bodies, methods, names of requests, metrics, hostile JSON."""

import gzip
import json
import logging
import re
import threading

import pytest
import requests

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from served import b64, held, picture, predict, save_pictures, serving, tensor

V1, V2 = "/v1/models/street", "/v2/models/street"
X = b64(picture(1))
BODY = json.dumps({"instances": [X]}).encode()
MOST = 2**18


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    base = tmp_path_factory.mktemp("street")
    save_pictures(base)
    with serving(base, max_body=MOST) as running:
        yield running


def post(running, data, path=V1 + ":predict", **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(running.url + path, data=data, headers=named, timeout=60)


# ---------------------------------------------------------------- packed bodies


@pytest.mark.parametrize("pieces", [1, 2])
def test_gzip_is_unpacked(street, pieces):
    half = len(BODY) // pieces
    packed = b"".join(gzip.compress(BODY[i : i + half]) for i in range(0, len(BODY), half))
    for coding in ("gzip", "GZIP", "x-gzip"):
        answer = post(street, packed, Content_Encoding=coding)
        assert answer.json() == post(street, BODY).json()


@pytest.mark.parametrize(
    "data, coding, status, message",
    [
        (gzip.compress(bytes(100 * MOST)), "gzip", 413, f"too large. Expected at most {MOST}"),
        (gzip.compress(BODY)[:-9], "gzip", 400, "cut off"),
        (b"", "gzip", 400, "cut off"),
        (BODY, "gzip", 400, "no gzip"),
        (gzip.compress(BODY) + b"more", "gzip", 400, "no gzip"),
        (BODY, "br", 415, "Expected gzip. Received: 'br'"),
        (gzip.compress(BODY), "gzip, gzip", 415, "Expected gzip"),
        (gzip.compress(BODY), "identity", 400, "no JSON"),
    ],
    ids=["bomb", "cut", "empty", "plain", "tail", "brotli", "twice", "unsaid"],
)
def test_bodies_packed_wrongly_are_refused(street, data, coding, status, message):
    answer = post(street, data, Content_Encoding=coding)
    assert answer.status_code == status and message in answer.json()["error"]
    assert post(street, BODY).status_code == 200


# ---------------------------------------------------------------- methods and paths


@pytest.mark.parametrize(
    "method, path, status, allowed",
    [
        ("HEAD", "/", 200, None),
        ("HEAD", V1, 200, None),
        ("OPTIONS", V1 + ":predict", 405, "POST"),
        ("GET", V1 + ":predict", 405, "POST"),
        ("GET", V2 + "/infer", 405, "POST"),
        ("PUT", V1, 405, "GET"),
        ("POST", "/metrics", 405, "GET"),
        ("POST", V1 + ":regress", 404, None),
        ("GET", "/%3Cscript%3E", 404, None),
    ],
)
def test_methods(street, method, path, status, allowed):
    answer = requests.request(method, street.url + path, timeout=60)
    assert answer.status_code == status
    if allowed:
        assert allowed in answer.headers["Allow"]
    if method == "HEAD":
        assert answer.content == b""
    elif status != 200:
        assert answer.headers["Content-Type"] == "application/json" and answer.json()["error"]


def test_the_binary_extension_is_refused_by_its_name(street):
    head = json.dumps({"inputs": [{"name": "pixels", "shape": [1], "datatype": "UINT8"}]}).encode()
    data = head + bytes(3)
    answer = post(street, data, V2 + "/infer", Inference_Header_Content_Length=str(len(head)))
    assert answer.status_code == 400
    assert "binary tensor extension is not spoken" in answer.json()["error"]


def test_classify_says_what_there_is_instead(street):
    for verb in ("classify", "regress"):
        answer = post(street, b'{"examples": []}', f"{V1}:{verb}")
        assert "Expected /v1/models/street:predict" in answer.json()["error"]


# ---------------------------------------------------------------- hostile JSON


def nested(depth):
    return b'{"signature_name": "pixels", "instances": ' + b"[" * depth + b"]" * depth + b"}"


HOSTILE = {
    "70 deep": nested(70),
    "900 deep": nested(900),
    "objects": b'{"a":' * 900 + b"1" + b"}" * 900,
    "long number": b'{"signature_name": "pixels", "instances": [[[[' + b"9" * 9999 + b"]]]]}",
    "infinite": b'{"signature_name": "pixels", "instances": [[[[Infinity, 1, 2]]]]}',
    "negative": b'{"signature_name": "pixels", "instances": [[[[-1, 1, 2]]]]}',
    "1e999": b'{"signature_name": "pixels", "instances": [[[[1e999, 1, 2]]]]}',
    "utf-16": '{"instances": 1}'.encode("utf-16"),
    "lone surrogate": b'{"signature_name": "\\ud800", "instances": [1]}',
    "surrogate key": b'{"\\ud800": 1, "instances": [1]}',
    "number as key": b'{"instances": [{"b64": 1}]}',
    "inputs null": b'{"inputs": null}',
    "null": b"null",
    "form": b"a=1&b=2",
    "picture": picture(2),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_refused_in_a_sentence(street, name):
    for path in (V1 + ":predict", V2 + "/infer"):
        answer = post(street, HOSTILE[name], path)
        assert answer.status_code == 400, answer.text
        assert 10 < len(answer.json()["error"]) < 600
    assert post(street, BODY).status_code == 200


def test_missing_and_infinite_numbers_are_written_as_tensorflow_serving_does():
    from kerasmtl.serving.app import answer

    assert answer({"a": [float("nan"), float("inf")]}).body == b'{"a":[NaN,Infinity]}'


# ---------------------------------------------------------------- names of requests


def test_each_request_has_a_name_its_own_or_a_new_one(street):
    assert post(street, BODY, X_Request_ID="mine-7").headers["X-Request-ID"] == "mine-7"
    made = {post(street, BODY, X_Request_ID=given).headers["X-Request-ID"] for given in ("", "a b")}
    assert len(made) == 2 and all(re.fullmatch("[0-9a-f]{32}", name) for name in made)
    refused = requests.get(street.url + "/nothing", headers={"X-Request-ID": "x"}, timeout=60)
    assert refused.headers["X-Request-ID"] == "x"


def test_our_own_failure_has_its_name_in_answer_and_log(street, monkeypatch, caplog):
    monkeypatch.setattr(street.versions.get(), "call", lambda *_: 1 / 0)
    answer = post(street, BODY, X_Request_ID="seven")
    assert answer.status_code == 500 and "request seven" in answer.json()["error"]
    assert answer.headers["X-Request-ID"] == "seven"
    (record,) = [record for record in caplog.records if "seven" in record.getMessage()]
    assert record.exc_info[0] is ZeroDivisionError


def test_the_access_log_is_one_line_whatever_was_asked(street, caplog):
    with caplog.at_level(logging.INFO, "kerasmtl.serving.access"):
        post(street, BODY, X_Request_ID="one")
        requests.get(street.url + "/a%0Ab%20%1B[31m", headers={"X-Request-ID": "two"}, timeout=60)
        # A line is written after its answer, and so may that of an earlier test be.
        while not {"one", "two"} <= (lines := _by_name(caplog.records)).keys():
            requests.get(street.url + "/v2/health/live", timeout=60)
    predicted = r"127\.0\.0\.1 POST /v1/models/street:predict 200 [\d.]+ ms one"
    assert re.fullmatch(predicted, lines["one"])
    assert re.fullmatch(r"127\.0\.0\.1 GET /a%0Ab%20%1B%5B31m 404 [\d.]+ ms two", lines["two"])


def _by_name(records):
    """The lines of the log by the name of the request, with which they end."""
    return {line.rsplit(" ", 1)[-1]: line for line in (each.getMessage() for each in records)}


# ---------------------------------------------------------------- metrics


def metrics(running, path="/metrics"):
    """By name and labels, the value."""
    from prometheus_client import parser

    answer = requests.get(running.url + path, timeout=60)
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_requests_are_counted_by_status_and_batches_by_size(tmp_path):
    save_pictures(tmp_path)
    with serving(tmp_path) as running:
        predict(running.url, {"instances": [X] * 3})
        predict(running.url, tensor(picture(2)), V2 + "/infer")
        predict(running.url, {"instances": []})
        for number in range(3):
            requests.get(f"{running.url}/random/{number}", timeout=60)
        found = metrics(running)
        again = metrics(running, "/monitoring/prometheus/metrics")

    def count(endpoint, code):
        return found["kerasmtl_requests_total", ("code", code), ("endpoint", endpoint)]

    assert count("predict", "200") == count("infer", "200") == count("predict", "400") == 1
    assert count("unknown", "404") == 3  # one series, however many paths are tried
    assert found["kerasmtl_request_seconds_count", ("endpoint", "predict")] == 2
    assert found["kerasmtl_batch_examples_sum",] == 4
    assert found["kerasmtl_batch_seconds_count",] == found["kerasmtl_batch_examples_count",] == 2
    assert found["kerasmtl_examples_waiting",] == found["kerasmtl_requests_in_progress",] == 0
    assert found["kerasmtl_version_served", ("model", "street"), ("version", "1")] == 1
    assert again.keys() >= found.keys()


def test_what_waits_is_seen_while_it_waits(tmp_path, monkeypatch):
    save_pictures(tmp_path)
    with serving(tmp_path, batch_wait=0) as running:
        inside, on = held(running, monkeypatch)
        clients = [threading.Thread(target=post, args=(running, BODY)) for _ in range(4)]
        clients[0].start()
        assert inside.wait(30)
        for client in clients[1:]:
            client.start()
        while metrics(running)["kerasmtl_examples_waiting",] < 3:
            pass
        assert metrics(running)["kerasmtl_requests_in_progress",] == 4
        on.set()
        for client in clients:
            client.join()


def test_two_servers_in_a_process_count_for_themselves(street, tmp_path):
    save_pictures(tmp_path)
    with serving(tmp_path) as other:
        assert ("kerasmtl_requests_total", ("code", "200"), ("endpoint", "predict")) not in metrics(
            other
        )
