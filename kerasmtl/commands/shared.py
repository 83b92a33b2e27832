"""What commands share: options, and errors and warnings as plain lines."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

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
            except (ValueError, OSError) as error:
                raise click.ClickException(str(error)) from error
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
