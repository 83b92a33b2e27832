"""One network for all tasks, or several: cells of `tasks` and `size`, on features computed once.

A cell is one network with a hidden layer, for some of the tasks: on the rows with labels of these
tasks, with the same seeds, numbers of steps that are tried, and rule by which folds choose one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from kerasmtl.advice.cells import Cell, Cells, Predictions, Result
from kerasmtl.advice.rows import Rows
from kerasmtl.advice.statistics import Bootstrap, Estimate, curves, estimate, unit_of
from kerasmtl.tasks import by_task
from kerasmtl.training.heads import Hidden, fit_head
from kerasmtl.utils.text import listed, shortened

WIDTH = Hidden().width  # of "tasks" where project.toml has no widths
WIDTHS = (4, 16, 64, 256)
MOST_PAIRED = 16  # tasks up to which pairs of them are trained, to find groups
MARGIN = 0.01  # a loss below it does not matter to anybody
ALIKE = 2.0  # the most labels of a task to the fewest, up to which amounts are similar

Group = tuple[str, ...]  # names of tasks that share a network


class Networks:
    """Trains networks for groups of tasks, and scores sets of them.

    Args:
        rows: of the project.
        cells: keeps what is trained.
        seeds: of each network.

    Attributes:
        known: known labels by task, of the rows to learn from.
        all: the tasks that have some.
        each: the same, one by one.
        basis: what intervals rest on, for sentences.
    """

    def __init__(self, rows: Rows, cells: Cells, seeds: int) -> None:
        self.rows, self.cells, self.seeds = rows, cells, seeds
        self.names = [task.name for task in rows.tasks]
        counts = (~np.isnan(rows.labels)).sum(axis=0).tolist()
        self.known = dict(zip(self.names, counts, strict=True))
        self.all: Group = tuple(name for name in self.names if self.known[name])
        self.each: list[Group] = [(name,) for name in self.all]
        self.basis = f"95 %, {seeds} seeds, {len(rows.test)} test rows"
        self.bootstrap = Bootstrap(rows.tasks, rows.test.labels, rows.test.groups, seeds)
        self.done: dict[tuple[Group, int, int], Result] = {}

    def train(self, wanted: Sequence[tuple[Group, int]]) -> None:
        """Train networks of groups of tasks and widths, for every seed."""
        keys = [(group, width, seed) for group, width in wanted for seed in range(self.seeds)]
        keys = [key for key in dict.fromkeys(keys) if key not in self.done]
        found = self.cells.results([self._cell(*key) for key in keys])
        self.done |= {k: r for k, r in zip(keys, found, strict=True) if r is not None}

    def _cell(self, group: Group, width: int, seed: int) -> Cell:
        """Return the cell of a network."""
        settings = {"tasks": list(group), "width": width, "seed": seed}
        return Cell(settings, 1 + 0.02 * width, lambda: self._fit(group, width, seed))

    def _fit(self, group: Group, width: int, seed: int) -> tuple[Predictions, Mapping[str, float]]:
        """Train a network; return its predictions of the test rows, and its scores out of fold."""
        at = [self.names.index(name) for name in group]
        tasks, rows = [self.rows.tasks[i] for i in at], self.rows
        labels, kinds = rows.labels[:, at], [Hidden(width=width, ensemble=False)]
        views = rows.views and {"standardized": rows.views["standardized"]}
        head = fit_head(rows.features, labels, tasks, rows.groups, kinds, seed=seed, views=views)
        return by_task(head.predict(rows.test_features), tasks), head.scores()

    def scores(self, groups: Sequence[Group], width: int) -> np.ndarray | None:
        """Return the scores of networks that serve a task each or several, (tasks, 1 + draws).

        None without groups, or if one of them was not trained with every seed.
        """
        keys = [[(group, width, seed) for group in groups] for seed in range(self.seeds)]
        if not groups or any(key not in self.done for of in keys for key in of):
            return None
        each = [[self.done[key].predictions for key in of] for of in keys]
        return self.bootstrap.scores([{k: p for one in of for k, p in one.items()} for of in each])

    def gain(self, name: str, group: Group, width: int) -> float:
        """Return what a task's score out of fold gains in a group over alone, mean over seeds."""
        alone, there = (
            [self.done[of, width, seed].held_out[name] for seed in range(self.seeds)]
            for of in ((name,), group)
        )
        return float(np.mean(there) - np.mean(alone))

    def differences(self, one: np.ndarray, other: np.ndarray) -> list[Estimate]:
        """Return one - other of each task, then of their mean."""
        each = [estimate(a - b) for a, b in zip(one, other, strict=True)]
        return [*each, estimate(self.bootstrap.macro(one) - self.bootstrap.macro(other))]

    def column(self, scores: np.ndarray) -> list[float]:
        """Return the score of each task, then their mean."""
        return np.round([*scores[:, 0], self.bootstrap.macro(scores)[0]], 4).tolist()

    def nothing(self, setting: str) -> dict[str, Any]:
        """Return the arguments of a `Comparison` that has nothing to say."""
        said = f"Nothing is compared yet: {self.cells.left} trainings are left."
        if len(self.all) < 2:
            said = "There is nothing to compare: fewer than two tasks have known labels."
        return {"sentences": (said,), "table": pd.DataFrame(), "setting": setting}


