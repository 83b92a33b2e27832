"""New versions: loaded when complete, checked first, swapped without losing a request."""

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import requests

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from served import b64, held, mean_of, noise, predict, save_image_model, serving

from kerasmtl.serving.versions import Versions, prepare

DATA = noise(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Versions 1 and 2, to be copied."""
    base = tmp_path_factory.mktemp("made")
    save_image_model(base, 1)
    save_image_model(base, 2, shift=0.25)
    return base


@pytest.fixture
def base(made, tmp_path):
    shutil.copytree(made / "1", tmp_path / "street" / "1")
    return tmp_path / "street"


def loaded(base, keep=1, passing=lambda served: None):
    versions = Versions(base, keep, passing)
    versions.load()
    return versions


def test_a_new_version_is_taken_up_once_nobody_writes_it(base, made):
    versions = loaded(base)
    shutil.copytree(made / "2", base / "2")
    versions.refresh()
    assert versions.numbers == [1]  # seen for the first time: may still grow
    versions.refresh()
    assert versions.numbers == [2]
    assert versions.get().version == 2


def test_the_newest_are_kept_and_a_version_that_is_taken_away_is_dropped(base, made):
    shutil.copytree(made / "2", base / "2")
    shutil.copytree(made / "1", base / "10")
    (base / "export-aside").mkdir()
    (base / "007").mkdir()
    versions = loaded(base, keep=2)
    assert versions.numbers == [10, 2]
    shutil.rmtree(base / "10")
    versions.refresh()
    versions.refresh()
    assert versions.numbers == [2, 1]
    shutil.rmtree(base)
    versions.refresh()
    assert versions.numbers == [2, 1]  # a disk that is away stops nothing


def half_copied(folder):
    (folder / "saved_model.pb").unlink()


def without_weights(folder):
    for file in (folder / "variables").glob("*.data*"):
        file.unlink()


def without_variables(folder):
    shutil.rmtree(folder / "variables")


def cut_short(folder):
    os.truncate(folder / "saved_model.pb", 1000)


def no_json(folder):
    (folder / "assets.extra" / "model.json").write_text('{"format": 1, "tasks"')


def without_tasks(folder):
    (folder / "assets.extra" / "model.json").write_text('{"format": 1}')


@pytest.mark.parametrize(
    "breaking, message",
    [
        (half_copied, "saved_model.pb is not there"),
        (without_weights, "cannot be loaded"),
        (without_variables, "variables.index is not there"),
        (cut_short, "cannot be loaded"),
        (no_json, "JSON"),
        (without_tasks, "tasks"),
    ],
)
def test_a_broken_version_is_refused_and_the_former_goes_on(base, made, breaking, message, caplog):
    versions = loaded(base, passing=prepare)
    shutil.copytree(made / "2", base / "2")
    breaking(base / "2")
    for _ in range(4):
        versions.refresh()
    assert versions.numbers == [1]
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1  # said once, not at every look
    assert "version 2 is refused" in errors[0] and message in errors[0]
    shutil.rmtree(base / "2")
    shutil.copytree(made / "2", base / "2")
    versions.refresh()
    versions.refresh()
    assert versions.numbers == [2]  # mended


def test_a_broken_version_that_is_there_from_the_start_is_reported(base, made, caplog):
    shutil.copytree(made / "2", base / "2")

    def failing(served):
        if served.version == 2:
            raise MemoryError("too large for this machine")

    versions = loaded(base, passing=failing)
    for _ in range(3):
        versions.refresh()
    assert versions.numbers == [1]
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == "version 2 is refused: too large for this machine; serving [1]"


def test_nothing_to_serve_is_said_with_its_reason(base, tmp_path):
    half_copied(base / "1")
    with pytest.raises(ValueError, match="1: .*saved_model.pb is not there"):
        loaded(base)
    with pytest.raises(ValueError, match="no version to serve.*no folder"):
        loaded(tmp_path / "nix")
    with pytest.raises(ValueError, match="without any"):
        loaded(base / "1")
    (base / "1" / "saved_model.pb").touch()
    with pytest.raises(ValueError, match="serve its parent"):
        loaded(base / "1")


def golden(folder, wrong=0.0):
    target = folder / "assets.extra" / "golden"
    target.mkdir()
    mean = float(mean_of(DATA))
    request = {"instances": [{"image_bytes": b64(DATA)}]}
    response = {"predictions": [{"night": mean + wrong, "night_decision": int(mean >= 0.4)}]}
    (target / "rest_row.request.json").write_text(json.dumps(request))
    (target / "rest_row.response.json").write_text(json.dumps(response))


def test_golden_answers_are_compared(base):
    golden(base / "1")
    assert loaded(base, passing=prepare).numbers == [1]
    shutil.rmtree(base / "1" / "assets.extra" / "golden")
    golden(base / "1", wrong=0.01)
    with pytest.raises(ValueError, match="golden request gets another answer"):
        loaded(base, passing=prepare)
    (base / "1" / "assets.extra" / "golden" / "rest_row.request.json").write_text('{"instances":1}')
    with pytest.raises(ValueError, match="golden request fails: `instances`"):
        loaded(base, passing=prepare)


def test_an_export_without_its_golden_requests_is_still_being_copied(base):
    about = base / "1" / "assets.extra" / "model.json"
    said = {**json.loads(about.read_text()), "versions": {"kerasmtl": "0.1.0"}}
    about.write_text(json.dumps(said))
    golden(base / "1")
    (base / "1" / "assets.extra" / "golden" / "rest_row.request.json").unlink()
    with pytest.raises(ValueError, match="rest_row.request.json is not there"):
        loaded(base, passing=prepare)


def test_a_swap_under_load_loses_no_request(base, made):
    old, new = float(mean_of(DATA)), float(mean_of(DATA)) + 0.25
    received, stop = [], threading.Event()

    def client(url):
        session = requests.Session()
        while not stop.is_set():
            answer = session.post(
                f"{url}/v1/models/street:predict", json={"instances": [b64(DATA)]}, timeout=60
            )
            value = answer.json()["predictions"][0]["night"] if answer.ok else answer.text
            received.append((answer.status_code, value))

    with serving(base, watching=True, keep=1) as running:
        first = running.versions.get()
        clients = [threading.Thread(target=client, args=(running.url,)) for _ in range(8)]
        for one in clients:
            one.start()
        while len(received) < 50:
            assert all(code == 200 for code, _ in received), received
        shutil.copytree(made / "2", base / ".aside")
        os.rename(base / ".aside", base / "2")
        while running.versions.get() is first:
            requests.get(f"{running.url}/v2/health/ready", timeout=60)
        swapped = len(received)
        while len(received) < swapped + 50:
            requests.get(f"{running.url}/v2/health/ready", timeout=60)
        stop.set()
        for one in clients:
            one.join()
        status = predict(
            running.url, {"instances": [b64(DATA)]}, "/v1/models/street/versions/1:predict"
        )
        assert status.status_code == 404
    assert {code for code, _ in received} == {200}
    values = np.array([value for _, value in received])
    assert (np.isclose(values, old, atol=1e-5) | np.isclose(values, new, atol=1e-5)).all()
    assert np.isclose(values[0], old, atol=1e-5) and np.isclose(values[-1], new, atol=1e-5)


def test_a_request_keeps_the_version_that_it_began_with(base, made, monkeypatch):
    with serving(base, keep=1) as running:
        inside, on = held(running, monkeypatch)
        answers = []
        body = {"instances": [b64(DATA)]}
        waiting = threading.Thread(target=lambda: answers.append(predict(running.url, body).json()))
        waiting.start()
        assert inside.wait(30)
        shutil.copytree(made / "2", base / "2")
        running.versions.refresh()
        running.versions.refresh()
        assert running.versions.numbers == [2]
        on.set()
        waiting.join()
        one = answers[0]["predictions"][0]["night"]
        np.testing.assert_allclose(one, mean_of(DATA), atol=1e-5)


def test_folders_that_are_no_versions_are_left_alone(base):
    for name in ("0", "-1", "1.5", "01", "x", ".export-1"):
        shutil.copytree(base / "1", base / name)
    (base / "5").touch()
    assert loaded(base, keep=9).numbers == [1]
    assert Path(base / "01" / "saved_model.pb").is_file()
