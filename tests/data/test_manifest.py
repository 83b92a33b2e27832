"""The labels file: every fault is named by file, line and column, and nothing is guessed."""

import os
import re

import numpy as np
import pytest
from image_folder import write_images

from kerasmtl.data.inputs import Fault, Image
from kerasmtl.data.manifest import Manifest
from kerasmtl.tasks import Task

NAN = float("nan")


@pytest.fixture
def read(tmp_path):
    """Reads a text, or bytes, as tmp_path/labels.csv."""

    def from_text(text, **options):
        own = {k: options.pop(k) for k in ("column", "root", "allow_outside") if k in options}
        path = tmp_path / "labels.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return Manifest.from_csv(path, input=Image(**own), **options)

    return from_text


def names(manifest):
    return [task.name for task in manifest.tasks]


def table(rows, columns=("image", "a")):
    return "\n".join([",".join(columns), *rows]) + "\n"


# What is read


def test_a_row_has_its_image_labels_and_line(read):
    manifest = read("image,a,b\nx.jpg,1,?\ny.jpg,0.0,1\n")
    assert len(manifest) == 2 and names(manifest) == ["a", "b"]
    assert manifest.labels.dtype == np.float32
    np.testing.assert_array_equal(manifest.labels, [[1, NAN], [0, 1]])
    assert manifest.names.tolist() == ["x.jpg", "y.jpg"]
    assert manifest.lines.tolist() == [2, 3]
    assert manifest.splits is None


@pytest.mark.parametrize(
    "data",
    [
        "image,a\nä x.jpg,1\n信号.png,0\n",
        "\ufeffimage,a\nä x.jpg,1\n信号.png,0\n",
        "image,a\r\nä x.jpg,1\r\n信号.png,0\r\n",
        "image,a\rä x.jpg,1\r信号.png,0\r",
        "image,a\nä x.jpg,1\n信号.png,0",
        ' image , a \n ä x.jpg , 1 \n信号.png,"0"\n',
        '"image","a"\n"ä x.jpg","1"\n"信号.png","0"\n',
    ],
    ids=["plain", "bom", "crlf", "cr", "no last newline", "blanks", "quoted"],
)
def test_the_ways_to_write_a_csv_read_alike(read, data):
    manifest = read(data)
    assert manifest.names.tolist() == ["ä x.jpg", "信号.png"]
    assert names(manifest) == ["a"] and manifest.labels.tolist() == [[1], [0]]
    assert manifest.lines.tolist() == [2, 3]


@pytest.mark.parametrize("blank", ["", "   ", ",,", '"",,'])
def test_blank_lines_are_left_out_and_counted(read, blank):
    manifest = read(f"image,a,b\n{blank}\nx,1,0\n{blank}\n{blank}\ny,0,1\n{blank}\n")
    assert manifest.lines.tolist() == [3, 6]


def test_a_cell_of_several_lines_is_counted_as_such(read):
    manifest = read('image,a,note\nx,1,"one\ntwo\r\nthree"\ny,0,-\n')
    assert manifest.lines.tolist() == [2, 5]


def test_other_encodings_are_read_if_named(read):
    for encoding in ("latin-1", "utf-16", "UTF_8", "cp1252"):
        manifest = read("image,a\né.jpg,1\n".encode(encoding), encoding=encoding)
        assert manifest.names.tolist() == ["é.jpg"]


def test_columns_may_have_other_names_and_any_order(read):
    manifest = read("b,fold,file,a\n1,dev,x,0\n", column="file", split_column="fold")
    assert names(manifest) == ["b", "a"] and manifest.splits.tolist() == ["val"]
    assert manifest.labels.tolist() == [[1, 0]]


# Which columns are tasks


def test_columns_of_0_1_and_missing_are_tasks_and_others_are_not(read):
    rows = [f"{i}.jpg,{i % 2},?,{i},{i / 7:.3f},note {i},1.0,{i % 2}" for i in range(10)]
    rows[3] = "3.jpg,,1,3,0.429,,0.0,0"
    columns = ["image", "a", "rare", "id", "score", "text", "b", ""]
    assert names(read(table(rows, columns))) == ["a", "rare", "b"]


