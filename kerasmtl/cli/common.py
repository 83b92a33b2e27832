"""What commands share: options, the syntax of --task, plain errors, and tables of predictions.

The library raises errors in the words of Python: "`batch_size` must be …". `plain_errors` shows
them in those of the command line, "--batch-size must be …", so that each message is written once.
Modules that are slow to import (pandas, pydantic, rich) are imported in the functions that need
them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

import click

from kerasmtl.tasks import KINDS, Task
from kerasmtl.utils.tf import graph_fault

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kerasmtl.data.manifest import Manifest
    from kerasmtl.project import Project

# ------------------------------------------------------------------ options

as_json = click.option("--json", "json_", is_flag=True, help="Print JSON instead of a table.")


project_option = click.option(
    "--project",
    default=".",
    show_default=True,
    type=click.Path(file_okay=False),
    help="The project's folder.",
)
task_option = click.option(
    "--task",
    "tasks",
    multiple=True,
    help="A column to learn; by default every column of 0, 1 and ?. With its kind or codes: "
    "hours:regression, weather:multiclass, leak:missing=-1, "
    "edema:uncertain=-1:uncertain_as=one.",
)
_READING = (
    click.option("--image-column", help="The column with the paths of images.  [default: image]"),
    click.option(
        "--split-column",
        help="The column of train, val and test.  [default: split, if there is one]",
    ),
    click.option(
        "--group-column",
        help="A column whose rows of one value stay in one split: video, patient, machine.",
    ),
    click.option("--id-column", help="The column with the names of a table's rows."),
    click.option(
        "--ignore",
        multiple=True,
        help="A table's column that is neither feature nor task; may be repeated.",
    ),
    click.option(
        "--allow-outside", is_flag=True, help="Accept images outside of the labels file's folder."
    ),
)


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what the columns of a labels file are.

    Args:
        command: a function with a parameter for each of `_READING`, and `tasks`.

    Returns:
        The same function, for `click.command` above it; --task stands first in its help.
    """
    for option in (*reversed(_READING), task_option):
        command = option(command)
    return command


def load_project(folder: str) -> Project:
    """Load the project in a folder.

    Args:
        folder: with a project.toml.

    Raises:
        FileNotFoundError, ValueError: as `Project.load`.
    """
    from kerasmtl.project import Project  # pydantic would slow `--help` down

    return Project.load(folder)


def flags(names: Iterable[str]) -> str:
    """Return the options of a command by the names of its parameters, for messages.

    Args:
        names: of parameters in Python, in the order of the result.

    Example:
        >>> flags(["tasks", "split_column"])
        '--task, --split-column'
    """
    return ", ".join("--task" if n == "tasks" else f"--{n.replace('_', '-')}" for n in names)


def read_manifest(labels: str, kind: str, given: Mapping[str, Any]) -> Manifest:
    """Read a labels file as a kind of input.

    Options are named after the command line, and not all kinds of input have all of them: those of
    another kind are refused, since they would be ignored in silence.

    Args:
        labels: the file.
        kind: of input, "image" or "table".
        given: by name the `reading_options` that have a value; tasks as text or as `Task`.

    Raises:
        ValueError: an option of another kind of input, or what `Manifest.from_csv` raises.
    """
    from kerasmtl.data.inputs import Input  # pandas would slow `--help` down
    from kerasmtl.data.manifest import Manifest

    chosen = dict(given)
    tasks = [read_task(t) if isinstance(t, str) else t for t in chosen.pop("tasks", ())]
    columns = {n: chosen.pop(n) for n in ("split_column", "group_column") if n in chosen}
    # `column` has a longer name here, where nothing else says what it is of: --image-column.
    options = {f"{kind}_column" if n == "column" else n: n for n in Input.options(kind)}
    if wrong := set(chosen) - set(options):
        raise ValueError(f"{flags(sorted(wrong))} must be left out: {labels} is read as {kind}s")
    input = Input.from_config({"kind": kind, **{options[n]: v for n, v in chosen.items()}})
    return Manifest.from_csv(labels, tasks=tasks or None, input=input, **columns)


# ------------------------------------------------------------------ --task

_LISTS = ("missing", "uncertain", "classes")
_OPTION = re.compile(r"(missing|uncertain|classes|uncertain_as|weight)=(.*)", re.DOTALL)


