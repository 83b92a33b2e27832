"""The scores of a model by task: as numbers, as JSON, as a table."""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class TaskScores:
    """Scores of one task over its known labels; NaN = not defined by them.

    `known`, `positive`: how many labels; `auc`: area under the ROC curve; `average_precision`:
    area under precision against recall, by steps; `accuracy`: share predicted right.
    """

    known: int
    positive: int
    auc: float
    average_precision: float
    accuracy: float


@dataclass(frozen=True)
class Report:
    """Scores by task, and their mean over the tasks that define them."""

    rows: int
    tasks: dict[str, TaskScores]

    @property
    def macro_auc(self) -> float:
        """Mean AUC over the tasks with known labels of both classes; NaN if there are none."""
        return _mean(scores.auc for scores in self.tasks.values())

    def to_dict(self) -> dict[str, Any]:
        """For JSON: undefined scores are None."""
        return {
            "macro_auc": _json(self.macro_auc),
            "rows": self.rows,
            "tasks": {
                name: {key: _json(value) for key, value in asdict(scores).items()}
                for name, scores in self.tasks.items()
            },
        }

    def table(self) -> Table:
        """A rich table, one line a task; undefined scores are a dash."""
        from rich.table import Table
        from rich.text import Text

        columns = list(TaskScores.__dataclass_fields__)
        table = Table(title=f"{self.rows} pictures")
        table.add_column("task")
        for column in columns:
            table.add_column(column.replace("_", " "), justify="right")
        for name, scores in self.tasks.items():
            table.add_row(Text(name), *(_text(getattr(scores, column)) for column in columns))
        table.add_section()
        means = [_mean(getattr(s, c) for s in self.tasks.values()) for c in columns[2:]]
        table.add_row("mean", "", "", *(_text(mean) for mean in means))
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=100, color_system=None)
        console.print(self.table())
        return console.file.getvalue().rstrip()


def _mean(values: Any) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else float("nan")


def _json(value: float) -> float | None:
    return None if isinstance(value, float) and math.isnan(value) else value


def _text(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "–" if math.isnan(value) else f"{value:.3f}"
