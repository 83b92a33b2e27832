"""Rows into parts: sizes, shares of every answer, groups, and rows that stay where they are."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerasmtl.data.manifest import Manifest
from kerasmtl.data.splits import split_rows
from kerasmtl.tasks import Task

NAN = float("nan")
SHARES = (0.7, 0.15, 0.15)


def partly_known(rows, tasks, seed=0):
    """Binary labels, 1 % to 50 % positive, 5 % to 95 % known."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((rows, tasks)) < np.geomspace(0.01, 0.5, tasks)).astype("float32")
    labels[rng.random((rows, tasks)) >= rng.permutation(np.linspace(0.05, 0.95, tasks))] = NAN
    return labels


def names(rows):
    return np.array([f"{row}.jpg" for row in range(rows)], dtype=object)


def split(labels, shares=SHARES, tasks=None, ids=None, **options):
    tasks = tasks or [Task(f"t{at}") for at in range(labels.shape[1])]
    return split_rows(labels, tasks, names(len(labels)) if ids is None else ids, shares, **options)


def deviation(labels, parts, shares, answers=(0, 1)):
    """In rows, the largest difference of an answer's number in a part from its share."""
    return max(
        np.abs((labels[part] == answer).sum(0) - share * (labels == answer).sum(0)).max()
        for part, share in zip(parts, shares, strict=True)
        for answer in answers
    )


@given(st.integers(0, 120), st.integers(1, 4), st.integers(0, 5), st.sampled_from([None, 3, 20]))
@settings(max_examples=60, deadline=None)
def test_every_row_is_in_one_part_and_the_sizes_are_those_asked_for(rows, tasks, seed, groups):
    labels = partly_known(rows, tasks, seed)
    chosen = None if groups is None else np.random.default_rng(seed).integers(0, groups, rows)
    for by in ("stratified", "hash"):
        parts = split(labels, seed=seed, by=by, groups=chosen)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(rows))
        assert all((np.diff(part) > 0).all() for part in parts)
        if chosen is not None:
            held = [set(chosen[part]) for part in parts]
            assert sum(map(len, held)) == len(set(chosen))
        elif by == "stratified":
            ends = np.round(np.cumsum(SHARES) * rows).astype(int)
            sizes = [len(part) for part in parts]
            if rows >= 7 or rows < 3:
                assert sizes == np.diff(ends, prepend=0).tolist()
            else:  # one for each part
                assert min(sizes) == 1 and sizes[0] == rows - 2


@pytest.mark.parametrize("rows", [300, 3_000, 30_000])
def test_every_answer_is_in_each_part_by_its_share_to_within_a_few_rows(rows):
    labels = partly_known(rows, 8)
    parts = split(labels)
    assert deviation(labels, parts, SHARES) < 4
    rng = np.random.default_rng(1)
    chance = np.split(rng.permutation(rows), [len(parts[0]), rows - len(parts[2])])
    assert deviation(labels, chance, SHARES) > 4 * deviation(labels, parts, SHARES)


def test_groups_stay_whole_and_answers_are_still_balanced():
    labels = partly_known(6_000, 5)
    groups = np.random.default_rng(3).integers(0, 600, 6_000)
    parts = split(labels, groups=groups)
    assert not set(groups[parts[0]]) & (set(groups[parts[1]]) | set(groups[parts[2]]))
    assert deviation(labels, parts, SHARES) < 12
    assert abs(len(parts[1]) - 900) < 20


def test_classes_and_quartiles_are_answers_too():
    rng = np.random.default_rng(0)
    labels = np.column_stack(
        [rng.choice([0, 1, 2], 2_000, p=[0.9, 0.08, 0.02]), rng.lognormal(size=2_000)]
    ).astype("float32")
    labels[rng.random(2_000) < 0.5, 1] = NAN
    tasks = [Task("grade", "multiclass", classes=("a", "b", "c")), Task("size", "regression")]
    parts = split(labels, tasks=tasks)
    assert deviation(labels[:, :1], parts, SHARES, (0, 1, 2)) < 3
    quartiles = np.nanquantile(labels[:, 1], [0.25, 0.5, 0.75])
    bins = np.where(np.isnan(labels[:, 1]), -1, np.searchsorted(quartiles, labels[:, 1]))
    assert deviation(bins[:, None], parts, SHARES, (0, 1, 2, 3)) < 3