def read_task(word: str) -> Task:
    """Parse a task: the column's name, then kind and options, separated by colons.

    Options are `missing`, `uncertain` and `classes` with values separated by commas, `uncertain_as`
    and `weight`. Other colons belong to the name.

    Args:
        word: the value of one --task.

    Raises:
        ValueError: an option appears twice, or `Task` refuses it.

    Example:
        >>> read_task("edema:uncertain=-1:uncertain_as=one").uncertain_as
        'one'
    """
    name, *parts = word.split(":")
    options: list[str] = []
    # From the end: names of columns may have colons, of which options are then the last parts.
    while parts and (parts[-1] in KINDS or _OPTION.fullmatch(parts[-1])):
        options.insert(0, parts.pop())
    fields: dict[str, Any] = {}
    for option in options:
        found = _OPTION.fullmatch(option)
        key, value = (found[1], _value(found[1], found[2])) if found else ("kind", option)
        if key in fields:
            raise ValueError(f"`task` must have {key} once, got {word!r}")
        fields[key] = value
    return Task(":".join([name, *parts]), **fields)


def _value(key: str, text: str) -> Any:
    """Parse the value of an option of --task: a list, a number or a word.

    `uncertain_as` may be either, "ignore" or 0.3; `Task` checks which words it takes.
    """
    if key in _LISTS:
        return tuple(part.strip() for part in text.split(","))
    try:
        return float(text)
    except ValueError:
        if key == "weight":
            raise ValueError(f"`weight` of a task must be a number, got {text!r}") from None
        return text


# ------------------------------------------------------------------ errors

# Arguments of the library that have another name on the command line.
_RENAMED = {
    **{"export": "export_", "task": "tasks", "target": "folder", "images": "labels"},
    **{"path": "labels", "column": "image_column"},
}


def plain_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Show errors of the user's doing, and warnings, as plain lines without a traceback.

    ValueError, OSError and ImportError are what the library raises for wrong input, files and
    missing packages. TensorFlow's `OpError` is what unusable data cause in a graph, and is shown
    likewise; any other exception is a fault of ours, and keeps its traceback.

    Args:
        command: the function of a command; the decorator stands directly above it.
    """

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            # Whatever -W and PYTHONWARNINGS say: warnings are part of the output.
            warnings.simplefilter("always", UserWarning)
            default, once = warnings.showwarning, cache(_warning)
            warnings.showwarning = lambda message, *place, **more: once(str(message))
            try:
                return command(*args, **kwargs)
            except (ValueError, OSError, ImportError) as error:  # not click's own, which pass
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


def in_cli_words(message: str, command: click.Command) -> str:
    """Translate a message's arguments to those of a command: `image_column` to --image-column.

    Args:
        message: of an exception.
        command: the one that was called.

    Example:
        >>> from kerasmtl.cli.predict import predict
        >>> in_cli_words("`batch_size` must be an integer", predict)
        '--batch-size must be an integer'
    """
    named = {param.name: _shown(param) for param in command.params if param.name}

    def argument(found: re.Match[str]) -> str:
        name = found[1] if found[1] in named else _RENAMED.get(found[1], found[1])
        return named.get(name, found[0])

    return re.sub(r"`(\w+)`", argument, message)


def _shown(param: click.Parameter) -> str:
    """Return what a parameter is called on the command line: --batch-size, FILES."""
    return max(param.opts, key=len) if isinstance(param, click.Option) else str(param.name).upper()


def _warning(message: str) -> None:
    """Print a warning to standard error, without the line of code that `warnings` would add."""
    click.echo(f"Warning: {message}", err=True)


# ------------------------------------------------------------------ tables


def print_table(table: RenderableType) -> None:
    """Print a table with all its numbers, for a terminal, a pipe or a file.

    rich would cut cells at 80 columns outside a terminal.
    """
    from rich.console import Console

    from kerasmtl.utils.tables import print_whole

    print_whole(table, Console())


def print_predictions(
    first: str,
    names: Sequence[str],
    values: Sequence[Mapping[str, Any]],
    decisions: Sequence[Mapping[str, Any]],
) -> None:
    """Print predictions, one line per image or row: "0.731 yes", "rain (0.912)", "4.2".

    Args:
        first: the heading of the names.
        names: one per line.
        values: by task a probability, a number, or class → probability.
        decisions: by task 1 or 0, or the likeliest class, where there is one.
    """
    from rich.table import Table
    from rich.text import Text

    from kerasmtl.utils.tables import Name

    table = Table()
    table.add_column(first)
    for task in values[0]:
        table.add_column(Name(task), justify="right", overflow="fold")
    for name, found, decided in zip(names, values, decisions, strict=True):
        cells = (_cell(value, decided.get(task)) for task, value in found.items())
        table.add_row(Name(name), *map(Text, cells))
    print_table(table)


def _cell(value: Any, decision: Any) -> str:
    """Return a prediction as text: "0.731 yes", "rain (0.912)", "4.2".

    Args:
        value: a probability, a number, class → probability, or what else a server answers.
        decision: 1 or 0, or the name of a class; None where the model decides nothing.
    """
    if isinstance(value, Mapping):
        likeliest = max(value, key=value.__getitem__)
        return f"{likeliest if decision is None else decision} ({value[likeliest]:.3f})"
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:.3f}" if decision is None else f"{value:.3f} {'yes' if decision else 'no'}"
