"""Prediction into a file: any number of inputs, interruptions, invalid inputs."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from click.testing import CliRunner
from image_folder import write_images
from served import CLASSES, environment, mean_of, noise, save_image_model

import kerasmtl as kt
from kerasmtl.cli import main
from kerasmtl.data.image_files import UNKNOWN
from kerasmtl.data.images import prepare_images
from kerasmtl.serving.batch_predict import FileSource, RowSource, parts_of, predict_to_file
from kerasmtl.serving.predictor import Predictor, export_predictor, model_predictor
from kerasmtl.tasks import Task

IMAGES, TABLE = kt.data.Image(), kt.data.Table(("a", "b"))


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return save_image_model(tmp_path_factory.mktemp("street"))


@pytest.fixture(scope="module")
def served(export):
    return export_predictor(export)


@pytest.fixture
def folder(tmp_path):
    """Nine valid images, some in a subfolder, and three invalid ones."""
    base = tmp_path / "images"
    (base / "more").mkdir(parents=True)
    for number in range(9):
        place = base / "more" if number % 2 else base
        (place / f"{number}.png").write_bytes(noise(number))
    (base / "0bad.jpg").write_bytes(b"not an image")
    (base / "more" / "cut.png").write_bytes(noise(1)[:300])
    (base / "empty.png").touch()
    (base / "notes.txt").write_text("not an image, and not expected to be one")
    return base


class Adding:
    """A model of a table: `sum` of the columns, and whether it is above 0. Counts its calls."""

    def __init__(self, stop_at=None, sha256="m1"):
        self.calls, self.stop_at = [], stop_at
        self.predictor = Predictor((Task("sum"),), self, sha256, TABLE, frozenset({"sum"}))

    def __call__(self, batch):
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append(len(batch))
        total = batch.sum(axis=1)
        return {"sum": total, "sum_decision": (total > 0).astype("int32")}


def rows(tmp_path, count=20, name="rows.csv"):
    data = pd.DataFrame({"b": np.arange(count), "id": [f"r{n}" for n in range(count)], "a": 0.5})
    data.to_csv(tmp_path / name, index=False)
    return str(tmp_path / name)


def errors_in(out):
    with open(f"{out}.errors.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- images


def test_an_export_predicts_a_folder_with_its_decisions(served, folder, tmp_path):
    done = predict_to_file(
        served, FileSource([str(folder)], IMAGES), tmp_path / "p.csv", batch_size=4
    )
    found = pd.read_csv(done.out)
    assert list(found) == [
        *("image", "night", "night_decision", "sign"),
        *(f"sign:{label}" for label in CLASSES),
    ]
    assert (done.rows, done.invalid, done.resumed) == (9, 3, 0)
    even = [str(folder / f"{n}.png") for n in (0, 2, 4, 6, 8)]
    assert list(found["image"]) == even + [str(folder / "more" / f"{n}.png") for n in (1, 3, 5, 7)]
    means = np.array([mean_of(Path(name).read_bytes()) for name in found["image"]])
    np.testing.assert_allclose(found["night"], means, atol=1e-5)
    assert list(found["night_decision"]) == list((means >= 0.4).astype(int))
    shares = found[[f"sign:{label}" for label in CLASSES]].to_numpy()
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    assert list(found["sign"]) == [CLASSES[n] for n in shares.argmax(axis=1)]
    assert {(Path(error["name"]).name, error["reason"]) for error in errors_in(done.out)} == {
        ("0bad.jpg", UNKNOWN),
        ("cut.png", "truncated"),
        ("empty.png", "empty"),
    }
    assert sorted(os.listdir(tmp_path)) == ["images", "p.csv", "p.csv.errors.csv"]


def test_a_trained_model_gives_the_numbers_of_predict(folder, tmp_path):
    model = kt.build_model("tiny", ["cat", "dog"], 32)
    model.save(tmp_path / "model.keras")
    write_images(folder, ["big.jpg", "small.png", "old.bmp", "new.webp"], size=(70, 50))
    predictor = model_predictor(model, ["cat", "dog"], tmp_path / "model.keras")
    done = predict_to_file(
        predictor, FileSource([str(folder)], IMAGES), tmp_path / "p.csv", batch_size=5, shard_size=4
    )
    found = pd.read_csv(done.out)
    assert (done.rows, done.invalid, len(found)) == (13, 3, 13)
    images = prepare_images(tf.stack([tf.io.read_file(path) for path in found["image"]]), (32, 32))
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(found[["cat", "dog"]], expected, atol=1e-5)
    decisions = found[["cat_decision", "dog_decision"]]
    np.testing.assert_array_equal(decisions, (found[["cat", "dog"]] >= 0.5).astype(int))


def test_a_list_names_images_from_its_folder_and_invalid_ones_by_line(served, folder, tmp_path):
    listed = folder / "list.csv"
    listed.write_text("name,file\nx,2.png\n\ny,gone.png\nz,more/1.png\nv,more\nw,2.png\n")
    done = predict_to_file(
        served, FileSource([str(listed)], kt.data.Image("file")), tmp_path / "p.csv"
    )
    found = pd.read_csv(done.out)
    assert list(found["image"]) == ["2.png", "more/1.png", "2.png"]
    assert list(found["line"]) == [2, 5, 7]
    assert errors_in(done.out) == [
        {"name": "gone.png", "line": "4", "reason": "missing"},
        {"name": "more", "line": "6", "reason": "not a file"},
    ]


@pytest.mark.parametrize("share", [0.3, 0.9, 0])
def test_invalid_images_anywhere_cost_no_valid_one(served, tmp_path, share):
    valid = np.random.default_rng(0).random(17) < share
    for number, fine in enumerate(valid):
        (tmp_path / f"{number:02d}.png").write_bytes(noise(number) if fine else b"bad")
    source, out = FileSource([str(tmp_path)], IMAGES), tmp_path / "p.parquet"
    predict_to_file(served, source, out, batch_size=3, shard_size=5)
    found = pd.read_parquet(out)
    assert found["night"].dtype == "float32" and "sign:stop" in found
    stems = np.array([f"{number:02d}" for number in range(len(valid))])
    assert [Path(name).stem for name in found["image"]] == list(stems[valid])
    expected = [mean_of(Path(name).read_bytes()) for name in found["image"]]
    np.testing.assert_allclose(found["night"], expected, atol=1e-5)
    assert [Path(error["name"]).stem for error in errors_in(out)] == list(stems[~valid])


def test_inputs_that_are_none_or_mixed_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="`files`"):
        FileSource([str(folder), rows(tmp_path)], IMAGES)
    (tmp_path / "none").mkdir()
    predictor = Adding().predictor
    with pytest.raises(ValueError, match="`files`"):
        predict_to_file(predictor, FileSource([str(tmp_path / "none")], IMAGES), tmp_path / "p.csv")
    with pytest.raises(ValueError, match="`column`"):
        predict_to_file(predictor, FileSource([rows(tmp_path)], IMAGES), tmp_path / "p.csv")


NAMES = ["a b.png", "ключ é 猫.png", 'quo"te,comma.png', "new\nline.png", "back\rhome.png", "-.PNG"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_unusual_names_links_and_pipes(served, tmp_path, ending):
    folder = tmp_path / "odd [x] {y}"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(noise(number))
    with open(os.fsencode(folder) + b"/\xff\xfe.png", "wb") as file:
        file.write(noise(1))
    (folder / "deep" / "back").symlink_to(folder)
    (folder / "itself").symlink_to(folder / "itself")
    os.mkfifo(folder / "pipe.png")
    out = tmp_path / f"p.{ending}"
    done = predict_to_file(served, FileSource([str(folder)], IMAGES), out)
    if ending == "csv":
        with open(out, newline="", encoding="utf-8") as file:
            found = [row["image"] for row in csv.DictReader(file)]
    elif ending == "jsonl":
        found = [json.loads(line)["image"] for line in out.read_text("utf-8").split("\n")[:-1]]
    else:
        found = list(pd.read_parquet(out)["image"])
    expected = {f"{folder}/{name}".replace("\r", "\\r") for name in NAMES}
    assert set(found) == expected | {f"{folder}/\\xff\\xfe.png"} and len(found) == 7
    assert done.invalid == 1 and errors_in(out)[0]["reason"] == "not a file"


# ---------------------------------------------------------------- tables


def test_rows_of_several_files_keep_their_places(tmp_path):
    model = Adding()
    files = [rows(tmp_path, 5), rows(tmp_path, 8, "more.csv")]
    done = predict_to_file(
        model.predictor, RowSource(files, TABLE), tmp_path / "p.csv", 3, shard_size=4
    )
    found = pd.read_csv(done.out)
    assert list(found["row"])[3:7] == [
        *(f"{files[0]}:{line}" for line in (5, 6)),
        *(f"{files[1]}:{line}" for line in (2, 3)),
    ]
    assert list(found["line"]) == [*range(2, 7), *range(2, 10)]
    assert list(found["sum"]) == [n + 0.5 for n in [*range(5), *range(8)]]
    assert found["sum_decision"].all() and max(model.calls) == 3


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_every_format_of_tables(tmp_path, kind):
    source = tmp_path / f"t.{kind}"
    data = pd.DataFrame({"key": [f"k{n}" for n in range(7)], "a": 1.5, "b": np.arange(7.0)})
    if kind == "npz":
        np.savez(source, X=data[["b", "a"]], columns=["b", "a"], key=data["key"].to_numpy("U"))
    elif kind == "csv":
        data.to_csv(source, index=False)
    else:
        data.to_parquet(source, row_group_size=2)
    inputs = RowSource([str(source)], replace(TABLE, id_column="key"))
    done = predict_to_file(Adding().predictor, inputs, tmp_path / "p.parquet", shard_size=3)
    found = pd.read_parquet(done.out)
    assert list(found) == ["id", "line", "sum", "sum_decision"]
    assert list(found["id"]) == list(data["key"])
    assert list(found["line"]) == list(range(2, 9) if kind == "csv" else range(7))
    assert list(found["sum"]) == [n + 1.5 for n in range(7)]
    assert found.dtypes["sum"] == "float32" and found.dtypes["sum_decision"] == "int32"


def test_cells_that_are_not_numbers_cost_their_row_alone(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n0.1,0\nwarm,3\n4,?\n1e99,1\n5,6\n")
    source = RowSource([str(tmp_path / "t.csv")], TABLE)
    done = predict_to_file(Adding().predictor, source, tmp_path / "p.jsonl")
    found = [json.loads(line) for line in done.out.read_text().splitlines()]
    assert found[0] == {"row": f"{tmp_path / 't.csv'}:2", "line": 2, "sum": 0.1, "sum_decision": 1}
    assert [row["sum"] for row in found] == [0.1, None, 11.0]  # JSON has no NaN
    errors = errors_in(done.out)
    assert [row["line"] for row in errors] == ["3", "5"]
    assert "column 'a': 'warm'" in errors[0]["reason"] and "1e99" in errors[1]["reason"]


def test_numbers_that_float32_cannot_tell_apart_are_no_warning_per_batch(tmp_path, recwarn):
    frame = pd.DataFrame({"a": 1_700_000_000 + np.arange(20), "b": 0})
    frame.to_csv(tmp_path / "t.csv", index=False)
    source = RowSource([str(tmp_path / "t.csv")], TABLE)
    done = predict_to_file(Adding().predictor, source, tmp_path / "p.csv", batch_size=4)
    assert done.rows == 20 and not [w for w in recwarn if "float32" in str(w.message)]


def test_a_table_without_a_column_of_the_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`features`.*'zz'"):
        predict_to_file(
            Adding().predictor,
            RowSource([rows(tmp_path)], kt.data.Table(("a", "zz"))),
            tmp_path / "p.csv",
        )
    assert os.listdir(tmp_path) == ["rows.csv"]


# ---------------------------------------------------------------- interruptions


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_the_same_call_continues_after_an_interruption(tmp_path, ending):
    source = RowSource([rows(tmp_path)], TABLE)
    out, whole = tmp_path / f"p.{ending}", tmp_path / f"whole.{ending}"
    predict_to_file(Adding().predictor, source, whole, shard_size=4)
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(Adding(stop_at=3).predictor, source, out, shard_size=4)
    assert not out.exists() and parts_of(out).is_dir()
    again = Adding()
    done = predict_to_file(again.predictor, source, out, shard_size=4)
    assert done.resumed == 12 and again.calls == [4, 4] and done.rows == 20
    assert out.read_bytes() == whole.read_bytes()
    assert not parts_of(out).exists() and len(os.listdir(tmp_path)) == 3


def test_invalid_images_of_finished_shards_are_listed_too(served, folder, tmp_path):
    source, out, calls = FileSource([str(folder)], IMAGES), tmp_path / "p.csv", []
    predict_to_file(served, source, tmp_path / "whole.csv", shard_size=5)

    def stopping(batch):
        calls.append(len(batch))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return served.call(batch)

    with pytest.raises(KeyboardInterrupt):
        predict_to_file(replace(served, call=stopping), source, out, shard_size=5)
    done = predict_to_file(served, source, out, shard_size=5)
    assert done.resumed == 5 and (done.rows, done.invalid) == (9, 3)
    found, whole = pd.read_csv(out), pd.read_csv(tmp_path / "whole.csv")
    pd.testing.assert_frame_equal(found, whole)
    assert errors_in(out) == errors_in(tmp_path / "whole.csv")


KILLED = """
import os, signal
import kerasmtl as kt
from kerasmtl.serving.batch_predict import RowSource, predict_to_file
from kerasmtl.serving.predictor import Predictor
from kerasmtl.tasks import Task

