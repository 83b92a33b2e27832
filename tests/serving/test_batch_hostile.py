"""Batch prediction of odd folders, lists and names, and killed where it hurts most."""

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from served import picture
from test_batch import COLUMNS, Adding, quarantined, rows

from kerasmtl.serving import batch_predict as batch_outputs
from kerasmtl.serving.batch_predict import PictureInputs, Predictor, RowInputs, predict_to_file
from kerasmtl.tasks import Task


def ordered(batch):
    """By picture its place in the batch: what a runtime's last digits may hang on."""
    return {"night": np.arange(len(batch), dtype="float32") / 10}


@pytest.fixture
def predictor():
    return Predictor((Task("night"),), ordered, "m", image_size=(8, 8))


def images_in(out):
    with open(out, newline="", encoding="utf-8") as file:
        return [row["image"] for row in csv.DictReader(file)]


# ---------------------------------------------------------------- the same file after all


@pytest.mark.parametrize("batch_size, bad", [(2, (0, 6)), (3, (5, 6, 7, 8, 9)), (7, ())])
def test_a_call_that_goes_on_makes_the_same_batches(predictor, tmp_path, batch_size, bad):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(17):
        (folder / f"{number:02d}.png").write_bytes(b"bad" if number in bad else picture(number))
    inputs, whole = PictureInputs([str(folder)]), tmp_path / "whole.csv"
    predict_to_file(predictor, inputs, whole, batch_size=batch_size, block=5)
    for stop in (1, 2):
        out = tmp_path / f"{stop}.csv"

        class Stopping(PictureInputs):
            def pieces(self, size, skip=0, stop=stop):
                for number, piece in enumerate(super().pieces(size, skip)):
                    if number == stop:
                        raise KeyboardInterrupt
                    yield piece

        with pytest.raises(BaseException):  # noqa: B017 – as it comes out of TensorFlow
            predict_to_file(predictor, Stopping([str(folder)]), out, batch_size, block=5)
        predict_to_file(predictor, inputs, out, batch_size, block=5)
        assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("at", range(4))
def test_killed_while_it_publishes_the_same_call_still_succeeds(
    tmp_path, monkeypatch, overwrite, at
):
    (tmp_path / "t.csv").write_text("a,b\n1,2\nwarm,3\n" + "1,1\n" * 9)
    out, whole = tmp_path / "p.csv", tmp_path / "whole.csv"
    if overwrite:
        out.write_text("old")

    def call(to=out):
        inputs = RowInputs([str(tmp_path / "t.csv")], COLUMNS)
        return predict_to_file(Adding().predictor, inputs, to, block=4, overwrite=overwrite)

    call(whole)
    settle, remove, count = batch_outputs._settle, Path.unlink, []

    def dying_settle(aside, path):
        if at == 0 and path == out:
            raise KeyboardInterrupt
        settle(aside, path)

    def dying_unlink(path, missing_ok=False):
        remove(path, missing_ok=missing_ok)
        count.append(path)
        if out.exists() and out.read_text() != "old" and at in (1, 2) and len(count) >= 2 * at:
            raise KeyboardInterrupt

    def dying_rmtree(folder):
        if at == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batch_outputs, "_settle", dying_settle)
        patch.setattr(Path, "unlink", dying_unlink)
        if at == 3:
            patch.setattr(shutil, "rmtree", dying_rmtree)
        with pytest.raises(KeyboardInterrupt):
            call()
    done = call()
    assert (done.rows, done.bad, done.resumed) == (10, 1, 11)
    assert out.read_bytes() == whole.read_bytes() and len(quarantined(out)) == 1
    assert not Path(f"{out}.unfinished").exists()
    if not overwrite:
        with pytest.raises(FileExistsError):
            call()


