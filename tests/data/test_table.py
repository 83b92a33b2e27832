"""Tables of numbers: files become features and labels, with missing values, or a named error."""

import warnings

import numpy as np
import pandas as pd
import pytest
import tables
from tables import load_table, table_of

from kerasmtl.data.duplicates import row_keys
from kerasmtl.data.readers import read_features

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
    assert a.input.features == b.input.features and [t.name for t in a.tasks] == [
        t.name for t in b.tasks
    ]
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.labels, b.labels)


def test_a_csv_becomes_features_labels_and_splits(tmp_path):
    table = load_table(write(tmp_path), ignore=["name"])
    assert table.input.features == ("heat", "speed")
    nan = np.nan
    expected = [[1.5, 100], [nan, 200], [-2000, nan], [4, 400], [5, 500]]
    np.testing.assert_array_equal(table.values, expected)
    assert table.values.dtype == np.float32 and [t.name for t in table.tasks] == ["leak", "worn"]
    np.testing.assert_array_equal(table.labels[:, 0], [nan, 1, 0, nan, 1])
    train, val, test = table.split()
    assert [len(part) for part in (train, val, test)] == [3, 1, 1]
    np.testing.assert_array_equal(val.values, [[4, 400]])
    assert val.input.features == table.input.features and val.lines.tolist() == [5]
    assert table.coverage().known.tolist() == [3, 4]


def test_parquet_reads_as_the_csv_does(tmp_path):
    pytest.importorskip("pyarrow")
    frame = pd.read_csv(write(tmp_path), na_values=["?"])
    frame["worn"] = frame["worn"].map({1.0: True, 0.0: False}).astype("boolean")
    frame.to_parquet(tmp_path / "table.parquet")
    table = load_table(tmp_path / "table.parquet", ignore=["name"])
    same(table, load_table(tmp_path / "table.csv", ignore=["name"]))
    assert table.lines.tolist() == [0, 1, 2, 3, 4]
    write(tmp_path, "no parquet", "bad.parquet")
    with pytest.raises(ValueError, match="must be a Parquet file"):
        load_table(tmp_path / "bad.parquet")


def test_an_npz_reads_as_the_csv_does(tmp_path):
    table = load_table(write(tmp_path), ignore=["name"])
    np.savez(
        tmp_path / "table.npz",
        X=table.values,
        Y=table.labels,
        tasks=["leak", "worn"],
        columns=["heat", "speed"],
        split=["train", "train", "train", "val", "test"],
    )
    read = load_table(tmp_path / "table.npz")
    same(read, table)
    assert read.splits.tolist() == table.splits.tolist()
    np.savez(tmp_path / "plain.npz", X=table.values, Y=table.labels)
    plain = load_table(tmp_path / "plain.npz", tasks=["y1"], ignore=["x0"])
    assert plain.input.features == ("x1",) and plain.labels.shape == (5, 1)


def test_packed_bits_are_columns_only_if_said_so(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (6, 16), "uint8")
    labels = np.float32([[0], [1], [np.nan], [0], [1], [1]])
    np.savez(tmp_path / "bits.npz", X=np.packbits(bits, axis=1), Y=labels)
    table = load_table(tmp_path / "bits.npz", packed_bits=True)
    np.testing.assert_array_equal(table.values, bits)
    assert load_table(tmp_path / "bits.npz").values.shape == (6, 2)
    np.savez(tmp_path / "bits.npz", X=bits.astype("float32"), Y=labels)
    with pytest.raises(ValueError, match="`packed_bits` must be False"):
        load_table(tmp_path / "bits.npz", packed_bits=True)
    with pytest.raises(ValueError, match="`packed_bits` must be False"):
        load_table(write(tmp_path), packed_bits=True)


@pytest.mark.parametrize("cell", ["inf", "-Infinity", "1e39", "red", "1_000", "0x10", "true"])
def test_a_feature_that_is_not_finite_names_line_and_column(tmp_path, cell):
    path = write(tmp_path, CSV.replace("400", cell))
    with pytest.raises(ValueError, match=rf"line 5, column 'speed': '{cell}'"):
        load_table(path, ignore=["name"])


