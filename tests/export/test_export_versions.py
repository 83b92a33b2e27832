"""Versions count up, appear whole, and never replace one another."""

import json
import resource
import signal
import threading

import keras
import pytest
import tensorflow as tf

import kerasmtl as kt
import kerasmtl.export.saved_model
from kerasmtl.export.description import read_description

COLUMNS = ["x", "y"]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return kt.build_model(kt.backbones.mlp(2, [3]), ["a"])


def export(model, path, **options):
    """Without the proof, which takes a process."""
    return kt.export_saved_model(model, path, ["a"], columns=COLUMNS, proof=False, **options)


def meanwhile(monkeypatch, base):
    """While an export is under way, another one takes its number."""
    write = kerasmtl.export.saved_model.write_warm_up

    def slow(folder, *rest):
        write(folder, *rest)
        if not (base / "1").exists():
            (base / "1").mkdir()
            (base / "1" / "other").write_text("first")

    monkeypatch.setattr(kerasmtl.export.saved_model, "write_warm_up", slow)


def test_a_version_that_appears_meanwhile_is_kept(model, tmp_path, monkeypatch):
    meanwhile(monkeypatch, tmp_path)
    with pytest.raises(FileExistsError, match="never overwritten"):
        export(model, tmp_path, version=1)
    assert [p.name for p in tmp_path.rglob("*")] == ["1", "other"]


def test_an_export_whose_number_is_taken_gets_the_next(model, tmp_path, monkeypatch):
    base = tmp_path / "pumps"
    meanwhile(monkeypatch, base)
    folder = export(model, base)
    assert folder.name == "2" and (base / "1" / "other").read_text() == "first"
    assert read_description(folder)["version"] == 2
    extra = folder / "assets.extra"
    assert (extra / "MODEL_CARD.md").read_text().startswith("# pumps, version 2")
    answer = json.loads((extra / "golden" / "kserve_v2.response.json").read_text())
    assert answer["model_version"] == "2"
    records = list(tf.data.TFRecordDataset(str(extra / "tf_serving_warmup_requests")))
    assert len(records) == 2 * len(read_description(folder)["signatures"])


def test_exports_at_once_get_a_version_each(model, tmp_path, monkeypatch):
    both_are_written = threading.Barrier(2)
    publish = kerasmtl.export.saved_model.publish
    lock = threading.Lock()
    make = kerasmtl.export.saved_model._make

    def at_once(*args):
        both_are_written.wait()
        return publish(*args)

    def one_at_a_time(*args):
        with lock:  # Keras' tracing is not made for threads
            return make(*args)

    monkeypatch.setattr(kerasmtl.export.saved_model, "publish", at_once)
    monkeypatch.setattr(kerasmtl.export.saved_model, "_make", one_at_a_time)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(export(model, tmp_path).name)) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["1", "2"]
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}
    assert [read_description(tmp_path / name)["version"] for name in "12"] == [1, 2]


def test_whatever_is_called_as_a_version_is_one(model, tmp_path):
    for name in ("007", "²", "x", "9"):  # 9: half copied, empty
        (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError, match="`version` 7 of"):
        export(model, tmp_path, version=7)
    with pytest.raises(FileExistsError, match="`version` 9 of"):
        export(model, tmp_path, version=9)
    assert export(model, tmp_path).name == "10"
    assert not list((tmp_path / "9").iterdir())


def never():
    raise AssertionError("validation was read")
    yield


@pytest.mark.parametrize("path", ["file", "file/m", "link"])
def test_a_target_that_is_no_folder_is_named_before_anything_is_measured(model, tmp_path, path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="`path` .* is no folder"):
        export(model, tmp_path / path, validation=never())
    assert (tmp_path / "file").read_text() == "mine"


def test_a_read_only_target_is_named_before_anything_is_measured(model, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *args: False)  # to root, all may be written
    with pytest.raises(PermissionError, match="`path` .* cannot be written"):
        export(model, tmp_path / "new" / "m", validation=never())
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_at_the_end_publishes_nothing(model, tmp_path, monkeypatch):
    def full(*args):
        raise tf.errors.ResourceExhaustedError(None, None, "warm-up; No space left on device")

    monkeypatch.setattr(kerasmtl.export.saved_model, "write_warm_up", full)
    with pytest.raises(OSError, match="no version was published. Received: warm-up; No space"):
        export(model, tmp_path / "m")
    assert not list((tmp_path / "m").iterdir())


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="files have no limit here")
def test_a_full_disk_publishes_nothing(tmp_path):
    large = kt.build_model(kt.backbones.mlp(2, [4000]), ["a"])
    (tmp_path / "m" / "1").mkdir(parents=True)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.SIG_IGN
    handler = signal.signal(signal.SIGXFSZ, handler)
    try:  # a limit on the size of files stands for the disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with pytest.raises(OSError, match="no version was published. Received: /.*too large"):
            export(large, tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["1"]