# ---------------------------------------------------------------- several tasks


def compare_tasks(rows: Rows, cells: Cells, seeds: int) -> dict[str, Any]:
    """Compare one network for all tasks with one per task, and with the best groups.

    Returns:
        The arguments of `Comparison`.
    """
    nets, width = Networks(rows, cells, seeds), (rows.project.hidden or [WIDTH])[0]
    setting = f"hidden = {json.dumps(rows.project.model.hidden)}  # nothing to change"
    if len(nets.all) < 2:
        return nets.nothing(setting)
    seen = (rows.views or {}).get("standardized", slice(None))
    small = same_total(width, rows.features[:1, seen].shape[1], len(nets.all))
    separate = [(group, of) for of in (width, small) for group in nets.each]
    nets.train([(nets.all, width), *separate])
    groups = _groups(nets, width)
    nets.train([(group, width) for group in groups])
    one, unit = nets.scores([nets.all], width), unit_of(rows.tasks)
    others = {
        f"one per task of width {width}": nets.scores(nets.each, width),
        f"one per task of width {small} (same size in total)": nets.scores(nets.each, small),
        f"{len(groups)} groups of width {width}": nets.scores(groups, width),
    }
    others = {name: scores for name, scores in others.items() if scores is not None}
    if one is None or not others:
        return nets.nothing(setting)
    found = {name: nets.differences(one, scores) for name, scores in others.items()}
    columns = ["task", "known", "one network", "compared with", "score", "difference", "better"]
    counts = [*nets.known.values(), sum(nets.known.values())]
    table = [
        line
        for name, scores in others.items()
        for line in zip(
            [*nets.names, unit],
            counts,
            nets.column(one),
            [name] * len(counts),
            nets.column(scores),
            map(str, found[name]),
            (each.verdict for each in found[name]),
            strict=True,
        )
    ]
    over = "; ".join(f"{name} {each[-1]}" for name, each in found.items())
    first = (
        f"One network of width {width} for all {len(nets.all)} tasks reaches a {unit} of "
        f"{nets.column(one)[-1]:.3f}; difference to {over} ({nets.basis})."
    )
    verdicts = {name: each[-1].verdict for name, each in found.items()}
    worse = [name for name, verdict in verdicts.items() if verdict == "no"]
    better = [name for name, verdict in verdicts.items() if verdict == "yes"]
    if worse and better:
        second = (
            f"The comparisons disagree: one network is better than {'; '.join(better)}, and worse "
            f"than {'; '.join(worse)}. What more weights alone bring is not a matter of sharing."
        )
    elif worse:
        split = groups if worse[-1].endswith(f"groups of width {width}") else nets.each
        second = f"Better than one network: {worse[-1]}, {shortened(map(listed, split))}."
        setting = f"tasks = {list(split[0])}  # and a project for each other network"
    elif better:
        second = f"One network for all is better than {'; '.join(better)}: keep it."
    else:
        second = "Each interval holds 0: these data decide for neither, and one network is simpler."
    return {
        "sentences": (first, second),
        "table": pd.DataFrame(table, columns=columns),
        "details": _conditions(nets, width),
        "setting": setting,
    }


def same_total(width: int, columns: int, tasks: int) -> int:
    """Return the width of networks, one per task, that together have the weights of one for all.

    Args:
        width: of the one network.
        columns: of the features.
        tasks: how many, with an output each.
    """
    weights = width * (columns + 1) + (width + 1) * tasks
    return max(1, round((weights / tasks - 1) / (columns + 2)))


def _groups(nets: Networks, width: int) -> list[Group]:
    """Return the best groups of tasks by the gains of pairs; none if all or nothing is best.

    A group promises a task the mean gain out of fold of its pairs there
    (https://arxiv.org/abs/2109.04617); groups are joined as long as that pays.
    """
    pairs = list(combinations(nets.all, 2))
    if not 2 < len(nets.all) <= MOST_PAIRED:
        return []
    nets.train([(pair, width) for pair in pairs])
    needed = [(group, width, seed) for group in (*pairs, *nets.each) for seed in range(nets.seeds)]
    if any(key not in nets.done for key in needed):
        return []
    gains = {(name, pair): nets.gain(name, pair, width) for pair in pairs for name in pair}

    def promise(group: Group) -> float:
        inside = list(combinations(group, 2))
        each = [[gains[name, pair] for pair in inside if name in pair] for name in group]
        return float(np.nansum([np.mean(found) for found in each if found]))

    groups = list(nets.each)
    while len(groups) > 1:
        paid = {}
        for a, b in combinations(groups, 2):
            both = tuple(name for name in nets.all if name in a + b)
            paid[both] = promise(both) - promise(a) - promise(b)
        best = max(paid, key=paid.__getitem__)
        if not paid[best] > 0:
            break
        groups = [group for group in groups if group[0] not in best] + [best]
    return groups if 1 < len(groups) < len(nets.all) else []