def test_a_finished_file_of_another_model_is_no_success(tmp_path, monkeypatch):
    inputs, out = RowInputs([rows(tmp_path)], COLUMNS), tmp_path / "p.csv"

    def stop(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            predict_to_file(Adding().predictor, inputs, out)
    before = out.read_text()
    other = Adding(sha256="m2").predictor
    with pytest.raises(FileExistsError):
        predict_to_file(other, inputs, out)
    assert out.read_text() == before
    assert predict_to_file(other, inputs, out, overwrite=True).resumed == 0


# ---------------------------------------------------------------- JSON lines


def test_json_lines_hold_what_the_csv_holds_and_no_nan(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n0.1,0\n?,1\n2,3\n")
    inputs, out = RowInputs([str(tmp_path / "t.csv")], COLUMNS), tmp_path / "p.jsonl"
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(Adding(stop_at=1).predictor, inputs, out, block=2)
    predict_to_file(Adding().predictor, inputs, out, block=2)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["sum"] for row in found] == [0.1, None, 5.0]
    assert found[0] == {
        **{"row": f"{tmp_path / 't.csv'}:2", "line": 2, "sum": 0.1, "sum_decision": 1}
    }


# ---------------------------------------------------------------- folders, names and lists

NAMES = ["a b.png", "ключ é 猫.png", 'quo"te,comma.png', "new\nline.png", "back\rhome.png", "-.PNG"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_odd_names_come_through_every_format(predictor, tmp_path, ending):
    folder = tmp_path / "odd [x] {y}"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(picture(number))
    with open(os.fsencode(folder) + b"/\xff\xfe.png", "wb") as file:
        file.write(picture(1))
    out = folder / f"p.{ending}"
    done = predict_to_file(predictor, PictureInputs([str(folder)]), out)
    assert (done.rows, done.bad) == (7, 0)
    if ending == "csv":
        found = images_in(out)
    elif ending == "jsonl":
        found = [json.loads(line)["image"] for line in out.read_text("utf-8").split("\n")[:-1]]
    else:
        found = list(pd.read_parquet(out)["image"])
    expected = {f"{folder}/{name}" for name in NAMES} | {f"{folder}/\\xff\\xfe.png"}
    assert set(found) == expected and len(found) == 7


def test_links_are_followed_but_not_in_circles(predictor, tmp_path):
    folder, aside = tmp_path / "pictures", tmp_path / "aside"
    for place in (folder / "deep", aside):
        place.mkdir(parents=True)
    (aside / "1.png").write_bytes(picture(1))
    (folder / "2.png").symlink_to(aside / "1.png")
    (folder / "gone.png").symlink_to(aside / "absent.png")
    (folder / "linked").symlink_to(aside)
    (folder / "deep" / "back").symlink_to(folder)
    (folder / "itself").symlink_to(folder / "itself")
    done = predict_to_file(predictor, PictureInputs([str(folder)]), tmp_path / "p.csv")
    assert images_in(done.out) == [f"{folder}/2.png", f"{folder}/linked/1.png"]
    assert [(bad["path"], bad["reason"]) for bad in quarantined(done.out)] == [
        (f"{folder}/gone.png", "missing")
    ]


def test_a_pipe_and_a_shut_folder_are_bad_inputs_and_stop_nothing(predictor, tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    (folder / "shut").mkdir(parents=True)
    (folder / "1.png").write_bytes(picture(1))
    os.mkfifo(folder / "pipe.png")
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("shut"))
    done = predict_to_file(predictor, PictureInputs([str(folder)]), tmp_path / "p.csv")
    assert done.rows == 1
    assert {bad["path"]: bad["reason"] for bad in quarantined(done.out)} == {
        f"{folder}/pipe.png": "no regular file",
        f"{folder}/shut": "a folder that cannot be read",
    }
    with pytest.raises(PermissionError):
        PictureInputs([str(folder / "shut")]).measure()


def test_what_a_list_may_name(predictor, tmp_path):
    (tmp_path / "1.png").write_bytes(picture(1))
    names = ["1.png", "https://example.org/1.png", "", "no\x00name.png", str(tmp_path / "1.png")]
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["other", "image", "label"], *(["x", n, "?"] for n in names)])
    inputs = PictureInputs([str(tmp_path / "list.csv")])
    done = predict_to_file(predictor, inputs, tmp_path / "p.csv")
    assert images_in(done.out) == [names[0], names[4]]
    assert [bad["reason"] for bad in quarantined(done.out)] == [
        "an address, and nothing is fetched",
        "a folder",
        "no name that a file can have",
    ]
    with pytest.raises(ValueError, match="nothing is fetched"):
        PictureInputs(["https://example.org/pictures"])


def test_the_predictor_sees_good_pictures_alone(predictor, tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    shapes = []

    def seen(batch):
        shapes.append(tuple(batch.shape))
        return ordered(batch)

    inputs = PictureInputs([str(tmp_path)])
    predict_to_file(replace(predictor, call=seen), inputs, tmp_path / "p.csv", 3, block=3)
    assert shapes == [(3, 8, 8, 3), (1, 8, 8, 3)]