def test_an_infinite_value_in_an_npz_names_row_and_column(tmp_path):
    x = np.zeros((4, 3))
    x[2, 1] = np.inf
    np.savez(tmp_path / "t.npz", X=x, Y=np.zeros((4, 1)))
    with pytest.raises(ValueError, match="row 2, column 'x1'"):
        load_table(tmp_path / "t.npz")


def test_tasks_and_binary_features_are_not_guessed_apart(tmp_path):
    text = "flag,x,leak\n1,2.5,?\n0,3.5,1\n1,4.5,0\n"
    with pytest.raises(ValueError, match=r"leak have missing values, and flag .*tasks=\['leak'\]"):
        load_table(write(tmp_path, text))
    assert load_table(tmp_path / "table.csv", tasks=["leak"]).input.features == ("flag", "x")
    assert load_table(tmp_path / "table.csv", features=["flag", "x"]).tasks[0].name == "leak"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tasks": ["nope"]}, "`tasks`.*'nope'"),
        ({"tasks": ["leak"], "features": ["nope"]}, "`features`.*'nope'"),
        (
            {"tasks": ["leak"], "features": ["leak"]},
            "`features` must name different|different columns",
        ),
        ({"tasks": ["leak"], "features": ["heat", "heat"]}, "`features`.* twice heat"),
        ({"id_column": "nope"}, "`id_column`.*'nope'"),
        ({"ignore": ["name", "typo"]}, "`ignore`.*got 'typo'"),
        ({"ignore": "name"}, r"`ignore` must be a list.*ignore=\['name'\]"),
        ({"split_column": "Split"}, "`split_column`.*'Split'"),
        ({"tasks": ["heat"], "features": ["speed"]}, "line 2, column 'heat': '1.5'"),
    ],
)
def test_wrong_requests_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load_table(write(tmp_path), **options)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"Y": np.zeros((3, 1))}, "an array X"),
        ({"X": np.zeros((3, 2))}, "an array Y"),
        ({"X": np.zeros(3), "Y": np.zeros((3, 1))}, "array X must"),
        ({"X": np.zeros((3, 2)), "Y": np.zeros(3)}, "array Y must"),
        ({"X": np.zeros((3, 2)), "Y": np.zeros((3, 1)), "tasks": ["a", "b"]}, "array tasks must"),
        ({"X": np.zeros((3, 2)), "Y": np.full((3, 1), 2.0)}, "must be 0, 1 or missing"),
    ],
)
def test_a_wrong_npz_is_named(tmp_path, arrays, message):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_table(tmp_path / "t.npz")


def test_features_for_prediction_need_no_labels_and_any_order(tmp_path):
    path = write(tmp_path, "speed,more,heat\n7,x,\n8,y,9\n")
    features, lines = read_features(path, ["heat", "speed"])
    np.testing.assert_array_equal(features, [[np.nan, 7], [9, 8]])
    assert lines.tolist() == [2, 3]
    with pytest.raises(ValueError, match="`features`.*'flow'"):
        read_features(path, ["heat", "flow"])


# Rows that contradict each other, and rows of one name


def test_rows_of_one_name_are_merged_or_refused_with_both_lines(tmp_path):
    path = write(tmp_path, "name,heat,leak,worn\na,1.5,1,?\nb,2,0,1\na,1.5,?,0\n")
    with pytest.warns(UserWarning, match="1 rows more than once.*'a' in lines 2 and 4") as caught:
        table = load_table(path, id_column="name", tasks=["leak", "worn"])
    assert caught[0].filename == tables.__file__
    assert table.names.tolist() == ["a", "b"] and table.labels.tolist() == [[1, 0], [0, 1]]
    write(tmp_path, "name,heat,leak\na,1.5,1\nb,2,0\na,1.5,0\n")
    with pytest.raises(ValueError, match=r"column 'leak'.*'a' 1 in line 2 and 0 in line 4"):
        load_table(path, id_column="name", tasks=["leak"])
    write(tmp_path, "name,heat,leak\na,1.5,1\nb,2,0\na,1.25,1\n")
    with pytest.raises(ValueError, match=r"column 'heat'.*1.5 in line 2 and 1.25 in line 4"):
        load_table(path, id_column="name", tasks=["leak"])


