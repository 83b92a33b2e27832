"""Bounds, who pays for whom, what is logged and counted, and `kerasmtl serve` as a process."""

import asyncio
import contextlib
import doctest
import importlib
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from types import SimpleNamespace

import pytest
import requests
from click.testing import CliRunner

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from served import b64, environment, held, noise, predict, save_image_model, serving, tensor

from kerasmtl.cli.serve import serve
from kerasmtl.serving import server
from kerasmtl.serving.errors import RequestError

X = b64(noise(1))
V1, V2 = "/v1/models/street", "/v2/models/street"
COMMAND = [sys.executable, "-c", "from kerasmtl.cli.serve import serve; serve()"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "my street"
    save_image_model(folder)
    return folder


@pytest.fixture(scope="module")
def street(base):
    with serving(base, max_body=1) as running:
        yield running


@pytest.mark.parametrize(
    "module", "batch_predict client config errors predictor protocols server".split()
)
def test_the_examples_run(module):
    found = importlib.import_module(f"kerasmtl.serving.{module}")
    assert doctest.testmod(found).failed == 0


@pytest.mark.parametrize(
    "method, path, code, allowed",
    [
        ("HEAD", V1, 200, None),
        ("GET", "/v1/models/other", 404, None),
        ("POST", "/v1/models/other:predict", 404, None),
        ("POST", "/v2/models/other/infer", 404, None),
        ("POST", V1 + "/versions/2:predict", 404, None),
        ("GET", V2 + "/versions/99999999999999999999/ready", 404, None),
        ("GET", V1 + "/versions/x", 404, None),
        ("GET", V1 + ":predict", 405, "POST"),
        ("GET", V2 + "/infer", 405, "POST"),
        ("POST", V1 + ":classify", 404, None),
        ("POST", "/metrics", 405, "GET"),
        ("GET", "/%3Cscript%3E", 404, None),
    ],
)
def test_unknown_models_versions_paths_and_methods(street, method, path, code, allowed):
    answer = requests.request(method, street.url + path, json={"instances": [X]}, timeout=60)
    assert answer.status_code == code
    assert allowed is None or allowed in answer.headers["Allow"]
    assert answer.content == b"" if method == "HEAD" else answer.json()["error"]


# ------------------------------------------------------------------ bounds, and who pays for whom


def chunks(count):
    for _ in range(count):
        yield b" " * 2**16


@pytest.mark.parametrize("body", [b" " * (2**20 + 1), b" " * 2**23, chunks(17), chunks(99)])
def test_a_body_that_is_too_large(street, body):
    with requests.Session() as session:
        answer = session.post(street.url + V1 + ":predict", data=body, timeout=60)
        assert answer.status_code == 413 and f"{2**20} bytes" in answer.json()["error"]
        assert session.get(street.url + "/v2/health/live", timeout=60).status_code == 200


def test_a_full_queue_is_answered_with_503(tmp_path, monkeypatch):
    save_image_model(tmp_path)
    with serving(tmp_path, max_queue=3) as running:
        inside, on = held(running, monkeypatch)
        codes = []

        def client():
            codes.append(predict(running.url, {"instances": [X]}).status_code)

        clients = [threading.Thread(target=client) for _ in range(3)]
        for one in clients:
            one.start()
        assert inside.wait(30)
        while running.server.busy < 3:
            requests.get(running.url + "/v2/health/live", timeout=60)  # is answered all the while
        answer = predict(running.url, {"instances": [X]})
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1" and "busy" in answer.json()["error"]
        gauge = "kerasmtl_requests_in_progress 3.0"
        assert gauge in requests.get(running.url + "/metrics", timeout=60).text
        on.set()
        for one in clients:
            one.join()
        assert codes == [200] * 3 and running.server.busy == 0


def test_clients_that_leave_stop_nobody(street):
    head = f"POST {V1}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{"
    with socket.create_connection(("127.0.0.1", street.port), 30) as half:
        half.sendall(head[:40].encode())
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", street.port), 30) as leaving:
                leaving.sendall(head.encode())
        assert predict(street.url, {"instances": [X]}).status_code == 200
    while street.server.busy:
        requests.get(street.url + "/v2/health/live", timeout=60)


def test_a_failing_model_gets_500_and_the_server_stays_up(street, monkeypatch, caplog):
    headers = {"X-Request-ID": "seven"}
    with monkeypatch.context() as patch:
        patch.setattr(street.versions.get(), "call", lambda *_: 1 / 0)
        url = street.url + V1 + ":predict"
        answer = requests.post(url, json={"instances": [X]}, headers=headers, timeout=60)
    assert answer.status_code == 500 and set(answer.json()) == {"error"}
    assert "ZeroDivision" not in answer.text and "request seven" in answer.text
    assert answer.headers["X-Request-ID"] == "seven"
    (record,) = [record for record in caplog.records if "seven" in record.getMessage()]
    assert record.exc_info[0] is ZeroDivisionError
    assert predict(street.url, {"instances": [X]}).status_code == 200


# ------------------------------------------------------------------ request ids, log, metrics


def test_each_request_has_an_id_its_own_or_a_new_one(street):
    def received(given):
        headers = {"X-Request-ID": given}
        return requests.get(street.url + "/nothing", headers=headers, timeout=60).headers[
            "X-Request-ID"
        ]

    assert received("mine-7") == "mine-7"
    made = {received(given) for given in ("", "a b")}
    assert len(made) == 2 and all(re.fullmatch("[0-9a-f]{32}", name) for name in made)


def test_the_access_log_has_one_line_whatever_was_asked(street, caplog):
    with caplog.at_level(logging.INFO, "kerasmtl.serving.access"):
        headers = {"X-Request-ID": "two"}
        requests.get(street.url + "/a%0Ab%20%1B[31m", headers=headers, timeout=60)
        while True:  # a line is written after its answer
            lines = [record.getMessage() for record in caplog.records]
            if found := [line for line in lines if line.endswith(" two")]:
                break
            requests.get(street.url + "/v2/health/live", timeout=60)
    assert re.fullmatch(r"127\.0\.0\.1 GET /a%0Ab%20%1B%5B31m 404 [\d.]+ ms two", found[0])


def test_requests_are_counted_by_status_and_batches_by_size(tmp_path):
    from prometheus_client import parser

    save_image_model(tmp_path, description=False)
    with serving(tmp_path) as running:
        predict(running.url, {"instances": [X] * 3})
        predict(running.url, tensor(noise(2)), V2 + "/infer")
        predict(running.url, {"instances": []})
        for number in range(3):
            requests.get(f"{running.url}/random/{number}", timeout=60)
        text = requests.get(f"{running.url}/monitoring/prometheus/metrics", timeout=60).text
        # Without model.json the tasks are known from the signature.
        assert [task["name"] for task in running.versions.get().tasks] == ["night", "sign"]
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }

    def count(endpoint, code):
        return found["kerasmtl_requests_total", ("code", code), ("endpoint", endpoint)]

    assert count("predict", "200") == count("infer", "200") == count("predict", "400") == 1
    assert count("unknown", "404") == 3  # one series, however many paths are tried
    assert found["kerasmtl_request_seconds_count", ("endpoint", "predict")] == 2
    assert found["kerasmtl_batch_examples_sum",] == 4
    assert found["kerasmtl_batch_seconds_count",] == found["kerasmtl_batch_examples_count",] == 2
    assert found["kerasmtl_examples_waiting",] == found["kerasmtl_requests_in_progress",] == 0
    assert found["kerasmtl_version_served", ("model", "street"), ("version", "1")] == 1


