"""What is wrong with the parts of a split: tasks that cannot be scored there, and cut groups."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kerasmtl.data.readers import place
from kerasmtl.tasks import Task

POLICIES = ("stratified", "hash")
_BINS = 4  # a regression task is stratified by its quartiles
_POOL = 128  # rows of a part that are looked at for one swap
_LATE = 5_000  # rows or more kept back and placed one by one: they even out what dealing leaves
_SWAPS = 1_000  # at most, for each pair of parts; fewer with many answers, which cost time
_RARE = 3  # units of an answer that the smallest part may expect, below which it is given one
_PATIENCE = 4  # draws in a row without a swap that helps


def split_rows(
    labels: np.ndarray,
    tasks: Sequence[Task],
    names: np.ndarray,
    fractions: Sequence[float],
    seed: int = 0,
    by: str = "stratified",
    groups: np.ndarray | None = None,
    alike: np.ndarray | None = None,
) -> list[np.ndarray]:
    """The row numbers of each part, in ascending order; every row is in one part.

    Shapes: labels (rows, tasks) float32, NaN = missing; names and groups (rows,) str; alike (rows,)
    of any type, the same value for rows that are identical. These are in one part, and so are the
    groups that share them.

    "stratified": the parts have the sizes asked for, to the row if no group has two, and of every
    task a part has its share of each answer (positives, negatives, classes, quartiles), hence of
    what is known, to within a few rows where rows and groups allow it; and no less than one of an
    answer that as many rows (groups) have as there are parts. "hash": the name of the
    row (of its group), the seed and the fractions alone decide, so a row stays where it is
    whatever is added; sizes and answers are those of chance.

    Raises:
        ValueError: the fractions are no partition, or `by` is no policy.
    """
    shares = np.asarray(fractions, dtype=float)
    if not len(shares) or not (shares > 0).all() or not np.isclose(shares.sum(), 1.0):
        raise ValueError(
            "`fractions` is no partition. Expected positive shares that sum to 1, for example "
            f"(0.7, 0.15, 0.15). Received: {tuple(fractions)}"
        )
    if by not in POLICIES:
        raise ValueError(f"`by` is no way to split. Expected one of {POLICIES}. Received: {by!r}")
    if by == "hash":
        names = names if groups is None else groups
        part = _by_hash(_first_names(names, units(names, alike)), shares, seed)
    else:
        unit = units(np.arange(len(labels)) if groups is None else groups, alike)
        part = _Stratified(_answers(labels, tasks), unit, shares, seed).run()[unit]
    return [np.flatnonzero(part == number) for number in range(len(shares))]


def units(groups: np.ndarray, alike: np.ndarray | None = None) -> np.ndarray:
    """Number what is never parted, (rows,) int: groups, those with identical rows as one.

    Shapes: groups and alike (rows,); numbers count from 0 in the order of the rows.
    """
    group = pd.factorize(groups)[0]
    if alike is None:
        return group
    same = pd.factorize(alike)[0]
    if same.max(initial=-1) + 1 == len(same):  # no row is like another
        return group
    # Groups on one side, identical rows on the other; every row joins two of them.
    ends = group, same + group.max() + 1
    size = ends[1].max() + 1
    graph = coo_array((np.ones(len(group), dtype=bool), ends), shape=(size, size))
    return pd.factorize(connected_components(graph, directed=False)[1][group])[0]


def _first_names(names: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """For each row the name in its unit that sorts first as text."""
    codes, distinct = pd.factorize(names)
    if unit.max(initial=-1) + 1 == len(distinct):  # one name in each
        return names
    order = np.argsort(distinct.astype(str), kind="stable")
    rank = np.empty(len(order), dtype=int)
    rank[order] = np.arange(len(order))
    first = np.full(unit.max() + 1, len(order))
    np.minimum.at(first, unit, rank[codes])
    return distinct[order[first[unit]]]


def _by_hash(names: np.ndarray, shares: np.ndarray, seed: int) -> np.ndarray:
    salt = f"{seed}:".encode()
    codes, distinct = pd.factorize(names)
    draws = [hashlib.blake2b(salt + str(n).encode(), digest_size=8).digest() for n in distinct]
    uniform = np.frombuffer(b"".join(draws), ">u8") / 2.0**64
    ends = np.cumsum(shares)[:-1]
    return np.searchsorted(ends, uniform, side="right")[codes]


def _answers(labels: np.ndarray, tasks: Sequence[Task]) -> np.ndarray:
    """Which answers a row has, (rows, answers) bool: what every part is to have its share of."""
    columns = []
    for column, task in zip(labels.T, tasks, strict=True):
        if task.kind == "multiclass":
            columns += [column == number for number in range(task.outputs)]
        elif task.kind == "binary":  # a soft label counts as the answer it is nearer to
            columns += [column >= 0.5, column < 0.5]
        else:
            known = column[~np.isnan(column)]
            edges = np.unique(np.quantile(known, np.arange(1, _BINS) / _BINS)) if len(known) else []
            bins = np.where(np.isnan(column), -1, np.searchsorted(edges, column))
            columns += [bins == number for number in range(len(edges) + 1)]
    return np.column_stack(columns)


class _Stratified:
    """Units, rows or groups of rows, are dealt out to parts.

    Shapes: counts (units, answers + 1), how many rows of a unit have the answer, the last column
    its rows; lack (parts, answers + 1), what each part still needs.
    """

    def __init__(
        self, answers: np.ndarray, unit: np.ndarray, shares: np.ndarray, seed: int
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.size = np.bincount(unit)
        if len(self.size) == len(answers):
            counts = np.empty_like(answers)
            counts[unit] = answers
        else:
            order = np.argsort(unit, kind="stable")
            starts = np.cumsum(self.size) - self.size
            counts = np.add.reduceat(answers[order], starts, axis=0, dtype="int32")
        self.counts = np.column_stack([counts, self.size.astype(counts.dtype)])
        totals = self.counts.sum(axis=0, dtype=float)
        self.lack = shares[:, None] * totals
        self.lack[:, -1] = self.room = _sizes(len(answers), shares)
        self.weight = 1 / np.maximum(totals, 1)
        self.shares = shares
        self.part = np.full(len(self.size), -1)
        self.pinned = np.zeros(len(self.size), dtype=bool)

    def run(self) -> np.ndarray:
        """The part of every unit, (units,) int."""
        self._seed()
        large = np.flatnonzero((self.size > 1) & (self.part < 0))
        mixed = self.rng.permutation(len(large))
        for unit in large[mixed][np.argsort(-self.size[large[mixed]], kind="stable")]:
            self._place(unit)
        rest = self.rng.permutation(np.flatnonzero((self.size == 1) & (self.part < 0)))
        late = min(max(_LATE, len(rest) // 20), len(rest) // 2)
        rest, late = rest[late:], rest[:late]
        left = self.counts[rest, :-1].sum(axis=0, dtype=int)
        while len(rest):
            rest = self._deal(rest, left)
        for unit in late:
            self._place(unit)
        self._balance()
        return self.part

    def _seed(self) -> None:
        """Give each part one unit of every answer that is rare and has as many units as parts.

        The last answer, to be a unit at all, sees to it that no part stays empty.
        """
        has = self.counts > 0
        often = has.sum(axis=0)
        parts = np.argsort(self.shares, kind="stable")
        rare = np.flatnonzero((often >= len(parts)) & (often * self.shares.min() < _RARE))
        rare = rare[np.argsort(often[rare], kind="stable")]
        has = has[:, rare]
        covered = np.zeros((len(parts), len(rare)), dtype=bool)
        for at in range(len(rare)):
            units = self.rng.permutation(np.flatnonzero(has[:, at]))
            for part in parts[~covered[parts, at]]:
                free = units[self.part[units] < 0]
                unit = self._fitting(free, part, has, covered[part])
                if unit is not None:
                    self._give(np.array([unit]), part)
                    self.pinned[unit] = True
                    covered[part] |= has[unit]

    def _fitting(
        self, free: np.ndarray, part: int, has: np.ndarray, covered: np.ndarray
    ) -> int | None:
        """One of the units for a part: with rare answers that it lacks, not with those it has."""
        lack, room = self.lack[part, -1], self.room[part]
        fits = free[self.size[free] <= lack][:_POOL]
        if len(fits):
            return int(fits[np.argmax(has[fits] @ np.where(covered, -1, 1))])
        if not len(free):
            return None
        least = int(free[np.argmin(self.size[free])])
        # Groups may overfill a part, to twice its size, but rows may not.
        overfills = self.size[least] > 1 and self.size[least] <= lack + room
        return least if lack == room > 0 or overfills else None

    def _give(self, units: np.ndarray, part: int) -> None:
        self.part[units] = part
        self.lack[part] -= self.counts[units].sum(axis=0, dtype=float)

    def _place(self, unit: int) -> None:
        """One group goes where its answers, the rare ones above all, are lacked most."""
        need = (self.lack * self.weight / self.shares[:, None]) @ self.counts[unit].astype(float)
        fits = self.lack[:, -1] >= self.size[unit]
        self._give(np.array([unit]), int(np.argmax(np.where(fits | ~fits.any(), need, -np.inf))))

    def _deal(self, rest: np.ndarray, left: np.ndarray) -> np.ndarray:
        """All rows of the answer that is rarest among the rest, at once; returns the others.

        `left`, how often each answer stands in the rest, is kept up to date.
        """
        if not left.any():
            chosen, want = np.ones(len(rest), dtype=bool), self.lack[:, -1]
        else:
            rarest = np.argmin(np.where(left > 0, left, len(rest) + 1))
            chosen, want = self.counts[rest, rarest] > 0, self.lack[:, rarest]
        rows = rest[chosen]
        ends = np.cumsum(_apportion(want, self.lack[:, -1], len(rows)))
        left -= self.counts[rows, :-1].sum(axis=0, dtype=int)
        for part, units in enumerate(np.split(rows, ends[:-1])):
            self._give(units, part)
        return rest[~chosen]

    def _balance(self) -> None:
        """Swap units between parts, or move groups, as long as that lessens the imbalance."""
        nothing = len(self.size) if self.size.max(initial=0) > 1 else None
        free = np.where(self.pinned, -1, self.part)
        members = [np.flatnonzero(free == part) for part in range(len(self.lack))]
        for first in range(len(members)):
            for second in range(first):
                failed = 0
                for _ in range(max(50, min(_SWAPS, 50_000 // len(self.weight)))):
                    failed = 0 if self._swap(members, first, second, nothing) else failed + 1
                    if failed == _PATIENCE:
                        break

    def _swap(
        self, members: list[np.ndarray], first: int, second: int, nothing: int | None
    ) -> bool:
        """The best swap among some units of two parts; `nothing` stands for a move one way."""
        pools = []
        for part in (first, second):
            if not len(members[part]):
                return False
            pools.append(self.rng.integers(0, len(members[part]), _POOL))
        ours, theirs = (members[p][at] for p, at in zip((first, second), pools, strict=True))
        scale = np.sqrt(self.weight)
        a, b = (self.counts[units] * scale for units in (ours, theirs))
        if nothing is not None:
            a, b = (np.vstack([values, np.zeros(len(scale))]) for values in (a, b))
        # The imbalance of both parts, summed squares of lack * scale, if a and b change places.
        lack = (self.lack[first] - self.lack[second]) * scale
        distance = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        change = 2 * distance + 2 * ((a @ lack)[:, None] - b @ lack)
        i, j = np.unravel_index(np.argmin(change), change.shape)
        if change[i, j] >= -1e-9:
            return False
        self._exchange(members, (first, second), (pools[0], pools[1]), (int(i), int(j)))
        return True

    def _exchange(
        self,
        members: list[np.ndarray],
        parts: tuple[int, int],
        pools: tuple[np.ndarray, np.ndarray],
        chosen: tuple[int, int],
    ) -> None:
        units = [
            members[p][pool[at]] if at < len(pool) else None
            for p, pool, at in zip(parts, pools, chosen, strict=True)
        ]
        for side, unit in enumerate(units):
            if unit is not None:
                here, there = parts[side], parts[1 - side]
                self.lack[here] += self.counts[unit]
                self._give(np.array([unit]), there)
                members[here] = members[here][members[here] != unit]
                members[there] = np.append(members[there], unit)


def _sizes(rows: int, shares: np.ndarray) -> np.ndarray:
    """The rows of each part; where there are as many rows as parts, at least one."""
    sizes = np.diff(np.round(np.cumsum(shares) * rows), prepend=0)
    while rows >= len(shares) and not sizes.all():
        sizes[np.argmax(sizes)] -= 1
        sizes[np.argmin(sizes)] += 1
    return sizes


def _apportion(want: np.ndarray, room: np.ndarray, rows: int) -> np.ndarray:
    """How many of the rows each part gets: near to what it wants, never above its room."""
    room = np.maximum(np.round(room), 0).astype(int)
    if room.sum() < rows:  # groups have overfilled a part
        room = room + rows
    want = np.clip(want, 0, room)
    exact = want * rows / want.sum() if want.sum() > 0 else room * rows / room.sum()
    given = np.minimum(np.floor(exact).astype(int), room)
    while given.sum() < rows:
        part = int(np.argmax(np.where(given < room, exact - given, -np.inf)))
        at_once = max(1, int(exact[part] - given[part]))
        given[part] += min(at_once, room[part] - given[part], rows - given.sum())
    return given


_SHOWN = 5


def part_faults(
    labels: np.ndarray, tasks: Sequence[Task], parts: Sequence[np.ndarray]
) -> list[list[str]]:
    """For each part the tasks without two different labels there, though the whole has them.

    Shapes: labels (rows, tasks), NaN = missing; parts, the numbers of rows.
    """
    whole = _both(labels)
    return [
        [tasks[at].name for at in np.flatnonzero(whole & ~_both(labels[part]))] for part in parts
    ]


def _both(labels: np.ndarray) -> np.ndarray:
    """Which tasks have two different known labels, (tasks,) bool."""
    if not len(labels):
        return np.zeros(labels.shape[1], dtype=bool)
    return np.fmax.reduce(labels, axis=0) > np.fmin.reduce(labels, axis=0)


def cut_groups(groups: np.ndarray, parts: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Of each group that stands in two parts, two rows of different parts.

    Shapes: groups (rows,) str; parts, the numbers of rows.
    """
    rows = np.concatenate(parts)
    part = np.repeat(np.arange(len(parts)), [len(rows) for rows in parts])
    codes, distinct = pd.factorize(groups[rows])
    first = np.full(len(distinct), len(rows))
    np.minimum.at(first, codes, np.arange(len(rows)))
    cut = np.flatnonzero(part != part[first[codes]])
    _, once = np.unique(codes[cut], return_index=True)
    return [(int(rows[first[codes[at]]]), int(rows[at])) for at in cut[np.sort(once)]]


