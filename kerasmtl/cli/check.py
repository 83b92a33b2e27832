"""Everything that `kerasmtl check` finds in a labels file and its pictures."""

from __future__ import annotations

import io
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from kerasmtl.data.audit import Audit
from kerasmtl.data.inputs import Fault
from kerasmtl.data.manifest import Manifest
from kerasmtl.training.depth import advice
from kerasmtl.utils.progress import progress_bar
from kerasmtl.utils.tables import Name, print_whole
from kerasmtl.utils.text import columns_text, listed

_SHOWN = 20  # leaks and tasks of the matrix that the text lists; JSON has all
_MATRIX = 10


@dataclass(frozen=True)
class Check:
    """What `check` found; `leaks` is None where none was looked for, `no_leaks` says why.

    `training` says how much of a network the labels are enough for; None of a table, and of rows
    that cannot be split.
    """

    manifest: Manifest
    faults: list[Fault]
    class_faults: dict[str, str]
    coverage: pd.DataFrame
    audit: Audit
    leaks: pd.DataFrame | None
    no_leaks: str = ""
    training: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        leaks = None if self.leaks is None else self.leaks.to_dict(orient="records")
        return {
            "labels": str(self.manifest.source),
            "rows": len(self.manifest),
            "input": self.manifest.input.config(),
            "ignored": list(self.manifest.ignored),
            "faults": [asdict(fault) for fault in self.faults],
            "class_faults": self.class_faults,
            "tasks": {
                str(name): {key: _plain(value) for key, value in row.items()}
                for name, row in self.coverage.astype(object).iterrows()
            },
            "audit": self.audit.to_dict(),
            "training": self.training,
            "leaks": leaks,
            "remedies": self.remedies(),
        }

    def text(self) -> str:
        """Tables and sentences for a terminal."""
        lines = [
            f"{self.manifest.source}: {len(self.manifest)} rows",
            columns_text(self.manifest),
            self._coverage_table(),
            *self._together(),
            *self._missing(),
            *self.audit.advice,
            *([self.training] if self.training else []),
            *(f"Task {name}: {fault}" for name, fault in self.class_faults.items()),
            *self._leak_lines(),
            *(f"line {fault.line}: {fault.name}: {fault.reason}" for fault in self.faults),
            f"{len(self.faults)} of {len(self.manifest)} {self.manifest.input.noun} cannot be "
            "used.",
        ]
        return "\n".join(lines)

    def _coverage_table(self) -> str:
        mixed = "classes" in self.coverage
        header = ["task", "kind", "known", "positive", "negative", "share known"]
        rows = []
        for name, row in self.coverage.astype(object).iterrows():
            counts = [_count(row[key]) for key in ("known", "positive", "negative")]
            values = [str(name), row["kind"], *counts, f"{row['share']:.0%}"]
            rows.append([*values, _values(row)] if mixed else values)
        return _table([*header, "values"] if mixed else header, rows)

    def _together(self) -> list[str]:
        """How many rows have both of two tasks, where that is not plain from the coverage."""
        both = self.audit.co_known
        if not 1 < len(both) <= _MATRIX or (self.coverage["share"] == 1).all():
            return []
        rows = [[str(name), *(str(count) for count in row)] for name, row in both.iterrows()]
        return ["Rows with both labels:", _table(["", *map(str, both.columns)], rows)]

    def _missing(self) -> list[str]:
        """The policy for missing labels, tasks of the same reason in one line."""
        grouped = self.audit.tasks.groupby(["policy", "reason"], sort=False)
        return [
            f"Missing labels: {policy}: {listed([str(name) for name in rows.index])}: {reason}."
            for (policy, reason), rows in grouped
        ]

    def _leak_lines(self) -> list[str]:
        if self.leaks is None:
            return [f"Leaks were not looked for: {self.no_leaks}."] if self.no_leaks else []
        lines = [
            f"Warning: {row.kind}: {row.part}, line {row.line}: {row.name} and {row.other_part}, "
            f"line {row.other_line}: {row.other_name}"
            for row in self.leaks.head(_SHOWN).itertuples()
        ]
        if len(self.leaks) > _SHOWN:
            lines.append(f"Warning: … and {len(self.leaks) - _SHOWN} more; --json lists all.")
        lines.append(f"{len(self.leaks)} leaks between the parts of the split.")
        return [*lines, *(f"Remedy: {remedy}" for remedy in self.remedies())]

    def remedies(self) -> list[str]:
        """What mends the leaks, a sentence each."""
        if self.leaks is None or self.leaks.empty:
            return []
        found = []
        if self.manifest.splits is not None:
            found.append(
                "give such rows the same part in the split column, or remove the column: a split "
                "drawn by kerasmtl keeps identical rows and groups together."
            )
        if "near-duplicate" in set(self.leaks["kind"]):
            found.append(
                "name the column of what belongs together (a video, a patient) as group_column "
                "(command line: --group-column): near-duplicates of one group are kept together."
            )
        return found


def check(manifest: Manifest, seed: int = 0, leaks: bool = True, quiet: bool = False) -> Check:
    """Look at every label and every picture of a manifest.

    Args:
        manifest: the rows.
        seed: of the split between whose parts leaks are looked for.
        leaks: look for them; reads every picture once more.
        quiet: show no progress bars.
    """
    with progress_bar(manifest.input.noun, len(manifest), not quiet) as step:
        faults = manifest.faults(step)
    found, why = None, ""
    if leaks:
        try:
            with progress_bar("leaks", len(manifest), not quiet) as step:
                found = manifest.leaks(seed=seed, progress=step)
        except ValueError as error:  # too few rows to split
            why = str(error)
    return Check(
        manifest=manifest,
        faults=faults,
        class_faults=manifest.class_faults(),
        coverage=manifest.coverage(),
        audit=manifest.audit(),
        leaks=found,
        no_leaks=why.rstrip("."),
        training=_training(manifest, seed) if manifest.input.has_backbone else None,
    )


def _training(manifest: Manifest, seed: int) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train, *_ = manifest.split(seed=seed)
    except ValueError:  # too few rows to split
        return None
    return advice((~np.isnan(train.labels)).sum(axis=0).tolist())


def _table(header: list[str], rows: list[list[str]]) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for number, column in enumerate(header):
        justify = "right" if number and column not in ("kind", "values") else "left"
        table.add_column(Name(column), justify=justify, overflow="fold")
    for name, *cells in rows:
        table.add_row(Name(name), *map(Text, cells))
    shown = Console()
    file = io.StringIO()
    copy = {"width": shown.width, "force_terminal": shown.is_terminal, "color_system": None}
    print_whole(table, Console(file=file, **copy))
    return file.getvalue().rstrip("\n")


def _count(value: Any) -> str:
    return "" if pd.isna(value) else str(value)


def _values(row: pd.Series) -> str:
    if isinstance(row["classes"], dict):
        return ", ".join(f"{name} {count}" for name, count in row["classes"].items())
    return "" if pd.isna(row["mean"]) else f"mean {row['mean']:.4g}, std {row['std']:.3g}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return value
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value
