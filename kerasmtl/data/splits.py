"""Divides rows into parts, stratified or by hash, and finds what is wrong with given parts.

`Manifest.split` draws the parts that the file does not give with `split_rows`, and looks at all of
them with `warn_of_cuts` and `warn_of_parts`. What must not be torn apart (a group, identical rows)
is joined to units first, and units are then drawn. All chance is NumPy's generator with the given
seed, or a hash of names: the same call gives the same parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kerasmtl.data.readers import place
from kerasmtl.tasks import Task
from kerasmtl.utils.text import listed, shortened, warn
from kerasmtl.utils.validation import check_choice

POLICIES = ("stratified", "hash")
_BINS = 4  # a regression task is stratified by its quartiles
_LATE = 20_000  # rows or more are placed one by one at the end: they even out what dealing leaves
_RARE = 3  # units of an answer that the smallest part may expect, below which it is given one
_POOL = 128  # units that are looked at to find one with a rare answer
_SHOWN = 5


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
    """Divide rows into parts; rows that share a group or are identical stay in one part.

    "stratified": parts have the sizes asked for, to the row if no group has two, and of every task
    a part has its share of each answer (positives, negatives, classes, quartiles), to within a few
    rows where groups allow it; and at least one of an answer that as many rows (groups) have as
    there are parts. "hash": the name of the row (of its group), the seed and the fractions alone
    decide, so that a row stays where it is whatever is added; sizes and answers are those of
    chance.

    Args:
        labels: (rows, tasks) float32, NaN = missing.
        tasks: of the columns of `labels`.
        names: (rows,), what rows are known by.
        fractions: the share of each part.
        seed: of the drawing.
        by: "stratified" or "hash".
        groups: (rows,) of what belongs together.
        alike: (rows,), the same value for identical rows.

    Returns:
        The row numbers of each part, ascending; every row is in one part.

    Raises:
        ValueError: fractions that are not positive or do not sum to 1, or an unknown `by`.

    Example:
        >>> labels = np.array([[1], [1], [0], [0]], "float32")
        >>> parts = split_rows(labels, [Task("car")], np.arange(4), (0.5, 0.5))
        >>> [sorted(labels[part, 0].tolist()) for part in parts]
        [[0.0, 1.0], [0.0, 1.0]]
    """
    shares = np.asarray(fractions, dtype=float)
    if not len(shares) or not (shares > 0).all() or not np.isclose(shares.sum(), 1.0):
        raise ValueError(
            f"`fractions` must be positive and sum to 1, like (0.7, 0.15, 0.15), got "
            f"{tuple(fractions)}"
        )
    if check_choice("by", by, POLICIES) == "hash":
        names = names if groups is None else groups
        part = _by_hash(_first_names(names, units(names, alike)), shares, seed)
    else:
        unit = units(np.arange(len(labels)) if groups is None else groups, alike)
        part = _Stratified(_answers(labels, tasks), unit, shares, seed).run()[unit]
    return [np.flatnonzero(part == number) for number in range(len(shares))]


def units(groups: np.ndarray, alike: np.ndarray | None = None) -> np.ndarray:
    """Give numbers to what stays together: groups, and groups that share identical rows.

    Args:
        groups: (rows,) of what belongs together; a row without a group has a value of its own.
        alike: (rows,), the same value for identical rows.

    Returns:
        (rows,) int, from 0 in the order of the rows.
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
    """Return for each row the name in its unit that sorts first as text, (rows,)."""
    if len(unit) == unit.max(initial=-1) + 1:  # every row is alone
        return names
    text = pd.Series(names).astype(str)
    first = text.sort_values(kind="stable").index.to_numpy()
    chosen = pd.Series(first).groupby(unit[first]).first()
    return names[chosen.to_numpy()[unit]]


def _by_hash(names: np.ndarray, shares: np.ndarray, seed: int) -> np.ndarray:
    """Return the part of each row, (rows,), by a number in [0, 1) from its name and the seed.

    Only a row's own name counts, so that rows that come or go leave all others in their part. The
    hash is that of the text, since Python's own differs from process to process.
    """
    salt = f"{seed}:".encode()
    codes, distinct = pd.factorize(names)
    draws = [hashlib.blake2b(salt + str(n).encode(), digest_size=8).digest() for n in distinct]
    uniform = np.frombuffer(b"".join(draws), ">u8") / 2.0**64
    ends = np.cumsum(shares)[:-1]
    return np.searchsorted(ends, uniform, side="right")[codes]