def _conditions(nets: Networks, width: int) -> pd.DataFrame:
    """Return the three conditions of multi-task learning, each with a measured answer."""
    one, alone = nets.scores([nets.all], width), nets.scores(nets.each, width)
    rows = []
    if one is not None and alone is not None:
        gains = []
        for pair in combinations(nets.all, 2):
            both = nets.scores([pair, *(g for g in nets.each if g[0] not in pair)], width)
            at = [nets.names.index(name) for name in pair]
            gains += [] if both is None else [*(both[at] - alone[at])]
        gains = [each for each in gains if np.isfinite(each[0])]
        all_in_one = nets.differences(one, alone)[-1]
        shared = estimate(np.nanmean(gains, axis=0)) if gains else all_in_one
        by = "one other task" if gains else "all other tasks"
        said = f"sharing with {by} changes a task's score by {shared} on average"
        rows.append(("features that can be shared", shared.verdict, said))
        enough = "yes" if all_in_one.low > -MARGIN else all_in_one.verdict
        said = f"at width {width}, one for all less one per task is {all_in_one}"
        said += f"; a loss below {MARGIN} counts as none"
        rows.append(("a network big enough", enough, said))
    counts = np.array([nets.known[name] for name in nets.all])
    ratio, most = counts.max() / counts.min(), counts.max()
    similar = "yes" if ratio <= ALIKE else "no" if most > counts.sum() - most else "undecided"
    said = (
        f"{counts.min():,} to {most:,} per task; all others of the largest: {counts.sum() - most:,}"
    )
    rows.append(("similar amounts of labels", similar, said))
    return pd.DataFrame(rows, columns=["condition", "holds", "measured"])


# ---------------------------------------------------------------- size


def compare_size(rows: Rows, cells: Cells, seeds: int) -> dict[str, Any]:
    """Compare one network for all tasks with one per task at several widths.

    Returns:
        The arguments of `Comparison`.
    """
    nets, unit = Networks(rows, cells, seeds), unit_of(rows.tasks)
    now = (rows.project.hidden or [np.inf])[0]  # a head by folds is wider, and has not been tried
    setting = f"hidden = {json.dumps(rows.project.model.hidden)}  # nothing to change"
    if len(nets.all) > 1:
        nets.train([(group, width) for width in WIDTHS for group in (nets.all, *nets.each)])
    sides: tuple[dict[int, np.ndarray], ...] = ({}, {})
    for width in WIDTHS:
        scores = [nets.scores(groups, width) for groups in ([nets.all], nets.each)]
        if len(nets.all) > 1 and all(each is not None for each in scores):
            for side, each in zip(sides, scores, strict=True):
                side[width] = nets.bootstrap.macro(each)
    one, each = sides
    found = {width: estimate(one[width] - each[width]) for width in one}
    if not found:
        return nets.nothing(setting)
    losing = [width for width in found if found[width].verdict == "no"]
    wider = [width for width in found if width > max(losing, default=0)]
    enough = [width for width in wider if found[width].value > -MARGIN]
    at = max(losing, default=min(found))
    said = "loses to" if losing else "does not measurably lose to"
    first = (
        f"At width {at} one network for all {len(nets.all)} tasks {said} one per task of the same "
        f"width: {found[at]} {unit} ({nets.basis})."
    )
    if enough:
        at = min(enough)
        second = f"Width {at} is the smallest tried at which one network keeps up: {found[at]}"
        possible = found[at].low < -MARGIN
        second += f"; a loss of {-found[at].low:.3f} remains possible." if possible else "."
        setting = f"hidden = [{at}]" if now < at else setting
    else:
        at = max(found)
        second = f"One network keeps up at no width tried, up to {at}: try a wider one."
        setting = f"hidden = [{2 * at}]" if now <= at else setting
    return {
        "sentences": (first, second),
        "table": pd.DataFrame(
            {
                "width": list(found),
                "one network": [round(float(one[width][0]), 4) for width in found],
                "one per task": [round(float(each[width][0]), 4) for width in found],
                "difference": [str(of) for of in found.values()],
                "one network is better": [of.verdict for of in found.values()],
            }
        ),
        "setting": setting,
        "curves": curves({"one network for all tasks": one, "one network per task": each}),
        "x_label": "width of the hidden layer",
        "y_label": unit,
    }
