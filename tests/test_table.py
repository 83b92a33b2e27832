"""Tables of numbers: files become features and labels, both with holes, or a named error."""

import numpy as np
import pandas as pd
import pytest

import kerasmtl as kt
from kerasmtl.table_files import as_text, read_features

CSV = """\
name,heat,speed,leak,worn,split
a,1.5,100,?,1,train
b,,200,1,0,train
c,-2e3,?,0,?,train
d,4,400,,1,val
e,5,500,1,0,test
"""


def write(folder, text=CSV, name="table.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def same(a, b):
    assert a.columns == b.columns and [t.name for t in a.tasks] == [t.name for t in b.tasks]
    np.testing.assert_array_equal(a.features, b.features)
    np.testing.assert_array_equal(a.labels, b.labels)


def test_a_csv_becomes_features_labels_and_splits(tmp_path):
    table = kt.Table.load(write(tmp_path), ignore=["name"])
    assert table.columns == ("heat", "speed")
    nan = np.nan
    expected = [[1.5, 100], [nan, 200], [-2000, nan], [4, 400], [5, 500]]
    np.testing.assert_array_equal(table.features, expected)
    assert table.features.dtype == np.float32 and [t.name for t in table.tasks] == ["leak", "worn"]
    np.testing.assert_array_equal(table.labels[:, 0], [nan, 1, 0, nan, 1])
    train, val, test = table.split()
    assert [len(part) for part in (train, val, test)] == [3, 1, 1]
    np.testing.assert_array_equal(val.features, [[4, 400]])
    assert val.columns == table.columns and val.lines.tolist() == [5]
    assert table.coverage().known.tolist() == [3, 4]


def test_ids_name_the_rows_and_features_can_be_named(tmp_path):
    table = kt.Table.load(write(tmp_path), id_column="name", features=["speed"])
    assert table.images.tolist() == list("abcde") and table.columns == ("speed",)
    assert "line 3: 'b'" in table.where(1)


def test_groups_stay_whole(tmp_path):
    rows = [f"{n // 4},{n},{n % 2},?" for n in range(80)] + ["20,1,1,1", "20,2,0,0"]
    path = write(tmp_path, "\n".join(["patient,x,ill,old", *rows]) + "\n")
    table = kt.Table.load(path, tasks=["ill", "old"], group_column="patient")
    assert table.columns == ("x",)
    parts = [set(part.groups) for part in table.split(seed=3)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


def test_other_kinds_of_tasks(tmp_path):
    text = "x,grade,hours,ok\n1,low,3.5,1\n2,high,?,0\n3,?,-1,?\n"
    tasks = [kt.Task("grade", "multiclass"), kt.Task("hours", "regression"), "ok"]
    table = kt.Table.load(write(tmp_path, text), tasks=tasks)
    assert table.tasks[0].classes == ("high", "low")
    expected = [[1, 3.5, 1], [0, np.nan, 0], [np.nan, -1, np.nan]]
    np.testing.assert_array_equal(table.labels, np.float32(expected))
    _, labels = next(iter(kt.make_table_dataset(table, 3)))
    assert list(labels) == ["grade", "hours", "binary"]
    assert all(values.shape == (3, 1) for values in labels.values())


def test_parquet_reads_as_the_csv_does(tmp_path):
    pytest.importorskip("pyarrow")
    frame = pd.read_csv(write(tmp_path), na_values=["?"])
    frame["worn"] = frame["worn"].map({1.0: True, 0.0: False}).astype("boolean")
    frame.to_parquet(tmp_path / "table.parquet")
    table = kt.Table.load(tmp_path / "table.parquet", ignore=["name"])
    same(table, kt.Table.load(tmp_path / "table.csv", ignore=["name"]))
    assert table.lines.tolist() == [0, 1, 2, 3, 4]
    write(tmp_path, "no parquet", "bad.parquet")
    with pytest.raises(ValueError, match="is no Parquet file"):
        kt.Table.load(tmp_path / "bad.parquet")


def test_an_npz_reads_as_the_csv_does(tmp_path):
    table = kt.Table.load(write(tmp_path), ignore=["name"])
    np.savez(
        tmp_path / "table.npz",
        X=table.features,
        Y=table.labels,
        tasks=["leak", "worn"],
        columns=["heat", "speed"],
        split=["train", "train", "train", "val", "test"],
    )
    read = kt.Table.load(tmp_path / "table.npz")
    same(read, table)
    assert read.splits.tolist() == table.splits.tolist()
    np.savez(tmp_path / "plain.npz", X=table.features, Y=table.labels)
    plain = kt.Table.load(tmp_path / "plain.npz", tasks=["y1"], ignore=["x0"])
    assert plain.columns == ("x1",) and plain.labels.shape == (5, 1)


def test_packed_bits_are_columns_only_if_said_so(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (6, 16), "uint8")
    labels = np.float32([[0], [1], [np.nan], [0], [1], [1]])
    np.savez(tmp_path / "bits.npz", X=np.packbits(bits, axis=1), Y=labels)
    table = kt.Table.load(tmp_path / "bits.npz", packed_bits=True)
    np.testing.assert_array_equal(table.features, bits)
    assert kt.Table.load(tmp_path / "bits.npz").features.shape == (6, 2)
    np.savez(tmp_path / "bits.npz", X=bits.astype("float32"), Y=labels)
    with pytest.raises(ValueError, match="Expected X of uint8.*packed_bits=False"):
        kt.Table.load(tmp_path / "bits.npz", packed_bits=True)
    with pytest.raises(ValueError, match="`packed_bits` is for NPZ files"):
        kt.Table.load(write(tmp_path), packed_bits=True)


@pytest.mark.parametrize("cell", ["inf", "-Infinity", "1e39", "red", "1_000", "0x10", "true"])
def test_a_feature_that_is_no_finite_number_names_line_and_column(tmp_path, cell):
    path = write(tmp_path, CSV.replace("400", cell))
    with pytest.raises(ValueError, match=rf"line 5, column 'speed': '{cell}'"):
        kt.Table.load(path, ignore=["name"])


def test_text_columns_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"line 2, column 'name': 'a'.*ignore=\[…\].*get_dummies"):
        kt.Table.load(write(tmp_path))


def test_an_infinite_value_in_an_npz_names_row_and_column(tmp_path):
    x = np.zeros((4, 3))
    x[2, 1] = np.inf
    np.savez(tmp_path / "t.npz", X=x, Y=np.zeros((4, 1)))
    with pytest.raises(ValueError, match="row 2, column 'x1'"):
        kt.Table.load(tmp_path / "t.npz")


def test_tasks_and_binary_features_are_not_guessed_apart(tmp_path):
    text = "flag,x,leak\n1,2.5,?\n0,3.5,1\n1,4.5,0\n"
    with pytest.raises(ValueError, match=r"\['leak'\], without \['flag'\].*tasks=\['leak'\]"):
        kt.Table.load(write(tmp_path, text))
    assert kt.Table.load(tmp_path / "table.csv", tasks=["leak"]).columns == ("flag", "x")
    assert kt.Table.load(tmp_path / "table.csv", features=["flag", "x"]).tasks[0].name == "leak"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tasks": ["nope"]}, r"lacks: \['nope'\]"),
        ({"tasks": ["leak"], "features": ["nope"]}, r"`features` names columns.*'nope'"),
        ({"tasks": ["leak"], "features": ["leak"]}, "none of them a task"),
        ({"tasks": ["leak"], "features": ["heat", "heat"]}, r"twice \['heat'\]"),
        ({"id_column": "nope"}, "`id_column` 'nope' is not in"),
        ({"tasks": ["heat"], "features": ["speed"]}, "line 2, column 'heat': '1.5'"),
    ],
)
def test_wrong_requests_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        kt.Table.load(write(tmp_path), **options)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"Y": np.zeros((3, 1))}, "no array X"),
        ({"X": np.zeros((3, 2))}, "no array Y"),
        ({"X": np.zeros(3), "Y": np.zeros((3, 1))}, "X is no matrix"),
        ({"X": np.zeros((3, 2)), "Y": np.zeros(3)}, "Y is no matrix"),
        ({"X": np.zeros((3, 2)), "Y": np.zeros((3, 1)), "tasks": ["a", "b"]}, "array tasks does"),
        ({"X": np.zeros((3, 2)), "Y": np.full((3, 1), 2.0)}, "none of 0, 1 or missing"),
    ],
)
def test_a_wrong_npz_is_named(tmp_path, arrays, message):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        kt.Table.load(tmp_path / "t.npz")


