"""What a model was trained on stays with it, whatever becomes of the labels file."""

import numpy as np
import pandas as pd
import pytest
from tables import load_table

import kerasmtl as kt
from kerasmtl.training.record import TrainingRecord, load_record, save_record

pytestmark = pytest.mark.filterwarnings("ignore:the part .* has no two different labels")
TASKS = ["leak", kt.Task("grade", "multiclass")]


def frame(rows=60, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "x": rng.normal(size=rows).round(4),
            "z": rng.normal(size=rows).round(4),
            "leak": rng.integers(0, 2, rows),
            "grade": rng.choice(["a", "b", "c"], rows),
        }
    )


def table(folder, data, **options):
    data.to_csv(folder / "t.csv", index=False)
    return load_table(folder / "t.csv", **{"tasks": TASKS, **options})


def trained_on(rows, seed=0, **options):
    return TrainingRecord.of(rows.split(seed=seed), seed=seed, **options)


def contents(rows):
    return sorted(map(tuple, rows.values.tolist()))


@pytest.fixture
def record(tmp_path):
    rows = table(tmp_path, frame())
    return rows, trained_on(rows)


def test_it_is_read_as_it_was_written(tmp_path, record):
    rows, trained = record
    (tmp_path / "runs").mkdir()
    save_record(trained, tmp_path / "runs" / "model.keras")
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"model.json", "split.csv"}
    lines = (tmp_path / "runs" / "split.csv").read_text().splitlines()
    assert lines[0] == "name,split" and lines[1].split(",")[1] in ("train", "val", "test")
    again = load_record(tmp_path / "runs" / "model.keras")
    assert again.tasks == trained.tasks and again.input.features == ("x", "z")
    assert again.tasks[1].classes == ("a", "b", "c")
    assert again.changes_since(trained) == []
    parts = again.parts_of(rows)[0]
    assert [contents(part) for part in parts.values()] == list(map(contents, rows.split()))
    (tmp_path / "runs" / "split.csv").unlink()
    with pytest.raises(ValueError, match="split.csv beside it.*train.py"):
        load_record(tmp_path / "runs" / "model.keras")


def test_no_record_is_none_and_a_broken_one_is_named(tmp_path):
    assert load_record(tmp_path / "model.keras") is None
    (tmp_path / "model.json").write_text('{"tasks": 3')
    with pytest.raises(ValueError, match=r"model.json` must be the record.*train.py"):
        load_record(tmp_path / "model.keras")


@pytest.mark.parametrize("change", ["appended", "shuffled", "both"])
def test_rows_keep_their_part_when_the_file_changes(tmp_path, record, change):
    before, trained = record
    test = contents(before.split()[2])
    data = frame()
    if change in ("appended", "both"):
        data = pd.concat([data, frame(40, seed=1)])
    if change in ("shuffled", "both"):
        data = data.sample(frac=1, random_state=3)
    now = table(tmp_path, data, features=trained.input.features)
    parts, notes = trained.parts_of(now)
    found = contents(parts["test"])
    assert set(test) <= set(found) and not set(contents(before.split()[0])) & set(found)
    assert sum(len(part) for part in parts.values()) == len(now)
    if change == "shuffled":
        assert found == test and notes == []
    else:
        assert "40 of 100 rows are new since the training" in notes[0]


def test_a_column_that_now_calls_trained_rows_or_their_copies_test_is_not_believed(tmp_path):
    data = frame().assign(split=["train"] * 40 + ["val"] * 10 + ["test"] * 10)
    trained = trained_on(table(tmp_path, data))
    changed = data.assign(split=["test"] * 30 + ["train"] * 10 + ["val"] * 10 + ["test"] * 10)
    parts, notes = trained.parts_of(table(tmp_path, changed))
    assert [len(part) for part in parts.values()] == [40, 10, 10]
    assert "30 rows that the file calls test" in notes[0] and "left out" in notes[0]
    # Copies go where the row was, new rows where the file says.
    more = [data, data.head(5).assign(split="test"), frame(5, seed=1).assign(split="test")]
    parts, notes = trained.parts_of(table(tmp_path, pd.concat(more)))
    assert len(parts["test"]) == 15 and "5 rows that the file calls test" in notes[0]