calls = []

def dying(batch):
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(batch)
    return {{"sum": batch.sum(axis=1), "sum_decision": batch.sum(axis=1) > 0}}

table = kt.data.Table(features=["a", "b"])
predictor = Predictor((Task("sum"),), dying, "m1", table, frozenset({{"sum"}}))
predict_to_file(predictor, RowSource([{rows!r}], table), {out!r}, shard_size=4)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_no_partial_file_and_can_be_continued(tmp_path):
    source, out = rows(tmp_path), tmp_path / "p.csv"
    code = KILLED.format(rows=source, out=str(out))
    done = subprocess.run([sys.executable, "-c", code], env=environment(), timeout=120)
    assert done.returncode == -signal.SIGKILL and not out.exists()
    again = Adding()
    done = predict_to_file(again.predictor, RowSource([source], TABLE), out, shard_size=4)
    assert done.resumed == 8 and again.calls == [4, 4, 4]
    assert list(pd.read_csv(out)["sum"]) == [n + 0.5 for n in range(20)]


def test_only_shards_of_the_same_model_and_inputs_are_used_again(tmp_path):
    source, out = RowSource([rows(tmp_path)], TABLE), tmp_path / "p.csv"

    def after_two_shards(**options):
        with pytest.raises(KeyboardInterrupt):
            predict_to_file(Adding(stop_at=2).predictor, source, out, resume=False, shard_size=4)
        sha256 = options.pop("sha256", "m1")
        again = predict_to_file(
            Adding(sha256=sha256).predictor, source, out, **{"shard_size": 4, **options}
        )
        found = pd.read_csv(out)["sum"]
        out.unlink()
        assert list(found) == [n + 0.5 for n in range(again.rows)]
        return again.resumed

    assert after_two_shards() == 8
    assert after_two_shards(sha256="m2") == after_two_shards(shard_size=5) == 0
    assert after_two_shards(resume=False) == 0
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(Adding(stop_at=2).predictor, source, out, shard_size=4)
    rows(tmp_path, 21)
    done = predict_to_file(Adding().predictor, source, out, shard_size=4)
    assert done.resumed == 0 and len(pd.read_csv(out)) == 21


