"""`kerasmtl check` finds what is wrong with a labels file, and says what its labels suffice for.

`Check` collects everything first, then shows it as text or JSON, so that both say the same. Rows
and tasks that cannot be used make the exit status 1, for scripts (rows do not where training skips
them); leaks and advice do not, since only the user knows whether they matter. A file that cannot be
read at all is an error as in training.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from typing import Any

import click
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kerasmtl.cli.common import (
    as_json,
    flags,
    load_project,
    plain_errors,
    project_option,
    read_manifest,
    reading_options,
)
from kerasmtl.data.audit import Audit, plain_rows
from kerasmtl.data.manifest import Manifest
from kerasmtl.training.depth import advice
from kerasmtl.utils.progress import progress_bar
from kerasmtl.utils.tables import Name, print_whole
from kerasmtl.utils.text import columns_text, listed

_SHOWN = 20  # leaks that the text lists; JSON has all
_MATRIX = 10  # tasks of which the text shows which are known together


@click.command()
@click.argument("labels", required=False, type=click.Path())
@reading_options
@click.option("--table", is_flag=True, help="The CSV has numbers instead of images.")
@click.option("--no-leaks", is_flag=True, help="Do not look for images in two splits at once.")
@project_option
@as_json
@plain_errors
def check(
    labels: str | None, table: bool, no_leaks: bool, project: str, json_: bool, **reading: Any
) -> None:
    """Check LABELS, by default the project's file: rows, broken images, missing labels, leaks.

    Shows how many labels each task has, whether labels are missing at random and what to do about
    it, and images that are, also nearly alike, in two splits at once. Exits with status 1 if an
    image cannot be used or a task cannot be learned.

    \b
    Examples:
      kerasmtl check
      kerasmtl check photos/labels.csv --group-column video
      kerasmtl check pumps.csv --table --task leak:missing=-1 --task hours:regression
    """
    given = {name: value for name, value in reading.items() if value}
    seed, skips = 0, False
    if labels is not None:
        # By the suffix, and not by the content: only --table makes a CSV one of numbers.
        kind = "image" if labels.lower().endswith(".csv") and not table else "table"
        manifest = read_manifest(labels, kind, given)
    elif given or table:
        names = [*given, *(["table"] if table else [])]
        raise ValueError(f"{flags(names)} must be given with LABELS, whose columns they describe")
    else:
        found = load_project(project)
        # Rows that training skips are what a check is to show.
        manifest, seed = found.manifest(every_row=True), found.training.seed
        skips = found.data.on_invalid_image == "skip"
    result = Check(manifest, seed, leaks=not no_leaks, quiet=json_)
    click.echo(json.dumps(result.to_dict(), indent=2) if json_ else result.text())
    if result.faults and skips and not json_:
        click.echo('Training skips these rows: on_invalid_image = "skip".')
    if (result.faults and not skips) or result.class_faults:
        raise SystemExit(1)


class Check:
    """What is wrong with the labels and the files of a manifest.

    Args:
        manifest: the rows.
        seed: of the split in which leaks are looked for.
        leaks: look for them; reads every file once more.
        quiet: show no progress bars.

    Attributes:
        faults: rows whose input cannot be used.
        class_faults: by task, why it cannot be learned.
        coverage: how many labels are known, one row per task.
        audit: which labels are missing, and advice.
        leaks: rows that are in two splits; None where they were not looked for.
        no_leaks: why they were not looked for.
        training: how much of a network the labels are enough for; None without a backbone, and for
            rows that cannot be split.
    """

    def __init__(
        self, manifest: Manifest, seed: int = 0, leaks: bool = True, quiet: bool = False
    ) -> None:
        self.manifest = manifest
        with progress_bar(manifest.input.noun, len(manifest), not quiet) as step:
            self.faults = manifest.faults(step)
        self.class_faults, self.coverage = manifest.class_faults(), manifest.coverage()
        self.audit: Audit = manifest.audit()
        self.leaks: pd.DataFrame | None = None
        self.no_leaks, self.training = "", None
        try:
            if leaks:
                with progress_bar("leaks", len(manifest), not quiet) as step:
                    self.leaks = manifest.leaks(seed=seed, progress=step)
            if manifest.input.has_backbone:
                # Training says again what `split` warns of here.
                with warnings.catch_warnings(action="ignore"):
                    train, val, _ = manifest.split(seed=seed)
                self.training = advice(train.labels, val.labels, train.tasks)
        except ValueError as error:  # too few rows to split; all else is still worth showing
            self.no_leaks = str(error).rstrip(".") if leaks else ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON.

        Returns:
            labels, rows, input, ignored, faults (line, name, reason), class_faults, tasks (the
            coverage), audit, training, leaks (None where they were not looked for), and remedies.
        """
        return {
            "labels": str(self.manifest.source),
            "rows": len(self.manifest),
            "input": self.manifest.input.config(),
            "ignored": list(self.manifest.ignored),
            "faults": [asdict(fault) for fault in self.faults],
            "class_faults": self.class_faults,
            "tasks": plain_rows(self.coverage),
            "audit": self.audit.to_dict(),
            "training": self.training,
            "leaks": None if self.leaks is None else self.leaks.to_dict(orient="records"),
            "remedies": self.remedies(),
        }

    def text(self) -> str:
        """Return tables and sentences, for a terminal.

        From what concerns all rows to single ones; the last line counts the rows that cannot be
        used.
        """
        count, noun = len(self.manifest), self.manifest.input.noun
        grouped = self.audit.tasks.groupby(["policy", "reason"], sort=False)
        lines = [
            f"{self.manifest.source}: {count} rows",
            columns_text(self.manifest),
            self._coverage_table(),
            *self._known_together(),
            *(
                f"Missing labels: {policy}: {listed(map(str, rows.index))}: {reason}."
                for (policy, reason), rows in grouped
            ),
            *self.audit.advice,
            *([self.training] if self.training else []),
            *(f"Task {name}: {fault}" for name, fault in self.class_faults.items()),
            *self._leak_lines(),
            *(f"line {fault.line}: {fault.name}: {fault.reason}" for fault in self.faults),
            f"{len(self.faults)} of {count} {noun} cannot be used.",
        ]
        return "\n".join(lines)

    def remedies(self) -> list[str]:
        """Return what to do about leaks, one sentence each; none without leaks."""
        if self.leaks is None or self.leaks.empty:
            return []
        found = []
        if self.manifest.splits is not None:
            found.append(
                "give such rows the same value in the split column, or remove the column: splits "
                "drawn by kerasmtl keep identical rows and groups together."
            )
        if "near-duplicate" in set(self.leaks["kind"]):
            found.append(
                "name the column of what belongs together (a video, a patient) as group_column "
                "(command line: --group-column): near-duplicates of one group are kept together."
            )
        return found

    def _coverage_table(self) -> str:
        """Return one row of counts per task; with `values` if tasks are of several kinds."""
        header = ["task", "kind", "known", "positive", "negative", "share known", "values"]
        rows = []
        for name, row in plain_rows(self.coverage).items():
            counts = ("" if row[key] is None else str(row[key]) for key in header[2:5])
            rows.append([name, row["kind"], *counts, f"{row['share']:.0%}", _values(row)])
        shown = len(header) if "classes" in self.coverage else -1
        return _table(header[:shown], [row[:shown] for row in rows])

    def _known_together(self) -> list[str]:
        """Count the rows with both of two labels, where the coverage does not imply it.

        With every label known the counts are those of the rows, and above `_MATRIX` tasks the table
        is wider than a terminal.
        """
        both = self.audit.co_known
        if not 1 < len(both) <= _MATRIX or (self.coverage["share"] == 1).all():
            return []
        rows = [[str(name), *(str(count) for count in row)] for name, row in both.iterrows()]
        return ["Rows with both labels:", _table(["", *map(str, both.columns)], rows)]

    def _leak_lines(self) -> list[str]:
        """Return a line for each of the first leaks, their number, and what to do about them."""
        if self.leaks is None:
            return [f"Leaks were not looked for: {self.no_leaks}."] if self.no_leaks else []
        lines = [
            f"Warning: {row.kind}: {row.part}, line {row.line}: {row.name} and {row.other_part}, "
            f"line {row.other_line}: {row.other_name}"
            for row in self.leaks.head(_SHOWN).itertuples(name="Leak")
        ]
        if len(self.leaks) > _SHOWN:
            lines.append(f"Warning: … and {len(self.leaks) - _SHOWN} more; --json lists all.")
        lines.append(f"{len(self.leaks)} leaks between the splits.")
        return [*lines, *(f"Remedy: {remedy}" for remedy in self.remedies())]


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Draw a table as text; numbers are right-aligned, and names fold.

    Args:
        header: the names of the columns, the first of which is that of the rows.
        rows: of text.
    """
    table = Table()
    for number, column in enumerate(header):
        justify = "right" if number and column not in ("kind", "values") else "left"
        table.add_column(Name(column), justify=justify, overflow="fold")
    for name, *cells in rows:
        table.add_row(Name(name), *map(Text, cells))
    # Without colours: the text is one string, which may go to a file.
    console = Console(color_system=None)
    with console.capture() as shown:
        print_whole(table, console)
    return shown.get().rstrip("\n")


def _values(row: dict[str, Any]) -> str:
    """Show the classes of a multiclass task, or the mean of a regression task."""
    if row.get("classes"):
        return ", ".join(f"{name} {count}" for name, count in row["classes"].items())
    return "" if row.get("mean") is None else f"mean {row['mean']:.4g}, std {row['std']:.3g}"
