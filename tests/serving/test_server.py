"""`kerasmtl serve` as a process: what it prints, how it ends, what it needs."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import pytest
import requests
from click.testing import CliRunner

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from served import b64, environment, picture, save_pictures

from kerasmtl.cli.serve import serve

COMMAND = [sys.executable, "-c", "from kerasmtl.cli.serve import serve; serve()"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "my street"
    save_pictures(folder)
    return folder


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


@pytest.mark.slow
def test_options_reach_the_process_and_sigterm_finishes_what_runs(base):
    body = json.dumps({"instances": [b64(picture(1))]}).encode()
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