def test_an_image_that_was_replaced_is_predicted_again(served, folder, tmp_path):
    source, out, calls = FileSource([str(folder)], IMAGES), tmp_path / "p.csv", []

    def stopping(batch):
        calls.append(len(batch))
        if len(calls) == 12:
            raise KeyboardInterrupt
        return served.call(batch)

    with pytest.raises(KeyboardInterrupt):
        predict_to_file(replace(served, call=stopping), source, out, shard_size=1)
    before = len(list(parts_of(out).glob("*.npz")))
    (folder / "0.png").write_bytes(noise(77, (50, 60)))
    done = predict_to_file(served, source, out, shard_size=1)
    assert done.resumed == before - 1
    (new,) = pd.read_csv(out).query("image.str.endswith('/0.png')")["night"]
    assert new == pytest.approx(mean_of(noise(77, (50, 60))), abs=1e-5)


# ---------------------------------------------------------------- files


def test_nothing_is_overwritten_without_being_asked(tmp_path):
    source, out = RowSource([rows(tmp_path)], TABLE), tmp_path / "p.csv"
    out.write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        predict_to_file(Adding().predictor, source, out)
    assert out.read_text() == "mine"
    out.rename(f"{out}.errors.csv")
    with pytest.raises(FileExistsError, match="errors"):
        predict_to_file(Adding().predictor, source, out)
    done = predict_to_file(Adding().predictor, source, out, overwrite=True)
    assert done.errors is None and sorted(os.listdir(tmp_path)) == ["p.csv", "rows.csv"]


