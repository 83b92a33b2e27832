"""The layers of a SavedModel, as the names of its variables tell them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

STATISTICS = re.compile(r"moving_(mean|variance|avg|var|stddev)", re.IGNORECASE)
SCALES = re.compile(r"gamma|beta|scale|offset|renorm_\w+", re.IGNORECASE)


@dataclass
class Scope:
    """Indices of the variables of one layer: its weights, and its batch normalization."""

    name: str
    weights: list[int] = field(default_factory=list)
    normalization: list[int] = field(default_factory=list)


def scopes(paths: Sequence[str], order: Sequence[int]) -> list[Scope]:
    """The layers with weights, from input to output.

    Variables belong together by the scope in their names; where names have none, a layer ends
    where a name comes again. Batch normalization (moving statistics and what is beside them) and
    scopes of scales and offsets alone belong to the layer before, by the longest common beginning
    of their names, then by the order of use.

    Args:
        paths: the variables' names.
        order: their indices in the order of first use.
    """
    placed = _placed(paths, order)
    names: dict[str, set[str]] = {}
    for _, scope, own in placed:
        names.setdefault(scope, set()).add(own)
    found: list[Scope] = []
    waiting: list[tuple[int, bool]] = []  # before the first weights
    for index, scope, own in placed:
        norm = _is_statistics(own) or (
            SCALES.fullmatch(own) is not None and any(map(_is_statistics, names[scope]))
        )
        rider = norm or all(SCALES.fullmatch(other) for other in names[scope])
        if rider and not any(s.name == scope for s in found):
            if not found:
                waiting.append((index, norm))
                continue
            home = _home(scope, found)
        else:
            home = next((s for s in found if s.name == scope), None) or Scope(scope)
            if home not in found:
                found.append(home)
        (home.normalization if norm else home.weights).append(index)
    return _with_waiting(found, waiting)


def _with_waiting(found: list[Scope], waiting: list[tuple[int, bool]]) -> list[Scope]:
    if waiting and not found:
        found = [Scope("normalization")]
    for index, norm in waiting:
        (found[0].normalization if norm else found[0].weights).append(index)
    return found


def _placed(paths: Sequence[str], order: Sequence[int]) -> list[tuple[int, str, str]]:
    """Each variable's index, scope and own name, in the order of first use."""
    placed = []
    seen: set[str] = set()
    number = 1
    for index in order:
        scope, _, own = paths[index].rpartition("/")
        above, _, parent = scope.rpartition("/")
        if STATISTICS.fullmatch(parent):  # moving_mean/hidden, moving_mean/average, …
            scope, own = above, parent
        if not scope:
            if own in seen:
                seen, number = set(), number + 1
            seen.add(own)
            scope = f"layer_{number}"
        placed.append((index, scope, own))
    return placed


def _is_statistics(own: str) -> bool:
    return STATISTICS.search(own) is not None


def _home(scope: str, found: Sequence[Scope]) -> Scope:
    """The layer that a normalization belongs to: the last of those that share most of its name."""
    tokens = re.split(r"[/_]", scope)

    def shared(other: Scope) -> int:
        pairs = zip(tokens, re.split(r"[/_]", other.name), strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), len(tokens))

    return max(reversed(found), key=shared)
