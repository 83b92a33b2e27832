"""`kerasmtl serve`: connections that stall, heads without end, and bounds of pixels."""

import json
import socket

import pytest
import requests

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from served import b64, mean_of, picture, predict, save_pictures, serving

V1 = "/v1/models/street"
X = b64(picture(1))
BODY = json.dumps({"instances": [X]}).encode()


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    base = tmp_path_factory.mktemp("street")
    save_pictures(base)
    with serving(base) as running:
        yield running


def post(running, data):
    return requests.post(f"{running.url}{V1}:predict", data=data, timeout=60)


# ---------------------------------------------------------------- connections


def test_a_connection_serves_many_requests_and_errors_leave_it_open(street):
    with requests.Session() as session:
        first = session.get(street.url + "/v2/health/live", timeout=60)
        for path, data in (("/v2/health/live", None), (V1 + ":predict", b"{"), ("/nix", b"x" * 99)):
            method = "POST" if data else "GET"
            answer = session.request(method, street.url + path, data=data, timeout=60)
            assert answer.headers.get("Connection") != "close"
        assert first.status_code == 200 and len(session.get(street.url, timeout=60).text) > 1000


def received(connection):
    """What arrives until the server hangs up."""
    found = b""
    while chunk := connection.recv(2**16):
        found += chunk
    return found


def test_a_head_that_does_not_end_is_hung_up_on(tmp_path):
    save_pictures(tmp_path)
    head = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"
    with serving(tmp_path, read=0.2) as running:
        for sent, status in ((b"", b""), (head, b""), (head + b"\r\n" + head, b"HTTP/1.1 200")):
            with socket.create_connection(("127.0.0.1", running.port), 30) as slow:
                slow.sendall(sent)
                answer = received(slow)
                assert answer.startswith(status) and bool(answer) == bool(status)
        assert post(running, BODY).status_code == 200


@pytest.mark.parametrize(
    "head", [b"GET /" + b"a" * 2**20, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 2**18]
)
def test_a_head_that_is_too_large_is_refused(street, head):
    with socket.create_connection(("127.0.0.1", street.port), 30) as large:
        try:
            large.sendall(head)
            answer = received(large)
        except OSError:  # hung up on while still sending
            answer = b"HTTP/1.1 400"
    assert answer.startswith(b"HTTP/1.1 400")
    assert post(street, BODY).status_code == 200


def test_half_a_head_and_a_client_that_leaves_stop_nobody(street):
    with socket.create_connection(("127.0.0.1", street.port), 30) as half:
        half.sendall(b"POST /v1/models/street:predict HTTP/1.1\r\nHost:")
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", street.port), 30) as leaving:
                leaving.sendall(
                    b"POST /v1/models/street:predict HTTP/1.1\r\nHost: x\r\n"
                    b"Content-Length: 100\r\n\r\n{"
                )
        assert post(street, BODY).status_code == 200
    while street.server.busy:
        requests.get(street.url + "/v2/health/live", timeout=60)


# ---------------------------------------------------------------- pixels


def test_the_model_s_own_bound_of_pixels_holds_and_the_lower_one_wins(tmp_path):
    folder = save_pictures(tmp_path)
    about = folder / "assets.extra" / "model.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "max_pixels": 500}))
    large, small = b64(picture(1, (30, 40))), b64(picture(1, (20, 20)))
    for given, most in ((None, 500), (5000, 500), (450, 450)):
        with serving(tmp_path, max_pixels=given) as running:
            answer = predict(running.url, {"instances": [small, large]})
            assert f"more than the {most} allowed" in answer.json()["error"]
            assert predict(running.url, {"instances": [small]}).status_code == 200
    about.write_text(json.dumps({**json.loads(about.read_text()), "max_pixels": "many"}))
    with pytest.raises(ValueError, match="wrong max_pixels.*'many'"), serving(tmp_path):
        pass


def test_a_low_bound_of_pixels_refuses_requests_and_not_the_version(tmp_path):
    golden = save_pictures(tmp_path) / "assets.extra" / "golden"
    golden.mkdir()
    answer = {"predictions": [{"night": float(mean_of(picture(1)))}]}
    (golden / "rest_row.request.json").write_bytes(BODY)
    (golden / "rest_row.response.json").write_text(json.dumps(answer))
    with serving(tmp_path, max_pixels=100) as running:
        assert predict(running.url, {"instances": [X]}).status_code == 400