@pytest.mark.parametrize("name", ["", "NA", "?"])
def test_a_row_without_a_name_is_refused(tmp_path, name):
    path = write(tmp_path, f"name,heat,leak\na,1.5,1\n{name},2,0\n")
    with pytest.raises(ValueError, match=r"`id_column` in .*line 3, column 'name' must"):
        load_table(path, id_column="name")


def test_equal_features_with_different_labels_are_warned_of(tmp_path):
    path = write(tmp_path, "heat,speed,leak\n1,?,1\n2,2,0\n1,,0\n2,2,?\n2,2,0\n")
    with pytest.warns(UserWarning, match=r"'leak' is 1 in line 2 and 0 in line 4\. ") as caught:
        assert len(load_table(path, tasks=["leak"])) == 5
    assert caught[0].filename == tables.__file__ and len(caught) == 1


# Columns that are taken for something else


def test_columns_without_a_name_or_a_value_are_left_out_with_a_warning(tmp_path):
    path = write(tmp_path, ",heat,later,leak\n0,1.5,?,1\n1,2.5,NA,0\n")
    with pytest.warns(UserWarning) as caught:
        table = load_table(path, tasks=["leak"])
    said = [str(warning.message) for warning in caught]
    assert "column 1, ''" in said[0] and "has no name" in said[0] and "index=False" in said[0]
    assert "column 3, 'later'" in said[1] and "has no known value; it is left out" in said[1]
    assert {warning.filename for warning in caught} == {tables.__file__}
    assert table.input.features == ("heat",) and table.ignored == ("", "later")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_table(path, tasks=["leak"], ignore=["", "later"])
        table = load_table(path, tasks=["leak"], features=["heat", "later"])
    assert table.input.features == ("heat", "later")


@pytest.mark.parametrize("cells", ["01?", "0?1", ("0", "-1", "1")])
def test_features_that_look_like_labels_are_warned_of(tmp_path, cells):
    rows = "".join(f"{at},{cell},{at % 2}\n" for at, cell in enumerate([*cells, *cells]))
    path = write(tmp_path, "heat,worn,leak\n" + rows)
    with pytest.warns(UserWarning, match=r"1 columns of .*: worn\..*Task\(name, missing=-1\)"):
        load_table(path, tasks=["leak"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_table(path, tasks=["leak"], features=["heat", "worn"])
        load_table(path, tasks=["leak"], ignore=["worn"])


def test_arrays_of_an_npz_that_do_not_fit_are_named(tmp_path):
    x, y = np.arange(8.0).reshape(4, 2), np.float32([[0], [1], [np.nan], [1]])
    split = np.array(["train", "val", "test", "train"])
    np.savez(tmp_path / "t.npz", X=x, Y=y, split=split[:, None])
    with pytest.raises(ValueError, match=r"`split_column` must be of shape \(4,\).*\(4, 1\)"):
        load_table(tmp_path / "t.npz")
    np.savez(tmp_path / "t.npz", X=x, Y=y, y0=np.zeros(4))
    with pytest.raises(ValueError, match="twice y0"):
        load_table(tmp_path / "t.npz")
    np.savez(tmp_path / "t.npz", X=x, Y=y, split=split.astype("S"), tasks=np.array([b"leak"]))
    table = load_table(tmp_path / "t.npz")
    assert table.splits.tolist() == split.tolist() and table.tasks[0].name == "leak"
    with pytest.raises(ValueError, match=r"row 2, column 'y0': 'inf'"):
        np.savez(tmp_path / "t.npz", X=x, Y=np.where(np.isnan(y), np.inf, y))
        load_table(tmp_path / "t.npz")


# Files


def test_files_other_than_npz_are_named(tmp_path):
    table = load_table(write(tmp_path), ignore=["name"])
    np.savez_compressed(tmp_path / "whole.npz", X=table.values, Y=table.labels)
    whole = (tmp_path / "whole.npz").read_bytes()
    np.save(tmp_path / "array.npy", table.values)
    files = [b"", b"PK\x03\x04garbage", whole[:200], (tmp_path / "array.npy").read_bytes()]
    files.append(whole[:60] + bytes(20) + whole[80:])
    for content in files:
        (tmp_path / "t.npz").write_bytes(content)
        with pytest.raises(ValueError, match="must be an NPZ of plain arrays.*numpy.savez"):
            load_table(tmp_path / "t.npz")


def test_lists_in_a_parquet_are_refused(tmp_path):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"heat": [1.5, 2], "leak": [0, 1]})
    for cells in ([[1, 2], [3]], [{"a": 1}, {"a": 2}]):
        frame.assign(more=cells).to_parquet(tmp_path / "t.parquet")
        with pytest.raises(ValueError, match="row 0, column 'more'"):
            load_table(tmp_path / "t.parquet")
        table = load_table(tmp_path / "t.parquet", ignore=["more"])
        assert table.input.features == ("heat",)
        with pytest.raises(ValueError, match="row 0, column 'more'"):
            load_table(tmp_path / "t.parquet", tasks=["more"], features=["heat"])


