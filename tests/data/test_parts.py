"""Parts of a split in which a task cannot be scored, and groups cut in two, are warned of."""

import warnings

import numpy as np
import pytest

from kerasmtl.data.manifest import Manifest
from kerasmtl.data.splits import cut_groups, part_faults
from kerasmtl.tasks import Task

NAN = float("nan")


def read(folder, rows, **options):
    (folder / "labels.csv").write_text("\n".join(["image,a,b,split,video", *rows]) + "\n")
    return Manifest.from_csv(folder / "labels.csv", tasks=["a", "b"], **options)


ROWS = [
    *(f"{at}.png,{at % 2},{at % 2},train,v{at % 3}" for at in range(8)),
    *("8.png,1,0,val,v9", "9.png,0,?,val,v9", "10.png,1,1,test,v1", "11.png,1,0,test,v8"),
]


def test_tasks_without_two_labels_in_a_part_are_named(tmp_path):
    manifest = read(tmp_path, ROWS)
    with pytest.warns(UserWarning) as caught:
        manifest.split()
    said = [str(warning.message) for warning in caught]
    assert len(said) == 2 and {warning.filename for warning in caught} == {__file__}
    assert "the part val of" in said[0] and "no two different labels of ['b']" in said[0]
    assert "the part test of" in said[1] and "['a']" in said[1]


def test_what_no_part_can_have_is_not_warned_of(tmp_path):
    rows = [f"{at}.png,1,{at % 2},{('train', 'val', 'test')[at // 2 % 3]},v" for at in range(12)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(tmp_path, rows).split()
        assert read(tmp_path, ROWS).leaks(pictures=False).empty


def test_groups_that_the_split_column_cuts_are_named(tmp_path):
    manifest = read(tmp_path, ROWS, group_column="video")
    with pytest.warns(
        UserWarning, match=r"groups .* 1 in all.*'v1', train in line 3 and test in line 12"
    ):
        manifest.split()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manifest.split((0.5, 0.5))


def test_identical_rows_that_the_split_column_cuts_are_named(tmp_path):
    for at in range(12):
        (tmp_path / f"{at}.png").write_text("one" if at in (2, 3, 10) else f"image {at}")
    manifest = read(tmp_path, ROWS)
    with pytest.warns(UserWarning, match="identical rows .* 1 in all.*'2.png', train in line 4 "):
        manifest.split()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manifest.split((0.5, 0.5))


def test_parts_and_groups_of_arrays():
    labels = np.array([[0, 1.5], [1, 2.5], [NAN, 1.5], [1, 3.5]], "float32")
    tasks = (Task("a"), Task("size", "regression"))
    parts = [np.array([0, 1]), np.array([2]), np.array([1, 3]), np.array([], int)]
    assert part_faults(labels, tasks, parts) == [[], ["a", "size"], ["a"], ["a", "size"]]
    groups = np.array(["p", "q", "p", "q", "q"], dtype=object)
    assert cut_groups(groups, [np.array([1, 3]), np.array([0, 2, 4])]) == [(1, 4)]
