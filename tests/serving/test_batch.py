"""Batch prediction: any number of inputs, interruptions, bad inputs, and what is left on disk."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from click.testing import CliRunner
from pictures import write_pictures
from served import CLASSES, environment, mean_of, picture, save_pictures

import kerasmtl as kt
from kerasmtl.cli import main
from kerasmtl.data.image_files import UNKNOWN
from kerasmtl.data.images import prepare_image
from kerasmtl.serving.batch_predict import (
    PictureInputs,
    Predictor,
    RowInputs,
    how_to_go_on,
    predict_to_file,
    unfinished,
)
from kerasmtl.serving.predictor import export_predictor, model_predictor
from kerasmtl.tasks import Task

COLUMNS = ("a", "b")


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return save_pictures(tmp_path_factory.mktemp("street"))


@pytest.fixture(scope="module")
def served(export):
    return export_predictor(export)


@pytest.fixture
def folder(tmp_path):
    """Nine good pictures, also in a folder of the folder, and three bad ones."""
    base = tmp_path / "pictures"
    (base / "more").mkdir(parents=True)
    for number in range(9):
        place = base / "more" if number % 2 else base
        (place / f"{number}.png").write_bytes(picture(number))
    (base / "0bad.jpg").write_bytes(b"no picture")
    (base / "more" / "cut.png").write_bytes(picture(1)[:300])
    (base / "empty.png").touch()
    (base / "notes.txt").write_text("no picture, and none is expected")
    return base


class Adding:
    """A model of a table: `sum` of the columns, and whether it is above 0. Counts its calls."""

    def __init__(self, stop_at=None, sha256="m1"):
        self.calls, self.stop_at = [], stop_at
        self.predictor = Predictor(
            (Task("sum"),), self, sha256, frozenset({"sum"}), COLUMNS, id_column=None
        )

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


def quarantined(out):
    with open(f"{out}.quarantine.csv", newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- pictures


def test_an_export_predicts_a_folder_with_its_decisions(served, folder, tmp_path):
    done = predict_to_file(served, PictureInputs([str(folder)]), tmp_path / "p.csv", batch_size=4)
    found = pd.read_csv(done.out)
    assert list(found) == [
        *("image", "night", "night_decision", "sign"),
        *(f"sign:{label}" for label in CLASSES),
    ]
    assert (done.rows, done.bad, done.resumed) == (9, 3, 0)
    even = [str(folder / f"{n}.png") for n in (0, 2, 4, 6, 8)]
    assert list(found["image"]) == even + [str(folder / "more" / f"{n}.png") for n in (1, 3, 5, 7)]
    means = np.array([mean_of(Path(name).read_bytes()) for name in found["image"]])
    np.testing.assert_allclose(found["night"], means, atol=1e-5)
    assert list(found["night_decision"]) == list((means >= 0.4).astype(int))
    shares = found[[f"sign:{label}" for label in CLASSES]].to_numpy()
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    assert list(found["sign"]) == [CLASSES[n] for n in shares.argmax(axis=1)]
    assert {(Path(bad["path"]).name, bad["reason"]) for bad in quarantined(done.out)} == {
        ("0bad.jpg", UNKNOWN),
        ("cut.png", "truncated"),
        ("empty.png", "empty"),
    }
    assert sorted(os.listdir(tmp_path)) == ["p.csv", "p.csv.quarantine.csv", "pictures"]


def test_a_trained_model_gives_the_numbers_of_predict(folder, tmp_path):
    model = kt.build_model("tiny", ["cat", "dog"], 32)
    model.save(tmp_path / "model.keras")
    write_pictures(folder, ["big.jpg", "small.png", "old.bmp", "new.webp"], size=(70, 50))
    predictor = model_predictor(model, ["cat", "dog"], tmp_path / "model.keras")
    done = predict_to_file(
        predictor, PictureInputs([str(folder)]), tmp_path / "p.csv", batch_size=5, block=4
    )
    found = pd.read_csv(done.out)
    assert (done.rows, done.bad, len(found)) == (13, 3, 13)
    images = tf.stack([prepare_image(tf.io.read_file(path), (32, 32)) for path in found["image"]])
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(found[["cat", "dog"]], expected, atol=1e-5)
    decisions = found[["cat_decision", "dog_decision"]]
    np.testing.assert_array_equal(decisions, (found[["cat", "dog"]] >= 0.5).astype(int))


def test_outputs_that_nobody_describes_are_sorted(tmp_path):
    module = tf.Module()
    module.run = tf.function(
        lambda image_bytes: {
            name: tf.cast(tf.strings.length(image_bytes), tf.float32) for name in "zbkamcy"
        },
        input_signature=[tf.TensorSpec((None,), tf.string, name="image_bytes")],
    )
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": module.run})
    found = export_predictor(tmp_path / "1")
    assert [task.name for task in found.tasks] == list("abckmyz") and found.columns is None


def test_a_list_names_pictures_from_its_folder_and_bad_ones_by_line(served, folder, tmp_path):
    listed = folder / "list.csv"
    listed.write_text("name,picture\nx,2.png\n\ny,absent.png\nz,more/1.png\nw,2.png\n")
    done = predict_to_file(served, PictureInputs([str(listed)], "picture"), tmp_path / "p.csv")
    found = pd.read_csv(done.out)
    assert list(found["image"]) == ["2.png", "more/1.png", "2.png"]
    assert list(found["line"]) == [2, 5, 6]
    assert quarantined(done.out) == [{"path": "absent.png", "line": "4", "reason": "missing"}]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("decoded", [False, True])
def test_bad_pictures_anywhere_cost_no_good_one(served, tmp_path, seed, decoded):
    rng = np.random.default_rng(seed)
    good = rng.random(17) < (0.3, 0.5, 0.9, 0)[seed]
    for number, fine in enumerate(good):
        (tmp_path / f"{number:02d}.png").write_bytes(picture(number) if fine else b"bad")
    predictor = served
    if decoded:

        def means(images):
            values = images.numpy().mean(axis=(1, 2, 3))
            return {"night": values}

        predictor = Predictor((Task("night"),), means, "m", image_size=(30, 40))
    done = predict_to_file(
        predictor, PictureInputs([str(tmp_path)]), tmp_path / "p.csv", batch_size=3, block=5
    )
    found = pd.read_csv(done.out, dtype={"night": "float64"})
    stems = [f"{number:02d}" for number in range(len(good))]
    assert [Path(name).stem for name in found["image"]] == list(np.array(stems)[good])
    expected = [mean_of(Path(name).read_bytes()) for name in found["image"]]
    np.testing.assert_allclose(found["night"], expected, atol=1e-5)
    assert [Path(bad["path"]).stem for bad in quarantined(done.out)] == list(np.array(stems)[~good])


def test_inputs_that_are_none_or_mixed_are_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        PictureInputs(["nowhere"])
    with pytest.raises(ValueError, match="CSVs and others"):
        PictureInputs([str(folder), rows(tmp_path)])
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="hold no pictures"):
        PictureInputs([str(tmp_path / "none")]).measure()
    with pytest.raises(ValueError, match="`image_column` names a column .* lacks: 'image'"):
        PictureInputs([rows(tmp_path)]).measure()


# ---------------------------------------------------------------- tables


def test_rows_of_several_files_keep_their_places(tmp_path):
    model = Adding()
    files = [rows(tmp_path, 5), rows(tmp_path, 8, "more.csv")]
    done = predict_to_file(
        model.predictor, RowInputs(files, COLUMNS), tmp_path / "p.csv", batch_size=3, block=4
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
def test_every_kind_of_table_and_both_kinds_of_file(tmp_path, kind):
    pytest.importorskip("pyarrow", reason="Parquet needs the extra `parquet`")
    source = tmp_path / f"t.{kind}"
    data = pd.DataFrame({"key": [f"k{n}" for n in range(7)], "a": 1.5, "b": np.arange(7.0)})
    if kind == "npz":
        np.savez(source, X=data[["b", "a"]], columns=["b", "a"], key=data["key"].to_numpy("U"))
    else:
        data.to_csv(source, index=False) if kind == "csv" else data.to_parquet(source)
    inputs = RowInputs([str(source)], COLUMNS, id_column="key")
    done = predict_to_file(Adding().predictor, inputs, tmp_path / "p.parquet", block=3)
    found = pd.read_parquet(done.out)
    assert list(found) == ["id", "line", "sum", "sum_decision"]
    assert list(found["id"]) == list(data["key"])
    assert list(found["sum"]) == [n + 1.5 for n in range(7)]
    assert found.dtypes["sum"] == "float32" and found.dtypes["sum_decision"] == "int32"


def test_an_exported_table_gives_the_numbers_of_the_model(tmp_path):
    inputs = keras.Input((2,))
    outputs = keras.layers.Dense(2, activation="sigmoid", bias_initializer="ones")(inputs)
    model = keras.Model(inputs, outputs)
    folder = kt.export_saved_model(
        model, tmp_path / "t", ["up", "down"], input=kt.data.Table(COLUMNS)
    )
    predictor = export_predictor(folder)
    assert predictor.columns == COLUMNS
    inputs = RowInputs([rows(tmp_path)], predictor.columns)
    done = predict_to_file(predictor, inputs, tmp_path / "p.csv", batch_size=7)
    values = np.stack([np.full(20, 0.5), np.arange(20)], axis=1).astype("float32")
    expected = model.predict(values, verbose=0)
    np.testing.assert_allclose(pd.read_csv(done.out)[["up", "down"]], expected, atol=1e-5)


def test_cells_that_are_no_numbers_cost_their_row_alone(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\nwarm,3\n4,?\n1e99,1\n5,6\n")
    inputs = RowInputs([str(tmp_path / "t.csv")], COLUMNS)
    done = predict_to_file(Adding().predictor, inputs, tmp_path / "p.csv")
    found = pd.read_csv(done.out)
    assert list(found["line"]) == [2, 4, 6] and np.isnan(found["sum"][1])
    bad = quarantined(done.out)
    assert [row["line"] for row in bad] == ["3", "5"]
    assert "column 'a': 'warm'" in bad[0]["reason"] and "1e99" in bad[1]["reason"]


def test_a_table_without_a_column_of_the_model_is_refused(tmp_path):
    inputs = RowInputs([rows(tmp_path)], ("a", "zz"))
    with pytest.raises(ValueError, match="lacks: 'zz'"):
        predict_to_file(Adding().predictor, inputs, tmp_path / "p.csv")
    assert os.listdir(tmp_path) == ["rows.csv"]


# ---------------------------------------------------------------- interruptions


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_the_same_call_goes_on_after_an_interruption(tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs the extra `parquet`")
    inputs = RowInputs([rows(tmp_path)], COLUMNS)
    out, whole = tmp_path / f"p.{ending}", tmp_path / f"whole.{ending}"
    predict_to_file(Adding().predictor, inputs, whole, block=4)
    stopped = Adding(stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(stopped.predictor, inputs, out, block=4)
    assert not out.exists() and "goes on from there" in how_to_go_on(out)
    again = Adding()
    done = predict_to_file(again.predictor, inputs, out, block=4)
    assert done.resumed == 12 and again.calls == [4, 4] and done.rows == 20
    assert out.read_bytes() == whole.read_bytes()
    assert not Path(f"{out}.unfinished").exists()


def test_pictures_go_on_too(served, folder, tmp_path):
    inputs, out = PictureInputs([str(folder)]), tmp_path / "p.csv"
    predict_to_file(served, inputs, tmp_path / "whole.csv", batch_size=2, block=5)
    calls = []

    def stopping(batch):
        calls.append(len(batch))
        if len(calls) == 12:
            raise KeyboardInterrupt
        return served.call(batch)

    with pytest.raises(KeyboardInterrupt):
        predict_to_file(replace(served, call=stopping), inputs, out, batch_size=2, block=5)
    done = predict_to_file(served, inputs, out, batch_size=2, block=5)
    assert done.resumed in (5, 10) and (done.rows, done.bad) == (9, 3)
    assert out.read_text() == (tmp_path / "whole.csv").read_text()
    assert quarantined(out) == quarantined(tmp_path / "whole.csv")


KILLED = """
import os, signal
from kerasmtl.serving.batch_predict import Predictor, predict_to_file
from kerasmtl.serving.batch_predict import RowInputs
from kerasmtl.tasks import Task