@pytest.mark.filterwarnings("ignore:.*the same features and different labels")
def test_rows_alike_in_all_parts_keep_their_number(tmp_path):
    data = frame().assign(x=1.5, z=2.5, split=["train"] * 40 + ["val"] * 10 + ["test"] * 10)
    rows = table(tmp_path, data)
    parts, notes = trained_on(rows).parts_of(rows)
    assert [len(part) for part in parts.values()] == [40, 10, 10] and notes == []


def test_a_new_row_of_a_trained_group_is_not_scored(tmp_path):
    groups = [f"g{n // 6}" for n in range(60)]
    data = frame().assign(patient=groups)
    options = {"group_column": "patient"}
    before = table(tmp_path, data, **options)
    train, _, test = before.split()
    trained = trained_on(before)
    more = [frame(5, seed=n).assign(patient=part.groups[0]) for n, part in ((1, train), (2, test))]
    parts, _ = trained.parts_of(table(tmp_path, pd.concat([data, *more]), **options))
    assert not set(parts["test"].groups) & set(train.groups)
    assert len(parts["test"]) == len(test) + 5


def test_rows_with_ids_are_known_by_them(tmp_path):
    data = frame().assign(id=[f"r{n}" for n in range(60)])
    before = table(tmp_path, data, id_column="id")
    trained = trained_on(before)
    data["x"] += 1  # corrected, and the model has seen them all the same
    now = table(tmp_path, data.sample(frac=1, random_state=1), id_column="id")
    parts, notes = trained.parts_of(now)
    assert set(parts["test"].names) == set(before.split()[2].names) and notes == []


def test_a_copy_of_a_trained_image_is_not_scored(image_folder):
    path = image_folder / "labels.csv"
    manifest = kt.Manifest.from_csv(path)
    trained = trained_on(manifest)
    header, *lines = path.read_text().splitlines()
    for number, image in enumerate(manifest.names):
        content = (image_folder / image).read_bytes() + bytes([number])  # all fixtures differ
        for name in (image, f"{image}-copy"):
            (image_folder / name).write_bytes(content)
    copies = [line.replace(",", "-copy,", 1) for line in lines]
    path.write_text("\n".join([header, *lines, *copies]) + "\n")
    parts, _ = trained.parts_of(kt.Manifest.from_csv(path))
    for part, before in zip(parts.values(), manifest.split(), strict=True):
        assert {image.removesuffix("-copy") for image in part.names} == {*before.names}
        assert len(part) == 2 * len(before)


def test_images_are_known_by_their_path(image_folder):
    path = image_folder / "labels.csv"
    manifest = kt.Manifest.from_csv(path)
    trained = trained_on(manifest)
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *(f"./{line}" for line in reversed(lines))]))
    parts, notes = trained.parts_of(kt.Manifest.from_csv(path))
    expected = [f"./{image}" for image in manifest.split()[2].names]
    assert sorted(parts["test"].names) == sorted(expected) and notes == []


def test_a_file_of_which_no_row_is_known_is_named(tmp_path, record):
    _, trained = record
    _, notes = trained.parts_of(table(tmp_path, frame() + frame(seed=5)[["x", "z"]].assign(
        leak=0, grade="")))  # fmt: skip
    assert "none of" in notes[0].lower() and "60 rows" in notes[0]


def test_classes_that_were_renamed_are_an_error_and_not_other_positions(tmp_path, record):
    _, trained = record
    assert table(tmp_path, frame(), tasks=trained.tasks).tasks == trained.tasks
    renamed = frame().replace({"grade": {"a": "z"}})
    with pytest.raises(ValueError, match="column 'grade': 'z'"):
        table(tmp_path, renamed, tasks=trained.tasks)