def test_absent_and_unknown_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no file"):
        kt.Table.load(tmp_path / "no.csv")
    with pytest.raises(ValueError, match="ends in one of .csv, .parquet, .npz"):
        kt.Table.load(write(tmp_path, name="table.xlsx"))
    write(tmp_path, "no zip", "t.npz")
    with pytest.raises(ValueError, match="is no NPZ"):
        kt.Table.load(tmp_path / "t.npz")


def test_arrays_that_do_not_fit_are_named():
    x, y = np.zeros((3, 2)), np.zeros((3, 1))
    with pytest.raises(ValueError, match=r"`labels` of arrays do not fit. Expected shape \(3, 2\)"):
        kt.Table.from_arrays(x, y, ["a", "b"])
    with pytest.raises(ValueError, match="`columns` of arrays do not fit"):
        kt.Table.from_arrays(x, y, ["a"], columns=["one"])
    with pytest.raises(ValueError, match="`columns` are not all in"):
        kt.Table.from_arrays(x, y, ["a"]).with_columns(["x7"])


def test_batches_keep_rows_together_and_shuffle_only_in_training():
    x = np.arange(50, dtype="float32")[:, None]
    y = np.where(x % 3 == 0, np.nan, x % 2)
    table = kt.Table.from_arrays(x, y, ["odd"])
    plain = list(kt.make_table_dataset(table, 16))
    assert [len(labels) for _, labels in plain] == [16, 16, 16, 2]
    np.testing.assert_array_equal(np.concatenate([b[0] for b in plain]), x)
    data = kt.make_table_dataset(table, 16, training=True, seed=1)
    first, second = (np.concatenate([np.hstack(batch) for batch in data]) for _ in range(2))
    assert (first[:, 0] != second[:, 0]).any() and (first[:, 0] != x[:, 0]).any()
    order = np.argsort(first[:, 0])
    np.testing.assert_array_equal(first[order], np.hstack([x, y]).astype("float32"))


def test_batches_refuse_what_cannot_be_learnt():
    table = kt.Table.from_arrays(np.zeros((3, 1)), np.full((3, 1), np.nan), ["a"])
    with pytest.raises(ValueError, match="cannot be learnt"):
        kt.make_table_dataset(table, training=True)
    with pytest.raises(ValueError, match="`batch_size` is too small"):
        kt.make_table_dataset(table, 0)
    with pytest.raises(ValueError, match="`table` has no rows"):
        kt.make_table_dataset(table.take([]))


def test_features_for_prediction_need_no_labels_and_any_order(tmp_path):
    path = write(tmp_path, "speed,more,heat\n7,x,\n8,y,9\n")
    features, lines = read_features(path, ["heat", "speed"])
    np.testing.assert_array_equal(features, [[np.nan, 7], [9, 8]])
    assert lines.tolist() == [2, 3]
    with pytest.raises(ValueError, match=r"lacks: \['flow'\]"):
        read_features(path, ["heat", "flow"])


def test_cells_as_text():
    frame = pd.DataFrame({"a": [1.0, np.nan], "b": [True, False], "c": [None, "x"]})
    assert as_text(frame).to_numpy().tolist() == [["1.0", "1", ""], ["", "0", "x"]]