def test_the_named_index_of_a_parquet_is_a_column(tmp_path):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"heat": [1.5, 2], "leak": [0, 1], "patient": ["p", "q"]})
    frame.set_index("patient").to_parquet(tmp_path / "t.parquet")
    table = load_table(tmp_path / "t.parquet", group_column="patient")
    assert table.groups.tolist() == ["p", "q"] and table.input.features == ("heat",)
    frame.drop(columns="patient").set_index(np.array([5, 7])).to_parquet(tmp_path / "t.parquet")
    assert load_table(tmp_path / "t.parquet").input.features == ("heat",)


def test_every_column_with_a_fault_is_named_once(tmp_path):
    path = write(tmp_path, CSV.replace("400", "red"))
    with pytest.raises(ValueError) as error:
        load_table(path)
    assert "line 2, column 'name': 'a' (5 such cells); line 5, column 'speed'" in str(error.value)
    assert "group_column=" in str(error.value)
    with pytest.raises(ValueError, match="line 5, column 'speed'") as error:
        read_features(path, ["speed"])
    assert "ignore" not in str(error.value)


def test_numbers_that_float32_cannot_tell_apart_are_warned_of(tmp_path):
    rows = [f"{1_700_000_000 + at},{at / 7},{16_777_216 - at},{at % 2}" for at in range(50)]
    path = write(tmp_path, "\n".join(["time,heat,count,leak", *rows]))
    with pytest.warns(UserWarning, match="'time'.*50 distinct ones become 1") as caught:
        table = load_table(path)
    assert len(caught) == 1 and caught[0].filename == tables.__file__
    x = np.loadtxt(rows, delimiter=",")[:, :3]
    with pytest.warns(UserWarning, match="'x0'.*50 distinct ones become 1") as caught:
        np.savez(tmp_path / "t.npz", X=x, Y=table.labels)
        load_table(tmp_path / "t.npz")
    assert len(caught) == 1 and caught[0].filename == tables.__file__


# Splits


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tasks": ["leak"], "ignore": ["name", "leak"]}, "`ignore` and `tasks` .*leak"),
        ({"features": ["heat"], "ignore": ["heat"]}, "`features` and `ignore` .*heat"),
        ({"tasks": ["leak"], "group_column": "leak"}, "`group_column` and `tasks` .*leak"),
        ({"features": ["name"], "id_column": "name"}, "`features` and `id_column` .*name"),
    ],
)
def test_a_column_has_one_meaning(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load_table(write(tmp_path), **options)


@pytest.mark.parametrize("by", ["stratified", "hash"])
@pytest.mark.parametrize("ids", [False, True])
def test_identical_rows_are_never_parted(by, ids):
    rng = np.random.default_rng(0)
    features = rng.choice([0.0, -0.0, 1.0, np.nan], (90, 4))
    features[60:] = rng.normal(size=(30, 4))
    labels = rng.integers(0, 2, (90, 2))
    names = [f"r{at}" for at in rng.permutation(90)] if ids else None
    table = table_of(features, labels, ["a", "b"], names=names)
    keys = [set(row_keys(part.values, part.input.features).tolist()) for part in table.split(by=by)]
    assert sum(map(len, keys)) == len(set.union(*keys)) < 90
    assert table.leaks(by=by).empty