def test_one_process_at_a_time(tmp_path):
    source, out = RowSource([rows(tmp_path)], TABLE), tmp_path / "p.csv"

    class Nested(Adding):
        def __call__(self, batch):
            with pytest.raises(ValueError, match="`out`.*another process"):
                predict_to_file(Adding().predictor, source, out)
            return super().__call__(batch)

    assert predict_to_file(Nested().predictor, source, out).rows == 20


def test_wrong_endings_sizes_and_names_are_refused(tmp_path, monkeypatch):
    source = RowSource([rows(tmp_path)], TABLE)
    with pytest.raises(ValueError, match="`out`.*xlsx"):
        predict_to_file(Adding().predictor, source, tmp_path / "p.xlsx")
    with pytest.raises(ValueError, match="`batch_size`"):
        predict_to_file(Adding().predictor, source, tmp_path / "p.csv", batch_size=-1)
    twice = replace(Adding().predictor, tasks=(Task("sum"), Task("sum_decision")))
    with pytest.raises(ValueError, match=r"`tasks`.*\['sum_decision'\]"):
        predict_to_file(twice, source, tmp_path / "p.csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"kerasmtl\[parquet\]"):
        predict_to_file(Adding().predictor, source, tmp_path / "p.parquet")


# ---------------------------------------------------------------- the command


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_command_counts_invalid_inputs(export, folder, tmp_path):
    words = ("predict", folder, "--model", export, "--batch-size", 4)
    result = run(*words, "--out", tmp_path / "p.csv")
    assert result.exit_code == 0, result.output
    assert "9 predictions in" in result.output and "3 inputs could not be used" in result.output
    result = run(*words, "--out", tmp_path / "q.csv", "--json")
    said = json.loads(result.stdout)
    assert (said["rows"], said["invalid"]) == (9, 3) and said["errors"].endswith("errors.csv")
    assert (tmp_path / "q.csv").read_text() == (tmp_path / "p.csv").read_text()
    result = run(*words, "--out", tmp_path / "p.csv")
    assert result.exit_code == 1 and "--overwrite" in result.output


def test_an_interrupted_command_says_how_to_continue(export, folder, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("kerasmtl.serving.batch_predict.predict_chunk", stop)
    result = run("predict", folder, "--model", export, "--out", tmp_path / "p.csv")
    assert result.exit_code == 130 and "the same command continues" in result.output


def test_options_that_do_not_apply_are_refused(export, folder):
    result = run("predict", folder / "2.png", "--model", export, "--overwrite", "--no-resume")
    assert result.exit_code == 1 and "--no-resume must be used" in result.output
    result = run("predict", folder, "--model", export, "--id-column", "x", "--out", "p.csv")
    assert result.exit_code == 1 and "--id-column must be left out" in result.output
