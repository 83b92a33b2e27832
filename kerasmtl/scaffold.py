"""New projects from templates."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasmtl.embedded import DATASETS
from kerasmtl.modules.handles import from_folder
from kerasmtl.tasks import Task

if TYPE_CHECKING:
    from kerasmtl.manifest import Manifest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SHOWN = 12  # names in a line

# Answers that only one of the two kinds of templates takes, and what stands there instead.
_OF_PICTURES = {
    "backbone": "the layers of a table's model are in project.toml",
    "_image_column": "a table has no pictures",
}
_OF_TABLES = {
    "_ignore": "of a CSV of pictures, columns that are no tasks are left out",
    "_id_column": "a row of a CSV of pictures is known by its picture",
}


@dataclass(frozen=True)
class Template:
    """A cookiecutter folder: its name, what it is for, what it asks, and if it reads a table."""

    name: str
    folder: Path
    description: str
    questions: dict[str, tuple[str, str]]  # variable → (question, default)
    table: bool = False


def templates() -> dict[str, Template]:
    """The templates that are shipped, by name."""
    found = {}
    for folder in sorted(Path(str(files("kerasmtl.templates"))).iterdir()):
        if not (folder / "cookiecutter.json").is_file():
            continue
        context = json.loads((folder / "cookiecutter.json").read_text(encoding="utf-8"))
        prompts = context["__prompts__"]
        questions = {
            key: (prompts[key], default)
            for key, default in context.items()
            if not key.startswith("_") and key != "project_name"
        }
        found[folder.name] = Template(
            folder.name, folder, context["_description"], questions, bool(context.get("_table"))
        )
    return found


def new_project(
    template: str,
    target: str | os.PathLike[str],
    answers: dict[str, Any],
    tell: Callable[[str], None] | None = None,
) -> Path:
    """Make a project folder from a template; it appears whole or not at all.

    Args:
        template: a name among `templates()`.
        target: the folder to make; its last part is the project's name.
        answers: by variable of the template; what is left out gets its default. `labels` and
            `backbone` may be paths from the working folder. The tasks are `_tasks`, or read from
            the labels; their columns are `_image_column`, `_split_column`, `_group_column`, and
            of a table `_id_column` and `_ignore`.
        tell: called with a line that says what the columns of the labels are taken for.

    Raises:
        FileExistsError: the folder exists; nothing is changed.
        FileNotFoundError: there is no such labels file.
        ValueError: unknown template, a name that is no project name, an answer that is no setting,
            or a labels file without any column of 0, 1 and missing.
    """
    # Imported here: listing templates must stay quick.
    from cookiecutter.main import cookiecutter

    from kerasmtl.project import Project

    known, target = check_target(template, target)
    context = {**_settings(answers, known.table, tell), "project_name": target.name}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as aside:
        made = cookiecutter(
            str(known.folder),
            no_input=True,
            extra_context=context,
            output_dir=aside,
            default_config=True,
        )
        try:
            Project.load(made)
        except ValueError as error:
            raise ValueError(str(error).replace(str(made), str(target))) from None
        os.rename(made, target)
    return target


def check_target(template: str, target: str | os.PathLike[str]) -> tuple[Template, Path]:
    """The template and the absolute folder, or the errors that `new_project` raises for them."""
    known = templates()
    if template not in known:
        raise ValueError(f"`template` {template!r} is unknown. Expected one of {sorted(known)}.")
    target = Path(os.path.abspath(target))
    if not NAME.fullmatch(target.name):
        raise ValueError(
            f"`target` {target.name!r} is no project name. Expected letters, digits, '_', '-' "
            "and '.', beginning with a letter or digit."
        )
    if target.exists():
        raise FileExistsError(
            f"`target` {target} exists, and is never overwritten. Choose another name."
        )
    return known[template], target


def _settings(
    answers: dict[str, Any], table: bool, tell: Callable[[str], None] | None
) -> dict[str, Any]:
    """The answers for cookiecutter: paths absolute, tasks found, and what it must not render as
    TOML, under names with a "_", which it takes as they are."""
    of_others = _OF_PICTURES if table else _OF_TABLES
    wrong = {name: answers[name] for name in of_others if answers.get(name)}
    for name, value in wrong.items():
        raise ValueError(
            f"`{name.lstrip('_')}` is for templates of {'pictures' if table else 'tables'}. "
            f"Expected none: {of_others[name]}. Received: {value!r}"
        )
    given = dict(answers)
    labels = given.pop("labels", None)
    if labels is not None and labels not in DATASETS:
        labels = os.path.abspath(os.path.expanduser(labels))
        manifest = (_read_table if table else _read_manifest)(labels, given)
        if tell is not None:
            tell(_columns_told(manifest))
        named = {task.name: task for task in map(_as_task, given.get("_tasks") or ())}
        given["_tasks"] = [named.get(task.name, task.name) for task in manifest.tasks]
    backbone = given.pop("backbone", None)
    if backbone is not None:
        given["_backbone"] = from_folder(backbone, Path.cwd())
    if labels is not None:
        given["_labels"] = labels
    return {
        name: toml_value(value) if name.startswith("_") else value
        for name, value in given.items()
        if value is not None
    }


def toml_value(value: Any) -> str:
    """A text, number, list or task as TOML writes it, in one line."""
    if isinstance(value, Task):
        default = Task(value.name)
        fields = {key: getattr(value, key) for key in asdict(value)}
        other = {key: v for key, v in fields.items() if v != getattr(default, key)}
        if not other:
            return toml_value(value.name)
        pairs = {"name": value.name, **other}.items()
        return "{" + ", ".join(f"{key} = {toml_value(v)}" for key, v in pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    # JSON's texts and numbers are TOML's, but for this one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _as_task(task: Task | str) -> Task:
    return task if isinstance(task, Task) else Task(task)


def _column_options(answers: dict[str, Any], *names: str) -> dict[str, str]:
    return {name: answers[f"_{name}"] for name in names if answers.get(f"_{name}")}


def _read_manifest(labels: str, answers: dict[str, Any]) -> Manifest:
    # pandas, not TensorFlow: a second at most.
    from kerasmtl.manifest import Manifest

    # Only the columns matter here; the project decides on pictures outside of the folder.
    return Manifest.from_csv(
        labels,
        tasks=answers.get("_tasks"),
        allow_outside=True,
        **_column_options(answers, "image_column", "split_column", "group_column"),
    )


def _read_table(labels: str, answers: dict[str, Any]) -> Manifest:
    from kerasmtl.table import Table

    return Table.load(
        labels,
        tasks=answers.get("_tasks"),
        ignore=answers.get("_ignore", ()),
        **_column_options(answers, "split_column", "group_column", "id_column"),
    )


def _columns_told(manifest: Manifest) -> str:
    """What the columns of a file are taken for, in a line."""
    parts = {
        "tasks": [task.name for task in manifest.tasks],
        "features": getattr(manifest, "columns", ()),  # of a table
        "ignored": manifest.ignored,
    }
    return "; ".join(f"{part}: {_listed(names)}" for part, names in parts.items() if names)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
