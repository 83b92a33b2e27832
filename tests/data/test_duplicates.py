"""Rows of one image: merged where they agree, refused with both lines where they do not."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerasmtl.data import duplicates
from kerasmtl.data.duplicates import identical_files, merge_duplicates, row_keys
from kerasmtl.data.inputs import Input, Table
from kerasmtl.data.manifest import Manifest
from kerasmtl.tasks import Task
from kerasmtl.utils.files import file_sha256

NAN = float("nan")


@pytest.fixture
def read(tmp_path):
    def from_rows(*rows, columns="image,a,b", **options):
        path = tmp_path / "labels.csv"
        path.write_text("\n".join([columns, *rows]) + "\n")
        return Manifest.from_csv(path, **options)

    return from_rows


def test_rows_that_complement_each_other_become_one_with_a_warning(read):
    with pytest.warns(UserWarning, match="1 rows more than once.*'x' in lines 2 and 4"):
        manifest = read("x,1,?", "y,0,0", "x,?,1", "z,?,?")
    assert manifest.names.tolist() == ["x", "y", "z"] and manifest.lines.tolist() == [2, 3, 5]
    np.testing.assert_array_equal(manifest.labels, np.array([[1, 1], [0, 0], [NAN, NAN]], "f"))


def test_rows_that_contradict_each_other_are_refused_with_both_lines(read):
    with pytest.raises(ValueError) as error:
        read("x,1,?", "y,0,0", "x,?,1", "x,1,0")
    assert "column 'b', must agree" in str(error.value)
    assert "'x' 1 in line 4 and 0 in line 5" in str(error.value)


@pytest.mark.parametrize("other", ["sub/../x.jpg", ".//x.jpg", "{root}/x.jpg"])
def test_one_image_may_be_written_in_many_ways(read, tmp_path, other):
    with pytest.raises(ValueError, match="1 in line 2 and 0 in line 3"):
        read("x.jpg,1,0", f"{other.format(root=tmp_path)},0,0")


def test_a_contradiction_of_other_kinds_shows_their_labels(read):
    tasks = [Task("a", "multiclass"), Task("b", "regression")]
    with pytest.raises(ValueError, match="'low' in line 2 and 'high' in line 3"):
        read("x,low,1", "x,high,1", tasks=tasks)
    with pytest.raises(ValueError, match=r"column 'b'.*1\.5 in line 2 and 1 in line 3"):
        read("x,low,1.5", "x,?,1", "y,high,2", tasks=tasks)


@pytest.mark.parametrize(("column", "cells"), [("split", ("train", "test")), ("video", "vw")])
def test_one_image_is_in_one_part_and_one_group(read, column, cells):
    rows = [f"x,1,0,{cells[0]}", f"x,1,0,{cells[1]}"]
    options = {"columns": f"image,a,b,{column}"}
    if column == "video":
        options["group_column"] = "video"
    with pytest.raises(ValueError, match=f"column '{column}'.*line 2 and .* in line 3"):
        read(*rows, **options)


@given(st.lists(st.tuples(st.integers(0, 4), *[st.sampled_from([0, 1, None])] * 2), max_size=12))
@settings(max_examples=80, deadline=None)
def test_merging_is_what_pandas_groups_say(rows):
    frame = pd.DataFrame(rows, columns=["image", "a", "b"]).astype({"a": float, "b": float})
    labels = frame[["a", "b"]].to_numpy("float32")
    manifest = Manifest.from_arrays(
        range(len(frame)), labels, ["a", "b"], names=frame.image.astype(str).to_list()
    )
    grouped = frame.groupby("image", sort=False)[["a", "b"]]
    with warnings.catch_warnings(action="ignore"):
        if (grouped.nunique() > 1).any().any():
            with pytest.raises(ValueError, match="must agree"):
                merge_duplicates(manifest, {}, np.zeros(labels.shape, dtype=bool))
            return
        merged = merge_duplicates(manifest, {}, np.zeros(labels.shape, dtype=bool))
    np.testing.assert_array_equal(merged.labels, grouped.first().to_numpy("float32").reshape(-1, 2))
    assert merged.names.tolist() == list(dict.fromkeys(manifest.names))


@pytest.mark.parametrize("other", ["./x.jpg", ".//x.jpg"])
def test_an_image_without_a_group_may_be_written_in_many_ways(read, other):
    with pytest.warns(UserWarning, match="1 rows more than once"):
        manifest = read(
            "x.jpg,1,0,", f"{other},?,0,NA", columns="image,a,b,video", group_column="video"
        )
    assert len(manifest) == 1


def test_a_row_with_a_group_and_one_without_are_refused_in_plain_words(read):
    with pytest.raises(ValueError, match="got for 'x.jpg' no value in line 2 and 'v' in line 3"):
        read("x.jpg,1,0,", "x.jpg,1,0,v", columns="image,a,b,video", group_column="video")


def test_identical_rows_without_a_group_are_not_called_a_group(tmp_path, recwarn):
    rows = [f"{n}.5,{n % 2},{('train', 'val', 'test')[n % 3]},g{n}" for n in range(12)]
    rows += ["99.5,1,train,", "99.5,1,test,"]
    (tmp_path / "t.csv").write_text("\n".join(["x,a,split,g", *rows]) + "\n")
    Manifest.from_csv(tmp_path / "t.csv", ["a"], Table(), group_column="g").split()
    (said,) = [str(each.message) for each in recwarn if "two sides" in str(each.message)]
    assert "has identical rows on" in said and "\0" not in said


def test_rows_of_several_objects_are_the_same_by_their_content():
    texts = [["red", "cat"], ["".join("red"), "".join("cat")], ["redcat", ""], ["cat", "red"]]
    keys = Input.identical(Table(), np.array(texts, dtype=object))
    assert keys[0] == keys[1] and len(set(keys)) == 3


@pytest.mark.parametrize("policy", ["zero", 0.5])
@pytest.mark.parametrize("rows", [("x,-1", "x,0"), ("x,0", "x,-1"), ("x,-1", "x,-1", "x,0.0")])
def test_a_certain_label_wins_over_an_uncertain_one(read, policy, rows):
    task = Task("a", uncertain=-1, uncertain_as=policy)
    with pytest.warns(UserWarning, match="are merged"):
        manifest = read(*rows, "y,1", columns="image,a", tasks=[task])
    assert manifest.labels.tolist() == [[0], [1]]
    with pytest.warns(UserWarning, match="are merged"):
        manifest = read("x,-1", "x,-1.0", "y,1", columns="image,a", tasks=[task])
    assert manifest.labels[0, 0] == {"zero": 0, "one": 1}.get(policy, policy)


def test_keys_know_rows_by_their_numbers_alone():
    rng = np.random.default_rng(0)
    features = rng.integers(-2, 3, (500, 4)).astype("float32")
    features[rng.random(features.shape) < 0.2] = NAN
    keys = row_keys(features, list("abcd"))
    text = [str([f"{abs(cell) if cell == 0 else cell}" for cell in row]) for row in features]
    np.testing.assert_array_equal(pd.factorize(keys)[0], pd.factorize(pd.Series(text))[0])
    np.testing.assert_array_equal(row_keys(features[:, ::-1], list("dcba")), keys)
    assert (row_keys(features[:, ::-1], list("abcd")) != keys).any()
    zeros = np.array([[0.0], [-0.0]], "float32")
    assert len(set(row_keys(zeros, ["a"]).tolist())) == 1


def numbers(folder, contents):
    """The codes of files of these contents, None = absent."""
    for at, content in enumerate(contents):
        if content is not None:
            (folder / str(at)).write_bytes(content)
    return identical_files([str(folder / str(at)) for at in range(len(contents))]).tolist()


def test_files_are_the_same_by_their_bytes(tmp_path):
    long = b"x" * 20_000
    contents = [b"one", b"two", b"one", long, b"y" + long[1:], long, b"one!", long[:-1] + b"y"]
    codes = numbers(tmp_path, contents)
    assert [codes.index(code) for code in codes] == [contents.index(c) for c in contents]


def test_links_are_the_file_that_they_name(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "c").hardlink_to(tmp_path / "a")
    assert len(set(identical_files([str(tmp_path / name) for name in "abc"]).tolist())) == 1


def test_what_cannot_be_read_is_like_nothing_else(tmp_path):
    (tmp_path / "5").mkdir()
    (tmp_path / "6").mkdir()
    assert len(set(numbers(tmp_path, [None, None, b"", b"", b"x"]))) == 5
    assert len(set(identical_files([str(tmp_path / name) for name in "56"]).tolist())) == 2
    assert identical_files([]).shape == (0,)


def test_only_files_whose_size_and_end_are_equal_are_read_whole(tmp_path, monkeypatch):
    whole = []

    def spy(path):
        whole.append(path[-1])
        return file_sha256(path)

    monkeypatch.setattr(duplicates, "file_sha256", spy)
    size = 20_000
    contents = [b"a" * size, b"b" * size, b"b" * (size - 1), b"b" * (size - 1) + b"x", b"xy"]
    numbers(tmp_path, contents)
    assert whole == []
    numbers(tmp_path, [*contents, b"y" + b"b" * (size - 1)])
    assert sorted(whole) == ["1", "5"]
