"""What can be said before anything is trained: counts, probes of the features, and the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from kerasmtl.advice.rows import Rows, with_backbone
from kerasmtl.advice.statistics import unit_of
from kerasmtl.advice.transferability import logme, mean_score, ridge_probe
from kerasmtl.training.plans import Plan

if TYPE_CHECKING:
    from kerasmtl.project import Project


@dataclass(frozen=True, eq=False)
class Advice:
    """What is known of a project before training.

    Attributes:
        tasks: a row per task: known labels to learn from, positives, the ratio of its labels to
            those of all other tasks, and the probe's score with each backbone.
        backbones: a row per backbone, the best first: the mean score of its probe, and LogME.
        plan: the plan of train.py, and why.
    """

    tasks: pd.DataFrame
    backbones: pd.DataFrame
    plan: str

    def __str__(self) -> str:
        """Show the tables and the plan."""
        tables = [each.to_string(index=False, na_rep="") for each in (self.tasks, self.backbones)]
        return "\n\n".join([*tables, self.plan])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; None for NaN."""
        found: dict[str, Any] = {"plan": self.plan}
        for name in ("tasks", "backbones"):
            table = getattr(self, name).astype(object)
            found[name] = table.where(table.notna(), None).to_dict(orient="records")
        return found


def advise(project: Project, backbones: Sequence[str] = ()) -> Advice:
    """Look at a project's labels and features, and say what training would do.

    Args:
        project: of which train and validation rows are looked at, and no test row.
        backbones: handles to probe; by default the project's own. Of a table its columns are
            probed.

    Raises:
        ValueError: backbones for a project without one, or rows that cannot be divided.
    """
    rows = Rows.of(project)
    if backbones and not project.input.has_backbone:
        raise ValueError(
            f"`backbones` must be none for {project.input.noun}, which have no pretrained "
            f"backbone, got {list(backbones)}"
        )
    own = project.model.backbone if project.input.has_backbone else "columns"
    labels = rows.labels
    known = (~np.isnan(labels)).sum(axis=0)
    others = np.where(known < known.sum(), known.sum() - known, np.nan)
    table = {
        "task": [task.name for task in rows.tasks],
        "known": known,
        "share": [f"{share:.0%}" for share in known / len(labels)],
        "positive": [
            str(int((column == 1).sum())) if task.kind == "binary" else ""
            for task, column in zip(rows.tasks, labels.T, strict=True)
        ],
        "to all others": (known / others).round(2),
    }
    unit, ranked = f"ridge probe, {unit_of(rows.tasks)}", []
    for handle in dict.fromkeys(backbones or [own]):
        of = rows if handle == own else with_backbone(rows, handle)
        features = of.features
        # More threads than this only wait for each other on matrices so small.
        with threadpool_limits(limits=1, user_api="blas"):
            probe = ridge_probe(features, labels, rows.tasks, rows.groups)
            # Of a table there is nothing to rank, and many columns would take minutes.
            backbones_given = project.input.has_backbone
            score = logme(features, labels, rows.tasks) if backbones_given else np.nan
        table[handle] = [str(probe[name]) for name in table["task"]]
        ranked.append((handle, mean_score(probe), round(score, 4), features.shape[1]))
    parts = [project.dataset(part, rows.model) for part in (rows.train, rows.val) if len(part)]
    plan = project.plan(rows.model, *parts)
    if project.model.hidden == "auto":  # instead of the first stage a head is chosen by folds
        left = plan.stages[1:]
        plan = Plan(plan.name if left else project.training.plan, left, plan.why)
    found = pd.DataFrame(ranked, columns=["backbone", unit, "LogME", "columns"])
    found = found.sort_values(unit, ascending=False, na_position="last")
    return Advice(pd.DataFrame(table), found, str(plan))