# What is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty file"),
        (",,\n", "empty file"),
        ("image,a\n\n,\n", "must have rows"),
        ("image,a, a \nx,1,1\n", "distinct columns.* a"),
        ("image;a\nx;1\n", "comma-separated"),
        ("image,b,c\nx,?,two\ny,,three\n", "`tasks` must be named.*b, c"),
        ("image,a\nx,1,0\ny,1\n", "line 2, must have 2 cells.*too many"),
        ("image,a,b\nx,1,0\n\ny,1\n", "line 4, must have 3 cells.*too few"),
        ('image,a,b\n"x\nx",1,0\ny,1\n', "line 4, must have 3 cells.*too few"),
        ('image,a\nx,1\n"y,0\nz,1\n', "line 3, must be.*quote"),
        ("image,a,b\nx,1,0\n\ny,0,2\nz,1,1\n", "line 4, column 'b': '2'"),
        ("image,a\nx,1\n  ,0\n", "`images` in .*line 3, column 'image'"),
        ("image,a,split\nx,1,train\ny,0,holdout\n", "line 3, column 'split', .*'holdout'"),
        ("photo,a\nx,1\n", "`column`.*'image'.*'photo', 'a'"),
    ],
)
def test_what_is_wrong_is_named_by_file_line_and_column(read, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read(text)
    assert "labels.csv" in str(error.value)


def test_tasks_are_read_in_the_order_asked_for_and_must_be_there(read):
    manifest = read("image,a,b,c\nx,1,0,?\n", tasks=["c", Task("a")])
    assert names(manifest) == ["c", "a"]
    np.testing.assert_array_equal(manifest.labels, [[NAN, 1]])
    with pytest.raises(ValueError, match="`tasks`.*'d'.*'image', 'a', 'b'"):
        read("image,a,b\nx,1,1\n", tasks=["a", "d"])


@pytest.mark.parametrize("far", [0, 20_000])
def test_a_wrong_encoding_is_named_with_line_byte_and_a_way_out(read, far):
    data = b"image,a\n" + b"x.jpg,1\n" * far + "é.jpg,1\n".encode("latin-1")
    with pytest.raises(ValueError) as error:
        read(data)
    place = f"`encoding`.*labels.csv .*'utf-8' .line {far + 2}, byte {8 + 8 * far}:"
    assert re.search(place, str(error.value)) and "encoding='latin-1'" in str(error.value)


@pytest.mark.parametrize("path", ["absent.csv", "."])
def test_a_path_without_a_file_is_refused(tmp_path, path):
    with pytest.raises(FileNotFoundError, match="`path`"):
        Manifest.from_csv(tmp_path / path)


OUTSIDE = ["../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "..", "a/..", ".", "a/../../{name}x/y.jpg"]


@pytest.mark.parametrize("image", OUTSIDE)
def test_an_image_outside_of_the_folder_is_refused_unless_allowed(read, tmp_path, image):
    text = f"image,a\nx.jpg,1\n{image.format(name=tmp_path.name)},0\n"
    with pytest.raises(ValueError, match="line 3, column 'image' must be a path inside"):
        read(text)
    assert len(read(text, allow_outside=True)) == 2


@pytest.mark.parametrize("image", ["{root}/x.jpg", "a/../b.jpg", "./x.jpg", "a..b.jpg", "a/b/c"])
def test_an_image_inside_of_the_folder_is_accepted_however_it_is_written(read, tmp_path, image):
    manifest = read(f"image,a\n{image.format(root=tmp_path)},1\n")
    path = os.path.normpath(manifest.input.paths(manifest.values)[0])
    assert path.startswith(f"{tmp_path}{os.sep}")


# Coverage and classes


TASKS = ["ok", "none", "ones", "zeros"]


def test_tasks_without_labels_are_refused_by_name(read):
    manifest = read("image,ok,none,ones,zeros\nx,1,?,1,0\ny,0,,1,?\n", tasks=TASKS)
    with pytest.raises(ValueError, match="two different labels.*'none'") as error:
        manifest.check_classes()
    assert "ones" not in str(error.value)


def test_tasks_with_one_class_are_warned_of_by_name(read):
    manifest = read("image,ok,ones\nx,1,1\ny,0,1\n")
    with pytest.warns(UserWarning, match="'ones' has one class only"):
        manifest.check_classes()


# Splits

CODES = {
    "train": ["train", "TRAIN", " training "],
    "val": ["val", "valid", "Validation", "dev"],
    "test": ["test", "Testing"],
}


@pytest.mark.parametrize(("part", "code"), [(p, c) for p, codes in CODES.items() for c in codes])
def test_every_split_code_has_its_part(read, part, code):
    assert read(f"image,a,split\nx,1,{code}\n").splits.tolist() == [part]


def numbered(read, rows, splits=None):
    columns = ["image", "a", "split"] if splits else ["image", "a"]
    return read(
        table([f"{i},{i % 2}" + (f",{splits[i]}" if splits else "") for i in range(rows)], columns)
    )


def lines(parts):
    return [part.lines.tolist() for part in parts]


def test_a_part_keeps_the_labels_of_its_rows(read):
    manifest = numbered(read, 40)
    for part in manifest.split():
        np.testing.assert_array_equal(part.labels[:, 0], (part.lines - 2) % 2)
        assert part.names.tolist() == [str(line - 2) for line in part.lines]
        assert (part.source, part.input, part.tasks) == (
            manifest.source,
            manifest.input,
            manifest.tasks,
        )


@pytest.mark.parametrize("named", [["train", "test"], ["train", "val"], ["train"]])
def test_a_part_that_the_column_does_not_name_is_drawn_from_the_train_rows(read, named):
    splits = ["train"] * 80 + [named[-1]] * 20
    manifest = numbered(read, 100, splits)
    parts = dict(zip(["train", "val", "test"], lines(manifest.split(seed=1)), strict=True))
    assert sorted(sum(parts.values(), [])) == manifest.lines.tolist()
    for part in {"val", "test"} - set(named):
        assert len(parts[part]) == 15
        assert {splits[line - 2] for line in parts[part]} == {"train"}
    for part in set(named) - {"train"}:
        assert parts[part] == list(range(82, 102))
    assert lines(manifest.split(seed=1)) == list(parts.values())


def test_an_empty_part_is_refused_by_name(read):
    with pytest.raises(ValueError, match="`split` must .*test.*2 rows"):
        numbered(read, 2).split()
    with pytest.raises(ValueError, match="got none in train"):
        numbered(read, 4, ["test", "val", "test", "val"]).split()


def grouped(read, rows, splits=None):
    columns = ["image", "a", "video", *(["split"] if splits else [])]
    cells = [f"{i},{i % 2},v{i // 10}" + (f",{splits[i]}" if splits else "") for i in range(rows)]
    return read(table(cells, columns), group_column="video")


@pytest.mark.parametrize("by", ["stratified", "hash"])
def test_rows_of_a_group_stay_together(read, by):
    manifest = grouped(read, 300)
    assert names(manifest) == ["a"]
    parts = manifest.split(by=by)
    held = [set(part.groups) for part in parts]
    assert sum(map(len, held)) == 30 and sum(map(len, parts)) == 300


def test_rows_without_a_group_are_groups_of_their_own(read):
    groups = read("image,a,video\nx,1,v\ny,0, v \nz,1,\nw,0,NA\n", group_column="video").groups
    assert groups[0] == groups[1] == "v" and len(set(groups)) == 3
    with pytest.raises(ValueError, match="`group_column`.*'patient'"):
        read("image,a,video\nx,1,v\n", group_column="patient")


def test_groups_may_be_given_to_the_split(read):
    manifest = numbered(read, 60)
    parts = manifest.split((0.5, 0.5), groups=np.arange(60) // 6)
    assert not set(parts[0].groups) & set(parts[1].groups)
    parts = manifest.split((0.5, 0.5), groups=[None] * 30 + ["v"] * 30)
    assert sorted(map(len, parts)) == [30, 30] and "v" not in {*parts[0].groups} & {
        *parts[1].groups
    }
    with pytest.raises(ValueError, match="`groups` must"):
        manifest.split(groups=[1, 2])


def test_by_hash_every_part_that_the_column_lacks_is_drawn_and_stays(read):
    few, many = numbered(read, 200, ["train"] * 200), numbered(read, 300, ["train"] * 300)
    before, after = (
        {image: at for at, part in enumerate(m.split(by="hash")) for image in part.names}
        for m in (few, many)
    )
    assert set(before.values()) == {0, 1, 2}
    assert {image: after[image] for image in before} == before


def test_images_of_the_same_bytes_stay_together_and_join_their_groups(read, tmp_path):
    for at in range(60):  # rows 0 to 9 are one image; 20 and 30, of two videos, another
        content = "one" if at < 10 else "other" if at in (20, 30) else f"image {at}"
        (tmp_path / str(at)).write_text(content)
    for manifest in (numbered(read, 60), grouped(read, 60)):
        for seed in range(3):
            side = {
                image: at
                for at, part in enumerate(manifest.split(seed=seed))
                for image in part.names
            }
            assert len({side[str(at)] for at in range(10)}) == 1 and side["20"] == side["30"]
            assert manifest.leaks(seed=seed, near=False).empty
    assert len({side[str(at)] for at in range(20, 40)}) == 1


def test_a_group_on_both_sides_of_the_split_column_is_a_leak(read):
    splits = (["train"] * 5 + ["test"] * 5 + ["val"] * 10) * 2
    leaks = grouped(read, 40, splits).leaks(near=False)
    assert set(leaks.kind) == {"same group"} and set(leaks.line) == {2, 22}
    assert sorted(leaks.other_line) == [*range(7, 12), *range(27, 32)]


# Images


def test_absent_files_are_named_by_line(read, tmp_path):
    write_images(tmp_path, ["x.png"])
    (tmp_path / "folder").mkdir()
    manifest = read("image,a\nx.png,1\n\ngone.png,0\nfolder,1\n")
    assert manifest.missing_files() == [
        Fault(4, "gone.png", "missing"),
        Fault(5, "folder", "missing"),
    ]


def test_take_gives_the_rows_in_the_order_asked_for(read):
    part = numbered(read, 5, ["train", "val", "test", "train", "val"]).take([3, 1])
    assert part.lines.tolist() == [5, 3] and part.splits.tolist() == ["train", "val"]
    assert part.where(0).endswith("labels.csv, line 5: '3'")


# Requests that the file does not answer


def test_a_split_column_that_is_named_must_be_there(read):
    text = "image,a,fold\nx,1,train\ny,0,test\n"
    with pytest.raises(ValueError, match="`split_column`.*'Fold'"):
        read(text, split_column="Fold")
    assert read(text, split_column="split").splits is None
    assert read(text).ignored == ("fold",) and read(text, split_column="fold").ignored == ()