calls = []

def dying(batch):
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(batch)
    return {{"sum": batch.sum(axis=1), "sum_decision": batch.sum(axis=1) > 0}}

predictor = Predictor((Task("sum"),), dying, "m1", frozenset({{"sum"}}), ("a", "b"))
predict_to_file(predictor, RowInputs([{rows!r}], ("a", "b")), {out!r}, block=4)
"""


def test_a_killed_process_leaves_no_half_file_and_can_be_continued(tmp_path):
    source, out = rows(tmp_path), tmp_path / "p.csv"
    code = KILLED.format(rows=source, out=str(out))
    done = subprocess.run([sys.executable, "-c", code], env=environment(), timeout=120)
    assert done.returncode == -9 and not out.exists()
    again = Adding()
    done = predict_to_file(again.predictor, RowInputs([source], COLUMNS), out, block=4)
    assert done.resumed == 8 and again.calls == [4, 4, 4]
    assert list(pd.read_csv(out)["sum"]) == [n + 0.5 for n in range(20)]


@pytest.mark.parametrize("changed", ["model", "inputs", "block"])
def test_blocks_of_something_else_are_not_continued(tmp_path, changed):
    source, out = rows(tmp_path), tmp_path / "p.csv"
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(Adding(stop_at=2).predictor, RowInputs([source], COLUMNS), out, block=4)
    model = Adding(sha256="m2" if changed == "model" else "m1")
    if changed == "inputs":
        rows(tmp_path, 21)
    inputs, block = RowInputs([source], COLUMNS), 5 if changed == "block" else 4
    with pytest.raises(ValueError, match=f"begun with other {changed}.*--no-resume"):
        predict_to_file(model.predictor, inputs, out, block=block)
    assert not model.calls and not out.exists()
    done = predict_to_file(model.predictor, inputs, out, block=block, resume=False)
    assert done.resumed == 0 and len(pd.read_csv(out)) == (21 if changed == "inputs" else 20)


def test_a_picture_that_was_replaced_is_noticed(folder):
    before = PictureInputs([str(folder)]).measure()
    (folder / "2.png").write_bytes(picture(77, (50, 60)))
    after = PictureInputs([str(folder)]).measure()
    assert before[0] == after[0] and before[1] != after[1]


def test_an_input_that_breaks_on_the_way_is_an_error_and_no_short_file(served, folder, tmp_path):
    class Breaking(PictureInputs):
        def pieces(self, size, skip=0):
            yield next(super().pieces(size, skip))
            raise ValueError("`path` list.csv, line 9 is malformed")

    with pytest.raises(ValueError, match="line 9 is malformed"):
        predict_to_file(served, Breaking([str(folder)]), tmp_path / "p.csv", block=5)

    class Shrinking(PictureInputs):
        def pieces(self, size, skip=0):
            yield next(super().pieces(size, skip))

    with pytest.raises(ValueError, match="changed meanwhile. Expected 12. Received: 5"):
        predict_to_file(served, Shrinking([str(folder)]), tmp_path / "p.csv", block=5, resume=False)
    assert not (tmp_path / "p.csv").exists()


# ---------------------------------------------------------------- what is on disk


def test_nothing_is_overwritten_unasked(tmp_path):
    inputs, out = RowInputs([rows(tmp_path)], COLUMNS), tmp_path / "p.csv"
    out.write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        predict_to_file(Adding().predictor, inputs, out)
    assert out.read_text() == "mine"
    out.rename(f"{out}.quarantine.csv")
    with pytest.raises(FileExistsError, match="quarantine"):
        predict_to_file(Adding().predictor, inputs, out)
    done = predict_to_file(Adding().predictor, inputs, out, overwrite=True)
    assert done.quarantine is None and sorted(os.listdir(tmp_path)) == ["p.csv", "rows.csv"]


def test_one_process_at_a_time(tmp_path):
    inputs, out = RowInputs([rows(tmp_path)], COLUMNS), tmp_path / "p.csv"
    with unfinished(out, [["row", "str"]]), pytest.raises(ValueError, match="another process"):
        predict_to_file(Adding().predictor, inputs, out)
    assert predict_to_file(Adding().predictor, inputs, out).rows == 20


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_with_no_good_input_the_file_has_columns_and_no_rows(served, tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs the extra `parquet`")
    (tmp_path / "bad.png").write_bytes(b"bad")
    out = tmp_path / f"p.{ending}"
    done = predict_to_file(served, PictureInputs([str(tmp_path / "bad.png")]), out)
    found = pd.read_csv(out) if ending == "csv" else pd.read_parquet(out)
    assert (done.rows, done.bad, len(found)) == (0, 1, 0) and "sign:stop" in found


def test_wrong_endings_sizes_and_names_are_refused(tmp_path, monkeypatch):
    inputs = RowInputs([rows(tmp_path)], COLUMNS)
    with pytest.raises(
        ValueError, match="Expected one of .csv, .parquet, .jsonl. Received: '.xlsx'"
    ):
        predict_to_file(Adding().predictor, inputs, tmp_path / "p.xlsx")
    with pytest.raises(ValueError, match="`batch_size` is too small"):
        predict_to_file(Adding().predictor, inputs, tmp_path / "p.csv", batch_size=0)
    twice = replace(Adding().predictor, tasks=(Task("sum"), Task("sum_decision")))
    with pytest.raises(ValueError, match=r"columns of the same name.*\['sum_decision'\]"):
        predict_to_file(twice, inputs, tmp_path / "p.csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"kerasmtl\[parquet\]"):
        predict_to_file(Adding().predictor, inputs, tmp_path / "p.parquet")


# ---------------------------------------------------------------- the command


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_command_ends_with_1_for_bad_inputs_only_if_asked(export, folder, tmp_path):
    words = ("predict", folder, "--model", export, "--batch-size", 4)
    result = run(*words, "--out", tmp_path / "p.csv")
    assert result.exit_code == 0, result.output
    assert "9 predictions in" in result.output and "3 inputs could not be used" in result.output
    result = run(*words, "--out", tmp_path / "q.csv", "--fail-on-bad", "--json")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert (said["rows"], said["bad"]) == (9, 3) and said["quarantine"].endswith("quarantine.csv")
    assert (tmp_path / "q.csv").read_text() == (tmp_path / "p.csv").read_text()
    result = run(*words, "--out", tmp_path / "p.csv")
    assert result.exit_code == 1 and "not overwritten unasked" in result.output


def test_an_interrupted_command_says_how_to_go_on(export, folder, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("kerasmtl.serving.batch_predict._values", stop)
    result = run("predict", folder, "--model", export, "--out", tmp_path / "p.csv")
    assert result.exit_code == 130 and "the same command goes on from there" in result.output


def test_options_of_out_need_it(export, folder):
    result = run("predict", folder / "2.png", "--model", export, "--overwrite", "--no-resume")
    assert result.exit_code == 1 and "--no-resume, --overwrite belong to --out" in result.output
    result = run("predict", folder, "--model", export)
    assert result.exit_code == 1 and "is a folder. Expected --out" in result.output
    result = run("predict", folder, "--model", export, "--id-column", "x", "--out", "p.csv")
    assert result.exit_code == 1 and "--id-column is for tables" in result.output
