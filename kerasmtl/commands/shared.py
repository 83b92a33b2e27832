"""What commands share: options, and errors and warnings as plain lines."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from kerasmtl.commands.words import in_cli_words
from kerasmtl.faults import graph_fault

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kerasmtl.project import Project

as_json = click.option("--json", "json_", is_flag=True, help="Print JSON instead of a table.")
in_project = click.option(
    "--project",
    "folder",
    default=".",
    show_default=True,
    type=click.Path(file_okay=False),
    help="The project's folder.",
)


def plain_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Errors that name what is wrong, and warnings, are shown as they are, without a traceback."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            default, warnings.showwarning = warnings.showwarning, _plain_warning
            try:
                return command(*args, **kwargs)
            except (ValueError, OSError, ImportError) as error:
                said = in_cli_words(str(error), click.get_current_context().command)
                raise click.ClickException(said) from error
            except Exception as error:
                said = graph_fault(error)
                if said is None:
                    raise
                raise click.ClickException(said) from error
            finally:
                warnings.showwarning = default

    return wrapped


def _plain_warning(message: Warning | str, *place: Any, **more: Any) -> None:
    click.echo(f"Warning: {message}", err=True)


def load_project(folder: str) -> Project:
    """The project in a folder."""
    from kerasmtl.project import Project

    return Project.load(folder)


def print_table(table: RenderableType) -> None:
    """Print a table with all its numbers, for a terminal, a pipe or a file."""
    from rich.console import Console

    from kerasmtl.report import print_whole

    print_whole(table, Console())


def print_predictions(
    first: str,
    names: Sequence[str],
    values: Sequence[Mapping[str, Any]],
    decisions: Sequence[Mapping[str, Any]],
) -> None:
    """Print a table of predictions, a line per image or row: "0.731 yes", "rain (0.912)", "4.2".

    Args:
        first: what the names are of.
        names: one per line.
        values: by task a probability, a number, or class → probability.
        decisions: by task 1 or 0, or the likeliest class, where there is one.
    """
    from rich.table import Table
    from rich.text import Text

    from kerasmtl.report import Name

    table = Table()
    table.add_column(first)
    for task in values[0]:
        table.add_column(Name(task), justify="right", overflow="fold")
    for name, found, decided in zip(names, values, decisions, strict=True):
        cells = (_cell(value, decided.get(task)) for task, value in found.items())
        table.add_row(Name(name), *map(Text, cells))
    print_table(table)


def _cell(value: Any, decision: Any) -> str:
    if isinstance(value, Mapping):
        likeliest = max(value, key=value.__getitem__)
        return f"{likeliest if decision is None else decision} ({value[likeliest]:.3f})"
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:.3f}" if decision is None else f"{value:.3f} {'yes' if decision else 'no'}"