@given(st.integers(0, 50), st.integers(51, 200), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_by_hash_no_row_changes_sides_when_others_are_added(few, many, seed):
    def sides(rows, order):
        ids = names(rows)[order]
        parts = split(partly_known(rows, 2), ids=ids, by="hash", seed=seed)
        return {ids[row]: at for at, part in enumerate(parts) for row in part}

    before = sides(few, np.arange(few))
    after = sides(many, np.random.default_rng(0).permutation(many))
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("shares", [(), (0.5, 0.4), (1.5, -0.5), (1.0, 0.0), (NAN, 1.0)])
def test_shares_that_do_not_sum_to_1_are_refused(shares):
    with pytest.raises(ValueError, match="`fractions`"):
        split(partly_known(10, 1), shares)


@pytest.mark.parametrize("positives", [3, 7])
def test_no_part_lacks_a_positive_if_there_are_enough(positives):
    for seed in range(6):
        labels = np.zeros((400, 1), "float32")
        labels[np.random.default_rng(seed).permutation(400)[:positives]] = 1
        counts = [labels[part].sum() for part in split(labels, seed=seed)]
        assert min(counts) >= 1 and abs(counts[0] - 0.7 * positives) <= 1.2


def test_no_part_lacks_a_rare_answer_of_groups():
    groups = np.repeat(np.arange(40), 10)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        labels = np.zeros((400, 3), "float32")
        for at in range(3):
            for group in rng.permutation(40)[:4]:
                labels[np.flatnonzero(groups == group)[:4], at] = 1
        parts = split(labels, seed=seed, groups=groups)
        assert all((labels[part] == 1).any(axis=0).all() for part in parts)
        assert [len(part) for part in parts] == [280, 60, 60]


@pytest.mark.parametrize(
    "sizes, expected",
    [
        ([100] * 4, [200, 100, 100]),
        ([134, 133, 133], None),
        ([380, 10, 10], [380, 10, 10]),
        ([1, 1, 1], [1, 1, 1]),
        ([300, *[1] * 100], None),
    ],
)
def test_no_part_stays_empty_if_there_are_enough_groups(sizes, expected):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = (np.random.default_rng(0).random((len(groups), 2)) > 0.5).astype("float32")
    for seed in range(5):
        found = [len(part) for part in split(labels, seed=seed, groups=groups)]
        assert min(found) >= 1 and (expected is None or found == expected)


def together(groups, alike):
    """The rows of each connected component, by a search that knows nothing of matrices."""
    left, found = set(range(len(alike))), []
    while left:
        reached = {min(left)}
        while True:
            more = {
                row
                for row in left
                if any(groups[row] == groups[r] or alike[row] == alike[r] for r in reached)
            }
            if more <= reached:
                break
            reached |= more
        found.append(sorted(reached))
        left -= reached
    return found


@given(st.integers(1, 60), st.integers(1, 40), st.sampled_from([None, 5, 30]), st.integers(0, 5))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_identical_rows_and_groups_that_share_them_stay_together(rows, values, groups, seed):
    rng = np.random.default_rng(seed)
    labels, alike = partly_known(rows, 2, seed), rng.integers(0, values, rows)
    chosen = None if groups is None else rng.integers(0, groups, rows)
    for by in ("stratified", "hash"):
        parts = split(labels, seed=seed, by=by, groups=chosen, alike=alike)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(rows))
        side = np.empty(rows, int)
        for at, part in enumerate(parts):
            side[part] = at
        for members in together(np.arange(rows) if chosen is None else chosen, alike):
            assert len(set(side[members])) == 1


def test_by_hash_the_parts_are_written_down():
    # A split by hash is the same on every machine and in every version.
    _, val, test = split(partly_known(60, 3), seed=5, by="hash")
    assert val.tolist() == [10, 12, 13, 15, 18, 22, 30]
    assert test.tolist() == [2, 5, 16, 24, 38, 42, 45, 48, 59]


def test_by_hash_a_copy_follows_the_first_name_and_moves_no_other_row():
    alike = np.arange(60)
    alike[59] = 12  # "59.jpg" is a copy of "12.jpg", which sorts first
    _, val, test = split(partly_known(60, 3), seed=5, by="hash", alike=alike)
    assert val.tolist() == [10, 12, 13, 15, 18, 22, 30, 59]
    assert test.tolist() == [2, 5, 16, 24, 38, 42, 45, 48]


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
    assert "the part val of" in said[0] and "no two different labels of b" in said[0]
    assert "the part test of" in said[1] and "labels of a:" in said[1]


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