def test_a_model_json_of_another_format_is_refused(tmp_path):
    folder = save_image_model(tmp_path)
    (folder / "assets.extra" / "model.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(ValueError, match="format 1"), serving(tmp_path):
        pass


# ------------------------------------------------------------------ the process


@contextlib.contextmanager
def running(base, *options):
    command = [*COMMAND, str(base), "--port", "0", *options]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment()
        )

        def said():
            errors.seek(0)
            return errors.read()

        try:
            line = process.stdout.readline()
            assert line, said()
            port = int(re.search(r"http://127\.0\.0\.1:(\d+)", line)[1])
            yield SimpleNamespace(process=process, line=line, port=port, said=said)
        finally:
            process.kill()
            process.communicate()


def connected(port):
    """Whether the server listens."""
    try:
        socket.create_connection(("127.0.0.1", port), 30).close()
    except ConnectionError:  # reset, if the listener closed at that moment
        return False
    return True


def test_a_body_that_does_not_come_is_given_up(monkeypatch):
    async def never():
        yield b"{"
        await asyncio.Event().wait()

    monkeypatch.setattr(server, "ARRIVAL", 0)
    with pytest.raises(RequestError) as error:
        asyncio.run(server.read_body(SimpleNamespace(stream=never), 10))
    assert error.value.status == 408


