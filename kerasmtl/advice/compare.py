"""`kt.compare`: transfer, several tasks and size, measured on one's own data.

`compare` reads the rows, lets `transfer` or `networks` train their cells within the time, and
writes what they found to runs/compare/.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from kerasmtl.advice.cells import Cells
from kerasmtl.advice.networks import compare_size, compare_tasks
from kerasmtl.advice.rows import Rows
from kerasmtl.advice.transfer import SHARES, compare_transfer
from kerasmtl.evaluation.html_report import render_comparison
from kerasmtl.utils.files import write_text
from kerasmtl.utils.validation import check_choice, check_count, check_number

if TYPE_CHECKING:
    from kerasmtl.project import Project

KINDS = ("transfer", "tasks", "size")
FEWEST_SEEDS = 3


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a comparison has found.

    Attributes:
        kind: "transfer", "tasks" or "size".
        sentences: the answer, with numbers and their uncertainty.
        table: the scores and differences behind it.
        setting: the line of project.toml that follows from it.
        details: a further table: the conditions of "tasks", the backbones of "transfer"; or None.
        curves: label, x, y, low and high of each.
        x_label, y_label: of the curves.
        left: trainings that there was no time for; the same call continues with them.

    Example:
        >>> import pandas as pd
        >>> import kerasmtl as kt
        >>> table = pd.DataFrame({"width": [4], "difference": ["-0.05 [-0.09, -0.01]"]})
        >>> print(kt.advice.Comparison("size", ("Width 4 loses.",), table, "hidden = [16]"))
        Width 4 loses.
        ...
        project.toml: hidden = [16]
    """

    kind: str
    sentences: tuple[str, ...]
    table: pd.DataFrame
    setting: str
    details: pd.DataFrame | None = None
    curves: tuple[dict[str, Any], ...] = ()
    x_label: str = ""
    y_label: str = ""
    left: int = 0

    @property
    def _tables(self) -> list[pd.DataFrame]:
        return [each for each in (self.table, self.details) if each is not None and len(each)]

    @property
    def _end(self) -> list[str]:
        left = "1 training is" if self.left == 1 else f"{self.left} trainings are"
        more = f"{left} left; the same command continues there."
        return [f"project.toml: {self.setting}", *([more] if self.left else [])]

    def __str__(self) -> str:
        """Show the sentences, the tables and the setting."""
        tables = [each.to_string(index=False, na_rep="") for each in self._tables]
        return "\n\n".join(["\n".join(self.sentences), *tables, "\n".join(self._end)])

    def _repr_html_(self) -> str:
        tables = [each.to_html(index=False, na_rep="") for each in self._tables]
        said = [f"<p>{html.escape(each)}</p>" for each in self.sentences]
        return "".join([*said, *tables, *(f"<p>{html.escape(each)}</p>" for each in self._end)])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        found = {name: getattr(self, name) for name in ("kind", "sentences", "curves", "setting")}
        found |= {"x_label": self.x_label, "y_label": self.y_label, "left": self.left}
        for name, table in (("table", self.table), ("details", self.details)):
            if table is not None:
                rows = [list(row) for row in table.itertuples(index=False)]
                found[name] = {"columns": list(map(str, table.columns)), "rows": rows}
        return _plain(found)


def compare(
    project: Project,
    what: Literal["transfer", "tasks", "size"] = "transfer",
    shares: Sequence[float] = SHARES,
    seeds: int = 3,
    minutes: float = 10,
    backbones: Sequence[str] = (),
    progress: bool = True,
) -> Comparison:
    """Answer a question of transfer or multi-task learning by trainings on a project's own rows.

    "transfer": is the backbone worth it? Networks from random weights, the frozen backbone and the
    project's plan learn from shares of the labels. "tasks": does one network for all tasks serve
    better than one per task, of the same size each and of the same size in total? "size": from
    which width on does one network for all no longer lose?

    Both sides of a comparison have the same rows, seeds, numbers of steps and selection. They are
    scored on the test rows; intervals are of 95 %, by a bootstrap over seeds and test rows (whole
    groups) in pairs, and where one holds 0 nothing is claimed. Cells that are finished are kept in
    runs/compare, the answer in runs/compare/WHAT.json and runs/compare.html: the same call resumes
    where it was stopped.

    Args:
        project: whose rows, network and plan are compared.
        what: "transfer", "tasks" or "size".
        shares: of "transfer": of the rows to learn from, above 0 up to 1; four or more for a
            power law.
        seeds: of each training, 3 or more.
        minutes: after which no more training is begun; the cheapest come first.
        backbones: of "transfer": handles that are ranked on their frozen features.
        progress: print a line per training, to standard error.

    Returns:
        The answer in two sentences, the numbers behind it, and the line of project.toml to change.

    Raises:
        ValueError: a wrong argument, "transfer" for rows without a backbone, or rows that cannot be
            divided into parts.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import kerasmtl as kt
        >>> rows = "".join(f"{i % 7},{i % 5},{i % 2},{i // 2 % 2}\\n" for i in range(60))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "labels.csv").write_text("x1,x2,a,b\\n" + rows)
        ...     toml = 'name = "p"\\n[data]\\nlabels = "labels.csv"\\ntasks = ["a", "b"]\\n'
        ...     toml += '[input]\\nkind = "table"\\n'
        ...     _ = (Path(folder) / "project.toml").write_text(toml)
        ...     found = kt.compare(kt.Project.load(folder), "size", minutes=0, progress=False)
        >>> found.left > 0
        True
    """
    check_choice("what", what, KINDS)
    check_count("seeds", seeds, FEWEST_SEEDS)
    check_number("minutes", minutes, 0)
    for share in shares:
        check_number("shares", share, 0, 1, open_low=True)
    if what == "transfer" and not project.input.has_backbone:
        raise ValueError(
            f"`what` must be 'tasks' or 'size' for {project.input.noun}, got 'transfer': there is "
            "no pretrained backbone"
        )
    rows = Rows.of(project)
    folder = project.folder / "runs" / "compare"
    cells = Cells(folder / "cells", rows.sha256, minutes, progress)
    if what == "transfer":
        parts = compare_transfer(rows, cells, sorted(set(shares)), seeds, backbones)
    else:
        parts = (compare_tasks if what == "tasks" else compare_size)(rows, cells, seeds)
    found = Comparison(what, left=cells.left, **parts)
    write_text(folder / f"{what}.json", json.dumps(found.to_dict(), indent=1))
    kept = [folder / f"{kind}.json" for kind in KINDS]
    every = [json.loads(file.read_text(encoding="utf-8")) for file in kept if file.is_file()]
    write_text(folder.with_suffix(".html"), render_comparison(every, project.name))
    return found


def _plain(value: Any) -> Any:
    """Return nested values as JSON has them: no tuples, no numbers of NumPy, None for NaN."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