def _answers(labels: np.ndarray, tasks: Sequence[Task]) -> np.ndarray:
    """Return which answers rows have, (rows, answers) bool: parts are to have a share of each."""
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
    """Deals out units (rows, or groups of rows) to parts.

    Rare answers are seeded first, then groups are placed, the largest first; then single rows are
    dealt out answer by answer, the rarest first; the last rows are placed one by one, each where
    its answers are lacked most. (An iterative stratification after Sechidis et al. 2011,
    https://doi.org/10.1007/978-3-642-23808-6_10.)

    Attributes:
        counts: (units, answers + 1), how many rows of a unit have the answer; last column: all.
        lack: (parts, answers + 1), what each part still needs.
        part: (units,), the part of each unit; -1 = none yet.
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
        # What chance would be off by: lacks count in that unit, so that rare answers count more.
        self.weight = 1 / np.sqrt(np.maximum(totals, 1))
        self.shares = shares
        self.part = np.full(len(self.size), -1)

    def run(self) -> np.ndarray:
        """Return the part of every unit, (units,) int."""
        self._seed()
        large = np.flatnonzero((self.size > 1) & (self.part < 0))
        mixed = large[self.rng.permutation(len(large))]
        for unit in mixed[np.argsort(-self.size[mixed], kind="stable")]:
            self._place(unit)
        rest = self.rng.permutation(np.flatnonzero((self.size == 1) & (self.part < 0)))
        late = min(max(_LATE, len(rest) // 20), len(rest))
        rest, late = rest[late:], rest[:late]
        # Counted once, and then updated: to count all answers for each answer would be quadratic.
        left = self.counts[rest, :-1].sum(axis=0, dtype=int)
        while len(rest):
            rest = self._deal(rest, left)
        for unit in late:
            self._place(unit)
        return self.part

    def _seed(self) -> None:
        """Give each part one unit of every answer that is rare and has as many units as parts.

        The last answer, which every unit has, keeps parts from staying empty.
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
                    covered[part] |= has[unit]

    def _fitting(
        self, free: np.ndarray, part: int, has: np.ndarray, covered: np.ndarray
    ) -> int | None:
        """Return one of the units for a part: with rare answers that it lacks."""
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
        """Give units to a part, and count what it still needs."""
        self.part[units] = part
        self.lack[part] -= self.counts[units].sum(axis=0, dtype=float)

    def _place(self, unit: int) -> None:
        """Give a unit to the part that lacks its answers most, the rare ones above all."""
        # Relative to the share of a part, or the largest part would be given everything first.
        need = (self.lack * self.weight / self.shares[:, None]) @ self.counts[unit].astype(float)
        # If it fits nowhere, any part may take it: a group is never torn apart for the sake of
        # sizes.
        fits = self.lack[:, -1] >= self.size[unit]
        part = int(np.argmax(np.where(fits | ~fits.any(), need, -np.inf)))
        self.part[unit] = part
        self.lack[part] -= self.counts[unit]

    def _deal(self, rest: np.ndarray, left: np.ndarray) -> np.ndarray:
        """Give all rows of the answer that is rarest among the rest to parts; returns the others.

        Updates `left`, how often each answer occurs in the rest.
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


def _sizes(rows: int, shares: np.ndarray) -> np.ndarray:
    """Return the rows of each part; where there are as many rows as parts, at least one."""
    sizes = np.diff(np.round(np.cumsum(shares) * rows), prepend=0)
    while rows >= len(shares) and not sizes.all():
        sizes[np.argmax(sizes)] -= 1
        sizes[np.argmin(sizes)] += 1
    return sizes


def _apportion(want: np.ndarray, room: np.ndarray, rows: int) -> np.ndarray:
    """Return how many of the rows each part gets: near to what it wants, within its room."""
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


def warn_of_parts(
    labels: np.ndarray, tasks: Sequence[Task], parts: Mapping[str, np.ndarray], source: Path
) -> None:
    """Warn of tasks without two different labels in a part, though the whole has them.

    Args:
        labels: (rows, tasks), NaN = missing.
        tasks: of the columns of `labels`.
        parts: the numbers of the rows of each part, by its name.
        source: the file, for the message.
    """

    def differ(found: np.ndarray) -> np.ndarray:
        low, high = (of.reduce(found, axis=0, initial=np.nan) for of in (np.fmin, np.fmax))
        return high > low

    for name, part in parts.items():
        found = np.flatnonzero(differ(labels) & ~differ(labels[part]))
        if len(found):
            warn(
                f"the part {name} of {source} has no two different labels of "
                f"{listed(tasks[at].name for at in found)}: nothing can be learned there, or "
                "scored by rank, of them."
            )


def cut_pairs(keys: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair rows with the first row of the same key, where that is in another part.

    Args:
        keys: (rows,), None = no key.
        parts: (rows,) of any label.

    Returns:
        (pairs,) int each, the first rows, and the other ones in ascending order.

    Example:
        >>> [rows.tolist() for rows in cut_pairs(np.array(list("abab")), np.array([0, 0, 1, 0]))]
        [[0], [2]]
    """
    codes = pd.factorize(keys)[0]
    first = pd.Series(np.arange(len(codes))).groupby(codes).transform("first").to_numpy()
    rows = np.flatnonzero((codes >= 0) & (parts[first] != parts))
    return first[rows], rows


def warn_of_cuts(
    what: str,
    keys: np.ndarray,
    parts: np.ndarray,
    names: np.ndarray,
    lines: np.ndarray,
    source: Path,
) -> None:
    """Warn of rows that belong together and are in two parts.

    Args:
        what: such rows are called in the message.
        keys: (rows,), the same for what belongs together.
        parts: (rows,), the names of the parts.
        names, lines: (rows,) each, for the message.
        source: the file, for the message.
    """
    first, rows = cut_pairs(keys, parts)
    if not len(rows):
        return
    at = place(source)
    cut, second = np.unique(first, return_index=True)  # one row of each key
    shown = [
        f"{names[one]!r}, {parts[one]} in {at} {lines[one]} and {parts[two]} in {at} {lines[two]}"
        for one, two in zip(cut[:_SHOWN], rows[second[:_SHOWN]], strict=True)
    ]
    warn(
        f"{source} has {what} on two sides of its split column, {len(cut)} in all, so that "
        f"scores may be too good: {shortened(shown, _SHOWN, len(cut))}."
    )