@pytest.mark.slow
def test_options_reach_the_process_and_sigterm_finishes_what_runs(base):
    body = json.dumps({"instances": [b64(noise(1))]}).encode()
    head = (
        "POST /v1/models/other:predict HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with running(base, "--max-body", "1", "--name", "other", "--access-log") as server:
        assert "Serving other, version 1, from" in server.line
        path = f"http://127.0.0.1:{server.port}/v1/models/other:predict"
        assert requests.post(path, data=b" " * 2**21, timeout=60).status_code == 413
        idle = socket.create_connection(("127.0.0.1", server.port), 30)
        with socket.create_connection(("127.0.0.1", server.port), 30) as client, idle:
            client.sendall(head.encode())
            assert b"100 Continue" in client.recv(1000)  # the request is being read
            server.process.send_signal(signal.SIGTERM)
            while connected(server.port):
                pass
            client.sendall(body)
            answer = b""
            while chunk := client.recv(65536):  # until the server hangs up
                answer += chunk
        assert answer.startswith(b"HTTP/1.1 200") and b'"night"' in answer
        assert server.process.wait(60) == 0
        codes = re.findall(r"INFO: \S+ POST /v1/models/other:predict (\d+) ", server.said())
        assert codes == ["413", "200"]


def test_it_says_what_is_wrong_and_ends(base, tmp_path):
    def said(*arguments):
        done = CliRunner().invoke(serve, [str(argument) for argument in arguments])
        assert done.exit_code == 1, done.output
        return done.output

    assert "has no version to serve" in said(tmp_path, "--port", 0)
    assert "serve its parent" in said(base / "1", "--port", 0)
    assert "--name" in said(base, "--name", "a/b")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}" in said(base, "--port", port)
    assert "project.toml" in said("--project", tmp_path)
    assert CliRunner().invoke(serve, ["--batch-size", "0"]).exit_code == 2


@pytest.mark.parametrize("absent", ["starlette", "uvicorn", "prometheus_client"])
def test_without_the_extra_it_says_what_to_install(base, absent, monkeypatch):
    for name in list(sys.modules):
        ours = ("monitoring", "server")
        if name.split(".")[0] == absent or name in {f"kerasmtl.serving.{one}" for one in ours}:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, absent, None)
    done = CliRunner().invoke(serve, [str(base)])
    assert done.exit_code == 1
    assert f"{absent} is not installed. Run: pip install 'kerasmtl[serve]'" in done.output


def test_the_options_are_the_fields_of_the_config():
    from dataclasses import fields

    from kerasmtl.serving.config import ServerConfig

    options = {option.name: option for option in serve.params}
    for field in fields(ServerConfig):
        assert options[field.name].default == field.default
        assert options[field.name].help == field.metadata["help"]