def warn_of_parts(
    labels: np.ndarray,
    tasks: Sequence[Task],
    parts: Sequence[np.ndarray],
    names: Sequence[str],
    source: Path,
    stacklevel: int = 3,
) -> None:
    """Warn of what `part_faults` finds."""
    for name, found in zip(names, part_faults(labels, tasks, parts), strict=True):
        if found:
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            warnings.warn(
                f"the part {name} of {source} has no two different labels of {found[:_SHOWN]}"
                f"{more}: nothing there can be learnt, or scored by rank, of them.",
                stacklevel=stacklevel,
            )


def warn_of_cuts(
    what: str,
    groups: np.ndarray,
    called: np.ndarray,
    lines: np.ndarray,
    parts: Sequence[np.ndarray],
    names: Sequence[str],
    source: Path,
    stacklevel: int = 3,
) -> None:
    """Warn of what `cut_groups` finds, `what` for short.

    Shapes: groups, called (what the message calls a row) and lines (rows,).
    """
    cut = cut_groups(groups, parts)
    if not cut:
        return
    few = {row for pair in cut[:_SHOWN] for row in pair}
    part = {row: name for name, rows in zip(names, parts, strict=True) for row in few & {*rows}}
    at = place(source)
    shown = "; ".join(
        f"{called[a]!r}, {part[a]} in {at} {lines[a]} and {part[b]} in {at} {lines[b]}"
        for a, b in cut[:_SHOWN]
    )
    warnings.warn(
        f"{source} has {what} on two sides of its split column, {len(cut)} in all, so that scores "
        f"may be too good: {shown}{'; …' if len(cut) > _SHOWN else ''}.",
        stacklevel=stacklevel,
    )
