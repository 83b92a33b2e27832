"""`kerasmtl serve` as a process: what it says, how it ends, what it needs."""

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
    """Whether somebody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), 30).close()
    except ConnectionError:  # reset, if the listener closed at that moment
        return False
    return True


def test_sigterm_finishes_what_runs_and_refuses_what_comes(base):
    body = json.dumps({"instances": [b64(picture(1))]}).encode()
    head = (
        "POST /v1/models/my-street:predict HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with running(base) as server:
        assert "Serving my-street, version 1" in server.line
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


def test_it_says_what_is_wrong_and_ends(base, tmp_path):
    def said(*arguments):
        done = CliRunner().invoke(serve, [str(argument) for argument in arguments])
        assert done.exit_code == 1
        return done.output

    assert "has no version to serve" in said(tmp_path, "--port", 0)
    assert "`--name` is no name for a path" in said(base, "--name", "a/b")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"`--port` {port} cannot be listened on" in said(base, "--port", port)
    assert "serve its parent" in said(base / "1", "--port", 0)
    assert "Expected NAME=VERSION" in said(base, "--port", 0, "--label", "stable")
    assert "Received: {'stable': 7}" in said(base, "--port", 0, "--label", "stable=7")
    file = tmp_path / "models.config"
    assert str(file) in said(base, "--port", 0, "--models-config", file)
    file.write_text('model_config_list { config { name: "a" } config { name: "b" } }')
    assert "Expected --name with one of ['a', 'b']" in said(base, "--models-config", file)
    words = ("--models-config", file, "--name", "a", "--label", "x=1")
    assert "exclude each other" in said(base, *words)


def test_without_a_folder_it_serves_the_project_s_exports(tmp_path):
    from kerasmtl.cli.new import new_project
    from kerasmtl.project import Project

    folder = new_project("multitask-image", tmp_path / "mine", {})
    done = CliRunner().invoke(serve, ["--project", str(folder), "--port", "0"])
    assert done.exit_code == 1
    assert str(Project.load(folder).export_folder) in done.output


@pytest.mark.parametrize("absent", ["starlette", "uvicorn", "prometheus_client"])
def test_without_the_extra_it_says_what_to_install(base, absent, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("kerasmtl.serving.")]:
        if name.rsplit(".")[-1] in ("running", "app", "metrics", "observed", "bodies"):
            monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.split(".")[0] == absent]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, absent, None)
    done = CliRunner().invoke(serve, [str(base)])
    assert done.exit_code == 1
    assert f"{absent} is not installed. Run: pip install 'kerasmtl[serve]'" in done.output


def test_its_help_needs_neither_tensorflow_nor_a_server():
    code = """
        import sys
        from kerasmtl.cli.serve import serve
        try:
            serve(["--help"])
        finally:
            heavy = {"tensorflow", "keras", "starlette", "uvicorn", "numpy"}
            assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    command = [sys.executable, "-c", "if True:" + code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    for option in ("--max-body", "--max-queue", "--batch-size", "--batch-wait", "--workers"):
        assert option in done.stdout


def test_the_options_reach_the_server(base):
    options = ["--max-body", "1", "--max-pixels", "100", "--name", "other", "--access-log"]
    options += ["--label", "stable=1"]
    with running(base, *options) as server:
        assert "Serving other, version 1 (stable), from" in server.line
        assert requests.get(
            f"http://127.0.0.1:{server.port}/v1/models/other/labels/stable", timeout=60
        ).json()["model_version_status"]
        path = f"http://127.0.0.1:{server.port}/v1/models/other:predict"
        assert requests.post(path, data=b" " * 2**21, timeout=60).status_code == 413
        answer = requests.post(path, json={"instances": [b64(picture(1, (20, 20)))]}, timeout=60)
        assert answer.status_code == 400 and "more than the 100" in answer.json()["error"]
        assert requests.post(
            path, json={"instances": [b64(picture(1, (5, 5)))]}, timeout=60
        ).json()["predictions"]
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
        lines = re.findall(
            r"INFO: 127\.0\.0\.1 POST /v1/models/other:predict (\d+) ", server.said()
        )
        assert lines == ["413", "400", "200"]
