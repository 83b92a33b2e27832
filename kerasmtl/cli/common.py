"""What commands share: options, and errors and warnings as plain lines."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from kerasmtl.tasks import KINDS, Task
from kerasmtl.utils.tf import graph_fault

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kerasmtl.project import Project

_TEXT = r"'[^']*'|\"[^\"]*\""
_LIST = r"\[[^\]]*\]|\([^)]*\)"
_CALL = re.compile(rf"Task\(({_TEXT}|name)((?:, \w+=(?:{_TEXT}|{_LIST}|[^,)]+))*)\)")
_SETTING = re.compile(rf", (\w+)=({_TEXT}|{_LIST}|[^,]+)")
# "Call with image_column=… (command line: --image-column)", "tasks=[…] (command line: --task)".
_BOTH = re.compile(r"(?:\w+=\S* )?\((?:[^()]*; )?command line: (--[\w-]+)\)")
_IN_TOML = re.compile(r" In project\.toml: \{[^}]*\}\.")
# Arguments of the library that are called otherwise on the command line.
_OTHERWISE = {
    "export": "export_",
    "tasks": "task",
    "target": "folder",
    "images": "labels",
    "path": "labels",
}


def in_cli_words(message: str, command: click.Command) -> str:
    """Say a message of the library in the words of a command: its options and its arguments.

    `image_column` becomes --image-column, Task('a', missing=-1) becomes --task a:missing=-1.

    Args:
        message: of an exception.
        command: that was called.
    """
    named = {param.name: _name(param) for param in command.params if param.name}
    if "tasks" in named:
        message = _CALL.sub(_task_words, _IN_TOML.sub("", message))
    message = _BOTH.sub(r"\1", message)

    def argument(found: re.Match[str]) -> str:
        name = found[1] if found[1] in named else _OTHERWISE.get(found[1], found[1])
        name = "tasks" if name == "task" else name
        return named.get(name, found[0])

    return re.sub(r"`(\w+)`", argument, message)


def _name(param: click.Parameter) -> str:
    if isinstance(param, click.Option):
        return max(param.opts, key=len)
    return str(param.name).upper()


def _task_words(call: re.Match[str]) -> str:
    name, settings = call[1].strip("'\""), _SETTING.findall(call[2])
    words = ["NAME" if name == "name" else name]
    for key, value in settings:
        plain = value.strip("'\"")
        if value[0] in "[(":
            parts = re.findall(r"'([^']*)'", value)
            plain = ",".join(parts) or "A,B"
        words.append(plain if key == "kind" else f"{key}={plain}")
    return "--task " + _quoted(":".join(words))


def _quoted(word: str) -> str:
    return f"'{word}'" if re.search(r"[^\w:=.,-]", word) else word


HELP = (
    "A column to learn, if not every 0/1/? one; with its kind or codes: hours:regression, "
    "weather:multiclass, leak:missing=-1, edema:uncertain=-1:uncertain_as=one."
)
_LISTS = ("missing", "uncertain", "classes")
_OPTION = re.compile(r"(missing|uncertain|classes|uncertain_as|weight)=(.*)", re.DOTALL)


def read_task(word: str) -> Task:
    """The task that a word of the command line describes.

    What follows the column's name, behind colons, is a kind, or `missing`, `uncertain` and
    `classes` with values between commas, `uncertain_as` or `weight`. A colon that nothing of this
    follows is one of the name.

    Raises:
        ValueError: an option that stands twice, or what `Task` refuses.
    """
    *_, name, options = _cut(word)
    fields: dict[str, Any] = {}
    for option in options:
        found = _OPTION.fullmatch(option)
        key, value = (found[1], _value(found[1], found[2])) if found else ("kind", option)
        if key in fields:
            raise ValueError(f"`task` names {key} twice. Expected it once. Received: {word!r}")
        fields[key] = value
    return Task(name, **fields)


def _cut(word: str) -> tuple[str, list[str]]:
    name, *parts = word.split(":")
    options: list[str] = []
    while parts and (parts[-1] in KINDS or _OPTION.fullmatch(parts[-1])):
        options.insert(0, parts.pop())
    return ":".join([name, *parts]), options


def _value(key: str, text: str) -> Any:
    if key in _LISTS:
        return tuple(part.strip() for part in text.split(","))
    try:
        return float(text)
    except ValueError:
        if key == "weight":
            raise ValueError(
                f"`weight` of a task is no number. Expected one, such as 0.1. Received: {text!r}"
            ) from None
        return text


as_json = click.option("--json", "json_", is_flag=True, help="Print JSON instead of a table.")


def _project_option(name: str) -> Callable[..., Any]:
    return click.option(
        "--project",
        name,
        default=".",
        show_default=True,
        type=click.Path(file_okay=False),
        help="The project's folder.",
    )


in_project = _project_option("folder")
project_option = _project_option("project")


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

    from kerasmtl.utils.tables import print_whole

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
    if isinstance(value, Mapping):
        likeliest = max(value, key=value.__getitem__)
        return f"{likeliest if decision is None else decision} ({value[likeliest]:.3f})"
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:.3f}" if decision is None else f"{value:.3f} {'yes' if decision else 'no'}"
